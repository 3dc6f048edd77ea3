"""A connection that has been accepted and has not sent anything yet."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

from ..rules.request_head import MAX_HEAD_BYTES
from .waiting import Waiting


class Newcomer:
    """A bare socket on the event loop, until its first bytes arrive. They are peeked at and stay in the kernel, so that
    the next owner of the socket reads it from its beginning. IOLoop thread only.

    A member of the crowd (``rules/crowd.py``) while it waits.

    :ivar address: of the other end, as ``accept`` returns it
    :ivar waiting: its handshake, while that waits for presence
    """

    __slots__ = ("_on_end", "address", "has_upload", "sock", "waiting")

    def __init__(self, sock: socket.socket, address: Any) -> None:
        self.sock, self.address = sock, address
        self.has_upload = False
        self._on_end: Callable[[Newcomer], None] | None = None
        self.waiting: Waiting | None = None

    @property
    def peer(self) -> str:
        """The IP address of the other end; ``""`` if there is none."""
        return str(self.address[0]) if isinstance(self.address, tuple) else ""

    def peek(self) -> bytes | None:
        """The bytes received so far, at most ``MAX_HEAD_BYTES``; ``b""`` at the end, or if the connection is lost; None
        if nothing has arrived yet."""
        try:
            return self.sock.recv(MAX_HEAD_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def wait(self, on_readable: Callable[[Newcomer], None], on_end: Callable[[Newcomer], None]) -> None:
        """Call ``on_readable`` whenever :meth:`peek` returns something, until :meth:`leave`; or ``on_end`` if it is
        closed before, but never from within this method or :meth:`close`."""
        self._on_end = on_end
        asyncio.get_running_loop().add_reader(self.sock.fileno(), on_readable, self)

    def hold(self, waiting: Waiting, on_end: Callable[[Newcomer], None]) -> None:
        """Its handshake waits. Call ``on_end`` as :meth:`wait` does; :meth:`close` also gives up the handshake."""
        self.waiting, self._on_end = waiting, on_end

    def leave(self) -> socket.socket:
        """Stop waiting; returns the socket."""
        if self._on_end is not None:
            self._on_end = None
            if self.waiting is None:  # else the reader is that of its connection, perhaps
                asyncio.get_running_loop().remove_reader(self.sock.fileno())
            self.waiting = None
        return self.sock

    def close(self) -> None:
        """Idempotent."""
        on_end = self._on_end
        if self.waiting is not None:
            self.waiting.give_up()
        with contextlib.suppress(OSError):
            self.leave().close()
        if on_end is not None:
            asyncio.get_running_loop().call_soon(on_end, self)
