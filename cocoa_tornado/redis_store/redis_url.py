"""URLs of Redis. Pure: opens no connection and resolves no name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from ..adapters import Library, Scheme
from ..plain_text import has_no_controls
from ..rules.addresses import hosts_and_ports, is_host

DEFAULT_PORT: Final = 6379
DEFAULT_SENTINEL_PORT: Final = 26379
_SENTINEL: Final = "redis+sentinel"


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """What ``redis+sentinel://[user:password@]host[:port][,...]/<master>[/<db>]`` says.

    :ivar sentinels: hosts (without brackets) and ports
    :ivar master: the name by which the Sentinels know the master
    :ivar user: of the Redis servers, and of those Sentinels that require one; None without
    """

    sentinels: tuple[tuple[str, int], ...]
    master: str
    database: int = 0
    user: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return f"<SentinelUrl {self.master} {self.sentinels}>"


def sentinel_url(url: str) -> SentinelUrl | None:
    """Read a URL of Sentinels; None if it is one of a single server.

    :raises ValueError: it is malformed; the text follows the URL in a message and contains no password
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() != _SENTINEL:
        return None
    authority, _, path = rest.partition("/")
    user_info, separator, hosts = authority.rpartition("@")
    user, has_password, password = user_info.partition(":")
    master, _, database = path.removesuffix("/").partition("/")
    sentinels = hosts_and_ports(hosts, DEFAULT_SENTINEL_PORT)
    if sentinels is None:
        raise ValueError("host or port cannot be read")
    if not master or not set("?#").isdisjoint(path):
        raise ValueError("the name of the master follows the hosts, and after it at most a database number")
    _check_database(database)
    return SentinelUrl(
        sentinels,
        unquote(master),
        int(database or 0),
        unquote(user) if separator and user else None,
        unquote(password) if has_password else None,
    )


def database_of(url: str) -> tuple[str, int] | None:
    """Which database a valid URL names: its server or its master, and its number. None: it is no URL of Redis.

    Two names of one server are two servers.
    """
    if url.partition("://")[0].lower() not in ("redis", "rediss", _SENTINEL):
        return None
    several = sentinel_url(url)
    if several is not None:
        return f"master {several.master}", several.database
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or DEFAULT_PORT}", int(parts.path.removeprefix("/") or 0)


def _check(url: str) -> str:
    if not has_no_controls(url):
        raise ValueError("it contains a character that is invalid in URLs")
    if sentinel_url(url) is None:
        _check_single(url)
    scheme, _, rest = url.partition("://")
    return f"{scheme.lower()}://{rest}"


def _check_single(url: str) -> None:
    try:
        parts = urlsplit(url)
        # Asking for the port is what makes urlsplit check it.
        wrong_port = parts.port == 0
    except ValueError:
        raise ValueError("host or port cannot be read") from None
    if wrong_port or not parts.hostname or not is_host(parts.hostname):
        raise ValueError("host or port cannot be read")
    _check_database(parts.path.removeprefix("/"))
    if parts.query or parts.fragment:
        raise ValueError("options in the URL are not supported")


def _check_database(text: str) -> None:
    if text and not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ValueError("only a database number may follow the host")


def redis_scheme(instead: str) -> Scheme:
    """The scheme, for one port.

    :param instead: a URL of the same setting that needs no library
    """
    return Scheme(
        names=("redis", "rediss", _SENTINEL),
        form="redis://host:port/db",
        check=_check,
        library=Library(needed_by="redis://", modules=("redis",), extra="redis", instead=instead),
    )
