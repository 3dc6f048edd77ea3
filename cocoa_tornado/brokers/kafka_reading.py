"""The common part of the Kafka consumers, for either client library: the books of what is read, done and committed,
where to begin, and the log lines.

One thread polls, decodes and hands over. It touches no connection, and calls only ``add_callback`` on the IOLoop.
Answers (a batch is done, the quarantine topic has acknowledged) arrive in thread-safe deques, which the thread empties
between two polls.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from tornado.ioloop import IOLoop

from ..errors import BrokerError
from ..rules.assignment import Assignment
from ..rules.backoff import Backoff
from ..rules.handoff import OffsetLedger, Span, WaterMarks
from ..rules.pacing import ProbePace, Quiet
from ..rules.rate import LineBudget, RateLimit
from ..rules.records import Record
from ..rules.topic_log import Log
from .kafka_availability import UNREACHABLE, Availability
from .kafka_beginning import Beginning
from .kafka_clients import KafkaClients
from .kafka_handoff import Handoff
from .kafka_library import CALL_S, FailureReader, GroupReader, P
from .kafka_logs import LogWatch
from .kafka_members import REBALANCE_PATIENCE_S, SoleReading, StandBy
from .kafka_options import KafkaOptions
from .kafka_positions import History, Plan
from .kafka_publisher import Publisher
from .kafka_quarantine import Quarantine
from .port import Batch, BrokerCounters, Decoder

POLL_S = 0.1
QUIET_POLL_S = 0.5  # while only the brokers can cause work; a stop and a rebalance wait for its end
MAX_PAUSE_S = 0.01  # between two batches, however many workers there are
PAUSED_POLL_S = 0.02  # nothing is fetched while paused; this only bounds how late the end of a pause is noticed
COMMIT_LOST_S = 30.0  # a commit without an answer for this long counts as lost; until then it is the only one
NO_PARTITION_AFTER_S = 2.0  # without a partition: a leader that has just learned of the topic may still assign some
SKIPPED_LINES = RateLimit(per_s=1, burst=20)

log = logging.getLogger("cocoa.broker")


class TopicMissing(Exception):
    """The results topic does not exist and is not, or cannot be, created."""


class LogReplaced(Exception):
    """The results topic was deleted and created again, or may have been. The consumer may hold records of the old
    one."""


class JoinStuck(Exception):
    """The brokers answer, but the consumer has not become a member of the group for a long time."""


@dataclass(frozen=True, slots=True)
class ReadingContext:
    """What the consuming half is given, whichever library reads.

    :ivar asking: the clients for requests about the topic
    :ivar sole: set if no other member of the group may read
    """

    options: KafkaOptions
    publisher: Publisher
    counters: BrokerCounters
    availability: Availability
    asking: KafkaClients
    loop: IOLoop
    sink: Callable[[Batch], None]
    decode: Decoder
    sole: SoleReading | None = None


class Reading(GroupReader[P]):
    """Owns the consumer thread. Created, started and stopped on the IOLoop; everything private belongs to the thread.

    :cvar pace_s: the pause between two batches at a high rate, without other workers
    :ivar mark: the metadata to commit with each offset
    :ivar stop_deadline: when a stop gives up waiting (monotonic clock); infinity while running
    """

    pace_s: ClassVar[float]

    def __init__(self, context: ReadingContext, failures: FailureReader) -> None:
        options, counters, availability = context.options, context.counters, context.availability
        self._options, self._failures = options, failures
        # A worker's batches are as large as those of one gateway that reads everything.
        self._pause_s = min(self.pace_s * options.workers, MAX_PAUSE_S)
        self._counters, self._availability, self._sole = counters, availability, context.sole
        self._loop, self._decode = context.loop, context.decode
        self._stopping = threading.Event()
        self.stop_deadline = float("inf")
        self._has_consumer = False
        self._finished: Callable[[], None] | None = None
        marks = WaterMarks(high=options.high_water, low=options.low_water, high_bytes=options.high_water_bytes)
        self._handoff = Handoff(marks, counters, loop=context.loop, sink=context.sink)
        self._quarantine = Quarantine(options, context.publisher, counters, availability)
        self._log_watch = LogWatch(context.asking, options)
        # The books.
        self._assignment: Assignment[P] = Assignment()
        self._history = History()
        self._beginning: Beginning[P] = Beginning(self, failures, self._history, self._log_watch)
        self._is_log_of_session = False  # the consumer's records may belong to this log
        self.mark = ""
        self._unresolved_since = 0.0
        self._committing_until = 0.0
        self._quiet = Quiet()
        self._probe_pace = ProbePace(options.probe_interval_s)
        self._commit_at = self._resolve_at = 0.0
        self._backoff = Backoff(base_s=0.5, cap_s=5.0)
        self._topic_seen = False
        self._skipped_lines = LineBudget(SKIPPED_LINES)
        self._thread = threading.Thread(target=self._run, name="cocoa-kafka-consumer", daemon=True)

    # -- on the IOLoop

    def start(self) -> None:
        self._thread.start()

    def stop(self, patience_s: float, finished: Callable[[], None]) -> None:
        """Stop reading, wait for what is in flight, commit, leave the group; then call ``finished`` on the loop."""
        self._finished = finished
        self.stop_deadline = time.monotonic() + patience_s
        self._stopping.set()
        if not self._has_consumer:
            # It is still connecting: there is nothing to wait for, and the thread ends by itself.
            finished()

    @property
    def held_bytes(self) -> int:
        """Bytes handed over and not done. Thread-safe."""
        return self._handoff.in_flight_bytes

    # -- implemented for each library, on the thread

    @abstractmethod
    def _session(self) -> None:
        """Run one consumer, from connecting until :meth:`stop` or an error."""

    def _special_trouble(self, error: BaseException) -> tuple[str, str] | None:
        """A one-word cause and the details of an error that is specific to this library."""
        return None

    def _standing_trouble(self) -> tuple[str, str] | None:
        """The same for a condition that prevents reading although the brokers answer."""
        return None

    def _lost_connection(self) -> BaseException | None:
        """Why the latest connection to a broker failed, if there is none yet."""
        return None

    # -- the thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            is_replaced = False
            try:
                self._session()
            except LogReplaced:
                is_replaced = True
            except TopicMissing as error:
                self._availability.down("topic", str(error))
            except JoinStuck as error:
                self._availability.down("group", str(error))
            except StandBy as error:
                assert self._sole is not None  # the source of the exception
                self._sole.stand_by(str(error))
            except Exception as error:
                if isinstance(error, (BrokerError, *self._failures.failures)):
                    self._report_trouble(error)
                elif self._availability.down("failed", self._failures.describe(error)):
                    log.exception("consumer failed")
            if self._sole is not None:
                self._sole.end_session()
            self._log_watch.rest()
            self._availability.alive()
            self._stopping.wait(0.0 if is_replaced else self._backoff.next_s())
        if self._finished is not None:
            self._loop.add_callback(self._finished)

    def _begin_session(self) -> None:
        self._assignment.leave()
        self._committing_until, self._topic_seen, self._unresolved_since = 0.0, False, time.monotonic()
        self._is_log_of_session = False

    def _is_to_join(self) -> bool:
        """Wait until this gateway may join the group; return False if it is to stop instead."""
        if self._sole is not None:
            self._sole.await_turn(self._stopping)
        return not self._stopping.is_set()

    def _must_hold(self) -> bool:
        """True while reading must pause."""
        return self._handoff.is_full or self._quarantine.must_wait() or self._commits_lag()

    def _is_quiet(self) -> bool:
        """True while this thread has had nothing to do for some time, and waits only for the brokers."""
        return self._quiet.look(time.monotonic(), has_work=self._has_work())

    def _has_work(self) -> bool:
        assignment = self._assignment
        if self._handoff.is_under_way or not assignment.is_settled:
            return True
        return bool(assignment.to_commit()) or not assignment.is_idle()

    def _commits_lag(self) -> bool:
        """True if too much is done and not committed: after a crash the mailbox would not recognize all of it."""
        bound = self._options.max_uncommitted
        return bool(bound) and any(ledger.uncommitted > bound for ledger in self._assignment.ledgers.values())

    def _ledger_for(self, partition: P, first: int) -> OffsetLedger | None:
        """The books of a partition about to be read; None if it was revoked within this very poll, so that its next
        owner reads it."""
        ledger = self._assignment.ledgers.get(partition)
        if ledger is not None and first < ledger.position:
            self._make_sure_of_log()
            # The log was truncated: what is known of the offsets beyond applies to other records.
            self._assignment.restart(partition, first)
        return self._assignment.ledgers.get(partition)

    def _make_sure_of_log(self) -> None:
        """Check the topic before handing over records that may come from another log. Raise LogReplaced if it is one,
        or without an answer."""
        if self._history.log is None or self._history.log.id is None:
            return  # these brokers have no ids
        try:
            topic_id = self._log_watch.wait_for_answer(CALL_S, new=True).topic_id
        except Exception as error:  # of the brokers, a token endpoint, descriptors, threads
            raise LogReplaced from error
        self._judge_log(topic_id)

    def _source(self, partition: P) -> str:
        """The name under which the partition's offsets are remembered."""
        return (self._history.log or Log(None)).source(self._options.results_topic, self.number(partition))

    def _pass_on(
        self, records: list[Record], spans: list[Span], offsets: list[int], sources: list[tuple[str, int]]
    ) -> None:
        """Hand over polled records, as one batch."""
        self._report_lag()
        self._log_watch.note_records(time.monotonic())
        self._handoff.pass_on(records, spans, offsets, sources)

    def _set_aside(self, record: Any, reason: str, span: Span) -> None:
        """Copy a record of the consumer to the quarantine topic. It counts as in flight until the topic has the copy,
        or that is given up."""
        span.pending += 1
        self._handoff.take(1, self._quarantine.take(record, reason, span))

    def _let_records_gather(self) -> None:
        left_s = self._handoff.pause_s(self._pause_s)
        if left_s:
            time.sleep(left_s)

    def _count_unreadable(self, origin: str, records: int, detail: str) -> None:
        counts = self._counters.quarantined
        counts["unreadable"] = counts.get("unreadable", 0) + records
        suppressed = self._skipped_lines.take(time.monotonic())
        if suppressed is not None:
            extra = {"origin": origin, "error": detail, "suppressed": suppressed}
            log.warning("unreadable records skipped", extra=extra)

    # -- the thread, or the library's while this one is blocked: the books

    def _settle(self) -> None:
        """Process what other threads have reported."""
        self._handoff.settle()
        ledgers = self._assignment.ledgers
        positions = {self.number(partition): ledger.position for partition, ledger in ledgers.items()}
        self._handoff.release(*self._quarantine.settle(positions))

    def settle_and_look(self, partitions: Collection[P]) -> bool:
        """True if nothing of these partitions is in flight."""
        self._settle()
        return self._assignment.is_idle(partitions)

    def offsets_to_commit(self) -> dict[P, int]:
        return {} if self._handoff.is_repeating else self._assignment.to_commit()

    def on_commit(self, offsets: dict[P, int], error: object = None) -> None:
        """The answer to a commit."""
        self._committing_until = 0.0
        if error is not None:
            return  # the next commit covers these offsets
        for partition, committed in offsets.items():
            self._assignment.note_committed(partition, committed)
            self._history.note_committed(self.number(partition), committed)

    def give_up(self, partitions: Collection[P]) -> None:
        """These partitions were revoked: a late ``done`` changes no offset of theirs from now on. The others are read
        on, and this process stays a member of the group."""
        self._settle()
        for partition, left in self._assignment.remove(partitions).items():
            self._history.give_up(self.number(partition), left.done, is_committed=left.is_committed)
        self._handoff.release(*self._quarantine.forget({self.number(partition) for partition in partitions}))

    def forget(self) -> None:
        """The membership has ended, and with it the assignment."""
        self.give_up(self._assignment.partitions)
        self._assignment.leave()
        self._unresolved_since = time.monotonic()

    def note_assignment(self, assigned: Collection[P]) -> None:
        """These partitions are assigned, in addition to those that are."""
        if not set(assigned) <= self._assignment.partitions:
            self._handoff.assignments += 1
        self._assignment.add(assigned)
        if self._sole is not None:
            self._sole.note_assignment()
        self._unresolved_since = time.monotonic()
        self._resolve_at = 0.0

    # -- the thread: where to begin

    def _resolve_if_needed(self) -> None:
        assignment = self._assignment
        if assignment.is_member and self._sole is not None and not self._sole.may_read(self.member_id):
            return
        if assignment.unresolved is None or time.monotonic() < self._resolve_at:
            return
        unresolved = assignment.unresolved
        if not (self._resolve(unresolved) if unresolved else self._resolve_none()):
            self._resolve_at = time.monotonic() + 0.25
            return
        self._probe_pace.hurry()  # only the probe sets READY, so probe at once

    def _resolve(self, assigned: set[P]) -> bool:
        """Begin these partitions at their starting points. Return False if those are unknown yet: try again."""
        try:
            found = self._beginning.find(assigned, self._unresolved_since)
            if found is None:
                return False
            plan, starts = found
            self._enter(plan)
            if not self.begin_at(starts):
                return False
        except self._failures.failures as error:
            if not self._failures.is_retriable(error):
                raise
            return False
        self._is_log_of_session = True
        self._assignment.begin(starts, {self.key(number): offset for number, offset in plan.behind.items()})
        return True

    def _resolve_none(self) -> bool:
        """Settle a membership without partitions, once the group has starting points: READY promises that a record
        produced from then on is handed over, by whichever member. Return False if it has none yet: try again."""
        if not self._beginning.has_group_begun(self._unresolved_since):
            return False
        self._assignment.begin({})
        return True

    def _enter(self, plan: Plan) -> None:
        """Read the plan's log from now on. Raises LogReplaced if the consumer may hold records of another one."""
        if plan.previous is not None:
            ids = {"topic": self._options.results_topic, "topic_id": plan.log.id, "previous_id": plan.previous}
            log.warning("topic recreated", extra=ids | {"detail": "it is read from its first record"})
        if self._history.enter(plan.log):
            self._handoff.begin_again()
            if self._is_log_of_session:
                raise LogReplaced

    # -- the thread: committing, periodic checks

    def _commit_if_due(self) -> None:
        now = time.monotonic()
        if now < self._commit_at or now < self._committing_until:
            return
        self._commit_at = now + self._options.commit_interval_s
        offsets = self.offsets_to_commit()
        if offsets:
            self._committing_until = now + COMMIT_LOST_S
            self.commit_later(offsets)

    def _report_trouble(self, error: BaseException) -> None:
        special = self._special_trouble(error)
        describe = self._failures.describe
        if special is not None:
            self._availability.down(*special)
        elif isinstance(error, BrokerError):  # no access token is available
            self._availability.down("auth", str(error))
        elif self._failures.is_refusal(error):
            self._availability.down("auth", f"the brokers refuse us: {describe(error)}")
        else:
            bootstrap, address = ",".join(self._options.bootstrap), self._failures.unreachable(error)
            if address is None or address in self._options.bootstrap:
                self._availability.down("away", f"{bootstrap} does not answer: {describe(error)}")
            else:
                detail = UNREACHABLE.format(address=address, bootstrap=bootstrap, detail=describe(error))
                self._availability.down("away", detail)

    def _report_state(self) -> None:
        options = self._options
        standing = self._standing_trouble()
        if standing is not None:
            self._availability.down(*standing)
            return
        other_reader = None if self._sole is None else self._sole.other_reader()
        if other_reader is not None:
            self._availability.shared(options.group, other_reader)
            return
        waited_s = time.monotonic() - self._unresolved_since
        if self._assignment.is_settled and (self._assignment.ledgers or waited_s > NO_PARTITION_AFTER_S):
            count = len(self._assignment.ledgers)
            share = f"{count} partitions" if count != 1 else "1 partition"
            self._availability.ready(f"{','.join(options.bootstrap)}, {share} of {options.results_topic}")
            self._backoff.reset()
        elif waited_s > REBALANCE_PATIENCE_S:
            lost = self._lost_connection()
            if lost is not None and self._failures.unreachable(lost) is not None:
                self._report_trouble(lost)
                return
            unknown = None if self._sole is None else self._sole.trouble()
            self._availability.down(*(unknown or ("group", f"group {options.group} has not come to an assignment")))
        else:
            self._availability.connecting(f"joining group {options.group}")

    def _look_at_log(self) -> None:
        """Request the topic's state periodically, and process the answer."""
        now = time.monotonic()
        assignment = self._assignment
        state = self._log_watch.take_answer(assignment.changes, now)
        if state is not None:
            self._judge_log(state.topic_id)
        if state is not None and assignment.ledgers:
            assignment.ends |= {self.key(number): ends.high for number, ends in state.ends.items()}
            self._report_lag()
        if assignment.ledgers and self._log_watch.is_due(now):
            self._handoff.recent.ask()
            self._log_watch.ask([self.number(partition) for partition in assignment.ledgers], assignment.changes, now)

    def _judge_log(self, topic_id: str | None) -> None:
        """Start over if the topic has become another log."""
        now = self._history.log
        if now is None or topic_id in self._history.earlier:
            return
        if topic_id == now.id:
            self._handoff.recent.confirm()
        elif topic_id is None:
            pass  # the brokers disagree: nothing is known about what was handed over
        elif now.id is None:
            self._history.log = Log(topic_id)
            self.mark = self._history.log.mark()
        else:
            # Commit nothing of the old one from now on.
            assigned = self._assignment.partitions
            self.give_up(assigned)
            self._assignment.add(assigned)
            self._unresolved_since, self._resolve_at = time.monotonic(), 0.0
            self._resolve_if_needed()  # at once, so that a stop from now on leaves offsets of the new log

    def _note_ends(self, ends: dict[P, int]) -> None:
        """Record lower bounds of the ends. A consumer of committed records only sees the last stable offsets."""
        self._assignment.note_ends(ends)

    def _report_lag(self) -> None:
        self._availability.set_lag(self._assignment.lag())

    # -- the thread: stopping

    def _drain(self, deadline: float = float("inf")) -> None:
        """Wait for what is in flight, until the deadline, or until a stop runs out of patience."""
        while time.monotonic() < min(deadline, self.stop_deadline):
            self._settle()
            if self._assignment.is_idle():
                return
            time.sleep(0.005)
