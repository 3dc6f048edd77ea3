"""The retracted numbers of a lane: those that left the box and do not count as missed. Pure.

They are kept as runs of consecutive numbers, and at most ``MAX_RUNS`` of them: retracted and missed numbers may
alternate indefinitely while a device is not connected. Beyond that, the two oldest runs are *merged*: the result says
how many of its numbers are retracted, and no longer which. What a device has missed stays exact between any two
positions outside the merged runs. Where one is inside, as many of the numbers between them are taken to be retracted as
the run's total allows. So a replaced message never counts as missed, but a missed one may not be counted.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias


class RetractedRun(NamedTuple):
    """Numbers from ``first`` to ``last``, of which so many in ``total`` are retracted: all, unless it is merged."""

    first: int
    last: int
    total: int

    def within(self, after: int, up_to: int) -> int:
        """How many of the numbers above ``after``, up to ``up_to``, are retracted; if that is unknown, the most
        possible."""
        return max(0, min(self.total, min(self.last, up_to) - max(self.first - 1, after)))


Retracted: TypeAlias = tuple[RetractedRun, ...]
"""In order, with a number missing between any two."""

MAX_RUNS: Final = 256
"""A mailbox reads and writes them with each change of the box."""


def with_number(runs: Retracted, number: int) -> Retracted:
    """Add a number that is not in the set."""
    at = len(runs)
    while at and runs[at - 1].first > number:
        at -= 1
    if at and runs[at - 1].last >= number:
        first, last, total = runs[at - 1]
        more = RetractedRun(first, last, min(total + 1, last - first + 1))
        return (*runs[: at - 1], more, *runs[at:])
    added, before, after = RetractedRun(number, number, 1), runs[:at], runs[at:]
    if before and before[-1].last == number - 1:
        added, before = _joined(before[-1], added), before[:-1]
    if after and after[0].first == number + 1:
        added, after = _joined(added, after[0]), after[1:]
    runs = (*before, added, *after)
    return runs if len(runs) <= MAX_RUNS else (_joined(*runs[:2]), *runs[2:])


def _joined(one: RetractedRun, other: RetractedRun) -> RetractedRun:
    return RetractedRun(one.first, other.last, one.total + other.total)


def count_between(runs: Retracted, after: int, up_to: int) -> int:
    """Return how many numbers above ``after``, up to ``up_to``, are retracted."""
    return sum([run.within(after, up_to) for run in runs]) if runs else 0


def above(runs: Retracted, number: int) -> Retracted:
    """Remove everything up to ``number``."""
    if not runs or runs[0].first > number:
        return runs
    left = (RetractedRun(max(run.first, number + 1), run.last, run.within(number, run.last)) for run in runs)
    return tuple(run for run in left if run.total)


def retracted_to_text(runs: Retracted) -> str:
    """As mailboxes store them, such as ``3-90:41 95-97 99``."""
    return " ".join(map(_text_of, runs))


def _text_of(run: RetractedRun) -> str:
    first, last, total = run
    if total == last - first + 1:
        return f"{first}-{last}" if first < last else f"{first}"
    return f"{first}-{last}:{total}"


def retracted_of_text(text: str) -> Retracted:
    """:raises ValueError: it is not the text of retracted numbers"""
    return tuple(map(_run_of, text.split()))


def _run_of(text: str) -> RetractedRun:
    numbers, _, total = text.partition(":")
    first, _, last = numbers.partition("-")
    lowest = int(first)
    highest = int(last) if last else lowest
    return RetractedRun(lowest, highest, int(total) if total else highest - lowest + 1)
