"""Presence in a real Redis, for the tests of the port."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

from cocoa_tornado.presence import redis_scripts as scripts
from cocoa_tornado.presence.grants import SlotLimits
from cocoa_tornado.presence.membership import Timing
from cocoa_tornado.presence.port import Health, PresenceState
from cocoa_tornado.presence.redis import RedisPresence
from cocoa_tornado.redis_store.scripts import PREFIX
from cocoa_tornado.relay.messages import RelayMessage
from cocoa_tornado.relay.port import Fate
from cocoa_tornado.relay.redis import RedisRelay
from testing.redis_server import RedisServer
from testing.waiting import eventually

from .stands import Server

TIMING = Timing(beat_s=0.1)
SERVERS = PREFIX + b"p:servers"


def settle(redis: RedisServer, database: int = 0) -> None:
    """Begin a term that is settled."""
    with redis.client() as client:
        client.select(database)
        facts = client.info()
        run = f"{facts['run_id']}.{facts['master_replid']}"
        client.hset(scripts.META, mapping={"term": 1, "run": run, "settled": 1})


class StandRelay(RedisRelay):
    """:param cut: addresses from and to which everything is lost"""

    def __init__(self, url: str, cut: set[str]) -> None:
        super().__init__(url, time.monotonic)
        self._cut = cut

    def send(self, server: str, message: RelayMessage) -> asyncio.Future[Fate]:
        if self._cut.isdisjoint((server, self.server)):
            return super().send(server, message)
        lost: asyncio.Future[Fate] = asyncio.get_running_loop().create_future()
        lost.set_result(Fate.ACCEPTED)
        return lost


class RedisStand:
    """Each stand has a database of its own. Its first term is settled: a test does not wait for leases of nobody.

    :cvar redis: the server
    """

    health_elsewhere: Health | None = None
    redis: RedisServer
    _numbers = itertools.count()

    def __init__(self) -> None:
        self.database = next(self._numbers) % 16
        self._cut: set[str] = set()
        self._relays: list[RedisRelay] = []
        self._servers: list[Server] = []
        with self.client() as client:
            client.flushdb()
        settle(self.redis, self.database)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.redis.port}/{self.database}"

    def client(self) -> Any:
        client = self.redis.client()
        client.select(self.database)
        return client

    async def open(self, count: int = 1, **limits: object) -> list[Server]:
        made = SlotLimits(**({"challenge_s": 600.0} | limits))  # type: ignore[arg-type]  # keywords of a test
        for _ in range(count):
            relay = self.make_relay()
            self._relays.append(relay)
            self._servers.append(Server(RedisPresence(self.url, lambda: made, relay, TIMING, clock=time.monotonic)))
        await eventually(lambda: all(self._is_ready(server) for server in self._servers))
        return self._servers[-count:]

    def _is_ready(self, server: Server) -> bool:
        presence = server.presence
        knows_all = len(presence.others()) == len(self._servers) - 1
        return presence.status().state is PresenceState.READY and knows_all

    def make_relay(self) -> RedisRelay:
        """The caller closes it."""
        return StandRelay(self.url, self._cut)

    def fence(self, server: Server) -> None:
        self.end_epoch(server.presence.lease.server)

    def end_epoch(self, epoch: str) -> None:
        with self.client() as client:
            while (beat := client.hget(SERVERS, epoch)) is not None:
                stamp = b":".join(client.hmget(scripts.META, "term", "run")).decode()
                arguments = scripts.fence_arguments(stamp, epoch, int(beat))
                client.eval(scripts.TEXTS["fence"], 1, scripts.META, *arguments)

    def cut(self, server: Server) -> None:
        self.cut_off(server.presence.lease.server)

    def cut_off(self, name: str) -> None:
        self._cut.add(name)

    async def close(self) -> None:
        for server in self._servers:
            await server.presence.close(1.0)
        for relay in self._relays:
            await relay.close(1.0)
        self.clear()

    def clear(self) -> None:
        with self.client() as client:
            client.flushdb()
