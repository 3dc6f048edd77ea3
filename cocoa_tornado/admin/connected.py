"""This server's connections, as operators see and close them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from ..hub import Client, Hub
from ..rules.close_codes import DISCONNECTED
from ..rules.departure import reconnect_notice
from ..web.handlers import timestamp
from .requests import Target, user_of, user_text
from .rows import ConnectionRow, DeviceRow, FirstIds, Page, Selection, page_of
from .servers import Topic

CHUNK: Final = 2_000
"""Devices that are looked at, or closed, in one turn of the loop: about a millisecond."""


class CloseOrder(msgspec.Struct, frozen=True):
    """The connections to close.

    :ivar kind, id: as in :class:`~.requests.Target`
    :ivar after_ms: when the devices should reconnect; None: they get no such message
    """

    kind: str
    id: str
    after_ms: int | None = None


class Closed(msgspec.Struct, frozen=True):
    """:ivar closed: how many connections one server has closed"""

    closed: int


DEVICES: Final = Topic("devices", Selection, Page)
CLOSE: Final = Topic("close", CloseOrder, Closed)


class Connected:
    """The devices of one server's Hub. IOLoop thread only; long work is divided between turns of the loop.

    :param name: returns the name of this server
    :param wall_clock: Unix seconds
    """

    def __init__(self, hub: Hub, name: Callable[[], str], wall_clock: Callable[[], float]) -> None:
        self._hub, self._name, self._wall_clock = hub, name, wall_clock

    def __repr__(self) -> str:
        return f"<Connected {self._hub!r}>"

    @property
    def server(self) -> str:
        """The name of this server."""
        return self._name()

    async def page(self, selection: Selection) -> Page:
        """A page of the devices that are connected here."""
        devices, first = list(self._selected(selection)), FirstIds(selection)
        for begin in range(0, len(devices), CHUNK):
            if begin:
                await asyncio.sleep(0)
            first.add(devices[begin : begin + CHUNK])
        return page_of(first.ids, selection.limit, self.row_of, first.fitting)

    def row_of(self, device_id: str) -> DeviceRow | None:
        """One device; None: it is not connected here."""
        identity = self._hub.identity_of(device_id)
        if identity is None:
            return None
        return DeviceRow(
            device_id=device_id,
            user_id=msgspec.Raw(user_text(identity.user_id).encode()),
            groups=identity.groups,
            connections=tuple(map(self._connection_row, self._hub.clients_of(device_id))),
        )

    async def close(self, order: CloseOrder) -> Closed:
        """Close the connections of a device, a user or a group, after writing the messages that are queued for them."""
        clients = [
            client
            for device_id in self.devices_of(Target(order.kind, order.id))
            for client in self._hub.clients_of(device_id)
        ]
        notice = b"" if order.after_ms is None else reconnect_notice(order.after_ms)
        for at, client in enumerate(clients):
            if at and at % CHUNK == 0:
                await asyncio.sleep(0)
            client.end(DISCONNECTED, keep_queued=True, notice=notice)
        return Closed(len(clients))

    def devices_of(self, target: Target) -> Collection[str]:
        """The connected devices of a target: a live view."""
        if target.kind == "users":
            return self._hub.devices_of_user(user_of(target.id))
        if target.kind == "groups":
            return self._hub.devices_of_group(target.id)
        return (target.id,) if self._hub.is_device_connected(target.id) else ()

    def _selected(self, selection: Selection) -> Collection[str]:
        """The devices of the user or the group, or all."""
        if selection.user is None and selection.group is None:
            return self._hub.devices()
        named = [] if selection.user is None else [self._hub.devices_of_user(user_of(selection.user))]
        named += [] if selection.group is None else [self._hub.devices_of_group(selection.group)]
        return named[0] if len(named) == 1 else set(named[0]).intersection(named[1])

    def _connection_row(self, client: Client) -> ConnectionRow:
        health, grant = client.health, client.grant
        return ConnectionRow(
            server=self.server,
            generation=f"{grant.generation.term}.{grant.generation.number}",
            connected_at=timestamp(client.connected_at),
            ip=client.remote_ip,
            version=client.identity.device_version,
            rtt_ms=None if health.round_trip_s is None else round(health.round_trip_s * 1000, 1),
            queue=health.queued,
            last_activity=timestamp(self._wall_clock() - health.silent_s),
        )
