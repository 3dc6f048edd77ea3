"""Wires the admin API and the console of one gateway."""

from __future__ import annotations

import time
from collections.abc import Callable

from cocoa_tornado import __version__

from ..admin.connected import Connected
from ..admin.context import AdminContext
from ..admin.device import OneDevice
from ..admin.explain import Here
from ..admin.overview import OVERVIEW, Overview
from ..admin.routes import admin_routes, answer_queries
from ..admin.servers import Servers
from ..admin.subscribers import Subscribers
from ..admin.top import Top
from ..admin.trace_boxes import BoxSearch
from ..admin.trace_search import TraceSearch
from ..admin.traces import Traces
from ..admin.watchers import Watchers
from ..connection.device_context import DeviceContext
from ..console.files import read_files
from ..console.handlers import ConsoleContext, console_routes
from ..counters import Counters
from ..rules.readiness_report import Readiness
from ..rules.repeats import Repeats
from ..rules.trace_memory import TraceMemory
from ..web.application import Routes
from .closing import OpenParts
from .parts import Parts


def make_admin(
    parts: Parts, devices: DeviceContext, readiness: Callable[[], Readiness], opened: OpenParts
) -> AdminContext:
    """Create the context of the admin API's handlers, on an IOLoop. From now on this server answers the queries of
    others, and takes snapshots of its counters.

    :param readiness: which parts of this server are ready
    """
    hub, mailbox, wall_clock, name = parts.hub, parts.mailbox, parts.wall_clock, parts.listeners.server_name
    servers = Servers(parts.presence, parts.relay, name)
    opened.stop(servers.close)
    connected = Connected(hub, name, wall_clock)
    boxes = None if mailbox is None else BoxSearch(mailbox, parts.settings.mailbox_ttl_s, wall_clock)
    memory = parts.memory or TraceMemory(0, wall_clock)
    traces = Traces(memory, hub, boxes, name)
    count_lost = _counts_lost_events(parts.counters)
    subscribers = Subscribers(servers, devices.events.live, count_lost)
    opened.stop(subscribers.close)
    device = OneDevice(connected, devices.events, traces, _fenced(parts))
    loops = Repeats(0) if devices.mail is None else devices.mail.loops
    full_boxes = Repeats(0) if mailbox is None else mailbox.counters.full
    top = Top(hub, devices.reconnects, loops, full_boxes, memory, name, wall_clock)
    answer_queries(servers, connected, device, parts.blocks, Here(hub, name), traces, subscribers, top)
    overview = _make_overview(parts, readiness)
    opened.stop(overview.stop)
    overview.start()
    servers.answer(OVERVIEW, overview.answer)
    watchers = Watchers(servers, devices.events.live, count_lost)
    opened.stop(watchers.close)
    search = TraceSearch(parts.broker, parts.settings.kafka_results_topic, boxes, wall_clock)
    return AdminContext(servers, connected, parts.blocks, watchers, search, mailbox)


def operators_routes(parts: Parts, admin: AdminContext) -> Routes:
    """The routes of the admin API and of the console, for one listener."""
    if parts.settings.console == "off":
        return admin_routes(admin)
    console = ConsoleContext(read_files(), parts.listeners.own_device_port)
    return [*admin_routes(admin), *console_routes(console)]


def _counts_lost_events(counters: Counters) -> Callable[[int], None]:
    def add(count: int) -> None:
        counters.admin_events_lost += count

    return add


def _fenced(parts: Parts) -> Callable[[], int]:
    """How often this server was fenced."""
    return lambda: parts.presence.counters.fenced


def _make_overview(parts: Parts, readiness: Callable[[], Readiness]) -> Overview:
    listeners = parts.listeners
    return Overview(
        listeners.server_name,
        __version__,
        parts.wall_clock(),
        parts.hub,
        parts.counters,
        parts.broker,
        parts.mailbox,
        readiness,
        listeners.own_device_port,
        _fenced(parts),
        lambda: parts.presence.counters.declared_dead,
        time.monotonic,
        parts.wall_clock,
    )
