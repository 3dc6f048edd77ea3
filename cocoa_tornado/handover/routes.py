"""The records that were given to the router, and when records may be handed over again. Pure."""

from __future__ import annotations

from math import inf
from typing import Final, NamedTuple

from .pieces import Pieces

QUIET_S: Final = 1.0
MAX_QUIET_S: Final = 60.0
"""After several attempts to begin that have failed."""
BEGIN_PATIENCE_S: Final = 1.0
"""How long batches wait for the router and the relay, which may be unavailable."""


class Route(NamedTuple):
    """Give these records to the router, and report :meth:`Destinations.routed`. Routes are carried out in order."""

    number: int
    pieces: Pieces


class Routes:
    """The routes that the router is not done with.

    :ivar last: the number of the latest one; 0: there was none
    """

    __slots__ = ("_pieces", "last")

    def __init__(self) -> None:
        self._pieces: dict[int, Pieces] = {}  # in the order of the numbers
        self.last = 0

    def __len__(self) -> int:
        return len(self._pieces)

    def begin(self, pieces: Pieces) -> Route:
        self.last += 1
        self._pieces[self.last] = pieces
        return Route(self.last, pieces)

    def end(self, number: int) -> Pieces:
        """Return the records of a route with which the router is done; none if it was ended before."""
        return self._pieces.pop(number, ())

    def are_done(self, number: int) -> bool:
        """Whether the router is done with everything up to this route."""
        return next(iter(self._pieces), inf) > number


class Quiet:
    """When records may be handed over again, in monotonic seconds."""

    __slots__ = ("_began_at", "_quiet_s", "_shared_at")

    def __init__(self) -> None:
        self._shared_at = self._began_at = -inf
        self._quiet_s = QUIET_S

    def disturb(self, now: float) -> None:
        """Note a record for several devices: the quiet time begins again."""
        self._shared_at = now

    def is_over(self, now: float) -> bool:
        """Whether it has been quiet for long enough to begin."""
        return now - self._shared_at >= self._quiet_s

    def begin(self, now: float) -> None:
        """An attempt to begin has started."""
        self._began_at = now

    def takes_too_long(self, now: float) -> bool:
        """Whether to abandon the attempt."""
        return now - self._began_at >= BEGIN_PATIENCE_S

    def fail(self, now: float) -> None:
        """A fence was not received in time: begin later than the last time."""
        self._shared_at, self._quiet_s = now, min(2 * self._quiet_s, MAX_QUIET_S)

    def succeed(self) -> None:
        """Records are handed over."""
        self._quiet_s = QUIET_S
