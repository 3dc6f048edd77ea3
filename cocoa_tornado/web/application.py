"""The routes, and the answers to requests that never reach a handler."""

from __future__ import annotations

import http.client
from collections.abc import Awaitable, Sequence
from typing import Any

from tornado.http1connection import HTTP1Connection
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.web import Application, RequestHandler

from ..rules.cors import cors_headers
from ..rules.request_head import MAX_QUERY_FIELDS, body_bytes
from ..rules.targets import split_target
from ..rules.upgrade_request import DEVICE_PATH
from .access_log import AccessLog
from .answers import Answer
from .audio_handler import AudioStreamHandler
from .device_handler import DeviceHandler
from .handlers import (
    HealthHandler,
    MetricsHandler,
    NotFoundHandler,
    OpenApiHandler,
    ReadyHandler,
    WebContext,
    compact,
)
from .publish_handler import PublishHandler
from .streams import HttpStream
from .token_handler import TokenHandler
from .upgrading import Upgrader

Routes = Sequence[tuple[str, type[RequestHandler], dict[str, object]]]
"""Pattern, handler, and what its ``initialize`` gets beside the context."""


def make_application(
    context: WebContext, upgrader: Upgrader, access_log: AccessLog, admin_routes: Routes = ()
) -> Application:
    """The Tornado application of one gateway; two of them in one process share nothing.

    :param admin_routes: those of the admin API, unless it has a listener of its own
    """
    own: Routes = [
        (DEVICE_PATH, DeviceHandler, {"upgrader": upgrader}),
        (r"/api/v1/auth/token", TokenHandler, {}),
        (r"/api/v1/audio/stream", AudioStreamHandler, {}),
        (r"/api/v1/transcriptions", PublishHandler, {}),
        (r"/api/v1/health", HealthHandler, {}),
        (r"/api/v1/ready", ReadyHandler, {}),
        (r"/metrics", MetricsHandler, {}),
        (r"/api/v1/openapi.json", OpenApiHandler, {}),
    ]
    return _application(context, access_log, [*admin_routes, *own])


def make_admin_application(context: WebContext, access_log: AccessLog, admin_routes: Routes) -> Application:
    """The application of the admin API's own listener: it has no other routes."""
    return _application(context, access_log, admin_routes)


def _application(context: WebContext, access_log: AccessLog, routes: Routes) -> Application:
    shared: dict[str, object] = {"context": context}
    handlers: list[Any] = [(pattern, handler, shared | more) for pattern, handler, more in routes]
    return Application(
        handlers,
        default_handler_class=NotFoundHandler,
        default_handler_args=shared,
        log_function=access_log.add_handled,
    )


class RequestFilter(HTTPServerConnectionDelegate):
    """Between Tornado's HTTP server and the application: it keeps requests cheap until a handler has authenticated the
    sender, and gives errors the contract's body.

    By itself, Tornado answers a missing or repeated Host, and a query that cannot be parsed, with a bare
    ``400 Bad Request``. Input that is not HTTP never gets here: ``streams.py`` answers it. A target in absolute form
    reaches the application as path and Host.

    Only a handler under ``tornado.web.stream_request_body`` gets a body, and it checks the request before the first
    byte of it is read. For every other handler the request ends at once, so that its answer is an early one
    (``answers.py``), and nothing is buffered or parsed as a form.
    """

    def __init__(self, application: Application, context: WebContext, access_log: AccessLog) -> None:
        self.application, self.context, self.access_log = application, context, access_log

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        assert isinstance(request_conn, HTTP1Connection)
        return _FilteredRequest(self, server_conn, request_conn)

    def on_close(self, server_conn: object) -> None:
        self.application.on_close(server_conn)


class _FilteredRequest(HTTPMessageDelegate):
    """One request on its way to the application. It may end here: the request is refused, or its handler needs no
    body."""

    _answer: Answer | None = None
    _inner: HTTPMessageDelegate | None = None

    def __init__(self, front: RequestFilter, server_conn: object, connection: HTTP1Connection) -> None:
        self._front, self._server_conn, self._connection = front, server_conn, connection

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        assert isinstance(start_line, RequestStartLine)
        stream = self._connection.stream
        if isinstance(stream, HttpStream) and stream.is_ending:
            # The connection's last answer was given: this pipelined request gets none.
            return None
        target = split_target(start_line.path)
        start_line = start_line._replace(path=target.path)
        if target.host is not None and len(headers.get_list("Host")) == 1:
            # In this form too, a missing or repeated Host is an error.
            headers["Host"] = target.host
        body = _framing(headers)
        request = self._read(start_line, headers, body)
        self._answer = answer = Answer(self._connection)
        answer.begin(start_line, headers, body)
        if request is None:
            self._refuse(answer, start_line, headers.get("Origin"))
            return None
        request.connection = answer
        prepared = self._dispatch(request, start_line, headers)
        if prepared is not None:
            return prepared
        # The handler reads no body: it starts when the request ends, so end it now.
        if "Content-Type" in headers:
            # Otherwise Tornado would try to parse a form, although no byte of it was read.
            del headers["Content-Type"]
        return None if body == 0 else self._begin_without_body(answer)

    def _read(self, start_line: RequestStartLine, headers: HTTPHeaders, body: int | None) -> HTTPServerRequest | None:
        """Return None if the request is invalid for every handler."""
        path, _, query = start_line.path.partition("?")
        if query.count("&") >= MAX_QUERY_FIELDS or (start_line.method == "GET" and path == DEVICE_PATH and body != 0):
            # After a body it would be ambiguous where the device's frames begin.
            return None
        try:
            return HTTPServerRequest(
                connection=self._connection,
                server_connection=self._server_conn,
                start_line=start_line,
                headers=headers,
            )
        except HTTPInputError:
            return None

    def _dispatch(
        self, request: HTTPServerRequest, start_line: RequestStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        self._inner = inner = self._front.application.find_handler(request)
        return inner.headers_received(start_line, headers)

    def _begin_without_body(self, answer: Answer) -> Awaitable[None]:
        inner, self._inner = self._inner, None
        assert inner is not None
        inner.finish()
        return answer.given()

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return None if self._inner is None else self._inner.data_received(chunk)

    def finish(self) -> None:
        if self._answer is not None:
            self._answer.request_ended()
        if self._inner is not None:
            self._inner.finish()

    def on_connection_close(self) -> None:
        if self._inner is not None:
            self._inner.on_connection_close()

    def _refuse(self, answer: Answer, start_line: RequestStartLine, origin: str | None) -> None:
        """Answer 400 and end the connection."""
        reason = http.client.responses[400]
        body = compact({"message": reason}).encode()
        path = start_line.path.partition("?")[0]
        headers = HTTPHeaders(
            cors_headers(path, start_line.method, origin, self._front.context.live.now.allowed_origins)
        )
        headers["Content-Type"], headers["Content-Length"] = "application/json", str(len(body))
        answer.close_afterwards()
        answer.write_headers(ResponseStartLine("HTTP/1.1", 400, reason), headers, body)
        answer.finish()
        # The client behind a proxy is not known yet.
        extra = {"remote_ip": str(answer.context)}
        self._front.access_log.add(start_line.method, path, 400, extra)


def _framing(headers: HTTPHeaders) -> int | None:
    """Return the length of the body. Framing errors that Tornado would find later are found here, before any answer."""
    try:
        return body_bytes(headers.get_list("Content-Length"), headers.get_list("Transfer-Encoding"))
    except ValueError as error:
        raise HTTPInputError(f"Invalid framing: {error}") from None
