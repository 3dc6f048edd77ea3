"""The consuming half of the Kafka adapter: one thread that polls, decodes, hands over and commits.

The thread touches no connection and calls one thing on the IOLoop, ``add_callback``. What comes back (a batch is done,
the quarantine topic has acknowledged) arrives in thread-safe deques, which the thread empties between two polls.

The rebalance listener (``kafka_listener``) runs on a thread of kafka-python, while this one is blocked: the two share
the books without a lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata
from tornado.ioloop import IOLoop

from ..errors import BrokerError
from ..rules.backoff import Backoff
from ..rules.handoff import OffsetLedger, Span, WaterMarks
from ..rules.rate import LineBudget, RateLimit
from ..rules.records import Delivery, Rejected
from .kafka_availability import Availability
from .kafka_clients import (
    AUTH_ERRORS,
    GROUP_MOVED_ON,
    ConsumerLink,
    KafkaClient,
    KafkaClients,
    Unreadable,
    close_consumer,
    describe,
    is_retriable,
    unreadable,
)
from .kafka_listener import RebalanceListener
from .kafka_options import KafkaOptions
from .kafka_positions import Start, where_to_start
from .kafka_publisher import Publisher
from .kafka_quarantine import Quarantine
from .kafka_topics import TopicMissing, ensure_topics
from .port import Batch, BrokerCounters, Decoder

POLL_MS = 100
JOIN_POLL_MS = 500  # a join that is answered between two polls is begun again by kafka-python: be there
PAUSED_POLL_MS = 20  # nothing is fetched then; this only bounds how late the end of a pause is noticed
CALL_MS = 2_000  # one question to the brokers: offsets, positions
COMMIT_LOST_S = 30.0  # a commit without an answer for so long counts as lost; until then it is the only one
FRESH_PATIENCE_S = 15.0  # for the owner of partition 0 to fix where a fresh group starts
STANDBY_AFTER_S = 2.0  # with no partition: a leader that has just learned of the topic may still hand some out
REBALANCE_PATIENCE_S = 10.0  # a rebalance may take so long before it counts as not being available
SKIPPED_LINES = RateLimit(per_s=1, burst=20)

log = logging.getLogger("cocoa.broker")


class KafkaConsuming:
    """Owns the consumer thread. Built, started and stopped on the IOLoop; everything private is the thread's.

    :ivar stop_deadline: when a stop gives up waiting (monotonic clock); infinity while it runs
    """

    def __init__(
        self,
        options: KafkaOptions,
        clients: KafkaClients,
        publisher: Publisher,
        counters: BrokerCounters,
        availability: Availability,
        *,
        loop: IOLoop,
        sink: Callable[[Batch], None],
        decode: Decoder,
    ) -> None:
        self._options, self._clients = options, clients
        self._counters, self._availability = counters, availability
        self._loop, self._sink, self._decode = loop, sink, decode
        self._stopping = threading.Event()
        self.stop_deadline = float("inf")
        self._has_consumer = False
        self._finished: Callable[[], None] | None = None
        # What crosses from the IOLoop: the spans of a batch that is done, and its size.
        self._done: deque[tuple[list[Span], int]] = deque()
        self._quarantine = Quarantine(options.quarantine_topic, publisher, counters)
        # The books.
        self._marks = WaterMarks(high=options.high_water, low=options.low_water)
        self._ledgers: dict[TopicPartition, OffsetLedger] = {}
        self._done_here: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._unresolved: set[TopicPartition] | None = None
        self._unresolved_since = 0.0
        self._joined = False
        self._link: ConsumerLink  # of the session under way
        self._blocked = False
        self._committing_until = 0.0
        self._commit_at = self._probe_at = self._resolve_at = 0.0
        self._backoff = Backoff(base_s=0.5, cap_s=5.0)
        self._topic_seen = False
        self._choked: Unreadable | None = None  # where something is missing here that it takes to read on
        self._tried_again: Unreadable | None = None
        self._skipped_lines = LineBudget(SKIPPED_LINES)
        self._thread = threading.Thread(target=self._run, name="cocoa-kafka-consumer", daemon=True)

    # -- the IOLoop's side

    def start(self) -> None:
        self._thread.start()

    def stop(self, patience_s: float, finished: Callable[[], None]) -> None:
        """Read no more, wait for what is in flight, commit, leave the group; then call ``finished`` on the loop."""
        self._finished = finished
        self.stop_deadline = time.monotonic() + patience_s
        self._stopping.set()
        if not self._has_consumer:
            # It is still trying to connect: there is nothing to wait for, and the thread ends by itself.
            finished()

    def _hand_over(self, batch: Batch) -> None:
        self._sink(batch)

    # -- the thread: connecting

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._session()
            except TopicMissing as error:
                self._availability.down("topic", str(error))
            except (kafka_errors.KafkaError, BrokerError) as error:
                self._report_trouble(error)
            except Exception as error:
                if self._availability.down("failed", describe(error)):
                    log.exception("consumer failed, starts again")
            self._availability.alive()
            self._stopping.wait(self._backoff.next_s())
        if self._finished is not None:
            self._loop.add_callback(self._finished)

    def _session(self) -> None:
        """From connecting to the end of this consumer, by :meth:`stop` or by an error."""
        self._availability.connecting(f"connecting to {','.join(self._options.bootstrap)}")
        ensure_topics(self._clients, self._options)
        link = self._clients.consumer()
        consumer, self._link = link.consumer, link
        self._has_consumer = True
        try:
            self._joined, self._committing_until, self._topic_seen = False, 0.0, False
            self._unresolved, self._unresolved_since = None, time.monotonic()
            consumer.subscribe([self._options.results_topic], listener=RebalanceListener(self, link))
            self._await_metadata(link)
            while not self._stopping.is_set():
                self._turn(consumer)
            self._drain(consumer)
        finally:
            close_consumer(consumer)
            self.forget()
            self._has_consumer = False

    def _await_metadata(self, link: ConsumerLink) -> None:
        """A leader that does not know the partitions yet would assign none, and have the group join once more."""
        deadline = time.monotonic() + CALL_MS / 1000
        while not link.partitions(self._options.results_topic) and time.monotonic() < deadline:
            if self._stopping.wait(0.01):
                return

    # -- the thread: one turn

    def _turn(self, consumer: KafkaClient) -> None:
        self._settle()
        self._resolve_if_needed(consumer)
        held = self._apply_pressure(consumer)
        try:
            records = consumer.poll(
                timeout_ms=JOIN_POLL_MS if not self._joined else PAUSED_POLL_MS if held else POLL_MS
            )
        except Exception as error:
            records = {}
            if is_retriable(error):
                self._probe_at = 0.0  # which finds out what it means
                self._stopping.wait(0.1)
            elif not self._get_past(error):
                raise
        if records:
            self._route(consumer, records)
        self._commit_if_due(consumer)
        self._probe_if_due(consumer)
        if self._clients.tokens is not None:
            self._clients.tokens.refresh_if_due()
        self._availability.alive()

    def _apply_pressure(self, consumer: KafkaClient) -> bool:
        """Pause or resume to fit the marks; True while nothing may be read. Survives rebalances: it looks each time."""
        if self._blocked != self._quarantine.blocked():
            self._blocked = not self._blocked
            self._probe_at = 0.0  # which reports it
        assigned, paused = consumer.assignment(), consumer.paused()
        unresolved = self._unresolved or set()
        held = self._marks.paused or self._blocked or self._commits_lag()
        wanted = assigned if held else unresolved
        if wanted - paused:
            consumer.pause(*(wanted - paused))
        if paused - wanted:
            consumer.resume(*(paused - wanted))
        return held or bool(unresolved)

    def _commits_lag(self) -> bool:
        """More is done and not committed than may be: what reads it again after a crash would not know it again."""
        bound = self._options.max_uncommitted
        return bool(bound) and any(ledger.uncommitted > bound for ledger in self._ledgers.values())

    def _route(self, consumer: KafkaClient, records: dict[TopicPartition, list[Any]]) -> None:
        """Decode what a poll has brought, and hand it over as one batch."""
        deliveries: list[Delivery] = []
        offsets: list[int] = []
        sources: list[tuple[str, int]] = []
        spans: list[Span] = []
        counters, decode = self._counters, self._decode
        for partition, run in records.items():
            ledger = self._ledgers.get(partition)
            if ledger is None:  # revoked within this very poll; the next owner reads them
                continue
            if run[0].offset < ledger.position:
                # The log was cut off, or the topic made anew: what is said of offsets beyond is said of other records.
                ledger = self._ledgers[partition] = OffsetLedger(run[0].offset)
            span = ledger.read(run[-1].offset + 1, pending=0)
            before = len(deliveries)
            for record in run:
                decoded = decode(record.key, record.value, record.timestamp or 0)
                if isinstance(decoded, Rejected):
                    span.pending += 1
                    self._take(1)
                    self._quarantine.take(record, decoded.reason, span)
                    continue
                counters.key_mismatch += not decoded.key_agrees
                deliveries.append(decoded)
                offsets.append(record.offset)
            counters.consumed += len(run)
            if len(deliveries) > before:
                span.pending += 1
                spans.append(span)
                sources.append((f"{partition.topic}/{partition.partition}", len(deliveries) - before))
            self._ends[partition] = max(self._ends.get(partition, 0), consumer.highwater(partition) or 0)
        self._report_lag()
        if deliveries:
            self._take(len(deliveries))
            done = self._when_done(spans, len(deliveries))
            self._loop.add_callback(self._hand_over, Batch(deliveries, done, offsets, sources))

    def _get_past(self, error: Exception) -> bool:
        """Go on behind a batch that cannot be read: broken by a disk, or with what kafka-python does not understand,
        such as a header's name that is no UTF-8. False: it is nothing of that kind."""
        where = unreadable(error)
        if where is None or where.partition not in self._ledgers:
            return False
        if isinstance(error, kafka_errors.UnsupportedCodecError):
            self._choked = where  # not the batch is wrong, this installation is
            return False
        if self._tried_again != where:  # it may have been broken on its way here
            self._tried_again = where
            self._link.read_again(where.partition, where.first)
            return True
        self._link.read_again(where.partition, where.end)
        self._ledgers[where.partition].read(where.end, pending=0)
        counts = self._counters.quarantined
        counts["unreadable"] = counts.get("unreadable", 0) + where.end - where.first
        left_out = self._skipped_lines.take(time.monotonic())
        if left_out is not None:
            origin = f"{where.partition.topic}/{where.partition.partition}@{where.first}-{where.end - 1}"
            extra = {"origin": origin, "error": describe(error), "left_out": left_out}
            log.warning("records cannot be read, skipped", extra=extra)
        return True

    def _take(self, records: int) -> None:
        if self._marks.take(records):
            self._counters.pauses += 1

    def _when_done(self, spans: list[Span], size: int) -> Callable[[], None]:
        told = False

        def done() -> None:
            nonlocal told
            if not told:
                told = True
                self._done.append((spans, size))

        return done

    # -- the thread, or the listener while the thread is blocked: the books

    def _settle(self) -> None:
        """Enter what other threads have reported."""
        while self._done:
            spans, size = self._done.popleft()
            self._marks.release(size)
            for span in spans:
                span.done_one()
        self._marks.release(self._quarantine.settle())

    def settle_and_look(self, partitions: Collection[TopicPartition]) -> bool:
        """True if nothing of these partitions is in flight."""
        self._settle()
        return all(self._ledgers[partition].idle for partition in partitions if partition in self._ledgers)

    def offsets_to_commit(self) -> dict[TopicPartition, OffsetAndMetadata]:
        wanted = {partition: ledger.to_commit() for partition, ledger in self._ledgers.items()}
        return {
            partition: OffsetAndMetadata(offset, "", -1) for partition, offset in wanted.items() if offset is not None
        }

    def on_commit(self, offsets: dict[TopicPartition, OffsetAndMetadata], answer: object) -> None:
        """kafka-python's answer to a commit; called within poll() or commit_async()."""
        self._committing_until = 0.0
        if isinstance(answer, Exception):
            return  # what was to be committed still is, and the next commit covers it
        for partition, committed in offsets.items():
            if partition in self._ledgers:
                self._ledgers[partition].note_committed(committed.offset)

    def forget(self) -> None:
        """The partitions are not ours any more: a late ``done`` changes no offset from now on."""
        self._settle()
        for partition, ledger in self._ledgers.items():
            if ledger.to_commit() is None:
                self._done_here.pop(partition, None)
            else:
                self._done_here[partition] = ledger.done
        self._marks.release(self._quarantine.forget())
        self._ledgers.clear()
        self._ends.clear()
        self._joined, self._unresolved = False, None
        self._unresolved_since = time.monotonic()

    def note_assignment(self, assigned: Collection[TopicPartition]) -> None:
        self._joined = True
        self._unresolved = set(assigned)
        self._unresolved_since = time.monotonic()
        self._resolve_at = 0.0

    # -- the thread: where to begin

    def _resolve_if_needed(self, consumer: KafkaClient) -> None:
        if self._unresolved is None or not self._joined or time.monotonic() < self._resolve_at:
            return
        if self._unresolved and not self._resolve(consumer, self._unresolved):
            self._resolve_at = time.monotonic() + 0.25
            return
        self._unresolved = None
        self._probe_at = 0.0  # READY is for the probe to say, and it says so at once

    def _resolve(self, consumer: KafkaClient, assigned: set[TopicPartition]) -> bool:
        """Seek every assigned partition to where it is to be read from. False: not to be had yet, ask again."""
        try:
            starts = self._starting_points(consumer, assigned)
            if starts is None:
                return False
            # All of them first: position() asks the brokers as long as any partition has none.
            for partition in assigned:
                consumer.seek(partition, starts[partition])
            # poll() may have had a reset of its own under way; position() waits for it, so look, and seek again.
            if any(consumer.position(partition, timeout_ms=CALL_MS) != starts[partition] for partition in assigned):
                return False
        except kafka_errors.KafkaError as error:
            if not (is_retriable(error) or isinstance(error, GROUP_MOVED_ON)):
                raise
            return False
        self._ledgers = {partition: OffsetLedger(start) for partition, start in starts.items() if partition in assigned}
        return True

    def _starting_points(
        self, consumer: KafkaClient, assigned: set[TopicPartition]
    ) -> dict[TopicPartition, int] | None:
        topic = self._options.results_topic
        every = {TopicPartition(topic, number) for number in self._link.partitions(topic) or ()} | assigned
        committed = self._link.committed(every, CALL_MS)
        for tp in (tp for tp in assigned if committed[tp] is None):
            self._done_here.pop(tp, None)  # of a topic of the same name, which is gone
        start = where_to_start(
            {tp.partition for tp in assigned}, {tp.partition: offset for tp, offset in committed.items()}
        )
        without = {tp for tp in assigned if committed[tp] is None}
        found: dict[TopicPartition, int] = {}
        if start is Start.WAIT:
            if time.monotonic() - self._unresolved_since < FRESH_PATIENCE_S:
                return None
            found = consumer.end_offsets(list(without), timeout_ms=CALL_MS)
        elif start is Start.END_FOR_ALL:
            found = consumer.end_offsets(list(every), timeout_ms=CALL_MS)
        elif start is Start.BEGINNING:
            found = consumer.beginning_offsets(list(without), timeout_ms=CALL_MS)
        if found:
            # Before anything is read, so that a crash before the first record does not lose what comes then.
            consumer.commit({tp: OffsetAndMetadata(offset, "", -1) for tp, offset in found.items()}, timeout_ms=CALL_MS)
        # What was done here and could not be committed is not read again: offsets below it are done, whoever has
        # committed since.
        known = {tp: offset for tp, offset in committed.items() if offset is not None} | found
        return {tp: max(known[tp], self._done_here.get(tp, 0)) for tp in assigned}

    # -- the thread: committing, looking around

    def _commit_if_due(self, consumer: KafkaClient) -> None:
        now = time.monotonic()
        if now < self._commit_at or now < self._committing_until:
            return
        self._commit_at = now + self._options.commit_interval_s
        offsets = self.offsets_to_commit()
        if offsets:
            self._committing_until = now + COMMIT_LOST_S
            consumer.commit_async(offsets, self.on_commit)

    def _probe_if_due(self, consumer: KafkaClient) -> None:
        """Ask the leaders and the coordinator something: poll() returns nothing alike from quiet and absent brokers."""
        now = time.monotonic()
        if now < self._probe_at:
            return
        self._probe_at = now + self._options.probe_interval_s
        topic = self._options.results_topic
        numbers = self._link.partitions(topic)
        if self._topic_seen and not numbers:
            raise TopicMissing(f"topic {topic} has been deleted")
        self._topic_seen = bool(numbers)
        assigned = sorted(self._ledgers)
        try:
            if self._joined:
                # The group's coordinator. While it keeps a join waiting for other members it would not answer.
                consumer.committed(TopicPartition(topic, 0), timeout_ms=CALL_MS)
            # The leaders of our partitions; before there are any, those of all.
            asked = assigned or [TopicPartition(topic, number) for number in numbers or ()]
            if asked:
                ends = consumer.end_offsets(asked, timeout_ms=CALL_MS)
                self._ends.update({partition: ends[partition] for partition in assigned})
        except kafka_errors.KafkaError as error:
            if not is_retriable(error):
                raise
            self._report_trouble(self._link.trouble() or error)
            return
        for partition in assigned:  # control records move the position and are never handed over
            position = consumer.position(partition, timeout_ms=CALL_MS)
            if position is not None:
                self._ledgers[partition].skip_to(position)
        self._report_lag()
        self._report_state()

    def _report_trouble(self, error: BaseException) -> None:
        if isinstance(error, BrokerError):  # of our own: no access token is to be had
            self._availability.down("auth", str(error))
        elif isinstance(error, AUTH_ERRORS):
            self._availability.down("auth", f"the brokers refuse us: {describe(error)}")
        elif isinstance(error, kafka_errors.UnsupportedCodecError):
            self._availability.down("codec", self._codec_trouble())
        else:
            self._availability.down("away", f"{','.join(self._options.bootstrap)} does not answer: {describe(error)}")

    def _codec_trouble(self) -> str:
        where = self._choked
        origin = f"{where.partition.topic}/{where.partition.partition}@{where.first}" if where else "a batch"
        return f"{origin} is compressed in a way for which a Python package is missing (lz4, snappy or zstandard)"

    def _report_state(self) -> None:
        options = self._options
        if self._blocked:
            self._availability.down("quarantine", self._quarantine.trouble())
            return
        if self._choked is not None:
            ledger = self._ledgers.get(self._choked.partition)
            if ledger is not None and ledger.position <= self._choked.first:
                self._availability.down("codec", self._codec_trouble())
                return
            if ledger is not None:
                self._choked = None
        settled = self._joined and self._unresolved is None
        waited_s = time.monotonic() - self._unresolved_since
        if settled and (self._ledgers or waited_s > STANDBY_AFTER_S):
            count = len(self._ledgers)
            share = f"{count} partitions" if count != 1 else "1 partition"
            self._availability.ready(f"{','.join(options.bootstrap)}, {share} of {options.results_topic}")
            self._backoff.reset()
        elif waited_s > REBALANCE_PATIENCE_S:
            self._availability.down("group", f"group {options.group} has not come to an assignment")
        else:
            self._availability.connecting(f"joining group {options.group}")

    def _report_lag(self) -> None:
        lag = sum(max(0, self._ends.get(tp, 0) - ledger.position) for tp, ledger in self._ledgers.items())
        self._availability.set_lag(lag)

    # -- the thread: stopping

    def _drain(self, consumer: KafkaClient) -> None:
        """Wait, bounded, for what is in flight. Closing the consumer then commits, by way of the listener."""
        while time.monotonic() < self.stop_deadline:
            self._settle()
            if all(ledger.idle for ledger in self._ledgers.values()):
                return
            time.sleep(0.005)
