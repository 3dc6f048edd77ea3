"""Which browser origins may open a WebSocket, and who the client behind a proxy is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from urllib.parse import urlsplit

Network = IPv4Network | IPv6Network


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
    """Contract section 2: no Origin, the server's own host name whatever scheme and port, or the allow-list.

    An entry of the allow-list is ``*`` (any), a full origin (``https://app.example``, compared whole), a full origin
    with a leading wildcard (``https://*.example``), or a host name (any scheme and port). ``null``, which sandboxed
    pages send, passes only if it is listed.
    """
    if origin is None:
        return True
    text = origin.strip().lower()
    if "*" in allowed or text in (entry.strip().lower().rstrip("/") for entry in allowed):
        return True
    name = host_name(text)
    if not name or name == "null":
        return False
    if name == host_name(host):
        return True
    return any(_entry_matches(entry.strip().lower().rstrip("/"), text, name) for entry in allowed)


def _entry_matches(entry: str, origin: str, name: str) -> bool:
    scheme, separator, pattern = entry.rpartition("://")
    if separator and not origin.startswith(f"{scheme}://"):
        return False
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return not separator and name == host_name(pattern)


def client_address(peer: str, forwarded_for: str | None, trusted: Sequence[Network]) -> str:
    """Who the client is: the last address in ``X-Forwarded-For`` that is not a proxy of ours.

    The header counts only where ``peer``, the other end of the TCP connection, is a trusted proxy; what stands left
    of the first untrusted address was written by a stranger.
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
    """True if an IP address lies in one of the networks; False for anything that is no IP address."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return any((mapped or ip) in network for network in trusted if network.version == (mapped or ip).version)
