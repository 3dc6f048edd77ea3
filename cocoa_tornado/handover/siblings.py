"""What :class:`~.rules.Destinations` knows of one sibling, and of a device that moves. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TypeAlias

from .pieces import Piece
from .portions import Portions


class Moving:
    """A device whose records wait.

    :ivar joins: the sibling that it is to be handed over to; None: it leaves one
    :ivar returned: records that the sibling had, earlier than those of ``waiting``
    """

    __slots__ = ("joins", "returned", "waiting")

    def __init__(self, joins: int | None) -> None:
        self.joins = joins
        self.returned: list[Piece] = []
        self.waiting: list[Piece] = []


Mover: TypeAlias = tuple[str, Moving]


class Fence:
    """A fence that a sibling has not received yet.

    :ivar devices: those that may be handed over once it is received
    """

    __slots__ = ("_seen_at", "devices", "number")

    def __init__(self, number: int, devices: list[Mover]) -> None:
        self.number, self.devices = number, devices
        self._seen_at: float | None = None

    def age_s(self, now: float) -> float:
        """The time since the first call."""
        if self._seen_at is None:
            self._seen_at = now
        return now - self._seen_at


class Sibling:
    """:ivar leaving: devices that may move once the portions up to a number are acknowledged
    :ivar joining: devices that may move once the routes up to a number are routed, and a fence is received
    :ivar fence: the one that is under way
    :ivar is_fenced: it has received one since the last attempt to begin
    """

    __slots__ = ("fence", "is_fenced", "joining", "leaving", "portions")

    def __init__(self) -> None:
        self.portions = Portions()
        self.leaving: deque[tuple[int, Mover]] = deque()
        self.joining: deque[tuple[int, Mover]] = deque()
        self.fence: Fence | None = None
        self.is_fenced = False

    def leaves(self, device_id: str, moving: Moving) -> None:
        """A device leaves it."""
        self.leaving.append((self.portions.last, (device_id, moving)))

    def left(self) -> Iterator[Mover]:
        """Remove and yield the devices that have left: all their earlier records are acknowledged."""
        while self.leaving and self.leaving[0][0] <= self.portions.acknowledged:
            yield self.leaving.popleft()[1]

    def forget_joining(self) -> list[Mover]:
        """Remove and return the devices that are to be handed over to it."""
        joining = [mover for _, mover in self.joining] + ([] if self.fence is None else self.fence.devices)
        self.joining.clear()
        self.fence = None
        return joining
