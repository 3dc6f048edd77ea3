"""Devices' connections on real sockets without a gateway: what holds of a connection alone needs no HTTP around it."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Mapping
from typing import Any

from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.connection.connection import DeviceConnection
from cocoa_tornado.connection.device_context import DeviceContext
from cocoa_tornado.connection.device_socket import DeviceSocket
from cocoa_tornado.connection.flusher import Flushed, Flusher, Housekeeping
from cocoa_tornado.connection.intake import IntakeGate
from cocoa_tornado.connection.keepalive import ExpiryCalendar, PingWheel
from cocoa_tornado.connection.limits import DeviceLimits
from cocoa_tornado.connection.mail import Mail
from cocoa_tornado.connection.protocol import PAUSED
from cocoa_tornado.counters import Counters
from cocoa_tornado.errors import BrokerError
from cocoa_tornado.hub import Hub
from cocoa_tornado.mailboxes.port import Mailbox
from cocoa_tornado.presence.grants import ConnectionDelivery, SlotLimits
from cocoa_tornado.presence.local import LocalPresence
from cocoa_tornado.presence.port import Refused
from cocoa_tornado.relay.memory import MemoryRelay
from cocoa_tornado.rules.identity import DeviceIdentity
from cocoa_tornado.rules.records import decode
from cocoa_tornado.rules.terms import Terms
from testing.raw_device import RawDevice
from testing.waiting import eventually

MESSAGES = "device.messages"
MIB = 1024 * 1024
PING_INTERVAL_S = 30.0


class FullBroker(MemoryBroker):
    """The embedded broker, with a publish queue that the test closes and opens."""

    def __init__(self) -> None:
        super().__init__()
        self.room = asyncio.Event()
        self.room.set()

    def can_write(self) -> bool:
        return self.room.is_set() and super().can_write()

    async def writable(self) -> None:
        await self.room.wait()
        await super().writable()


class RefusingBroker(MemoryBroker):
    """The embedded broker, with a topic that takes no record from a device."""

    def __init__(self, error: BrokerError) -> None:
        super().__init__()
        self.error, self.refused = error, 0

    def publish(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes] | None = None
    ) -> asyncio.Future[None]:
        if topic != MESSAGES:
            return super().publish(topic, key, value, headers)
        self.refused += 1
        refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        refused.set_exception(self.error)
        return refused


class Stand:
    """The context that the connections of a process share, on the test's own loop.

    Pings, pong timeouts and the write wait go by :attr:`now`, which only :meth:`pass_time` moves.
    """

    def __init__(
        self,
        broker: MemoryBroker | None = None,
        intake_bytes: int = 16 * MIB,
        delivery: ConnectionDelivery = "all",
        per_device: int = 1,
        mailbox: Mailbox | None = None,
        **limits: Any,
    ) -> None:
        self.now = 1000.0
        self.broker = MemoryBroker() if broker is None else broker
        self.counters, self.hub = Counters(), Hub(delivery)
        loop, made = asyncio.get_running_loop(), DeviceLimits(**limits)
        self.presence = LocalPresence(lambda: SlotLimits(per_device=per_device), MemoryRelay(), loop.time)
        self.flusher = Flusher(loop, lambda: 0.0)
        self.context = DeviceContext(
            hub=self.hub,
            presence=self.presence,
            broker=self.broker,
            counters=self.counters,
            flusher=self.flusher,
            wheel=PingWheel[Flushed](PING_INTERVAL_S, PING_INTERVAL_S, self.now),
            calendar=ExpiryCalendar[Flushed](),
            limits=lambda: made,
            messages_topic=MESSAGES,
            intake=IntakeGate(intake_bytes, lambda: self.now, lambda: len(self.hub)),
            clock=lambda: self.now,
            wall_clock=lambda: self.now,
            mail=None if mailbox is None else Mail(mailbox, self.counters, lambda: self.now),
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._devices: list[RawDevice] = []

    async def start(self) -> None:
        self.presence.start(self.hub)
        self.broker.start(lambda batch: batch.done(), decode)

    async def stop(self) -> None:
        for device in self._devices:
            await device.end()
        await eventually(lambda: not list(self.context.sockets))
        self._listener.close()
        await self.presence.close(1.0)
        await self.broker.close(1.0)

    async def connect(self, device_id: str = "doll", **options: Any) -> tuple[DeviceConnection, RawDevice]:
        """A connection after the handshake, and the device at its other end."""
        device = await RawDevice.connect(self._listener.getsockname()[1], **options)
        self._devices.append(device)
        ours, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        grant = await self.presence.claim(device_id)
        identity = DeviceIdentity(device_id, 99, "1.0", (), math.inf)
        connection = DeviceConnection(DeviceSocket(ours), identity, grant, self.context)
        connection.open(1e12)
        return connection, device

    async def raw(self, device_id: str = "doll", **options: Any) -> RawDevice:
        return (await self.connect(device_id, **options))[1]

    def send(self, device_id: str, text: bytes, terms: Terms | None = None) -> int:
        """A message for the device."""
        return self.hub.send_to_device(device_id, text, 0, terms)

    async def challenged(self, device_id: str) -> str:
        """Why a second connection of the device is refused, once the first has been asked for a sign of life."""
        try:
            self.presence.release(await self.presence.claim(device_id))
        except Refused as refused:
            return refused.reason
        return ""

    def pass_time(self, seconds: float, step_s: float = 0.5) -> None:
        """As much as the housekeeping does in that time; what it asks for goes out in this loop turn."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + step_s)
            self.housekeeping.look(self.now)

    async def rest(self) -> None:
        """Let the loop and the sockets run."""
        await asyncio.sleep(0.01)

    @property
    def housekeeping(self) -> Housekeeping:
        context = self.context
        return Housekeeping(
            context.wheel,
            context.calendar,
            context.flusher,
            context.counters,
            context.clock,
            context.wall_clock,
            context.intake,
        )

    def is_connected(self, device_id: str = "doll") -> bool:
        return self.hub.is_device_connected(device_id)

    def is_paused(self, device_id: str = "doll") -> bool:
        client = self.hub.get_client_by_device(device_id)
        assert isinstance(client, DeviceConnection)
        return client.protocol.reading is PAUSED

    @property
    def published(self) -> list[bytes]:
        """What devices have said, as far as the broker has taken it."""
        return [record.value or b"" for record in self.broker.records(MESSAGES)]
