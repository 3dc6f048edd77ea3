"""A whole gateway in the test's own process and loop, and what tests ask of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection

from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.brokers.port import Broker
from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.mailboxes.port import Mailbox
from cocoa_tornado.presence.grants import SlotLimits
from cocoa_tornado.presence.local import LocalPresence, LocalStore
from cocoa_tornado.presence.port import Presence
from cocoa_tornado.relay.memory import Exchange, MemoryRelay
from cocoa_tornado.relay.messages import RelayMessage
from cocoa_tornado.relay.port import Relay
from cocoa_tornado.rules.identity import TokenPolicy
from cocoa_tornado.rules.labels import LABELS
from cocoa_tornado.service.gateway import Gateway
from cocoa_tornado.settings import Settings
from cocoa_tornado.speech.port import SpeechEngine
from cocoa_tornado.web.turns import loop_clock
from testing.raw_device import UPGRADE, RawDevice, Response

SECRET = "a secret of thirty-two bytes, or more"
RESULTS = "transcription.results"


class Neighbors:
    """What several gateways of one process share: a store of presence, and the relay ``memory://``."""

    def __init__(self) -> None:
        self.store = LocalStore()
        self.exchange = Exchange()

    def make(self) -> tuple[Relay, Presence]:
        """Those of one more gateway, not started."""
        relay = MemoryRelay(self.exchange)
        return relay, LocalPresence(SlotLimits, relay, loop_clock(), self.store)

    async def ready(self, gateway: Gateway) -> None:
        """Wait until it may admit devices, and until it and those before it know each other."""

    def close(self) -> None:
        """The gateways have stopped."""

    def cut(self, gateway: Gateway) -> None:
        """From now on nothing reaches this gateway from the others, nor the others from it."""
        epoch = gateway.presence.lease.server

        def loses(sender: str, receiver: str, message: RelayMessage) -> bool:
            return epoch in (sender, receiver)

        self.exchange.loses = loses

    def fence(self, gateway: Gateway) -> None:
        """Have the store declare this gateway dead."""
        self.store.fence(gateway.presence.lease.server)


class Harness:
    """A gateway on a free port of loopback, and devices for it."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._raw: list[RawDevice] = []
        self._devices: list[ClientConnection] = []

    @classmethod
    async def start(
        cls,
        broker: Broker | None = None,
        engine: SpeechEngine | None = None,
        neighbors: Neighbors | None = None,
        shared_mailbox: Mailbox | None = None,
        **settings: Any,
    ) -> Harness:
        """:param neighbors: gateways of this process that share who holds which device"""
        defaults: dict[str, Any] = {"port": 0, "jwt_secret": SECRET, "drain_grace_s": 5.0, "speech": "none://"}
        relay, presence = (None, None) if neighbors is None else neighbors.make()
        gateway = Gateway(Settings(**(defaults | settings)), broker, engine, shared_mailbox, presence, relay)
        await gateway.start()
        if neighbors is not None:
            await neighbors.ready(gateway)
        return cls(gateway)

    async def stop(self) -> None:
        """Close everything that the test has left open, then drain the gateway."""
        for device in self._devices:
            if not device.transport.is_closing():
                device.transport.abort()
        await asyncio.gather(*(device.wait_closed() for device in self._devices))
        for raw in self._raw:
            await raw.end()
        await self.gateway.drain_and_stop()
        self._check_labels()

    def _check_labels(self) -> None:
        """Check that every counted label is in the list of labels, and so on ``/metrics`` from the start."""
        counters = self.gateway.counters
        counted = {f"cocoa_{row.name}": getattr(counters, row.name) for row in dataclasses.fields(counters)}
        counted["cocoa_connections_closed"] = counted.pop("cocoa_closed")
        counted["cocoa_messages_dropped"] = counted.pop("cocoa_dropped")
        counted["cocoa_speech_streams"] = counters.speech.streams
        counted["cocoa_records_quarantined"] = self.gateway.broker.counters.quarantined
        counted["cocoa_quarantine_lost"] = self.gateway.broker.counters.quarantine_lost
        for family, values in counted.items():
            if isinstance(values, dict):
                assert set(values) <= set(LABELS[family]), f"{family}: not in rules/labels.py"

    @property
    def port(self) -> int:
        return self.gateway.port

    @property
    def broker(self) -> MemoryBroker:
        assert isinstance(self.gateway.broker, MemoryBroker)
        return self.gateway.broker

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    def token(self, device_id: str = "doll", lifetime_s: float = 3600, secret: str = SECRET, **claims: object) -> str:
        request = TokenRequest(device_id, 99, lifetime_s=lifetime_s, extra_claims=claims)
        return mint(request, Signer.from_secret(secret), TokenPolicy(), time.time())

    async def connect(self, device_id: str = "doll", **options: Any) -> ClientConnection:
        """A device of the ``websockets`` package, connected."""
        return await self.connect_with(self.token(device_id), **options)

    async def connect_with(self, token: str, **options: Any) -> ClientConnection:
        options = {"ping_interval": None, "proxy": None} | options
        device = await websockets.connect(f"{self.ws_url}?token={token}", **options)
        self._devices.append(device)
        return device

    async def raw(self, device_id: str = "doll", **options: Any) -> RawDevice:
        """A connected device under the test's control."""
        device = await self.upgrade(self.token(device_id), **options)
        assert device.response.status == 101, device.response
        return device

    async def upgrade(self, token: str | None, headers: dict[str, str] | None = None, **options: Any) -> RawDevice:
        """A device that has asked for an upgrade; its ``response`` says how that went."""
        device = await self.dial(**options)
        await device.request("GET", "/ws" if token is None else f"/ws?token={token}", UPGRADE | (headers or {}))
        return device

    async def dial(self, **options: Any) -> RawDevice:
        """A TCP connection."""
        device = await RawDevice.connect(self.port, **options)
        self._raw.append(device)
        return device

    async def http(
        self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Response:
        """One request on a connection of its own."""
        return await (await self.dial()).request(method, target, headers, body)

    async def publish(self, device_id: str, text: str, **fields: object) -> None:
        """Produce a record to the results topic, as a backend would."""
        record = {"session_id": "s", "user_id": 99, "device_id": device_id, "text": text} | fields
        await self.gateway.broker.publish(RESULTS, device_id, json.dumps(record).encode())

    async def metrics(self) -> dict[str, float]:
        body = (await self.http("GET", "/metrics")).body.decode()
        lines = (line.rpartition(" ") for line in body.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}
