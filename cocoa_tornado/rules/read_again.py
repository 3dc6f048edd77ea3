"""Records that were read more than once, found in what servers remember of their batches. Pure.

A server reads a partition in the order of its offsets. What it has read without going back or leaving out an offset is
a run, so runs that overlap, of one server or of several, are records that were read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
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

    def add(self, at_s: float, offsets: Sequence[int], sources: Sequence[tuple[str, int]]) -> int:
        """Add a batch that was read before all others so far.

        :param offsets, sources: see ``brokers.port.Batch``
        :returns: how many offsets it had to look at: all of a partition with a gap, else none
        """
        end, looked = len(offsets), 0
        for partition, length in reversed(sources):
            if length and offsets[end - 1] - offsets[end - length] != length - 1:
                looked += length
            for first, last in _unbroken(offsets[end - length : end]):
                later = self._open.get(partition)
                if later is not None and later.first == last + 1:
                    self._open[partition] = Run(partition, first, later.last, at_s)
                    continue
                if later is not None:
                    self.found.append(later)
                self._open[partition] = Run(partition, first, last, at_s)
            end -= length
        return looked

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
    # The runs that the offset is in: by their ends, by their beginnings in time, and how many of each server.
    ends: list[tuple[int, str]] = []
    latest: list[tuple[float, int]] = []
    reading = Counter[str]()
    at = 0
    for first, end in pairwise(edges):
        while ends and ends[0][0] < first:
            _, server = heappop(ends)
            reading[server] -= 1
            if not reading[server]:
                del reading[server]
        while at < len(begins) and runs[begins[at]][1].first == first:
            server, run = runs[begins[at]]
            reading[server] += 1
            heappush(ends, (run.last, server))
            heappush(latest, (-run.at_s, run.last))
            at += 1
        while latest and latest[0][1] < first:
            heappop(latest)
        if len(ends) > 1:
            yield Again(partition, first, end - 1, len(ends), tuple(sorted(reading)), -latest[0][0])
