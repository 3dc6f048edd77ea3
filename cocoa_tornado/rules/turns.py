"""Which of the sockets that are ready an event loop sees to in its next turn. Pure.

A loop that sees to all of them does nothing else meanwhile: when ten thousand devices lose their network at once, that
is half a second in which nobody else is heard. So a turn has a bound, and those whose other end has gone come last:
nobody waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

MOST_PER_TURN: Final = 64
LEAST_GONE: Final = 16
"""So many of them at least are gone ones, if there are: what they hold is to be freed under any load."""


T = TypeVar("T")


def share(alive: Sequence[T], gone: Sequence[T], turn: int) -> list[T]:
    """The ones that have this turn. Where there are too many, each turn goes on where the one before has ended, so that
    of a crowd that stays the same nobody is left out for ever.

    :param turn: one more each time
    """
    if len(alive) + len(gone) <= MOST_PER_TURN:
        return [*alive, *gone]
    most = MOST_PER_TURN - min(len(gone), LEAST_GONE)
    if len(alive) > most:
        begin = turn * most % len(alive)
        chosen = [*alive[begin : begin + most], *alive[: max(0, begin + most - len(alive))]]
    else:
        chosen = list(alive)
    return [*chosen, *gone[: MOST_PER_TURN - len(chosen)]]
