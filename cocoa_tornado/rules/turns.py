"""Which ready sockets an event loop serves in one turn, and how long a turn may count. Pure.

A loop that serves all of them does nothing else meanwhile: when ten thousand devices lose their network at once, that
takes half a second. So a turn is bounded, and sockets whose peer has disconnected come last: no client waits for them.

The ready sockets are in a queue of the kernel, which returns the first ones and requeues them at the end if they are
still ready afterwards. So every live socket that it returns must be served in this turn, or it would lose its turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeVar

MAX_PER_TURN: Final = 64
MAX_TURN_S: Final = 0.25
"""A longer turn is a pause of the process: it was stopped, its machine was moved, or something blocked it. Turns under
load are far shorter."""
MIN_GONE: Final = 16
"""At least this many dead sockets are served per turn, if there are any, so that their memory is freed under any
load."""
ENOUGH: Final = MAX_PER_TURN - MIN_GONE
"""With this many live sockets the turn begins; no more are requested."""
MAX_SEEN: Final = 4096
"""Dead sockets that are looked at in one turn, in search of live ones behind them."""

T = TypeVar("T")


def room_left(alive: int, gone: int) -> int:
    """How many more sockets to request after these; 0: the turn can begin."""
    if alive >= ENOUGH or alive + gone >= MAX_SEEN:
        return 0
    return MAX_PER_TURN - alive


def among_the_gone(alive: int, gone: Sequence[T], first: int) -> Sequence[T]:
    """Return the dead sockets to serve in this turn, next to ``alive`` live ones.

    :param first: any number, a random one for each turn, so that sockets which stay do not block the others
    """
    count = max(MIN_GONE, MAX_PER_TURN - alive)
    if len(gone) <= count:
        return gone
    begin = first % len(gone)
    return [*gone[begin : begin + count], *gone[: max(0, begin + count - len(gone))]]


class TurnClock:
    """An event loop's clock that does not advance while the process is suspended.

    Every deadline of the loop waits for a peer: to answer a ping, to send the rest of a request, to take a byte. A
    suspended process sees none of that, and when it resumes the answers are in the sockets. On this clock a turn takes
    no longer than the loop meant to wait plus ``MAX_TURN_S`` each for waiting and working. So after a pause there
    is as much time left as before it.

    The clock never goes back, and is never faster than the machine's monotonic clock, in which all arguments (seconds)
    are given.
    """

    __slots__ = ("_limit", "_lost")

    def __init__(self, now: float) -> None:
        self._lost, self._limit = 0.0, now + MAX_TURN_S

    def __repr__(self) -> str:
        return f"<TurnClock {self._lost:.3f} s behind>"

    def read(self, now: float) -> float:
        return min(now - self._lost, self._limit)

    def begin_wait(self, now: float, timeout_s: float | None) -> None:
        """The loop waits, for ``timeout_s`` at most; None: until something happens, as there are no deadlines."""
        self._settle(now)
        self._limit = math.inf if timeout_s is None else self.read(now) + timeout_s + MAX_TURN_S

    def end_wait(self, now: float) -> None:
        """The loop begins to work."""
        self._settle(now)
        self._limit = self.read(now) + MAX_TURN_S

    def _settle(self, now: float) -> None:
        """Discard the time over the limit."""
        self._lost += max(0.0, now - self._lost - self._limit)
