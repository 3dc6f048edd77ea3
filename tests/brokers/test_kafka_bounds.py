"""The bytes that a kafka-python consumer holds: of a batch, of a poll, and fetched."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from cocoa_tornado.brokers.kafka_bounds import BatchTooLarge, Bounds, bound_consumer, held_bytes
from cocoa_tornado.brokers.kafka_link import unreadable
from cocoa_tornado.rules.handoff import RECORD_BYTES
from testing.kafka_admin import committed_offset, writer
from testing.waiting import eventually

from .bench import SKIPPED, KafkaStand, Receiver, consuming, numbered, payloads

MIB = 1024 * 1024
PARTITION = TopicPartition("results", 0)
CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


class StubFetcher:
    """As much of kafka-python's as is bounded. Its real one takes a client, and the client a broker."""

    PartitionRecords: Any = Fetcher.PartitionRecords

    def __init__(self) -> None:
        self._completed_fetches: deque[Any] = deque()
        self._paused_completed_fetches: dict[Any, Any] = {}
        self.parts: list[Any] = []

    def _fetchable_partitions(self) -> list[TopicPartition]:
        return [PARTITION]

    def _append(self, drained: dict[Any, list[Any]], part: Any, max_records: int, update_offsets: bool) -> int:
        records = part.take(max_records)
        drained.setdefault(part.topic_partition, []).extend(records)
        return len(records)

    def fetched_records(self, max_records: int) -> list[Any]:
        drained: dict[Any, list[Any]] = {}
        while max_records > 0 and self.parts:
            if self.parts[0]:
                max_records -= self._append(drained, self.parts[0], max_records, True)
            else:
                self.parts.pop(0)
        return [record for run in drained.values() for record in run]

    def add(self, *batches: bytes) -> Any:
        part = self.PartitionRecords(0, PARTITION, MemoryRecords(b"".join(batches)))
        self.parts.append(part)
        return part


def bounded(**bounds: int) -> StubFetcher:
    fetcher = StubFetcher()
    everything = {"fetched": 10**9, "batch": 10**9, "poll": 10**9}
    bound_consumer(SimpleNamespace(_fetcher=fetcher), Bounds(**(everything | bounds)))
    return fetcher


def batch(first: int, values: list[bytes], *, magic: int = 2, codec: int = 0) -> bytes:
    builder = MemoryRecordsBuilder(magic=magic, compression_type=codec, batch_size=10**9, offset=first)
    for value in values:
        builder.append(timestamp=1, key=None, value=value)
    builder.close()
    return bytes(builder.buffer())


@pytest.mark.parametrize("codec", [0, *CODECS.values()])
def test_a_batch_within_the_bound_is_read_whole(codec: int) -> None:
    fetcher = bounded(batch=100_000)
    fetcher.add(batch(0, [b"a" * 1_000, b"b"], codec=codec), batch(2, [b"c"], codec=codec))
    found = fetcher.fetched_records(500)
    assert [(record.offset, record.value) for record in found] == [(0, b"a" * 1_000), (1, b"b"), (2, b"c")]


@pytest.mark.parametrize("codec", CODECS.values())
def test_a_batch_above_the_bound_names_its_offsets(codec: int) -> None:
    fetcher = bounded(batch=100_000)
    fetcher.add(batch(0, [b"a"]), batch(1, [b"x" * 60_000] * 2, codec=codec), batch(3, [b"b"]))
    assert [record.value for record in fetcher.fetched_records(1)] == [b"a"]
    with pytest.raises(BatchTooLarge, match="more than 100000 bytes") as caught:
        fetcher.fetched_records(500)
    assert unreadable(caught.value) == (PARTITION, 1, 3)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4"])
def test_the_bound_holds_for_the_older_formats_too(codec: str) -> None:
    fetcher = bounded(batch=100_000)
    fetcher.add(batch(0, [b"a" * 1_000], magic=1, codec=CODECS[codec]))
    assert [record.value for record in fetcher.fetched_records(500)] == [b"a" * 1_000]
    fetcher.add(batch(1, [b"x" * 60_000] * 2, magic=1, codec=CODECS[codec]))
    with pytest.raises(BatchTooLarge):
        fetcher.fetched_records(500)


def test_a_poll_ends_with_the_record_that_reaches_its_bytes() -> None:
    fetcher = bounded(poll=10_000)
    for first in (0, 10, 20):
        fetcher.add(batch(first, [b"x" * 3_000] * 10, codec=1))
    found = []
    while records := fetcher.fetched_records(500):
        assert sum(len(record.value) + RECORD_BYTES for record in records[:-1]) < 10_000
        found.append([record.offset for record in records])
    assert [offset for poll in found for offset in poll] == list(range(30))
    # Across the parts as well: one poll's bytes are not spent anew for each partition.
    assert {len(poll) for poll in found} == {4, 2}


def test_a_poll_ends_with_its_number_of_records_too() -> None:
    fetcher = bounded(poll=10_000)
    fetcher.add(batch(0, [b"x"] * 10))
    assert [len(fetcher.fetched_records(4)) for _ in range(3)] == [4, 4, 2]


def test_a_record_larger_than_a_poll_is_read_alone() -> None:
    fetcher = bounded(poll=100)
    fetcher.add(batch(0, [b"x" * 3_000] * 3))
    assert [len(fetcher.fetched_records(500)) for _ in range(3)] == [1, 1, 1]


def test_headers_count_with_their_records() -> None:
    fetcher = bounded(poll=10_000)
    builder = MemoryRecordsBuilder(magic=2, compression_type=0, batch_size=10**9)
    for _ in range(9):
        builder.append(timestamp=1, key=None, value=b"x", headers=[("trace", b"t" * 3_000), ("none", None)])
    builder.close()
    fetcher.add(bytes(builder.buffer()))
    assert [len(fetcher.fetched_records(500)) for _ in range(3)] == [4, 4, 1]


def test_nothing_is_asked_for_while_so_much_is_fetched_and_not_read() -> None:
    fetcher = bounded(fetched=1_000)
    assert fetcher._fetchable_partitions() == [PARTITION]
    fetch = SimpleNamespace(partition_data=SimpleNamespace(records=b"x" * 600))
    fetcher._completed_fetches.append(fetch)
    assert fetcher._fetchable_partitions() == [PARTITION]
    fetcher._paused_completed_fetches[PARTITION] = fetch
    assert (held_bytes(fetcher), fetcher._fetchable_partitions()) == (1_200, [])
    fetcher._completed_fetches.clear()
    assert fetcher._fetchable_partitions() == [PARTITION]


# -- on a broker


async def write_packed(stand: KafkaStand, codec: str, values: list[bytes]) -> None:
    """All of them in one batch."""

    def send() -> None:
        size = sum(map(len, values)) + 10_000
        with writer(
            stand.server.bootstrap, compression_type=codec, batch_size=size, max_request_size=size, linger_ms=500
        ) as producer:
            for value in values:
                producer.send(stand.results, value=value)

    await asyncio.to_thread(send)


@pytest.mark.kafka
@pytest.mark.apache
@pytest.mark.gen_test(timeout=90)
@SKIPPED
@pytest.mark.parametrize("codec", CODECS)
async def test_a_batch_that_decompresses_to_too_much_is_skipped_counted_and_logged_once(
    kafka: Any, codec: str, caplog: pytest.LogCaptureFixture
) -> None:
    stand, receiver = KafkaStand(kafka), Receiver()
    await stand.create(stand.results, max_message_bytes=str(4 * MIB))
    async with consuming(await stand.broker(batch_bytes=2 * MIB), receiver) as broker:
        await stand.write(numbered(0, 2))
        await write_packed(stand, codec, [b"doll|" + bytes(MIB)] * 3)
        await write_packed(stand, codec, payloads(2, 3))
        await receiver.has(5)
        await eventually(lambda: broker.status().lag == 0)
        assert broker.counters.quarantined == {"unreadable": 3}
        assert broker.counters.reconnects == 0
    assert receiver.payloads == payloads(0, 5)
    [line] = [line for line in caplog.records if line.getMessage() == "unreadable records skipped"]
    assert (line.levelno, line.__dict__["origin"]) == (logging.WARNING, f"{stand.results}/0@2-4")
    assert "decompresses to more than 2097152 bytes" in line.__dict__["error"]
    found = await asyncio.to_thread(committed_offset, kafka.bootstrap, stand.options.group, stand.results)
    assert found == 8
