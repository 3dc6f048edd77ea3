"""Sets of numbers as runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.runs import Runs, above, without

NUMBERS = st.integers(1, 40)
SETS = st.frozensets(NUMBERS, max_size=25)


def runs_of(numbers: frozenset[int]) -> Runs:
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        first = runs.pop()[0] if runs and runs[-1][1] == number - 1 else number
        runs.append((first, number))
    return tuple(runs)


@given(SETS, NUMBERS)
def test_numbers_up_to_one_are_removed(numbers: frozenset[int], number: int) -> None:
    assert above(runs_of(numbers), number) == runs_of(frozenset(n for n in numbers if n > number))


@given(SETS, SETS)
def test_one_set_is_removed_from_another(numbers: frozenset[int], removed: frozenset[int]) -> None:
    assert without(runs_of(numbers), runs_of(removed)) == runs_of(numbers - removed)
