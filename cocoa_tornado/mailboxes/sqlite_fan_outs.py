"""Fan-outs in the SQLite mailbox: one record for all members of an audience.

A fan-out for more than ``FAN_OUT_STEP`` devices is stored as a row. Its recipients are the members that joined up to
then, so one number says which of them have been served. Those that were served out of turn, because something was
stored for them after it, are rows of ``skipped``, and so are the devices that it excludes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ..rules.addressing import Options
from .port import Entry, FanOut, FanOutStep
from .sqlite_append import Appender, FanOutRef
from .sqlite_boxes import Boxes, select_each
from .sqlite_schema import damaged
from .sqlite_sets import is_ordinary, store_in_ordinary
from .store import FAN_OUT_STEP

STEP: Final = 50
"""Messages of a large fan-out that are stored together. A message for a single device waits for one such step. In steps
of 500, a fan-out takes a third of the CPU time, but the 99th percentile of that wait is three times as long."""

SHARED_BYTES: Final = 1_024
"""A payload of this size is stored once for all of its devices."""

_COLUMNS: Final = "id, audience, excluded, payload, shared, timestamp_ms, options, expires_ms, up_to, done, recipients"


@dataclass(slots=True)
class Pending:
    """A fan-out of which some messages are not stored yet.

    :ivar shared: the row of the table ``payload`` with its payload, if that is shared
    :ivar up_to: its recipients are the members that joined up to then, in the numbers of the table ``member``
    :ivar done: it has been stored for those that joined up to then
    :ivar recipients: for how many devices it has been, with those that had its ``id`` already
    """

    id: int
    message: FanOut
    shared: int | None
    up_to: int = 0
    done: int = 0
    recipients: int = 0

    @classmethod
    def of(cls, columns: Sequence[Any]) -> Pending:
        """:param columns: the values of ``_COLUMNS``"""
        id_, audience, excluded, payload, shared, timestamp_ms, options, expires_ms, up_to, done, recipients = columns
        try:
            names, given = frozenset(json.loads(excluded)), None if options is None else Options(*json.loads(options))
        except (ValueError, TypeError) as error:
            raise damaged(f"a row of the table fan_out is malformed: {error}") from error
        message = FanOut(audience, names, payload, timestamp_ms, "", 0, given, expires_ms)
        return cls(id_, message, shared, up_to, done, recipients)

    def step(self, numbers: dict[str, int], recipients: int, *, is_last: bool) -> FanOutStep:
        """Report what has been stored for so many devices."""
        self.recipients += recipients
        of = self.message
        message = (of.audience, of.excluded, of.payload, of.timestamp_ms, of.options, of.expires_ms)
        return FanOutStep(*message, numbers, is_last=is_last, recipients=self.recipients)


class _Recipients(NamedTuple):
    """:ivar ids: JSON array of the ids of their boxes, in the order in which they joined
    :ivar number: how many they are
    :ivar last: the number with which the last one joined
    """

    ids: str
    number: int
    last: int


class FanOuts:
    """All fan-outs that are not complete, oldest first. Call :meth:`forget` after a failed transaction."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._known: list[Pending] | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def forget(self) -> None:
        """Read them from the database again."""
        self._known = None

    @property
    def _pending(self) -> list[Pending]:
        if self._known is None:
            found = self._database.execute(f"SELECT {_COLUMNS} FROM fan_out ORDER BY id").fetchall()
            self._known = [Pending.of(self._with_payload(columns)) for columns in found]
        return self._known

    def begin(self, boxes: Boxes, appender: Appender, message: FanOut) -> list[FanOutStep]:
        """Store a new fan-out: all of its messages if they are no more than ``FAN_OUT_STEP``, else the first step,
        unless others are under way."""
        appender.flush()
        boxes.write()
        recipients = self._recipients(message, 0, boxes.joined, FAN_OUT_STEP + 1)
        if recipients.number <= FAN_OUT_STEP:
            return self._store_now(boxes, appender, message, recipients)
        self._pending.append(self._record(boxes, message))
        return [self.step(boxes, appender)] if len(self._pending) == 1 else []

    def step(self, boxes: Boxes, appender: Appender) -> FanOutStep:
        """Store the next messages of the oldest fan-out."""
        pending = self._pending[0]
        recipients = self._recipients(pending.message, pending.done, pending.up_to, STEP, pending.id)
        # It is the oldest: there is none to pull forward.
        numbers = self._store_for(boxes, appender, pending, recipients.ids)
        is_last = recipients.number < STEP
        step = pending.step(numbers, recipients.number, is_last=is_last)
        if is_last:
            self._end(boxes, pending)
        else:
            pending.done = recipients.last
            self._save(pending)
        return step

    def pull(self, boxes: Boxes, appender: Appender, device_id: str) -> list[FanOutStep]:
        """Store a device's messages of all fan-outs under way: they are older than what is stored for it next."""
        row = boxes.find(device_id) if self._pending else None
        if row is None:
            return []
        steps = []
        query = (
            "SELECT fan_out.id FROM member JOIN fan_out ON fan_out.audience = member.audience"
            " WHERE member.box = ? AND joined > done AND joined <= up_to AND NOT EXISTS"
            " (SELECT 1 FROM skipped WHERE skipped.fan_out = fan_out.id AND skipped.box = member.box)"
        )
        owed = {id_ for (id_,) in self._database.execute(query, (row.id,))}
        for pending in self._pending if owed else ():
            if pending.id in owed:
                numbers = self._append_each(appender, pending, [device_id])
                self._database.execute("INSERT INTO skipped(fan_out, box) VALUES (?, ?)", (pending.id, row.id))
                steps.append(pending.step(numbers, 1, is_last=False))
                self._save(pending)
        return steps

    def _store_now(
        self, boxes: Boxes, appender: Appender, message: FanOut, recipients: _Recipients
    ) -> list[FanOutStep]:
        pending = Pending(0, message, self._share(boxes, message) if recipients.number > 1 else None)
        steps = []
        for row in boxes.load_ids(json.loads(recipients.ids)).values() if self._pending else ():
            steps += self.pull(boxes, appender, row.device_id)
        appender.flush()
        numbers = self._store_for(boxes, appender, pending, recipients.ids)
        return [*steps, pending.step(numbers, recipients.number, is_last=True)]

    def _store_for(self, boxes: Boxes, appender: Appender, pending: Pending, ids: str) -> dict[str, int]:
        numbers: dict[str, int] = {}
        if is_ordinary(pending.message.options):
            numbers, others = store_in_ordinary(boxes, ids, pending.message, pending.shared)
        else:
            others = json.loads(ids)
        device_ids = [row.device_id for row in boxes.load_ids(others).values()] if others else []
        return numbers | self._append_each(appender, pending, device_ids)

    def _append_each(self, appender: Appender, pending: Pending, device_ids: Sequence[str]) -> dict[str, int]:
        of, fan_out = pending.message, FanOutRef(pending.message.audience, pending.shared)
        numbers = {}
        for device_id in device_ids:
            entry = Entry(device_id, of.payload, of.timestamp_ms, of.source, of.offset, of.options, of.expires_ms)
            number = appender.append(entry, fan_out)
            if number is not None:
                numbers[device_id] = number
        return numbers

    # -- rows

    def _recipients(self, message: FanOut, after: int, up_to: int, limit: int, fan_out: int = 0) -> _Recipients:
        """The next recipients.

        :param fan_out: the id of its row, if it has one; its excluded devices are then among those skipped
        """
        query = (
            "SELECT joined, box FROM member WHERE audience = :audience AND joined > :after AND joined <= :up_to"
            " AND NOT EXISTS (SELECT 1 FROM skipped WHERE fan_out = :fan_out AND skipped.box = member.box)"
        )
        if message.excluded and not fan_out:
            query += " AND box NOT IN (SELECT id FROM box WHERE device IN (SELECT value FROM json_each(:excluded)))"
        args = {
            "audience": message.audience, "after": after, "up_to": up_to, "fan_out": fan_out, "limit": limit,
            "excluded": json.dumps(list(message.excluded)),
        }  # fmt: skip
        query = f"SELECT json_group_array(box), count(*), max(joined) FROM ({query} ORDER BY joined LIMIT :limit)"
        return _Recipients(*self._database.execute(query, args).fetchone())

    def _record(self, boxes: Boxes, message: FanOut) -> Pending:
        shared = self._share(boxes, message)
        inserted = self._database.execute(
            "INSERT INTO fan_out(audience, excluded, payload, shared, timestamp_ms, options, expires_ms, up_to, done,"
            " recipients) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0)",
            (
                message.audience, json.dumps(sorted(message.excluded)), message.payload if shared is None else b"",
                shared, message.timestamp_ms, None if message.options is None else json.dumps(message.options),
                message.expires_ms, boxes.joined,
            ),
        )  # fmt: skip
        assert inserted.lastrowid is not None
        excluded = select_each(self._database, "SELECT id FROM box WHERE device IN", sorted(message.excluded))
        rows = [(inserted.lastrowid, id_) for (id_,) in excluded]
        self._database.executemany("INSERT INTO skipped(fan_out, box) VALUES (?, ?)", rows)
        return Pending(inserted.lastrowid, message, shared, boxes.joined)

    def _share(self, boxes: Boxes, message: FanOut) -> int | None:
        is_transient = message.options is not None and message.options.is_transient
        if is_transient or len(message.payload) < SHARED_BYTES:
            return None
        insert = "INSERT INTO payload(stored_at, data) VALUES (?, ?)"
        return self._database.execute(insert, (boxes.now, message.payload)).lastrowid

    def _with_payload(self, columns: Sequence[Any]) -> Sequence[Any]:
        if columns[4] is None:
            return columns
        found = self._database.execute("SELECT data FROM payload WHERE id = ?", (columns[4],)).fetchone()
        if found is None:
            raise damaged("the payload of a row of the table fan_out is missing")
        return (*columns[:3], found[0], *columns[4:])

    def _save(self, pending: Pending) -> None:
        values = (pending.done, pending.recipients, pending.id)
        self._database.execute("UPDATE fan_out SET done = ?, recipients = ? WHERE id = ?", values)

    def _end(self, boxes: Boxes, pending: Pending) -> None:
        self._database.execute("DELETE FROM skipped WHERE fan_out = ?", (pending.id,))
        self._database.execute("DELETE FROM fan_out WHERE id = ?", (pending.id,))
        if pending.shared is not None:
            # The payload is kept until the last of its messages has expired.
            update = "UPDATE payload SET stored_at = max(stored_at, ?) WHERE id = ?"
            self._database.execute(update, (boxes.now, pending.shared))
        self._pending.remove(pending)
