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
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Final, TypeVar

from tornado.httputil import HTTPInputError
from tornado.iostream import IOStream, SSLIOStream, UnsatisfiableReadError

from ..rules.chunks import MAX_LINE_BYTES, ChunkFraming

BARE_BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\n\r\n"
MAX_BYTES_UNREAD: Final = 1024 * 1024

T = TypeVar("T")


def refusal(status: int) -> bytes:
    """A whole response: ``{"message":"..."}``, after which the connection is closed."""
    reason = http.client.responses[status]
    body = json.dumps({"message": reason}, separators=(",", ":"))
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\nConnection: close\r\n\r\n{body}".encode()


class HttpStream(IOStream):
    """A connection in the clear. After an upgrade it is the device's, and does nothing of its own any more."""

    # Of the class as long as they are unset: what was never HTTP gone wrong keeps neither.
    _is_refusing = False
    _chunks: ChunkFraming | None = None

    def write(self, data: bytes | memoryview) -> Future[None]:
        """As Tornado's; its bare 400 becomes one with a body."""
        if data == BARE_BAD_REQUEST:
            self._is_refusing = True
            data = refusal(400)
        return super().write(data)

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """As Tornado's, which reads a request's headers so."""
        if self._chunks is not None:
            self._chunks = None
        return super().read_until_regex(regex, max_bytes)

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """As Tornado's, which reads the line before a chunk so: without its extensions, and with room for them."""
        if self._chunks is None:
            self._chunks = ChunkFraming()
        size_line, line = self._chunks.size_line, super().read_until(delimiter, MAX_LINE_BYTES)
        if isinstance(line, Future) and line.done() and line.exception() is None:
            # Tornado joins small chunks, but only those that it sees to be there.
            there: Future[bytes] = Future()
            there.set_result(_judged(size_line, line.result()))
            return there
        return _Later(self._read_size, size_line, line)

    def read_bytes(self, num_bytes: int, partial: bool = False) -> Awaitable[bytes]:
        """As Tornado's; before the two bytes that end a chunked body, the trailer fields are read."""
        if self._chunks is not None and self._chunks.is_at_last:
            return _Later(self._read_to_the_end, self._chunks.ends_with)
        return super().read_bytes(num_bytes, partial)

    async def _read_size(self, size_line: Callable[[bytes], bytes], line: Awaitable[bytes]) -> bytes:
        return _judged(size_line, await line)

    async def _read_to_the_end(self, ends_with: Callable[[bytes], bool]) -> bytes:
        while not _judged(ends_with, line := await super().read_until(b"\r\n", MAX_LINE_BYTES)):
            pass
        return line

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
                self._refuse(431 if self._chunks is None else 400)
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


class _Later:
    """Awaits a coroutine that is made only then: Tornado may give up before, and one never awaited is a warning."""

    def __init__(self, make: Callable[..., Coroutine[Any, Any, bytes]], *args: object) -> None:
        self._make, self._args = make, args

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._make(*self._args).__await__()


def _judged(judge: Callable[[bytes], T], line: bytes) -> T:
    """What the rule makes of a line; what it refuses is a 400, as any other fault in a request."""
    try:
        return judge(line)
    except ValueError as error:
        raise HTTPInputError(str(error)) from error
