"""The routes, and the access log."""

from __future__ import annotations

import logging

from tornado.web import Application, RequestHandler

from .device_handler import DeviceHandler
from .handlers import (
    AudioStreamHandler,
    HealthHandler,
    MetricsHandler,
    NotFoundHandler,
    PublishHandler,
    ReadyHandler,
    TokenHandler,
    WebContext,
)

QUIET_PATHS = frozenset(["/api/v1/health", "/api/v1/ready", "/metrics"])

log = logging.getLogger("cocoa.access")


def make_application(context: WebContext, access_log: bool = True) -> Application:
    """The Tornado application of one gateway; two of them in one process share nothing."""
    shared = {"context": context}
    return Application(
        [
            (r"/ws", DeviceHandler, shared),
            (r"/api/v1/auth/token", TokenHandler, shared),
            (r"/api/v1/audio/stream", AudioStreamHandler, shared),
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
    if status < 400 and request.path in QUIET_PATHS:
        level = logging.DEBUG
    else:
        level = logging.INFO if status < 500 or status in (501, 503) else logging.ERROR
    extra: dict[str, object] = {
        "method": request.method,
        "path": request.path,
        "status": status,
        "ms": round(1000 * request.request_time(), 1),
        "remote_ip": request.remote_ip,
    }
    if isinstance(handler, DeviceHandler):
        if handler.identity is not None:
            extra["device_id"] = handler.identity.device_id
        if handler.outcome:
            extra["outcome"] = handler.outcome
    log.log(level, "request", extra=extra)


def _silent(handler: RequestHandler) -> None:
    """Access log off."""
