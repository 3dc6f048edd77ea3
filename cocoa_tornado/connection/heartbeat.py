"""One connection's pings: the state of the last one, and its answer. Pure.

``keepalive.py`` decides when to ping, for all connections together.
"""

from __future__ import annotations

import enum
from typing import Final

from ..rules.frames import PING


class PingState(enum.Enum):
    """How far a ping has come on its way to the socket."""

    SENT = enum.auto()
    """The socket has taken it, or there was none yet."""
    QUEUED = enum.auto()
    """It waits for the next write."""
    WRITING = enum.auto()
    """It is in a write that the socket has not taken completely."""


SENT: Final = PingState.SENT
QUEUED: Final = PingState.QUEUED
WRITING: Final = PingState.WRITING


class Heartbeat:
    """Signs of life of a client. Times are monotonic seconds.

    :ivar state: of the last ping
    :ivar heard_at: when the client last sent something, or took a byte that was written
    :ivar round_trip_s: of the last answered ping, from queuing the ping to reading the pong
    :ivar challenged: presence waits for a sign of life
    :ivar delayed: since the last ping of the keepalive, or the last :meth:`take_delay`, this side may have delayed the
        pong: the ping waited for the socket, or the gateway did not read
    """

    __slots__ = ("_pinged_at", "challenged", "delayed", "heard_at", "round_trip_s", "state")

    def __init__(self, now: float) -> None:
        self.heard_at = now
        self.state = SENT
        self.round_trip_s: float | None = None
        self.challenged = self.delayed = False
        self._pinged_at: float | None = None  # while its pong has not come

    def __repr__(self) -> str:
        challenged = ", challenged" if self.challenged else ""
        return f"<Heartbeat ping {self.state.name.lower()}{challenged}>"

    # -- the ping

    def ping(self, now: float) -> None:
        """Queue a ping of the keepalive. Only later delays count for its pong."""
        self.delayed = False
        self.queue(now)

    def challenge(self, now: float) -> None:
        """Queue a ping on behalf of presence, in addition to those of the keepalive."""
        self.challenged = True
        self.queue(now)

    def queue(self, now: float) -> None:
        self.state, self._pinged_at = QUEUED, now

    def take(self) -> bytes:
        """Return the ping to write now, or b''."""
        if self.state is not QUEUED:
            return b""
        self.state = WRITING
        return PING

    def written(self, after_a_wait: bool) -> None:
        """The socket has taken a write. The ping was in it, or is still queued.

        :param after_a_wait: the socket did not take it at once, so the time for the pong begins now
        """
        if self.state is not SENT:
            self.delayed |= after_a_wait  # a queued ping has waited as well
        if self.state is WRITING:
            self.state = SENT

    # -- the answer

    def pong(self, now: float) -> bool:
        """A pong has arrived; True if a ping was unanswered."""
        self.delayed = False
        if self._pinged_at is None:
            return False
        self.round_trip_s, self._pinged_at = now - self._pinged_at, None
        return True

    def answer_challenge(self) -> bool:
        """The client has given a sign of life; True if presence has to be notified."""
        challenged, self.challenged = self.challenged, False
        return challenged

    def take_delay(self) -> bool:
        """Whether the pong may be late because of this side. A past delay counts once."""
        delayed, self.delayed = self.delayed, False
        return delayed or self.state is not SENT
