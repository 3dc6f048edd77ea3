"""The streams of accepted connections: Tornado's, with three changes. Tornado's own refusals get the contract's body;
chunk extensions and trailer fields, which Tornado treats as errors, are ignored; and a client that has shut down its
side after its request still gets its answer.

``tornado/http1connection.py`` answers input that is not HTTP with a bare status line, and closes the stream without an
answer if headers, or the line before a chunk, are too long. Read against Tornado 6.6.1; only this file depends on it.
If another version writes something else, the client gets that.

``tornado/iostream.py`` searches for the end of a head with a regular expression, from its start for each piece that
arrives, and limits only the bytes. Here ``rules/request_head.py`` searches instead, in the place where Tornado does
(``_find_read_pos``, ``_read_buffer``). With a version that searches elsewhere, only the bytes are limited.

A client may shut down its side right after its request (``nc -N``, ``shutdown(SHUT_WR)``). Tornado takes that for the
end of the connection, although it only means that no further request follows. Here the end counts only when a read
waits for bytes that can no longer arrive. For that, :class:`HttpStream` overrides ``read_from_fd`` (public),
``_handle_events`` and ``_maybe_add_error_listener`` of ``BaseIOStream``, and calls ``_find_read_pos``. With a version
that lacks these methods, such a client gets no answer.

A slow client is recognized by two counts that do not change: the bytes that the kernel has taken from the stream, and
the bytes that the client's kernel has yet to acknowledge. ``IOStream`` has the first in ``_total_write_done_index``.
With a version that does not, an answer counts as progress only when it has been written as a whole.

After an upgrade the socket leaves its stream (:meth:`HttpStream.give_up_socket`), with the contents of ``_read_buffer``
and ``_write_buffer``. With a version that lacks these attributes, the first is read in the public way, and a stream
that is still writing an answer is closed.
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

    :param has_body: False for a HEAD, whose answer has no body
    """
    reason = http.client.responses[status]
    body = json.dumps({"message": message or reason}, separators=(",", ":"))
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\nConnection: close\r\n\r\n{body if has_body else ''}".encode()


class HttpStream(IOStream):
    """A connection without TLS, until an upgrade.

    :ivar has_upload: as for ``rules.crowd.Member``
    :ivar has_ended: the client has sent its last byte. It may still read
    :ivar needs_both_ways: the current request is useless to a client that sends nothing more: its end ends the
        connection
    :ivar is_last_request: the answer to the current request ends the connection, unless it is an upgrade
    :ivar is_ending: the connection's last answer is given or being written: no other request is read
    :ivar lingering: closes the socket in stages then; None: it is closed at once
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
        """The next :meth:`close` follows an answer that the client may not have received yet."""
        self.is_ending = True

    @property
    def write_mark(self) -> tuple[int, int]:
        """A value that changes whenever the other end has taken a byte."""
        taken: int = getattr(self, "_total_write_done_index", 0)
        return taken, unacknowledged_bytes(self.socket)

    def give_up_socket(self) -> tuple[socket.socket, bytes, bytes]:
        """Close the stream, but not its socket. Return the socket, the bytes read from it, and the bytes yet to be
        sent.

        :raises StreamClosedError: the client has disconnected
        """
        if self.closed():
            raise StreamClosedError(self.error)
        unread, unsent = self._find_unread(), self._find_unsent()
        if self.closed():  # looking for unread data may have found the end
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
        """As Tornado's. Its bare 400 gets a body, unless an answer was given."""
        if data == BARE_BAD_REQUEST:
            data = b"" if self.is_ending else refusal(400, has_body=not self._is_head)
            self.is_ending = True
        return super().write(data)

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """As Tornado's, which reads a request's headers with it."""
        if self._chunks is not None:
            self._chunks = None
        self._check_not_over()
        self._scan = HeadScan()
        return super().read_until_regex(regex, max_bytes)

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """As Tornado's, which reads the line before a chunk with it. It accepts chunk extensions, and removes them."""
        self._scan = None
        if self._chunks is None:
            self._chunks = ChunkFraming()
        self._check_not_over()
        size_line, line = self._chunks.size_line, super().read_until(delimiter, MAX_LINE_BYTES)
        if isinstance(line, Future) and line.done() and line.exception() is None:
            # Tornado joins small chunks, but only those that have arrived.
            there: Future[bytes] = Future()
            there.set_result(_judged(size_line, line.result()))
            return there
        return _Lazy(self._read_size, size_line, line)

    def read_bytes(self, num_bytes: int, partial: bool = False) -> Awaitable[bytes]:
        """As Tornado's. Before the two bytes that end a chunked body, it reads the trailer fields."""
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
        """As Tornado's, except that the end is not reported (0) while no read waits for more than has arrived."""
        count = super().read_from_fd(buf)
        if count == 0 and KNOWS_HALF_CLOSE:
            self.has_ended = True
            if not self.needs_both_ways and (not self.reading() or self._find_read_pos() is not None):
                return None
        return count

    def _handle_events(self, fd: Any, events: int) -> None:
        super()._handle_events(fd, events)
        if self.has_ended and not self.closed() and not self.reading():
            # The socket stays readable, so the loop would call back without pause.
            self._state = self.io_loop.ERROR | (self.io_loop.WRITE if self.writing() else 0)
            self.io_loop.update_handler(self.fileno(), self._state)

    def _maybe_add_error_listener(self) -> None:
        if not self.has_ended:
            super()._maybe_add_error_listener()

    def close(self, exc_info: ExcInfo = False) -> None:
        """As Tornado's. Before, a client whose headers are too large gets a 431. A client that may not have received
        its last answer yet is closed in stages."""
        if not self.closed() and isinstance(exc_info, UnsatisfiableReadError):
            self._refuse(431 if self._chunks is None else 400)
            exc_info = False
        if exc_info:
            # The connection, or its TLS, is lost: an answer cannot arrive.
            self.is_ending = False
        super().close(exc_info)
        if self.error is not None:
            # Its traceback refers to this stream, which refers to it: a reference cycle that only the garbage collector
            # would free.
            self.error.__traceback__ = None

    def close_fd(self) -> None:
        """As Tornado's, which calls it once, from :meth:`close`. The socket may be closed in stages."""
        if self._keeps_socket:
            return
        if self.is_ending and self.lingering is not None and self.socket is not None and not self.writing():
            # Without its TLS, because what still arrives is not read.
            sock = socket.socket(fileno=self.socket.detach())
            sock.setblocking(False)
            self.socket = None  # type: ignore[assignment]  # as Tornado's own close_fd leaves it
            self.lingering.close_in_stages(sock)
        else:
            super().close_fd()

    def _find_read_pos(self) -> int | None:
        """As Tornado's, which searches here for the end of what it reads."""
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
        """Tornado continues with data that arrived before the end, and is no longer needed."""
        if self.is_ending and self.closed():
            raise StreamClosedError

    def _refuse(self, status: int) -> None:
        """Write the refusal if the socket takes it at once, and not after an answer that it has not taken
        completely."""
        has_body = not (self._is_head if self._chunks is not None else self._read_buffer.startswith(b"HEAD "))
        if not self.writing() and not self.is_ending:
            self.is_ending = True
            with contextlib.suppress(OSError):
                self.write_to_fd(memoryview(refusal(status, has_body=has_body)))


class HttpsStream(HttpStream, SSLIOStream):
    """A connection over TLS."""

    def close(self, exc_info: ExcInfo = False) -> None:
        """As Tornado's. A client that sends plain HTTP to this port gets an error in plain HTTP."""
        if isinstance(exc_info, ssl.SSLError) and exc_info.reason == "HTTP_REQUEST" and not self.closed():
            self._say_that_this_is_tls()
        super().close(exc_info)

    def _say_that_this_is_tls(self) -> None:
        # Bypass the socket's TLS, which has failed before it sent anything.
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
    """Creates its coroutine only when awaited: Tornado may give up before, and a coroutine that is never awaited is a
    warning."""

    def __init__(self, make: Callable[..., Coroutine[Any, Any, bytes]], *args: object) -> None:
        self._make, self._args = make, args

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._make(*self._args).__await__()


def _judged(judge: Callable[[bytes], T], line: bytes) -> T:
    """Apply the rule to a line. A line that it rejects is a 400, like any other error in a request."""
    try:
        return judge(line)
    except ValueError as error:
        raise HTTPInputError(str(error)) from error
