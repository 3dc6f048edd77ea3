"""Which records of the broker have been stored already: the memory that makes appending to a mailbox idempotent. Pure.

A broker hands a record over again after a crash, or when a partition changes hands: everything from the committed
offset on. Offsets alone don't tell such a copy from a new record: a topic that was made anew begins at 0 again, and a
partition that has lost its end gives the same offsets to other records. So each offset is remembered with its record's
timestamp, and only the last ``WINDOW`` of them; the broker's adapter keeps fewer than that uncommitted.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

WINDOW: Final = 65_536
"""Offsets of one source that are remembered. What lies further back is new: the topic was wound back."""

MAX_HOLE: Final = 1_024
"""Offsets that are missing inside a run. Beyond that, a new run begins."""

LONG_RUN: Final = 4_096
"""Stamps of a run that is not made longer by joining others to it."""

HOLE: Final = -1
"""In place of a timestamp: nothing was stored from this offset."""


class Run(NamedTuple):
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
        """As a mailbox keeps it: little-endian whatever the machine."""
        return _little_endian(self.stamps).tobytes()

    @classmethod
    def from_bytes(cls, first: int, data: bytes) -> Run:
        """Raises ValueError where the data were not made by :meth:`to_bytes`."""
        stamps = array("q")
        stamps.frombytes(data)
        return cls(first, _little_endian(stamps))


@dataclass(slots=True)
class Remembered:
    """What is to be written down of one source after a batch.

    :ivar anew: forget all that is written down of this source first
    :ivar runs: runs to add
    :ivar floor: runs that end at or before this offset are not needed any more
    """

    anew: bool = False
    runs: list[Run] = field(default_factory=list)
    floor: int = 0


class SeenOffsets:
    """One source (a partition of a topic): what was stored of it lately. Not thread-safe.

    :param runs: what is written down, in the order of the offsets
    """

    __slots__ = ("_runs",)

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        # Copies: the last run grows in place.
        self._runs = sorted((Run(run.first, run.stamps[:]) for run in runs), key=_first)

    def __repr__(self) -> str:
        return f"<SeenOffsets up to {self.end} in {len(self._runs)} runs>"

    @property
    def end(self) -> int:
        """The offset after the newest that was stored; 0 if there is none."""
        return self._runs[-1].end if self._runs else 0

    def runs(self) -> list[Run]:
        """All that is remembered, in the order of the offsets."""
        return [Run(run.first, run.stamps[:]) for run in self._runs]

    def take(self, records: Sequence[tuple[int, int]]) -> tuple[list[bool], Remembered]:
        """Judge ``(offset, timestamp_ms)`` of records about to be stored, in the order of the partition.

        Returns for each whether it is new, and what to write down with them. All of them count as stored from now on:
        where storing fails, the same call must not be made again on this object; make it from the runs anew.
        """
        fresh: list[bool] = []
        remembered = Remembered()
        added: list[Run] = []
        end = self.end
        for offset, stamp in records:
            if offset < end:
                known = self._stamp(offset)
                if known == stamp:
                    fresh.append(False)
                    continue
                remembered.anew = True
                added.clear()
                if known is None and offset >= end - WINDOW:
                    # It was no message when it was read before, and is one now.
                    self._fill(offset, stamp)
                    fresh.append(True)
                    continue
                # The log is not what it was, or was wound back beyond what is remembered.
                self._cut(offset)
            fresh.append(True)
            self._add(offset, stamp, added)
            end = offset + 1
        floor = end - WINDOW
        remembered.floor = max(floor, 0)
        while self._runs and self._runs[0].end <= floor:
            del self._runs[0]
        remembered.runs = self.runs() if remembered.anew else [Run(run.first, run.stamps[:]) for run in added]
        self._join()
        return fresh, remembered

    def _add(self, offset: int, stamp: int, added: list[Run]) -> None:
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
        run = Run(offset, array("q", [stamp]))
        self._runs.append(run)
        added.append(run)

    def _join(self) -> None:
        """Many short runs take more room than one, and are as many as there were calls."""
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
            self._runs.insert(at + 1, Run(offset, array("q", [stamp])))
            return
        run = self._runs[at]
        stamps = run.stamps[:]
        stamps[offset - run.first : offset - run.first + 1] = array("q", [stamp])
        self._runs[at] = Run(run.first, stamps)

    def _cut(self, offset: int) -> None:
        """Forget ``offset`` and all behind it."""
        kept = [Run(run.first, run.stamps[: max(0, offset - run.first)]) for run in self._runs]
        self._runs = [run for run in kept if run.stamps]


class Recorded(Protocol):
    """One message to be stored, and the record that it was made from."""

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
    """For each entry of each call whether it is to be stored: once for its record, then once for each of its devices.

    Of one source, neighboring entries of a call that have the same offset and timestamp are one record. It is judged as
    a whole: new, and then each of its devices gets it once, or known, and then none does, whichever devices it is for
    this time. In another call it is the record read again.

    :param take: judges the records of one source, as :meth:`SeenOffsets.take` does; called once for each source
    """
    records: dict[str, list[tuple[int, int]]] = {}
    places: list[tuple[str, int]] = []
    repeats: list[int] = []
    for entries in calls:
        devices_of: dict[str, set[str]] = {}  # of the newest record of each source
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


def _first(run: Run) -> int:
    return run.first


def _little_endian(stamps: array[int]) -> array[int]:
    if array("H", [1]).tobytes() == b"\x01\x00":
        return stamps
    swapped = array("q", stamps)
    swapped.byteswap()
    return swapped
