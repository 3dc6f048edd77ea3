"""How long an upload may take, between two bytes and in all, and when it yields to another of the same device.
Time in which the gateway itself applies backpressure does not count. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from .audio import AudioFormat

Lateness = Literal["idle", "slow"]

IDLE: Final = "idle"
SLOW: Final = "slow"


SILENT_S: Final = 2.0
"""A stream that has sent nothing for this long yields to a new one of its device: as long as a connection has to answer
a challenge. A device that was power-cycled sends the second stream, and nothing of the first."""


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """The limits of every upload, and of every utterance over a WebSocket.

    :ivar raw: the format of samples whose Content-Type does not specify it
    :ivar max_bytes: of a body
    :ivar idle_timeout_s: without a byte
    :ivar upload_timeout_s: in all, not counting the time in which the device is held back
    """

    raw: AudioFormat
    max_bytes: int
    idle_timeout_s: float
    upload_timeout_s: float


class Room(NamedTuple):
    """Whether a device may have one more stream.

    :ivar yielding: the streams that end in its favor, by index
    :ivar retry_after_s: None: there is room; otherwise seconds until there may be
    """

    yielding: tuple[int, ...]
    retry_after_s: float | None = None


def make_room(silent_since: Sequence[float | None], limit: int, now: float, retry_after_s: float) -> Room:
    """Decide whether a device may open a stream.

    :param silent_since: for each of its streams, since when it has sent nothing; None: it is not expected to send
    :param limit: streams that a device may have
    :param retry_after_s: the result's value if no stream is silent
    """
    excess = len(silent_since) - limit + 1
    if excess <= 0:
        return Room(())
    silent = sorted((since, index) for index, since in enumerate(silent_since) if since is not None)[:excess]
    if len(silent) < excess:
        return Room((), retry_after_s)
    left_s = silent[-1][0] + SILENT_S - now
    return Room((), left_s) if left_s > 0 else Room(tuple(index for _, index in silent))


class Deadline(NamedTuple):
    """:ivar at: monotonic seconds
    :ivar reason: ``idle``: nothing received for too long; ``slow``: too long in all
    """

    at: float
    reason: Lateness


class UploadClock:
    """The deadlines of one upload. Starts with nothing received, waiting for the device.

    :param idle_s: longest time without a byte
    :param total_s: longest total time spent waiting for the device
    """

    __slots__ = ("_end", "_held_since", "_idle_s", "_idle_since")

    def __init__(self, now: float, idle_s: float, total_s: float) -> None:
        self._idle_s, self._idle_since, self._end = idle_s, now, now + total_s
        self._held_since: float | None = None

    def __repr__(self) -> str:
        return f"<UploadClock {'held' if self._held_since is not None else 'waiting'} until {self.deadline.at:.3f}>"

    @property
    def deadline(self) -> Deadline:
        """When the device is too late if nothing arrives before."""
        idle_end = self._idle_since + self._idle_s
        return Deadline(idle_end, IDLE) if idle_end <= self._end else Deadline(self._end, SLOW)

    def received(self, now: float) -> None:
        """Bytes were received; until :meth:`waits` the gateway is not waiting for the device."""
        self._held_since = now

    def waits(self, now: float) -> None:
        """The gateway waits for the next bytes."""
        if self._held_since is not None:
            self._end += now - self._held_since
            self._held_since = None
        self._idle_since = now
