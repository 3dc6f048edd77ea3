"""Tornado's HTTP server on the connections that the listener has accepted."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters, HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream, SSLIOStream

from .streams import HttpStream


class Watcher(Protocol):
    """Receives the server's reports about its connections."""

    def awaits(self, stream: HttpStream) -> None:
        """The connection waits for its next request."""

    def asks(self, stream: HttpStream) -> None:
        """The headers of a request have arrived."""

    def ended(self, stream: HttpStream) -> None:
        """The connection is closed, or has become a device's."""


class _Client:
    """The context of a connection for Tornado and the handlers: the client at its other end."""

    __slots__ = ("address", "protocol", "remote_ip")

    def __init__(self, stream: IOStream, address: Any) -> None:
        self.address = address
        self.remote_ip = address[0] if isinstance(address, tuple) else "0.0.0.0"
        self.protocol = "https" if isinstance(stream, SSLIOStream) else "http"

    def __str__(self) -> str:
        return str(self.remote_ip)


class WatchedServer(HTTPServer):
    """Tornado's server, which reports the state of its connections to the listener."""

    def initialize(  # type: ignore[override]  # Tornado's own way to make one
        self, delegate: HTTPServerConnectionDelegate, listener: Watcher, parameters: HTTP1ConnectionParameters
    ) -> None:
        super().initialize(delegate)
        self._listener, self._parameters = listener, parameters
        self._open: set[HTTP1ServerConnection] = set()

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        """As Tornado's, without a timer for each request."""
        connection = HTTP1ServerConnection(stream, self._parameters, _Client(stream, address))
        self._open.add(connection)
        connection.start_serving(self)

    async def close_all_connections(self) -> None:
        while self._open:
            await next(iter(self._open)).close()

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        delegate = super().start_request(server_conn, request_conn)
        assert isinstance(request_conn, HTTP1Connection)
        stream = request_conn.stream
        if not isinstance(stream, HttpStream):
            return delegate
        self._listener.awaits(stream)
        return _WatchedRequest(delegate, stream, self._listener)

    def on_close(self, server_conn: object) -> None:
        assert isinstance(server_conn, HTTP1ServerConnection)
        self._open.remove(server_conn)
        stream = server_conn.stream
        assert isinstance(stream, HttpStream)
        self._listener.ended(stream)


class _WatchedRequest(HTTPMessageDelegate):
    """A request whose headers are reported to the listener."""

    def __init__(self, inner: HTTPMessageDelegate, stream: HttpStream, listener: Watcher) -> None:
        self._inner, self._stream, self._listener = inner, stream, listener

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        self._listener.asks(self._stream)
        return self._inner.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._inner.data_received(chunk)

    def finish(self) -> None:
        self._inner.finish()

    def on_connection_close(self) -> None:
        self._inner.on_connection_close()
