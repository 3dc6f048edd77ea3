"""The target of a request line (RFC 9112, section 3.2). Pure."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_ABSOLUTE: Final = re.compile(r"https?://([^/?#]+)([^#]*)", re.IGNORECASE)


class RequestTarget(NamedTuple):
    """:ivar path: path and query, the form that most clients send: ``/ws?token=...``
    :ivar host: overrides the Host header; None: the header counts
    """

    path: str
    host: str | None = None


def split_target(target: str) -> RequestTarget:
    """Split a target in absolute form (``http://host:8080/ws``); return any other unchanged.

    Clients send the absolute form to proxies, and every server must accept it. Nothing is validated here: an invalid
    host is refused like an invalid Host header.
    """
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        return RequestTarget(target)
    host, path = absolute[1], absolute[2]
    return RequestTarget(path if path.startswith("/") else f"/{path}", host)
