"""Whether a server may accept connections now. Pure: the owner of the listening sockets asks, reports what happened,
and passes the time.

Two conditions stop it. If the process lacks a resource that a connection needs, it tries again after a pause. If too
many connections are pending (not yet a device's), it waits until some have ended. Meanwhile new connections wait in the
kernel's queue, which costs nothing; repeated attempts would take all of the processor time.

When thousands arrive at once, that queue overflows long before they are served, and the clients that it drops retry
after longer and longer delays. So connections are accepted at once, which is cheap, and wait here in order of arrival.
"""

from __future__ import annotations

import enum
import errno
from typing import Final, NamedTuple

from .crowd import RESERVE_SHARE

ACCEPTED_PER_TURN: Final = 512
"""The most connections accepted before the event loop may do something else. Each costs one system call, some 10 us."""

SERVED_PER_TURN: Final = 8
"""The most of those that wait here which are served before the event loop may do something else. A handshake takes some
0.2 ms, and connected devices wait for as many as this when thousands arrive at once. Those that have sent nothing when
they are served do not come back here: of them ``rules.turns.MAX_PER_TURN`` are upgraded in a turn at most."""

RETRY_S: Final = 1.0

_LOST: Final = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED",
        "EPROTO",
        "EPERM",
        "EINTR",
        "ENETDOWN",
        "ENETUNREACH",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENONET",
        "ENOPROTOOPT",
    )
    if hasattr(errno, name)
)
"""Errors of the new connection alone: accept(2) says to continue with the next."""


class Obstacle(enum.Enum):
    """Why no connection is accepted; the value is a metric label."""

    DESCRIPTORS = "descriptors"  # the process's limit of open files, or the machine's
    MEMORY = "memory"  # the kernel has none for another socket
    FAULT = "fault"  # accept fails in a way that it should not
    PENDING = "pending"  # too many connections that are not a device's


_OBSTACLES: Final = {
    errno.EMFILE: Obstacle.DESCRIPTORS,
    errno.ENFILE: Obstacle.DESCRIPTORS,
    errno.ENOBUFS: Obstacle.MEMORY,
    errno.ENOMEM: Obstacle.MEMORY,
}


class Decision(NamedTuple):
    """:ivar room: connections that may be accepted in this turn of the loop
    :ivar retry_at: where there is no room, when to ask again; None: when a pending connection has been served, or has
        ended
    """

    room: int
    retry_at: float | None = None


class Gate:
    """Counts the pending connections of one server and decides on the next ones.

    Each :meth:`admitted` is followed by one :meth:`ended`. Once there are ``max_pending``, several must end before the
    next are accepted, so that accepting does not start and stop for every connection at the bound.

    At most three quarters of ``max_pending`` wait to be served, so that new arrivals alone never make it near full.

    :ivar pending: connections accepted that have neither ended nor become a device's
    :ivar waiting: those of them that are yet to be served
    """

    def __init__(self, max_pending: int, retry_s: float = RETRY_S) -> None:
        self.pending = self.waiting = 0
        self._max_pending, self._retry_s = max_pending, retry_s
        self._max_waiting = max(1, max_pending * 3 // 4)
        self._resume_at = max_pending - max(1, max_pending // RESERVE_SHARE)
        self._is_full = False
        self._fault: Obstacle | None = None
        self._retry_at = 0.0

    def __repr__(self) -> str:
        state = self.obstacle or "open"
        return f"<Gate {self.pending} of {self._max_pending} pending, {self.waiting} to be served, {state}>"

    @property
    def obstacle(self) -> Obstacle | None:
        """Why no connection is accepted. A fault is over after a whole turn without one, not when its pause ends."""
        return self._fault or (Obstacle.PENDING if self._is_full else None)

    def decide(self, now: float) -> Decision:
        """What may be done now (seconds, monotonic)."""
        if self._fault is not None and now < self._retry_at:
            return Decision(0, self._retry_at)
        if self._is_full:
            return Decision(0)
        room = min(self._max_pending - self.pending, self._max_waiting - self.waiting)
        return Decision(min(ACCEPTED_PER_TURN, room))

    @property
    def excess(self) -> int:
        """Connections in the reserve, which is the last sixteenth of the bound; 0 while there is room."""
        return max(0, self.pending - self._resume_at)

    @property
    def is_near_full(self) -> bool:
        """Connections should end with their answers: more than three quarters of the bound are taken."""
        return self.pending > self._max_pending - self._max_pending // 4

    @property
    def to_serve(self) -> int:
        """How many waiting connections may be served in this turn of the loop."""
        return min(SERVED_PER_TURN, self.waiting)

    def admitted(self) -> None:
        """One connection has been accepted, and waits."""
        self.pending += 1
        self.waiting += 1
        if self.pending >= self._max_pending:
            self._is_full = True

    def served(self) -> None:
        """The connection that has waited longest is being served now. Its end is yet to be reported."""
        self.waiting -= 1

    def ended(self) -> None:
        """A pending connection that does not wait is closed, or is a device's now."""
        self.pending -= 1
        if self.pending <= self._resume_at:
            self._is_full = False

    def failed(self, error_number: int | None, now: float) -> bool:
        """Accepting has failed. False if the cause was that one connection: the next one may be tried at once."""
        if error_number in _LOST:
            return False
        self._fault = Obstacle.FAULT if error_number is None else _OBSTACLES.get(error_number, Obstacle.FAULT)
        self._retry_at = now + self._retry_s
        return True

    def turn_passed(self) -> None:
        """A turn has ended without a failure: no connection waits any more, or there was no more room."""
        self._fault = None
