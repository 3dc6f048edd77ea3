"""Relays of every make for the tests of the port."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cocoa_tornado.relay.memory import Exchange, MemoryRelay
from cocoa_tornado.relay.messages import Forward, ForwardedMessage, RelayMessage, WakeUp
from cocoa_tornado.relay.port import Relay, RelayLimits


class RelayStand(Protocol):
    """A transport, and relays that use it."""

    async def open(self, count: int, limits: RelayLimits | None = None) -> list[Relay]:
        """So many relays that can reach each other, not joined yet."""

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


STANDS: dict[str, Callable[[], RelayStand]] = {"memory": MemoryStand}


class Inbox:
    """Writes down what a relay hands over: the sender and the message."""

    def __init__(self, relay: Relay) -> None:
        self.arrived: list[tuple[str, RelayMessage]] = []
        relay.handle(Forward, self._take)
        relay.handle(WakeUp, self._take)

    def _take(self, sender: str, message: RelayMessage) -> None:
        self.arrived.append((sender, message))

    @property
    def messages(self) -> list[RelayMessage]:
        return [message for _, message in self.arrived]


def forward(*offsets: int, device_id: str = "doll", payload: bytes = b"{}") -> Forward:
    return Forward(tuple(ForwardedMessage(device_id, payload, 1000 + n, "results/0", n) for n in offsets))
