"""The composition root: makes one gateway out of settings, and carries it through its life.

``service_parts.py`` makes the parts. ``Gateway`` is one whole gateway in one process, with nothing global: a
test may run two side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from cocoa_tornado import __version__

from .admin.connected import Connected
from .admin.context import AdminContext
from .admin.device import OneDevice
from .admin.explain import Here
from .admin.overview import OVERVIEW, Overview
from .admin.routes import admin_routes, answer_queries
from .admin.servers import Servers
from .admin.subscribers import Subscribers
from .admin.top import Top
from .admin.trace_boxes import BoxSearch
from .admin.trace_search import TraceSearch
from .admin.traces import Traces
from .admin.watchers import Watchers
from .brokers.port import Batch, Broker
from .canaries import Canaries
from .connection.device_context import DeviceContext
from .connection.flusher import Flushed, Flusher, Housekeeping
from .connection.intake import IntakeGate
from .connection.keepalive import ExpiryCalendar, PingWheel
from .connection.mail import Mail, refresh_period_s
from .console.files import read_files
from .console.handlers import ConsoleContext, console_routes
from .counters import Counters
from .errors import KeyMaterialError, ServiceError, SettingError
from .handover.handover import HandOver
from .handover.sockets import Meeting, Sockets
from .hub import Hub
from .identity.key_store import KeyStore
from .live import Live
from .logs import lines_lost, set_level
from .mailboxes.port import Mailbox, MailboxState
from .metrics import GatewayCollector, MetricsPage
from .presence.port import Presence
from .relay.port import Relay
from .routing.round_trips import RoundTrips
from .routing.router import Router
from .rules.addresses import base_url, without_user_info
from .rules.buffers import Use
from .rules.byte_budget import ByteBudget
from .rules.close_codes import GOING_AWAY
from .rules.departure import reconnect_delays, reconnect_notice
from .rules.device_events import DeviceEvents
from .rules.live_events import LiveEvents
from .rules.readiness_report import OFF, Readiness
from .rules.records import decode
from .rules.repeats import Repeats
from .rules.trace_memory import TraceMemory
from .rules.upload import AudioLimits
from .service_live import check_secrets, snapshot, successor
from .service_options import (
    listener_options,
)
from .service_parts import (
    admin_key_store,
    audio_intake,
    kafka_client,
    key_sources,
    key_store,
    make_blocks,
    make_broker,
    make_engine,
    make_mailbox,
    make_presence,
    make_relay,
    speech_url,
)
from .settings.sources import changes, reloaded
from .settings.table import SPEECH_OFF, Settings
from .speech.pool import WorkerPool
from .speech.port import SpeechEngine
from .sweeper import Sweeper
from .transcriber import Transcriber
from .web.access_log import AccessLog
from .web.application import RequestFilter, Routes, make_admin_application, make_application
from .web.audio_context import AudioContext
from .web.handlers import WebContext
from .web.listener import Listener
from .web.listening_sockets import bind
from .web.revocation import Revocation
from .web.streams import write_progress_is_visible
from .web.turns import loop_clock, new_event_loop
from .web.upgrading import Upgrader
from .workers.port import Siblings

SHARE_OF_GRACE_FOR_SPEECH = 0.5
SHARE_OF_GRACE_FOR_DEVICES = 0.6
FAILED_START_S = 1.0
TOPICS = 3  # of the embedded broker: each has the same share

log = logging.getLogger("cocoa.service")


class Gateway:
    """One gateway. Built, started, drained and stopped on one IOLoop.

    :param broker: instead of the one that the settings name; for tests
    :param engine: likewise
    :param mailbox: likewise
    :param presence: likewise, not started
    :param relay: likewise, the one that ``presence`` uses
    :param siblings: the other workers, which listen on the same port; None without a parent
    :param meeting: where records are handed over to them; None: through the relay
    """

    def __init__(
        self,
        settings: Settings,
        broker: Broker | None = None,
        engine: SpeechEngine | None = None,
        mailbox: Mailbox | None = None,
        presence: Presence | None = None,
        relay: Relay | None = None,
        siblings: Siblings | None = None,
        meeting: Meeting | None = None,
    ) -> None:
        self.settings = settings
        self._siblings, self._meeting = siblings, meeting
        sources = key_sources(settings)
        admin_keys = admin_key_store(settings, sources)
        self.live = Live(snapshot(settings, sources, key_store(settings, sources), admin_keys))
        self._clock = loop_clock()
        self._wall_clock = time.time
        remembers = settings.trace_bytes > 0 and settings.enables_admin
        self._memory = TraceMemory(settings.trace_bytes, self._wall_clock) if remembers else None
        self.counters = Counters()
        self.hub = Hub(settings.connection_delivery)
        self.blocks = make_blocks(settings, self.hub)
        self.relay = relay or make_relay(settings)
        self.presence = presence or make_presence(settings, self.relay, self._clock, self._server_name)
        self.presence.limits = lambda: self.live.now.slots
        self.broker = make_broker(settings) if broker is None else broker
        self.engine = make_engine(settings) if engine is None else engine
        self.mailbox = make_mailbox(settings) if mailbox is None else mailbox
        self.transcriber: Transcriber | None = None
        self._listener: Listener | None = None
        self._housekeeping: Housekeeping | None = None
        self._devices: DeviceContext | None = None
        self._revocation: Revocation | None = None
        self._web: WebContext | None = None
        self.canaries = self._make_canaries()
        self._watchers: Watchers | None = None
        self._opened = contextlib.AsyncExitStack()
        self._deadline = math.inf
        self._connections_cut = 0
        self._stopping: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()
        self._admin_listener: Listener | None = None
        self.port = self.admin_port = 0

    def __repr__(self) -> str:
        return f"<Gateway {self.url} {self.hub!r}>"

    @property
    def keys(self) -> KeyStore:
        """Those in force."""
        return self.live.now.keys

    def _server_name(self) -> str:
        return self.settings.server_name or f"{socket.gethostname()}:{self.port}"

    @property
    def admin_url(self) -> str:
        """Where the admin API and the console are."""
        if self._admin_listener is None:
            return self.url
        return base_url(self.settings.admin_host, self.admin_port, tls=self.live.now.tls is not None)

    @property
    def url(self) -> str:
        """Where it listens."""
        return base_url(self.settings.host, self.port, tls=self.live.now.tls is not None)

    async def start(self) -> None:
        """Read the keys, bind the port, start consuming. The broker may be away.

        May be cancelled. Whoever sees it fail has nothing to stop.

        :raises KeyMaterialError: no key can be used
        :raises ServiceError: the port cannot be had, or the mailbox can never be used
        """
        try:
            await self._open()
        except BaseException:
            self._deadline = self._clock() + FAILED_START_S
            await self._opened.aclose()
            raise
        speech = SPEECH_OFF if self.engine is None else speech_url(self.settings)
        extra = {"url": self.url, "broker": self.settings.broker, "speech": speech}
        client = kafka_client(self.settings)
        if client is not None:
            extra["kafka_client"] = client
        log.info("listening", extra=extra)

    async def _open(self) -> None:
        """Open the parts, each after those that it needs while it closes. They are closed in reverse, however far the
        start has come, so what ends a part is noted before the part is opened."""
        opened = self._opened
        front, upgrader, admin_front = self._compose()
        self._adapt_to_tornado()
        assert self._devices is not None
        assert self._housekeeping is not None
        assert self._revocation is not None
        opened.callback(self._housekeeping.stop)
        self._housekeeping.start()
        opened.callback(self._revocation.stop)
        opened.push_async_callback(self._close_keys)
        await self.read_keys()
        options, live = listener_options(self.settings), self.live
        self._listener = listener = Listener(
            front, options, lambda: live.now.tls, self.counters, lambda: len(self.hub), upgrader.try_at_once
        )
        opened.push_async_callback(self._in_time, listener.close_connections, 1.0)
        opened.push_async_callback(self._within, self.blocks.close)
        await self.blocks.start()
        if admin_front is not None:
            self._open_admin_listener(admin_front)
        # Once presence is closed, other servers may hold this one's devices.
        opened.push_async_callback(self._within, self.relay.close)
        opened.push_async_callback(self._within, self.presence.close)
        self.presence.start(self.hub)
        if self.mailbox is not None:
            opened.push_async_callback(self._within, self.mailbox.close)
            await self._open_mailbox(self.mailbox)
        sink = await self._open_handover()
        sockets = bind(self.settings.host, self.settings.port, shared=self._siblings is not None)
        self.port = sockets[0].getsockname()[1]
        opened.push_async_callback(self._within, self.broker.close)
        # Half of what is left: to flush needs time as well.
        opened.push_async_callback(self._in_time, self._devices.intake.settled, 0.5)
        opened.callback(listener.stop)
        listener.start(sockets)
        opened.push_async_callback(self._close_devices)
        opened.push_async_callback(self._in_time, self.broker.stop_consuming, 1.0)
        if self.engine is not None:
            self.engine.start()
        if self.transcriber is not None:
            opened.push_async_callback(self._within, self.transcriber.drain, SHARE_OF_GRACE_FOR_SPEECH)
        self.broker.start(sink, decode)
        if self.canaries is not None:
            opened.callback(self.canaries.stop)
            self.canaries.start()

    def _make_canaries(self) -> Canaries | None:
        settings = self.settings
        if not settings.canary_interval_s:
            return None
        return Canaries(
            self.hub,
            self.presence,
            self.broker,
            self.counters.canary,
            settings.kafka_results_topic,
            settings.canary_interval_s,
            self._clock,
            self._wall_clock,
        )

    def _open_admin_listener(self, front: RequestFilter) -> None:
        """It serves until the devices have been sent away."""
        settings, live = self.settings, self.live
        assert settings.admin_port is not None
        self._admin_listener = listener = Listener(
            front, listener_options(settings), lambda: live.now.tls, self.counters, lambda: len(self.hub)
        )
        self._opened.push_async_callback(self._in_time, listener.close_connections, 1.0)
        sockets = bind(settings.admin_host, settings.admin_port, shared=self._siblings is not None)
        self.admin_port = sockets[0].getsockname()[1]
        self._opened.callback(listener.stop)
        listener.start(sockets)
        log.info("admin listening", extra={"url": self.admin_url})

    def _left_s(self, share: float = 1.0) -> float:
        """A share of the time until the gateway is to have stopped; never nothing at all."""
        return max(0.1, (self._deadline - self._clock()) * share)

    async def _within(self, close: Callable[[float], Awaitable[None]], share: float = 1.0) -> None:
        """Close a part that keeps to a time limit by itself."""
        await close(self._left_s(share))

    async def _in_time(self, close: Callable[[], Awaitable[None]], share: float) -> None:
        """Close a part, or give up when its share of the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._left_s(share)):
                await close()

    def _adapt_to_tornado(self) -> None:
        if not write_progress_is_visible():
            log.warning("write progress is not visible with this Tornado; large writes must end within the write wait")

    async def _close_keys(self) -> None:
        # A reload under way would begin to read URLs afterwards.
        async with self._reloading:
            await self.close_keys()

    async def read_keys(self) -> None:
        """Read the keys of devices and operators, and refresh those of URLs from now on.

        :raises KeyMaterialError: no key can be used
        """
        now = self.live.now
        await now.keys.start()
        if now.admin_keys is not None:
            await now.admin_keys.start()
        check_secrets(self.settings, now.keys, now.admin_keys)

    async def close_keys(self) -> None:
        """Read no key again. Those that are known remain in force."""
        now = self.live.now
        await now.keys.close()
        if now.admin_keys is not None:
            await now.admin_keys.close()

    async def _open_handover(self) -> Callable[[Batch], None]:
        """What consumes the broker's batches. With a mailbox, the worker that reads a record stores it, too: only one
        at a time can remember what it has stored of a partition."""
        meeting = self._meeting
        if meeting is None or self.mailbox is not None:
            return self._sink
        handover = HandOver(
            meeting.number,
            self._sink,
            self.hub,
            self.presence.until_lease,
            self.relay,
            self.counters,
            self._clock,
            lambda: self.live.now.slots.per_device == 1,
        )
        sockets = Sockets(meeting, handover.link)
        self._opened.callback(handover.close)
        self._opened.push_async_callback(sockets.close)
        handover.start()
        await sockets.open()
        return handover

    async def _open_mailbox(self, mailbox: Mailbox) -> None:
        await mailbox.start()
        sweeper = Sweeper(mailbox)
        self._opened.callback(sweeper.stop)
        sweeper.start()
        status = mailbox.status()
        extra: dict[str, object] = {"mailbox": without_user_info(self.settings.mailbox), "promise": status.detail}
        if status.state is MailboxState.READY:
            extra |= {"messages": status.messages, "bytes": status.size_bytes}
        log.info("mailbox", extra=extra | {"state": status.state.value})

    def _compose(self) -> tuple[RequestFilter, Upgrader, RequestFilter | None]:
        """The objects that live on the IOLoop, wired up.

        :returns: what answers requests, also those to a listener of the admin API's own, if there is one
        """
        round_trips: RoundTrips | None = None
        if self.engine is not None:
            round_trips = RoundTrips(self._clock)
            self.transcriber = self._make_transcriber(self.engine, round_trips)
        self._sink = Router(
            self.hub,
            self.counters,
            self._clock,
            self.presence,
            self.relay,
            mailbox=self.mailbox,
            wall_clock=self._wall_clock,
            round_trips=round_trips,
            has_neighbors=self.settings.shares_presence,
            memory=self._memory,
        )
        self._opened.callback(self._sink.close)
        self._devices = devices = self._make_devices()
        self._revocation = Revocation(self.live, devices.sockets)
        self.keys.on_distrust = self._revocation.start
        self._housekeeping = Housekeeping(
            devices.wheel,
            devices.calendar,
            devices.flusher,
            self.counters,
            self._clock,
            self._wall_clock,
            devices.intake,
        )
        self._web = self._make_web(devices)
        access_log = AccessLog(self.settings.access_log)
        upgrader = Upgrader(self._web, access_log)
        routes = [*admin_routes(self._make_admin(devices)), *self._console_routes()]
        if self.settings.admin_port is None:
            application = make_application(self._web, upgrader, access_log, routes)
            return RequestFilter(application, self._web, access_log), upgrader, None
        application = make_application(self._web, upgrader, access_log)
        admin_application = make_admin_application(self._web, access_log, routes)
        admin_front = RequestFilter(admin_application, self._web, access_log)
        return RequestFilter(application, self._web, access_log), upgrader, admin_front

    def _console_routes(self) -> Routes:
        if self.settings.console == "off":
            return ()
        return console_routes(ConsoleContext(read_files(), self._own_device_port))

    def _own_device_port(self) -> int | None:
        """The port of the devices; None if the admin API is there too."""
        return None if self.settings.admin_port is None else self.port

    def _make_admin(self, devices: DeviceContext) -> AdminContext:
        servers = Servers(self.presence, self.relay, self._server_name)
        self._opened.callback(servers.close)
        connected = Connected(self.hub, self._server_name, self._wall_clock)
        here, mailbox, wall_clock = Here(self.hub, self._server_name), self.mailbox, self._wall_clock
        boxes = None if mailbox is None else BoxSearch(mailbox, self.settings.mailbox_ttl_s, wall_clock)
        traces = Traces(self._memory or TraceMemory(0, wall_clock), self.hub, boxes, self._server_name)
        subscribers = Subscribers(servers, devices.events.live, self._count_lost_events)
        self._opened.callback(subscribers.close)
        device = OneDevice(connected, devices.events, lambda: self.presence.counters.fenced)
        loops = Repeats(0) if devices.mail is None else devices.mail.loops
        full_boxes = Repeats(0) if mailbox is None else mailbox.counters.full
        top = Top(self.hub, devices.reconnects, loops, full_boxes, self._server_name, self._wall_clock)
        answer_queries(servers, connected, device, self.blocks, here, traces, subscribers, top)
        servers.answer(OVERVIEW, self._make_overview().answer)
        self._watchers = Watchers(servers, devices.events.live, self._count_lost_events)
        self._opened.callback(self._watchers.close)
        search = TraceSearch(self.broker, self.settings.kafka_results_topic, boxes, wall_clock)
        return AdminContext(servers, connected, self.blocks, self._watchers, search, mailbox)

    def _count_lost_events(self, count: int) -> None:
        self.counters.admin_events_lost += count

    def _make_overview(self) -> Overview:
        parts = (self.hub, self.counters, self.broker, self.mailbox, self.readiness, self._own_device_port)
        return Overview(
            self._server_name, __version__, self._wall_clock(), *parts, lambda: self.presence.counters.fenced
        )

    def _make_devices(self) -> DeviceContext:
        settings, live = self.settings, self.live
        return DeviceContext(
            hub=self.hub,
            presence=self.presence,
            broker=self.broker,
            counters=self.counters,
            flusher=Flusher(asyncio.get_running_loop(), self._wall_clock, self.counters.latency),
            wheel=PingWheel[Flushed](settings.ping_interval_s, settings.ping_timeout_s, self._clock()),
            calendar=ExpiryCalendar[Flushed](),
            limits=lambda: live.now.devices,
            messages_topic=settings.kafka_messages_topic,
            clock=self._clock,
            wall_clock=self._wall_clock,
            audio=None if self.transcriber is None else audio_intake(self.transcriber, settings, self._audio_limits),
            mail=None if self.mailbox is None else self._make_mail(self.mailbox),
            intake=IntakeGate(settings.buffers["uplink"], self._clock, lambda: len(self.hub)),
            memory=self._memory,
            events=DeviceEvents(live=LiveEvents(self._server_name, self._wall_clock)),
        )

    def _make_mail(self, mailbox: Mailbox) -> Mail:
        refresh_s = refresh_period_s(self.settings.member_ttl_s)
        return Mail(mailbox, self.counters, self._clock, refresh_s, self._memory, wall_clock=self._wall_clock)

    def _make_web(self, devices: DeviceContext) -> WebContext:
        settings = self.settings
        return WebContext(
            live=self.live,
            broker=self.broker,
            devices=devices,
            metrics=MetricsPage(self._make_collector()),
            results_topic=settings.kafka_results_topic,
            http_publish=settings.publishes_over_http,
            trusted_proxies=settings.trusted_proxies,
            retry_after_s=math.ceil(settings.retry_after_s),
            policy=settings.token_policy,
            audio=None if self.transcriber is None else AudioContext(self.transcriber, self._audio_limits),
            blocked=self.blocks.blocked,
            bodies=ByteBudget(settings.buffers["bodies"]),
            siblings=self._siblings,
            canary=(lambda: OFF) if self.canaries is None else self.canaries.part,
        )

    def metrics(self) -> str:
        """The metrics of this server alone. Only once it has started, as the next one."""
        assert self._web is not None
        return self._web.metrics.render().decode()

    def readiness(self) -> Readiness:
        """Which parts of this server are ready."""
        assert self._web is not None
        return self._web.readiness()

    def _make_collector(self) -> GatewayCollector:
        settings, engine = self.settings, self.engine
        return GatewayCollector(
            self.hub,
            self.presence,
            self.counters,
            lambda: self.broker.counters,
            self.broker.status,
            lambda: self.http_connections,
            lambda: None if engine is None else engine.status(),
            engine.counters.lost if isinstance(engine, WorkerPool) else {},
            self.mailbox,
            (settings.kafka_results_topic, settings.kafka_messages_topic, settings.kafka_quarantine_topic),
            lines_lost,
            self.buffers,
            self.relay.counters if settings.shares_presence else None,
        )

    def _audio_limits(self) -> AudioLimits:
        return self.live.now.audio

    def buffers(self) -> dict[str, Use]:
        """What each part of ``buffer_bytes`` holds, and may hold."""
        held = dict(self.broker.held_bytes)
        if self._web is not None:
            held |= {"bodies": self._web.bodies.taken, "uplink": self._web.devices.intake.rule.total}
        return {part: Use(held.get(part), limit) for part, limit in self.settings.buffers.items()}

    def _make_transcriber(self, engine: SpeechEngine, round_trips: RoundTrips) -> Transcriber:
        return Transcriber(
            engine,
            self.broker,
            round_trips,
            self.counters.speech,
            lambda: self.live.now.speech,
            results_topic=self.settings.kafka_results_topic,
            clock=self._clock,
            wall_clock=self._wall_clock,
        )

    @property
    def http_connections(self) -> int:
        """Connections that are not a device's, or not yet."""
        return sum(listener.pending for listener in (self._listener, self._admin_listener) if listener is not None)

    async def reload(self, settings: Settings) -> None:
        """Take over what may change while running: keys, limits, origins, credentials, log level, certificate.

        Where anything is wrong, all of it stays as it was, and the log says why. One at a time, in the order called.
        """
        async with self._reloading:
            await self._reload(settings)

    async def _reload(self, settings: Settings) -> None:
        before = self.live.now
        applied, ignored = changes(self.settings, settings)
        try:
            settings = reloaded(self.settings, settings)
            new = await successor(before, settings)
        except (SettingError, KeyMaterialError, ServiceError) as error:
            log.error("reload refused", extra={"error": str(error)})
            return
        self.live.now, self.settings = new, settings
        set_level(settings.log_level)
        await new.keys.succeed(before.keys)
        await _succeed(new.admin_keys, before.admin_keys)
        log.info("reloaded", extra={"applied": ",".join(applied) or "nothing new", "needs_restart": ",".join(ignored)})

    async def drain_and_stop(self) -> None:
        """Hand the devices over and stop, within ``drain_grace``. Calling it again waits for the same end.

        In this order: the canaries stop; ready turns 503 and new connections and audio streams get 503 with
        Retry-After; after ``drain_delay`` the audio streams under way come to their end, and their words back from the
        broker (in half of the time that is left, at most); reading stops, what was read is routed and its offsets are
        committed; every device is sent what is queued for it and closed with 1001; what devices have said is flushed to
        the broker.
        """
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._drain_and_stop())
        await asyncio.shield(self._stopping)

    async def _drain_and_stop(self) -> None:
        self._deadline = self._clock() + self.settings.drain_grace_s
        self.presence.drain()
        if self.canaries is not None:
            self.canaries.stop()
        if self._watchers is not None:
            self._watchers.close()
        log.info("draining", extra={"connections": len(self.hub), "grace_s": self.settings.drain_grace_s})
        await asyncio.sleep(min(self.settings.drain_delay_s, self.settings.drain_grace_s))
        await self._opened.aclose()
        log.info("stopped", extra={"connections_cut": self._connections_cut})

    async def _close_devices(self) -> None:
        """1001 to every device, after what is queued for it and when to connect again; sockets that are still open at
        the end are cut."""
        if self._devices is None:
            return
        # The handshakes of this very turn have not registered yet.
        await asyncio.sleep(0)
        clients = list(self.hub)
        delays = reconnect_delays(len(clients), [peer.room for peer in self.presence.peers() if not peer.is_draining])
        for client, after_ms in zip(clients, delays, strict=True):
            client.end(GOING_AWAY, keep_queued=True, notice=reconnect_notice(after_ms))
        self._connections_cut = await self._devices.sockets.cut_late(self._left_s(SHARE_OF_GRACE_FOR_DEVICES))


async def _succeed(new: KeyStore | None, before: KeyStore | None) -> None:
    """Replace the keys of operators; a reload may enable and disable the admin API."""
    if new is None:
        if before is not None:
            await before.close()
    elif before is None:
        new.follow()
    else:
        await new.succeed(before)


async def check(settings: Settings) -> None:
    """Read what a gateway with these settings would read at its start, keys and certificates, and open nothing else: no
    port, no broker, no mailbox.

    :raises CocoaError: it would not start
    """
    gateway = Gateway(settings)
    try:
        await gateway.read_keys()
    finally:
        await gateway.close_keys()


def run(main: Coroutine[Any, Any, None]) -> None:
    """As ``asyncio.run``, on an event loop that is made for thousands of devices at once."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main)
