"""Presences of every make for the tests of the port, and connections that do what a test says."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from cocoa_tornado.presence.grants import Grant, Lease, SlotLimits
from cocoa_tornado.presence.local import LocalPresence, LocalStore
from cocoa_tornado.presence.port import Health, Presence
from cocoa_tornado.relay.memory import Exchange, MemoryRelay
from cocoa_tornado.relay.messages import RelayMessage
from cocoa_tornado.rules.close_codes import CloseReason

CHALLENGE_S = 0.05
"""Of tests in which somebody stays silent; others have a challenge that outlasts the test."""
HEALTH = Health(silent_s=1.5, round_trip_s=0.02, queued=3)


class Connections:
    """The connections of one server. They answer challenges at once, but for those that have fallen silent.

    :ivar challenged: in the order of the pings
    :ivar evicted: with the close codes; :ivar lost: leases
    """

    def __init__(self) -> None:
        self.presence: Presence | None = None
        self.open: list[Grant] = []
        self.silent: set[Grant] = set()
        self.challenged: list[Grant] = []
        self.evicted: list[tuple[Grant, int]] = []
        self.lost: list[Lease] = []
        self.regrants: list[tuple[Grant, Grant]] = []
        self.resumptions = 0

    async def connect(self, device_id: str = "doll") -> Grant:
        assert self.presence is not None
        grant = await self.presence.claim(device_id)
        self.presence.register(grant)
        self.open.append(grant)
        return grant

    def fall_silent(self) -> None:
        """None of the connections that are open now answers any more."""
        self.silent |= set(self.open)

    def end(self, grant: Grant) -> None:
        assert self.presence is not None
        self.open.remove(grant)
        self.presence.release(grant)

    def challenge(self, grant: Grant) -> None:
        assert self.presence is not None
        self.challenged.append(grant)
        if grant not in self.silent:
            asyncio.get_running_loop().call_soon(self.presence.answered, grant)

    def evict(self, grant: Grant, reason: CloseReason) -> None:
        if grant in self.open:
            self.evicted.append((grant, reason.code))
            self.end(grant)

    def health(self, grant: Grant) -> Health | None:
        return HEALTH if grant in self.open else None

    def regranted(self, old: Grant, new: Grant) -> None:
        if old in self.open:
            self.open[self.open.index(old)] = new
            self.regrants.append((old, new))

    def resumed(self) -> None:
        self.resumptions += 1

    def lease_lost(self, lease: Lease) -> None:
        self.lost.append(lease)
        for grant in [grant for grant in self.open if grant.lease is lease]:
            self.end(grant)


class Server:
    """One server: its presence, started, and its connections."""

    def __init__(self, presence: Presence) -> None:
        self.presence, self.connections = presence, Connections()
        self.connections.presence = presence
        presence.start(self.connections)

    def waiting(self, device_id: str = "doll") -> asyncio.Task[Grant]:
        """A newcomer, which has asked when the loop turns."""
        return asyncio.ensure_future(self.presence.claim(device_id))


class PresenceStand(Protocol):
    """A store, and servers that use it.

    :ivar health_elsewhere: what a server knows of :data:`HEALTH` of another one's connections
    """

    health_elsewhere: Health | None

    async def open(self, count: int = 1, **limits: object) -> list[Server]:
        """This many servers, started and READY, with these ``SlotLimits``."""

    def fence(self, server: Server) -> None:
        """Have the store declare the server's epoch dead."""

    def cut(self, server: Server) -> None:
        """From now on nothing that others send reaches this server, and nothing of it reaches them."""

    async def close(self) -> None:
        """End all servers, and leave nothing behind."""


class LocalStand:
    health_elsewhere: Health | None = HEALTH

    def __init__(self) -> None:
        self._store, self._exchange = LocalStore(term=1), Exchange()
        self._servers: list[Server] = []

    async def open(self, count: int = 1, **limits: object) -> list[Server]:
        made = SlotLimits(**({"challenge_s": 600.0} | limits))  # type: ignore[arg-type]  # keywords of a test
        for _ in range(count):
            presence = LocalPresence(lambda: made, MemoryRelay(self._exchange), time.monotonic, self._store)
            self._servers.append(Server(presence))
        return self._servers[-count:]

    def fence(self, server: Server) -> None:
        self._store.fence(server.presence.lease.server)

    def cut(self, server: Server) -> None:
        name = server.presence.lease.server

        def loses(sender: str, receiver: str, message: RelayMessage) -> bool:
            return name in (sender, receiver)

        self._exchange.loses = loses

    async def close(self) -> None:
        for server in self._servers:
            await server.presence.close(1.0)
