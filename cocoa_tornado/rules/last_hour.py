"""The counts of the last hour, from snapshots of the counters, one per minute. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

PERIOD_S: Final = 60.0
"""Between two snapshots; the period is at most this much longer than an hour."""
HOUR_S: Final = 3_600.0


class Counted(NamedTuple):
    """Counters at one moment, or by how much they have grown. Each is 0 unless it is named.

    :ivar counters: by name; :ivar refused: by reason; :ivar closed: by close code
    """

    counters: Mapping[str, int]
    refused: Mapping[str, int] = {}
    closed: Mapping[str, int] = {}

    def since(self, before: Counted) -> Counted:
        """The counts since an earlier moment, without those that are 0."""
        return Counted(*(_growth(now, then) for now, then in zip(self, before, strict=True)))


def _growth(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    grown = ((name, count - before.get(name, 0)) for name, count in now.items())
    return {name: count for name, count in grown if count > 0}


class LastHour:
    """The snapshots. There are at most 62 of them, however they are timed.

    :param now: when nothing was counted yet; seconds of any clock that does not go back
    """

    def __init__(self, now: float) -> None:
        self._snapshots: deque[tuple[float, Counted]] = deque([(now, Counted({}))], int(HOUR_S / PERIOD_S) + 2)

    def __repr__(self) -> str:
        return f"<LastHour of {len(self._snapshots)} snapshots>"

    def note(self, now: float, counted: Counted) -> None:
        """Take a snapshot. Call it once per :data:`PERIOD_S`."""
        self._snapshots.append((now, counted))
        self._forget(now)

    def since(self, now: float, counted: Counted) -> tuple[float, Counted]:
        """Return the length of the period in seconds, and its counts. The period is an hour, or at most a minute more;
        less if the process is younger, more if it was paused."""
        self._forget(now)
        at, before = self._snapshots[0]
        return now - at, counted.since(before)

    def _forget(self, now: float) -> None:
        """Keep one snapshot that is an hour old."""
        while len(self._snapshots) > 1 and now - self._snapshots[1][0] >= HOUR_S:
            self._snapshots.popleft()
