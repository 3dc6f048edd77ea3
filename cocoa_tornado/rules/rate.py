"""A token bucket, and a bound on log lines made of it. Pure: the caller brings the time."""

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

    def take(self, limit: RateLimit, now: float, events: int = 1) -> bool:
        """So many events at ``now`` (seconds, monotonic); False if that is too many: none of them counts then."""
        if limit.per_s <= 0:
            return True
        if self._left < 0:
            self._left = float(limit.burst)
        else:
            refilled = min(float(limit.burst), self._left + max(0.0, now - self._at) * limit.per_s)
            self._left = max(self._left, refilled)
        self._at = now
        if self._left < events:
            return False
        self._left -= events
        return True

    def credit(self, limit: RateLimit, seconds: float) -> None:
        """Let the events of so many seconds come late: on top of the burst, and once."""
        if self._left >= 0:
            self._left += seconds * limit.per_s


class LineBudget:
    """How many lines of one kind may be logged, where strangers or a fault could ask for any number of them."""

    __slots__ = ("_bucket", "_left_out", "_limit")

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self._bucket = RateBucket()
        self._left_out = 0

    def take(self, now: float) -> int | None:
        """None: leave this line out. A number: log it, and say that so many were left out before it."""
        if not self._bucket.take(self._limit, now):
            self._left_out += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return left_out
