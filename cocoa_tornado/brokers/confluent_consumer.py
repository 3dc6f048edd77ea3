"""The consuming half of the Kafka adapter, with confluent-kafka.

Everything runs on one thread, including the rebalance callbacks: librdkafka calls them within ``consume()``, and within
``close()``, which has a thread of its own while this one waits for it. Periodic requests to the brokers use another
thread and another client (``confluent_questions``), so that no record waits for them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, wait
from functools import partial
from math import inf
from typing import Any, NamedTuple, TypeAlias

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from tornado.ioloop import IOLoop

from ..asking import ask
from ..rules.handoff import Span
from ..rules.pacing import Probe
from ..rules.records import Decoded, Record, Rejected
from ..rules.topic_log import Committed
from .confluent_assignments import Assignments, Classic, Incremental, why_refused
from .confluent_broken import BROKEN, end_of_broken_batch
from .confluent_clients import CLOSE_TIMEOUT_S, ConfluentClients, Trouble, code_of
from .confluent_headers import UNREADABLE, headers_of
from .confluent_questions import OFFSET_BEGINNING, OFFSET_END, Answer, Prober, committed, find, named, numbers, whole
from .confluent_topics import ensure_topics
from .kafka_availability import Availability
from .kafka_clients import KafkaClients
from .kafka_members import SoleReading
from .kafka_options import KafkaOptions
from .kafka_publisher import Publisher
from .kafka_reading import CALL_S, PAUSED_POLL_S, POLL_S, QUIET_POLL_S, JoinStuck, Reading, TopicMissing
from .port import Batch, BrokerCounters, Decoder

REVOKE_PATIENCE_S = 5.0  # for batches in flight when their partitions are revoked
COMMIT_PATIENCE_S = 3.0
DOUBT_S = 60.0  # after reading past a broken batch, how long librdkafka may still lose its position
JOIN_PATIENCE_S = 45.0  # for an assignment, while the brokers answer; then another consumer may work better
SILENCE_S = 15.0  # without any answer from the brokers: more than all request timeouts
GONE = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})

Message: TypeAlias = Any  # its stubs allow a missing partition, offset and so on; a fetched message has them


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

    def __init__(
        self,
        options: KafkaOptions,
        clients: ConfluentClients,
        publisher: Publisher,
        counters: BrokerCounters,
        availability: Availability,
        *,
        asking: KafkaClients,
        loop: IOLoop,
        sink: Callable[[Batch], None],
        decode: Decoder,
        sole: SoleReading | None = None,
    ) -> None:
        super().__init__(
            options,
            clients,
            publisher,
            counters,
            availability,
            asking=asking,
            loop=loop,
            sink=sink,
            decode=decode,
            sole=sole,
        )
        self._clients = clients
        self._assignments: Assignments = Incremental() if options.group_protocol == "consumer" else Classic()
        # Of the current session.
        self._consumer: Consumer
        self._trouble: Trouble
        self._committing: Future[None] | None = None
        self._prober = Prober(clients, options)
        self._probed_at = 0  # the number of changes of the assignment until then
        self._answered_at = 0.0
        self._closing = False
        self._largest = 0  # largest value of the last poll, in bytes
        self._faults: list[Exception] = []  # raised by callbacks
        self._session_now: object = None
        self._attached: Consumer | None = None  # the consumer whose callbacks may change the books
        self._reading: set[int] = set()  # assigned to librdkafka, which reads them unless they are paused
        self._paused: set[int] = set()
        self._is_to_wake = False  # librdkafka has paused what stays, and may be slow to go on
        self._broken_at: dict[int, int] = {}  # where a batch could not be read and was requested again
        self._doubted_until: dict[int, float] = {}  # until when librdkafka may restart at the log's beginning

    # -- connecting

    def _session(self) -> None:
        options = self._options
        self._availability.connecting(f"connecting to {','.join(options.bootstrap)}")
        ensure_topics(self._clients, options)
        if not self._is_to_join():
            return
        session, self._faults = object(), []
        self._consumer, self._trouble = self._clients.member(self._deferring(partial(self._on_commit, session)))
        self._session_now, self._attached = session, self._consumer
        self._prober, self._answered_at = Prober(self._clients, options), time.monotonic()
        self._has_consumer, self._closing = True, False
        try:
            self._begin_session()
            self._consumer.subscribe(
                [options.results_topic],
                on_assign=self._deferring(self._on_assign),
                on_revoke=self._deferring(self._on_revoke),
                on_lost=self._deferring(self._on_lost),
            )
            while not self._stopping.is_set():
                self._turn()
        finally:
            self._closing = True
            self._drain(time.monotonic() + REVOKE_PATIENCE_S)
            self._commit_in_time()
            self._close()
            self.forget()
            self._has_consumer = False

    def _close(self) -> None:
        """Leave the group, with a timeout; never raises."""
        consumer, prober, committing = self._consumer, self._prober, self._committing
        self._committing = None

        def close() -> None:
            if committing is not None:
                wait([committing])  # librdkafka must not be closed during a request
            with contextlib.suppress(Exception):  # it is being discarded
                consumer.close()
            prober.close()

        try:
            ask("cocoa-kafka-closing", close).result(CLOSE_TIMEOUT_S)
        except TimeoutError:
            pass
        except RuntimeError:  # no thread can be started
            close()
        # If it still hangs and calls back later, the callbacks belong to no session.
        self._session_now = self._attached = None

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
        if self._faults:
            raise self._faults[0]
        return messages

    def _deferring(self, callback: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        """Wrap a callback for librdkafka. Its exceptions are raised after the surrounding consume(), not through
        librdkafka, because such a consumer could not be closed any more."""
        faults = self._faults  # of this session

        def guarded(first: Any, second: Any) -> None:
            try:
                callback(first, second)
            except Exception as error:
                faults.append(error)

        return guarded

    def _apply_pressure(self) -> bool:
        """Pause or resume according to the watermarks; return True while reading must pause."""
        held = self._must_hold()
        wanted = self._reading if held else set()
        if wanted - self._paused:
            self._consumer.pause(named(self._options.results_topic, wanted - self._paused))
        if self._paused - wanted:
            self._consumer.resume(named(self._options.results_topic, self._paused - wanted))
        self._paused = set(wanted)
        return held

    def _route(self, messages: list[Message]) -> None:
        """Decode the polled messages, and hand them over as one batch."""
        runs: dict[int, list[Message]] = {}
        broken: dict[int, Message] = {}
        ends: dict[int, int] = {}
        for message in messages:
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    if message.partition() not in broken:
                        ends[message.partition()] = message.offset()
                elif error.code() in BROKEN:
                    # The first is enough: until it is moved on, librdkafka reads the same batch repeatedly.
                    broken.setdefault(message.partition(), message)
                else:
                    self._on_event(error)
                continue
            number = message.partition()
            if number in broken:
                continue  # librdkafka may have lost its position; the range is read again from the current one
            if number in runs:
                runs[number].append(message)
            else:
                runs[number] = [message]
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
        """Handle an error message, which comes in place of a record."""
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
        ledger, until = self._assignment.ledgers.get(number), self._doubted_until.get(number)
        if ledger is None or until is None:
            return False
        if first >= ledger.position:
            if until == inf:
                self._doubted_until[number] = time.monotonic() + DOUBT_S
            return False
        return time.monotonic() < until and ledger.position <= self._highwater(number)

    def _get_past(self, number: int, begins: int, error: KafkaError) -> None:
        """Continue after a batch that cannot be read."""
        self._doubted_until[number] = inf
        limit = max(self._assignment.ends.get(number, 0), self._highwater(number))
        position = self._assignment.ledgers[number].position
        if position < begins < limit:  # control records precede it
            position = begins
        if self._broken_at.get(number) != position:  # it may have been damaged in transit
            self._broken_at[number] = position
            self._begin_again(number, position)
            return
        if position >= limit:
            self._begin_again(number, position)
            return  # there is nothing that could be broken
        topic = self._options.results_topic
        end = end_of_broken_batch(self._clients, topic, number, begins=begins, inside=position, limit=limit)
        self._assignment.ledgers[number].skip_to(end)
        self._broken_at[number] = end
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
            if number not in self._paused:
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
        if consumer is self._attached:
            self.note_assignment({partition.partition for partition in assigned})
            self._is_to_wake = bool(self._assignment.ledgers)

    def _on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        """Wait for what is in flight, with a timeout, and commit: the next owner continues there."""
        numbers = {partition.partition for partition in revoked}
        if consumer is self._attached and not self._closing:  # otherwise that was already done
            deadline = min(time.monotonic() + REVOKE_PATIENCE_S, self.stop_deadline)
            while not self.settle_and_look(numbers) and time.monotonic() < deadline:
                time.sleep(0.005)
            self._commit_here()
        self._stop_reading(consumer, numbers)

    def _on_lost(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        """The group has gone on without this member: nothing can be committed any more."""
        self._stop_reading(consumer, {partition.partition for partition in lost})
        if consumer is self._attached:
            self.forget()

    def _stop_reading(self, consumer: Consumer, numbers: set[int]) -> None:
        """Give up these partitions, which were revoked."""
        topic = self._options.results_topic
        if consumer is not self._attached:
            self._assignments.give_up(consumer, topic, numbers)
            return
        if self._paused & numbers:
            # A pause belongs to the partition, and would outlast its assignment.
            with contextlib.suppress(KafkaException):
                consumer.resume(named(topic, self._paused & numbers))
        self._assignments.give_up(consumer, topic, numbers)
        self._reading -= numbers
        self._paused -= numbers
        if self._assignments.is_incremental:
            self.give_up(numbers)
        else:
            self.forget()

    # -- called by the books

    def _key(self, number: int) -> int:
        return number

    def _number(self, partition: int) -> int:
        return partition

    def _member_id(self) -> str | None:
        return self._consumer.memberid()

    def _numbers(self) -> Collection[int]:
        return numbers(self._consumer, self._options.results_topic)

    def _committed(self, partitions: Collection[int]) -> dict[int, Committed | None]:
        return committed(self._consumer, self._options.results_topic, partitions)

    def _find_ends(self, partitions: Collection[int]) -> dict[int, int]:
        return find(self._consumer, self._options.results_topic, partitions, OFFSET_END)

    def _find_beginnings(self, partitions: Collection[int]) -> dict[int, int]:
        return find(self._consumer, self._options.results_topic, partitions, OFFSET_BEGINNING)

    def _begin_at(self, starts: dict[int, int]) -> bool:
        topic = self._options.results_topic
        self._assignments.begin(self._consumer, topic, starts)
        self._consumer.resume(named(topic, starts))  # a previous assignment may have paused it
        self._reading |= starts.keys()
        self._paused -= starts.keys()
        for number in starts:
            self._broken_at.pop(number, None)
            self._doubted_until.pop(number, None)
        return True

    def _commit_and_wait(self, offsets: dict[int, int]) -> None:
        """Commit with a timeout, which librdkafka lacks. Not in a callback: it would wait for the callback to
        return."""
        if self._committing is not None and not self._committing.done():
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        try:
            self._committing = ask("cocoa-kafka-commit", partial(self._commit_now, offsets))
            self._committing.result(COMMIT_PATIENCE_S)
        except TimeoutError as error:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from error
        except RuntimeError as error:  # closed meanwhile, after its timeout; or no thread can be started
            raise KafkaException(KafkaError(KafkaError._STATE)) from error

    def _commit_now(self, offsets: dict[int, int]) -> None:
        whole(self._consumer.commit(offsets=self._to_commit(offsets), asynchronous=False) or [])

    def _commit_here(self) -> None:
        """Commit what is done, in a callback, without waiting: the rebalance only goes on when this member has
        rejoined, and its requests to the coordinator arrive in order. A lost commit means that another member reads the
        records again; this one does not (``_done_here``)."""
        offsets = self.offsets_to_commit()
        if offsets:
            with contextlib.suppress(KafkaException):
                self._commit_later(offsets)

    def _commit_in_time(self) -> None:
        """Commit outside of a callback, with a timeout: while the brokers are unavailable librdkafka would wait
        long."""
        offsets = self.offsets_to_commit()
        if offsets:
            with contextlib.suppress(KafkaException):
                self._commit_and_wait(offsets)
                self.on_commit(offsets)

    def _commit_later(self, offsets: dict[int, int]) -> None:
        self._consumer.commit(offsets=self._to_commit(offsets), asynchronous=True)

    def _to_commit(self, offsets: dict[int, int]) -> list[TopicPartition]:
        topic = self._options.results_topic
        return [TopicPartition(topic, number, offset, self.mark) for number, offset in offsets.items()]

    def _on_commit(self, session: object, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        if session is not self._session_now:
            return
        committed = {tp.partition: tp.offset for tp in partitions if tp.error is None and tp.offset >= 0}
        self.on_commit(committed, error)

    # -- periodic checks

    def _lost_connection(self) -> BaseException | None:
        return self._trouble.latest

    def _special_trouble(self, error: BaseException) -> tuple[str, str] | None:
        why = why_refused(error)
        return None if why is None else ("protocol", why)

    def _probe_if_due(self) -> None:
        now = time.monotonic()
        answer = self._prober.take_answer()
        if answer is not None:
            self._answered_at = now
            self._enter_answer(answer)
        elif now - self._answered_at > SILENCE_S:
            self._availability.down("away", f"{','.join(self._options.bootstrap)}: no answer for {SILENCE_S:.0f} s")
        if not self._prober.is_asking() and self._probe_pace.look(now) is Probe.ASK:
            self._probed_at = self._assignment.changes
            with contextlib.suppress(RuntimeError):  # no thread: try again next time
                joining = (
                    None if self._assignment.is_member or not self._assignments.is_incremental else self._member_id()
                )
                self._prober.ask(self._assignment.is_member, list(self._assignment.ledgers), joining)

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
            self._report_trouble(self._trouble.instead_of(error))
            return
        if self._assignment.is_member:  # otherwise any broker may have answered, not the group's coordinator
            self._trouble.ease()
        if is_member and not self._assignment.is_member:
            self.note_assignment(())
        self._note_ends(ends)
        self._report_lag()
        self._report_state()
        is_waiting = not self._assignment.is_member or bool(self._assignment.unresolved)
        if is_waiting and time.monotonic() - self._unresolved_since > JOIN_PATIENCE_S:
            raise JoinStuck(f"group {self._options.group} has not come to an assignment")
