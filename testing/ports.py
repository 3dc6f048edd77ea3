"""Ports of 127.0.0.1 that remain reserved for a server while it is down."""

from __future__ import annotations

import socket


class ReservedPort:
    """A free port that no other process gets while this object is open.

    A bound socket that never listens reserves it. A server that sets SO_REUSEADDR, as nearly all do, can also bind the
    port and listen. The kernel does not assign the port to other processes, and refuses connections while no server
    listens.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Release the port."""
        self._socket.close()
