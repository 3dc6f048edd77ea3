"""Passes batches from the consumer's thread to the IOLoop, and what is done back to the thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from tornado.ioloop import IOLoop

from ..rules.handoff import Span, WaterMarks, pause_s, size_of
from ..rules.records import Record
from ..rules.topic_log import Recent, Repeats
from .port import Batch, BrokerCounters


class Handoff:
    """Belongs to the consumer's thread, except :attr:`in_flight_bytes` and the ``done`` of a batch. Calls one thing on
    the IOLoop, ``add_callback``.

    :param marks: bound what is in flight, copies for the quarantine included
    :ivar recent: the records handed over since the topic's id was last confirmed
    :ivar assignments: how many there have been
    """

    def __init__(
        self, marks: WaterMarks, counters: BrokerCounters, *, loop: IOLoop, sink: Callable[[Batch], None]
    ) -> None:
        self._marks, self._counters, self._loop, self._sink = marks, counters, loop, sink
        # From the IOLoop: the number of a batch that is done, its spans, its records and its bytes.
        self._done: deque[tuple[int, list[Span], int, int]] = deque()
        self.recent, self._repeats = Recent(), Repeats(set())
        self.assignments = 0
        self._batches = 0  # handed over
        self._not_done: set[int] = set()  # numbers of the batches in flight
        self._repeated: set[int] = set()  # those of them whose records may come again, as repeats
        self._handed_over_at = 0.0

    @property
    def in_flight_bytes(self) -> int:
        """Bytes handed over and not done. Thread-safe."""
        return self._marks.in_flight_bytes

    @property
    def is_full(self) -> bool:
        return self._marks.paused

    @property
    def is_under_way(self) -> bool:
        """True while a batch is in flight."""
        return bool(self._not_done)

    @property
    def is_repeating(self) -> bool:
        """True while a batch is in flight whose records may come again: a repeat is no more done than its original."""
        return bool(self._repeated)

    def pause_s(self, pace_s: float) -> float:
        """How long to let records gather, at a high rate."""
        return pause_s(pace_s, self._handed_over_at, time.monotonic())

    def pass_on(
        self, records: list[Record], spans: list[Span], offsets: list[int], sources: list[tuple[str, int]]
    ) -> None:
        """Hand over records as one batch, without those that were handed over before."""
        if self._repeats and records:
            records, offsets, sources = self._repeats.without(records, offsets, sources)
            if not records:
                for span in spans:
                    span.done_one()
        if records:
            self.recent.note(offsets, records, sources)
            size = size_of(records)
            self.take(len(records), size)
            done = self.when_done(spans, len(records), size)
            self._loop.add_callback(self._hand_over, Batch(records, done, offsets, sources, self.assignments, size))
            self._handed_over_at = time.monotonic()

    def when_done(self, spans: list[Span], records: int, size: int) -> Callable[[], None]:
        """The ``done`` of a new batch; its first call counts."""
        is_done = False
        self._batches += 1
        number = self._batches
        self._not_done.add(number)

        def done() -> None:
            nonlocal is_done
            if not is_done:
                is_done = True
                self._done.append((number, spans, records, size))

        return done

    def take(self, records: int, size: int) -> None:
        """These are in flight from now on."""
        if self._marks.take(records, size):
            self._counters.pauses += 1

    def release(self, records: int, size: int) -> None:
        self._marks.release(records, size)

    def settle(self) -> None:
        """Process the batches that are done."""
        while self._done:
            number, spans, records, size = self._done.popleft()
            self._marks.release(records, size)
            self._not_done.discard(number)
            self._repeated.discard(number)
            for span in spans:
                span.done_one()

    def begin_again(self) -> None:
        """The log is read again from its beginning: from now on, recognize records that were handed over recently."""
        self._repeats, self.recent = self.recent.repeats(), Recent()
        if self._repeats:
            self._repeated = set(self._not_done)

    def _hand_over(self, batch: Batch) -> None:
        self._sink(batch)
