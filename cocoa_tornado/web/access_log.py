"""The access log: one line per request. It has the path only, because the query may contain a token."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from tornado.web import RequestHandler

from .handlers import GatewayErrors, shown_path

QUIET_PATHS: Final = frozenset(["/api/v1/health", "/api/v1/ready", "/metrics"])
"""The paths that monitoring requests all the time."""

log = logging.getLogger("cocoa.access")


class AccessLog:
    """Writes the lines, if the setting ``access_log`` is on."""

    def __init__(self, is_on: bool = True) -> None:
        self._is_on = is_on

    def add_handled(self, handler: RequestHandler) -> None:
        """A request that a handler has answered. Tornado calls this (``log_function``)."""
        if not self._is_on:
            return
        assert isinstance(handler, GatewayErrors)
        request, status = handler.request, handler.get_status()
        if handler.is_quiet or (status < 400 and request.path in QUIET_PATHS):
            level = logging.DEBUG
        else:
            level = logging.INFO if status < 500 or status in (501, 503) else logging.ERROR
        extra: dict[str, object] = {"ms": milliseconds(request.request_time()), "remote_ip": request.remote_ip}
        self.add(request.method or "", request.path, status, extra | handler.log_fields(), level)

    def add(self, method: str, path: str, status: int, extra: Mapping[str, object], level: int = logging.INFO) -> None:
        """A request that was answered in another way."""
        if self._is_on:
            fields = {"method": method, "path": shown_path(path), "status": status, **extra}
            log.log(level, "request", extra=fields)


def milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 1)
