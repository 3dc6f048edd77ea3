"""How long an upload may take: without a byte, and in all. Times in which the gateway itself holds the device back do
not count. Pure.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Lateness = Literal["idle", "slow"]

IDLE: Final = "idle"
SLOW: Final = "slow"


class Deadline(NamedTuple):
    """:ivar at: monotonic seconds
    :ivar reason: ``idle``: nothing came for too long; ``slow``: it takes too long in all
    """

    at: float
    reason: Lateness


class UploadClock:
    """One upload's clock; begins with nothing received, waiting for the device.

    :param idle_s: so long may nothing come
    :param total_s: so long may the device take in all
    """

    __slots__ = ("_end", "_held_since", "_idle_s", "_idle_since")

    def __init__(self, now: float, idle_s: float, total_s: float) -> None:
        self._idle_s, self._idle_since, self._end = idle_s, now, now + total_s
        self._held_since: float | None = None

    def __repr__(self) -> str:
        return f"<UploadClock {'held' if self._held_since is not None else 'waiting'} until {self.deadline.at:.3f}>"

    @property
    def deadline(self) -> Deadline:
        """When the device is too late, if nothing comes before."""
        idle_end = self._idle_since + self._idle_s
        return Deadline(idle_end, IDLE) if idle_end <= self._end else Deadline(self._end, SLOW)

    def received(self, now: float) -> None:
        """Bytes came; until :meth:`waits` it is not the device that anybody waits for."""
        self._held_since = now

    def waits(self, now: float) -> None:
        """The next bytes may come."""
        if self._held_since is not None:
            self._end += now - self._held_since
            self._held_since = None
        self._idle_since = now
