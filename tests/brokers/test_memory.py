"""The embedded broker's promises beyond the port."""

from __future__ import annotations

import asyncio

import pytest

from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.errors import BrokerClosed, BrokerError
from testing.waiting import eventually

from .bench import Receiver, consuming, decode

pytestmark = pytest.mark.gen_test(timeout=20)
RESULTS = "transcription.results"


async def test_it_is_ready_as_soon_as_it_is_started() -> None:
    broker = MemoryBroker()
    broker.start(Receiver(), decode)
    assert broker.status().state.value == "ready"
    await broker.close(1.0)


async def test_a_log_keeps_its_newest_records() -> None:
    broker = MemoryBroker(retained=3)
    for number in range(5):
        await broker.publish("device.messages", "doll", b"%d" % number)
    assert [(record.offset, record.value) for record in broker.records("device.messages")] == [
        (2, b"2"),
        (3, b"3"),
        (4, b"4"),
    ]


async def test_an_unread_record_is_not_dropped() -> None:
    receiver = Receiver(prompt=False)
    async with consuming(MemoryBroker(high_water=1, low_water=1, retained=3), receiver) as broker:
        await broker.publish(RESULTS, "doll", b"doll|0")
        await receiver.has(1)
        for number in range(1, 4):
            await broker.publish(RESULTS, "doll", b"doll|%d" % number)
        assert not broker.can_write()
        with pytest.raises(BrokerError, match="unread"):
            await broker.publish(RESULTS, "doll", b"doll|too many")
        waiting = asyncio.ensure_future(broker.writable())
        receiver.finish()
        await asyncio.wait_for(waiting, 5.0)
        await receiver.has(4)
        assert broker.counters.publish_errors == {RESULTS: 1}
    assert receiver.payloads == [b"doll|%d" % number for number in range(4)]


async def test_a_log_keeps_no_more_bytes_than_it_may() -> None:
    broker = MemoryBroker(retained_bytes=10_000)
    for number in range(50):
        await broker.publish("device.messages", "doll", b"%d" % number + b"x" * 1_000)
        assert broker.held_bytes["log"] <= 10_000
    assert [record.value[:2] for record in broker.records("device.messages") if record.value] == [
        b"%d" % number for number in range(43, 50)
    ]


async def test_a_record_larger_than_the_log_is_kept_alone() -> None:
    broker = MemoryBroker(retained_bytes=1_000)
    for number in range(3):
        await broker.publish("device.messages", "doll", b"%d" % number + b"x" * 5_000)
    assert [record.offset for record in broker.records("device.messages")] == [2]


async def test_callers_wait_for_room_in_bytes_and_nothing_unread_is_dropped() -> None:
    receiver, size = Receiver(prompt=False), 1_000
    async with consuming(MemoryBroker(high_water_bytes=1, retained_bytes=10_000), receiver) as broker:

        async def backend() -> None:
            for number in range(100):
                await broker.writable()
                await broker.publish(RESULTS, "doll", b"doll|%d|" % number + b"x" * size)

        publishing = asyncio.ensure_future(backend())
        await receiver.has(1)
        await eventually(lambda: not broker.can_write())
        assert broker.held_bytes["log"] < 10_000 + 2 * (size + 300)  # the last one in it, and the one being read
        with pytest.raises(BrokerError, match="unread"):
            await broker.publish(RESULTS, "doll", b"doll|too many")
        assert not publishing.done()
        receiver.finish()
        await receiver.has(100)
        await publishing
        assert broker.held_bytes["log"] <= 10_000
    assert [payload.split(b"|")[1] for payload in receiver.payloads] == [b"%d" % number for number in range(100)]


async def test_writable_ends_with_the_close() -> None:
    receiver = Receiver(prompt=False)
    broker = MemoryBroker(high_water=1, low_water=1, retained=1)
    broker.start(receiver, decode)
    await broker.publish(RESULTS, "doll", b"doll|0")
    await receiver.has(1)
    await broker.publish(RESULTS, "doll", b"doll|1")
    waiting = asyncio.ensure_future(broker.writable())
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(broker.close(0.1))
    with pytest.raises(BrokerClosed):
        await waiting
    receiver.finish()
    await closing


async def test_a_batch_that_is_done_twice_counts_once() -> None:
    receiver = Receiver(prompt=False)
    async with consuming(MemoryBroker(high_water=2, low_water=1), receiver) as broker:
        await broker.publish(RESULTS, "doll", b"doll|0")
        await eventually(lambda: len(receiver.open) == 1)
        receiver.open[0].done()
        receiver.open[0].done()
        await broker.publish(RESULTS, "doll", b"doll|1")
        await receiver.has(2)
