"""``cocoa serve``: settings, signals and the process's exit status, around one ``Gateway``."""

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

COLLECT_AFTER = (10_000, 5, 1_000)
"""See ``gc.set_threshold``. The young are looked at in small portions, some milliseconds each, and all there is only
after tens of millions of new objects: that takes half a second for 10,000 devices."""

log = logging.getLogger("cocoa.service")


@click.command(cls=SettingsCommand)
@settings_options()
@click.option(
    "--check",
    "only_check",
    is_flag=True,
    help="Read the settings, the keys and the certificates, say whether the gateway could start with them, and exit.",
)
@click.pass_context
def serve(context: click.Context, /, config: Path | None, only_check: bool, **options: object) -> None:
    """Take device connections, and deliver to each device what Kafka says to it.

    With no option, no service and no file it serves on 127.0.0.1:8080, with an embedded broker and a development
    key that `cocoa mint-token` on this machine shares.

    \b
    Examples:
      cocoa serve
      cocoa serve --port 0
      cocoa serve --broker kafka://kafka-1:9092,kafka-2:9092 --host 0.0.0.0 --jwt-key keys/public.pem
      cocoa serve --config conf/production.toml
      cocoa serve --config conf/production.toml --check

    Every setting has three names: the option --ping-interval, the environment variable COCOA_PING_INTERVAL, and
    ping_interval in the file; the command line outranks the environment, which outranks the file. Signals: SIGTERM
    and SIGINT drain and stop, a second one, a second or more after the first, leaves at once; SIGHUP reads keys, limits
    and the certificate again.
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
    """What ``auto`` means: people read terminals, machines read the rest."""
    if settings.log_format == "auto":
        return "text" if sys.stderr is not None and sys.stderr.isatty() else "json"
    return settings.log_format


async def _serve(settings: Settings, config: Path | None, options: dict[str, object], signals: ProcessSignals) -> None:
    """One gateway from its start to its end. The signals are heard before anything is opened."""
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
        log.info("stopped before it had started")
        return
    collect_less_often()
    ws_url = f"{gateway.url.replace('http', 'ws', 1)}/ws"
    _announce(f"cocoa-tornado {__version__} listening on {gateway.url} (devices: {ws_url})")
    reloading = asyncio.get_running_loop().create_task(_reload_on(hang_up, gateway, config, options))
    await stop.wait()
    reloading.cancel()
    await gateway.drain_and_stop()


def _announce(line: str) -> None:
    """Print where it listens, for people and scripts that started it. The log says so too: nothing waits for this, and
    nothing fails with it."""
    try:
        if can_write_now(STDOUT):
            click.echo(line)
        else:
            log.info("banner skipped", extra={"detail": "standard output is full"})
    except OutputLost as error:
        log.info("banner skipped", extra={"detail": error.message})


def collect_less_often() -> None:
    """Connections live long, and what belongs to one that has ended is freed without the garbage collector. To look at
    all of them again and again, as they come in, would take a fifth of the time of a handshake."""
    gc.collect()
    gc.freeze()  # what has come with the start stays
    gc.set_threshold(*COLLECT_AFTER)


async def _starts(gateway: Gateway, stop: asyncio.Event) -> bool:
    """Start it; False if it was told to stop before that was done: then nothing of it is left."""
    starting = asyncio.create_task(gateway.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    # No effect on a start that is done.
    starting.cancel()
    await asyncio.wait({starting})
    if starting.cancelled():
        return False
    starting.result()
    return True


async def _reload_on(
    hang_up: asyncio.Event, gateway: Gateway, config: Path | None, options: dict[str, object]
) -> NoReturn:
    """Reload at each SIGHUP; one that came during the start, or during a reload, has its turn afterwards."""
    while True:
        await hang_up.wait()
        hang_up.clear()
        try:
            # In a thread, for a secret may come from a pipe, which takes its time. A stop does not wait for that.
            loaded: Loaded = await asyncio.wrap_future(ask("cocoa-reload", partial(load, config, os.environ, options)))
            check_named_files(loaded)
            await gateway.reload(loaded.settings)
        except SettingError as error:
            log.error("reload refused", extra={"error": str(error)})
        except Exception:
            # A fault of ours must not end the reloading for good.
            log.exception("reload broke")


def allow_all_open_files() -> None:
    """Raise the soft limit of open files to the hard one: each device takes one.

    The soft one is meant for programs that use select(2), which knows no number above 1023; nothing here does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            # macOS has a lower limit of its own, which the hard one does not show.
            log.debug("limit of open files stays", extra={"error": str(error)})
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    log.info("limit of open files", extra={"max_open_files": "none" if soft == resource.RLIM_INFINITY else soft})


def _leave_at_once(name: str) -> NoReturn:
    """A second signal: its sender does not want to wait. Nothing is flushed but the log, in a bounded time."""
    log.warning("leaving at once", extra={"signal": name})
    logging.shutdown()
    os._exit(1)
