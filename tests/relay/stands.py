"""Relays of every make for the tests of the port."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final, Protocol

from cocoa_tornado.relay.memory import Exchange, MemoryRelay
from cocoa_tornado.relay.messages import Forward, ForwardedMessage, RelayMessage, WakeUp
from cocoa_tornado.relay.port import Fate, Relay, RelayLimits
from cocoa_tornado.relay.redis import RedisRelay
from testing.redis_server import RedisServer

SERVERS: Final = "cocoa:{box}:p:servers"


class RelayStand(Protocol):
    """A transport, and relays that use it."""

    async def open(self, count: int, limits: RelayLimits | None = None) -> list[Relay]:
        """This many relays that can reach each other, not joined yet."""

    async def close(self) -> None:
        """End them all, and leave nothing behind."""


class MemoryStand:
    def __init__(self) -> None:
        self._relays: list[Relay] = []

    async def open(self, count: int, limits: RelayLimits | None = None) -> list[Relay]:
        exchange = Exchange(limits)
        self._relays += [MemoryRelay(exchange) for _ in range(count)]
        return self._relays[-count:]

    async def close(self) -> None:
        for relay in self._relays:
            await relay.close(1.0)


@dataclass
class _Neighbors:
    """The resources that the relays of a :class:`RedisStand` share."""

    server: RedisServer
    sending: set[asyncio.Future[Fate]] = field(default_factory=set)


class JoinedRelay(RedisRelay):
    """Begins and ends its own epochs in Redis, which is presence's part."""

    def __init__(self, neighbors: _Neighbors, limits: RelayLimits | None) -> None:
        super().__init__(neighbors.server.url, asyncio.get_running_loop().time, limits)
        self._neighbors = neighbors

    def join(self, server: str) -> None:
        self.end_epoch()
        self._neighbors.server.command("HSET", SERVERS, server, 0)
        super().join(server)

    def send(self, server: str, message: RelayMessage) -> asyncio.Future[Fate]:
        sent = super().send(server, message)
        self._neighbors.sending.add(sent)
        sent.add_done_callback(self._neighbors.sending.discard)
        return sent

    async def close(self, timeout_s: float) -> None:
        epoch = self.server
        await super().close(timeout_s)
        if self._neighbors.sending:  # what was sent before this call comes before the end of the epoch
            await asyncio.wait(self._neighbors.sending, timeout=timeout_s)
        self.end_epoch(epoch)

    def end_epoch(self, epoch: str = "") -> None:
        epoch = epoch or self.server
        if epoch:
            self._neighbors.server.command("HDEL", SERVERS, epoch)
            self._neighbors.server.command("UNLINK", f"cocoa:{{box}}:p:in:{epoch}", f"cocoa:{{box}}:p:q:{epoch}")


class RedisStand:
    def __init__(self, server: RedisServer) -> None:
        self._neighbors = _Neighbors(server)
        self._relays: list[Relay] = []

    async def open(self, count: int, limits: RelayLimits | None = None) -> list[Relay]:
        self._relays += [JoinedRelay(self._neighbors, limits) for _ in range(count)]
        return self._relays[-count:]

    async def close(self) -> None:
        for relay in self._relays:
            await relay.close(1.0)
        self._neighbors.server.command("FLUSHALL")


class Inbox:
    """Writes down what a relay hands over: the sender and the message."""

    def __init__(self, relay: Relay) -> None:
        self.arrived: list[tuple[str, RelayMessage]] = []
        self.losses = 0
        relay.handle(Forward, self._take)
        relay.handle(WakeUp, self._take)
        relay.watch_losses(self._lose)

    def _take(self, sender: str, message: RelayMessage) -> None:
        self.arrived.append((sender, message))

    def _lose(self) -> None:
        self.losses += 1

    @property
    def messages(self) -> list[RelayMessage]:
        return [message for _, message in self.arrived]


def forward(*offsets: int, device_id: str = "doll", payload: bytes = b"{}") -> Forward:
    return Forward(tuple(ForwardedMessage(device_id, payload, 1000 + n, "results/0", n) for n in offsets))
