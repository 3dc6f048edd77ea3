"""Sets of numbers as runs of consecutive ones. Pure."""

from __future__ import annotations

from typing import Final, TypeAlias

Runs: TypeAlias = tuple[tuple[int, int], ...]
"""Each run is its first and its last number. In order, with a number missing between any two."""

MAX_RUNS: Final = 64
"""Beyond it the two oldest runs are joined, with the numbers between them, some of which may be in use."""


def with_number(runs: Runs, number: int) -> Runs:
    """Add a number."""
    at = len(runs)
    while at and runs[at - 1][0] > number:
        at -= 1
    if at and runs[at - 1][1] >= number:
        return runs
    first = last = number
    before, after = runs[:at], runs[at:]
    if before and before[-1][1] == number - 1:
        first, before = before[-1][0], before[:-1]
    if after and after[0][0] == number + 1:
        last, after = after[0][1], after[1:]
    added = (*before, (first, last), *after)
    return added if len(added) <= MAX_RUNS else ((added[0][0], added[1][1]), *added[2:])


def count_between(runs: Runs, after: int, up_to: int) -> int:
    """Return how many numbers above ``after``, up to ``up_to``, are in the set."""
    return sum(max(0, min(last, up_to) - max(first, after + 1) + 1) for first, last in runs)


def above(runs: Runs, number: int) -> Runs:
    """Remove everything up to ``number``."""
    if not runs or runs[0][0] > number:
        return runs
    return tuple((max(first, number + 1), last) for first, last in runs if last > number)


def without(runs: Runs, removed: Runs) -> Runs:
    """Remove numbers.

    :param removed: in order, and with no number in two of them
    """
    left: list[tuple[int, int]] = []
    for first, last in runs:
        begin = first
        for removed_first, removed_last in removed:
            if removed_last < begin or removed_first > last:
                continue
            if removed_first > begin:
                left.append((begin, removed_first - 1))
            begin = removed_last + 1
        if begin <= last:
            left.append((begin, last))
    return tuple(left)


def runs_to_text(runs: Runs) -> str:
    """As mailboxes store them, such as ``3-5 9-9``."""
    return " ".join(f"{first}-{last}" for first, last in runs)


def runs_of_text(text: str) -> Runs:
    """:raises ValueError: it is not the text of runs"""
    runs = []
    for run in text.split():
        first, _, last = run.partition("-")
        runs.append((int(first), int(last)))
    return tuple(runs)
