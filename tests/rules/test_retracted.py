"""The retracted numbers of a lane."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules import retracted
from cocoa_tornado.rules.retracted import (
    MAX_RUNS,
    Retracted,
    RetractedRun,
    above,
    count_between,
    retracted_of_text,
    retracted_to_text,
    with_number,
)

NUMBERS = st.integers(1, 40)
SETS = st.frozensets(NUMBERS, max_size=25)


def runs_of(numbers: frozenset[int] | range) -> Retracted:
    runs: Retracted = ()
    for number in numbers:
        runs = with_number(runs, number)
    return runs


@given(st.lists(NUMBERS, max_size=25, unique=True))
def test_runs_hold_the_numbers_that_were_added_in_the_shortest_form(numbers: list[int]) -> None:
    runs: Retracted = ()
    for number in numbers:
        runs = with_number(runs, number)
    assert {number for first, last, _ in runs for number in range(first, last + 1)} == set(numbers)
    assert all(count == last - first + 1 for first, last, count in runs)
    assert all(one.last + 1 < other.first for one, other in pairwise(runs))


@given(SETS, NUMBERS, NUMBERS)
def test_numbers_between_two_are_counted(numbers: frozenset[int], after: int, up_to: int) -> None:
    assert count_between(runs_of(numbers), after, up_to) == len([n for n in numbers if after < n <= up_to])


@given(SETS, NUMBERS)
def test_numbers_up_to_one_are_removed(numbers: frozenset[int], number: int) -> None:
    assert above(runs_of(numbers), number) == runs_of(frozenset(n for n in numbers if n > number))


@given(SETS, st.sampled_from([2, MAX_RUNS]))
def test_runs_are_read_as_they_were_written(numbers: frozenset[int], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retracted, "MAX_RUNS", most)
        runs = runs_of(numbers)
    assert retracted_of_text(retracted_to_text(runs)) == runs


def test_runs_are_short_text() -> None:
    assert (
        retracted_to_text((RetractedRun(1, 7, 4), RetractedRun(9, 11, 3), RetractedRun(13, 13, 1))) == "1-7:4 9-11 13"
    )
    assert retracted_of_text("") == ()
    assert retracted_of_text("3-5 9-9") == (RetractedRun(3, 5, 3), RetractedRun(9, 9, 1))


@pytest.mark.parametrize("text", ["x", "a-b", "3-5-7", "3:x"])
def test_other_text_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        retracted_of_text(text)


@given(st.integers(MAX_RUNS + 1, 3 * MAX_RUNS))
def test_beyond_the_limit_the_oldest_runs_are_merged(count: int) -> None:
    runs = runs_of(range(2, 2 * count + 2, 2))
    merged = count - MAX_RUNS + 1
    assert len(runs) == MAX_RUNS
    assert runs[0] == RetractedRun(2, 2 * merged, merged)
    assert runs[1:] == tuple(RetractedRun(n, n, 1) for n in range(2 * merged + 2, 2 * count + 2, 2))


@given(st.permutations(range(1, 31)), SETS, NUMBERS, NUMBERS)
def test_a_count_is_exact_outside_merged_runs_and_never_too_low_inside(
    order: list[int], numbers: frozenset[int], after: int, up_to: int
) -> None:
    runs: Retracted = ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retracted, "MAX_RUNS", 3)
        added = [number for number in order if number in numbers]
        for number in added:
            runs = with_number(runs, number)
    exact = len([number for number in added if after < number <= up_to])
    counted = count_between(runs, after, up_to)
    assert exact <= counted <= max(0, up_to - after)
    merged = [run for run in runs if run.total <= run.last - run.first]
    if not any(run.first <= edge < run.last for run in merged for edge in (after, up_to)):
        assert counted == exact


@given(SETS, NUMBERS, NUMBERS)
def test_what_is_removed_from_a_merged_run_makes_no_count_too_low(
    numbers: frozenset[int], number: int, up_to: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retracted, "MAX_RUNS", 2)
        left = above(runs_of(numbers), number)
    assert count_between(left, number, up_to) >= len([n for n in numbers if number < n <= up_to])
    assert all(run.first > number for run in left)
