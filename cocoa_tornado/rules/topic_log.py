"""Distinguishes a topic from an earlier one of the same name. Pure.

A topic that is deleted and created again has the same name and begins at offset 0 again, so nothing known about the old
log's offsets applies. The brokers give each topic an id that is never reused. It is stored with each committed offset,
so that a later reader of the offset knows to which log it belongs.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from .records import Record

REMEMBERED: Final = 65_536
"""Records to remember until the topic's id is confirmed; beyond that, the oldest are forgotten."""

_MARK = re.compile(r"cocoa-log=([^\s;]+)( first)?;")  # other programs' text may follow


@dataclass(frozen=True, slots=True)
class Log:
    """The log of a topic, from its creation to its deletion.

    :ivar id: the topic's id; None if the brokers have not sent it
    :ivar first: as far as is known, the group has read no earlier log of this name
    """

    id: str | None
    first: bool = True

    def source(self, topic: str, partition: int) -> str:
        """Return the name under which a partition's offsets are remembered. The first log has the plain name, as do
        those read by releases that did not distinguish logs."""
        name = topic if self.first or self.id is None else f"{topic}@{self.id}"
        return f"{name}/{partition}"

    def mark(self) -> str:
        """Return the metadata to commit with an offset."""
        if self.id is None:
            return ""
        return f"cocoa-log={self.id}{' first' if self.first else ''};"


def read_mark(text: str | None) -> Log | None:
    """Parse what :meth:`Log.mark` has written; None for anything else."""
    found = _MARK.match(text or "")
    return Log(found[1], found[2] is not None) if found else None


class Committed(NamedTuple):
    """A group's committed offset of a partition.

    :ivar log: the log to which the offset belongs; None if it was committed without a mark: by an older release, or by
        a tool that resets offsets
    """

    offset: int
    log: Log | None


class Recent:
    """The records handed over since the topic's id was last confirmed.

    If the id turns out to have changed, part of it may already have come from the new log, which is then read from its
    first record. Such records are recognized by offset, timestamp and content.

    :ivar records: how many are remembered
    """

    def __init__(self) -> None:
        self._runs: deque[_Run] = deque()
        self.records = 0
        self._asked = 0  # runs that were noted when the id was requested

    def note(self, offsets: Sequence[int], records: Sequence[Record], sources: Sequence[tuple[str, int]]) -> None:
        """A batch is handed over; see :class:`~cocoa_tornado.brokers.port.Batch`."""
        self._runs.append(_Run(tuple(offsets), [_fingerprint(record) for record in records], tuple(sources)))
        self.records += len(records)
        while len(self._runs) > 1 and self.records > REMEMBERED:
            self._drop_oldest()

    def ask(self) -> None:
        """The topic's id is requested. The answer does not cover what is handed over from now on."""
        self._asked = len(self._runs)

    def confirm(self) -> None:
        """The answer is the same id."""
        for _ in range(self._asked):
            self._drop_oldest()
        self._asked = 0

    def repeats(self) -> Repeats:
        """Return the records that are not confirmed."""
        known = set()
        for run in self._runs:
            known |= set(_keys(run.offsets, run.fingerprints, run.sources))
        return Repeats(known)

    def _drop_oldest(self) -> None:
        self.records -= len(self._runs.popleft().fingerprints)
        self._asked = max(0, self._asked - 1)


class Repeats:
    """Records that were already handed over, and come again because the new log is read from its first record."""

    def __init__(self, known: set[_Key]) -> None:
        self._known = known
        self._ends: dict[int, int] = {}
        for partition, offset, _ in known:
            self._ends[partition] = max(self._ends.get(partition, 0), offset + 1)

    def __bool__(self) -> bool:
        """False once all of them are behind."""
        return bool(self._ends)

    def without(
        self, records: Sequence[Record], offsets: Sequence[int], sources: Sequence[tuple[str, int]]
    ) -> tuple[list[Record], list[int], list[tuple[str, int]]]:
        """Return a batch without these records; see :class:`~cocoa_tornado.brokers.port.Batch`."""
        keys = list(_keys(offsets, [_fingerprint(record) for record in records], sources))
        kept = [at for at, key in enumerate(keys) if key not in self._known]
        counts = Counter(keys[at][0] for at in kept)
        for partition, offset, _ in keys:
            if offset + 1 >= self._ends.get(partition, offset + 2):
                del self._ends[partition]
        return (
            [records[at] for at in kept],
            [offsets[at] for at in kept],
            [(source, counts[_number(source)]) for source, _ in sources if counts[_number(source)]],
        )


_Key: TypeAlias = tuple[int, int, int]  # partition, offset, fingerprint


class _Run(NamedTuple):
    offsets: tuple[int, ...]
    fingerprints: list[int]
    sources: tuple[tuple[str, int], ...]


def _fingerprint(record: Record) -> int:
    return hash((record.timestamp_ms, record.payload))


def _number(source: str) -> int:
    return int(source.rpartition("/")[2])


def _keys(offsets: Sequence[int], fingerprints: Sequence[int], sources: Sequence[tuple[str, int]]) -> Iterator[_Key]:
    at = 0
    for source, records in sources:
        partition = _number(source)
        for _ in range(records):
            yield partition, offsets[at], fingerprints[at]
            at += 1
