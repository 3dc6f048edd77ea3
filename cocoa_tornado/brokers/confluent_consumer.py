"""The consuming half of the Kafka adapter, with confluent-kafka.

Everything runs on one thread, including the rebalance callbacks: librdkafka calls them within ``consume()``, and within
``close()``, which has a thread of its own while this one waits for it. Periodic requests to the brokers use another
thread and another client (``confluent_questions``), so that no record waits for them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ..rules.handoff import Span
from ..rules.pacing import Probe
from ..rules.records import Decoded, Record, Rejected
from ..rules.topic_log import Committed
from .confluent_assignments import Assignments, Classic, Incremental, why_refused
from .confluent_broken import BrokenBatches, end_of_broken_batch
from .confluent_clients import ConfluentClients, code_of
from .confluent_fetching import Fetching, Message, sort
from .confluent_headers import UNREADABLE, headers_of
from .confluent_questions import OFFSET_BEGINNING, OFFSET_END, Answer, committed, find, numbers
from .confluent_session import Session
from .confluent_topics import ensure_topics
from .kafka_library import CALL_S
from .kafka_reading import PAUSED_POLL_S, POLL_S, QUIET_POLL_S, JoinStuck, Reading, ReadingContext, TopicMissing

REVOKE_PATIENCE_S = 5.0  # for batches in flight when their partitions are revoked
JOIN_PATIENCE_S = 45.0  # for an assignment, while the brokers answer; then another consumer may work better
SILENCE_S = 15.0  # without any answer from the brokers: more than all request timeouts
GONE = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})


class _Record(NamedTuple):
    """A record in the form that the quarantine takes."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


class ConfluentConsuming(Reading[int]):
    """Runs one consumer after another, each until it fails. Partitions are numbers."""

    pace_s = 0.001  # a longer pause would save nothing

    def __init__(self, context: ReadingContext, clients: ConfluentClients) -> None:
        super().__init__(context, clients)
        self._clients = clients
        self._assignments: Assignments = Incremental() if context.options.group_protocol == "consumer" else Classic()
        self._current: Session | None = None  # whose callbacks may change the books
        self._closing = False
        self._probed_at = 0  # the number of changes of the assignment until then
        self._largest = 0  # largest value of the last poll, in bytes
        self._fetching = Fetching(context.options.results_topic)
        self._broken = BrokenBatches()
        self._is_to_wake = False  # librdkafka has paused what stays, and may be slow to go on

    @property
    def _now(self) -> Session:
        """The current session."""
        assert self._current is not None
        return self._current

    @property
    def _consumer(self) -> Consumer:
        return self._now.consumer

    def _is_current(self, consumer: Consumer) -> bool:
        """Whether a callback is of the current session. One that was closed may hang, and call back later."""
        return self._current is not None and consumer is self._current.consumer

    # -- connecting

    def _session(self) -> None:
        options = self._options
        self._availability.connecting(f"connecting to {','.join(options.bootstrap)}")
        ensure_topics(self._clients, options)
        if not self._is_to_join():
            return
        session = Session(self._clients, options)
        session.join(self._clients, self._on_commit)
        self._current = session
        self._has_consumer, self._closing = True, False
        try:
            self._begin_session()
            session.consumer.subscribe(
                [options.results_topic],
                on_assign=session.deferring(self._on_assign),
                on_revoke=session.deferring(self._on_revoke),
                on_lost=session.deferring(self._on_lost),
            )
            while not self._stopping.is_set():
                self._turn()
        finally:
            self._closing = True
            self._drain(time.monotonic() + REVOKE_PATIENCE_S)
            self._commit_in_time()
            session.close()
            self._current = None
            self.forget()
            self._has_consumer = False

    # -- one turn

    def _turn(self) -> None:
        self._let_records_gather()
        self._settle()
        if self._is_to_wake:
            self._wake()
        self._resolve_if_needed()
        held = self._apply_pressure()
        messages = self._consume(PAUSED_POLL_S if held else QUIET_POLL_S if self._is_quiet() else POLL_S)
        if messages:
            self._route(messages)
        self._commit_if_due()
        self._look_at_log()
        self._probe_if_due()
        self._availability.alive()

    def _consume(self, timeout_s: float) -> list[Message]:
        """Return the messages available, or arriving in time. librdkafka itself would wait for the full number."""
        consumer = self._consumer
        messages = consumer.consume(1, timeout_s)
        if messages:
            # Estimate by the largest value of this poll and the last, as the sizes in librdkafka's queue are unknown.
            largest = max(1, len(messages[0]), self._largest)
            more = min(self._options.max_poll_records - 1, self._options.poll_bytes // largest)
            if more:
                messages += consumer.consume(more, 0)
            self._largest = max(map(len, messages))
        self._now.raise_fault()
        return messages

    def _apply_pressure(self) -> bool:
        """Pause or resume according to the watermarks; return True while reading must pause."""
        held = self._must_hold()
        self._fetching.apply_pressure(self._consumer, held=held)
        return held

    def _route(self, messages: list[Message]) -> None:
        """Decode the polled messages, and hand them over as one batch."""
        runs, broken, ends, events = sort(messages)
        for event in events:
            self._on_event(event)
        records: list[Record] = []
        offsets: list[int] = []
        sources: list[tuple[str, int]] = []
        spans: list[Span] = []
        for number, run in runs.items():
            if self._has_lost_its_position(number, run[0].offset()):
                ends.pop(number, None)
                self._begin_again(number, self._assignment.ledgers[number].position)
                continue
            ledger = self._ledger_for(number, run[0].offset())
            if ledger is None:
                continue
            span = ledger.read(run[-1].offset() + 1, pending=1)
            before = len(records)
            self._decode_run(run, span, records, offsets)
            span.done_one()  # only once all of it is entered: an exception half-way must not lead to a commit
            if len(records) > before:
                span.pending += 1
                spans.append(span)
                sources.append((self._source(number), len(records) - before))
            self._note_ends({number: self._highwater(number)})
        self._pass_on(records, spans, offsets, sources)
        for number, end in ends.items():
            ledger = self._assignment.ledgers.get(number)
            if ledger is not None:  # control records move the position and are never handed over
                ledger.skip_to(end)
        for number, message in broken.items():
            if number in self._assignment.ledgers:
                self._get_past(number, message.offset(), message.error())

    def _decode_run(self, run: list[Message], span: Span, records: list[Record], offsets: list[int]) -> None:
        counters, decode = self._counters, self._decode
        for message, headers in zip(run, headers_of(run), strict=True):
            decoded: Decoded
            if headers is UNREADABLE:
                decoded = Rejected("headers")
            else:
                decoded = decode(message.key(), message.value(), message.timestamp()[1], headers)
            if isinstance(decoded, Rejected):
                self._set_aside(self._record(message, headers), decoded.reason, span)
                continue
            if not decoded.key_agrees:
                counters.key_mismatch += 1
            records.append(decoded)
            offsets.append(message.offset())
        counters.consumed += len(run)

    def _record(self, message: Message, headers: Sequence[tuple[str, bytes | None]] | None) -> _Record:
        topic, number, offset = self._options.results_topic, message.partition(), message.offset()
        return _Record(topic, number, offset, message.key(), message.value(), list(headers or ()))

    def _on_event(self, error: KafkaError) -> None:
        """Handle an error that comes in place of a record."""
        if error.code() in GONE:
            self._probe_pace.hurry()
            self._log_watch.hurry()
            self._look_for_topic()
        elif error.code() == KafkaError._FATAL or error.fatal() or self._clients.is_refusal(KafkaException(error)):
            raise KafkaException(error)
        else:
            self._probe_pace.hurry()  # the probe determines what it means

    def _look_for_topic(self) -> None:
        """Raise TopicMissing if the topic does not exist any more."""
        topic = self._options.results_topic
        try:
            error = self._consumer.list_topics(topic, timeout=CALL_S).topics[topic].error
        except KafkaException as unknown:
            if not self._clients.is_retriable(unknown):
                raise
            return  # the probe asks again
        if error is not None and error.code() in GONE:
            raise TopicMissing(f"topic {topic} has been deleted")

    def _has_lost_its_position(self, number: int, first: int) -> bool:
        """True if earlier records came again although the log still has the next one to read."""
        ledger = self._assignment.ledgers.get(number)
        if ledger is None or not self._broken.may_have_restarted(number, first, ledger.position, time.monotonic()):
            return False
        return ledger.position <= self._highwater(number)

    def _get_past(self, number: int, begins: int, error: KafkaError) -> None:
        """Continue after a batch that cannot be read."""
        self._broken.doubt(number)
        limit = max(self._assignment.ends.get(number, 0), self._highwater(number))
        position = self._assignment.ledgers[number].position
        if position < begins < limit:  # control records precede it
            position = begins
        if self._broken.found(number, position) or position >= limit:  # in the latter case there is nothing to pass
            self._begin_again(number, position)
            return
        topic = self._options.results_topic
        end = end_of_broken_batch(self._clients, topic, number, begins=begins, inside=position, limit=limit)
        self._assignment.ledgers[number].skip_to(end)
        self._broken.passed(number, end)
        self._begin_again(number, end)
        if end > position:
            origin = f"{topic}/{number}@{position}-{end - 1}"
            self._count_unreadable(origin, end - position, self._clients.describe(KafkaException(error)))

    def _wake(self) -> None:
        """Have librdkafka fetch what stays at once.

        It pauses all partitions for a rebalance callback. Its connection to a broker that had nothing to fetch then
        sleeps for up to a second (2.16.0; the same in confluent-kafka-go#630). A seek wakes it, and repeats nothing:
        not in the callback, which may come between two records of one poll.
        """
        self._is_to_wake = False
        for number, ledger in self._assignment.ledgers.items():
            if number not in self._fetching.paused:
                self._begin_again(number, ledger.position)

    def _begin_again(self, number: int, offset: int) -> None:
        with contextlib.suppress(KafkaException):  # at worst it is read again from the assignment's start
            self._consumer.seek(TopicPartition(self._options.results_topic, number, offset))

    def _highwater(self, number: int) -> int:
        known = self._consumer.get_watermark_offsets(TopicPartition(self._options.results_topic, number), cached=True)
        return known[1] if known is not None else 0

    # -- rebalance callbacks

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        self._assignments.accept(consumer)  # fetch nothing until it is decided where to begin
        if self._is_current(consumer):
            self.note_assignment({partition.partition for partition in assigned})
            self._is_to_wake = bool(self._assignment.ledgers)

    def _on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        """Wait for what is in flight, with a timeout, and commit: the next owner continues there."""
        numbers = {partition.partition for partition in revoked}
        if self._is_current(consumer) and not self._closing:  # otherwise that was already done
            deadline = min(time.monotonic() + REVOKE_PATIENCE_S, self.stop_deadline)
            while not self.settle_and_look(numbers) and time.monotonic() < deadline:
                time.sleep(0.005)
            self._commit_here()
        self._stop_reading(consumer, numbers)

    def _on_lost(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        """The group has gone on without this member: nothing can be committed any more."""
        self._stop_reading(consumer, {partition.partition for partition in lost})
        if self._is_current(consumer):
            self.forget()

    def _stop_reading(self, consumer: Consumer, numbers: set[int]) -> None:
        """Give up these partitions, which were revoked."""
        topic = self._options.results_topic
        if not self._is_current(consumer):
            self._assignments.give_up(consumer, topic, numbers)
            return
        self._fetching.release(consumer, numbers)
        self._assignments.give_up(consumer, topic, numbers)
        self._fetching.forget(numbers)
        if self._assignments.is_incremental:
            self.give_up(numbers)
        else:
            self.forget()

    # -- called by the books

    def key(self, number: int) -> int:
        return number

    def number(self, partition: int) -> int:
        return partition

    def member_id(self) -> str | None:
        return self._consumer.memberid()

    def numbers(self) -> Collection[int]:
        return numbers(self._consumer, self._options.results_topic)

    def committed(self, partitions: Collection[int]) -> dict[int, Committed | None]:
        return committed(self._consumer, self._options.results_topic, partitions)

    def find_ends(self, partitions: Collection[int]) -> dict[int, int]:
        return find(self._consumer, self._options.results_topic, partitions, OFFSET_END)

    def find_beginnings(self, partitions: Collection[int]) -> dict[int, int]:
        return find(self._consumer, self._options.results_topic, partitions, OFFSET_BEGINNING)

    def begin_at(self, starts: dict[int, int]) -> bool:
        topic = self._options.results_topic
        self._assignments.begin(self._consumer, topic, starts)
        self._fetching.begin(self._consumer, starts.keys())
        self._broken.forget(starts)
        return True

    def commit_and_wait(self, offsets: dict[int, int]) -> None:
        self._now.commit_and_wait(self._to_commit(offsets))

    def _commit_here(self) -> None:
        """Commit what is done, in a callback, without waiting: the rebalance only goes on when this member has
        rejoined, and its requests to the coordinator arrive in order. A lost commit means that another member reads the
        records again; this one does not (``_done_here``)."""
        offsets = self.offsets_to_commit()
        if offsets:
            with contextlib.suppress(KafkaException):
                self.commit_later(offsets)

    def _commit_in_time(self) -> None:
        """Commit outside of a callback, with a timeout: while the brokers are unavailable librdkafka would wait
        long."""
        offsets = self.offsets_to_commit()
        if offsets:
            with contextlib.suppress(KafkaException):
                self.commit_and_wait(offsets)
                self.on_commit(offsets)

    def commit_later(self, offsets: dict[int, int]) -> None:
        self._consumer.commit(offsets=self._to_commit(offsets), asynchronous=True)

    def _to_commit(self, offsets: dict[int, int]) -> list[TopicPartition]:
        topic = self._options.results_topic
        return [TopicPartition(topic, number, offset, self.mark) for number, offset in offsets.items()]

    def _on_commit(self, session: Session, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        if session is not self._current:
            return
        committed = {tp.partition: tp.offset for tp in partitions if tp.error is None and tp.offset >= 0}
        self.on_commit(committed, error)

    # -- periodic checks

    def _lost_connection(self) -> BaseException | None:
        return self._now.trouble.latest

    def _special_trouble(self, error: BaseException) -> tuple[str, str] | None:
        why = why_refused(error)
        return None if why is None else ("protocol", why)

    def _probe_if_due(self) -> None:
        now, session = time.monotonic(), self._now
        answer = session.prober.take_answer()
        if answer is not None:
            session.answered_at = now
            self._enter_answer(answer)
        elif now - session.answered_at > SILENCE_S:
            self._availability.down("away", f"{','.join(self._options.bootstrap)}: no answer for {SILENCE_S:.0f} s")
        if not session.prober.is_asking() and self._probe_pace.look(now) is Probe.ASK:
            self._probed_at = self._assignment.changes
            with contextlib.suppress(RuntimeError):  # no thread: try again next time
                joining = (
                    None if self._assignment.is_member or not self._assignments.is_incremental else self.member_id()
                )
                session.prober.ask(self._assignment.is_member, list(self._assignment.ledgers), joining)

    def _enter_answer(self, answer: Future[Answer]) -> None:
        if self._probed_at != self._assignment.changes:
            # The answer is about partitions that have changed owners since.
            self._probe_pace.hurry()
            return
        try:
            ends, is_member = answer.result()
        except KafkaException as error:
            if not self._clients.is_retriable(error):
                raise
            if code_of(error) in GONE:
                self._look_for_topic()
            self._report_trouble(self._now.trouble.instead_of(error))
            return
        if self._assignment.is_member:  # otherwise any broker may have answered, not the group's coordinator
            self._now.trouble.ease()
        if is_member and not self._assignment.is_member:
            self.note_assignment(())
        self._note_ends(ends)
        self._report_lag()
        self._report_state()
        is_waiting = not self._assignment.is_member or bool(self._assignment.unresolved)
        if is_waiting and time.monotonic() - self._unresolved_since > JOIN_PATIENCE_S:
            raise JoinStuck(f"group {self._options.group} has not come to an assignment")
