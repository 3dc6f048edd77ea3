"""``cocoa serve``: runs one ``Gateway``, with its settings, signals and exit status."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

import click

from cocoa_tornado import __version__, logs
from cocoa_tornado.asking import ask
from cocoa_tornado.errors import CocoaError, SettingError
from cocoa_tornado.logs_format import LogFormat
from cocoa_tornado.logs_writer import can_write_now
from cocoa_tornado.plain_text import quoted
from cocoa_tornado.rules.addresses import masked
from cocoa_tornado.service import Gateway, check, run
from cocoa_tornado.settings import Settings
from cocoa_tornado.settings.sources import Loaded, check_files, check_named_files, load

from .options import SettingsCommand, WrongSetting, load_settings, settings_options
from .signals import ProcessSignals, waking
from .streams import STDOUT, OutputLost

COLLECT_AFTER = (5_000, 1, 5_000)
"""For ``gc.set_threshold``. Young objects are collected in portions of at most 15,000, which takes some milliseconds;
a batch of records makes fewer than 5,000 and causes no collection. A full collection, which takes half a second with
10,000 devices, runs only after tens of millions of new objects."""

log = logging.getLogger("cocoa.service")


@click.command(cls=SettingsCommand)
@settings_options()
@click.option(
    "--check",
    "only_check",
    is_flag=True,
    help="Check that the gateway can start with these settings, keys and certificates, and exit.",
)
@click.pass_context
def serve(context: click.Context, /, config: Path | None, only_check: bool, **options: object) -> None:
    """Accept device connections and deliver records from Kafka.

    Without options, it needs no file and no other service: it listens on 127.0.0.1:8080, with an embedded broker and a
    development key, which `cocoa mint-token` on this machine uses too.

    \b
    Examples:
      cocoa serve
      cocoa serve --port 0
      cocoa serve --broker kafka://kafka-1:9092,kafka-2:9092 --host 0.0.0.0 --jwt-key keys/public.pem
      cocoa serve --config conf/production.toml
      cocoa serve --config conf/production.toml --check

    Every setting is an option (--ping-interval), an environment variable (COCOA_PING_INTERVAL) and a key in the file
    (ping_interval). Options override variables, which override the file.

    Signals: SIGTERM and SIGINT drain connections and stop; a second one, at least one second after the first, exits
    immediately. SIGHUP reloads keys, limits and the certificate.
    """
    signals = context.find_object(ProcessSignals) or ProcessSignals()
    loaded = load_settings(config, options)
    try:
        check_files(loaded)
    except SettingError as error:
        raise WrongSetting(str(error)) from error
    settings = loaded.settings
    logs.configure(log_format(settings), settings.log_level)
    for warning in loaded.warnings:
        log.warning(warning.event, extra=dict(warning.fields))
    try:
        if only_check:
            asyncio.run(check(settings))
            click.echo(
                f"the settings are valid: {settings.host}:{settings.port}, broker {quoted(masked(settings.broker))}"
            )
            return
        run(_serve(settings, config, options, signals))
    except CocoaError as error:
        raise click.ClickException(str(error)) from error


def log_format(settings: Settings) -> LogFormat:
    """Resolve ``auto``: text on a terminal, else JSON."""
    if settings.log_format == "auto":
        return "text" if sys.stderr is not None and sys.stderr.isatty() else "json"
    return settings.log_format


async def _serve(settings: Settings, config: Path | None, options: dict[str, object], signals: ProcessSignals) -> None:
    """Run one gateway. Signals are handled before anything is opened."""
    loop = asyncio.get_running_loop()
    stop, hang_up = asyncio.Event(), asyncio.Event()

    def terminate(name: str) -> None:
        log.info("stopping", extra={"signal": name})
        stop.set()

    def on_stop(name: str) -> None:
        loop.call_soon_threadsafe(terminate, name)

    def on_hang_up() -> None:
        loop.call_soon_threadsafe(hang_up.set)

    with waking(loop), signals.calling(on_stop, on_hang_up, _leave_at_once):
        await _run_gateway(settings, config, options, stop, hang_up)


async def _run_gateway(
    settings: Settings,
    config: Path | None,
    options: dict[str, object],
    stop: asyncio.Event,
    hang_up: asyncio.Event,
) -> None:
    allow_all_open_files()
    gateway = Gateway(settings)
    if not await _starts(gateway, stop):
        log.info("stopped during start")
        return
    collect_less_often()
    ws_url = f"{gateway.url.replace('http', 'ws', 1)}/ws"
    _announce(f"cocoa-tornado {__version__} listening on {gateway.url} (devices: {ws_url})")
    reloading = asyncio.get_running_loop().create_task(_reload_on(hang_up, gateway, config, options))
    await stop.wait()
    reloading.cancel()
    await gateway.drain_and_stop()


def _announce(line: str) -> None:
    """Print the address, for people and scripts. It is optional, as the log has it too: printing neither blocks nor
    fails the start."""
    try:
        if can_write_now(STDOUT):
            click.echo(line)
        else:
            log.info("banner skipped", extra={"detail": "standard output is full"})
    except OutputLost as error:
        log.info("banner skipped", extra={"detail": error.message})


def collect_less_often() -> None:
    """Reduce garbage collection. Connections are long-lived, and their objects are freed without the collector.
    Scanning them repeatedly while devices connect would take a fifth of a handshake's time."""
    gc.collect()
    gc.freeze()  # objects from the start are permanent
    gc.set_threshold(*COLLECT_AFTER)


async def _starts(gateway: Gateway, stop: asyncio.Event) -> bool:
    """Start the gateway. Returns False if ``stop`` was set first; the gateway is then closed."""
    starting = asyncio.create_task(gateway.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    # No effect if the start is complete.
    starting.cancel()
    await asyncio.wait({starting})
    if starting.cancelled():
        return False
    starting.result()
    return True


async def _reload_on(
    hang_up: asyncio.Event, gateway: Gateway, config: Path | None, options: dict[str, object]
) -> NoReturn:
    """Reload at each SIGHUP. A signal during the start or a reload causes a reload afterwards."""
    while True:
        await hang_up.wait()
        hang_up.clear()
        try:
            # In a thread, because a secret may come from a slow pipe. A stop does not wait for it.
            loaded: Loaded = await asyncio.wrap_future(ask("cocoa-reload", partial(load, config, os.environ, options)))
            check_named_files(loaded)
            await gateway.reload(loaded.settings)
        except SettingError as error:
            log.error("reload refused", extra={"error": str(error)})
        except Exception:
            # A bug must not prevent later reloads.
            log.exception("reload failed")


def allow_all_open_files() -> None:
    """Raise the soft limit of open files to the hard limit, as each device needs one.

    The soft limit protects programs that use select(2), which supports descriptors up to 1023. The gateway does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            # macOS has a lower limit, which the hard limit does not reflect.
            log.debug("open file limit unchanged", extra={"error": str(error)})
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    log.info("open file limit", extra={"max_open_files": "none" if soft == resource.RLIM_INFINITY else soft})


def _leave_at_once(name: str) -> NoReturn:
    """Exit immediately at a second signal. Only the log is flushed, within a bounded time."""
    log.warning("forced exit", extra={"signal": name})
    logging.shutdown()
    os._exit(1)
