"""The URLs that name a mailbox. Pure: nothing is opened, no name resolved."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, unquote, urlsplit

from ..plain_text import has_no_controls, strip_blanks
from .addresses import is_host

MAILBOX_OFF: Final = "none://"
ALLOWED: Final = "none://, memory://, sqlite:///relative/path, sqlite:////absolute/path, redis://host:port/db"


def check_mailbox_url(url: str) -> str:
    """The URL in its usual spelling. ValueError, with what is wrong and no password in it, if it is none."""
    url = strip_blanks(url)
    if not has_no_controls(url):
        raise ValueError("it holds a character that no URL has")
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if separator and scheme in ("none", "memory"):
        if rest:
            raise ValueError(f"nothing stands after {scheme}://")
        return f"{scheme}://"
    if separator and scheme == "sqlite":
        return f"sqlite:///{quote(sqlite_path(url))}"
    if separator and scheme in ("redis", "rediss"):
        _check_redis(url)
        return f"{scheme}://{rest}"
    raise ValueError("it is not a mailbox")


def sqlite_path(url: str) -> str:
    """The path in ``sqlite:///relative/path`` or ``sqlite:////absolute/path``; ValueError if there is none."""
    _, _, rest = url.partition("://")
    if not rest.startswith("/"):
        raise ValueError("a path of sqlite begins after three slashes; an absolute one has four")
    path = unquote(rest[1:])
    if not path or path.endswith("/"):
        raise ValueError("it names no file")
    if "?" in rest or "#" in rest:
        raise ValueError("what stands in it cannot be part of a path; write it as %3F, %23")
    if not has_no_controls(path):
        raise ValueError("its path holds a control character")
    return path


def _check_redis(url: str) -> None:
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
        raise ValueError("after the host only the number of a database may stand")
    if parts.query or parts.fragment:
        raise ValueError("options in the URL are not known")
