"""A consumer of kafka-python, with what its public methods lack."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection
from math import inf
from typing import Any, NamedTuple

from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from ..rules.topic_log import Committed, read_mark
from .kafka_connections import ConnectionManager, KafkaClient

FETCH_WAIT_MS = 250
QUIET_FETCH_WAIT_MS = 1_000  # while no records come; an empty fetch costs as much as some records
ANSWER_S = QUIET_FETCH_WAIT_MS / 1000 + 0.5  # a broker is probed after this long without an answer to a request
CLOSE_TIMEOUT_MS = 3_000


class Unreadable(NamedTuple):
    """A range of offsets that poll() cannot read: the rest of a batch, from the first record that failed.

    :ivar end: the offset after the batch
    """

    partition: TopicPartition
    first: int
    end: int


class ConsumerLink(NamedTuple):
    """A consumer and its helpers.

    :ivar sleep: ``await sleep(seconds)``; only on the consumer's own IO loop, that is, in its rebalance listener
    :ivar manager: its connections
    """

    consumer: KafkaClient
    sleep: Callable[[float], Any]
    manager: ConnectionManager

    def trouble(self) -> BaseException | None:
        """Why its last connection failed; None since one has succeeded."""
        return self.manager.trouble

    def partitions(self, topic: str) -> set[int] | None:
        """The known partition numbers, or None; never blocks."""
        numbers: set[int] | None = self.manager.cluster.partitions_for_topic(topic)
        return numbers

    def brokers_answer(self, partitions: Collection[TopicPartition], now: float) -> bool:
        """True if the leaders of these partitions and the coordinator are known to answer, without asking them: each is
        connected and has left no request unanswered for longer than a fetch may wait for records, and each leader was
        sent a fetch."""
        leaders = {self.manager.cluster.leader_for_partition(partition) for partition in partitions}
        fetches = [self.manager.oldest_request_at(leader) for leader in leaders]
        return (
            all(
                sent_at is not None and now - sent_at < ANSWER_S
                for sent_at in (*fetches, self.manager.oldest_request_at(self.consumer._coordinator.coordinator_id))
            )
            and inf not in fetches
        )

    def set_quiet(self, quiet: bool) -> None:
        """Set how long a fetch waits for records, from the next one on."""
        self.consumer._fetcher.config["fetch_max_wait_ms"] = QUIET_FETCH_WAIT_MS if quiet else FETCH_WAIT_MS

    def is_settled(self) -> bool:
        """True if the group and its coordinator need no attention from poll()."""
        coordinator = self.consumer._coordinator
        return coordinator.coordinator_id is not None and not coordinator.need_rejoin()

    def await_fetch(self, woken: threading.Event, timeout_s: float) -> dict[TopicPartition, list[Any]]:
        """Wait until ``woken`` is set, or a fetch sent by poll() is answered, and return its records.

        Cheaper than poll(), which sends tasks to the network thread; and another thread can interrupt it.
        """
        fetcher = self.consumer._fetcher
        for fetch in list(fetcher._fetch_futures):
            fetch.add_both(lambda _: woken.set())  # called at once if it is answered already
        woken.wait(timeout_s)
        woken.clear()
        records: dict[TopicPartition, list[Any]] = fetcher.fetched_records()[0]
        return records

    def insist_on_joining(self) -> None:
        """Call this when partitions are revoked, so that the following join is completed.

        After a timeout during a join, poll() resumes the join only if it is still needed. The leader detects a change
        of the topic's partitions by comparing two snapshots, which the join itself makes equal. Without this flag the
        join's answer would never be read, and the member would be stuck.
        """
        self.consumer._coordinator.request_rejoin()

    def committed(
        self, partitions: Collection[TopicPartition], timeout_ms: int
    ) -> dict[TopicPartition, Committed | None]:
        """Return the group's committed offsets in one request; the consumer's own method sends one per partition."""
        found = self.consumer._coordinator.fetch_committed_offsets(list(partitions), timeout_ms=timeout_ms)
        return {partition: _committed(found[partition]) if partition in found else None for partition in partitions}

    def read_again(self, partition: TopicPartition, offset: int) -> None:
        """Seek after poll() failed over a batch. Otherwise the rest of the batch would make the next poll() spin."""
        self.consumer._fetcher._next_partition_records = None
        self.consumer.seek(partition, offset)


def unreadable(error: BaseException) -> Unreadable | None:
    """Return the range that made poll() fail because a batch cannot be read; None if it failed for another reason.

    kafka-python decodes a batch in a generator that does not record its progress, but the traceback shows it. Before
    the next poll(), call :meth:`ConsumerLink.read_again` or close the consumer.
    """
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "_unpack_records":
            records, batch = frame.f_locals.get("self"), frame.f_locals.get("batch")
            end = getattr(batch, "next_offset", None)  # the formats before 2 have none
            if records is None or end is None:
                return None
            return Unreadable(records.topic_partition, records.next_fetch_offset, end)
        trace = trace.tb_next
    return None


def as_kafka_python(offsets: dict[TopicPartition, int], mark: str) -> dict[TopicPartition, OffsetAndMetadata]:
    """Convert offsets to the argument of a commit.

    :param mark: the metadata for each offset
    """
    return {partition: OffsetAndMetadata(offset, mark, -1) for partition, offset in offsets.items()}


def _committed(found: OffsetAndMetadata) -> Committed:
    return Committed(found.offset, read_mark(found.metadata))


def close_consumer(consumer: KafkaClient) -> None:
    """Release the partitions (the listener commits), leave the group, end the threads. Bounded; never raises."""
    with contextlib.suppress(Exception):  # it is being discarded
        consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)
    with contextlib.suppress(Exception):  # if it failed before it closed its connections
        consumer._client.close()
