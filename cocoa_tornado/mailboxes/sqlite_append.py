"""Adding messages to the boxes of the SQLite mailbox: numbers, options, and the bound of each box.

Messages without options are inserted together, and their boxes reduced once. Any other message is inserted at once, as
what it replaces or drops depends on the messages before it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from ..rules.addressing import Options
from ..rules.audiences import ALL, Audience
from ..rules.box import LANES, BoxLimits, LaneName, surplus
from .port import ID_REMEMBERED_S, IDS_REMEMBERED, NOT_STORED, Entry, lane_of
from .sqlite_boxes import SIZE, Boxes, BoxRow

INSERT_PLAIN: Final = "INSERT INTO message(box, number, stored_at, timestamp_ms, payload) VALUES (?, ?, ?, ?, ?)"
INSERT: Final = (
    "INSERT INTO message(box, number, stored_at, timestamp_ms, payload, expires_ms, low, collapse_key, audience,"
    " shared, size) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_DEFAULTS: Final = Options()
_OLDEST_READ: Final = 16
_SURPLUS_IDS: Final = 100
"""Ids beyond those remembered that are deleted together."""


class FanOutRef(NamedTuple):
    """The fan-out that a message is part of.

    :ivar audience: the user, group or everyone that it is addressed to
    :ivar shared: the row of the table ``payload`` with its payload; None: each message has its own
    """

    audience: Audience
    shared: int | None


class Appender:
    """Adds messages within one transaction. Call :meth:`flush` at the end, and before reading messages."""

    def __init__(self, boxes: Boxes) -> None:
        self._boxes, self._limits = boxes, boxes.limits
        self._messages: list[tuple[Any, ...]] = []
        self._overflowing: dict[int, BoxRow] = {}

    def append(self, entry: Entry, fan_out: FanOutRef | None = None) -> int | None:
        """Store a message. The box of its device must have been loaded. Returns its number in its lane; None if the
        box has had a message with its ``id``. A transient message is not stored: the result is the number that it
        comes after."""
        boxes = self._boxes
        if entry.options is not None and entry.options.is_transient:
            return self._pass_by(entry.device_id, entry.options)
        row = boxes.get(entry.device_id)
        if entry.options is not None or entry.expires_ms or fan_out is not None:
            return self._append_special(row, entry, entry.options or _DEFAULTS, fan_out)
        row.normal = lane = row.normal.append(boxes.epochs)
        number, payload, limits = lane.last, entry.payload, self._limits
        self._messages.append((row.id, number, boxes.now, entry.timestamp_ms, payload))
        # As _count, but once for all of them in flush.
        row.messages = messages = row.messages + 1
        row.size_bytes = size_bytes = row.size_bytes + len(payload)
        row.touched_s, row.changed = boxes.now, True
        boxes.given += 1
        if (messages > limits.max_messages or size_bytes > limits.max_bytes) and row.id not in self._overflowing:
            self._overflow(row)
        return number

    def flush(self) -> None:
        """Store the added messages, and drop those without options that exceed the limits."""
        messages, change = self._messages, self._boxes.change
        if messages:
            self._boxes.database.executemany(INSERT_PLAIN, messages)
            change.stored += len(messages)
            change.messages += len(messages)
            change.size_bytes += sum([len(message[4]) for message in messages])
            messages.clear()
        for row in self._overflowing.values():
            self._drop_oldest(row)
        self._overflowing.clear()

    def _count(self, row: BoxRow, size: int) -> None:
        boxes = self._boxes
        row.messages += 1
        row.size_bytes += size
        row.touched_s, row.changed = boxes.now, True
        boxes.given += 1
        boxes.change.stored += 1
        boxes.change.messages += 1
        boxes.change.size_bytes += size

    # -- a message with options

    def _append_special(self, row: BoxRow, entry: Entry, options: Options, fan_out: FanOutRef | None) -> int | None:
        self.flush()
        if options.id is not None and self._has_had(row, options.id):
            self._boxes.change.duplicates += 1
            return None
        if options.collapse_key is not None:
            self._collapse(row, options.collapse_key)
        name = lane_of(options)
        lane = row.lane(name).append(self._boxes.epochs)
        row.put(name, lane)
        self._insert(row, entry, options, fan_out)
        self._count(row, len(entry.payload))
        if options.id is not None:
            self._name(row, options.id, name, lane.last)
        self._shrink(row, name)
        return lane.last

    def _pass_by(self, device_id: str, options: Options) -> int | None:
        """A message is not stored, but its ``collapse_key`` and its ``id`` count."""
        row, name = self._boxes.find(device_id), lane_of(options)
        if row is None:
            if options.id is None:
                return self._boxes.given
            row = self._boxes.get(device_id)
        self.flush()
        if options.id is not None and self._has_had(row, options.id):
            self._boxes.change.duplicates += 1
            return None
        if options.collapse_key is not None:
            self._collapse(row, options.collapse_key)
        if options.id is not None:
            self._name(row, options.id, name, NOT_STORED)
        return row.lane(name).last

    def _insert(self, row: BoxRow, entry: Entry, options: Options, fan_out: FanOutRef | None) -> None:
        name = lane_of(options)
        audience, shared = fan_out or (None, None)
        values = (
            row.place(name), row.lane(name).last, self._boxes.now, entry.timestamp_ms,
            entry.payload if shared is None else b"", entry.expires_ms, int(options.priority == "low"),
            options.collapse_key, None if audience == ALL else audience, shared,
            None if shared is None else len(entry.payload),
        )  # fmt: skip
        self._boxes.database.execute(INSERT, values)

    def _collapse(self, row: BoxRow, key: str) -> None:
        query = f"SELECT box, number, {SIZE} FROM message INDEXED BY message_collapsible"
        query += " WHERE box IN (?, ?) AND collapse_key = ?"
        for place, number, size in self._boxes.database.execute(query, (row.id, -row.id, key)).fetchall():
            retract(self._boxes, row, "high" if place < 0 else "normal", number, size)
            self._boxes.change.collapsed += 1

    def _has_had(self, row: BoxRow, id_: str) -> bool:
        """True if a message with this ``id`` is in the box, or was stored within the last 10 minutes."""
        query = (
            "SELECT ordinal, stored_at, EXISTS (SELECT 1 FROM message WHERE box = place AND number = named.number)"
            " FROM named WHERE box = ? AND id = ?"
        )
        found = self._boxes.database.execute(query, (row.id, id_)).fetchone()
        if found is None or self._is_beyond(row, found[0]):
            return False
        return bool(found[2]) or self._boxes.now - found[1] < ID_REMEMBERED_S

    def _is_beyond(self, row: BoxRow, ordinal: int) -> bool:
        """True if more ids were named since than are remembered. One that is named again leaves its ordinal unused."""
        return ordinal <= row.ids - IDS_REMEMBERED and ordinal < self._oldest(row)

    def _oldest(self, row: BoxRow) -> int:
        """The ordinal of the oldest id that is remembered."""
        query = "SELECT ordinal FROM named WHERE box = ? ORDER BY ordinal DESC LIMIT 1 OFFSET ?"
        found = self._boxes.database.execute(query, (row.id, IDS_REMEMBERED - 1)).fetchone()
        return 0 if found is None else int(found[0])

    def _name(self, row: BoxRow, id_: str, name: LaneName, number: int) -> None:
        row.ids, row.changed = row.ids + 1, True
        values = (row.id, id_, row.ids, self._boxes.now, row.place(name), number)
        database = self._boxes.database
        database.execute(
            "INSERT OR REPLACE INTO named(box, id, ordinal, stored_at, place, number) VALUES (?, ?, ?, ?, ?, ?)", values
        )
        if row.ids % _SURPLUS_IDS == 0:
            database.execute("DELETE FROM named WHERE box = ? AND ordinal < ?", (row.id, self._oldest(row)))

    # -- the bound

    def _overflow(self, row: BoxRow) -> None:
        """A message without options is one too many."""
        if row.has_high or self._has_low(row):
            self.flush()
            self._shrink(row, "normal")
        else:
            self._overflowing[row.id] = row

    def _has_low(self, row: BoxRow) -> bool:
        query = "SELECT 1 FROM message INDEXED BY message_low WHERE box = ? AND low = 1 LIMIT 1"
        return self._boxes.database.execute(query, (row.id,)).fetchone() is not None

    def _drop_oldest(self, row: BoxRow) -> None:
        """Drop the oldest messages of a box that has only normal ones.

        It reads the sizes of as few messages as possible: the oldest ones, against what the others leave of the limits.
        """
        database, limits, gone = self._boxes.database, self._limits, row.normal.gone
        looked_at = max(0, row.messages - limits.max_messages) + _OLDEST_READ
        query = f"SELECT number, {SIZE} FROM message WHERE box = ? AND number > ? ORDER BY number LIMIT ?"
        while True:
            found = database.execute(query, (row.id, gone, looked_at)).fetchall()
            sizes = [size for _, size in found]
            others = row.messages - len(sizes)
            left = BoxLimits(limits.max_messages - others, limits.max_bytes - (row.size_bytes - sum(sizes)))
            count = surplus(sizes, left)
            if len(sizes) < looked_at or count < len(sizes) - 1:
                break
            looked_at *= 4
        last = found[count - 1][0] if count else gone
        lost = sum(number > row.normal.confirmed for number, _ in found[:count])
        database.execute("DELETE FROM message WHERE box = ? AND number <= ?", (row.id, last))
        row.normal = row.normal.lose(last)
        self._boxes.removed(row, count, sum(sizes[:count]))
        if row.holes:
            self._boxes.skip_holes(row, "normal")
        self._note_dropped(row, lost, count - lost)

    def _shrink(self, row: BoxRow, newest: LaneName) -> None:
        """Drop messages until the box is within its limits: low ones first, then normal ones, then high ones.

        :param newest: the lane of the message that was just stored
        """
        while row.messages > 1 and _is_over(row, self._limits):
            name, number, size = self._first_to_drop(row, newest)
            self._boxes.remove(row, name, number, size)
            is_lost = number > row.lane(name).confirmed
            self._note_dropped(row, int(is_lost), int(not is_lost))

    def _note_dropped(self, row: BoxRow, lost: int, retired: int) -> None:
        change = self._boxes.change
        change.overflowed[row.device_id] += lost
        change.retired += retired

    def _first_to_drop(self, row: BoxRow, newest: LaneName) -> tuple[LaneName, int, int]:
        database = self._boxes.database
        query = f"SELECT number, {SIZE} FROM message INDEXED BY message_low WHERE box = ? AND low = 1 ORDER BY number"
        found = database.execute(f"{query} LIMIT 1", (row.id,)).fetchone()
        if found is not None:
            return "normal", *found
        query = f"SELECT number, {SIZE} FROM message WHERE box = ? AND number < ? ORDER BY number LIMIT 1"
        for name in LANES:
            last = row.lane(name).last
            found = database.execute(query, (row.place(name), last if name == newest else last + 1)).fetchone()
            if found is not None:
                return name, *found
        raise AssertionError("a box holds more messages than it has")


def retract(boxes: Boxes, row: BoxRow, name: LaneName, number: int, size: int) -> None:
    """Delete a message that does not count as missed."""
    row.put(name, row.lane(name).retract(number))
    boxes.remove(row, name, number, size)


def _is_over(row: BoxRow, limits: BoxLimits) -> bool:
    return row.messages > limits.max_messages or row.size_bytes > limits.max_bytes
