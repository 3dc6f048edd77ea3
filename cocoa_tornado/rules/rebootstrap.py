"""When a cluster client returns to its bootstrap addresses: when it can't reach any broker that it knows. Pure.

All brokers may have moved. What the client knows about them came from the brokers themselves; only the bootstrap
addresses come from the operator.
"""

from __future__ import annotations

UNREACHABLE_S = 5.0  # a restarting broker takes some seconds too, and comes back at the same address


class Reachability:
    """Whether one client can reach its cluster. Not thread-safe."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since: float | None = None  # since when no known broker was reachable; None: one is

    def look(self, now: float, *, reached: bool, tried: bool) -> bool:
        """Return True if it is time to use the bootstrap addresses, and again after the same interval if nothing
        changes.

        :param reached: there is a connection to a known broker
        :param tried: a connection was attempted; an idle client needs none
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
