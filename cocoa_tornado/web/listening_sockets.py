"""The sockets that a gateway listens on."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any, Final

from ..errors import ServiceError
from ..rules.addresses import is_every_address

LISTEN_BACKLOG: Final = 65_535  # as long as the kernel allows


def bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets, all on one port: one for each address of the host. ``::`` means all addresses, of IPv4 too.

    :raises ServiceError: one line; none of the addresses is kept then
    """
    sockets: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            # With port 0, the first address chooses for all.
            chosen = sockets[0].getsockname()[1] if sockets else port
            sock = _listening(family, (address[0], chosen, *address[2:]), host)
            if sock is not None:
                sockets.append(sock)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ServiceError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    if not sockets:
        raise ServiceError(f"cannot listen on {host} port {port}: no address")
    return sockets


def _addresses(host: str, port: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Family and address, each once; IPv4 first."""
    # Without a host, getaddrinfo names the addresses that stand for all, of both kinds.
    name = None if is_every_address(host) else host
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, address in sorted(dict.fromkeys(found), key=lambda entry: entry[0]):
        yield family, address


def _listening(family: int, address: tuple[Any, ...], host: str) -> socket.socket | None:
    """None where this machine cannot do IPv6, though the host has an address of that kind."""
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # An IPv4 client is the business of the IPv4 socket, on every platform.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(LISTEN_BACKLOG)
    except OSError as error:
        sock.close()
        if (
            error.errno == errno.EADDRNOTAVAIL
            and family == socket.AF_INET6
            and (host == "localhost" or is_every_address(host))
        ):
            return None
        raise
    return sock
