"""The consuming half of the Kafka adapter: one thread that polls, decodes, hands over and commits.

The thread touches no connection and calls one thing on the IOLoop, ``add_callback``. What comes back (a batch is done,
the quarantine topic has acknowledged) arrives in thread-safe deques, which the thread empties between two polls.

kafka-python runs the rebalance listener on its own IO thread, while this thread is blocked in ``poll()`` or in
``close()``: the two never run at once, so they share the books without a lock.
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
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.structs import OffsetAndMetadata
from tornado.ioloop import IOLoop

from ..rules.backoff import Backoff
from ..rules.handoff import OffsetLedger, Span, WaterMarks
from ..rules.records import Delivery, Rejected
from .kafka_availability import Availability
from .kafka_clients import AUTH_ERRORS, ConsumerLink, KafkaClient, KafkaClients, close_consumer, describe, is_retriable
from .kafka_options import KafkaOptions
from .kafka_positions import Start, where_to_start
from .kafka_publisher import Publisher
from .kafka_quarantine import Quarantine
from .port import Batch, BrokerCounters, Decoder

POLL_MS = 100
JOIN_POLL_MS = 500  # a join that is answered between two polls is begun again by kafka-python: be there
PAUSED_POLL_MS = 20  # nothing is fetched then; this only bounds how late the end of a pause is noticed
CALL_MS = 2_000  # one question to the brokers: offsets, positions
REVOKE_PATIENCE_S = 5.0  # for batches in flight when their partitions are taken away
COMMIT_PATIENCE_S = 3.0
COMMIT_LOST_S = 30.0  # a commit without an answer for so long counts as lost; until then it is the only one
FRESH_PATIENCE_S = 15.0  # for the owner of partition 0 to fix where a fresh group starts
STANDBY_AFTER_S = 2.0  # with no partition: a leader that has just learned of the topic may still hand some out
REBALANCE_PATIENCE_S = 10.0  # a rebalance may take so long before it counts as not being available


log = logging.getLogger("cocoa.broker")


class _TopicMissing(Exception):
    """The results topic does not exist and is not, or cannot be, created."""


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python ships no types
    """Passes the group's news on to the books. Called on kafka-python's IO thread, see the module's docstring."""

    def __init__(self, books: KafkaConsuming, link: ConsumerLink) -> None:
        self._books, self._link, self._consumer = books, link, link.consumer

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Wait for what is in flight, bounded, and commit: the next owner goes on there."""
        self._link.insist_on_joining()
        books = self._books
        deadline = min(time.monotonic() + REVOKE_PATIENCE_S, books.stop_deadline)
        while not books.settle_and_look(revoked) and time.monotonic() < deadline:
            await self._link.sleep(0.01)
        offsets = books.offsets_to_commit()
        if offsets:
            committing = self._consumer.commit_async(offsets, books.on_commit)
            deadline = time.monotonic() + COMMIT_PATIENCE_S
            while not committing.is_done and time.monotonic() < deadline:
                await self._link.sleep(0.01)
        books.forget()

    async def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        """The group has gone on without us: there is nothing that we may still commit."""
        self._link.insist_on_joining()
        self._books.forget()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Nothing is fetched before the thread has decided where to begin."""
        self._consumer.pause(*assigned)
        self._books.note_assignment(assigned)


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
        backoff = Backoff(base_s=0.5, cap_s=5.0)
        while not self._stopping.is_set():
            try:
                self._session(backoff)
            except _TopicMissing as error:
                self._availability.down("topic", str(error))
            except kafka_errors.KafkaError as error:
                self._report_trouble(error)
            except Exception as error:
                log.exception("consumer failed, starts again")
                self._availability.down("failed", describe(error))
            self._availability.alive()
            self._stopping.wait(backoff.next_s())
        if self._finished is not None:
            self._loop.add_callback(self._finished)

    def _session(self, backoff: Backoff) -> None:
        """From connecting to the end of this consumer, by :meth:`stop` or by an error."""
        self._availability.connecting(f"connecting to {','.join(self._options.bootstrap)}")
        self._ensure_topics()
        link = self._clients.consumer()
        consumer, self._link = link.consumer, link
        self._has_consumer = True
        try:
            backoff.reset()
            self._joined, self._committing_until = False, 0.0
            self._unresolved, self._unresolved_since = None, time.monotonic()
            consumer.subscribe([self._options.results_topic], listener=_Listener(self, link))
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

    def _ensure_topics(self) -> None:
        """See that the topics exist, create those that may be created. Raises _TopicMissing for the results topic."""
        options = self._options
        admin = self._clients.admin()
        try:
            described = admin.describe_topics(list(options.topics))
            errors = {topic["name"]: kafka_errors.for_code(topic["error_code"]) for topic in described}
            missing = [name for name, error in errors.items() if error is kafka_errors.UnknownTopicOrPartitionError]
            refused = {name: error.__name__ for name, error in errors.items() if issubclass(error, AUTH_ERRORS)}
            if missing and options.create_topics:
                wanted = {"num_partitions": options.partitions, "replication_factor": options.replication}
                answer = admin.create_topics({topic: dict(wanted) for topic in missing}, raise_errors=False)
                for topic in answer["topics"]:
                    error = kafka_errors.for_code(topic["error_code"])
                    if error not in (kafka_errors.NoError, kafka_errors.TopicAlreadyExistsError):
                        refused[topic["name"]] = topic.get("error_message") or error.__name__
                created = [topic for topic in missing if topic not in refused]
                if created:
                    log.info("topics created", extra={"topics": ",".join(created)})
                    admin.wait_for_topics(created, timeout_ms=5_000)
            elif missing:
                refused |= dict.fromkeys(missing, "it does not exist, and create_topics is off")
        finally:
            admin.close()
        if options.results_topic in refused:
            raise _TopicMissing(f"topic {options.results_topic}: {refused[options.results_topic]}")

    # -- the thread: one turn

    def _turn(self, consumer: KafkaClient) -> None:
        self._settle()
        self._resolve_if_needed(consumer)
        held = self._apply_pressure(consumer)
        try:
            records = consumer.poll(
                timeout_ms=JOIN_POLL_MS if not self._joined else PAUSED_POLL_MS if held else POLL_MS
            )
        except kafka_errors.KafkaError as error:
            if not is_retriable(error):
                raise
            records = {}
            self._probe_at = 0.0  # which finds out what it means
            self._stopping.wait(0.1)
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
        held = self._marks.paused or self._blocked
        wanted = assigned if held else unresolved
        if wanted - paused:
            consumer.pause(*(wanted - paused))
        if paused - wanted:
            consumer.resume(*(paused - wanted))
        return held or bool(unresolved)

    def _route(self, consumer: KafkaClient, records: dict[TopicPartition, list[Any]]) -> None:
        """Decode what a poll has brought, and hand it over as one batch."""
        deliveries: list[Delivery] = []
        spans: list[Span] = []
        counters, decode = self._counters, self._decode
        for partition, run in records.items():
            ledger = self._ledgers.get(partition)
            if ledger is None:  # revoked within this very poll; the next owner reads them
                continue
            span = ledger.read(run[-1].offset + 1, pending=0)
            before = len(deliveries)
            for record in run:
                decoded = decode(record.key, record.value, max(0, record.timestamp))
                if isinstance(decoded, Rejected):
                    span.pending += 1
                    self._take(1)
                    self._quarantine.take(record, decoded.reason, span)
                    continue
                counters.key_mismatch += not decoded.key_agrees
                deliveries.append(decoded)
            counters.consumed += len(run)
            if len(deliveries) > before:
                span.pending += 1
                spans.append(span)
            self._ends[partition] = max(self._ends.get(partition, 0), consumer.highwater(partition) or 0)
        self._report_lag()
        if deliveries:
            self._take(len(deliveries))
            self._loop.add_callback(self._hand_over, Batch(deliveries, self._when_done(spans, len(deliveries))))

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
        for partition, ledger in self._ledgers.items():
            self._done_here[partition] = ledger.settle()
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
            for partition in assigned:
                # poll() may have a reset of its own under way; position() waits for it, so look, and seek again.
                for _ in range(3):
                    consumer.seek(partition, starts[partition])
                    if consumer.position(partition, timeout_ms=CALL_MS) == starts[partition]:
                        break
                else:
                    return False
        except kafka_errors.KafkaError as error:
            if not is_retriable(error):
                raise
            return False
        self._ledgers = {partition: OffsetLedger(start) for partition, start in starts.items() if partition in assigned}
        return True

    def _starting_points(
        self, consumer: KafkaClient, assigned: set[TopicPartition]
    ) -> dict[TopicPartition, int] | None:
        topic = self._options.results_topic
        committed = {tp: consumer.committed(tp, timeout_ms=CALL_MS) for tp in assigned}
        if None not in committed.values():
            # What was done here and could not be committed is not read again. Offsets below it are done, whoever
            # has committed since.
            return {tp: max(offset, self._done_here.get(tp, 0)) for tp, offset in committed.items()}
        every = {TopicPartition(topic, number) for number in self._link.partitions(topic) or ()} | assigned
        committed |= {tp: consumer.committed(tp, timeout_ms=CALL_MS) for tp in every - assigned}
        start = where_to_start(
            {tp.partition for tp in assigned}, {tp.partition: offset for tp, offset in committed.items()}
        )
        without = {tp for tp in assigned if committed[tp] is None}
        if start is Start.WAIT:
            if time.monotonic() - self._unresolved_since < FRESH_PATIENCE_S:
                return None
            found = consumer.end_offsets(list(without), timeout_ms=CALL_MS)
        elif start is Start.END_FOR_ALL:
            found = consumer.end_offsets(list(every), timeout_ms=CALL_MS)
        else:
            found = consumer.beginning_offsets(list(without), timeout_ms=CALL_MS)
        # Committed before anything is read, so that a crash before the first record does not lose what comes then.
        consumer.commit({tp: OffsetAndMetadata(offset, "", -1) for tp, offset in found.items()}, timeout_ms=CALL_MS)
        return {tp: offset if offset is not None else found[tp] for tp, offset in committed.items() if tp in assigned}

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
        assigned = sorted(self._ledgers)
        try:
            if self._joined:
                # The group's coordinator. While it keeps a join waiting for other members it would not answer.
                consumer.committed(TopicPartition(topic, 0), timeout_ms=CALL_MS)
            # The leaders of our partitions; before there are any, those of all.
            asked = assigned or [TopicPartition(topic, number) for number in self._link.partitions(topic) or ()]
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
                self._ledgers[partition].position = max(self._ledgers[partition].position, position)
        self._report_lag()
        self._report_state()

    def _report_trouble(self, error: BaseException) -> None:
        if isinstance(error, AUTH_ERRORS):
            self._availability.down("auth", f"the brokers refuse us: {describe(error)}")
        else:
            self._availability.down("away", f"{','.join(self._options.bootstrap)} does not answer: {describe(error)}")

    def _report_state(self) -> None:
        options = self._options
        if self._blocked:
            self._availability.down("quarantine", self._quarantine.trouble())
            return
        settled = self._joined and self._unresolved is None
        waited_s = time.monotonic() - self._unresolved_since
        if settled and (self._ledgers or waited_s > STANDBY_AFTER_S):
            count = len(self._ledgers)
            share = f"{count} partitions" if count != 1 else "1 partition"
            self._availability.ready(f"{','.join(options.bootstrap)}, {share} of {options.results_topic}")
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
