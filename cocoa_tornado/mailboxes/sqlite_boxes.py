"""The boxes of the SQLite mailbox: their rows, and the changes that one transaction makes to them."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..rules.box import Box, BoxLimits, Epochs, Lane, LaneName
from ..rules.retracted import Retracted, retracted_of_text, retracted_to_text
from .port import FanOutStep
from .sqlite_schema import damaged

COLUMNS: Final = (
    "id, base, last, gone, acked, written, cuts, retracted, holes, bytes, touched, seen_at, ids,"
    " high_last, high_gone, high_acked, high_written, high_cuts, high_retracted"
)
SIZE: Final = "coalesce(size, length(payload))"
"""The size of a message's payload."""

_NEW: Final = tuple.__new__  # like Lane(...), without the Python function that a NamedTuple has for it
_ASKED_TOGETHER: Final = (1, 8, 64, 512)  # few distinct statements, so that SQLite's statement cache holds them
_INSERT: Final = (
    "INSERT INTO box(last, gone, acked, written, holes, bytes, touched, id, device, base) VALUES (?, ?, ?, ?, ?, ?, ?,"
    " ?, ?, ?)"
)
_UPDATE: Final = (
    "UPDATE box SET last = ?, gone = ?, acked = ?, written = ?, holes = ?, bytes = ?, touched = ? WHERE id = ?"
)
_UPDATE_RARE: Final = "UPDATE box SET cuts = ?, retracted = ?, seen_at = ?, ids = ? WHERE id = ?"
_UPDATE_HIGH: Final = (
    "UPDATE box SET high_last = ?, high_gone = ?, high_acked = ?, high_written = ?, high_cuts = ?, high_retracted = ?"
    " WHERE id = ?"
)


@dataclass(slots=True)
class Change:
    """The effects of a transaction, valid once it is committed.

    :ivar results: for each call, the numbers of its entries
    :ivar steps: of fan-outs
    :ivar epoch: the mailbox's epoch after the commit
    :ivar totals: the mailbox's number of messages and their total size in bytes, after the commit
    :ivar fan_outs: how many are not complete after the commit
    :ivar overflowed: messages that full boxes have dropped before their device had them, by device
    :ivar expired: messages that were too old
    :ivar retired: as ``MailboxCounters.retired``; these are not among the two before
    """

    results: list[list[int | None]] = field(default_factory=list)
    steps: list[FanOutStep] = field(default_factory=list)
    epoch: int = 0
    totals: tuple[int, int] = (0, 0)
    fan_outs: int = 0
    messages: int = 0
    size_bytes: int = 0
    stored: int = 0
    duplicates: int = 0
    acknowledged: int = 0
    collapsed: int = 0
    withdrawn: int = 0
    overflowed: Counter[str] = field(default_factory=Counter)
    expired: int = 0
    retired: int = 0

    def adopt(self, other: Change) -> None:
        """Report what another transaction has stored, too. The mailbox's totals include it already."""
        self.results, self.steps = other.results, other.steps
        self.overflowed += other.overflowed
        for counter in ("stored", "duplicates", "acknowledged", "collapsed", "withdrawn", "retired"):
            setattr(self, counter, getattr(self, counter) + getattr(other, counter))


class BoxRow:
    """A row of the table ``box``, with the changes of this transaction.

    :ivar messages: how many the box holds
    :ivar size_bytes: the total size of their payloads
    :ivar touched_s: when a message or a mark was last stored
    :ivar seen_s: when the device last joined its audiences; None: it is not known
    :ivar ids: how many messages with an ``id`` the box has been given
    """

    __slots__ = (
        "_high",
        "_stored",
        "changed",
        "device_id",
        "high_changed",
        "id",
        "ids",
        "is_new",
        "messages",
        "normal",
        "seen_s",
        "size_bytes",
        "touched_s",
    )

    def __init__(
        self,
        id_: int,
        device_id: str,
        normal: Lane,
        high: Lane | None,
        counts: tuple[int, int, int],
        times: tuple[float, float | None],
    ) -> None:
        self.id, self.device_id, self.normal, self._high = id_, device_id, normal, high
        self.messages, self.size_bytes, self.ids = counts
        self.touched_s, self.seen_s = times
        self.is_new = self.changed = self.high_changed = False
        self._stored = (normal.cuts, normal.retracted, self.seen_s, self.ids)

    @classmethod
    def new(cls, id_: int, device_id: str, base: int, now: float) -> BoxRow:
        row = cls(id_, device_id, Lane.new(base), None, (0, 0, 0), (now, None))
        row.is_new = row.changed = True
        return row

    @classmethod
    def of(cls, device_id: str, columns: Sequence[Any]) -> BoxRow:
        """:param columns: the values of ``COLUMNS``"""
        id_, base, last, gone, acked, written, cuts, retracted, holes, size_bytes, touched_s, seen_s, ids = columns[:13]
        normal, high, messages = _lane(base, last, gone, acked, written, cuts, retracted), None, last - gone - holes
        if columns[13] is not None:
            high = _lane(base, *columns[13:19])
            messages += high.last - high.gone
        return cls(id_, device_id, normal, high, (messages, size_bytes, ids), (touched_s, seen_s))

    @property
    def high(self) -> Lane:
        if self._high is None:
            self._high = Lane.new(self.normal.base)
        return self._high

    @property
    def has_high(self) -> bool:
        """False if no message of high priority is in the box."""
        return self._high is not None and self._high.last > self._high.gone

    @property
    def holes(self) -> int:
        """Unused numbers above what is gone, in both lanes."""
        high = 0 if self._high is None else self._high.last - self._high.gone
        return self.normal.last - self.normal.gone + high - self.messages

    def box(self, epochs: Epochs) -> Box:
        return Box(self.normal, self.high, epochs)

    def lane(self, name: LaneName) -> Lane:
        return self.high if name == "high" else self.normal

    def place(self, name: LaneName) -> int:
        """The value of the column ``box`` of the lane's messages."""
        return -self.id if name == "high" else self.id

    def put(self, name: LaneName, lane: Lane) -> None:
        if name == "high":
            self._high, self.high_changed = lane, True
        else:
            self.normal = lane
        self.changed = True

    def put_box(self, box: Box) -> None:
        self.put("normal", box.normal)
        if box.high != self.high:
            self.put("high", box.high)

    def values(self) -> tuple[Any, ...]:
        """The arguments of the UPDATE statement."""
        _, last, gone, acked, written, _, _ = self.normal
        return last, gone, acked, written, self.holes, self.size_bytes, self.touched_s, self.id

    @property
    def rare_changed(self) -> bool:
        """True if a column has changed that seldom does."""
        return self._stored != (self.normal.cuts, self.normal.retracted, self.seen_s, self.ids)

    def rare_values(self) -> tuple[Any, ...]:
        """The arguments of the UPDATE statement for them."""
        return _text_of_cuts(self.normal), _text_of_retracted(self.normal), self.seen_s, self.ids, self.id

    def written(self) -> None:
        """All changes are stored."""
        self.is_new = self.changed = self.high_changed = False
        self._stored = (self.normal.cuts, self.normal.retracted, self.seen_s, self.ids)

    def high_values(self) -> tuple[Any, ...]:
        """Those of the UPDATE statement for the lane of high priority."""
        lane = self.high
        return lane.last, lane.gone, lane.acked, lane.written, _text_of_cuts(lane), _text_of_retracted(lane), self.id


class Boxes:
    """The boxes that a transaction reads and changes.

    :ivar given: messages ever stored: no box has assigned a higher number
    :ivar last_id: the highest id of a box
    :ivar joined: how many rows the table ``member`` was ever given
    """

    def __init__(
        self, database: sqlite3.Connection, epochs: Epochs, limits: BoxLimits, now: float, counts: tuple[int, int, int]
    ) -> None:
        self.database, self.epochs, self.limits, self.now = database, epochs, limits, now
        self.given, self.last_id, self.joined = counts
        self.change = Change()
        self._rows: dict[str, BoxRow] = {}
        self._forgotten: set[str] = set()

    def load(self, device_ids: Iterable[str]) -> None:
        """Read the boxes of these devices."""
        wanted = sorted(device_id for device_id in device_ids if device_id not in self._rows)
        query = f"SELECT {COLUMNS}, device FROM box WHERE device IN"
        for columns in select_each(self.database, query, wanted):
            self._rows[columns[19]] = BoxRow.of(columns[19], columns)

    def load_ids(self, ids: Iterable[int]) -> dict[int, BoxRow]:
        """Read the boxes with these ids."""
        found = {}
        query = f"SELECT {COLUMNS}, device FROM box WHERE id IN"
        for columns in select_each(self.database, query, sorted(ids)):
            row = self.adopt(columns)
            found[row.id] = row
        return found

    def adopt(self, columns: Sequence[Any]) -> BoxRow:
        """A box whose row has been read.

        :param columns: the values of ``COLUMNS``, and the device
        """
        row = self._rows.get(columns[19])
        if row is None:
            row = self._rows[columns[19]] = BoxRow.of(columns[19], columns)
        return row

    def find(self, device_id: str) -> BoxRow | None:
        """The box of a device, if it has one. It must have been loaded."""
        row = self._rows.get(device_id)
        return self._reloaded(device_id) if row is None else row

    def get(self, device_id: str) -> BoxRow:
        """The box of a device, a new one if it has none. It must have been loaded."""
        row = self.find(device_id)
        if row is None:
            self.last_id += 1
            row = self._rows[device_id] = BoxRow.new(self.last_id, device_id, self.given, self.now)
        return row

    def remove(self, row: BoxRow, name: LaneName, number: int, size: int) -> None:
        """Delete one message."""
        self.database.execute("DELETE FROM message WHERE box = ? AND number = ?", (row.place(name), number))
        self.removed(row, 1, size)
        self.skip_holes(row, name)

    def removed(self, row: BoxRow, messages: int, size_bytes: int) -> None:
        row.messages -= messages
        row.size_bytes -= size_bytes
        row.changed = True
        self.change.messages -= messages
        self.change.size_bytes -= size_bytes

    def delete(self, row: BoxRow) -> None:
        """Delete an empty box."""
        self.database.execute("DELETE FROM named WHERE box = ?", (row.id,))
        self.database.execute("DELETE FROM box WHERE id = ?", (row.id,))
        del self._rows[row.device_id]

    def skip_holes(self, row: BoxRow, name: LaneName) -> None:
        """Everything before the lane's first message is gone."""
        lane = row.lane(name)
        query = "SELECT min(number) FROM message WHERE box = ? AND number > ?"
        (first,) = self.database.execute(query, (row.place(name), lane.gone)).fetchone()
        row.put(name, lane.lose(lane.last if first is None else first - 1))

    def write(self) -> None:
        """Store the changes of all rows."""
        changed = [row for row in self._rows.values() if row.changed]
        new = [(*row.values(), row.device_id, row.normal.base) for row in changed if row.is_new]
        self.database.executemany(_INSERT, new)
        self.database.executemany(_UPDATE, [row.values() for row in changed if not row.is_new])
        self.database.executemany(_UPDATE_RARE, [row.rare_values() for row in changed if row.rare_changed])
        self.database.executemany(_UPDATE_HIGH, [row.high_values() for row in changed if row.high_changed])
        for row in changed:
            row.written()

    def forget(self) -> None:
        """Write all rows, as statements will change them in the database. They are read again when needed."""
        self.write()
        self._forgotten.update(self._rows)
        self._rows.clear()

    def _reloaded(self, device_id: str) -> BoxRow | None:
        if device_id not in self._forgotten:
            return None
        self._forgotten.remove(device_id)
        self.load([device_id])
        return self._rows.get(device_id)


def select_each(database: sqlite3.Connection, query: str, values: Sequence[Any]) -> Iterator[Any]:
    """The rows for many values, asked for in few statements.

    :param query: ends with ``IN``
    """
    for start in range(0, len(values), _ASKED_TOGETHER[-1]):
        chunk = list(values[start : start + _ASKED_TOGETHER[-1]])
        size = next(size for size in _ASKED_TOGETHER if size >= len(chunk))
        chunk += [None] * (size - len(chunk))
        yield from database.execute(f"{query} ({','.join('?' * size)})", chunk)


def _lane(base: int, last: int, gone: int, acked: int | None, written: int, cuts: str, retracted: str) -> Lane:
    of_cuts, of_retracted = _cuts_of(cuts) if cuts else (), _retracted_of(retracted) if retracted else ()
    return _NEW(Lane, (base, last, gone, acked, written, of_cuts, of_retracted))


def _text_of_cuts(lane: Lane) -> str:
    return " ".join([f"{epoch}:{last}" for epoch, last in lane.cuts]) if lane.cuts else ""


def _text_of_retracted(lane: Lane) -> str:
    return retracted_to_text(lane.retracted) if lane.retracted else ""


def _cuts_of(text: str) -> tuple[tuple[int, int], ...]:
    try:
        pairs = (cut.split(":") for cut in text.split())
        return tuple((int(epoch), int(last)) for epoch, last in pairs)
    except ValueError as error:
        raise damaged(f"a row of the table box is malformed: {error}") from error


def _retracted_of(text: str) -> Retracted:
    try:
        return retracted_of_text(text)
    except ValueError as error:
        raise damaged(f"a row of the table box is malformed: {error}") from error
