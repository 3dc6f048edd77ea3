"""Which of the sockets that are ready an event loop sees to in its next turn, and how long a turn may count. Pure.

A loop that sees to all of them does nothing else meanwhile: when ten thousand devices lose their network at once, that
is half a second in which nobody else is heard. So a turn has a bound, and those whose other end has gone come last:
nobody waits for them.

Who is ready stands in a queue, the kernel's: it gives the first ones, and puts them behind the others if they are still
ready afterwards. So whoever is given and alive has this turn, or would lose the place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeVar

MOST_PER_TURN: Final = 64
MOST_OF_A_TURN_S: Final = 0.25
"""A turn that takes longer is a pause of the process: it was stopped, its machine was moved, or something held it up.
Turns under load are far shorter."""
LEAST_GONE: Final = 16
"""So many of them at least have a turn, if there are: what they hold is to be freed under any load."""
ENOUGH: Final = MOST_PER_TURN - LEAST_GONE
"""With so many that are alive a turn is worth having, and nobody else is looked for."""
MOST_SEEN: Final = 4096
"""So many that are gone are looked at in one turn, for those alive behind them."""

T = TypeVar("T")


def room_left(alive: int, gone: int) -> int:
    """How many more to ask for, when so many have been given; 0: the turn may begin."""
    if alive >= ENOUGH or alive + gone >= MOST_SEEN:
        return 0
    return MOST_PER_TURN - alive


def among_the_gone(alive: int, gone: Sequence[T], first: int) -> Sequence[T]:
    """The gone ones that have this turn, beside so many that are alive.

    :param first: any number. Another each time, by chance, so that those who do not go away keep no others from it
    """
    count = max(LEAST_GONE, MOST_PER_TURN - alive)
    if len(gone) <= count:
        return gone
    begin = first % len(gone)
    return [*gone[begin : begin + count], *gone[: max(0, begin + count - len(gone))]]


class TurnClock:
    """An event loop's clock, on which pauses of the process take no time.

    Every deadline that the loop keeps is for what others do: answer a ping, send the rest of a request, take a byte.
    While the process stands still it sees nothing of it, and afterwards the answers lie in the sockets. On this clock
    a turn takes no longer than the loop meant to wait, and ``MOST_OF_A_TURN_S`` on top of it for the waiting and for
    the work: after a pause there is as much time left as there was before it.

    It never goes back, and never faster than the machine's monotonic clock, by which all times (seconds) are given.
    """

    __slots__ = ("_limit", "_lost")

    def __init__(self, now: float) -> None:
        self._lost, self._limit = 0.0, now + MOST_OF_A_TURN_S

    def __repr__(self) -> str:
        return f"<TurnClock {self._lost:.3f} s behind>"

    def read(self, now: float) -> float:
        return min(now - self._lost, self._limit)

    def begin_wait(self, now: float, timeout_s: float | None) -> None:
        """The loop waits, for so long at most; None: until something happens, and no deadline can pass meanwhile."""
        self._settle(now)
        self._limit = math.inf if timeout_s is None else self.read(now) + timeout_s + MOST_OF_A_TURN_S

    def end_wait(self, now: float) -> None:
        """The loop goes to work."""
        self._settle(now)
        self._limit = self.read(now) + MOST_OF_A_TURN_S

    def _settle(self, now: float) -> None:
        """What is over the limit has been lost."""
        self._lost += max(0.0, now - self._lost - self._limit)
