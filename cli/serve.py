"""``cocoa serve``: settings, signals and the process's exit status, around one ``Gateway``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from cocoa_tornado import __version__, logs
from cocoa_tornado.errors import CocoaError, SettingError
from cocoa_tornado.service import Gateway
from cocoa_tornado.settings import Settings
from cocoa_tornado.settings_sources import Loaded, check_files, load

from .options import SettingsCommand, WrongSetting, load_settings, settings_options

log = logging.getLogger("cocoa.service")


@click.command(cls=SettingsCommand)
@settings_options()
def serve(config: Path | None, **options: object) -> None:
    """Take device connections, and deliver to each device what Kafka says to it.

    With no option, no service and no file it serves on 127.0.0.1:8080, with an embedded broker and a development
    key that `cocoa mint-token` on this machine shares.

    \b
    Examples:
      cocoa serve
      cocoa serve --port 0
      cocoa serve --broker kafka://kafka-1:9092,kafka-2:9092 --host 0.0.0.0 --jwt-key keys/public.pem
      cocoa serve --config conf/production.toml

    Every setting has three names: the option --ping-interval, the environment variable COCOA_PING_INTERVAL, and
    ping_interval in the file; the command line outranks the environment, which outranks the file. Signals: SIGTERM
    and SIGINT drain and stop, a second one leaves at once; SIGHUP reads keys, limits and the certificate again.
    """
    loaded = load_settings(config, options)
    try:
        check_files(loaded)
    except SettingError as error:
        raise WrongSetting(str(error)) from error
    settings = loaded.settings
    logs.configure(log_format(settings), settings.log_level)
    for warning in loaded.warnings:
        log.warning(warning)
    try:
        asyncio.run(_serve(settings, config, options))
    except CocoaError as error:
        raise click.ClickException(str(error)) from error


def log_format(settings: Settings) -> logs.LogFormat:
    """What ``auto`` means: people read terminals, machines read the rest."""
    if settings.log_format == "auto":
        return "text" if sys.stderr.isatty() else "json"
    return settings.log_format


async def _serve(settings: Settings, config: Path | None, options: dict[str, object]) -> None:
    gateway = Gateway(settings)
    await gateway.start()
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def terminate(name: str) -> None:
        if stopped.is_set():
            _leave_at_once(name)
        log.info("stopping", extra={"signal": name})
        stopped.set()

    def reload() -> None:
        try:
            loaded: Loaded = load(config, os.environ, options)
        except SettingError as error:
            log.error("reload refused", extra={"error": str(error)})
            return
        reloads.add(task := loop.create_task(gateway.reload(loaded.settings)))
        task.add_done_callback(reloads.discard)

    reloads: set[asyncio.Task[None]] = set()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, terminate, number.name)
    loop.add_signal_handler(signal.SIGHUP, reload)
    ws_url = f"{gateway.url.replace('http', 'ws', 1)}/ws"
    click.echo(f"cocoa-tornado {__version__} listening on {gateway.url} (devices: {ws_url})")
    await stopped.wait()
    await gateway.drain_and_stop()


def _leave_at_once(name: str) -> NoReturn:
    """A second signal: whoever sends it does not want to wait. Nothing is flushed but the log."""
    log.warning("leaving at once", extra={"signal": name})
    logging.shutdown()
    os._exit(1)
