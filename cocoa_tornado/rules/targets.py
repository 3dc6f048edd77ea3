"""The target of a request line (RFC 9112, section 3.2). Pure."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_ABSOLUTE: Final = re.compile(r"https?://([^/?#]+)([^#]*)", re.IGNORECASE)


class Target(NamedTuple):
    """:ivar path: path and query, as most clients send them: ``/ws?token=...``
    :ivar host: what counts instead of the Host header; None: the header
    """

    path: str
    host: str | None = None


def split_target(target: str) -> Target:
    """Take a target in absolute form (``http://host:8080/ws``) apart; any other is returned as it is.

    Clients send it to proxies, and every server must understand it. Nothing is checked here: a host that is none is
    refused like a Host header that is none.
    """
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        return Target(target)
    host, path = absolute[1], absolute[2]
    return Target(path if path.startswith("/") else f"/{path}", host)
