"""The hand-off from a broker to the IOLoop: how much may be in flight, and which offsets can be committed.

Not thread-safe: the adapter that owns an object calls it from one thread at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Final

from ..routing.address import bytes_of_names
from .records import Record

NO_BOUND: Final = 2**63 - 1

RECORD_BYTES: Final = 256
"""Memory that a record takes beside its bytes and the devices that it names: its objects, rounded up."""


def size_of(records: Collection[Record]) -> int:
    """The memory that records take, in bytes."""
    # Nearly every record is for one device. Another one can name a thousand, which take far more than its payload.
    named = sum([bytes_of_names(record[0]) for record in records if type(record[0]) is not str])
    return named + sum([len(record[1]) + RECORD_BYTES for record in records])


def pause_s(pace_s: float, handed_over_at: float, now: float) -> float:
    """How long to let records accumulate before the next batch, so that at a high rate each switch between the two
    threads carries several. A record that comes alone does not wait.

    :param pace_s: the least time between two batches
    :param handed_over_at: when the last batch was handed over, by the same clock as ``now``
    """
    return max(0.0, min(pace_s, handed_over_at + pace_s - now))


class WaterMarks:
    """Counts records in flight (handed over and not done) and their bytes; decides when to pause and resume.

    A record larger than ``high_bytes`` is still handed over; the pause lasts until it is done.

    :param low_bytes: by default a quarter of ``high_bytes``
    :ivar in_flight: records in flight
    :ivar in_flight_bytes: the memory that they take
    :ivar paused: from reaching a high mark until both counts are below their low marks
    """

    __slots__ = ("_high", "_high_bytes", "_low", "_low_bytes", "in_flight", "in_flight_bytes", "paused")

    def __init__(self, *, high: int, low: int, high_bytes: int = NO_BOUND, low_bytes: int | None = None) -> None:
        low_bytes = max(1, high_bytes // 4) if low_bytes is None else low_bytes
        for lower, upper in ((low, high), (low_bytes, high_bytes)):
            if not 0 < lower <= upper:
                raise ValueError(f"low water mark {lower} must be positive and at most the high one, {upper}")
        self._high, self._low = high, low
        self._high_bytes, self._low_bytes = high_bytes, low_bytes
        self.in_flight = self.in_flight_bytes = 0
        self.paused = False

    def take(self, records: int, size: int = 0) -> bool:
        """Hand over ``records`` of ``size`` bytes in all. True if a high mark was reached: pause now."""
        self.in_flight += records
        self.in_flight_bytes += size
        if self.paused or (self.in_flight < self._high and self.in_flight_bytes < self._high_bytes):
            return False
        self.paused = True
        return True

    def release(self, records: int, size: int = 0) -> bool:
        """``records`` are done. True if the counts fell below the low marks after a pause: resume now."""
        if records > self.in_flight or size > self.in_flight_bytes:
            left = f"only {self.in_flight} in flight ({self.in_flight_bytes} bytes)"
            raise ValueError(f"{records} records ({size} bytes) done, but {left}")
        self.in_flight -= records
        self.in_flight_bytes -= size
        if not self.paused or self.in_flight >= self._low or self.in_flight_bytes >= self._low_bytes:
            return False
        self.paused = False
        return True


class Span:
    """A run of offsets of one partition that was read together.

    :ivar end: the offset after the last one
    :ivar pending: its parts (a batch, a quarantined record) that are not done yet
    """

    __slots__ = ("end", "pending")

    def __init__(self, end: int, pending: int) -> None:
        self.end, self.pending = end, pending

    def done_one(self) -> None:
        """One part is done. Has no effect on a span that its ledger has dropped."""
        self.pending -= 1


class OffsetLedger:
    """Tracks what of one partition is read, done and committed. Only an unbroken run of done offsets can be committed.

    :ivar position: the next offset to read
    :ivar done: every offset below it is done
    :ivar committed: the offset that the broker is known to hold for the group
    """

    __slots__ = ("_spans", "committed", "done", "position")

    def __init__(self, start: int, committed: int | None = None) -> None:
        """:param committed: None: ``start``"""
        self.position = self.done = start
        self.committed = start if committed is None else committed
        self._spans: deque[Span] = deque()

    def read(self, end: int, pending: int) -> Span:
        """Record that offsets below ``end`` were read, with ``pending`` parts to be done."""
        span = Span(end, pending)
        self._spans.append(span)
        self.position = end
        return span

    def skip_to(self, position: int) -> None:
        """Skip offsets below ``position``: control records, or what the log has lost. Never goes back."""
        if position > self.position:
            self.read(position, 0)

    def settle(self) -> int:
        """Move :attr:`done` past the completed spans, in order, and return it."""
        spans = self._spans
        while spans and spans[0].pending <= 0:
            self.done = spans.popleft().end
        return self.done

    @property
    def uncommitted(self) -> int:
        """Offsets that are read, and not known to be committed."""
        return self.position - self.committed

    @property
    def idle(self) -> bool:
        """True if everything that was read is done."""
        self.settle()
        return not self._spans

    def to_commit(self) -> int | None:
        """The offset to commit now, or None if the broker already holds it."""
        done = self.settle()
        return done if done > self.committed else None

    def note_committed(self, offset: int) -> None:
        """The broker acknowledged ``offset``. Acknowledgements may be late; the highest counts."""
        self.committed = max(self.committed, offset)
