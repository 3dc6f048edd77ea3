"""Boxes and messages as rows of the SQLite mailbox. Each operation is one transaction; none uses threads.

:class:`Rows` is for the writer, :func:`look` and :func:`read` are for the reader. All of them raise sqlite3.Error.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from ..rules.box import (
    FORGET_AFTER_S,
    FORGET_MISSED_AFTER_S,
    KNOWN_EPOCHS,
    Box,
    BoxLimits,
    Marks,
    PageLimits,
    StoredMessage,
    surplus,
    with_marks,
)
from ..rules.cursors import MAX_EPOCH
from ..rules.feed import Page
from ..rules.seen import judge
from .port import Entry
from .sqlite_schema import damaged
from .sqlite_seen import SeenRows

SWEEP_BOXES: Final = 1_000
SWEEP_MESSAGES: Final = 1_000

_COLUMNS: Final = "id, base, last, gone, acked, written, bytes, touched, cuts"
_ASKED_TOGETHER: Final = (1, 8, 64, 512)  # few distinct statements, so that SQLite's statement cache holds them
_OLDEST_READ: Final = 16


@dataclass(slots=True)
class Change:
    """The effects of a transaction, valid once it is committed.

    :ivar results: for each call, the numbers of its entries
    :ivar epoch: the mailbox's epoch after the commit
    :ivar totals: the mailbox's number of messages and their total size in bytes, after the commit
    """

    results: list[list[int | None]] = field(default_factory=list)
    epoch: int = 0
    totals: tuple[int, int] = (0, 0)
    messages: int = 0
    size_bytes: int = 0
    stored: int = 0
    duplicates: int = 0
    acknowledged: int = 0
    overflowed: int = 0
    expired: int = 0

    def removed(self, messages: int, size_bytes: int) -> None:
        self.messages -= messages
        self.size_bytes -= size_bytes


class _Row:
    """A row of the table ``box``, with the changes of this transaction."""

    __slots__ = ("box", "changed", "device_id", "id", "is_new", "size_bytes", "touched_s")

    def __init__(self, id_: int, device_id: str, box: Box, size_bytes: int, touched_s: float, is_new: bool) -> None:
        self.id, self.device_id, self.box, self.size_bytes, self.touched_s = id_, device_id, box, size_bytes, touched_s
        self.is_new = is_new
        self.changed = is_new

    def values(self) -> tuple[int, int, int | None, int, int, float, str, int]:
        """The arguments of the UPDATE statement."""
        box = self.box
        cuts = " ".join(f"{epoch}:{last}" for epoch, last in box.cuts)
        return box.last, box.gone, box.acked, box.written, self.size_bytes, self.touched_s, cuts, self.id


class LastSeen(NamedTuple):
    """The state of a mailbox when it was last seen.

    :ivar given: messages ever stored
    """

    epoch: int
    given: int


class Rows:
    """The writer's connection. A method that raises has changed nothing and may be called again.

    Unless the file continues from ``known``, a new epoch with a random number begins: the file may be a copy or a
    restored backup, so a cursor may name a message that another copy stored.

    :param known: the state that this process last saw, if any
    :ivar key: the MAC key of the cursors
    :ivar epochs: the epochs that the mailbox remembers, oldest first; the last one is current
    :ivar messages: the number of stored messages
    :ivar size_bytes: the total size of their payloads
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        limits: BoxLimits,
        clock: Callable[[], float],
        known: LastSeen | None = None,
    ) -> None:
        self._database, self._limits, self._clock = database, limits, clock
        self._seen = SeenRows(database)
        self._swept_id = self._last_id = 0
        meta = dict(database.execute("SELECT key, value FROM meta"))
        kinds = (("key", bytes), ("given", int), ("eras", str))
        if not all(isinstance(meta.get(name), kind) for name, kind in kinds):
            raise damaged("the table meta is incomplete")
        self.key: bytes = meta["key"]
        self._given: int = meta["given"]
        self.epochs = _epochs_of(meta["eras"])
        if known is None or self.epochs[-1:] != (known.epoch,) or self._given < known.given:
            self._begin_epoch()
        totals = "SELECT coalesce(max(id), 0), coalesce(sum(last - gone), 0), coalesce(sum(bytes), 0) FROM box"
        self._last_id, self.messages, self.size_bytes = database.execute(totals).fetchone()

    @property
    def last_seen(self) -> LastSeen:
        return LastSeen(self.epochs[-1], self._given)

    def _begin_epoch(self) -> None:
        # The first epoch of a new file needs no random number, as its key is random.
        epochs = (*self.epochs[1 - KNOWN_EPOCHS :], _new_epoch(self.epochs)) if self.epochs else (0,)
        with self._transaction():
            self._database.execute("UPDATE meta SET value = ? WHERE key = 'eras'", (" ".join(map(str, epochs)),))
        self.epochs = epochs

    def store(self, calls: Sequence[Sequence[Entry]], marks: Mapping[str, Marks], group: str = "") -> Change:
        """Apply the marks, then the calls of append, in one transaction.

        :param group: the unique id of this request. If an attempt raised although its transaction was committed, a
            retry with the same id returns its results and stores nothing twice
        """
        now = self._clock()
        change = self._answered(calls, group) if calls and group else None
        if change is None:
            change = Change()
        else:
            calls = ()  # but the marks may include newer ones
        with self._transaction():
            devices = {entry.device_id for entries in calls for entry in entries} | marks.keys()
            rows = {row.device_id: row for row in self._rows(devices)}
            self._acknowledge(rows, marks, now, change)
            self._append(rows, calls, now, change)
            self._write(rows.values())
            if change.stored:
                self._database.execute("UPDATE meta SET value = ? WHERE key = 'given'", (self._given,))
            if calls and group:
                self._remember_answer(change.results, group)
        self._believe(change)
        return change

    def sweep(self) -> Change:
        """Delete the expired messages of the next boxes, and unused boxes. Starts over after the last box."""
        now, change = self._clock(), Change()
        # There is no other writer, so rows that are read before the transaction do not change until it begins.
        boxes = self._database.execute(
            f"SELECT {_COLUMNS} FROM box WHERE id > ? ORDER BY id LIMIT ?", (self._swept_id, SWEEP_BOXES)
        ).fetchall()
        swept_id = boxes[-1][0] if len(boxes) == SWEEP_BOXES else 0
        expired: list[_Row] = []
        forgotten: list[int] = []
        for columns in boxes:
            row = _row("", columns, self.epochs)
            if len(row.box):
                if change.expired == SWEEP_MESSAGES:
                    swept_id = row.id - 1
                    break
                if self._expire(row, now, change):
                    expired.append(row)
            elif now - row.touched_s > (FORGET_MISSED_AFTER_S if row.box.owes_a_gap else FORGET_AFTER_S):
                forgotten.append(row.id)
        has_old = self._seen.has_old(now - FORGET_AFTER_S)
        if expired or forgotten or has_old:
            with self._transaction():
                self._delete(expired)
                self._write(expired)
                self._database.executemany("DELETE FROM box WHERE id = ?", [(id_,) for id_ in forgotten])
                if has_old:
                    self._seen.sweep(now - FORGET_AFTER_S, SWEEP_MESSAGES)
        self._swept_id = swept_id
        self._believe(change)
        return change

    def probe(self) -> None:
        """Raise if the database is not writable now."""
        self._database.execute("BEGIN IMMEDIATE")
        self._database.execute("ROLLBACK")

    def close(self) -> None:
        self._database.close()

    def checkpoint(self) -> bool:
        """Checkpoint the log into the database. Returns False if a reader prevented it."""
        (busy, _, _) = self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def _remember_answer(self, results: Iterable[Iterable[int | None]], group: str) -> None:
        given = ("-" if number is None else str(number) for numbers in results for number in numbers)
        answer = " ".join((group, *given))
        self._database.execute("INSERT OR REPLACE INTO meta(key, value) VALUES ('answer', ?)", (answer,))

    def _answered(self, calls: Sequence[Sequence[Entry]], group: str) -> Change | None:
        found = self._database.execute("SELECT value FROM meta WHERE key = 'answer'").fetchone()
        name, *given = str(found[0]).split() if found else [""]
        if name != group:
            return None
        if len(given) != sum(map(len, calls)) or not all(number == "-" or number.isdecimal() for number in given):
            raise damaged("the answer to the last group is malformed")
        numbers = iter(None if number == "-" else int(number) for number in given)
        change = Change()
        change.results += [[next(numbers) for _ in entries] for entries in calls]
        change.stored = len(given) - given.count("-")
        change.duplicates = given.count("-")
        return change

    # -- the parts of a transaction

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        given, last_id = self._given, self._last_id
        try:
            self._database.execute("BEGIN IMMEDIATE")
            yield
            self._database.execute("COMMIT")
        except BaseException:
            self._given, self._last_id = given, last_id
            self._seen.forget()
            # SQLite may have rolled back already. If the rollback fails, closing the connection rolls back.
            with contextlib.suppress(sqlite3.Error):
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
            raise

    def _believe(self, change: Change) -> None:
        self.messages += change.messages
        self.size_bytes += change.size_bytes
        change.epoch, change.totals = self.epochs[-1], (self.messages, self.size_bytes)

    def _rows(self, devices: Iterable[str]) -> Iterator[_Row]:
        wanted = sorted(devices)
        for start in range(0, len(wanted), _ASKED_TOGETHER[-1]):
            chunk: list[str | None] = list(wanted[start : start + _ASKED_TOGETHER[-1]])
            size = next(size for size in _ASKED_TOGETHER if size >= len(chunk))
            chunk += [None] * (size - len(chunk))
            marks = ",".join("?" * size)
            query = f"SELECT {_COLUMNS}, device FROM box WHERE device IN ({marks})"
            for columns in self._database.execute(query, chunk):
                yield _row(columns[9], columns, self.epochs)

    def _acknowledge(self, rows: Mapping[str, _Row], marks: Mapping[str, Marks], now: float, change: Change) -> None:
        emptier = []
        for device_id, of_device in marks.items():
            row = rows.get(device_id)
            if row is None:
                continue
            before, row.box = row.box, with_marks(row.box, of_device)
            if row.box == before:
                continue
            row.changed, row.touched_s = True, now
            gone = len(before) - len(row.box)
            if gone:
                size_bytes = self._size(row, before.gone)
                row.size_bytes -= size_bytes
                change.removed(gone, size_bytes)
                change.acknowledged += gone
                emptier.append(row)
        self._delete(emptier)

    def _size(self, row: _Row, gone: int) -> int:
        """The total size of the messages that have left the box since ``gone``."""
        if not len(row.box):
            return row.size_bytes
        query = "SELECT coalesce(sum(length(payload)), 0) FROM message WHERE box = ? AND number > ? AND number <= ?"
        (size_bytes,) = self._database.execute(query, (row.id, gone, row.box.gone)).fetchone()
        return int(size_bytes)

    def _append(self, rows: dict[str, _Row], calls: Sequence[Sequence[Entry]], now: float, change: Change) -> None:
        messages = []
        fresh = iter(judge(calls, partial(self._seen.take, now=now)))
        for entries in calls:
            numbers: list[int | None] = []
            for entry in entries:
                if not next(fresh):
                    change.duplicates += 1
                    numbers.append(None)
                    continue
                row = rows.get(entry.device_id)
                if row is None:
                    self._last_id += 1
                    box = Box.new(self._given, self.epochs[-1], self.epochs)
                    row = rows[entry.device_id] = _Row(self._last_id, entry.device_id, box, 0, now, True)
                row.box = row.box.append()
                row.size_bytes += len(entry.payload)
                row.touched_s, row.changed = now, True
                change.size_bytes += len(entry.payload)
                self._given += 1
                messages.append((row.id, row.box.last, now, entry.timestamp_ms, entry.payload))
                numbers.append(row.box.last)
            change.results.append(numbers)
        change.stored += len(messages)
        change.messages += len(messages)
        insert = "INSERT INTO message(box, number, stored_at, timestamp_ms, payload) VALUES (?, ?, ?, ?, ?)"
        self._database.executemany(insert, messages)
        self._overflow(rows.values(), change)

    def _overflow(self, rows: Iterable[_Row], change: Change) -> None:
        emptier = []
        for row in rows:
            if len(row.box) > self._limits.max_messages or row.size_bytes > self._limits.max_bytes:
                before = len(row.box)
                size_bytes = self._lose_oldest(row)
                change.removed(before - len(row.box), size_bytes)
                change.overflowed += before - len(row.box)
                emptier.append(row)
        self._delete(emptier)

    def _lose_oldest(self, row: _Row) -> int:
        """Drop the oldest messages until the box is within its limits; return the bytes freed.

        It reads the sizes of as few messages as possible: the oldest ones, against what the others leave of the limits.
        """
        box, limits = row.box, self._limits
        looked_at = max(0, len(box) - limits.max_messages) + _OLDEST_READ
        query = "SELECT length(payload) FROM message WHERE box = ? AND number > ? ORDER BY number LIMIT ?"
        while True:
            sizes = [size for (size,) in self._database.execute(query, (row.id, box.gone, looked_at))]
            others = len(box) - len(sizes)
            left = BoxLimits(limits.max_messages - others, limits.max_bytes - (row.size_bytes - sum(sizes)))
            gone = surplus(sizes, left)
            if len(sizes) < looked_at or gone < len(sizes) - 1:
                break
            looked_at *= 4
        row.box = box.lose(box.gone + gone)
        row.size_bytes -= sum(sizes[:gone])
        return sum(sizes[:gone])

    def _expire(self, row: _Row, now: float, change: Change) -> bool:
        query = "SELECT stored_at, length(payload) FROM message WHERE box = ? AND number > ? ORDER BY number LIMIT ?"
        found = self._database.execute(query, (row.id, row.box.gone, SWEEP_MESSAGES - change.expired))
        expired = size_bytes = 0
        for stored_at, size in found:
            if stored_at > now - self._limits.ttl_s:
                break
            expired += 1
            size_bytes += size
        row.box = row.box.lose(row.box.gone + expired)
        row.size_bytes -= size_bytes
        row.changed = expired > 0
        change.removed(expired, size_bytes)
        change.expired += expired
        return row.changed

    def _delete(self, rows: Iterable[_Row]) -> None:
        ranges = [(row.id, row.box.gone) for row in rows]
        self._database.executemany("DELETE FROM message WHERE box = ? AND number <= ?", ranges)

    def _write(self, rows: Iterable[_Row]) -> None:
        changed = [row for row in rows if row.changed]
        self._database.executemany(
            "INSERT INTO box(last, gone, acked, written, bytes, touched, cuts, id, device, base)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(*row.values(), row.device_id, row.box.base) for row in changed if row.is_new],
        )
        self._database.executemany(
            "UPDATE box SET last = ?, gone = ?, acked = ?, written = ?, bytes = ?, touched = ?, cuts = ? WHERE id = ?",
            [row.values() for row in changed if not row.is_new],
        )


def look(database: sqlite3.Connection, device_id: str, marks: Marks) -> Box:
    """A device's box with ``marks`` applied; a new one if there is none."""
    found = _find(database, device_id)
    return _new(database) if found is None else with_marks(found.box, marks)


def read(
    database: sqlite3.Connection, device_id: str, after: int, limits: PageLimits, expired_at: float, marks: Marks
) -> Page:
    """The messages above ``after`` that were stored later than ``expired_at``, with ``marks`` applied."""
    found = _find(database, device_id)
    if found is None:
        box = _new(database)
        return Page((), box.gone, box.last, box.base)
    box = with_marks(found.box, marks)
    alive = database.execute(
        "SELECT number FROM message WHERE box = ? AND number > ? AND stored_at > ? ORDER BY number LIMIT 1",
        (found.id, box.gone, expired_at),
    ).fetchone()
    box = box.lose(box.last if alive is None else alive[0] - 1)
    messages: list[StoredMessage] = []
    size = 0
    query = "SELECT number, payload, timestamp_ms FROM message WHERE box = ? AND number > ? ORDER BY number LIMIT ?"
    with contextlib.closing(
        database.execute(query, (found.id, max(after, box.gone), max(1, limits.max_messages)))
    ) as rows:
        for message in rows:
            size += len(message[1])
            if messages and size > limits.max_bytes:
                break
            messages.append(StoredMessage(*message))
    return Page(messages, box.gone, box.last, box.base, box.acked or 0)


def _find(database: sqlite3.Connection, device_id: str) -> _Row | None:
    columns = database.execute(f"SELECT {_COLUMNS} FROM box WHERE device = ?", (device_id,)).fetchone()
    if columns is None:
        return None
    ((epochs,),) = database.execute("SELECT value FROM meta WHERE key = 'eras'")
    return _row(device_id, columns, _epochs_of(epochs))


def _new(database: sqlite3.Connection) -> Box:
    meta = dict(database.execute("SELECT key, value FROM meta WHERE key IN ('given', 'eras')"))
    epochs = _epochs_of(meta["eras"])
    return Box.new(int(meta["given"]), epochs[-1], epochs)


def _row(device_id: str, columns: Sequence[Any], epochs: tuple[int, ...]) -> _Row:
    id_, base, last, gone, acked, written, size_bytes, touched_s, cuts = columns[:9]
    box = Box(base, last, gone, acked, written, epochs[-1], _cuts_of(cuts) if cuts else (), epochs)
    return _Row(id_, device_id, box, size_bytes, touched_s, False)


def _cuts_of(text: str) -> tuple[tuple[int, int], ...]:
    try:
        pairs = (cut.split(":") for cut in text.split())
        return tuple((int(epoch), int(last)) for epoch, last in pairs)
    except ValueError as error:
        raise damaged(f"a row of the table box is malformed: {error}") from error


def _epochs_of(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split()))
    except ValueError as error:
        raise damaged(f"the epochs in the table meta are malformed: {error}") from error


def _new_epoch(epochs: Sequence[int]) -> int:
    while (epoch := secrets.randbelow(MAX_EPOCH) + 1) in epochs:
        pass
    return epoch
