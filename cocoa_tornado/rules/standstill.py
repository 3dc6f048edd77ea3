"""When the end of what may be read stands still though the log goes on: a transaction that nobody ends. Pure.

A consumer that reads what is committed (``read_committed``) reads up to the last stable offset: the first offset of the
oldest transaction that is still open. Every record behind it waits, those of other producers too.
"""

from __future__ import annotations

from typing import NamedTuple


class Ends(NamedTuple):
    """Where a partition ends.

    :ivar stable: the last stable offset: what stands before it may be read
    :ivar high: the high water mark: what stands before it is there
    """

    stable: int
    high: int


class Standstill(NamedTuple):
    """News of a partition whose last stable offset stands still, or has stood still until now.

    :ivar over: it moves again
    :ivar ends: where the partition ended while it stood still
    :ivar seconds: for so long, as far as it was watched
    """

    over: bool
    ends: Ends
    seconds: float


class StandstillWatch:
    """One partition.

    :param patience_s: a stable offset counts as standing still after so long
    """

    __slots__ = ("_ends", "_patience_s", "_since", "_told")

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._ends: Ends | None = None
        self._since = 0.0
        self._told = False

    def judge(self, ends: Ends, now: float) -> Standstill | None:
        """What is news about that: once that it stands still, and once, after that, that it moves again."""
        before, self._ends = self._ends, ends
        if before is not None and ends.stable == before.stable < before.high and ends.high >= before.high:
            if self._told or now - self._since < self._patience_s:
                return None
            self._told = True
            return Standstill(False, ends, now - self._since)
        since, self._since = self._since, now
        told, self._told = self._told, False
        return Standstill(True, before, now - since) if told and before is not None else None
