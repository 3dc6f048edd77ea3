"""The streams of accepted connections: Tornado's, except that what Tornado refuses on its own authority gets the
contract's body too.

``tornado/http1connection.py`` answers what it cannot read as HTTP with a bare status line, which it writes to the
stream, and closes the stream without an answer where headers, or the line before a chunk, go on for too long. Read
against Tornado 6.6.1; this file alone knows of it. Where another version writes something else, that is what the client
gets: nothing worse.

``tornado/iostream.py`` looks for the end of a head with a regular expression, from the start again and again while it
drips in, and counts bytes alone. Here ``rules/request_head.py`` looks for it instead, in the place where Tornado does
(``_find_read_pos``, ``_read_buffer``). A version that looks elsewhere bounds the bytes only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from asyncio import Future
from collections.abc import Awaitable
from types import TracebackType
from typing import Final

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError, UnsatisfiableReadError

from ..rules.request_head import HeadScan, HeadTooLarge
from .lingering import Lingering

BARE_BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\n\r\n"


def refusal(status: int, *, has_body: bool = True) -> bytes:
    """A whole response: ``{"message":"..."}``, after which the connection is closed.

    :param has_body: False for a HEAD, whose answer is the same without it
    """
    reason = http.client.responses[status]
    body = json.dumps({"message": reason}, separators=(",", ":"))
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\nConnection: close\r\n\r\n{body if has_body else ''}".encode()


class HttpStream(IOStream):
    """A connection in the clear. After an upgrade it is the device's, and does nothing of its own any more."""

    # Of the class as long as they are unset: what was never HTTP gone wrong keeps none of them.
    _is_in_body = False
    _is_head = False
    _scan: HeadScan | None = None

    is_ending = False
    """The last answer on it is given, or being written: no other request is heard."""

    lingering: Lingering | None = None
    """Closes the socket in stages then; None: at once."""

    def end_after_answer(self) -> None:
        """The next :meth:`close` is the end of an answer that the client may not have heard yet."""
        self.is_ending = True

    def write(self, data: bytes | memoryview) -> Future[None]:
        """As Tornado's; its bare 400 becomes one with a body, unless an answer has been given."""
        if data == BARE_BAD_REQUEST:
            data = b"" if self.is_ending else refusal(400, has_body=not self._is_head)
            self.is_ending = True
        return super().write(data)

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """As Tornado's, which reads a request's headers so."""
        if self._is_in_body:
            self._is_in_body = False
        self._check_not_over()
        self._scan = HeadScan()
        return super().read_until_regex(regex, max_bytes)

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """As Tornado's, which reads the line before a chunk so."""
        self._is_in_body = True
        self._check_not_over()
        return super().read_until(delimiter, max_bytes)

    def close(
        self,
        exc_info: bool
        | BaseException
        | tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
        | None = False,
    ) -> None:
        """As Tornado's; a client whose headers are too large is told so before, and one that may not have heard its
        last answer yet is heard out."""
        if not self.closed() and isinstance(exc_info, UnsatisfiableReadError):
            self._refuse(400 if self._is_in_body else 431)
            exc_info = False
        if exc_info:
            # The connection is lost, or so is its TLS: nobody hears anything.
            self.is_ending = False
        super().close(exc_info)
        if self.error is not None:
            # Its traceback holds this stream, which holds it: a circle that would wait for the garbage collector.
            self.error.__traceback__ = None

    def close_fd(self) -> None:
        """As Tornado's, which calls it once, from :meth:`close`; perhaps in stages."""
        if self.is_ending and self.lingering is not None and self.socket is not None and not self.writing():
            # Bare of its TLS, for what comes is not read by anybody.
            sock = socket.socket(fileno=self.socket.detach())
            sock.setblocking(False)
            self.socket = None  # type: ignore[assignment]
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
        has_body = not (self._is_head if self._is_in_body else self._read_buffer.startswith(b"HEAD "))
        if not self.writing() and not self.is_ending:
            self.is_ending = True
            with contextlib.suppress(OSError):
                self.write_to_fd(memoryview(refusal(status, has_body=has_body)))


class HttpsStream(HttpStream, SSLIOStream):
    """A connection over TLS."""
