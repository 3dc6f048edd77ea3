"""Batches of which some records are routed here, and others by a sibling. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, TypeAlias

from ..rules.records import Record


class Delivery:
    """A batch that was read, and how many of its records are not done.

    :ivar records, offsets, sources: as in ``brokers.port.Batch``
    :param on_done: called once, when all records are done
    """

    __slots__ = ("_left", "_names", "_on_done", "offsets", "records", "sources")

    def __init__(
        self,
        records: Sequence[Record],
        offsets: Sequence[int],
        sources: Sequence[tuple[str, int]],
        on_done: Callable[[], None],
    ) -> None:
        self.records, self.offsets, self.sources, self._on_done = records, offsets, sources, on_done
        self._left = len(records)
        self._names: list[str] | None = None

    def __repr__(self) -> str:
        return f"<Delivery {self._left} of {len(self.records)} not done>"

    def done(self, records: int) -> None:
        """This many more of its records are done."""
        if records:
            self._left -= records
            if not self._left:
                self._on_done()

    def names(self) -> list[str]:
        """The partition of each record."""
        if self._names is None:
            self._names = [source for source, records in self.sources for _ in range(records)]
        return self._names


class Piece(NamedTuple):
    """Some records of a batch, by their indexes."""

    delivery: Delivery
    indexes: Sequence[int]

    def done(self) -> None:
        self.delivery.done(len(self.indexes))


Pieces: TypeAlias = Sequence[Piece]


class Merged(NamedTuple):
    """The records of several pieces, as in ``brokers.port.Batch``."""

    records: Sequence[Record]
    offsets: Sequence[int]
    sources: Sequence[tuple[str, int]]


def merged(pieces: Pieces) -> Merged:
    """All records of these pieces, in their order."""
    if len(pieces) == 1 and len(pieces[0].indexes) == len(pieces[0].delivery.records):
        whole = pieces[0].delivery
        return Merged(whole.records, whole.offsets, whole.sources)
    records: list[Record] = []
    offsets: list[int] = []
    names: list[str] = []
    for delivery, indexes in pieces:
        of_records, of_offsets, of_names = delivery.records, delivery.offsets, delivery.names()
        records += [of_records[at] for at in indexes]
        offsets += [of_offsets[at] for at in indexes]
        names += [of_names[at] for at in indexes]
    return Merged(records, offsets, [(name, len(list(same))) for name, same in groupby(names)])


def count_of(pieces: Pieces) -> int:
    return sum([len(piece.indexes) for piece in pieces])


def bytes_of(piece: Piece) -> int:
    """Of the payloads."""
    records = piece.delivery.records
    return sum([len(records[at][1]) for at in piece.indexes])


def cut(piece: Piece, most_records: int, most_bytes: int) -> Iterator[Piece]:
    """Cut into pieces of at most this many records and bytes, in order. A single record may be larger."""
    delivery, indexes = piece
    begin = size = 0
    for position, at in enumerate(indexes):
        size += len(delivery.records[at][1])
        if position > begin and (position - begin == most_records or size > most_bytes):
            yield Piece(delivery, indexes[begin:position])
            begin, size = position, len(delivery.records[at][1])
    yield Piece(delivery, indexes[begin:])
