"""A token bucket. Pure: the caller brings the time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RateLimit:
    """:ivar per_s: events a second in the long run, 0 for no limit; :ivar burst: events at once after a rest."""

    per_s: float
    burst: int


class RateBucket:
    """How much of a limit is left. Starts full; two floats, for there is one per connection."""

    __slots__ = ("_at", "_left")

    def __init__(self) -> None:
        self._left = -1.0
        self._at = 0.0

    def take(self, limit: RateLimit, now: float) -> bool:
        """One event at ``now`` (seconds, monotonic); False if it is one too many."""
        if limit.per_s <= 0:
            return True
        if self._left < 0:
            self._left = float(limit.burst)
        else:
            self._left = min(float(limit.burst), self._left + max(0.0, now - self._at) * limit.per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
