"""The streams of accepted connections: Tornado's, except that what Tornado refuses on its own authority gets the
contract's body too, that chunk extensions and trailer fields, which Tornado takes for faults, are ignored, and that a
client which has said all that it wants to say still gets its answer.

``tornado/http1connection.py`` answers what it cannot read as HTTP with a bare status line, which it writes to the
stream, and closes the stream without an answer where headers, or the line before a chunk, go on for too long. Read
against Tornado 6.6.1; this file alone knows of it. Where another version writes something else, that is what the client
gets: nothing worse.

``tornado/iostream.py`` looks for the end of a head with a regular expression, from the start again and again while it
drips in, and counts bytes alone. Here ``rules/request_head.py`` looks for it instead, in the place where Tornado does
(``_find_read_pos``, ``_read_buffer``). A version that looks elsewhere bounds the bytes only.

A client may close its side right behind its request (``nc -N``, ``shutdown(SHUT_WR)``). Tornado takes that for the end
of the connection, though all it means is that no further request comes. Here the end counts only when somebody waits
for bytes that can no longer come. For that, :class:`HttpStream` overrides what ``BaseIOStream`` calls ``read_from_fd``
(public), ``_handle_events`` and ``_maybe_add_error_listener``, and asks ``_find_read_pos``. Where another version has
no such methods, such a client gets no answer.

A slow client is known by two things that stand still: the bytes that the kernel has taken from the stream, and those
that the client's own kernel has yet to acknowledge. ``IOStream`` keeps the first in ``_total_write_done_index``. Where
another version does not, an answer counts as progress only when it has been written as a whole.

After an upgrade the socket leaves its stream (:meth:`HttpStream.give_up_socket`), with what is in ``_read_buffer`` and
``_write_buffer``. Where another version has no such attributes, the first is read in the public way, and a stream that
is not done with an answer is closed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from asyncio import Future
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Final, TypeAlias, TypeVar

from tornado.httputil import HTTPInputError
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError, UnsatisfiableReadError

from ..connection.sockets import unacknowledged_bytes
from ..presence.grants import RefusalReason
from ..rules.chunks import MAX_LINE_BYTES, ChunkFraming
from ..rules.request_head import HeadScan, HeadTooLarge
from .lingering import Lingering

BARE_BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\n\r\n"
PLAIN_HTTP: Final = "This port speaks TLS: use https or wss"
MAX_PLAIN_READS: Final = 16
KNOWS_HALF_CLOSE: Final = all(
    hasattr(IOStream, name) for name in ("_handle_events", "_maybe_add_error_listener", "_find_read_pos")
)
READ_BUFFER, WRITE_BUFFER = "_read_buffer", "_write_buffer"

T = TypeVar("T")
ExcInfo: TypeAlias = (
    bool | BaseException | tuple[type[BaseException] | None, BaseException | None, TracebackType | None] | None
)
"""As Tornado declares it for ``BaseIOStream.close``."""


def refusal(status: int, message: str = "", *, has_body: bool = True) -> bytes:
    """A whole response: ``{"message":"..."}``, after which the connection is closed.

    :param has_body: False for a HEAD, whose answer is the same without it
    """
    reason = http.client.responses[status]
    body = json.dumps({"message": message or reason}, separators=(",", ":"))
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\nConnection: close\r\n\r\n{body if has_body else ''}".encode()


class HttpStream(IOStream):
    """A connection in the clear, until an upgrade.

    :ivar has_upload: as for ``rules.crowd.Member``
    :ivar has_ended: the other end has sent its last byte. It may still read
    :ivar needs_both_ways: the request under way is of no use to a client that sends nothing more: its end is the
        connection's end
    :ivar is_last_request: the answer to the request under way ends the connection, unless it is an upgrade
    :ivar is_ending: the last answer on it is given, or being written: no other request is heard
    :ivar lingering: closes the socket in stages then; None: at once
    :ivar refusal: a device, and why presence has refused it, before the first request was parsed
    """

    # In slots, beside Tornado's own attributes: with more than 30 in one dict CPython shares no keys between streams,
    # and each takes 1.3 KiB more.
    __slots__ = (
        "_chunks",
        "_is_head",
        "_keeps_socket",
        "_scan",
        "has_ended",
        "has_upload",
        "is_ending",
        "is_last_request",
        "lingering",
        "needs_both_ways",
        "refusal",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._chunks: ChunkFraming | None = None
        self._is_head = self._keeps_socket = False
        self._scan: HeadScan | None = None
        self.has_upload = self.has_ended = self.needs_both_ways = self.is_last_request = self.is_ending = False
        self.lingering: Lingering | None = None
        self.refusal: tuple[str, RefusalReason] | None = None
        super().__init__(*args, **kwargs)

    def end_after_answer(self) -> None:
        """The next :meth:`close` is the end of an answer that the client may not have heard yet."""
        self.is_ending = True

    @property
    def write_mark(self) -> tuple[int, int]:
        """A value that changes whenever the other end has taken a byte."""
        taken: int = getattr(self, "_total_write_done_index", 0)
        return taken, unacknowledged_bytes(self.socket)

    def give_up_socket(self) -> tuple[socket.socket, bytes, bytes]:
        """Close the stream, but not its socket; returns that, what has been read from it, and what is yet to be sent.

        :raises StreamClosedError: the client has gone
        """
        if self.closed():
            raise StreamClosedError(self.error)
        unread, unsent = self._find_unread(), self._find_unsent()
        if self.closed():  # to look for what is unread may have found the end
            raise StreamClosedError(self.error)
        self._keeps_socket = True
        self.close()
        sock, self.socket = self.socket, None  # type: ignore[assignment]  # as Tornado's own close_fd leaves it
        return sock, unread, unsent

    def _find_unread(self) -> bytes:
        buffer = getattr(self, READ_BUFFER, None)
        if isinstance(buffer, bytearray):
            return bytes(buffer)
        there = super().read_bytes(self.read_chunk_size, partial=True)
        return there.result() if isinstance(there, Future) and there.done() else b""

    def _find_unsent(self) -> bytes:
        if not self.writing():
            return b""
        buffer, unsent = getattr(self, WRITE_BUFFER, None), b""
        if buffer is None:
            raise StreamClosedError  # a client that does not read its answers, and pipelines an upgrade behind them
        while len(buffer):
            piece = buffer.peek(len(buffer))
            unsent += piece
            buffer.advance(len(piece))
        return unsent

    def write(self, data: bytes | memoryview) -> Future[None]:
        """As Tornado's; its bare 400 becomes one with a body, unless an answer has been given."""
        if data == BARE_BAD_REQUEST:
            data = b"" if self.is_ending else refusal(400, has_body=not self._is_head)
            self.is_ending = True
        return super().write(data)

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """As Tornado's, which reads a request's headers so."""
        if self._chunks is not None:
            self._chunks = None
        self._check_not_over()
        self._scan = HeadScan()
        return super().read_until_regex(regex, max_bytes)

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """As Tornado's, which reads the line before a chunk so: without its extensions, and with room for them."""
        self._scan = None
        if self._chunks is None:
            self._chunks = ChunkFraming()
        self._check_not_over()
        size_line, line = self._chunks.size_line, super().read_until(delimiter, MAX_LINE_BYTES)
        if isinstance(line, Future) and line.done() and line.exception() is None:
            # Tornado joins small chunks, but only those that it sees to be there.
            there: Future[bytes] = Future()
            there.set_result(_judged(size_line, line.result()))
            return there
        return _Lazy(self._read_size, size_line, line)

    def read_bytes(self, num_bytes: int, partial: bool = False) -> Awaitable[bytes]:
        """As Tornado's; before the two bytes that end a chunked body, the trailer fields are read."""
        if self._scan is not None:
            # Tornado began to read a head from a connection that was lost.
            self._scan = None
        if self._chunks is not None and self._chunks.is_at_last:
            return _Lazy(self._read_to_the_end, self._chunks.ends_with)
        return super().read_bytes(num_bytes, partial)

    async def _read_size(self, size_line: Callable[[bytes], bytes], line: Awaitable[bytes]) -> bytes:
        return _judged(size_line, await line)

    async def _read_to_the_end(self, ends_with: Callable[[bytes], bool]) -> bytes:
        while not _judged(ends_with, line := await super().read_until(b"\r\n", MAX_LINE_BYTES)):
            pass
        return line

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

    def close(self, exc_info: ExcInfo = False) -> None:
        """As Tornado's; a client whose headers are too large is told so before, and one that may not have heard its
        last answer yet is heard out."""
        if not self.closed() and isinstance(exc_info, UnsatisfiableReadError):
            self._refuse(431 if self._chunks is None else 400)
            exc_info = False
        if exc_info:
            # The connection is lost, or so is its TLS: nobody hears anything.
            self.is_ending = False
        super().close(exc_info)
        if self.error is not None:
            # Its traceback holds this stream, which holds it: a reference cycle that would wait for the collector.
            self.error.__traceback__ = None

    def close_fd(self) -> None:
        """As Tornado's, which calls it once, from :meth:`close`; perhaps in stages."""
        if self._keeps_socket:
            return
        if self.is_ending and self.lingering is not None and self.socket is not None and not self.writing():
            # Bare of its TLS, for what comes is not read by anybody.
            sock = socket.socket(fileno=self.socket.detach())
            sock.setblocking(False)
            self.socket = None  # type: ignore[assignment]  # as Tornado's own close_fd leaves it
            self.lingering.close_in_stages(sock)
        else:
            super().close_fd()

    def _find_read_pos(self) -> int | None:
        """As Tornado's, which looks here for the end of what it reads."""
        if self._scan is None:
            return super()._find_read_pos()
        try:
            end = self._scan.end(self._read_buffer)
        except HeadTooLarge as error:
            raise UnsatisfiableReadError(str(error)) from error
        if end is not None:
            self._scan = None
            self._is_head = self._read_buffer.startswith(b"HEAD ")
        return end

    def _check_not_over(self) -> None:
        """Tornado goes on with what has come before the end, which nobody wants any more."""
        if self.is_ending and self.closed():
            raise StreamClosedError

    def _refuse(self, status: int) -> None:
        """Say so if the socket takes it at once: not after an answer that it has not taken yet."""
        has_body = not (self._is_head if self._chunks is not None else self._read_buffer.startswith(b"HEAD "))
        if not self.writing() and not self.is_ending:
            self.is_ending = True
            with contextlib.suppress(OSError):
                self.write_to_fd(memoryview(refusal(status, has_body=has_body)))


class HttpsStream(HttpStream, SSLIOStream):
    """A connection over TLS."""

    def close(self, exc_info: ExcInfo = False) -> None:
        """As Tornado's; a client that speaks plain HTTP here is told so, in plain HTTP."""
        if isinstance(exc_info, ssl.SSLError) and exc_info.reason == "HTTP_REQUEST" and not self.closed():
            self._say_that_this_is_tls()
        super().close(exc_info)

    def _say_that_this_is_tls(self) -> None:
        # Past the TLS of the socket, which has failed before it said anything.
        with contextlib.suppress(OSError):
            for _ in range(MAX_PLAIN_READS):
                if not socket.socket.recv(self.socket, 64 * 1024):
                    break
        with contextlib.suppress(OSError):
            socket.socket.send(self.socket, refusal(400, PLAIN_HTTP))


def write_progress_is_visible() -> bool:
    """Whether Tornado's part of :attr:`HttpStream.write_mark` works; asked once at start. IOLoop thread."""
    ours, theirs = socket.socketpair()
    stream = IOStream(ours)
    try:
        return isinstance(getattr(stream, "_total_write_done_index", None), int)
    finally:
        stream.close()
        theirs.close()


class _Lazy:
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
