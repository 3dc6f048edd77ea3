"""Sets of numbers as runs of consecutive ones. Pure."""

from __future__ import annotations

from typing import TypeAlias

Runs: TypeAlias = tuple[tuple[int, int], ...]
"""Each run is its first and its last number. In order, with a number missing between any two."""


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
