"""How long to wait before trying again: exponential, with full jitter, bounded.

Full jitter (any delay between nothing and the ceiling, evenly) spreads a fleet of clients that lost the same server
over the whole interval, so that its return is not answered by a stampede.
"""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """The delays of one thing that is being retried.

    :ivar attempt: failures since the last :meth:`reset`

    >>> backoff = Backoff(base_s=0.5, cap_s=4.0, uniform=lambda low, high: high)
    >>> [backoff.next_s() for _ in range(5)]
    [0.5, 1.0, 2.0, 4.0, 4.0]
    """

    __slots__ = ("_base_s", "_cap_s", "_uniform", "attempt")

    def __init__(
        self, *, base_s: float, cap_s: float, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        if not 0 < base_s <= cap_s:
            raise ValueError(f"base_s {base_s} must be positive and at most cap_s {cap_s}")
        self._base_s, self._cap_s, self._uniform = base_s, cap_s, uniform
        self.attempt = 0

    def ceiling_s(self) -> float:
        """The longest that :meth:`next_s` may return now."""
        # 2.0**1024 overflows; past 64 doublings every sensible base has met its cap.
        return min(self._cap_s, self._base_s * 2.0 ** min(self.attempt, 64))

    def next_s(self) -> float:
        """Count one more failure and return the seconds to wait: between 0 and the ceiling, evenly."""
        delay_s = self._uniform(0.0, self.ceiling_s())
        self.attempt += 1
        return delay_s

    def reset(self) -> None:
        """It worked: the next failure starts at ``base_s`` again."""
        self.attempt = 0
