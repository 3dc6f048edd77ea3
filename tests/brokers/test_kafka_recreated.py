"""A results topic that is deleted and created again is another log: all of it is read, and nothing of it is skipped."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from cocoa_tornado.rules.topic_log import Log
from testing.kafka_admin import administrator, committed_offset, find_topic_id, recreate_topic, throw_out
from testing.waiting import eventually

from .bench import (
    MAYBE_AWAY,
    PATIENCE_S,
    KafkaStand,
    Receiver,
    consuming,
    numbered,
    payloads,
    ready,
)

RECREATED = "topic recreated"

pytestmark = [
    pytest.mark.gen_test(timeout=90),
    pytest.mark.kafka,
    pytest.mark.apache,
    MAYBE_AWAY,  # between its deletion and its creation the topic is missing
    pytest.mark.logs("kafka", "", optional=True),  # what kafka-python says of that in the clients of this test
]
SAYS_SO = pytest.mark.logs("cocoa.broker", f"^{RECREATED}$")


def lines(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    return [record.__dict__ for record in caplog.records if record.getMessage() == message]


def recreate(stand: KafkaStand, partitions: int = 1) -> None:
    recreate_topic(stand.server.bootstrap, stand.results, partitions)


def topic_id(stand: KafkaStand) -> str:
    return find_topic_id(stand.server.bootstrap, stand.results)


class Sources(Receiver):
    """Keeps where each record is said to come from."""

    def __init__(self, prompt: bool = True) -> None:
        super().__init__(prompt)
        self.origins: list[tuple[str, int]] = []

    def __call__(self, batch: Any) -> None:
        names = [name for name, records in batch.sources for _ in range(records)]
        self.origins += zip(names, batch.offsets, strict=True)
        super().__call__(batch)


@SAYS_SO
@pytest.mark.parametrize("before", [0, 5, 40], ids=lambda before: f"{before}-before")
async def test_a_topic_that_is_recreated_at_once_is_read_from_its_first_record(
    stand: KafkaStand, before: int, caplog: pytest.LogCaptureFixture
) -> None:
    await stand.create(stand.results)
    receiver = Sources()
    async with consuming(await stand.broker(), receiver) as broker:
        old_id = await asyncio.to_thread(topic_id, stand)
        await stand.write(numbered(0, before))
        await receiver.has(before)
        await asyncio.to_thread(recreate, stand)
        await stand.write(numbered(before, 30))
        await receiver.has(before + 30)
        new_id = await asyncio.to_thread(topic_id, stand)
        await eventually(lambda: bool(lines(caplog, RECREATED)), PATIENCE_S)
        await ready(broker)
        await stand.write(numbered(before + 30, 5))
        await receiver.has(before + 35)
        await eventually(lambda: broker.status().lag == 0, PATIENCE_S)
    assert receiver.payloads[:before] == payloads(0, before)
    # Each once. Where the new log outgrew the old one's position before that was noticed, its first records come late.
    assert sorted(receiver.payloads) == sorted(payloads(0, before + 35))
    assert receiver.payloads[-5:] == payloads(before + 30, 5)
    assert receiver.origins[:before] == [(f"{stand.results}/0", offset) for offset in range(before)]
    assert receiver.origins[-5:] == [(f"{stand.results}@{new_id}/0", offset) for offset in range(30, 35)]
    [line] = lines(caplog, RECREATED)
    assert (line["topic"], line["topic_id"], line["previous_id"]) == (stand.results, new_id, old_id)
    group, results = stand.options.group, stand.results
    assert await asyncio.to_thread(committed_offset, stand.server.bootstrap, group, results) == 35


@SAYS_SO
async def test_a_batch_of_the_old_log_that_is_done_late_commits_nothing_in_the_new_one(
    stand: KafkaStand, caplog: pytest.LogCaptureFixture
) -> None:
    await stand.create(stand.results)
    receiver = Receiver(prompt=False)
    group, results, bootstrap = stand.options.group, stand.results, stand.server.bootstrap
    broker = await stand.broker()
    async with consuming(broker, receiver):
        await stand.write(numbered(0, 20))
        await receiver.has(20)
        old, receiver.open = receiver.open, []
        await asyncio.to_thread(recreate, stand)
        await eventually(lambda: bool(lines(caplog, RECREATED)), PATIENCE_S)
        await stand.write(numbered(20, 30))
        await receiver.has(50)
        for batch in old:
            batch.done()
        reading = broker._consuming
        assert reading is not None
        await eventually(lambda: not reading._handoff._done)  # the thread has taken it in
        assert reading.offsets_to_commit() == {}
        assert await asyncio.to_thread(committed_offset, bootstrap, group, results) == 0
    assert receiver.payloads == payloads(0, 50)
    assert await asyncio.to_thread(committed_offset, bootstrap, group, results) == 30
    again = Receiver()
    async with consuming(await stand.broker(), again):
        await stand.write(numbered(50, 1))
        await again.has(1)
        assert again.payloads[-1:] == payloads(50, 1)


@SAYS_SO
async def test_a_topic_that_was_recreated_while_the_gateway_was_down_is_read_from_its_first_record(
    stand: KafkaStand, caplog: pytest.LogCaptureFixture
) -> None:
    """The brokers may have kept the offset, for example from a member that had not noticed."""
    await stand.create(stand.results)
    receiver, again = Receiver(), Receiver()
    broker = await stand.broker()
    async with consuming(broker, receiver):
        await stand.write(numbered(0, 20))
        await receiver.has(20)
        mark = Log(await asyncio.to_thread(topic_id, stand)).mark()
    await asyncio.to_thread(recreate, stand)
    await stand.write(numbered(20, 30))
    await asyncio.to_thread(commit, stand, 20, mark)
    async with consuming(await stand.broker(), again):
        await again.has(30)
        await stand.write(numbered(50, 1))
        await again.has(31)
    assert again.payloads == payloads(20, 31)


def commit(stand: KafkaStand, offset: int, metadata: str) -> None:
    """Write the group's offset, as a tool does."""
    with administrator(stand.server.bootstrap) as admin:
        admin.alter_group_offsets(
            stand.options.group, {TopicPartition(stand.results, 0): OffsetAndMetadata(offset, metadata, -1)}
        )


async def test_a_topic_that_was_recreated_together_with_its_offsets_while_no_gateway_ran_is_new_unless_they_are_set(
    stand: KafkaStand,
) -> None:
    """Apache Kafka deletes a topic's offsets with it, so nothing shows that the group has read a topic of this name."""
    group, results = stand.options.group, stand.results
    await stand.create(results)
    receiver, again, all_of_it = Receiver(), Receiver(), Receiver()
    async with consuming(await stand.broker(), receiver):
        await stand.write(numbered(0, 20))
        await receiver.has(20)
    await asyncio.to_thread(recreate, stand)
    assert await asyncio.to_thread(committed_offset, stand.server.bootstrap, group, results) is None
    await stand.write(numbered(20, 10))
    async with consuming(await stand.broker(), again):
        await stand.write(numbered(30, 1))
        await again.has(1)
    assert again.payloads == payloads(30, 1)
    await asyncio.to_thread(recreate, stand)
    await stand.write(numbered(40, 10))
    await asyncio.to_thread(commit, stand, 0, "")  # kafka-consumer-groups.sh --reset-offsets --to-earliest
    async with consuming(await stand.broker(), all_of_it):
        await all_of_it.has(10)
    assert all_of_it.payloads == payloads(40, 10)


@SAYS_SO
async def test_a_gateway_that_is_stopped_right_after_the_topic_was_recreated_loses_nothing(stand: KafkaStand) -> None:
    await stand.create(stand.results)
    receiver, again = Receiver(), Receiver()
    async with consuming(await stand.broker(), receiver):
        await stand.write(numbered(0, 20))
        await receiver.has(20)
        await asyncio.to_thread(recreate, stand)
        await stand.write(numbered(20, 10))
        await receiver.has(30)
    await stand.write(numbered(30, 10))
    async with consuming(await stand.broker(), again):
        await again.has(10)
        await eventually(lambda: payloads(39, 1)[0] in again.payloads, PATIENCE_S)
    assert sorted(receiver.payloads) == sorted(payloads(0, 30))
    assert again.payloads[-10:] == payloads(30, 10)  # before these, what had not been committed for the new topic


@SAYS_SO
async def test_a_topic_that_is_recreated_with_more_partitions_is_read_whole(stand: KafkaStand) -> None:
    await stand.create(stand.results, partitions=1)
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver) as broker:
        await stand.write(numbered(0, 5), partition=0)
        await receiver.has(5)
        await asyncio.to_thread(recreate, stand, partitions=3)
        for partition in range(3):
            await stand.write(numbered(0, 10, b"p%d" % partition), partition=partition)
        await receiver.has(35)
        await eventually(lambda: "3 partitions" in broker.status().detail, PATIENCE_S)
    for partition in range(3):
        device = b"p%d" % partition
        assert sorted(value for value in receiver.payloads if value.startswith(device)) == payloads(0, 10, device)


@SAYS_SO
async def test_a_topic_that_is_recreated_with_fewer_partitions_is_read_whole(stand: KafkaStand) -> None:
    await stand.create(stand.results, partitions=3)
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver) as broker:
        for partition in range(3):
            await stand.write(numbered(0, 5, b"old%d" % partition), partition=partition)
        await receiver.has(15)
        await asyncio.to_thread(recreate, stand, partitions=1)
        await stand.write(numbered(0, 30), partition=0)
        await receiver.has(45)
        await eventually(lambda: "1 partition " in broker.status().detail, PATIENCE_S)
    assert sorted(receiver.payloads[15:]) == sorted(payloads(0, 30))


@SAYS_SO
async def test_a_member_that_has_to_join_again_after_that_is_no_fresh_group(stand: KafkaStand) -> None:
    """The brokers delete a group's offsets together with the topic."""
    await stand.create(stand.results)
    receiver = Receiver()
    async with consuming(await stand.broker(probe_interval_s=3600.0), receiver):
        await stand.write(numbered(0, 5))
        await receiver.has(5)
        await asyncio.to_thread(recreate, stand)
        await stand.write(numbered(5, 30))
        await asyncio.to_thread(throw_out, stand.server.bootstrap, stand.options.group)
        await receiver.has(35)
        await stand.write(numbered(35, 1))
        await receiver.has(36)
    assert sorted(receiver.payloads) == sorted(payloads(0, 36))


@pytest.mark.parametrize("before", [0, 5])
async def test_after_an_offset_beyond_the_end_all_that_the_log_holds_is_read(stand: KafkaStand, before: int) -> None:
    """A broker that was restored from an older copy, or a leader that has lost the end."""
    await stand.create(stand.results)
    await stand.write(numbered(0, before))
    await asyncio.to_thread(commit, stand, 1000, Log(await asyncio.to_thread(topic_id, stand)).mark())
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver) as broker:
        await receiver.has(before)
        await stand.write(numbered(before, 5))
        await receiver.has(before + 5)
        await eventually(lambda: broker.status().lag == 0, PATIENCE_S)
    assert receiver.payloads == payloads(0, before + 5)
    group, results = stand.options.group, stand.results
    assert await asyncio.to_thread(committed_offset, stand.server.bootstrap, group, results) == before + 5
