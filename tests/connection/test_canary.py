"""A canary's connection: what it takes, and when it ends."""

from __future__ import annotations

import asyncio

import pytest

from cocoa_tornado.connection.canary import LIMITS, CanaryConnection
from cocoa_tornado.counters import CanaryCounters
from cocoa_tornado.hub import Hub
from cocoa_tornado.presence.grants import Grant, SlotLimits
from cocoa_tornado.presence.local import LocalPresence
from cocoa_tornado.relay.memory import MemoryRelay
from cocoa_tornado.rules.claims import Generation
from cocoa_tornado.rules.close_codes import REPLACED
from cocoa_tornado.rules.frames import text_frame
from cocoa_tornado.rules.terms import Left, Terms

pytestmark = pytest.mark.gen_test(timeout=30)

ID = "cocoa-canary-0-a"


class Stand:
    """A server with presence, and a canary connected to it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.hub, self.counters = Hub(), CanaryCounters()
        self.presence = LocalPresence(SlotLimits, MemoryRelay(), lambda: self.now)
        self.presence.start(self.hub)
        self.presence.exempt([ID])
        self.texts: list[tuple[str, bytes]] = []
        self.ended: list[CanaryConnection] = []
        self.canary = self.connect()

    def connect(self) -> CanaryConnection:
        grant = self.presence.try_claim(ID)
        assert grant is not None
        canary = CanaryConnection(
            grant,
            self.hub,
            self.presence,
            self.counters,
            lambda: self.now,
            lambda device_id, text: self.texts.append((device_id, text)),
            self.ended.append,
        )
        canary.open()
        return canary


async def a_turn() -> None:
    await asyncio.sleep(0)


async def test_it_takes_each_message_in_a_later_turn_and_in_order() -> None:
    stand = Stand()
    assert stand.hub.send_to_device(ID, b"one") == 1
    stand.canary.suggest(b"two", 0, Terms())
    stand.canary.stored(1, b"three", 0)
    stand.canary.look_again()
    stand.canary.take_over(Left())
    assert stand.texts == []
    assert stand.canary.is_queued(b"two", 0)
    assert stand.canary.health.queued == 3
    await a_turn()
    assert stand.texts == [(ID, b"one"), (ID, b"two"), (ID, b"three")]
    assert stand.counters.routed == 3


async def test_a_full_outbox_drops_what_comes_later() -> None:
    stand = Stand()
    for number in range(LIMITS.max_messages + 10):
        stand.canary.send(text_frame(b"%d" % number), 0)
    await a_turn()
    assert len(stand.texts) == LIMITS.max_messages


async def test_an_expired_message_is_not_taken() -> None:
    stand = Stand()
    stand.canary.send(text_frame(b"expired"), 0, Terms(expires_ms=1))
    await a_turn()
    assert stand.texts == []
    stand.canary.send(text_frame(b"expired"), 0, Terms(expires_ms=1))
    stand.canary.send(text_frame(b"in time"), 0)
    await a_turn()
    assert stand.texts == [(ID, b"in time")]
    assert stand.canary.health.queued == 0


async def test_without_a_valid_lease_messages_wait() -> None:
    stand = Stand()
    lease = stand.canary.grant.lease
    until, lease.until = lease.until, 0.0
    stand.hub.send_to_device(ID, b"one")
    await a_turn()
    assert stand.texts == []
    lease.until = until
    stand.hub.resumed()
    await a_turn()
    assert stand.texts == [(ID, b"one")]


async def test_eviction_frees_the_slot_and_a_late_close_does_not_end_its_successor() -> None:
    stand = Stand()
    first = stand.canary
    stand.hub.evict(first.grant, REPLACED)
    assert stand.ended == [first]
    assert stand.hub.connected == {}
    second = stand.connect()
    first.close()
    stand.hub.remove_canary(first)
    first.end(REPLACED)
    assert list(stand.hub.connected[ID]) == [second]
    assert stand.ended == [first]


@pytest.mark.logs("cocoa.presence", "lease lost")
async def test_a_lost_lease_ends_it() -> None:
    stand = Stand()
    stand.presence.lose_lease()
    assert (stand.ended, stand.canary.is_open) == ([stand.canary], False)
    assert stand.hub.connected == {}
    stand.hub.send_to_device(ID, b"one")
    await a_turn()
    assert stand.texts == []


async def test_it_goes_on_under_another_grant() -> None:
    stand = Stand()
    old = stand.canary.grant
    new = Grant(ID, old.claim, Generation(old.generation.term + 1, 1), old.lease)
    stand.hub.regranted(old, new)
    assert stand.canary.grant is new
    stand.hub.send_to_device(ID, b"one")
    await a_turn()
    assert stand.texts == [(ID, b"one")]


async def test_its_slot_is_not_counted_and_needs_no_room() -> None:
    stand = Stand()
    stand.canary.close()
    stand.presence.limits = lambda: SlotLimits(total=1)
    device = stand.presence.try_claim("doll")
    assert device is not None
    canary = stand.connect()
    assert canary.is_open
    assert stand.presence.slots_taken == 1
    assert await stand.presence.obstacle("another") == "full"
    stand.presence.release(device)
    assert stand.presence.try_claim("another") is not None
