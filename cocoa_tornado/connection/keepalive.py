"""Which connections to ping, which have been silent for too long, and which tokens have expired. Pure; one tick drives
it.

One wheel serves all connections, instead of a timer or a task for each.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

TICKS_PER_INTERVAL = 60
NEVER = -1
GOLDEN = 0.6180339887498949  # spreads consecutive numbers evenly over an interval


class Pinged(Protocol):
    """What the wheel needs of a connection.

    :ivar awaiting_pong: a ping is unanswered; the connection clears it when a pong arrives
    :ivar due_tick: the connection's bucket, for the wheel only
    """

    awaiting_pong: bool
    due_tick: int

    def pong_may_be_late(self) -> bool:
        """Called when a pong is overdue: whether it may have arrived, or may be late because of the gateway.

        That is so if the socket has unread data, or if, since the ping was requested or since the last call, the ping
        waited for the socket or the gateway did not read from the connection. While the gateway still does not read,
        the client's kernel must also acknowledge pings."""


T = TypeVar("T", bound=Pinged)
H = TypeVar("H", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Due(Generic[T]):
    """The connections to act on."""

    ping: tuple[T, ...]
    expired: tuple[T, ...]


class PingWheel(Generic[T]):
    """Buckets of connections by the tick at which they are due; an entry remembers the tick of its last ping.

    With an interval of 30 s and a timeout of 30 s, a ping is sent at most 30 s after the last one, and a connection
    that does not answer expires between 30.0 s and 30.5 s after its ping (a tick is a sixtieth of the interval), so a
    sign of life is never older than 60 s. If the pong may be late because of this side, the connection gets the whole
    time again. ``now`` is monotonic time in seconds. The timeout may not exceed the interval.
    """

    def __init__(self, interval_s: float, timeout_s: float, now: float) -> None:
        self.tick_s = interval_s / TICKS_PER_INTERVAL
        # The timeout is one tick longer, because a ping may have been sent late in its tick. The interval is two ticks
        # shorter: one for that, and one for a late timer.
        self._interval_ticks = TICKS_PER_INTERVAL - 2
        self._timeout_ticks = math.ceil(timeout_s / self.tick_s - 1e-9) + 1
        self._origin = now
        self._tick = 0
        self._buckets: dict[int, dict[T, int]] = {}

    def __repr__(self) -> str:
        return f"<PingWheel tick {self.tick_s:g} s, {sum(map(len, self._buckets.values()))} entries>"

    @property
    def is_empty(self) -> bool:
        return not self._buckets

    def add(self, item: T, number: int) -> None:
        """Watch a connection. Its first ping is due after half an interval to a whole one, spread by ``number``."""
        spread = (number * GOLDEN) % 1.0
        self._put(item, NEVER, self._tick + int(self._interval_ticks * (0.5 + spread / 2)))

    def remove(self, item: T) -> None:
        """Forget a connection. Nothing happens if it is not watched."""
        bucket = self._buckets.get(item.due_tick)
        if bucket is not None:
            bucket.pop(item, None)
            if not bucket:
                del self._buckets[item.due_tick]

    def tick(self, now: float) -> Due[T]:
        """Return everything that is due until ``now``. A late tick makes up for those that were missed."""
        ping: list[T] = []
        expired: list[T] = []
        last = int((now - self._origin) / self.tick_s)
        if last > self._tick:
            passed, self._tick = range(self._tick + 1, last + 1), last
            for tick in passed:
                for item, pinged in self._buckets.pop(tick, {}).items():
                    self._turn(item, pinged, ping, expired)
        return Due(tuple(ping), tuple(expired))

    def _turn(self, item: T, pinged: int, ping: list[T], expired: list[T]) -> None:
        """Cases: an answer is overdue, or still has time; the next ping is not due yet, or it is."""
        if item.awaiting_pong and pinged != NEVER:
            if self._tick < pinged + self._timeout_ticks:
                self._put(item, pinged, pinged + self._timeout_ticks)
            elif item.pong_may_be_late():
                self._put(item, self._tick, self._tick + self._timeout_ticks)
            else:
                expired.append(item)
        elif pinged != NEVER and self._tick < pinged + self._interval_ticks:
            self._put(item, pinged, pinged + self._interval_ticks)
        else:
            item.awaiting_pong = True
            ping.append(item)
            self._put(item, self._tick, self._tick + min(self._timeout_ticks, self._interval_ticks))

    def _put(self, item: T, pinged: int, tick: int) -> None:
        item.due_tick = max(tick, self._tick + 1)
        self._buckets.setdefault(item.due_tick, {})[item] = pinged


class ExpiryCalendar(Generic[H]):
    """Connections by the second in which their tokens expire. Adding and removing are O(1). Unix time, seconds."""

    def __init__(self) -> None:
        self._seconds: dict[int, dict[H, None]] = {}
        self._done = 0

    def add(self, item: H, at: float) -> None:
        self._seconds.setdefault(int(at) + 1, {})[item] = None

    def remove(self, item: H, at: float) -> None:
        second = int(at) + 1
        bucket = self._seconds.get(second)
        if bucket is not None:
            bucket.pop(item, None)
            if not bucket:
                del self._seconds[second]

    def due(self, now: float) -> Iterator[H]:
        """Yield the connections with expired tokens, each once. O(distinct seconds in the calendar), at most once a
        second."""
        if int(now) == self._done:
            return
        self._done = int(now)
        for second in [second for second in self._seconds if second <= now]:
            yield from self._seconds.pop(second)
