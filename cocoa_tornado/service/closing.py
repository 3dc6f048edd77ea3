"""Closes the parts that a gateway has opened, in reverse order and by a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import Final

LEAST_S: Final = 0.1
"""Every part gets this much time to close, even after the deadline."""


class OpenParts:
    """Register the end of a part before opening the part: then every opened part is closed, even if the start fails. A
    part that fails to close does not prevent closing the others. IOLoop thread only.

    A *share* is a part's share of the time until the deadline when its turn comes.

    :param clock: monotonic seconds
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._stack = contextlib.AsyncExitStack()
        self._deadline = math.inf

    def left_s(self, share: float = 1.0) -> float:
        """Return a share of the time until the deadline; ``LEAST_S`` or more."""
        return max(LEAST_S, (self._deadline - self._clock()) * share)

    def stop(self, stop: Callable[[], None]) -> None:
        """Register a part that ends at once."""
        self._stack.callback(stop)

    def wait(self, close: Callable[[], Awaitable[None]]) -> None:
        """Register a part that is awaited without a limit."""
        self._stack.push_async_callback(close)

    def within(self, close: Callable[[float], Awaitable[None]], share: float = 1.0) -> None:
        """Register a part that enforces a time limit itself; it gets the limit in seconds."""

        async def close_within() -> None:
            await close(self.left_s(share))

        self._stack.push_async_callback(close_within)

    def in_time(self, close: Callable[[], Awaitable[object]], share: float) -> None:
        """Register a part that is abandoned when its share of the time is over."""

        async def close_in_time() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.left_s(share)):
                    await close()

        self._stack.push_async_callback(close_in_time)

    def end_within(self, seconds: float) -> None:
        """Set the deadline."""
        self._deadline = self._clock() + seconds

    async def close(self) -> None:
        """Close all, the last one first."""
        await self._stack.aclose()
