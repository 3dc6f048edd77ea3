"""The streams of accepted connections: Tornado's, except that what Tornado refuses on its own authority gets the
contract's body too.

``tornado/http1connection.py`` answers what it cannot read as HTTP with a bare status line, which it writes to the
stream, and closes the stream without an answer where headers, or the line before a chunk, go on for too long. Read
against Tornado 6.6.1; this file alone knows of it. Where another version writes something else, that is what the client
gets: nothing worse.
"""

from __future__ import annotations

import contextlib
import http.client
import json
from asyncio import Future
from collections.abc import Awaitable
from types import TracebackType
from typing import Final

from tornado.iostream import IOStream, SSLIOStream, UnsatisfiableReadError

BARE_BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\n\r\n"
MAX_BYTES_UNREAD: Final = 1024 * 1024


def refusal(status: int) -> bytes:
    """A whole response: ``{"message":"..."}``, after which the connection is closed."""
    reason = http.client.responses[status]
    body = json.dumps({"message": reason}, separators=(",", ":"))
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\nConnection: close\r\n\r\n{body}".encode()


class HttpStream(IOStream):
    """A connection in the clear. After an upgrade it is the device's, and does nothing of its own any more."""

    # Of the class as long as they are False: what was never HTTP gone wrong keeps neither.
    _is_refusing = False
    _is_in_body = False
    has_device_token = False
    """As for ``rules.crowd.Member``."""

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
