"""Cross-origin resource sharing: which web pages may read an answer, and send what needs a preflight. Pure.

A token or a secret stands in a header that only the page itself can set: nothing is ever granted to cookies or to other
credentials that a browser adds, so no page can act for somebody who merely visits it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .origins import WEB, is_listed, read_origin

REQUEST_HEADERS: Final = "Authorization, Content-Type, X-API-Key, X-API-Secret"
EXPOSED_HEADERS: Final = "Retry-After, WWW-Authenticate"

MAX_AGE_S: Final = 600
"""How long a browser remembers a preflight. An origin that is taken off the list may send for so long at most; it can't
read the answers any more."""

ROUTES: Final = {
    "/ws": "GET, OPTIONS",
    "/api/v1/auth/token": "POST, OPTIONS",
    "/api/v1/audio/stream": "POST, OPTIONS",
    "/api/v1/transcriptions": "POST, OPTIONS",
}
"""Those that web pages may use, and their methods. No page may read health, readiness or metrics."""


def cors_headers(path: str, method: str, origin: str | None, allowed: Sequence[str]) -> dict[str, str]:
    """What an answer on this path says about other origins; empty on a path that is none of :data:`ROUTES`.

    An http or https origin in the allow-list is echoed. Never ``*``, even where the list says so: then any such origin
    is echoed. Never ``null``, whatever the list says: it is the origin of no page in particular.

    :param method: the request's; OPTIONS asks what may be sent
    :param origin: the header Origin
    """
    methods = ROUTES.get(path)
    if methods is None:
        return {}
    # Always, or a cache would give one origin the answer to another.
    headers = {"Vary": "Origin"}
    page = None if origin is None else read_origin(origin)
    # With a path or without a scheme it is no page's.
    if origin is None or page is None or page.scheme not in WEB or page.path or not is_listed(page, allowed):
        return headers
    headers["Access-Control-Allow-Origin"] = origin.strip(" \t")
    if method == "OPTIONS":
        headers["Access-Control-Allow-Methods"] = methods
        headers["Access-Control-Allow-Headers"] = REQUEST_HEADERS
        headers["Access-Control-Max-Age"] = str(MAX_AGE_S)
    else:
        headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
    return headers
