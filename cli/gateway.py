"""Runs one ``Gateway`` in this process, from its start to its stop: alone, or as a worker under a parent."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from cocoa_tornado.asking import ask
from cocoa_tornado.errors import SettingError
from cocoa_tornado.handover.sockets import Meeting
from cocoa_tornado.rules.supervision import DRAIN_MARGIN_S, LEAVE_S
from cocoa_tornado.service.gateway import Gateway, run
from cocoa_tornado.service.gateway import check as check_gateway
from cocoa_tornado.settings import Settings
from cocoa_tornado.settings.sources import Loaded, check_named_files, load
from cocoa_tornado.systemd import Notifier
from cocoa_tornado.workers.channel import Channel
from cocoa_tornado.workers.orphans import exit_without_parent
from cocoa_tornado.workers.place import Place

from .banner import announce, log_console_link
from .signals import ProcessSignals, waking

COLLECT_AFTER = (5_000, 1, 5_000)
"""For ``gc.set_threshold``. Young objects are collected in portions of at most 15,000, which takes some milliseconds;
a batch of records makes fewer than 5,000 and causes no collection. A full collection, which takes half a second with
10,000 devices, runs only after tens of millions of new objects."""

log = logging.getLogger("cocoa.service")


@dataclass(frozen=True, slots=True)
class Launch:
    """The arguments of a gateway's start.

    :ivar config, options: where a reload reads the settings from
    :ivar place: None without a parent
    """

    settings: Settings
    config: Path | None
    options: dict[str, object]
    notifier: Notifier
    place: Place | None = None


class Orders:
    """What signals, and the parent, ask of the gateway. IOLoop thread."""

    def __init__(self) -> None:
        self.stop, self.hang_up = asyncio.Event(), asyncio.Event()

    def terminate(self, name: str) -> None:
        """:param name: of the signal, or what else is the reason"""
        log.info("stopping", extra={"signal": name})
        self.stop.set()


def check(settings: Settings) -> None:
    """See :func:`cocoa_tornado.service.gateway.check`."""
    asyncio.run(check_gateway(settings))


def run_gateway(launch: Launch, signals: ProcessSignals) -> None:
    """Serve until a signal, or the end of the parent."""
    run(_serve(launch, signals))


async def _serve(launch: Launch, signals: ProcessSignals) -> None:
    """Run one gateway. Signals are handled before anything is opened."""
    loop, orders = asyncio.get_running_loop(), Orders()

    def on_stop(name: str) -> None:
        loop.call_soon_threadsafe(orders.terminate, name)

    def on_hang_up() -> None:
        loop.call_soon_threadsafe(orders.hang_up.set)

    with waking(loop), signals.calling(on_stop, on_hang_up, _leave_at_once):
        channel = None if launch.place is None else await _open_channel(launch, launch.place, orders)
        watchdog = loop.create_task(_feed_watchdog(launch.notifier))
        try:
            await _run_gateway(launch, orders, channel)
        finally:
            watchdog.cancel()
            if channel is not None:
                channel.leave()


async def _open_channel(launch: Launch, place: Place, orders: Orders) -> Channel:
    def on_lost() -> None:
        orders.terminate("parent ended")

    # No parent is left then to kill a worker that does not complete its drain.
    exit_without_parent(place.fd, launch.settings.drain_grace_s + DRAIN_MARGIN_S + LEAVE_S)
    channel = Channel(place.count, orders.hang_up.set, on_lost)
    await channel.open(place.channel())
    return channel


async def _run_gateway(launch: Launch, orders: Orders, channel: Channel | None) -> None:
    allow_all_open_files()
    gateway = Gateway(launch.settings, siblings=channel, meeting=meeting_at(launch.place))
    if not await _starts(gateway, orders.stop):
        log.info("stopped during start")
        return
    collect_less_often()
    if channel is None:
        announce(gateway.url)
        log_console_link(launch.settings, gateway.admin_url)
    else:
        channel.up(gateway.metrics, gateway.readiness)
    launch.notifier.ready()

    reloaded = launch.notifier.ready if channel is None else channel.reloaded
    reloading = asyncio.get_running_loop().create_task(_reload_on(orders.hang_up, gateway, launch, reloaded))
    await orders.stop.wait()
    reloading.cancel()
    launch.notifier.stopping()
    await gateway.drain_and_stop()


async def _feed_watchdog(notifier: Notifier) -> None:
    """From the event loop, so that systemd restarts a gateway whose loop hangs."""
    if notifier.watchdog_s is None:
        return
    with suppress(asyncio.CancelledError):
        while True:
            notifier.alive()
            await asyncio.sleep(notifier.watchdog_s)


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
    hang_up: asyncio.Event, gateway: Gateway, launch: Launch, reloaded: Callable[[], None]
) -> NoReturn:
    """Reload at each SIGHUP. A signal during the start or a reload causes a reload afterwards."""
    while True:
        await hang_up.wait()
        hang_up.clear()
        launch.notifier.reloading()
        try:
            # In a thread, because a secret may come from a slow pipe. A stop does not wait for it.
            loading = ask("cocoa-reload", partial(load, launch.config, os.environ, launch.options))
            loaded: Loaded = await asyncio.wrap_future(loading)
            check_named_files(loaded)
            await gateway.reload(settings_at(launch.place, loaded.settings))
        except SettingError as error:
            log.error("reload refused", extra={"error": str(error)})
        except Exception:
            # A bug must not prevent later reloads.
            log.exception("reload failed")
        finally:
            reloaded()


def settings_at(place: Place | None, settings: Settings) -> Settings:
    """The settings of a worker: those of its parent, with a name of its own and the port that the parent reserved."""
    return settings if place is None else replace(settings, port=place.port, server_name=place.name)


def meeting_at(place: Place | None) -> Meeting | None:
    """Where a worker meets the others."""
    return None if place is None or not place.folder else Meeting(Path(place.folder), place.number, place.count)


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
