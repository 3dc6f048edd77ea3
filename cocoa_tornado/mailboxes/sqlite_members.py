"""Which devices are members of which audiences, as rows of the SQLite mailbox."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Final

from ..rules.audiences import Audience
from ..rules.box import LANES
from .backlog import PendingJoin
from .sqlite_append import retract
from .sqlite_boxes import SIZE, Boxes, BoxRow, select_each

SEEN_S: Final = 3_600.0
"""The precision of the time when a device last joined its audiences, unless ``member_ttl_s`` is short."""


def store_joins(boxes: Boxes, joins: Mapping[str, PendingJoin]) -> None:
    """Store the audiences of devices, whose boxes must have been loaded. Writes nothing for a device that has joined
    the same ones recently."""
    known = _audiences(boxes, joins)
    for device_id, join in joins.items():
        row = boxes.get(device_id)
        if row.seen_s is None or abs(boxes.now - row.seen_s) > precision_s(boxes.limits.member_ttl_s):
            row.seen_s, row.changed = boxes.now, True
        before: set[Audience] = known.get(row.id, set())
        if before != join.audiences and (join.is_new or not before):
            _replace(boxes, row, before, join.audiences)
            _withdraw(boxes, row, join.audiences)


def forget_member(boxes: Boxes, row: BoxRow) -> None:
    """Remove a device from all of its audiences."""
    boxes.database.execute("DELETE FROM member WHERE box = ?", (row.id,))
    row.touched_s = max(row.touched_s, row.seen_s or 0.0)  # the box stays for some time
    row.seen_s, row.changed = None, True


def list_members(database: sqlite3.Connection, audience: Audience, after: str, most: int) -> list[str]:
    """See ``Mailbox.members``. SQLite compares text by its bytes."""
    query = (
        "SELECT device FROM member JOIN box ON box.id = member.box"
        " WHERE audience = ? AND device > ? ORDER BY device LIMIT ?"
    )
    return [device for (device,) in database.execute(query, (audience, after, most))]


def precision_s(member_ttl_s: float) -> float:
    return min(SEEN_S, member_ttl_s / 100)


def _audiences(boxes: Boxes, device_ids: Iterable[str]) -> Mapping[int, set[Audience]]:
    """The stored audiences, by box."""
    rows = [row for device_id in device_ids if (row := boxes.find(device_id)) is not None]
    found: dict[int, set[Audience]] = {}
    query = "SELECT box, audience FROM member WHERE box IN"
    for box, audience in select_each(boxes.database, query, sorted(row.id for row in rows)):
        found.setdefault(box, set()).add(audience)
    return found


def _replace(boxes: Boxes, row: BoxRow, before: Iterable[Audience], after: Iterable[Audience]) -> None:
    left = [(row.id, audience) for audience in before if audience not in after]
    boxes.database.executemany("DELETE FROM member WHERE box = ? AND audience = ?", left)
    added = []
    for audience in sorted(set(after).difference(before)):
        boxes.joined += 1
        added.append((audience, boxes.joined, row.id))
    boxes.database.executemany("INSERT INTO member(audience, joined, box) VALUES (?, ?, ?)", added)


def _withdraw(boxes: Boxes, row: BoxRow, audiences: Iterable[Audience]) -> None:
    """Remove the messages that are for audiences which the device is no longer in."""
    query = f"SELECT number, {SIZE}, audience FROM message WHERE box = ? AND audience IS NOT NULL"
    for name in LANES if row.messages else ():
        for number, size, audience in boxes.database.execute(query, (row.place(name),)).fetchall():
            if audience not in audiences:
                retract(boxes, row, name, number, size)
                boxes.change.withdrawn += 1
