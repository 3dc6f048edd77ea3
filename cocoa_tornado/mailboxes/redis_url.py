"""The URL of the Redis mailbox. Pure: opens no connection and resolves no name."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from ..adapters import Library, Scheme
from ..plain_text import has_no_controls
from ..rules.addresses import is_host


def _check(url: str) -> str:
    if not has_no_controls(url):
        raise ValueError("it contains a character that is invalid in URLs")
    try:
        parts = urlsplit(url)
        # Asking for the port is what makes urlsplit check it.
        wrong_port = parts.port == 0
    except ValueError:
        raise ValueError("host or port cannot be read") from None
    if wrong_port or not parts.hostname or not is_host(parts.hostname):
        raise ValueError("host or port cannot be read")
    database = parts.path.removeprefix("/")
    if database and not (database.isascii() and database.isdigit() and len(database) < 6):
        raise ValueError("only a database number may follow the host")
    if parts.query or parts.fragment:
        raise ValueError("options in the URL are not supported")
    scheme, _, rest = url.partition("://")
    return f"{scheme.lower()}://{rest}"


REDIS: Final = Scheme(
    names=("redis", "rediss"),
    form="redis://host:port/db",
    check=_check,
    library=Library(needed_by="redis://", modules=("redis",), extra="redis", instead="sqlite:///path"),
)
