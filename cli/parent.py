"""Runs the parent of ``cocoa serve --workers N``. Imports nothing that only a gateway needs."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable
from functools import partial

from cocoa_tornado.asking import ask
from cocoa_tornado.errors import SettingError
from cocoa_tornado.logs import set_level
from cocoa_tornado.rules.addresses import base_url
from cocoa_tornado.settings import Settings
from cocoa_tornado.settings.sources import Loaded
from cocoa_tornado.systemd import Notifier
from cocoa_tornado.web.listening_sockets import reserve
from cocoa_tornado.workers.parent import Parent

from .banner import announce, log_console_link
from .signals import ProcessSignals

log = logging.getLogger("cocoa.workers")


def run_parent(settings: Settings, signals: ProcessSignals, notifier: Notifier, read: Callable[[], Loaded]) -> int:
    """Run ``settings.workers`` workers until a signal; returns the exit status.

    The workers execute this process's own command line, so they read the same settings from the same sources.

    :param read: reads the settings again
    :raises ServiceError: the port cannot be had
    """
    reserved = reserve(settings.host, settings.port)
    port: int = reserved[0].getsockname()[1]
    url = base_url(settings.host, port, tls=settings.tls_cert is not None)

    def on_serving() -> None:
        log.info("listening", extra={"url": url, "workers": settings.workers})
        announce(url)
        log_console_link(settings, _admin_url(settings, url))

    def on_reload() -> None:
        # In a thread, because a secret may come from a slow pipe, and the workers must be watched meanwhile.
        ask("cocoa-reload", partial(reload_log_level, read))

    parent = Parent(
        [sys.executable, *sys.orig_argv[1:]],
        settings.workers,
        settings.server_name or f"{socket.gethostname()}:{port}",
        port,
        os.environ,
        settings.drain_grace_s,
        notifier,
        on_serving,
        on_reload,
    )

    def on_stop(name: str) -> None:
        log.info("stopping", extra={"signal": name})
        parent.stop()

    def on_second_stop(name: str) -> None:
        log.warning("forced exit", extra={"signal": name})
        parent.force()

    with signals.calling(on_stop, parent.reload, on_second_stop):
        status = parent.run()
    for sock in reserved:
        sock.close()
    log.info("stopped", extra={"status": status})
    return status


def _admin_url(settings: Settings, url: str) -> str:
    if settings.admin_port is None:
        return url
    return base_url(settings.admin_host, settings.admin_port, tls=settings.tls_cert is not None)


def reload_log_level(read: Callable[[], Loaded]) -> None:
    """The one setting of the parent's own that can be changed. The workers report settings that are invalid."""
    with contextlib.suppress(SettingError):
        set_level(read().settings.log_level)
