"""Ports of 127.0.0.1 that stay a server's own, even while it is down."""

from __future__ import annotations

import socket


class ReservedPort:
    """A free port that no other process gets as long as this object is open.

    It is held by a socket that is bound and never listens. A server that sets SO_REUSEADDR, as nearly all of them do,
    can bind the port beside it and listen. The kernel does not give it to a process that asks for any free port, and
    refuses connections to it while no server listens.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Release the port."""
        self._socket.close()
