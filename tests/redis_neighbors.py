"""Several gateways of one process that share presence in a real Redis."""

from __future__ import annotations

import time

from cocoa_tornado.presence.grants import SlotLimits
from cocoa_tornado.presence.port import Presence, PresenceState
from cocoa_tornado.presence.redis import RedisPresence
from cocoa_tornado.relay.port import Relay
from cocoa_tornado.service.gateway import Gateway
from testing.redis_server import RedisServer
from testing.waiting import eventually

from .harness import Neighbors
from .presence.redis_stand import TIMING, RedisStand


class RedisNeighbors(Neighbors):
    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        RedisStand.redis = server
        self._stand = RedisStand()
        self._gateways: list[Gateway] = []

    def make(self) -> tuple[Relay, Presence]:
        relay = self._stand.make_relay()
        return relay, RedisPresence(self._stand.url, SlotLimits, relay, TIMING, clock=time.monotonic)

    async def ready(self, gateway: Gateway) -> None:
        self._gateways.append(gateway)

        def is_ready(presence: Presence) -> bool:
            is_admitting = presence.status().state is PresenceState.READY
            return is_admitting and len(presence.others()) == len(self._gateways) - 1

        await eventually(lambda: all(is_ready(gateway.presence) for gateway in self._gateways))

    def close(self) -> None:
        self._stand.clear()

    def cut(self, gateway: Gateway) -> None:
        self._stand.cut_off(gateway.presence.lease.server)

    def fence(self, gateway: Gateway) -> None:
        self._stand.end_epoch(gateway.presence.lease.server)
