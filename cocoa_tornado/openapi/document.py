"""The whole document. Pure."""

from __future__ import annotations

import json
from typing import Any, Final

from cocoa_tornado import __version__

from . import admin, public
from .schemas import SCHEMAS

DOCUMENT: Final[dict[str, Any]] = {
    "openapi": "3.1.0",
    "info": {
        "title": "cocoa-tornado",
        "version": __version__,
        "description": "WebSocket on one side, Kafka on the other. The admin API is a 404 until it has a key.",
    },
    "paths": public.PATHS | admin.PATHS,
    "components": {
        "schemas": SCHEMAS,
        "responses": public.RESPONSES,
        "securitySchemes": public.SECURITY_SCHEMES,
    },
}
TEXT: Final = json.dumps(DOCUMENT, ensure_ascii=False, separators=(",", ":")).encode()
