"""Hosts, ports and URLs in settings: which are well formed, and which only this machine can reach. Pure.

Nothing here resolves a name.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from typing import Final
from urllib.parse import urlsplit

from ..plain_text import strip_blanks

DEFAULT_KAFKA_PORT: Final = 9092

_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
# RFC 6874, section 2. ip_address() accepts any characters after the percent sign, even line ends and escapes.
_ZONE: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}")
_AUTHORITY: Final = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")
_USER_INFO: Final = re.compile(r"(?<=//)[^/?#]*@")
_PERHAPS_USER_INFO: Final = re.compile(r"^([^:@]*:/{0,2}).*@", re.DOTALL)
_NO_PORT: Final = re.compile(r"(?<=//)([^/?#@:\[\]]*):(?![0-9]*(?:[/?#,]|\Z))[^/?#]*")


def is_host(text: str) -> bool:
    """True for an IP address (without brackets) or a possible host name."""
    _, has_zone, zone = text.partition("%")
    if has_zone and not _ZONE.fullmatch(zone):
        return False
    try:
        ip_address(text)
    except ValueError:
        # Digits and dots only: a mistyped address (1.2.3.400) rather than a name.
        return len(text) <= 253 and bool(_NAME.fullmatch(text)) and not re.fullmatch(r"[0-9.]+", text)
    return True


def is_authority(text: str) -> bool:
    """True for ``host`` or ``host:port``; an IPv6 address is in brackets."""
    return _host_and_port(text, 0) is not None


def is_web_url(text: str) -> bool:
    """True for an http or https URL without blanks whose host can be resolved."""
    if not text.isprintable() or " " in text:
        return False
    try:
        parts = urlsplit(text)
        # urlsplit validates the port only when it is read.
        return parts.scheme in ("http", "https") and parts.port != 0 and _is_resolvable(parts.hostname or "")
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """True if only this machine can reach what listens on ``host``. The only name that counts is ``localhost``."""
    try:
        address = ip_address(host)
    except ValueError:
        return host.rstrip(".").lower() == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def is_every_address(host: str) -> bool:
    """True if ``host`` means all IPv4 and IPv6 addresses of this machine: ``::`` in any spelling, or an empty string.

    >>> is_every_address("::"), is_every_address("0:0::0"), is_every_address("0.0.0.0"), is_every_address("::1")
    (True, True, False, False)
    """
    try:
        address = ip_address(host or "::")
    except ValueError:
        return False
    return isinstance(address, IPv6Address) and address.is_unspecified


def kafka_servers(url: str) -> tuple[str, ...]:
    """Return each ``host:port`` of ``kafka://host:port[,host:port...]``, with the default port where none is given.

    >>> kafka_servers("kafka://one,[::1]:9093")
    ('one:9092', '[::1]:9093')

    :raises ValueError: ``url`` is not such a URL; the message completes a sentence that begins with the URL
    """
    scheme, separator, rest = url.partition("://")
    if scheme.lower() != "kafka" or not separator:
        raise ValueError("is not a supported broker")
    servers = hosts_and_ports(rest.removesuffix("/"), DEFAULT_KAFKA_PORT)
    if servers is None:
        raise ValueError("has an invalid host or port")
    return tuple(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in servers)


def hosts_and_ports(text: str, default_port: int) -> tuple[tuple[str, int], ...] | None:
    """Each host (without brackets) and port of ``host:port[,host:port...]``; None if one is malformed."""
    found = [_host_and_port(strip_blanks(part), default_port) for part in text.split(",")]
    return None if None in found else tuple(filter(None, found))


def base_url(host: str, port: int, *, tls: bool) -> str:
    """Where a server listens: ``http://127.0.0.1:8080``."""
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def without_user_info(text: str) -> str:
    """Replace ``user:password`` in every URL in ``text`` with ``***``."""
    return _USER_INFO.sub("***@", text)


def masked(text: str) -> str:
    """Mask secrets in ``text`` that may be meant as a URL, for an error message that says it is not one.

    Everything up to the last ``@`` is replaced with ``***``: many URLs are invalid because of a slash in the password
    or a missing slash before it. A port that is not a number is replaced too, as it may be a password without its
    ``@``.
    """
    return _NO_PORT.sub(r"\1:***", without_user_info(_PERHAPS_USER_INFO.sub(r"\1***@", text)))


def _is_resolvable(name: str) -> bool:
    """True for a host name in any script. Raises UnicodeError, a ValueError, for a name that IDNA cannot encode."""
    # The codec takes quadratic time, so check the length first.
    return len(name) <= 253 and is_host(name if name.isascii() else name.encode("idna").decode("ascii"))


def _host_and_port(text: str, default_port: int) -> tuple[str, int] | None:
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return None
    host, port = match["v6"] or match["name"], match["port"]
    bracketed_rightly = (match["v6"] is not None) == (":" in host)
    if not bracketed_rightly or not is_host(host) or (port is not None and not 1 <= int(port) <= 65535):
        return None
    return host, int(port or default_port)
