"""Which log the name of a topic stands for. Pure.

A topic that is deleted and created again has the same name and begins at offset 0 again: nothing that is known of the
old log's offsets holds in the new one. The brokers give each topic an id that is never used again. It is written beside
each committed offset, so that whoever reads the offset later knows which log it belongs to.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from .records import Record

REMEMBERED: Final = 65_536
"""Records that are remembered until the topic's id is known to be the same; beyond that, the oldest are forgotten."""

_MARK = re.compile(r"cocoa-log=([^\s;]+)( first)?;")  # what follows is not ours


@dataclass(frozen=True, slots=True)
class Log:
    """What a topic's name stands for between its creation and its deletion.

    :ivar id: the topic's id; None where the brokers have not told it
    :ivar first: no earlier log of this name is known to have been read by the group
    """

    id: str | None
    first: bool = True

    def source(self, topic: str, partition: int) -> str:
        """The name of a partition for what remembers its offsets. The first log has the plain one, and so have those
        that were read before logs were told apart."""
        name = topic if self.first or self.id is None else f"{topic}@{self.id}"
        return f"{name}/{partition}"

    def mark(self) -> str:
        """To be written beside an offset that is committed."""
        if self.id is None:
            return ""
        return f"cocoa-log={self.id}{' first' if self.first else ''};"


def read_mark(text: str | None) -> Log | None:
    """What :meth:`Log.mark` has written; None for what others write."""
    found = _MARK.match(text or "")
    return Log(found[1], found[2] is not None) if found else None


class Committed(NamedTuple):
    """What a group has committed for a partition.

    :ivar log: the log that the offset belongs to; None where that was not written down: by a release that did not, or
        by a tool that resets offsets
    """

    offset: int
    log: Log | None


class Recent:
    """What was handed over since the topic's id was last known to be the same.

    If the id turns out to be another one, some of it may have been of the new log already, which is now read from its
    first record: those records are known again by offset, timestamp and content.

    :ivar records: that are remembered
    """

    def __init__(self) -> None:
        self._runs: deque[_Run] = deque()
        self.records = 0
        self._asked = 0  # runs that were noted when the id was asked for

    def note(self, offsets: Sequence[int], records: Sequence[Record], sources: Sequence[tuple[str, int]]) -> None:
        """A batch is handed over, described like :class:`~cocoa_tornado.brokers.port.Batch`."""
        self._runs.append(_Run(tuple(offsets), [_fingerprint(record) for record in records], tuple(sources)))
        self.records += len(records)
        while len(self._runs) > 1 and self.records > REMEMBERED:
            self._drop_oldest()

    def ask(self) -> None:
        """The topic's id is asked for: the answer says nothing about what is handed over from now on."""
        self._asked = len(self._runs)

    def confirm(self) -> None:
        """The answer is the same id."""
        for _ in range(self._asked):
            self._drop_oldest()
        self._asked = 0

    def repeats(self) -> Repeats:
        """What is not confirmed."""
        known = set()
        for run in self._runs:
            known |= set(_keys(run.offsets, run.fingerprints, run.sources))
        return Repeats(known)

    def _drop_oldest(self) -> None:
        self.records -= len(self._runs.popleft().fingerprints)
        self._asked = max(0, self._asked - 1)


class Repeats:
    """Records that were handed over already, though the log is now read from its first record."""

    def __init__(self, known: set[_Key]) -> None:
        self._known = known
        self._ends: dict[int, int] = {}
        for partition, offset, _ in known:
            self._ends[partition] = max(self._ends.get(partition, 0), offset + 1)

    def __bool__(self) -> bool:
        """False once all of them have been passed."""
        return bool(self._ends)

    def without(
        self, records: Sequence[Record], offsets: Sequence[int], sources: Sequence[tuple[str, int]]
    ) -> tuple[list[Record], list[int], list[tuple[str, int]]]:
        """A batch, described like :class:`~cocoa_tornado.brokers.port.Batch`, without those among them."""
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
