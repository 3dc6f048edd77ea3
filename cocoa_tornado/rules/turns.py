"""Which of the sockets that are ready an event loop sees to in its next turn. Pure.

A loop that sees to all of them does nothing else meanwhile: when ten thousand devices lose their network at once, that
is half a second in which nobody else is heard. So a turn has a bound, and those whose other end has gone come last:
nobody waits for them.

Who is ready stands in a queue, the kernel's: it gives the first ones, and puts them behind the others if they are still
ready afterwards. So whoever is given and alive has this turn, or would lose the place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

MOST_PER_TURN: Final = 64
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
