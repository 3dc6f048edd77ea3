"""What every broker adapter promises (cocoa_tornado.brokers.port), held against each of them."""

from __future__ import annotations

import asyncio
import time

import pytest

from cocoa_tornado.brokers.port import Batch, BrokerState
from cocoa_tornado.errors import BrokerClosed
from cocoa_tornado.rules.handoff import RECORD_BYTES
from testing.waiting import eventually

from .bench import (
    KAFKA_CLIENTS,
    KafkaStand,
    MemoryStand,
    Receiver,
    Stand,
    consuming,
    decode,
    kafka_stand,
    numbered,
    payloads,
    ready,
)

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.fixture(params=["memory", *KAFKA_CLIENTS])
def stand(request: pytest.FixtureRequest) -> Stand:
    if request.param == "memory":
        return MemoryStand()
    return kafka_stand(request.param, request.getfixturevalue("kafka"))


async def test_it_is_connecting_before_the_start_and_closed_after_the_close(stand: Stand) -> None:
    broker = await stand.broker()
    assert broker.status().state is BrokerState.CONNECTING
    await broker.close(1.0)
    assert broker.status().state is BrokerState.CLOSED


async def test_a_fresh_group_begins_at_the_newest_record(stand: Stand) -> None:
    broker, receiver = await stand.broker(), Receiver()
    if isinstance(stand, KafkaStand):
        await stand.create(stand.results)
        await stand.write(numbered(0, 3))
    else:
        await broker.publish(stand.results, "doll", b"doll|0")
    async with consuming(broker, receiver):
        await stand.write(numbered(3, 2), {})
        await receiver.has(2)
    assert receiver.payloads == payloads(3, 2)


async def test_the_first_record_after_ready_is_delivered(stand: Stand) -> None:
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver) as broker:
        await broker.publish(stand.results, "doll", b"doll|0")
        await receiver.has(1)
    assert receiver.records[0].address == "doll"
    assert receiver.records[0].timestamp_ms > 1_600_000_000_000


async def test_the_order_of_a_partition_holds_across_batches(stand: Stand) -> None:
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver) as broker:
        for start in range(0, 2000, 400):
            await stand.write(numbered(start, 400), {})
        await receiver.has(2000)
        assert receiver.payloads == payloads(0, 2000)
        assert broker.counters.consumed == 2000


async def test_a_batch_says_where_each_of_its_records_comes_from(stand: Stand) -> None:
    batches: list[Batch] = []
    broker = await stand.broker()
    broker.start(batches.append, decode)
    await ready(broker)
    await stand.write(numbered(0, 5), {})
    await stand.write([(b"doll", b"bad")], {})
    await stand.write(numbered(5, 5), {})
    await eventually(lambda: sum(len(batch.records) for batch in batches) == 10)
    found = []
    for batch in batches:
        assert len(batch.origins()) == len(batch.records)
        found += batch.origins()
        batch.done()
    assert [offset - found[0][1] for _, offset in found] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    (source,) = {source for source, _ in found}
    assert source.startswith(f"{stand.results}/0")
    await broker.close(2.0)


async def test_the_sink_is_called_on_the_loop_and_never_within_publish(stand: Stand) -> None:
    loops: list[asyncio.AbstractEventLoop] = []
    broker = await stand.broker()

    def sink(batch: Batch) -> None:
        loops.append(asyncio.get_running_loop())
        batch.done()

    broker.start(sink, decode)
    await ready(broker)
    future = broker.publish(stand.results, "doll", b"doll|0")
    assert loops == []
    await future
    await eventually(lambda: bool(loops))
    assert loops == [asyncio.get_running_loop()]
    await broker.close(2.0)


async def test_it_pauses_at_the_high_water_mark_and_goes_on_below_the_low_one(stand: Stand) -> None:
    receiver = Receiver(prompt=False)
    broker = await stand.broker(high_water=600, low_water=200)
    async with consuming(broker, receiver):
        await stand.write(numbered(0, 3000), {})
        await eventually(lambda: broker.counters.pauses == 1)
        in_flight = len(receiver.payloads)
        assert 600 <= in_flight < 600 + 500
        await asyncio.sleep(0.3)  # nothing is to come: there is no event to wait for
        assert len(receiver.payloads) == in_flight
        assert broker.status().state is BrokerState.READY
        receiver.finish()
        await receiver.has(3000)
    assert receiver.payloads == payloads(0, 3000)


async def test_it_pauses_for_bytes_as_it_does_for_records(stand: Stand) -> None:
    receiver, size = Receiver(prompt=False), 50_000
    values = [b"doll|%d|" % number + b"x" * size for number in range(120)]
    broker = await stand.broker(high_water_bytes=1_000_000)
    async with consuming(broker, receiver):
        await stand.write([(b"doll", value) for value in values], {})
        await eventually(lambda: broker.counters.pauses == 1)
        held = broker.held_bytes["handoff"]
        assert 1_000_000 <= held < 1_000_000 + 1_000_000 // 8 + size + 1_000
        await asyncio.sleep(0.3)  # nothing is to come: there is no event to wait for
        assert broker.held_bytes["handoff"] == held == sum(len(payload) + RECORD_BYTES for payload in receiver.payloads)
        assert broker.status().state is BrokerState.READY
        receiver.finish()
        await receiver.has(120)
        await eventually(lambda: broker.held_bytes["handoff"] == 0)
    assert receiver.payloads == values


async def test_a_record_larger_than_the_bound_is_handed_over_alone(stand: Stand) -> None:
    receiver = Receiver(prompt=False)
    values = [b"doll|%d|" % number + b"x" * 50_000 for number in range(4)]
    async with consuming(await stand.broker(high_water_bytes=10_000), receiver):
        await stand.write([(b"doll", value) for value in values], {})
        for number in range(4):
            await eventually(lambda: len(receiver.open) == 1)
            assert receiver.payloads == values[: number + 1]
            receiver.open.pop().done()
    assert receiver.payloads == values


async def test_a_restart_goes_on_where_the_last_batch_was_done(stand: Stand) -> None:
    receiver = Receiver()
    broker = await stand.broker()
    broker.start(receiver, decode)
    await ready(broker)
    await stand.write(numbered(0, 5), {})
    await receiver.has(5)
    await broker.stop_consuming()
    await stand.write(numbered(5, 5), {})
    again = await stand.broker()
    async with consuming(again, receiver):
        await receiver.has(10)
    if again is not broker:
        await broker.close(1.0)
    assert receiver.payloads == payloads(0, 10)


async def test_a_restart_reads_again_what_was_not_done(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("memory", "kafka_facade"):
        monkeypatch.setattr(f"cocoa_tornado.brokers.{module}.STOP_PATIENCE_S", 0.1)
    receiver = Receiver(prompt=False)
    broker = await stand.broker()
    broker.start(receiver, decode)
    await ready(broker)
    await stand.write(numbered(0, 1), {})
    await receiver.has(1)
    await broker.stop_consuming()
    receiver.finish()  # too late: the offset has been given up
    again, second = await stand.broker(), Receiver()
    async with consuming(again, second):
        await second.has(1)
    if again is not broker:
        await broker.close(1.0)
    assert second.payloads == [b"doll|0"]


async def test_stopping_waits_for_the_batches_in_flight(stand: Stand) -> None:
    receiver = Receiver(prompt=False)
    broker = await stand.broker()
    broker.start(receiver, decode)
    await ready(broker)
    await stand.write(numbered(0, 1), {})
    await receiver.has(1)
    stopping = asyncio.ensure_future(broker.stop_consuming())
    await asyncio.sleep(0.05)
    assert not stopping.done()
    receiver.finish()
    await stopping
    await broker.close(1.0)


async def test_closing_waits_no_longer_than_it_may_though_a_batch_is_never_done(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("memory", "kafka_facade"):
        monkeypatch.setattr(f"cocoa_tornado.brokers.{module}.STOP_PATIENCE_S", 60.0)
    receiver = Receiver(prompt=False)
    broker = await stand.broker()
    broker.start(receiver, decode)
    await ready(broker)
    await stand.write(numbered(0, 1), {})
    await receiver.has(1)
    # Without a bound of its own this would be the minute that stopping waits for the batch.
    async with asyncio.timeout(30.0):
        await broker.close(0.5)
    assert broker.status().state is BrokerState.CLOSED
    receiver.finish()


async def test_a_poison_record_is_set_aside_unchanged_and_stops_nothing(stand: Stand) -> None:
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver) as broker:
        await stand.write([(b"doll", b"doll|1"), (b"odd", b"\xff\x00"), (b"doll", b"doll|2")], {"trace": b"t1"})
        await receiver.has(2)
        await eventually(lambda: broker.counters.quarantined == {"not-json": 1})
        [(key, value, headers)] = await stand.read(stand.quarantine, 1)
    assert receiver.payloads == [b"doll|1", b"doll|2"]
    assert (key, value) == (b"odd", b"\xff\x00")
    assert headers == {
        "trace": b"t1",
        "cocoa.reason": b"not-json",
        "cocoa.topic": stand.results.encode(),
        "cocoa.partition": b"0",
        "cocoa.offset": b"1",
    }
    assert broker.counters.consumed == 3


async def test_the_headers_of_each_record_reach_the_decoder(stand: Stand) -> None:
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver):
        await stand.write(numbered(0, 1), {})
        await stand.write(numbered(1, 2), {"trace": b"t", "for": b"bear"})
        await stand.write(numbered(3, 1), {"trace": b"t"})
        await receiver.has(4)
    assert [record.address for record in receiver.records] == ["doll", "bear", "bear", "doll"]


async def test_a_tombstone_reaches_the_decoder(stand: Stand) -> None:
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver) as broker:
        await stand.write([(b"doll", None), (b"doll", b"doll|1")], {})
        await receiver.has(1)
        await eventually(lambda: broker.counters.quarantined == {"tombstone": 1})
        [(key, value, _)] = await stand.read(stand.quarantine, 1)
    assert (key, value) == (b"doll", None)


async def test_a_key_that_names_another_device_is_counted(stand: Stand) -> None:
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver) as broker:
        await stand.write([(None, b"doll|1"), (b"bear", b"doll|2"), (b"doll", b"doll|3")], {})
        await receiver.has(3)
        assert broker.counters.key_mismatch == 1
    assert [record.address for record in receiver.records] == ["doll"] * 3


async def test_what_is_published_is_acknowledged_in_order_with_its_headers(stand: Stand) -> None:
    acknowledged: list[int] = []
    async with consuming(await stand.broker(), Receiver()) as broker:
        futures: list[asyncio.Future[None]] = []
        for number in range(50):
            future = broker.publish(stand.messages, "doll", b"%d" % number, {"n": b"%d" % number})
            future.add_done_callback(lambda done: acknowledged.append(futures.index(done)))
            futures.append(future)
        await asyncio.gather(*futures)
        records = await stand.read(stand.messages, 50)
        assert broker.counters.published[stand.messages] == 50
    assert acknowledged == list(range(50))
    assert records == [(b"doll", b"%d" % number, {"n": b"%d" % number}) for number in range(50)]


async def test_publishing_after_the_close_is_refused(stand: Stand) -> None:
    broker = await stand.broker()
    await broker.close(1.0)
    with pytest.raises(BrokerClosed):
        broker.publish(stand.messages, "doll", b"late")


async def test_closing_twice_is_closing_once(stand: Stand) -> None:
    broker = await stand.broker()
    broker.start(Receiver(), decode)
    await ready(broker)
    await broker.close(1.0)
    await broker.close(1.0)
    assert broker.status().state is BrokerState.CLOSED


async def test_the_lag_is_what_is_not_yet_handed_over(stand: Stand) -> None:
    receiver = Receiver(prompt=False)
    async with consuming(await stand.broker(high_water=1, low_water=1), receiver) as broker:
        await eventually(lambda: broker.status().lag == 0)
        await stand.write(numbered(0, 1), {})
        await receiver.has(1)
        await stand.write(numbered(1, 7), {})
        await eventually(lambda: broker.status().lag == 7)
        receiver.finish()
        await eventually(lambda: broker.status().lag == 0)


async def test_a_queue_with_room_is_writable_at_once(stand: Stand) -> None:
    broker = await stand.broker()
    assert broker.can_write()
    await asyncio.wait_for(broker.writable(), 1.0)
    await broker.close(1.0)


async def test_a_record_is_found_by_its_offset_while_the_topic_has_it(stand: Stand) -> None:
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver) as broker:
        await stand.write([(b"doll", b"doll|0"), (None, b"bad")], {"mine": b"1"})
        await receiver.has(1)
        for offset, key, value in ((0, b"doll", b"doll|0"), (1, None, b"bad")):
            found = await broker.record_at(0, offset)
            assert found.row is not None
            assert (found.row.offset, found.row.key, found.row.value) == (offset, key, value)
            assert list(found.row.headers) == [("mine", b"1")]
            assert abs(found.row.timestamp_ms / 1000 - time.time()) < 600
            assert (found.first, found.end) == (0, 2)
        for place in ((0, 2), (0, 10**15), (7, 0), (2**31, 0)):
            assert (await broker.record_at(*place)).row is None
        async with asyncio.timeout(30):
            while (await broker.record_at(0, 0)).committed != 2:
                await asyncio.sleep(0.05)
