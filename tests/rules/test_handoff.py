from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cocoa_tornado.routing.address import Address, Devices, Everyone
from cocoa_tornado.rules.handoff import RECORD_BYTES, OffsetLedger, Span, WaterMarks, pause_s, size_of
from cocoa_tornado.rules.records import Record


def test_it_pauses_once_at_the_high_mark_and_resumes_once_below_the_low_one() -> None:
    marks = WaterMarks(high=10, low=4)
    assert [marks.take(5), marks.take(5), marks.take(5)] == [False, True, False]
    assert [marks.release(5), marks.release(6), marks.release(1), marks.release(3)] == [False, False, True, False]
    assert (marks.in_flight, marks.paused) == (0, False)


def test_it_pauses_for_bytes_as_for_records_and_resumes_when_both_are_below() -> None:
    marks = WaterMarks(high=10, low=4, high_bytes=1000, low_bytes=500)
    assert [marks.take(2, 600), marks.take(1, 400), marks.take(8, 8)] == [False, True, False]
    assert not marks.release(1, 600)  # 408 bytes, but ten records
    assert marks.release(7, 8)
    assert (marks.in_flight, marks.in_flight_bytes, marks.paused) == (3, 400, False)


def test_a_record_larger_than_the_mark_is_in_flight_alone() -> None:
    marks = WaterMarks(high=10, low=4, high_bytes=1000)
    assert marks.take(1, 5000)
    assert marks.release(1, 5000)


def test_the_size_of_a_delivery_is_its_payload_and_what_a_record_costs() -> None:
    assert size_of([Record("doll", b"x" * 100, 0), Record("doll", b"", 0)]) == 100 + 2 * RECORD_BYTES


@pytest.mark.parametrize("names", [lambda ids: Devices(tuple(ids)), lambda ids: Everyone(frozenset(ids))])
def test_the_devices_that_a_record_names_or_excludes_count(names: Callable[[list[str]], Address]) -> None:
    """They take a thousand times as much memory as a short payload."""
    gc.collect()
    tracemalloc.start()
    try:
        record = Record(names([f"device-{number:09}" for number in range(1000)]), b"x", 0)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken > 60_000
    assert taken <= size_of([record]) <= 2 * taken


@pytest.mark.parametrize(("high", "low"), [(10, 11), (10, 0), (0, 0)])
def test_marks_that_could_never_resume_are_refused(high: int, low: int) -> None:
    with pytest.raises(ValueError, match="water mark"):
        WaterMarks(high=high, low=low)
    with pytest.raises(ValueError, match="water mark"):
        WaterMarks(high=10, low=1, high_bytes=high, low_bytes=low)


def test_more_done_than_handed_over_is_a_mistake() -> None:
    marks = WaterMarks(high=10, low=4)
    marks.take(1)
    with pytest.raises(ValueError, match="only 1 in flight"):
        marks.release(2)


class Marks(RuleBasedStateMachine):
    """Parts of any size are handed over and done, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.marks = WaterMarks(high=20, low=5, high_bytes=2000, low_bytes=300)
        self.open: list[tuple[int, int]] = []

    def is_high(self) -> bool:
        return self.marks.in_flight >= 20 or self.marks.in_flight_bytes >= 2000

    def is_low(self) -> bool:
        return self.marks.in_flight < 5 and self.marks.in_flight_bytes < 300

    @rule(records=st.integers(1, 12), size=st.integers(0, 2500))
    def take(self, records: int, size: int) -> None:
        before = self.marks.paused
        self.open.append((records, size))
        assert self.marks.take(records, size) == (self.marks.paused and not before)
        assert self.marks.paused == (before or self.is_high())

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        before = self.marks.paused
        part = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        assert self.marks.release(*part) == (before and not self.marks.paused)
        assert self.marks.paused == (before and not self.is_low())

    @invariant()
    def counts_what_is_open(self) -> None:
        assert self.marks.in_flight == sum(records for records, _ in self.open)
        assert self.marks.in_flight_bytes == sum(size for _, size in self.open)
        assert self.open or not self.marks.paused


TestMarks = Marks.TestCase


def test_only_an_unbroken_run_of_done_offsets_may_be_committed() -> None:
    ledger = OffsetLedger(100)
    first, second = ledger.read(103, pending=1), ledger.read(105, pending=2)
    assert (ledger.position, ledger.to_commit()) == (105, None)
    second.done_one()
    second.done_one()
    assert ledger.to_commit() is None
    first.done_one()
    assert ledger.to_commit() == 105


def test_what_is_committed_is_not_committed_again() -> None:
    ledger = OffsetLedger(0)
    ledger.read(7, pending=0)
    assert ledger.to_commit() == 7
    ledger.note_committed(7)
    ledger.note_committed(3)  # an acknowledgement that was overtaken
    assert (ledger.to_commit(), ledger.committed) == (None, 7)


def test_what_is_read_and_not_committed_is_counted() -> None:
    ledger = OffsetLedger(10)
    ledger.read(15, pending=0)
    assert ledger.uncommitted == 5
    ledger.note_committed(12)
    assert ledger.uncommitted == 3


def test_offsets_that_hold_nothing_are_done_and_may_be_committed() -> None:
    ledger = OffsetLedger(0)
    span = ledger.read(5, pending=1)
    ledger.skip_to(40_000)
    assert ledger.to_commit() is None
    span.done_one()
    assert ledger.to_commit() == 40_000
    ledger.note_committed(40_000)
    assert ledger.uncommitted == 0
    ledger.skip_to(7)
    assert ledger.position == 40_000


class LedgerMachine(RuleBasedStateMachine):
    """Against a model that marks every single offset."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = OffsetLedger(10)
        self.open: list[Span] = []
        self.spans: list[tuple[Span, int, int]] = []

    @rule(count=st.integers(1, 5), parts=st.integers(0, 3))
    def read(self, count: int, parts: int) -> None:
        start = self.ledger.position
        span = self.ledger.read(start + count, parts)
        self.spans.append((span, start, start + count))
        self.open += [span] * parts

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def finish_a_part(self, data: st.DataObject) -> None:
        self.open.pop(data.draw(st.integers(0, len(self.open) - 1))).done_one()

    @rule()
    def commit(self) -> None:
        offset = self.ledger.to_commit()
        if offset is not None:
            self.ledger.note_committed(offset)

    @invariant()
    def done_is_the_start_of_the_first_open_span(self) -> None:
        starts = [start for span, start, _ in self.spans if span in self.open]
        assert self.ledger.settle() == min(starts, default=self.ledger.position)
        assert self.ledger.idle == (not starts)
        assert self.ledger.committed <= self.ledger.done <= self.ledger.position


TestLedgerMachine = LedgerMachine.TestCase


def test_a_record_that_comes_alone_waits_for_nothing() -> None:
    assert pause_s(0.003, 0.0, 100.0) == 0.0
    assert pause_s(0.003, 100.0, 100.006) == 0.0


def test_where_records_flow_the_next_gather_for_the_rest_of_the_pace() -> None:
    assert pause_s(0.003, 100.0, 100.0) == 0.003
    assert 0.0 < pause_s(0.003, 100.0, 100.0015) < 0.003


def test_no_clock_makes_it_wait_longer() -> None:
    assert pause_s(0.003, 1e9, 100.0) == 0.003
