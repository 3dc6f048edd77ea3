"""The records that are handed over to one sibling, in numbered portions, until they are acknowledged. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from .pieces import Piece, Pieces, bytes_of, count_of, cut

MOST_RECORDS: Final = 1000
MOST_BYTES: Final = 1024 * 1024
"""Of the payloads in one portion. A single record may be larger."""


class Portion(NamedTuple):
    """Records that are handed over together.

    :ivar number: from 1 on, without gaps
    :ivar seen: the sibling's announcements that were known when the records were assigned
    """

    number: int
    seen: int
    pieces: Pieces


class Portions:
    """The portions of one sibling, in their order. Not thread-safe.

    :ivar seen: the latest of the sibling's announcements; set it after :meth:`close`
    :ivar acknowledged: the number up to which the sibling has taken them
    """

    __slots__ = (
        "_looked_at",
        "_number",
        "_open",
        "_open_bytes",
        "_open_records",
        "_unacknowledged",
        "_unsent",
        "acknowledged",
        "seen",
    )

    def __init__(self) -> None:
        self.acknowledged = self.seen = 0
        self._number = 0
        self._open: list[Piece] = []
        self._open_records = self._open_bytes = 0
        self._unsent: deque[Portion] = deque()
        self._unacknowledged: deque[Portion] = deque()
        self._looked_at = 0  # what was acknowledged at the last look

    def __repr__(self) -> str:
        return f"<Portions up to {self.last}, {self.acknowledged} acknowledged>"

    @property
    def is_idle(self) -> bool:
        """Whether all assigned records are acknowledged."""
        return not (self._open or self._unacknowledged)

    @property
    def last(self) -> int:
        """The number of the latest portion, including the one that is still open."""
        return self._number + bool(self._open)

    def has_stopped(self) -> bool:
        """Whether the sibling has acknowledged nothing since the last call, although there is something to
        acknowledge."""
        before, self._looked_at = self._looked_at, self.acknowledged
        return before == self.acknowledged and not self.is_idle

    def gathered(self) -> int:
        """How many records are to be sent."""
        return count_of(self._open) + sum([count_of(portion.pieces) for portion in self._unsent])

    def post(self, piece: Piece) -> None:
        """Assign records to the sibling."""
        size = bytes_of(piece)
        if len(piece.indexes) <= MOST_RECORDS and size <= MOST_BYTES:
            self._add(piece, size)
        else:
            for part in cut(piece, MOST_RECORDS, MOST_BYTES):
                self._add(part, bytes_of(part))

    def _add(self, piece: Piece, size: int) -> None:
        records = len(piece.indexes)
        if self._open_records + records > MOST_RECORDS or self._open_bytes + size > MOST_BYTES:
            self.close()
        self._open.append(piece)
        self._open_records += records
        self._open_bytes += size

    def close(self) -> None:
        """Close the open portion: later records belong to another one."""
        if self._open:
            self._number += 1
            portion = Portion(self._number, self.seen, self._open)
            self._open, self._open_records, self._open_bytes = [], 0, 0
            self._unsent.append(portion)
            self._unacknowledged.append(portion)

    def to_send(self) -> Iterator[Portion]:
        """Yield the portions to send. A yielded portion counts as sent."""
        self.close()
        while self._unsent:
            yield self._unsent.popleft()

    def acknowledge(self, upto: int) -> Sequence[Portion]:
        """The sibling has taken the portions up to this number. Return those that it had not acknowledged before."""
        found = []
        while self._unacknowledged and self._unacknowledged[0].number <= upto:
            found.append(self._unacknowledged.popleft())
        self.acknowledged = max(upto, self.acknowledged)
        return found

    def take_back(self) -> Sequence[Portion]:
        """The sibling has ended. Return the records that it has not acknowledged; none is awaited any more."""
        self.close()
        return self.acknowledge(self._number)
