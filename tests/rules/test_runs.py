"""Sets of numbers as runs."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.runs import (
    MAX_RUNS,
    Runs,
    above,
    count_between,
    runs_of_text,
    runs_to_text,
    with_number,
    without,
)

NUMBERS = st.integers(1, 40)
SETS = st.frozensets(NUMBERS, max_size=25)


def runs_of(numbers: frozenset[int]) -> Runs:
    runs: Runs = ()
    for number in numbers:
        runs = with_number(runs, number)
    return runs


def numbers_of(runs: Runs) -> frozenset[int]:
    return frozenset(number for first, last in runs for number in range(first, last + 1))


@given(st.lists(NUMBERS, max_size=25))
def test_runs_hold_the_numbers_that_were_added_in_the_shortest_form(numbers: list[int]) -> None:
    runs: Runs = ()
    for number in numbers:
        runs = with_number(runs, number)
    assert numbers_of(runs) == set(numbers)
    assert all(first <= last for first, last in runs)
    assert all(one[1] + 1 < other[0] for one, other in pairwise(runs))


@given(SETS, NUMBERS, NUMBERS)
def test_numbers_between_two_are_counted(numbers: frozenset[int], after: int, up_to: int) -> None:
    assert count_between(runs_of(numbers), after, up_to) == len([n for n in numbers if after < n <= up_to])


@given(SETS, NUMBERS)
def test_numbers_up_to_one_are_removed(numbers: frozenset[int], number: int) -> None:
    assert above(runs_of(numbers), number) == runs_of(frozenset(n for n in numbers if n > number))


@given(SETS, SETS)
def test_one_set_is_removed_from_another(numbers: frozenset[int], removed: frozenset[int]) -> None:
    assert without(runs_of(numbers), runs_of(removed)) == runs_of(numbers - removed)


@given(SETS)
def test_runs_are_read_as_they_were_written(numbers: frozenset[int]) -> None:
    runs = runs_of(numbers)
    assert runs_of_text(runs_to_text(runs)) == runs


def test_runs_are_short_text() -> None:
    assert runs_to_text(((3, 5), (9, 9))) == "3-5 9-9"
    assert runs_of_text("") == ()


@pytest.mark.parametrize("text", ["3", "3-", "a-b", "3-5-7"])
def test_other_text_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        runs_of_text(text)


@given(st.integers(MAX_RUNS + 1, 3 * MAX_RUNS))
def test_beyond_the_limit_the_oldest_runs_are_joined(count: int) -> None:
    runs: Runs = ()
    for number in range(2, 2 * count + 2, 2):
        runs = with_number(runs, number)
    assert len(runs) == MAX_RUNS
    assert runs[0][0] == 2
    assert runs[1:] == tuple((n, n) for n in range(2 * (count - MAX_RUNS) + 4, 2 * count + 2, 2))
