"""Copies of undecodable records on their way to the quarantine topic (``rules/quarantine``).

Everything runs on the consumer's thread, except the publisher's answers, which may come on any thread, and checks of
the topic, which have a thread of their own.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Any

from kafka import errors as kafka_errors

from ..asking import ask
from ..errors import BrokerError, RecordTooLarge
from ..rules.handoff import RECORD_BYTES, Span
from ..rules.quarantine import Bounds, Cause, Copies, Losses, Step
from ..rules.rate import LineBudget, RateLimit
from .kafka_availability import Availability
from .kafka_clients import TopicLook
from .kafka_options import KafkaOptions
from .kafka_publisher import FRAMING_BYTES, Outgoing, Publisher
from .port import BrokerCounters, QuarantineState

LOOK_S = 60.0  # between two checks of the topic; each takes a connection
FAILING_LOOK_S = 5.0  # the same while it takes no copies
CONFIRM_S = 1.0  # until a second check; one broker may not know of a topic or a right yet
OWN_HEADERS_BYTES = 128  # at least, in addition to the topic's name: the smallest possible copy
LOG_LIMIT = RateLimit(per_s=1, burst=20)  # lines about quarantined records; the counter counts all

log = logging.getLogger("cocoa.broker")


class _Copy:
    """The copy of a rejected record.

    :ivar own: the headers that describe its origin
    :ivar error: the last error, for people
    """

    __slots__ = ("error", "offset", "outgoing", "own", "partition", "reason", "size", "span", "topic")

    def __init__(self, record: Any, reason: str, span: Span) -> None:
        self.topic, self.partition, self.offset = record.topic, record.partition, record.offset
        self.reason, self.span = reason, span
        self.error = ""
        self.size = 0  # bytes that it counts for, even after lighten()
        self.own: list[tuple[str, bytes]] = []
        self.outgoing: Outgoing

    def lighten(self) -> bool:
        """Drop a part, because the topic never takes the copy as it is and the stream must go on. A header records the
        drop.

        The value goes first, then the record's own headers, then its key. Return False if nothing is left to drop.
        """
        outgoing = self.outgoing
        theirs = outgoing.headers[: len(outgoing.headers) - len(self.own)]
        if outgoing.value:
            dropped, outgoing.value = ("cocoa.dropped-bytes", len(outgoing.value)), b""
        elif theirs:
            dropped, theirs = ("cocoa.dropped-headers", len(theirs)), []
        elif outgoing.key:
            dropped, outgoing.key, outgoing.value = ("cocoa.dropped-key-bytes", len(outgoing.key)), None, b""
        else:
            return False
        name, size = dropped
        self.own.append((name, str(size).encode()))
        outgoing.headers = theirs + self.own
        return True


class Quarantine:
    """Holds a copy of each rejected record, and its part of a span, until the quarantine topic has acknowledged it or
    it is given up. A record that is given up is lost to quarantine, counted and logged, and remains only in its own
    topic.

    :meth:`must_wait` pauses the consumer while a topic that takes copies does not take them fast enough.

    :param brokers_answer: True if the consuming half finds the brokers available
    """

    def __init__(
        self,
        options: KafkaOptions,
        publisher: Publisher,
        counters: BrokerCounters,
        availability: Availability,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._topic, self._results_topic = options.quarantine_topic, options.results_topic
        self._publisher, self._counters, self._availability = publisher, counters, availability
        self._clock = clock
        self._copies: Copies[_Copy] = Copies(bounds_for(options))
        self._losses = Losses()
        self._answers: deque[tuple[_Copy, BrokerError | None]] = deque()
        self._must_wait = False
        self._look: Future[TopicLook] | None = None
        self._look_at = 0.0
        self._has_looked = False
        self._suspicion: Cause | None = None  # the last check's result, until the next one confirms it
        self._error = ""  # the last one, for people
        self._lines = LineBudget(LOG_LIMIT)

    def take(self, record: Any, reason: str, span: Span) -> int:
        """Copy a record of the consumer to the quarantine topic. Its part of ``span`` is done when the topic has the
        copy, or when that is given up. :meth:`settle` sends it. Return the bytes that the copy holds."""
        copy = _Copy(record, reason, span)
        theirs = [(name, value or b"") for name, value in record.headers]  # the client library does not send null
        copy.own = [
            ("cocoa.reason", reason.encode()),
            ("cocoa.topic", record.topic.encode()),
            ("cocoa.partition", str(record.partition).encode()),
            ("cocoa.offset", str(record.offset).encode()),
        ]
        value = record.value
        if record.key is None and value is None:
            value = b""  # the client library refuses to send an empty record
        copy.outgoing = Outgoing(
            self._topic, record.key, value, theirs + copy.own, lambda error: self._answers.append((copy, error))
        )
        copy.size = copy.outgoing.size + RECORD_BYTES
        self._copies.take(copy, partition=record.partition, offset=record.offset, size=copy.size)
        return copy.size

    def settle(self, positions: Mapping[int, int]) -> tuple[int, int]:
        """Process the publisher's answers, and do what is due. Return how many copies were released, and their bytes.

        :param positions: the next offset to read, by partition
        """
        records, size = len(self._copies), self._copies.size_bytes
        now = self._clock()
        while self._answers:
            self._enter_answer(*self._answers.popleft(), now)
        self._look_if_due(now)
        self._carry_out(
            self._copies.step(now, brokers_answer=self._availability.brokers_answer(), positions=positions), now
        )
        self._report()
        return records - len(self._copies), size - self._copies.size_bytes

    def forget(self, partitions: Collection[int]) -> tuple[int, int]:
        """The partitions were revoked: their next owner quarantines what is held of them. Returns like
        :meth:`settle`."""
        size = self._copies.size_bytes
        gone = self._copies.forget(partitions)
        self._tell_losses(self._clock(), at_once=True)
        for copy in gone:
            self._leave(copy)
        self._must_wait = self._must_wait and bool(self._copies)
        return len(gone), size - self._copies.size_bytes

    def must_wait(self) -> bool:
        """True while reading must pause, because copies arrive faster than the topic takes them."""
        return self._must_wait

    def _enter_answer(self, copy: _Copy, error: BrokerError | None, now: float) -> None:
        if copy not in self._copies:
            return  # given up meanwhile, or its partition was revoked
        if error is None:
            self._copies.acknowledged(copy)
            self._enter(copy)
            return
        copy.outgoing.refusals = 0
        if isinstance(error, RecordTooLarge) and copy.lighten():
            self._submit(copy, now)
            return
        self._error = copy.error = str(error)
        cause = Cause.TOO_LARGE if isinstance(error, RecordTooLarge) else Cause.REFUSED
        self._copies.refused(copy, cause, now)

    def _carry_out(self, step: Step[_Copy], now: float) -> None:
        self._must_wait = step.must_wait
        for copy, cause in step.lose:
            self._leave(copy)
            copy.span.done_one()
            self._count_lost(cause)
            self._losses.note(copy.topic, copy.partition, cause, copy.offset, copy.error or self._error)
        self._tell_losses(now)
        for copy in step.recall:
            if self._publisher.withdraw(copy.outgoing):
                self._copies.recalled(copy)
        for copy in step.send:
            copy.outgoing.refusals = 0
            self._submit(copy, now)

    def _tell_losses(self, now: float, *, at_once: bool = False) -> None:
        for line in self._losses.lines(now, at_once=at_once):
            extra = {
                "topic": line.topic,
                "partition": line.partition,
                "offset": line.offsets,
                "records": line.records,
                "cause": line.cause.value,
                "detail": line.detail,
            }
            log.warning(
                "records lost to quarantine", extra=extra | ({"suppressed": line.suppressed} if line.suppressed else {})
            )

    def _submit(self, copy: _Copy, now: float) -> None:
        try:
            self._publisher.submit(copy.outgoing)
        except BrokerError as error:
            copy.error = str(error)
            self._copies.postponed(copy, now)

    def _leave(self, copy: _Copy) -> None:
        copy.outgoing.is_wanted = False
        self._publisher.withdraw(copy.outgoing)

    def _enter(self, copy: _Copy) -> None:
        copy.span.done_one()
        counts = self._counters.quarantined
        counts[copy.reason] = counts.get(copy.reason, 0) + 1
        suppressed = self._lines.take(self._clock())
        if suppressed is not None:
            extra = {"reason": copy.reason, "origin": f"{copy.topic}/{copy.partition}@{copy.offset}"}
            log.info("record quarantined", extra=extra | ({"suppressed": suppressed} if suppressed else {}))

    def _count_lost(self, cause: Cause) -> None:
        counts = self._counters.quarantine_lost
        counts[cause.value] = counts.get(cause.value, 0) + 1

    # -- checking the topic

    def _look_if_due(self, now: float) -> None:
        if self._look is not None and self._look.done():
            look, self._look = self._look, None
            before, self._suspicion = self._suspicion, None
            self._judge(look, before)
            if self._suspicion is not None and self._suspicion is not before:
                self._look_at = now + CONFIRM_S
            elif self._copies.failing is not None or not self._has_looked:
                self._look_at = now + FAILING_LOOK_S
            else:
                self._look_at = now + LOOK_S
        elif self._look is None and now >= self._look_at:
            self._look_at = now + FAILING_LOOK_S
            with contextlib.suppress(RuntimeError):  # no thread: try again next time
                self._look = ask("cocoa-kafka-quarantine", lambda: self._publisher.look_at(self._topic))

    def _judge(self, look: Future[TopicLook], before: Cause | None) -> None:
        """A check's result counts at once if nothing is wrong, otherwise once the next one confirms it."""
        try:
            refusal, limit, oldest_ms = look.result()
        except Exception:  # of brokers, a token endpoint, descriptors: says nothing about the topic
            return
        self._availability.set_oldest_quarantined(oldest_ms)
        smallest = FRAMING_BYTES + OWN_HEADERS_BYTES + len(self._results_topic)
        if refusal is kafka_errors.UnknownTopicOrPartitionError:
            found, error = Cause.MISSING, f"topic {self._topic} does not exist"
        elif refusal is not None:
            found, error = Cause.REFUSED, f"topic {self._topic}: {refusal.__name__}"
        elif limit is not None and limit < smallest:
            found, error = Cause.TOO_LARGE, f"topic {self._topic} takes no more than {limit} bytes"
        else:
            self._has_looked = True
            self._copies.judge(None)
            return
        self._suspicion = found
        if found is before:
            self._has_looked, self._error = True, error
            self._copies.judge(found)

    def _report(self) -> None:
        failing = self._copies.failing
        before = self._availability.quarantine
        if failing is not None:
            state = QuarantineState.UNAVAILABLE
        elif self._has_looked or before is not QuarantineState.CHECKING:
            state = QuarantineState.READY
        else:
            return
        if state is before:
            return
        self._availability.set_quarantine(state)
        if failing is not None:
            self._look_at = min(self._look_at, self._clock() + FAILING_LOOK_S)
            detail = self._error or "no copy has been acknowledged"
            extra = {"topic": self._topic, "cause": failing.value, "detail": detail}
            log.warning("quarantine unavailable", extra=extra)
        elif before is QuarantineState.UNAVAILABLE:
            self._error = ""
            log.info("quarantine available", extra={"topic": self._topic})


def bounds_for(options: KafkaOptions) -> Bounds:
    """The quarantine's bounds: half of the watermarks and of what may be uncommitted. So a topic that takes no copies
    never pauses reading."""
    most = Bounds()
    return Bounds(
        records=max(1, min(most.records, options.low_water // 2)),
        size_bytes=max(1, min(most.size_bytes, options.high_water_bytes // 8)),
        offsets=max(1, min(most.offsets, options.max_uncommitted // 2)) if options.max_uncommitted else most.offsets,
    )
