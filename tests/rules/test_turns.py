"""Who has a turn of the event loop."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.turns import ENOUGH, LEAST_GONE, MOST_PER_TURN, MOST_SEEN, among_the_gone, room_left

ALIVE = st.integers(0, MOST_PER_TURN)
CROWDS = st.integers(0, 300)
FIRST = st.integers(0, 1 << 16)


@given(ALIVE, st.integers(0, 2 * MOST_SEEN))
def test_no_more_are_asked_for_than_can_be_seen_to_and_not_a_few_at_a_time(alive: int, gone: int) -> None:
    room = room_left(alive, gone)
    assert alive + room <= MOST_PER_TURN or room == 0
    assert room == 0 or room > LEAST_GONE


def test_it_is_looked_for_more_until_the_turn_is_worth_having() -> None:
    assert room_left(0, 0) == MOST_PER_TURN
    assert room_left(0, 1000) == MOST_PER_TURN
    assert room_left(ENOUGH - 1, 0) == LEAST_GONE + 1
    assert room_left(ENOUGH, 0) == 0
    assert room_left(0, MOST_SEEN) == 0


@given(ALIVE, CROWDS, FIRST)
def test_of_the_gone_as_many_have_a_turn_as_there_is_room_for_and_some_under_any_load(
    alive: int, gone: int, first: int
) -> None:
    chosen = among_the_gone(alive, range(gone), first)
    assert len(set(chosen)) == len(chosen)
    assert len(chosen) == min(gone, max(LEAST_GONE, MOST_PER_TURN - alive))
    assert set(chosen) <= set(range(gone))


@given(ALIVE, CROWDS)
def test_each_of_the_gone_may_be_among_them(alive: int, gone: int) -> None:
    assert {one for first in range(gone) for one in among_the_gone(alive, range(gone), first)} == set(range(gone))
