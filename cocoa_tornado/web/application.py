"""The routes, the access log, and the answers to requests that never reach a handler."""

from __future__ import annotations

import http.client
import logging
import math
from collections.abc import Awaitable, Callable, Sequence

from tornado.http1connection import HTTP1Connection
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.web import Application, RequestHandler

from ..rules.cors import cors_headers
from ..rules.targets import split_target
from .audio_handler import AudioStreamHandler
from .device_handler import DeviceHandler
from .handlers import (
    GatewayErrors,
    HealthHandler,
    MetricsHandler,
    NotFoundHandler,
    ReadyHandler,
    WebContext,
    compact,
    shown_path,
)
from .publish_handler import PublishHandler
from .token_handler import TokenHandler

MAX_BODY_BYTES = 1024 * 1024
MAX_UNREAD_BYTES = 16 * 1024 * 1024
"""Of a body that is too large, so much is read and thrown away: the answer reaches a client that is still sending."""

AUDIO_PATH = "/api/v1/audio/stream"
QUIET_PATHS = frozenset(["/api/v1/health", "/api/v1/ready", "/metrics"])

log = logging.getLogger("cocoa.access")


def make_application(context: WebContext, access_log: bool = True) -> Application:
    """The Tornado application of one gateway; two of them in one process share nothing."""
    shared = {"context": context}
    return Application(
        [
            (r"/ws", DeviceHandler, shared),
            (r"/api/v1/auth/token", TokenHandler, shared),
            (AUDIO_PATH, AudioStreamHandler, shared),
            (r"/api/v1/transcriptions", PublishHandler, shared),
            (r"/api/v1/health", HealthHandler, shared),
            (r"/api/v1/ready", ReadyHandler, shared),
            (r"/metrics", MetricsHandler, shared),
        ],
        default_handler_class=NotFoundHandler,
        default_handler_args=shared,
        log_function=log_request if access_log else _silent,
    )


def log_request(handler: RequestHandler) -> None:
    """One line a request. The path alone: the query may hold a token."""
    request, status = handler.request, handler.get_status()
    is_quiet = isinstance(handler, GatewayErrors) and handler.is_quiet
    if is_quiet or (status < 400 and request.path in QUIET_PATHS):
        level = logging.DEBUG
    else:
        level = logging.INFO if status < 500 or status in (501, 503) else logging.ERROR
    extra: dict[str, object] = {
        "method": request.method,
        "path": shown_path(request.path),
        "status": status,
        "ms": round(1000 * request.request_time(), 1),
        "remote_ip": request.remote_ip,
    }
    if isinstance(handler, DeviceHandler):
        if handler.identity is not None:
            extra["device_id"] = handler.identity.device_id
        if handler.conn is not None:
            extra["conn"] = handler.conn
        if handler.outcome:
            extra["outcome"] = handler.outcome
    elif isinstance(handler, AudioStreamHandler):
        if handler.device_id:
            extra["device_id"] = handler.device_id
        if handler.session_id:
            extra["session_id"] = handler.session_id
    log.log(level, "request", extra=extra)


def _silent(handler: RequestHandler) -> None:
    """Access log off."""


class Admission(HTTPServerConnectionDelegate):
    """Stands between Tornado's HTTP server and the application, so that errors have the contract's body there too.

    Tornado itself answers a bare ``400 Bad Request`` to a body over its limit, a missing or doubled Host and a query
    that cannot be parsed. What it cannot read as HTTP at all never comes here: that is ``streams.py``'s. A target in
    absolute form arrives in the application as path and Host.
    """

    def __init__(
        self,
        application: Application,
        access_log: bool = True,
        max_body_bytes: int = MAX_BODY_BYTES,
        allowed_origins: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._application, self._access_log, self._max_body_bytes = application, access_log, max_body_bytes
        self._allowed_origins = allowed_origins

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        inner = self._application.start_request(server_conn, request_conn)
        return _AdmittedRequest(inner, request_conn, self._access_log, self._max_body_bytes, self._allowed_origins)

    def on_close(self, server_conn: object) -> None:
        self._application.on_close(server_conn)


class _AdmittedRequest(HTTPMessageDelegate):
    """One request on its way to the application, unless it is refused: then the application hears no more of it."""

    def __init__(
        self,
        inner: HTTPMessageDelegate,
        connection: HTTPConnection,
        access_log: bool,
        max_body_bytes: int,
        allowed_origins: Callable[[], Sequence[str]],
    ) -> None:
        self._inner, self._connection, self._access_log = inner, connection, access_log
        self._room: float = max_body_bytes
        self._allowed_origins = allowed_origins
        self._origin: str | None = None
        self._refused = self._answered = False
        self._start_line = RequestStartLine("", "", "")

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        assert isinstance(start_line, RequestStartLine)
        target = split_target(start_line.path)
        self._start_line = start_line = start_line._replace(path=target.path)
        self._origin = headers.get("Origin")
        if target.host is not None and len(headers.get_list("Host")) == 1:
            # No Host, or two of them, are wrong in this form too.
            headers["Host"] = target.host
        if start_line.method == "POST" and start_line.path.partition("?")[0] == AUDIO_PATH:
            # It reads its body as it comes, and has limits of its own.
            self._room = math.inf
        length = _declared_bytes(headers)
        if length > self._room:
            self._refused = True
            if length > MAX_UNREAD_BYTES or "Expect" in headers:
                self._answer(413, closing=True, unread_bytes=length)
            return None
        try:
            return self._inner.headers_received(start_line, headers)
        except HTTPInputError:
            self._refused = True
            self._answer(400, closing=True, unread_bytes=length)
            return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        self._room -= len(chunk)
        if self._refused:
            return None
        if self._room >= 0:
            return self._inner.data_received(chunk)
        self._refused = True
        self._inner.on_connection_close()
        return None

    def finish(self) -> None:
        if not self._refused:
            self._inner.finish()
        elif not self._answered:
            self._answer(413)

    def on_connection_close(self) -> None:
        if not self._refused:
            self._inner.on_connection_close()

    def _answer(self, status: int, closing: bool = False, unread_bytes: int = 0) -> None:
        """Answer; before the end of the request, Tornado closes the connection afterwards."""
        self._answered = True
        if isinstance(self._connection, HTTP1Connection):
            # Or Tornado would say the same once more, in its own words.
            self._connection.set_max_body_size(max(MAX_UNREAD_BYTES, unread_bytes))
        reason = http.client.responses[status]
        body = compact({"message": reason}).encode()
        path, method = self._start_line.path.partition("?")[0], self._start_line.method
        headers = HTTPHeaders(cors_headers(path, method, self._origin, self._allowed_origins()))
        headers["Content-Type"], headers["Content-Length"] = "application/json", str(len(body))
        if closing:
            headers["Connection"] = "close"
        self._connection.write_headers(ResponseStartLine("HTTP/1.1", status, reason), headers, body)
        self._connection.finish()
        if self._access_log:
            self._log(status)

    def _log(self, status: int) -> None:
        """As :func:`log_request` does; who stands behind a proxy is not known yet."""
        path = shown_path(self._start_line.path.partition("?")[0])
        extra: dict[str, object] = {"method": self._start_line.method, "path": path, "status": status}
        if isinstance(self._connection, HTTP1Connection):
            extra["remote_ip"] = str(self._connection.context)
        log.info("request", extra=extra)


def _declared_bytes(headers: HTTPHeaders) -> int:
    """What Content-Length says; 0 if it says nothing that Tornado would not refuse by itself."""
    text = headers.get("Content-Length", "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else 0
