"""Detects a last stable offset that stands still while the log grows: a transaction that is never ended. Pure.

A ``read_committed`` consumer reads up to the last stable offset: the first offset of the oldest open transaction. Every
record behind it waits, including those of other producers.
"""

from __future__ import annotations

from typing import NamedTuple


class Ends(NamedTuple):
    """The ends of a partition.

    :ivar stable: the last stable offset: records before it can be read
    :ivar high: the high watermark: records before it exist
    """

    stable: int
    high: int


class Standstill(NamedTuple):
    """A partition's last stable offset has come to a standstill, or moves again.

    :ivar over: it moves again
    :ivar ends: the partition's ends during the standstill
    :ivar seconds: its duration, as far as it was observed
    """

    over: bool
    ends: Ends
    seconds: float


class StandstillWatch:
    """Watches one partition.

    :param patience_s: how long the stable offset must be unchanged to count as a standstill
    """

    __slots__ = ("_ends", "_patience_s", "_reported", "_since")

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._ends: Ends | None = None
        self._since = 0.0
        self._reported = False

    def judge(self, ends: Ends, now: float) -> Standstill | None:
        """Return a standstill once when it begins, and once when it is over; otherwise None."""
        before, self._ends = self._ends, ends
        if before is not None and ends.stable == before.stable < before.high and ends.high >= before.high:
            if self._reported or now - self._since < self._patience_s:
                return None
            self._reported = True
            return Standstill(False, ends, now - self._since)
        since, self._since = self._since, now
        reported, self._reported = self._reported, False
        return Standstill(True, before, now - since) if reported and before is not None else None
