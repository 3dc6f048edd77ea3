"""The routes of the admin API."""

from __future__ import annotations

from typing import Final

from ..web.application import Routes
from .block_handlers import BlockHandler
from .blocks import REFRESH, Blocks
from .connected import CLOSE, DEVICES, Connected
from .context import AdminContext
from .device import DEVICE, OneDevice
from .device_handlers import BoxHandler, ConnectionsHandler, DeviceHandler, DevicesHandler, MembersHandler
from .event_handlers import EventsHandler
from .explain import HOLDERS, Here
from .explain_handlers import ExplainHandler
from .message_handlers import MessagesHandler
from .overview import OverviewHandler
from .quarantine_handlers import QuarantinedHandler, QuarantineHandler, RequeueHandler
from .servers import Servers
from .subscribers import SUBSCRIBE, Subscribers
from .token_handlers import DeviceTokenHandler
from .top import TOP, Top
from .top_handlers import TopHandler
from .trace_answers import TRACE
from .trace_handlers import TraceHandler
from .traces import Traces

BASE: Final = "/api/v1/admin"


def admin_routes(admin: AdminContext) -> Routes:
    """All routes, for one listener."""
    shared: dict[str, object] = {"admin": admin}
    return [
        (f"{BASE}/devices", DevicesHandler, shared),
        (f"{BASE}/(devices|users|groups)/([^/]+)/connections", ConnectionsHandler, shared),
        (f"{BASE}/(users|groups)/([^/]+)/devices", MembersHandler, shared),
        (f"{BASE}/devices/([^/]+)", DeviceHandler, shared),
        (f"{BASE}/devices/([^/]+)/box", BoxHandler, shared),
        (f"{BASE}/devices/([^/]+)/block", BlockHandler, shared),
        (f"{BASE}/messages", MessagesHandler, shared),
        (f"{BASE}/explain", ExplainHandler, shared),
        (f"{BASE}/quarantine", QuarantineHandler, shared),
        (f"{BASE}/quarantine/([^/]+)/([^/]+)", QuarantinedHandler, shared),
        (f"{BASE}/quarantine/([^/]+)/([^/]+)/requeue", RequeueHandler, shared),
        (f"{BASE}/messages/(.+)", TraceHandler, shared),
        (f"{BASE}/device-token", DeviceTokenHandler, shared),
        (f"{BASE}/events", EventsHandler, shared),
        (f"{BASE}/top", TopHandler, shared),
        (f"{BASE}/overview", OverviewHandler, shared),
    ]


def answer_queries(
    servers: Servers,
    connected: Connected,
    device: OneDevice,
    blocks: Blocks,
    here: Here,
    traces: Traces,
    subscribers: Subscribers,
    top: Top,
) -> None:
    """Register the functions with which this server answers the handlers of any server."""
    servers.answer(DEVICES, connected.page)
    servers.answer(CLOSE, connected.close)
    servers.answer(DEVICE, device.answer)
    servers.answer(REFRESH, blocks.refresh)
    servers.answer(HOLDERS, here.answer)
    servers.answer(TRACE, traces.answer)
    servers.answer(SUBSCRIBE, subscribers.answer)
    servers.answer(TOP, top.answer)
