"""Cleans up the SQLite mailbox: expired messages, forgotten members, unused boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..rules.box import FORGET_AFTER_S, FORGET_MISSED_AFTER_S, LaneName
from .port import ID_REMEMBERED_S
from .sqlite_boxes import COLUMNS, SIZE, Boxes, BoxRow
from .sqlite_members import forget_member, precision_s

SWEEP_BOXES: Final = 1_000
SWEEP_MESSAGES: Final = 1_000

SHARED_AFTER_S: Final = 86_400.0
"""How long a shared payload is kept after all of its messages have expired, because they are deleted later."""


@dataclass
class Sweep:
    """One call of ``Mailbox.sweep``, within a transaction. It executes no statement that would take the write lock and
    then delete nothing.

    :ivar swept_id: the id of the last box that was swept; 0: the last one of all
    """

    boxes: Boxes
    swept_id: int

    def run(self) -> None:
        self._expire_own()
        self._sweep_boxes()
        self._delete_payloads()

    @property
    def _room(self) -> int:
        change = self.boxes.change
        return SWEEP_MESSAGES - change.expired - change.retired

    def _sweep_boxes(self) -> None:
        boxes, first = self.boxes, self.swept_id + 1
        query = f"SELECT {COLUMNS}, device FROM box WHERE id >= ? ORDER BY id LIMIT ?"
        found = boxes.database.execute(query, (first, SWEEP_BOXES)).fetchall()
        last = self.swept_id = found[-1][0] if found else 0
        for columns in found:
            row = boxes.adopt(columns)
            if row.messages and not self._room:
                last = self.swept_id = row.id - 1
                break
            self._sweep_box(row)
        else:
            self.swept_id = last if len(found) == SWEEP_BOXES else 0
        self._forget_ids(first, last)

    def _sweep_box(self, row: BoxRow) -> None:
        boxes = self.boxes
        if row.messages:
            self._expire(row, "normal")
            if row.has_high:
                self._expire(row, "high")
        if row.seen_s is not None:
            ttl_s = boxes.limits.member_ttl_s
            if boxes.now - row.seen_s <= ttl_s + precision_s(ttl_s):
                return
            forget_member(boxes, row)
        if not row.messages:
            patience_s = FORGET_MISSED_AFTER_S if row.box(boxes.epochs).owes_a_gap else FORGET_AFTER_S
            if boxes.now - row.touched_s > patience_s:
                boxes.delete(row)

    def _expire(self, row: BoxRow, name: LaneName) -> None:
        """Delete the lane's first messages, as far as they are too old for the mailbox."""
        boxes, place = self.boxes, row.place(name)
        query = f"SELECT number, stored_at, {SIZE} FROM message WHERE box = ? AND number > ? ORDER BY number LIMIT ?"
        confirmed = row.lane(name).confirmed
        last = expired = lost = size_bytes = 0
        for number, stored_s, size in boxes.database.execute(query, (place, row.lane(name).gone, self._room)):
            if stored_s > boxes.now - boxes.limits.ttl_s:
                break
            last, expired, size_bytes = number, expired + 1, size_bytes + size
            lost += number > confirmed
        if expired:
            boxes.database.execute("DELETE FROM message WHERE box = ? AND number <= ?", (place, last))
            boxes.removed(row, expired, size_bytes)
            boxes.change.expired += lost
            boxes.change.retired += expired - lost
            boxes.skip_holes(row, name)

    def _expire_own(self) -> None:
        """Delete messages whose own ``ttl`` has ended."""
        boxes = self.boxes
        query = f"SELECT box, number, {SIZE} FROM message INDEXED BY message_expiring"
        query += " WHERE expires_ms > 0 AND expires_ms < ? ORDER BY expires_ms LIMIT ?"
        found = boxes.database.execute(query, (int(boxes.now * 1000), self._room)).fetchall()
        rows = boxes.load_ids({abs(place) for place, _, _ in found})
        for place, number, size in found:
            row = rows[abs(place)]
            name: LaneName = "high" if place < 0 else "normal"
            if number > row.lane(name).confirmed:
                boxes.change.expired += 1
            else:
                boxes.change.retired += 1
            boxes.remove(row, name, number, size)

    def _forget_ids(self, first: int, last: int) -> None:
        message = "SELECT 1 FROM message WHERE message.box = named.place AND message.number = named.number"
        query = (
            f"SELECT box, id FROM named WHERE box BETWEEN ? AND ? AND stored_at <= ? AND NOT EXISTS ({message}) LIMIT ?"
        )
        args = (first, last, self.boxes.now - ID_REMEMBERED_S, SWEEP_MESSAGES)
        old = self.boxes.database.execute(query, args).fetchall()
        self.boxes.database.executemany("DELETE FROM named WHERE box = ? AND id = ?", old)

    def _delete_payloads(self) -> None:
        """Delete shared payloads of which no message is left."""
        database = self.boxes.database
        old_s = self.boxes.now - self.boxes.limits.ttl_s - SHARED_AFTER_S
        query = "SELECT id FROM payload WHERE stored_at <= ?"
        query += " AND id NOT IN (SELECT shared FROM fan_out WHERE shared IS NOT NULL) LIMIT ?"
        old = database.execute(query, (old_s, SWEEP_MESSAGES)).fetchall()
        database.executemany("DELETE FROM payload WHERE id = ?", old)
