"""When a client of a cluster asks its bootstrap addresses again: no broker that it knows can be reached. Pure.

The brokers may have moved, all of them: what a client knows of them came from themselves, and only the bootstrap
addresses are the operator's.
"""

from __future__ import annotations

UNREACHABLE_S = 5.0  # a broker that restarts takes some seconds too, and comes back where it was


class Reachability:
    """What the looks at one client's connections come to. One thread."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since: float | None = None  # no known broker has been reached

    def look(self, now: float, *, reached: bool, tried: bool) -> bool:
        """True if it is time to ask the bootstrap addresses; again after as long, while nothing changes.

        :param reached: there is a connection to a known broker
        :param tried: there was an attempt to have one; a client without work needs none
        """
        if reached or not tried:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        if now - self._since < UNREACHABLE_S:
            return False
        self._since = now
        return True
