"""The consuming half of the Kafka adapter, with kafka-python.

The rebalance listener (``kafka_listener``) runs on a thread of kafka-python while this one is blocked, so the two share
the books (``kafka_reading``) without a lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors

from ..rules.handoff import Span
from ..rules.pacing import Probe
from ..rules.records import Record, Rejected
from ..rules.topic_log import Committed
from .kafka_clients import KafkaClients
from .kafka_connections import KafkaClient
from .kafka_failures import GROUP_MOVED_ON, describe, is_retriable
from .kafka_library import CALL_S
from .kafka_link import ConsumerLink, Unreadable, as_kafka_python, close_consumer, unreadable
from .kafka_listener import RebalanceListener
from .kafka_reading import PAUSED_POLL_S, POLL_S, Reading, ReadingContext, TopicMissing
from .kafka_topics import ensure_topics

QUIET_WAIT_S = 1.0  # outside of poll(), for the answer to a fetch; a stop interrupts it
JOIN_POLL_S = 0.5  # kafka-python restarts a join that is answered between two polls, so poll often
CALL_MS = int(CALL_S * 1000)


class KafkaConsuming(Reading[TopicPartition]):
    """Runs one consumer after another, each until it fails."""

    pace_s = 0.003  # a poll costs more than the records that it returns then

    def __init__(self, context: ReadingContext, clients: KafkaClients) -> None:
        super().__init__(context, clients)
        self._clients = clients
        self._link: ConsumerLink  # of the current session
        self._choked: Unreadable | None = None  # where this installation lacks what it takes to read on
        self._tried_again: Unreadable | None = None
        self._woken = threading.Event()  # interrupts the wait for a fetch
        self._rests = False  # it waits for records outside of poll()

    def stop(self, patience_s: float, finished: Callable[[], None]) -> None:
        super().stop(patience_s, finished)
        self._woken.set()

    # -- connecting

    def _session(self) -> None:
        self._availability.connecting(f"connecting to {','.join(self._options.bootstrap)}")
        ensure_topics(self._clients, self._options)
        if not self._is_to_join():
            return
        link = self._clients.consumer()
        consumer, self._link = link.consumer, link
        self._has_consumer = True
        try:
            self._begin_session()
            consumer.subscribe([self._options.results_topic], listener=RebalanceListener(self, link))
            self._await_metadata(link)
            while not self._stopping.is_set():
                self._turn(consumer)
            self._drain()  # closing the consumer then commits, through the listener
        finally:
            close_consumer(consumer)
            self.forget()
            self._has_consumer = False

    def _await_metadata(self, link: ConsumerLink) -> None:
        """Wait for metadata: a leader that does not know the partitions yet would assign none, and cause another
        join."""
        deadline = time.monotonic() + CALL_S
        while not link.partitions(self._options.results_topic) and time.monotonic() < deadline:
            if self._stopping.wait(0.01):
                return

    # -- one turn

    def _turn(self, consumer: KafkaClient) -> None:
        self._let_records_gather()
        self._settle()
        self._resolve_if_needed()
        held = self._apply_pressure(consumer)
        try:
            fetched = self._poll(consumer, held)
        except Exception as error:
            fetched = {}
            if is_retriable(error):
                self._probe_pace.hurry()  # the probe determines what it means
                self._stopping.wait(0.1)
            elif not self._get_past(error):
                raise
        if fetched:
            self._route(consumer, fetched)
        self._commit_if_due()
        self._look_at_log()
        self._probe_if_due(consumer)
        if self._clients.tokens is not None:
            self._clients.tokens.refresh_if_due()
        self._availability.alive()

    def _poll(self, consumer: KafkaClient, held: bool) -> dict[TopicPartition, list[Any]]:
        self._rests = self._is_quiet() and not held and self._link.is_settled()
        self._link.set_quiet(self._rests)
        if self._rests:
            fetched = self._link.await_fetch(self._woken, QUIET_WAIT_S)
            if fetched or self._stopping.is_set():
                return fetched
            timeout_s = 0.0  # it sends the next fetch
        else:
            timeout_s = JOIN_POLL_S if not self._assignment.is_member else PAUSED_POLL_S if held else POLL_S
        polled: dict[TopicPartition, list[Any]] = consumer.poll(timeout_ms=int(timeout_s * 1000))
        return polled

    def _apply_pressure(self, consumer: KafkaClient) -> bool:
        """Pause or resume according to the watermarks; return True while reading must pause. Survives rebalances,
        because it checks every time."""
        held = self._must_hold()
        assigned, paused = consumer.assignment(), consumer.paused()
        unresolved = self._assignment.unresolved or set()
        wanted = assigned if held else unresolved
        if wanted - paused:
            consumer.pause(*(wanted - paused))
        if paused - wanted:
            consumer.resume(*(paused - wanted))
        return held or bool(unresolved)

    def _route(self, consumer: KafkaClient, fetched: dict[TopicPartition, list[Any]]) -> None:
        """Decode the polled records, and hand them over as one batch."""
        records: list[Record] = []
        offsets: list[int] = []
        sources: list[tuple[str, int]] = []
        spans: list[Span] = []
        counters, decode = self._counters, self._decode
        for partition, run in fetched.items():
            ledger = self._ledger_for(partition, run[0].offset)
            if ledger is None:
                continue
            span = ledger.read(run[-1].offset + 1, pending=1)
            before = len(records)
            for record in run:
                decoded = decode(record.key, record.value, record.timestamp or 0, record.headers)
                if isinstance(decoded, Rejected):
                    self._set_aside(record, decoded.reason, span)
                    continue
                counters.key_mismatch += not decoded.key_agrees
                records.append(decoded)
                offsets.append(record.offset)
            span.done_one()  # only once all of it is entered: an exception half-way must not lead to a commit
            counters.consumed += len(run)
            if len(records) > before:
                span.pending += 1
                spans.append(span)
                sources.append((self._source(partition), len(records) - before))
            self._note_ends({partition: consumer.highwater(partition) or 0})
        self._pass_on(records, spans, offsets, sources)

    def _get_past(self, error: Exception) -> bool:
        """Continue after a batch that cannot be read: damaged on disk, or not supported by kafka-python, such as a
        header whose name is not UTF-8. Return False if it is neither."""
        where = unreadable(error)
        if where is None or where.partition not in self._assignment.ledgers:
            return False
        if isinstance(error, kafka_errors.UnsupportedCodecError):
            self._choked = where  # the batch is valid; this installation lacks something
            return False
        if self._tried_again != where:  # it may have been damaged in transit
            self._tried_again = where
            self._link.read_again(where.partition, where.first)
            return True
        self._link.read_again(where.partition, where.end)
        self._assignment.ledgers[where.partition].read(where.end, pending=0)
        origin = f"{where.partition.topic}/{where.partition.partition}@{where.first}-{where.end - 1}"
        self._count_unreadable(origin, where.end - where.first, describe(error))
        return True

    # -- called by the books

    def key(self, number: int) -> TopicPartition:
        return TopicPartition(self._options.results_topic, number)

    def number(self, partition: TopicPartition) -> int:
        number: int = partition.partition
        return number

    def member_id(self) -> str | None:
        member_id: str = self._link.consumer.group_metadata().member_id
        return member_id

    def numbers(self) -> Collection[int]:
        return self._link.partitions(self._options.results_topic) or ()

    def committed(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, Committed | None]:
        return self._link.committed(partitions, CALL_MS)

    def find_ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        ends: dict[TopicPartition, int] = self._link.consumer.end_offsets(list(partitions), timeout_ms=CALL_MS)
        return ends

    def find_beginnings(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        found: dict[TopicPartition, int] = self._link.consumer.beginning_offsets(list(partitions), timeout_ms=CALL_MS)
        return found

    def commit_and_wait(self, offsets: dict[TopicPartition, int]) -> None:
        self._link.consumer.commit(as_kafka_python(offsets, self.mark), timeout_ms=CALL_MS)

    def _resolve(self, assigned: set[TopicPartition]) -> bool:
        try:
            return super()._resolve(assigned)
        except GROUP_MOVED_ON:
            return False

    def begin_at(self, starts: dict[TopicPartition, int]) -> bool:
        consumer = self._link.consumer
        # Seek all of them first: position() asks the brokers as long as any partition has no position.
        for partition, start in starts.items():
            consumer.seek(partition, start)
        # poll() may have had its own reset in progress, which position() waits for; so check, and seek again.
        return all(consumer.position(partition, timeout_ms=CALL_MS) == start for partition, start in starts.items())

    def commit_later(self, offsets: dict[TopicPartition, int]) -> None:
        def answered(_: object, answer: object) -> None:
            self.on_commit(offsets, answer if isinstance(answer, Exception) else None)

        self._link.consumer.commit_async(as_kafka_python(offsets, self.mark), answered)

    def _probe_if_due(self, consumer: KafkaClient) -> None:
        """Request something from the leaders and the coordinator: poll() cannot distinguish quiet brokers from absent
        ones."""
        now = time.monotonic()
        probe = self._probe_pace.look(now, rests=self._rests, answered=self._rests and self._brokers_answer(now))
        if probe is Probe.NOT_DUE:
            return
        topic = self._options.results_topic
        numbers = self._link.partitions(topic)
        if self._topic_seen and not numbers:
            raise TopicMissing(f"topic {topic} has been deleted")
        self._topic_seen = bool(numbers)
        assigned = sorted(self._assignment.ledgers)
        if probe is Probe.TRUST:
            self._note_ends({partition: consumer.highwater(partition) or 0 for partition in assigned})
        elif not self._ask_for_ends(consumer, assigned, numbers or ()):
            return
        for partition in assigned:  # control records move the position and are never handed over
            position = consumer.position(partition, timeout_ms=CALL_MS)
            if position is not None:
                self._assignment.ledgers[partition].skip_to(position)
        self._report_lag()
        self._report_state()

    def _brokers_answer(self, now: float) -> bool:
        """True if that is known without asking. The brokers' answers about the topic come from each leader, too."""
        return self._log_watch.has_ends and self._link.brokers_answer(self._assignment.ledgers, now)

    def _ask_for_ends(
        self, consumer: KafkaClient, assigned: Collection[TopicPartition], numbers: Collection[int]
    ) -> bool:
        """Return False if the brokers do not answer, which is then reported."""
        topic = self._options.results_topic
        try:
            if self._assignment.is_member:
                # The group's coordinator. While a join waits for other members, it would not answer.
                consumer.committed(TopicPartition(topic, 0), timeout_ms=CALL_MS)
            # The leaders of the assigned partitions; before there are any, those of all.
            asked = assigned or [TopicPartition(topic, number) for number in numbers]
            if asked:
                ends = consumer.end_offsets(asked, timeout_ms=CALL_MS)
                self._note_ends({partition: ends[partition] for partition in assigned})
        except kafka_errors.KafkaError as error:
            if not is_retriable(error):
                raise
            self._report_trouble(self._link.trouble() or error)
            return False
        return True

    def _special_trouble(self, error: BaseException) -> tuple[str, str] | None:
        return ("codec", self._codec_trouble()) if isinstance(error, kafka_errors.UnsupportedCodecError) else None

    def _lost_connection(self) -> BaseException | None:
        return self._link.trouble()

    def _standing_trouble(self) -> tuple[str, str] | None:
        if self._choked is None:
            return None
        ledger = self._assignment.ledgers.get(self._choked.partition)
        if ledger is None:
            return None
        if ledger.position <= self._choked.first:
            return "codec", self._codec_trouble()
        self._choked = None
        return None

    def _codec_trouble(self) -> str:
        where = self._choked
        origin = f"{where.partition.topic}/{where.partition.partition}@{where.first}" if where else "a batch"
        return f"{origin} is compressed in a way for which a Python package is missing (lz4, snappy or zstandard)"
