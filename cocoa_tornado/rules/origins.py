"""Which origins may open a WebSocket, and the address of the client behind a proxy. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final, NamedTuple
from urllib.parse import urlsplit

Network = IPv4Network | IPv6Network

ANY: Final = "*"
NULL: Final = "null"
"""Sent by browsers for a page without an origin of its own: sandboxed frames, ``data:`` URLs, local files."""

WEB: Final = ("http", "https")

# Stricter than a URL: parsers disagree on the host if there is a user name, a backslash or a query.
_ORIGIN: Final = re.compile(
    r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?"
    r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._~-]*)"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[a-z0-9._~!$&'()*+;=:@%/-]*)?"
)


@dataclass(frozen=True, slots=True)
class Origin:
    """An origin, or an entry of the allow-list, in lower case and without a final slash; see :func:`read_origin`.

    :ivar scheme: "" if there is none, as some firmware sends it
    :ivar host: without brackets and final dot; "" only if the scheme is not a web page's (``file://``)
    :ivar path: sent by some firmware, but no browser; "" if there is none
    """

    scheme: str
    host: str
    port: str = ""
    path: str = ""


def read_origin(text: str) -> Origin | None:
    """Return None if it can't be parsed: a comma (two joined headers), a blank inside, a user name, no host."""
    found = _ORIGIN.fullmatch(text.strip(" \t").lower())
    if found is None:
        return None
    scheme, port, path = found["scheme"] or "", found["port"] or "", (found["path"] or "").rstrip("/")
    host = found["host"].strip("[]").rstrip(".")
    is_web_page = scheme in ("", *WEB)
    return None if is_web_page and not host else Origin(scheme, host, port, path)


def host_name(authority: str) -> str:
    """The host of ``host``, ``host:port`` or ``scheme://host:port``, lower case, without brackets; '' if there is none.

    >>> host_name("https://Gateway.example:8443"), host_name("[::1]:8080"), host_name("null")
    ('gateway.example', '::1', 'null')
    """
    text = authority.strip()
    try:
        return (urlsplit(text if "://" in text else f"//{text}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def origin_allowed(origin: str | None, host: str, allowed: Sequence[str]) -> bool:
    """Return whether an origin may use ``/ws``, where a page without a token gets nothing (contract section 2).

    The cases, in order: no Origin is allowed; ``null`` only if listed; an unparsable one never. An Origin that begins
    with http or https, or has no scheme, is allowed if its host is the server's own (with any scheme and port) or it is
    listed. Any other scheme is allowed: firmware, packaged apps and browser extensions send those.

    :param host: the ``Host`` header
    :param allowed: see :func:`is_listed`
    """
    if origin is None:
        return True
    if origin.strip(" \t").lower() == NULL:
        return ANY in allowed or NULL in allowed
    read = read_origin(origin)
    if read is None:
        return False
    if read.scheme and not read.scheme.startswith("http"):
        return True
    return read.host == host_name(host) or is_listed(read, allowed)


def is_listed(origin: Origin, allowed: Sequence[str]) -> bool:
    """Return whether an entry of the allow-list matches this origin, which is not ``null``.

    An entry is ``*`` (any), a full origin (``https://app.example``, compared whole, with its path if it has one), a
    wildcard (``https://*.example``, all subdomains), or a host name (any scheme and port)."""
    return any(entry == ANY or _entry_matches(entry, origin) for entry in allowed if entry != NULL)


def split_entry(entry: str) -> tuple[str, str]:
    """Return the scheme, or "" if there is none, and the rest."""
    scheme, separator, rest = entry.partition("://")
    return (scheme, rest) if separator else ("", entry)


def _entry_matches(entry: str, origin: Origin) -> bool:
    scheme, rest = split_entry(entry.strip().lower())
    if rest.startswith("*."):
        suffix = rest[1:].rstrip("/")
        return scheme in ("", origin.scheme) and origin.host.endswith(suffix) and origin.host != suffix
    listed = read_origin(entry)
    if listed is None:
        return False
    return listed == origin or (not scheme and not listed.path and listed.host == origin.host)


class Caller(NamedTuple):
    """The client of a request, and what it asked for.

    :ivar ip: the client's address
    :ivar host: the host that it requested
    :ivar scheme: the scheme that it used; None: that of the connection
    """

    ip: str
    host: str
    scheme: str | None = None


def find_caller(peer: str, host: str, headers: Mapping[str, str], trusted: Sequence[Network]) -> Caller:
    """Return the client of a request. If the peer is a trusted proxy, that is the client that the proxy names.

    :param peer: the other end of the TCP connection
    :param host: the header ``Host``
    :param headers: looked up by names in lower case
    """
    if not trusted or not is_trusted(peer, trusted):
        return Caller(peer, host)
    client = client_address(peer, headers.get("x-forwarded-for"), trusted)
    scheme, forwarded_host = _last(headers.get("x-forwarded-proto")).lower(), _last(headers.get("x-forwarded-host"))
    return Caller(client, forwarded_host or host, scheme if scheme in WEB else None)


def _last(header: str | None) -> str:
    """The value that the nearest proxy has added."""
    return (header or "").split(",")[-1].strip()


def client_address(peer: str, forwarded_for: str | None, trusted: Sequence[Network]) -> str:
    """Return the client's address: the last one in ``X-Forwarded-For`` that is not a trusted proxy.

    The header counts only if ``peer``, the other end of the TCP connection, is a trusted proxy. Anything left of the
    first untrusted address can be forged.
    """
    if not forwarded_for or not is_trusted(peer, trusted):
        return peer
    client = peer
    for part in reversed(forwarded_for.split(",")):
        address = part.strip()
        try:
            ip_address(address)
        except ValueError:
            break
        client = address
        if not is_trusted(address, trusted):
            break
    return client


def is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    """True if an IP address is in one of the networks; False for anything else."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return any((mapped or ip) in network for network in trusted if network.version == (mapped or ip).version)
