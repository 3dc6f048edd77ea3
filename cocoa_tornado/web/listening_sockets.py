"""The sockets that a gateway listens on."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

from ..errors import ServiceError
from ..rules.addresses import is_every_address

LISTEN_BACKLOG: Final = 65_535  # as long as the kernel allows


def bind(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Listening sockets, all on one port: one for each address of the host. ``::`` means all addresses, of IPv4 too.

    :param shared: other processes of this user may also listen on the port, if they set this too; the kernel spreads
        new connections over them (``SO_REUSEPORT``)
    :raises ServiceError: one line; no socket stays open then
    """

    def listen(family: int, address: tuple[Any, ...]) -> socket.socket | None:
        sock = _bound(family, address, host, shared=shared)
        if sock is not None:
            try:
                sock.listen(LISTEN_BACKLOG)
            except OSError:
                sock.close()
                raise
        return sock

    return _for_all_addresses(host, port, listen)


def reserve(host: str, port: int) -> list[socket.socket]:
    """Sockets that keep the port for ``bind(..., shared=True)`` in this process and its children, and do not listen.

    :raises ServiceError: as :func:`bind`; also if the port is reserved, or shared by others
    """
    return _for_all_addresses(host, port, lambda family, address: _reserved(family, address, host))


def _reserved(family: int, address: tuple[Any, ...], host: str) -> socket.socket | None:
    """Linux lets sockets with SO_REUSEADDR share a port as long as none listens, and those with SO_REUSEPORT in any
    case. So a first socket listens for an instant without the latter, which fails if the port is not free, and only
    then admits a second one, which keeps the port."""
    first = _bound(family, address, host, shared=False)
    if first is None:
        return None
    with first:
        first.listen(1)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        second = _bound(family, first.getsockname(), host, shared=True)
        if second is not None:
            # It was needed because of old connections of this port; from now on it would let other processes bind it.
            second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return second


def _for_all_addresses(
    host: str, port: int, make: Callable[[int, tuple[Any, ...]], socket.socket | None]
) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            # With port 0, the first address chooses for all.
            chosen = sockets[0].getsockname()[1] if sockets else port
            sock = make(family, (address[0], chosen, *address[2:]))
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
    # Without a host, getaddrinfo returns the wildcard addresses of both families.
    name = None if is_every_address(host) else host
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, address in sorted(dict.fromkeys(found), key=lambda entry: entry[0]):
        yield family, address


def _bound(family: int, address: tuple[Any, ...], host: str, *, shared: bool) -> socket.socket | None:
    """None if this machine has no IPv6, although the host has an IPv6 address."""
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # IPv4 clients always use the IPv4 socket, on every platform.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setblocking(False)
        sock.bind(address)
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
