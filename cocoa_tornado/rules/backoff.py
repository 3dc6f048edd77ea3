"""How long to wait before a retry: exponential backoff with full jitter, capped.

Full jitter (a uniform delay between zero and the ceiling) spreads the clients of a failed server over the whole
interval, so its return does not cause a stampede.
"""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """The delays of one operation that is retried.

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
        """The longest delay that :meth:`next_s` can return now."""
        # 2.0**1024 overflows; after 64 doublings every sensible base has reached its cap.
        return min(self._cap_s, self._base_s * 2.0 ** min(self.attempt, 64))

    def next_s(self) -> float:
        """Count a failure and return the delay in seconds: uniform between 0 and the ceiling."""
        delay_s = self._uniform(0.0, self.ceiling_s())
        self.attempt += 1
        return delay_s

    def reset(self) -> None:
        """Record a success: the next failure starts at ``base_s`` again."""
        self.attempt = 0
