"""The host names that requests may use, to prevent DNS rebinding. Pure.

A web page can change the address of its own host name to the gateway's. For the browser, page and gateway are then one
origin, and the page reads every answer that needs no token. But browsers send the page's host name as ``Host``, and no
script can change that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

ANY: Final = "*"
WILDCARD: Final = "*."
LOCALHOST: Final = "localhost"

# Stricter than RFC 3986: no user name, no percent-encoding, no zone. Browsers send neither.
_AUTHORITY: Final = re.compile(
    r"(?:\[(?P<v6>[0-9a-f:.]{2,45})\]|(?P<name>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?)(?::[0-9]{0,5})?", re.ASCII
)
_FORWARDED_HOST: Final = re.compile(r"(?:^|[;,\s])host\s*=\s*(\"(?:[^\"\\]|\\.)*\"|[^;,\s]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """The names that are allowed besides local ones; with :data:`ANY` among them, all are.

    An entry is a name, or ``*.`` and a name for all names below it.

    :ivar entries: in lower case, without a final dot, as :func:`read_entry` returns them
    """

    entries: tuple[str, ...] = ()

    def refused(self, host: str | None, headers: Mapping[str, str]) -> str | None:
        """Return the first of a request's names that is not allowed, as it was sent; None if all are.

        A proxy that replaces ``Host`` may send the client's in another header. That header can only cause a refusal, so
        it counts from any peer, trusted or not.

        :param host: the header ``Host``; None or "" if there is none, as in HTTP/1.0: no browser sends that
        :param headers: looked up by names in lower case
        """
        if ANY in self.entries:
            return None
        names = [*([host] if host else []), *forwarded_hosts(headers)]
        return next((name for name in names if not self._allows(name)), None)

    def _allows(self, authority: str) -> bool:
        found = _AUTHORITY.fullmatch(authority.lower()) if authority.isascii() else None
        if found is None:
            return False
        name = found["name"]
        return _is_address(IPv6Address, found["v6"]) if name is None else is_local(name) or self._is_listed(name)

    def _is_listed(self, name: str) -> bool:
        return name in self.entries or any(
            entry.startswith(WILDCARD) and name.endswith(entry[1:]) for entry in self.entries
        )


def allowed_hosts(listed: Sequence[str], own: Iterable[str], *, is_development: bool) -> AllowedHosts:
    """Return the names that requests to a gateway with these settings may use.

    :param listed: the setting; if it is empty, all names are allowed, and in development local ones only
    :param own: the configured addresses to listen on, which may be names
    :param is_development: whether the development key is in use
    """
    if not listed and not is_development:
        return AllowedHosts((ANY,))
    return AllowedHosts(tuple(dict.fromkeys(map(read_entry, (*listed, *own)))))


def read_entry(text: str) -> str:
    """Normalize a name of the setting, for comparisons."""
    return text.lower().removesuffix(".")


def is_local(name: str) -> bool:
    """Return whether this name is resolved without DNS: ``localhost``, a name below it (RFC 6761), or an IPv4 address
    with four decimal parts, which is the only spelling that browsers send.

    >>> is_local("app.localhost"), is_local("127.0.0.1"), is_local("127.0.0.1.nip.io"), is_local("2130706433")
    (True, True, False, False)
    """
    return name == LOCALHOST or name.endswith(f".{LOCALHOST}") or _is_address(IPv4Address, name)


def forwarded_hosts(headers: Mapping[str, str]) -> Iterator[str]:
    """Yield every host name that proxies report."""
    yield from filter(None, (part.strip() for part in headers.get("x-forwarded-host", "").split(",")))
    for part in _FORWARDED_HOST.findall(headers.get("forwarded", "")):
        name = part.strip('"')
        if name:
            yield name


def _is_address(kind: type[IPv4Address] | type[IPv6Address], text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True
