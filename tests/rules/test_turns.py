"""Who has a turn of the event loop."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.turns import LEAST_GONE, MOST_PER_TURN, share

CROWDS = st.integers(0, 300)
TURNS = st.integers(0, 10_000)


def crowd(name: str, size: int) -> list[str]:
    return [f"{name}-{number}" for number in range(size)]


@given(CROWDS, CROWDS, TURNS)
def test_a_turn_is_as_full_as_can_be_and_no_fuller_and_nobody_has_it_twice(alive: int, gone: int, turn: int) -> None:
    chosen = share(crowd("alive", alive), crowd("gone", gone), turn)
    assert len(chosen) == min(MOST_PER_TURN, alive + gone)
    assert len(set(chosen)) == len(chosen)


@given(st.integers(0, MOST_PER_TURN - LEAST_GONE), CROWDS, TURNS)
def test_those_who_are_gone_keep_nobody_waiting(alive: int, gone: int, turn: int) -> None:
    everybody = crowd("alive", alive)
    assert share(everybody, crowd("gone", gone), turn)[:alive] == everybody


@given(CROWDS, CROWDS, TURNS)
def test_those_who_are_gone_are_seen_to_under_any_load(alive: int, gone: int, turn: int) -> None:
    chosen = share(crowd("alive", alive), crowd("gone", gone), turn)
    assert sum(name.startswith("gone") for name in chosen) >= min(gone, LEAST_GONE)


@given(CROWDS, CROWDS, TURNS)
def test_of_a_crowd_that_stays_the_same_nobody_is_left_out(alive: int, gone: int, turn: int) -> None:
    everybody, others = crowd("alive", alive), crowd("gone", gone)
    turns = alive // (MOST_PER_TURN - LEAST_GONE) + 2
    assert set(everybody) <= {name for number in range(turns) for name in share(everybody, others, turn + number)}
