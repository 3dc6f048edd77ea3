"""Who has a turn of the event loop, and how long it counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.turns import (
    ENOUGH,
    MAX_PER_TURN,
    MAX_SEEN,
    MAX_TURN_S,
    MIN_GONE,
    TurnClock,
    among_the_gone,
    room_left,
)

ALIVE = st.integers(0, MAX_PER_TURN)
CROWDS = st.integers(0, 300)
FIRST = st.integers(0, 1 << 16)


@given(ALIVE, st.integers(0, 2 * MAX_SEEN))
def test_no_more_are_asked_for_than_can_be_seen_to_and_not_a_few_at_a_time(alive: int, gone: int) -> None:
    room = room_left(alive, gone)
    assert alive + room <= MAX_PER_TURN or room == 0
    assert room == 0 or room > MIN_GONE


def test_it_is_looked_for_more_until_the_turn_is_worth_having() -> None:
    assert room_left(0, 0) == MAX_PER_TURN
    assert room_left(0, 1000) == MAX_PER_TURN
    assert room_left(ENOUGH - 1, 0) == MIN_GONE + 1
    assert room_left(ENOUGH, 0) == 0
    assert room_left(0, MAX_SEEN) == 0


@given(ALIVE, CROWDS, FIRST)
def test_of_the_gone_as_many_have_a_turn_as_there_is_room_for_and_some_under_any_load(
    alive: int, gone: int, first: int
) -> None:
    chosen = among_the_gone(alive, range(gone), first)
    assert len(set(chosen)) == len(chosen)
    assert len(chosen) == min(gone, max(MIN_GONE, MAX_PER_TURN - alive))
    assert set(chosen) <= set(range(gone))


@given(ALIVE, CROWDS)
def test_each_of_the_gone_may_be_among_them(alive: int, gone: int) -> None:
    assert {one for first in range(gone) for one in among_the_gone(alive, range(gone), first)} == set(range(gone))


# -- the clock

SECONDS = st.floats(0.0, 100.0)
TURNS = st.lists(st.tuples(st.one_of(st.none(), SECONDS), SECONDS, SECONDS, SECONDS), max_size=20)


@given(SECONDS, TURNS)
def test_the_clock_never_goes_back_nor_faster_than_the_machines_and_a_turn_counts_no_longer_than_it_may(
    now: float, turns: list[tuple[float | None, float, float, float]]
) -> None:
    clock, seen, at = TurnClock(now), now, now
    for timeout_s, waited, worked, more in turns:
        began = clock.read(now)
        clock.begin_wait(now, timeout_s)
        steps = [waited, worked, more]
        for step, seconds in enumerate(steps):
            now += seconds
            if step == 0:
                clock.end_wait(now)
            read = clock.read(now)
            assert -1e-9 <= read - seen <= now - at + 1e-9  # but for rounding
            seen, at = read, now
        if timeout_s is not None:
            assert seen - began <= timeout_s + 2 * MAX_TURN_S + 1e-9


@given(SECONDS, st.lists(st.tuples(SECONDS, st.floats(0.0, 1.0), st.floats(0.0, MAX_TURN_S)), max_size=20))
def test_without_a_pause_the_clock_is_the_machines(now: float, turns: list[tuple[float, float, float]]) -> None:
    clock = TurnClock(now)
    for timeout_s, share, worked in turns:
        clock.begin_wait(now, timeout_s)
        now += timeout_s * share
        clock.end_wait(now)
        now += worked
        assert clock.read(now) == pytest.approx(now, abs=1e-9)


@given(st.floats(1.0, 60.0), st.floats(0.0, 0.5), st.floats(0.0, 1000.0), st.booleans())
def test_after_a_pause_a_deadline_is_as_far_away_as_before(
    deadline: float, timeout_s: float, pause_s: float, in_the_wait: bool
) -> None:
    clock = TurnClock(0.0)
    clock.begin_wait(0.0, timeout_s)
    now = pause_s if in_the_wait else 0.0
    clock.end_wait(now)
    now = pause_s
    clock.begin_wait(now, 0.0)
    clock.end_wait(now)
    assert deadline - clock.read(now) >= deadline - timeout_s - 2 * MAX_TURN_S


def test_a_loop_that_waits_for_no_deadline_may_wait_as_long_as_it_likes() -> None:
    clock = TurnClock(0.0)
    clock.begin_wait(0.0, None)
    clock.end_wait(1000.0)
    assert clock.read(1000.0) == 1000.0
