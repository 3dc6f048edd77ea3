"""Wires the objects on the IOLoop between the broker's batches, the devices and HTTP. Nothing is started here."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..admin.context import AdminContext
from ..connection.device_context import DeviceContext
from ..connection.flusher import Flushed, Flusher, Housekeeping
from ..connection.intake import IntakeGate
from ..connection.keepalive import ExpiryCalendar, PingWheel
from ..connection.mail import Mail, refresh_period_s
from ..logs import lines_lost
from ..mailboxes.port import Mailbox
from ..metrics import GatewayCollector, MetricsPage
from ..routing.round_trips import RoundTrips
from ..routing.router import Router
from ..rules.buffers import Use
from ..rules.byte_budget import ByteBudget
from ..rules.device_events import DeviceEvents
from ..rules.live_events import LiveEvents
from ..rules.readiness_report import OFF
from ..rules.upload import AudioLimits
from ..speech.pool import WorkerPool
from ..transcriber import Transcriber
from ..web.access_log import AccessLog
from ..web.application import RequestFilter, make_admin_application, make_application
from ..web.audio_context import AudioContext
from ..web.handlers import WebContext
from ..web.revocation import Revocation
from ..web.upgrading import Upgrader
from ..workers.port import Siblings
from .admin import make_admin, operators_routes
from .closing import OpenParts
from .parts import Parts, audio_intake


@dataclass(frozen=True, slots=True)
class Wiring:
    """The objects of one gateway that exist once there is an IOLoop, on which all of them live.

    :ivar router: consumes the broker's batches
    :ivar transcriber: None while speech is off
    :ivar front: answers requests
    :ivar admin_front: answers those to the admin API's own listener; None without one
    """

    router: Router
    transcriber: Transcriber | None
    devices: DeviceContext
    housekeeping: Housekeeping
    revocation: Revocation
    web: WebContext
    admin: AdminContext
    upgrader: Upgrader
    front: RequestFilter
    admin_front: RequestFilter | None


def wire(parts: Parts, siblings: Siblings | None, opened: OpenParts) -> Wiring:
    """Create the objects; those that have to be ended are registered with ``opened``.

    :param siblings: the other workers; None without a parent
    """
    round_trips = None if parts.engine is None else RoundTrips(parts.clock)
    transcriber = None if round_trips is None else _make_transcriber(parts, round_trips)
    router = _make_router(parts, round_trips)
    opened.stop(router.close)
    devices = _make_devices(parts, transcriber)
    revocation = Revocation(parts.live, devices.sockets)
    parts.live.now.keys.on_distrust = revocation.start
    web = _make_web(parts, devices, transcriber, siblings)
    admin = make_admin(parts, devices, web.readiness, opened)
    access_log = AccessLog(parts.settings.access_log)
    upgrader = Upgrader(web, access_log)
    routes, has_own_listener = operators_routes(parts, admin), parts.settings.admin_port is not None
    application = make_application(web, upgrader, access_log, () if has_own_listener else routes)
    admin_application = make_admin_application(web, access_log, routes) if has_own_listener else None
    return Wiring(
        router=router,
        transcriber=transcriber,
        devices=devices,
        housekeeping=_make_housekeeping(parts, devices),
        revocation=revocation,
        web=web,
        admin=admin,
        upgrader=upgrader,
        front=RequestFilter(application, web, access_log),
        admin_front=None if admin_application is None else RequestFilter(admin_application, web, access_log),
    )


def _make_router(parts: Parts, round_trips: RoundTrips | None) -> Router:
    return Router(
        parts.hub,
        parts.counters,
        parts.clock,
        parts.presence,
        parts.relay,
        mailbox=parts.mailbox,
        wall_clock=parts.wall_clock,
        round_trips=round_trips,
        has_neighbors=parts.settings.shares_presence,
        memory=parts.memory,
    )


def _make_transcriber(parts: Parts, round_trips: RoundTrips) -> Transcriber:
    assert parts.engine is not None
    return Transcriber(
        parts.engine,
        parts.broker,
        round_trips,
        parts.counters.speech,
        lambda: parts.live.now.speech,
        results_topic=parts.settings.kafka_results_topic,
        clock=parts.clock,
        wall_clock=parts.wall_clock,
    )


def _make_devices(parts: Parts, transcriber: Transcriber | None) -> DeviceContext:
    settings, live, hub = parts.settings, parts.live, parts.hub
    return DeviceContext(
        hub=hub,
        presence=parts.presence,
        broker=parts.broker,
        counters=parts.counters,
        flusher=Flusher(asyncio.get_running_loop(), parts.wall_clock, parts.counters.latency),
        wheel=PingWheel[Flushed](settings.ping_interval_s, settings.ping_timeout_s, parts.clock()),
        calendar=ExpiryCalendar[Flushed](),
        limits=lambda: live.now.devices,
        messages_topic=settings.kafka_messages_topic,
        clock=parts.clock,
        wall_clock=parts.wall_clock,
        audio=None if transcriber is None else audio_intake(transcriber, settings, _audio_limits(parts)),
        mail=None if parts.mailbox is None else _make_mail(parts, parts.mailbox),
        intake=IntakeGate(settings.buffers["uplink"], parts.clock, lambda: len(hub)),
        memory=parts.memory,
        events=DeviceEvents(live=LiveEvents(parts.listeners.server_name, parts.wall_clock)),
    )


def _make_mail(parts: Parts, mailbox: Mailbox) -> Mail:
    refresh_s = refresh_period_s(parts.settings.member_ttl_s)
    return Mail(mailbox, parts.counters, parts.clock, refresh_s, parts.memory, wall_clock=parts.wall_clock)


def _make_housekeeping(parts: Parts, devices: DeviceContext) -> Housekeeping:
    return Housekeeping(
        devices.wheel,
        devices.calendar,
        devices.flusher,
        parts.counters,
        parts.clock,
        parts.wall_clock,
        devices.intake,
    )


def _make_web(
    parts: Parts, devices: DeviceContext, transcriber: Transcriber | None, siblings: Siblings | None
) -> WebContext:
    settings, canaries = parts.settings, parts.canaries
    bodies = ByteBudget(settings.buffers["bodies"])
    return WebContext(
        live=parts.live,
        broker=parts.broker,
        devices=devices,
        metrics=MetricsPage(_make_collector(parts, _buffers(parts, devices, bodies))),
        results_topic=settings.kafka_results_topic,
        http_publish=settings.publishes_over_http,
        trusted_proxies=settings.trusted_proxies,
        retry_after_s=math.ceil(settings.retry_after_s),
        policy=settings.token_policy,
        audio=None if transcriber is None else AudioContext(transcriber, _audio_limits(parts)),
        blocked=parts.blocks.blocked,
        bodies=bodies,
        siblings=siblings,
        canary=(lambda: OFF) if canaries is None else canaries.part,
    )


def _make_collector(parts: Parts, buffers: Callable[[], Mapping[str, Use]]) -> GatewayCollector:
    settings, engine, listeners = parts.settings, parts.engine, parts.listeners
    return GatewayCollector(
        parts.hub,
        parts.presence,
        parts.counters,
        lambda: parts.broker.counters,
        parts.broker.status,
        lambda: listeners.http_connections,
        lambda: None if engine is None else engine.status(),
        engine.counters.lost if isinstance(engine, WorkerPool) else {},
        parts.mailbox,
        (settings.kafka_results_topic, settings.kafka_messages_topic, settings.kafka_quarantine_topic),
        lines_lost,
        buffers,
        parts.relay.counters if settings.shares_presence else None,
    )


def _buffers(parts: Parts, devices: DeviceContext, bodies: ByteBudget) -> Callable[[], Mapping[str, Use]]:
    """The use and the limit of each part of ``buffer_bytes``."""

    def uses() -> Mapping[str, Use]:
        held = {**parts.broker.held_bytes, "bodies": bodies.taken, "uplink": devices.intake.rule.total}
        return {part: Use(held.get(part), limit) for part, limit in parts.settings.buffers.items()}

    return uses


def _audio_limits(parts: Parts) -> Callable[[], AudioLimits]:
    return lambda: parts.live.now.audio
