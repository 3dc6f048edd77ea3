"""Closes connections in stages (RFC 9112, section 9.6), so that their last answer arrives.

A connection that is closed while its client is still sending is reset, and the reset may overtake the answer. So the
gateway first shuts down its side, then discards what the client still sends, and closes when the client has closed or a
limit is reached. Meanwhile only the socket remains: no request, and no parser.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from typing import Final

MAX_BYTES: Final = 16 * 1024 * 1024
"""The most data to read and discard."""

TIME_S: Final = 5.0
"""The longest time to read from a client that continues to send."""

IDLE_S: Final = 1.0
"""A client that sends nothing for this long has its answer."""

MAX_SOCKETS: Final = 512
"""When more are about to be closed, the one that has had the most time is closed at once."""

_ROOM: Final = 64 * 1024


@dataclass(slots=True)
class _Client:
    bytes_left: int
    until: float
    timer: asyncio.TimerHandle
    is_sending: bool = False


class Lingering:
    """The sockets that are being closed in stages. Event loop thread only."""

    def __init__(self, max_sockets: int = MAX_SOCKETS) -> None:
        self._max_sockets = max_sockets
        self._clients: dict[socket.socket, _Client] = {}
        self._room = bytearray(_ROOM)
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._clients)

    def close_in_stages(self, sock: socket.socket) -> None:
        """Take over a non-blocking socket on which everything has been written, and close it within the limits."""
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            # The client has disconnected.
            sock.close()
            return
        if self._is_closed:
            sock.close()
            return
        if len(self._clients) >= self._max_sockets:
            self._end(next(iter(self._clients)))
        loop = asyncio.get_running_loop()
        timer = loop.call_later(IDLE_S, self._look, sock)
        self._clients[sock] = _Client(MAX_BYTES, loop.time() + TIME_S, timer)
        loop.add_reader(sock, self._read, sock)

    def close(self) -> None:
        """Close all sockets now, and later ones immediately. Idempotent."""
        self._is_closed = True
        for sock in list(self._clients):
            self._end(sock)

    def _read(self, sock: socket.socket) -> None:
        client = self._clients[sock]
        client.is_sending = True
        try:
            count = sock.recv_into(self._room)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        client.bytes_left -= count
        if not count or client.bytes_left <= 0:
            self._end(sock)

    def _look(self, sock: socket.socket) -> None:
        """Check periodically whether its time is over."""
        client, loop = self._clients[sock], asyncio.get_running_loop()
        if not client.is_sending or loop.time() >= client.until:
            self._end(sock)
            return
        client.is_sending = False
        client.timer = loop.call_later(IDLE_S, self._look, sock)

    def _end(self, sock: socket.socket) -> None:
        self._clients.pop(sock).timer.cancel()
        with contextlib.suppress(RuntimeError):
            # The loop may be closed, and then the socket is no longer read.
            asyncio.get_running_loop().remove_reader(sock)
        sock.close()
