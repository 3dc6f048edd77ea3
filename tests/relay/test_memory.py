"""The promises of the relay within a process beyond its port."""

from __future__ import annotations

import asyncio

import pytest

from cocoa_tornado.relay.memory import Exchange, MemoryRelay
from cocoa_tornado.relay.messages import WakeUp
from cocoa_tornado.relay.port import Fate

from .stands import Inbox, forward

pytestmark = pytest.mark.gen_test


async def test_all_that_arrives_in_a_turn_is_handed_over_in_the_next_one() -> None:
    exchange = Exchange()
    a, b = MemoryRelay(exchange), MemoryRelay(exchange)
    a.join("a")
    b.join("b")
    inbox = Inbox(b)
    for n in range(100):
        a.send("b", forward(n))
    await asyncio.sleep(0)
    assert len(inbox.arrived) == 100


async def test_the_fate_of_a_message_is_known_at_once() -> None:
    a = MemoryRelay()
    a.join("a")
    assert a.send("a", forward(1)).result() is Fate.ACCEPTED
    assert a.send("b", forward(1)).result() is Fate.NO_SERVER


async def test_two_exchanges_do_not_meet() -> None:
    a, b = MemoryRelay(), MemoryRelay()
    a.join("a")
    b.join("b")
    assert await a.send("b", forward(1)) is Fate.NO_SERVER


async def test_what_the_exchange_loses_is_accepted_and_never_arrives() -> None:
    exchange = Exchange()
    exchange.loses = lambda sender, receiver, message: isinstance(message, WakeUp)
    a, b = MemoryRelay(exchange), MemoryRelay(exchange)
    a.join("a")
    b.join("b")
    inbox = Inbox(b)
    assert await a.send("b", WakeUp(("doll",))) is Fate.ACCEPTED
    assert await a.send("b", forward(1)) is Fate.ACCEPTED
    await asyncio.sleep(0)
    assert inbox.messages == [forward(1)]


async def test_a_handler_that_ends_the_address_ends_what_came_for_it() -> None:
    exchange = Exchange()
    a, b = MemoryRelay(exchange), MemoryRelay(exchange)
    a.join("a")
    b.join("b1")
    inbox = Inbox(b)
    b.handle(WakeUp, lambda sender, message: b.join("b2"))
    a.send("b1", WakeUp(("doll",)))
    a.send("b1", forward(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert inbox.arrived == []
    assert repr(b) == "<MemoryRelay b2, 0 messages wait>"
    assert repr(exchange) == "<Exchange 2 servers>"
