"""The streams of accepted connections: Tornado's, except that what Tornado refuses on its own authority gets the
contract's body too, and that a client which has said all that it wants to say still gets its answer.

``tornado/http1connection.py`` answers what it cannot read as HTTP with a bare status line, which it writes to the
stream, and closes the stream without an answer where headers, or the line before a chunk, go on for too long. Read
against Tornado 6.6.1; this file alone knows of it. Where another version writes something else, that is what the client
gets: nothing worse.

A client may close its side right behind its request (``nc -N``, ``shutdown(SHUT_WR)``). Tornado takes that for the end
of the connection, though all it means is that no further request comes. Here the end counts only when somebody waits
for bytes that can no longer come. For that, :class:`HttpStream` overrides what ``BaseIOStream`` calls ``read_from_fd``
(public), ``_handle_events`` and ``_maybe_add_error_listener``, and asks ``_find_read_pos``. Where another version has
no such methods, such a client gets no answer.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from asyncio import Future
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Final

from tornado.iostream import IOStream, SSLIOStream, UnsatisfiableReadError

BARE_BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\n\r\n"
MAX_BYTES_UNREAD: Final = 1024 * 1024
PLAIN_HTTP: Final = "This port speaks TLS: use https or wss"
KNOWS_HALF_CLOSE: Final = all(
    hasattr(IOStream, name) for name in ("_handle_events", "_maybe_add_error_listener", "_find_read_pos")
)


def refusal(status: int, message: str = "") -> bytes:
    """A whole response: ``{"message":"..."}``, after which the connection is closed."""
    reason = http.client.responses[status]
    body = json.dumps({"message": message or reason}, separators=(",", ":"))
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\nConnection: close\r\n\r\n{body}".encode()


class HttpStream(IOStream):
    """A connection in the clear. After an upgrade it is the device's, and does nothing of its own any more."""

    # Of the class as long as they are False: what was never HTTP gone wrong keeps neither.
    _is_refusing = False
    _is_in_body = False
    has_device_token = False
    """As for ``rules.crowd.Member``."""
    has_ended = False
    """The other end has sent its last byte. It may still read."""
    needs_both_ways = False
    """The request under way is of no use to a client that sends nothing more: its end is the connection's end."""

    def write(self, data: bytes | memoryview) -> Future[None]:
        """As Tornado's; its bare 400 becomes one with a body."""
        if data == BARE_BAD_REQUEST:
            self._is_refusing = True
            data = refusal(400)
        return super().write(data)

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """As Tornado's, which reads a request's headers so."""
        if self._is_in_body:
            self._is_in_body = False
        return super().read_until_regex(regex, max_bytes)

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """As Tornado's, which reads the line before a chunk so."""
        self._is_in_body = True
        return super().read_until(delimiter, max_bytes)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """As Tornado's, except that the end is none (0) while nobody waits for more than has come."""
        count = super().read_from_fd(buf)
        if count == 0 and KNOWS_HALF_CLOSE:
            self.has_ended = True
            if not self.needs_both_ways and (not self.reading() or self._find_read_pos() is not None):
                return None
        return count

    def _handle_events(self, fd: Any, events: int) -> None:
        super()._handle_events(fd, events)
        if self.has_ended and not self.closed() and not self.reading():
            # The socket stays readable, and the loop would come back at once, again and again.
            self._state = self.io_loop.ERROR | (self.io_loop.WRITE if self.writing() else 0)
            self.io_loop.update_handler(self.fileno(), self._state)

    def _maybe_add_error_listener(self) -> None:
        if not self.has_ended:
            super()._maybe_add_error_listener()

    def close(
        self,
        exc_info: bool
        | BaseException
        | tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
        | None = False,
    ) -> None:
        """As Tornado's; a client whose headers are too large is told so before."""
        if not self.closed():
            if isinstance(exc_info, UnsatisfiableReadError):
                self._refuse(400 if self._is_in_body else 431)
            if self._is_refusing:
                self._throw_away_unread()
        super().close(exc_info)
        if self.error is not None:
            # Its traceback holds this stream, which holds it: a circle that would wait for the garbage collector.
            self.error.__traceback__ = None

    def _refuse(self, status: int) -> None:
        """Say so if the socket takes it at once: not after an answer that it has not taken yet."""
        self._is_refusing = True
        if not self.writing():
            with contextlib.suppress(OSError):
                self.write_to_fd(memoryview(refusal(status)))

    def _throw_away_unread(self) -> None:
        """Read what has come: a socket closed with something unread is reset, and that may overtake the answer."""
        room = memoryview(bytearray(64 * 1024))
        with contextlib.suppress(OSError):
            for _ in range(MAX_BYTES_UNREAD // len(room)):
                if not self.read_from_fd(room):
                    return


class HttpsStream(HttpStream, SSLIOStream):
    """A connection over TLS."""

    def close(
        self,
        exc_info: bool
        | BaseException
        | tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
        | None = False,
    ) -> None:
        """As Tornado's; a client that speaks plain HTTP here is told so, in plain HTTP."""
        if isinstance(exc_info, ssl.SSLError) and exc_info.reason == "HTTP_REQUEST" and not self.closed():
            self._say_that_this_is_tls()
        super().close(exc_info)

    def _say_that_this_is_tls(self) -> None:
        # Past the TLS of the socket, which has failed before it said anything.
        with contextlib.suppress(OSError):
            while socket.socket.recv(self.socket, 64 * 1024):
                pass
        with contextlib.suppress(OSError):
            socket.socket.send(self.socket, refusal(400, PLAIN_HTTP))
