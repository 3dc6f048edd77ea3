"""Cross-origin resource sharing: which web pages may read a response or send a preflighted request. Pure.

Tokens and secrets are in headers that only the page itself can set. Cookies and other ambient credentials never grant
anything, so no page can act on behalf of a visitor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .origins import WEB, is_listed, read_origin

REQUEST_HEADERS: Final = "Authorization, Content-Type, X-API-Key, X-API-Secret"
EXPOSED_HEADERS: Final = "Retry-After, WWW-Authenticate"

MAX_AGE_S: Final = 600
"""How long a browser caches a preflight. An origin removed from the list can continue to send for this long at most; it
can't read the responses any more."""

ROUTES: Final = {
    "/ws": "GET, OPTIONS",
    "/api/v1/auth/token": "POST, OPTIONS",
    "/api/v1/audio/stream": "POST, OPTIONS",
    "/api/v1/transcriptions": "POST, OPTIONS",
}
"""The routes that web pages may use, and their methods. No page may read health, readiness or metrics."""


def cors_headers(path: str, method: str, origin: str | None, allowed: Sequence[str]) -> dict[str, str]:
    """Return the CORS headers of a response; empty for a path that is not in :data:`ROUTES`.

    An http or https origin in the allow-list is echoed. The result is never ``*``: if the list contains it, any such
    origin is echoed. It is never ``null``, which does not identify a page, even if the list contains it.

    :param method: the request's method; OPTIONS is a preflight
    :param origin: the ``Origin`` header
    """
    methods = ROUTES.get(path)
    if methods is None:
        return {}
    # Always, or a cache could serve one origin's response to another.
    headers = {"Vary": "Origin"}
    page = None if origin is None else read_origin(origin)
    # An origin with a path, or without a scheme, is not a web page's.
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
