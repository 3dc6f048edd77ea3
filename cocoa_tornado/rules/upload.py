"""How long an upload may take: without a byte, and in all; and when it gives its place to another one of its device.
Times in which the gateway itself holds the device back do not count. Pure.
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
"""A stream that has sent nothing for so long gives its place to a new one of its device: as long as a connection may
leave a challenge unanswered. A device that was switched off and on again sends the second, and nothing of the first."""


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """What every upload, and every utterance over a WebSocket, may take.

    :ivar raw: what samples are where the Content-Type leaves it open
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
    :ivar retry_after_s: None: there is room; else when there may be some, if nothing happens before
    """

    yielding: tuple[int, ...]
    retry_after_s: float | None = None


def make_room(silent_since: Sequence[float | None], limit: int, now: float, retry_after_s: float) -> Room:
    """Decide for a device that opens a stream.

    :param silent_since: of each stream that it has, since when it has sent nothing; None: nobody waits for it
    :param limit: streams that it may have
    :param retry_after_s: where no stream is silent
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
