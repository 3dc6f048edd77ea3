"""When claims are given up that Redis does not answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Container

from ..rules.claims import Claim


class ClaimDeadlines:
    """One timer for the claims that :meth:`add` names: nearly all are answered long before. IOLoop thread only.

    :param patience_s: returns how long a claim may wait, in seconds; all wait equally long
    :param waiting: the claims that were not answered yet: a live view
    :param give_up: called with the device of each one that has waited for too long, and the time
    """

    def __init__(
        self,
        clock: Callable[[], float],
        patience_s: Callable[[], float],
        waiting: Container[Claim],
        give_up: Callable[[str, float], None],
    ) -> None:
        self._clock, self._patience_s, self._waiting, self._give_up = clock, patience_s, waiting, give_up
        self._claims: deque[tuple[float, str, Claim]] = deque()  # and when each began
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<ClaimDeadlines of {len(self._claims)}>"

    def add(self, device_id: str, claim: Claim, now: float) -> None:
        """A claim has begun."""
        self._claims.append((now, device_id, claim))
        if self._timer is None:
            self._schedule(now)

    def stop(self) -> None:
        """Give up nothing any more. Idempotent."""
        self._claims.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, now: float) -> None:
        delay_s = max(0.0, self._claims[0][0] + self._patience_s() - now)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._run)

    def _run(self) -> None:
        self._timer = None
        now, patience_s = self._clock(), self._patience_s()
        while self._claims and self._claims[0][0] + patience_s <= now:
            _, device_id, claim = self._claims.popleft()
            if claim in self._waiting:
                self._give_up(device_id, now)
        if self._claims and self._timer is None:
            self._schedule(now)
