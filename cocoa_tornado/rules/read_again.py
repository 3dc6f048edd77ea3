"""Records that were read more than once, found in what servers remember of their batches. Pure.

A server reads a partition in the order of its offsets. What it has read without going back or leaving out an offset is
a run, so runs that overlap, of one server or of several, are records that were read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

MAX_RUNS: Final = 1_000
"""Of one server, the latest ones."""


class Run(NamedTuple):
    """Offsets of a partition, each read once, one after the other.

    :ivar at_s: when the server began with it, Unix seconds
    """

    partition: str
    first: int
    last: int
    at_s: float


class Again(NamedTuple):
    """Records that were read equally often.

    :ivar times: 2 or more
    :ivar servers: that have read them; one that has done so twice is there once
    :ivar at_s: when the last time began, Unix seconds
    """

    partition: str
    first: int
    last: int
    times: int
    servers: tuple[str, ...]
    at_s: float


class Runs:
    """Makes runs of batches, the latest first.

    :ivar found: those that are complete
    """

    def __init__(self) -> None:
        self.found: list[Run] = []
        self._open: dict[str, Run] = {}  # may still begin earlier

    @property
    def is_full(self) -> bool:
        return len(self.found) + len(self._open) >= MAX_RUNS

    def add(self, at_s: float, offsets: Sequence[int], sources: Sequence[tuple[str, int]]) -> None:
        """Add a batch that was read before all others so far.

        :param offsets, sources: see ``brokers.port.Batch``
        """
        end = len(offsets)
        for partition, length in reversed(sources):
            for first, last in _unbroken(offsets[max(0, end - length) : end]):
                later = self._open.get(partition)
                if later is not None and later.first == last + 1:
                    self._open[partition] = Run(partition, first, later.last, at_s)
                    continue
                if later is not None:
                    self.found.append(later)
                self._open[partition] = Run(partition, first, last, at_s)
            end -= length

    def all(self) -> list[Run]:
        """All runs, at most :data:`MAX_RUNS`."""
        return [*self._open.values(), *self.found][:MAX_RUNS]


def _unbroken(offsets: Sequence[int]) -> Iterable[tuple[int, int]]:
    """The parts without a gap, the last one first."""
    if not offsets:
        return
    if offsets[-1] - offsets[0] == len(offsets) - 1:  # offsets ascend within a batch
        yield offsets[0], offsets[-1]
        return
    last = first = offsets[-1]
    for offset in reversed(offsets[:-1]):
        if offset + 1 != first:
            yield first, last
            last = offset
        first = offset
    yield first, last


def read_again(known: Iterable[tuple[str, Run]]) -> list[Again]:
    """Find the records that were read more than once, most often first, then the latest first.

    :param known: the runs of all servers, each with the name of its server
    """
    by_partition: dict[str, list[tuple[str, Run]]] = {}
    for server, run in known:
        by_partition.setdefault(run.partition, []).append((server, run))
    found = [again for partition, runs in by_partition.items() for again in _overlaps(partition, runs)]
    return sorted(found, key=lambda again: (-again.times, -again.at_s, again.partition, again.first))


def _overlaps(partition: str, runs: Sequence[tuple[str, Run]]) -> Iterable[Again]:
    begins = sorted(range(len(runs)), key=lambda at: runs[at][1].first)
    edges = sorted({edge for _, run in runs for edge in (run.first, run.last + 1)})
    reading: list[tuple[str, Run]] = []  # the runs that the offset is in
    at = 0
    for first, end in pairwise(edges):
        reading = [each for each in reading if each[1].last >= first]
        while at < len(begins) and runs[begins[at]][1].first == first:
            reading.append(runs[begins[at]])
            at += 1
        if len(reading) > 1:
            servers = tuple(sorted({server for server, _ in reading}))
            yield Again(partition, first, end - 1, len(reading), servers, max(run.at_s for _, run in reading))
