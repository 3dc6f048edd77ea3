"""One write per device and loop turn, and one timer for all connections."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

from ..counters import Counters, Histogram
from ..rules.close_codes import TOKEN_EXPIRED, CloseReason
from .intake import IntakeGate
from .keepalive import ExpiryCalendar, Pinged, PingWheel

PAUSE_S = 5.0
"""A timer that is so late is logged: load alone does not do that to a healthy machine."""

log = logging.getLogger("cocoa.web")


class Flushed(Pinged, Hashable, Protocol):
    """A connection, as the flusher and the housekeeping see it.

    :ivar flush_pending: for the flusher only: it will flush this connection at the end of the turn
    """

    flush_pending: bool

    def flush(self) -> None:
        """Write what is queued, as far as the socket takes it."""

    def check_socket(self, now: float) -> None:
        """Check a socket that is busy with a write, or that is not read from."""

    def ping(self) -> None: ...

    def expire(self) -> None:
        """No pong came in time."""

    def end(self, reason: CloseReason, keep_queued: bool = False) -> None: ...

    def cut(self) -> None: ...

    def who(self) -> dict[str, object]: ...


class Flusher:
    """Flushes connections that have something to write, at the end of the loop turn. IOLoop thread only.

    :ivar stamps: timestamps of the messages that sockets have taken in this turn, Unix milliseconds; 0 if a message has
        none
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, wall_clock: Callable[[], float], latency: Histogram | None = None
    ) -> None:
        self._loop, self._wall_clock = loop, wall_clock
        self._latency = latency or Histogram()
        self._dirty: list[Flushed] = []
        self._watched: dict[Flushed, None] = {}
        self._scheduled = False
        self.stamps: list[int] = []

    def __repr__(self) -> str:
        return f"<Flusher {len(self._dirty)} to flush, {len(self._watched)} sockets watched>"

    def add(self, connection: Flushed) -> None:
        if connection.flush_pending:
            return
        connection.flush_pending = True
        self._dirty.append(connection)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.run)

    def run(self) -> None:
        """Flush all. A connection that fails does not affect the others."""
        self._scheduled = False
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            try:
                connection.flush()
            except Exception:
                log.exception("write failed", extra=connection.who())
                connection.cut()
        if self.stamps:
            stamps, self.stamps = self.stamps, []
            self.note_written(stamps)

    def note_written(self, stamps: Iterable[int]) -> None:
        """Sockets have taken messages with these timestamps. Many have the same one, and are observed together.
        What was read from a box is not observed."""
        now_ms = self._wall_clock() * 1000
        for stamp, messages in Counter(stamps).items():
            if stamp > 0:
                self._latency.observe(max(0.0, now_ms - stamp) / 1000, messages)

    def watch(self, connection: Flushed) -> None:
        """The connection's socket has not taken everything, or is not read from: check it regularly."""
        self._watched[connection] = None

    def unwatch(self, connection: Flushed) -> None:
        self._watched.pop(connection, None)

    forget = unwatch

    @property
    def watched(self) -> list[Flushed]:
        """A snapshot of the connections under :meth:`watch`."""
        return list(self._watched)


class Housekeeping:
    """The process's one timer: pings, overdue pongs, expired tokens, stuck sockets, and how late the loop runs.

    While there is no connection it runs half as often.
    """

    def __init__(
        self,
        wheel: PingWheel[Flushed],
        calendar: ExpiryCalendar[Flushed],
        flusher: Flusher,
        counters: Counters,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        intake: IntakeGate,
    ) -> None:
        self._wheel, self._calendar, self._flusher, self._counters = wheel, calendar, flusher, counters
        self._intake = intake
        self._clock, self._wall_clock = clock, wall_clock
        self._timer: asyncio.TimerHandle | None = None
        self._period_s = min(0.5, wheel.tick_s)

    def start(self) -> None:
        self._schedule()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        period_s = 2 * self._period_s if self._wheel.is_empty else self._period_s
        # By real time: the loop's own clock skips pauses, which is what this looks for.
        due = time.monotonic() + period_s
        self._timer = asyncio.get_running_loop().call_later(period_s, self._run, due)

    def _run(self, due: float) -> None:
        lag_s = max(0.0, time.monotonic() - due)
        self._counters.loop_lag.observe(lag_s)
        if lag_s >= PAUSE_S:
            log.info("process was paused", extra={"seconds": round(lag_s, 1)})
        self._schedule()
        self.look(self._clock())

    def look(self, now: float) -> None:
        """Do everything that is due. A connection that fails is cut, and does not affect the others."""
        due = self._wheel.tick(now)
        self._each(due.ping, lambda connection: connection.ping())
        self._each(due.expired, lambda connection: connection.expire())
        expired = self._calendar.due(self._wall_clock())
        self._each(expired, lambda connection: connection.end(TOKEN_EXPIRED, keep_queued=True))
        self._each(self._flusher.watched, lambda connection: connection.check_socket(now))
        self._intake.end_late_turns()

    @staticmethod
    def _each(connections: Iterable[Flushed], act: Callable[[Flushed], None]) -> None:
        for connection in connections:
            try:
                act(connection)
            except Exception:
                log.exception("connection failed", extra=connection.who())
                connection.cut()
