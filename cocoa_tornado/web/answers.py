"""The answer to one request, between the application and Tornado's connection.

For every route, this module decides how header names are spelled on the wire, whether the connection stays open after
the answer, and when a client that expects ``100 Continue`` gets it.
"""

from __future__ import annotations

import asyncio
import enum
from asyncio import Future
from collections.abc import Callable, Iterable
from typing import Final

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPConnection, HTTPHeaders, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream

from ..rules.request_head import MAX_BODY_BYTES
from .streams import HttpStream

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

SPELLINGS: Final = {
    "Sec-Websocket-Accept": "Sec-WebSocket-Accept",
    "Sec-Websocket-Protocol": "Sec-WebSocket-Protocol",
    "Sec-Websocket-Version": "Sec-WebSocket-Version",
    "Www-Authenticate": "WWW-Authenticate",
}
"""As the RFCs have them, where Tornado has another: names are case-insensitive, but embedded clients compare bytes."""


class Reading(enum.Enum):
    """How much of the request has been read."""

    NO_BODY = "no body"  # the head, and there is no body; Tornado has yet to report the end
    BODY = "body"  # the head, and there is a body
    ENDED = "ended"


class Answer(HTTPConnection):
    """An answer may be given at any time. Before the end of the request's body it is *early*: the rest of the body is
    not read, and the answer is the connection's last. So is an answer to a client that asked to close. The connection
    is then closed in stages (``lingering.py``), so that the answer arrives.

    :ivar body_bytes: length of the request's body, 0 if there is none; None: chunked
    :ivar context: Tornado's, with the client's address
    """

    body_bytes: int | None = 0
    _is_last = False
    _is_head = False
    _is_held = False
    _client_waits = False
    _given: Future[None] | None = None

    def __init__(self, connection: HTTP1Connection) -> None:
        self._connection, self.context = connection, connection.context
        self._reading = Reading.NO_BODY
        self._request_headers = HTTPHeaders()

    @property
    def stream(self) -> IOStream:
        return self._connection.stream

    def begin(self, start_line: RequestStartLine, headers: HTTPHeaders, body_bytes: int | None) -> None:
        """The head of the request has arrived."""
        self._is_head, self._request_headers, self.body_bytes = start_line.method == "HEAD", headers, body_bytes
        # As Tornado decides it; it would then continue with pipelined requests.
        wish, is_old = headers.get("Connection", "").lower(), start_line.version == "HTTP/1.0"
        if is_old:
            has_length = body_bytes != 0 or "Content-Length" in headers or start_line.method in ("GET", "HEAD")
            self._is_last = wish != "keep-alive" or not has_length
        else:
            self._is_last = "close" in {option.strip() for option in wish.split(",")}
        stream = self.stream
        if isinstance(stream, HttpStream) and stream.is_last_request:
            self._is_last = True
        # Tornado would send 100 Continue to every client that expects it, before the request is checked.
        expected = headers.pop("Expect") if "Expect" in headers else ""
        if body_bytes == 0:
            return
        self._reading = Reading.BODY
        # Or Tornado would refuse a large one by itself, after the answer to it.
        self._connection.set_max_body_size(MAX_BODY_BYTES)
        if is_old and body_bytes is None:
            # RFC 9112, 6.1: the client, or a proxy, may misread the framing of such a request.
            self._is_last = True
        self._client_waits = expected.lower() == "100-continue" and not is_old

    def request_ended(self) -> None:
        """All of the request has been read."""
        self._reading = Reading.ENDED
        if self._is_held:
            self._is_held = False
            self._connection.finish()

    def begin_body(self, timeout_s: float | None = None) -> None:
        """The application wants the body.

        :param timeout_s: in place of the listener's
        """
        if timeout_s is not None:
            self._connection.set_body_timeout(timeout_s)
        if self._client_waits and not self.stream.closed():
            self.stream.write(CONTINUE)

    def given(self) -> Future[None]:
        """Done once the answer was given, or the stream was detached."""
        self._given = asyncio.get_running_loop().create_future()
        return self._given

    def close_afterwards(self) -> None:
        """This answer is the connection's last."""
        self._is_last = True

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """As Tornado's."""
        self._connection.set_close_callback(callback)

    def detach(self) -> IOStream:
        """As Tornado's."""
        self._is_given()
        return self._connection.detach()

    def write_headers(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders, chunk: bytes | None = None
    ) -> Future[None]:
        """As Tornado's. The body of an answer to HEAD is accepted and not sent."""
        if self._reading is Reading.BODY:
            self._is_last = True
        if isinstance(start_line, ResponseStartLine) and start_line.code == 101:
            # The connection stays open, for another protocol.
            self._is_last = False
        if self._is_last:
            headers["Connection"] = "close"
            # Otherwise Tornado would promise keep-alive to an HTTP/1.0 client that asks for it.
            self._request_headers["Connection"] = "close"
        return self._connection.write_headers(start_line, _Spelled(headers), None if self._is_head else chunk)

    def write(self, chunk: bytes) -> Future[None]:
        """As Tornado's."""
        return self._connection.write(chunk)

    def finish(self) -> None:
        """End of the answer."""
        if self._reading is Reading.NO_BODY and not self._is_last:
            # Tornado closes a connection whose request it has not read to its end, and does not know that this one has
            # ended.
            self._is_held = True
        elif self._is_last:
            self._finish_and_close()
        else:
            self._connection.finish()
        self._is_given()

    def _finish_and_close(self) -> None:
        connection, stream = self._connection, self.stream
        if isinstance(stream, HttpStream):
            stream.end_after_answer()
        connection.finish()
        if self._reading is Reading.ENDED and not stream.closed():
            # Tornado does so by itself only if it has not read everything.
            if stream.writing():
                stream.write(b"").add_done_callback(lambda _: connection.close())
            else:
                connection.close()

    def _is_given(self) -> None:
        if self._given is not None and not self._given.done():
            self._given.set_result(None)


class _Spelled(HTTPHeaders):
    """The fields of an answer, spelled as on the wire. A view without copies, because every answer passes here."""

    def __init__(self, headers: HTTPHeaders) -> None:
        self._fields = headers

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __getitem__(self, name: str) -> str:
        return self._fields[name]

    def __setitem__(self, name: str, value: str) -> None:
        self._fields[name] = value

    def get_all(self) -> Iterable[tuple[str, str]]:
        for name, value in self._fields.get_all():
            yield SPELLINGS.get(name, name), value
