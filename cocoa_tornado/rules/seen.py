"""Which of the broker's records are stored already: the memory that makes appending to a mailbox idempotent. Pure.

After a crash or a rebalance, a broker redelivers everything from the committed offset on. Offsets alone don't identify
a redelivered record: a recreated topic begins at 0 again, and a partition that has lost its end gives the same offsets
to other records. So each offset is remembered with its record's timestamp, for the last ``WINDOW`` offsets. The
broker's adapter keeps fewer than that uncommitted.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

WINDOW: Final = 65_536
"""Offsets of one source that are remembered. Anything older counts as new: the offset was reset to it."""

MAX_HOLE: Final = 1_024
"""Offsets that may be missing inside a run. A larger hole begins a new run."""

LONG_RUN: Final = 4_096
"""A run of this many stamps is not extended by joining others to it."""

HOLE: Final = -1
"""Instead of a timestamp: nothing was stored from this offset."""


class SeenRun(NamedTuple):
    """Timestamps (Unix milliseconds) of the records from offset ``first`` on, one for each offset.

    :ivar stamps: signed 64-bit integers; ``HOLE`` where nothing was stored
    """

    first: int
    stamps: array[int]

    @property
    def end(self) -> int:
        """The offset after the last one."""
        return self.first + len(self.stamps)

    def to_bytes(self) -> bytes:
        """The stored form: little-endian on every machine."""
        return _little_endian(self.stamps).tobytes()

    @classmethod
    def from_bytes(cls, first: int, data: bytes) -> SeenRun:
        """Raises ValueError if the data is not from :meth:`to_bytes`."""
        stamps = array("q")
        stamps.frombytes(data)
        return cls(first, _little_endian(stamps))


@dataclass(slots=True)
class Remembered:
    """What to store about one source after a batch.

    :ivar reset: first delete everything stored about this source
    :ivar runs: runs to add
    :ivar floor: runs that end at or before this offset are not needed any more
    """

    reset: bool = False
    runs: list[SeenRun] = field(default_factory=list)
    floor: int = 0


class SeenOffsets:
    """What was stored recently of one source (a partition of a topic). Not thread-safe.

    :param runs: the stored runs, in the order of the offsets
    """

    __slots__ = ("_runs",)

    def __init__(self, runs: Iterable[SeenRun] = ()) -> None:
        # Copies, because the last run grows in place.
        self._runs = sorted((SeenRun(run.first, run.stamps[:]) for run in runs), key=_first)

    def __repr__(self) -> str:
        return f"<SeenOffsets up to {self.end} in {len(self._runs)} runs>"

    @property
    def end(self) -> int:
        """The offset after the newest that was stored; 0 if there is none."""
        return self._runs[-1].end if self._runs else 0

    def runs(self) -> list[SeenRun]:
        """All remembered runs, in the order of the offsets."""
        return [SeenRun(run.first, run.stamps[:]) for run in self._runs]

    def take(self, records: Sequence[tuple[int, int]]) -> tuple[list[bool], Remembered]:
        """Judge ``(offset, timestamp_ms)`` of records about to be stored, in the order of the partition.

        Returns for each whether it is new, and what to store with them. From then on all of them count as stored. If
        storing fails, discard this object and repeat the call on one made from the stored runs.
        """
        fresh: list[bool] = []
        remembered = Remembered()
        added: list[SeenRun] = []
        end = self.end
        for offset, stamp in records:
            if offset < end:
                known = self._stamp(offset)
                if known == stamp:
                    fresh.append(False)
                    continue
                remembered.reset = True
                added.clear()
                if known is None and offset >= end - WINDOW:
                    # This offset held no message when it was first read, and does now.
                    self._fill(offset, stamp)
                    fresh.append(True)
                    continue
                # The log has changed, or the offset was reset beyond what is remembered.
                self._cut(offset)
            fresh.append(True)
            self._add(offset, stamp, added)
            end = offset + 1
        floor = end - WINDOW
        remembered.floor = max(floor, 0)
        while self._runs and self._runs[0].end <= floor:
            del self._runs[0]
        remembered.runs = self.runs() if remembered.reset else [SeenRun(run.first, run.stamps[:]) for run in added]
        self._join()
        return fresh, remembered

    def _add(self, offset: int, stamp: int, added: list[SeenRun]) -> None:
        if added and added[-1] is self._runs[-1]:
            first, stamps = added[-1]
            missing = offset - first - len(stamps)
            if not missing:  # nearly always
                stamps.append(stamp)
                return
            if 0 < missing <= MAX_HOLE:
                stamps.extend([HOLE] * missing)
                stamps.append(stamp)
                return
        run = SeenRun(offset, array("q", [stamp]))
        self._runs.append(run)
        added.append(run)

    def _join(self) -> None:
        """Join short runs, of which there is one for each call; one long run takes less room."""
        while len(self._runs) > 1:
            before, last = self._runs[-2:]
            missing = last.first - before.end
            if len(before.stamps) >= LONG_RUN or missing > MAX_HOLE:
                return
            before.stamps.extend([HOLE] * missing)
            before.stamps.extend(last.stamps)
            del self._runs[-1]

    def _stamp(self, offset: int) -> int | None:
        at = bisect_right(self._runs, offset, key=_first) - 1
        if at < 0 or not self.end - WINDOW <= offset < self._runs[at].end:
            return None
        stamp = self._runs[at].stamps[offset - self._runs[at].first]
        return None if stamp == HOLE else stamp

    def _fill(self, offset: int, stamp: int) -> None:
        at = bisect_right(self._runs, offset, key=_first) - 1
        if at < 0 or offset > self._runs[at].end:
            self._runs.insert(at + 1, SeenRun(offset, array("q", [stamp])))
            return
        run = self._runs[at]
        stamps = run.stamps[:]
        stamps[offset - run.first : offset - run.first + 1] = array("q", [stamp])
        self._runs[at] = SeenRun(run.first, stamps)

    def _cut(self, offset: int) -> None:
        """Forget ``offset`` and everything after it."""
        kept = [SeenRun(run.first, run.stamps[: max(0, offset - run.first)]) for run in self._runs]
        self._runs = [run for run in kept if run.stamps]


class Recorded(Protocol):
    """A message to be stored, and its source record."""

    @property
    def device_id(self) -> str: ...

    @property
    def timestamp_ms(self) -> int: ...

    @property
    def source(self) -> str: ...

    @property
    def offset(self) -> int: ...


def judge(
    calls: Iterable[Sequence[Recorded]], take: Callable[[str, Sequence[tuple[int, int]]], Sequence[bool]]
) -> list[bool]:
    """Return for each entry of each call whether to store it: once for its record and device.

    Neighboring entries of a call with the same source, offset and timestamp are one record. It is judged as a whole: if
    it is new, each of its devices gets it once; if it is known, none does, whichever devices it names this time. In
    another call, the same offset and timestamp mean the record read again.

    :param take: judges the records of one source, as :meth:`SeenOffsets.take` does; called once for each source
    """
    records: dict[str, list[tuple[int, int]]] = {}
    places: list[tuple[str, int]] = []
    repeats: list[int] = []
    for entries in calls:
        devices_of: dict[str, set[str]] = {}  # of the latest record of each source
        for entry in entries:
            source, record = entry.source, (entry.offset, entry.timestamp_ms)
            of_source = records.get(source)
            if of_source is None:
                of_source = records[source] = []
            devices = devices_of.get(source)
            if devices is None or of_source[-1] != record:
                of_source.append(record)
                devices_of[source] = {entry.device_id}
            elif entry.device_id in devices:
                repeats.append(len(places))
            else:
                devices.add(entry.device_id)
            places.append((source, len(of_source) - 1))
    verdicts = {source: take(source, of_source) for source, of_source in records.items()}
    fresh = [verdicts[source][at] for source, at in places]
    for at in repeats:
        fresh[at] = False
    return fresh


def _first(run: SeenRun) -> int:
    return run.first


def _little_endian(stamps: array[int]) -> array[int]:
    if array("H", [1]).tobytes() == b"\x01\x00":
        return stamps
    swapped = array("q", stamps)
    swapped.byteswap()
    return swapped
