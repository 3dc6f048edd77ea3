"""Which records have been stored already."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.seen import HOLE, MAX_HOLE, WINDOW, Remembered, SeenOffsets, SeenRun, judge


def records(first: int, count: int, shift: int = 0) -> list[tuple[int, int]]:
    return [(offset, 1000 + offset + shift) for offset in range(first, first + count)]


def written_down(kept: list[SeenRun], remembered: Remembered) -> list[SeenRun]:
    """The stored offsets of a source."""
    kept = [] if remembered.reset else kept
    return [run for run in kept if run.end > remembered.floor] + remembered.runs


def test_a_record_is_new_once() -> None:
    seen = SeenOffsets()
    assert seen.take(records(10, 3))[0] == [True, True, True]
    assert seen.take(records(11, 3))[0] == [False, False, True]
    assert seen.end == 14


def test_what_is_written_down_is_remembered() -> None:
    kept: list[SeenRun] = []
    for first in (0, 5, 9):
        _, remembered = SeenOffsets(kept).take(records(first, 4))
        kept = written_down(kept, remembered)
    assert [(run.first, run.end) for run in kept] == [(0, 4), (5, 9), (9, 13)]
    assert SeenOffsets(kept).take(records(0, 14))[0] == [False] * 4 + [True] + [False] * 8 + [True]


def test_a_hole_is_no_record() -> None:
    seen = SeenOffsets()
    _, remembered = seen.take([(1, 5), (4, 5), (4 + MAX_HOLE + 2, 5)])
    assert [list(run.stamps[:4]) for run in remembered.runs] == [[5, HOLE, HOLE, 5], [5]]


def test_another_record_of_the_same_offset_is_new_and_so_is_all_behind_it() -> None:
    seen = SeenOffsets()
    _, first = seen.take(records(0, 10))
    fresh, remembered = seen.take(records(4, 2, shift=7))
    assert fresh == [True, True]
    assert remembered.reset
    kept = written_down(first.runs, remembered)
    assert SeenOffsets(kept).take(records(0, 4) + records(4, 2, shift=7) + records(6, 4))[0] == [False] * 6 + [True] * 4


def test_a_topic_wound_back_beyond_the_window_is_stored_again() -> None:
    seen = SeenOffsets()
    for first in range(0, WINDOW + 2000, 1000):
        _, remembered = seen.take(records(first, 1000))
    assert remembered.floor == 68_000 - WINDOW
    assert seen.take(records(1500, 1))[0] == [True]
    assert seen.take(records(1500, 2))[0] == [False, True]


def test_a_run_survives_being_written_down() -> None:
    run = SeenRun(3, array("q", [0, HOLE, 2**62]))
    assert run.to_bytes() == b"".join(stamp.to_bytes(8, "little", signed=True) for stamp in run.stamps)
    assert SeenRun.from_bytes(3, run.to_bytes()) == run
    with pytest.raises(ValueError, match="bytes"):
        SeenRun.from_bytes(3, b"short")


def test_a_record_in_a_hole_is_new_and_all_behind_it_is_not() -> None:
    seen = SeenOffsets()
    _, first = seen.take(records(0, 3) + records(4, 2) + records(5 + MAX_HOLE * 2, 2))
    fresh, remembered = seen.take(records(2, 4) + records(7, 1) + records(5 + MAX_HOLE * 2, 2))
    assert fresh == [False, True, False, False, True, False, False]
    kept = written_down(first.runs, remembered)
    assert SeenOffsets(kept).take(records(0, 6) + records(7, 1))[0] == [False] * 7


def test_what_came_before_all_that_is_remembered_is_new() -> None:
    seen = SeenOffsets()
    seen.take(records(100, 5))
    assert seen.take(records(97, 8))[0] == [True] * 3 + [False] * 5
    assert seen.take(records(97, 8))[0] == [False] * 8


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 12), st.booleans()),
        max_size=12,
    )
)
def test_reading_again_from_any_committed_offset_stores_each_record_once(reads: list[tuple[int, int, bool]]) -> None:
    """A consumer that goes back to any offset, with a crash in between or not, and never skips any."""
    kept: list[SeenRun] = []
    seen, stored, end = SeenOffsets(), set[int](), 0
    for back, count, crash in reads:
        if crash:
            seen = SeenOffsets(kept)
        first = max(0, end - back)
        fresh, remembered = seen.take(records(first, count))
        kept = written_down(kept, remembered)
        taken = [offset for (offset, _), new in zip(records(first, count), fresh, strict=True) if new]
        assert not stored & set(taken)
        stored |= set(taken)
        end = max(end, first + count)
        assert stored == set(range(end))


class Message(NamedTuple):
    device_id: str
    offset: int
    timestamp_ms: int = 0
    source: str = "results/0"


class Sources:
    """What ``judge`` asks; counts how often."""

    def __init__(self) -> None:
        self.seen: dict[str, SeenOffsets] = {}
        self.asked = 0

    def __call__(self, source: str, records: Sequence[tuple[int, int]]) -> list[bool]:
        self.asked += 1
        return self.seen.setdefault(source, SeenOffsets()).take(records)[0]


def test_a_record_is_judged_once_and_then_each_of_its_devices() -> None:
    sources = Sources()
    record = [Message("a", 0), Message("b", 0), Message("a", 0), Message("a", 1)]
    assert judge([record, record[:1], [Message("c", 0), Message("c", 2)]], sources) == [
        *(True, True, False, True),
        False,
        *(False, True),
    ]
    assert sources.asked == 1


def test_a_source_that_another_stands_between_is_one_source() -> None:
    sources = Sources()
    other = Message("a", 0, source="results/1")
    assert judge([[Message("a", 0), other, Message("b", 0), other]], sources) == [True, True, True, False]


BATCHES = st.lists(
    st.tuples(st.integers(0, 4), st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), max_size=4)),
    max_size=8,
)


@given(BATCHES, st.lists(st.integers(1, 3), min_size=1))
def test_however_often_it_is_read_each_device_of_a_record_gets_it_once(
    reads: list[tuple[int, list[list[str]]]], sizes: list[int]
) -> None:
    """Reads that go back to any record, in calls of which any number is stored together."""
    sources, devices_of = Sources(), list[list[str]]()
    stored: list[tuple[int, str]] = []
    calls: list[list[Message]] = []
    for back, new in reads:
        first = max(0, len(devices_of) - back)
        devices_of += new
        calls.append([Message(d, at, 5) for at in range(first, len(devices_of)) for d in devices_of[at]])
    for turn in range(len(calls)):
        size = sizes[turn % len(sizes)]
        together, calls = calls[:size], calls[size:]
        fresh = judge(together, sources)
        entries = [entry for call in together for entry in call]
        stored += [(entry.offset, entry.device_id) for entry, new in zip(entries, fresh, strict=True) if new]
    assert sorted(stored) == sorted({(at, device) for at, devices in enumerate(devices_of) for device in devices})
    assert [at for at, _ in stored] == sorted(at for at, _ in stored)
