"""Offsets without a record for a device: aborted transactions, the ends of transactions, deleted parts of the log."""

from __future__ import annotations

import asyncio
import time

import pytest

from testing.kafka_admin import committed_offset, delete_records, writer
from testing.waiting import eventually

from .bench import (
    PATIENCE_S,
    KafkaStand,
    Receiver,
    consuming,
    numbered,
    payloads,
)

pytestmark = [pytest.mark.gen_test(timeout=90), pytest.mark.kafka, pytest.mark.apache]


async def has_committed(stand: KafkaStand, offset: int) -> None:
    """Return once the group has; for the lag is as of the last look at the topic's end, which may be before a hole."""
    deadline = time.monotonic() + PATIENCE_S
    group, results = stand.options.group, stand.results
    while (found := await asyncio.to_thread(committed_offset, stand.server.bootstrap, group, results)) != offset:
        assert time.monotonic() < deadline, f"{found} is committed after {PATIENCE_S} s, not {offset}"
        await asyncio.sleep(0.1)


async def test_what_a_backend_has_rolled_back_reaches_no_device(stand: KafkaStand) -> None:
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver) as broker:

        def send() -> None:
            with writer(stand.server.bootstrap, transactional_id=f"backend.{stand.results}") as producer:
                producer.init_transactions()
                for number, ends in enumerate((producer.commit_transaction, producer.abort_transaction) * 2):
                    producer.begin_transaction()
                    producer.send(stand.results, value=b"doll|%d" % number).get(10)
                    ends()

        await asyncio.to_thread(send)
        await stand.write(numbered(4, 1))
        await receiver.has(3)
        await eventually(lambda: broker.status().lag == 0)
    assert receiver.payloads == [b"doll|0", b"doll|2", b"doll|4"]


async def test_offsets_that_hold_nothing_do_not_count_as_uncommitted(stand: KafkaStand) -> None:
    receiver = Receiver()
    async with consuming(await stand.broker(max_uncommitted=5, max_poll_records=2), receiver) as broker:

        def send() -> None:
            with writer(stand.server.bootstrap, transactional_id=f"backend.{stand.results}") as producer:
                producer.init_transactions()
                for _ in range(10):
                    producer.begin_transaction()
                    producer.send(stand.results, value=b"doll|never").get(10)
                    producer.abort_transaction()

        await asyncio.to_thread(send)  # twenty offsets: a record each, and the end of its transaction
        await eventually(lambda: broker.status().lag == 0)
        await stand.write(numbered(0, 20))
        await receiver.has(20)
        await eventually(lambda: broker.status().lag == 0)
    again = Receiver()
    async with consuming(await stand.broker(), again):
        await stand.write(numbered(20, 1))
        await again.has(1)
    assert [*receiver.payloads, *again.payloads] == [value for _, value in numbered(0, 21)]


async def test_a_long_run_of_offsets_that_hold_nothing_stops_nothing_and_is_committed(stand: KafkaStand) -> None:
    receiver = Receiver()
    async with consuming(await stand.broker(max_uncommitted=5, max_poll_records=2), receiver) as broker:

        def send() -> None:
            with writer(stand.server.bootstrap, transactional_id=f"backend.{stand.results}") as producer:
                producer.init_transactions()
                producer.begin_transaction()
                for _ in range(2000):
                    producer.send(stand.results, value=b"doll|never")
                producer.flush()
                producer.abort_transaction()

        await stand.write(numbered(0, 20))
        await asyncio.to_thread(send)
        await has_committed(stand, 20 + 2001)  # with the end of the transaction
        assert receiver.payloads == payloads(0, 20)
        await stand.write(numbered(20, 20))
        await asyncio.to_thread(send)
        await has_committed(stand, 40 + 2 * 2001)
        await eventually(lambda: broker.status().lag == 0)
    assert receiver.payloads == payloads(0, 40)


@pytest.mark.parametrize("new", [0, 20])
async def test_what_the_log_has_deleted_before_it_was_read_stops_nothing(stand: KafkaStand, new: int) -> None:
    async with consuming(await stand.broker(), Receiver()):
        pass  # the group's position is fixed
    await stand.write(numbered(0, 2000))
    await asyncio.to_thread(delete_records, stand.server.bootstrap, stand.results, 2000)
    await stand.write(numbered(2000, new))
    receiver = Receiver()
    async with consuming(await stand.broker(max_uncommitted=5, max_poll_records=2), receiver) as broker:
        await receiver.has(new)
        await has_committed(stand, 2000 + new)
        await eventually(lambda: broker.status().lag == 0)
    assert receiver.payloads == payloads(2000, new)
