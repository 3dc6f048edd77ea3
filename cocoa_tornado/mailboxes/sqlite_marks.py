"""Marks in the SQLite mailbox: what devices have acknowledged is deleted."""

from __future__ import annotations

from collections.abc import Mapping

from ..rules.box import LANES, Marks, Numbers, with_marks
from .sqlite_boxes import SIZE, Boxes, BoxRow


def store_marks(boxes: Boxes, marks: Mapping[str, Marks]) -> None:
    """Apply the marks of devices, whose boxes must have been loaded. A device without a box has none to apply."""
    ranges: list[tuple[int, int]] = []
    for device_id, of_device in marks.items():
        row = boxes.find(device_id)
        if row is None:
            continue
        before = row.box(boxes.epochs)
        after = with_marks(before, of_device)
        if after == before:
            continue
        gone = Numbers(before.normal.gone, before.high.gone)
        row.put_box(after)
        row.changed, row.touched_s = True, boxes.now
        if (after.normal.gone, after.high.gone) != gone:
            ranges += _remove(boxes, row, gone)
    boxes.database.executemany("DELETE FROM message WHERE box = ? AND number <= ?", ranges)


def _remove(boxes: Boxes, row: BoxRow, before: Numbers) -> list[tuple[int, int]]:
    """Count what has been acknowledged; return the ranges to delete, as (box, last number).

    :param before: the numbers up to which each lane was already empty
    """
    messages, size_bytes = _acknowledged(boxes, row, before)
    boxes.removed(row, messages, size_bytes)
    boxes.change.acknowledged += messages
    if row.holes:
        for name in LANES:
            boxes.skip_holes(row, name)
    lanes = zip(LANES, before, strict=True)
    return [(row.place(name), row.lane(name).gone) for name, gone in lanes if row.lane(name).gone > gone]


def _acknowledged(boxes: Boxes, row: BoxRow, before: Numbers) -> tuple[int, int]:
    """The number of messages that have left the box, and their total size."""
    if row.normal.gone == row.normal.last and not row.has_high:
        return row.messages, row.size_bytes
    query = f"SELECT count(*), coalesce(sum({SIZE}), 0) FROM message WHERE box = ? AND number > ? AND number <= ?"
    messages = size_bytes = 0
    for name, gone in zip(LANES, before, strict=True):
        if row.lane(name).gone > gone:
            args = (row.place(name), gone, row.lane(name).gone)
            count, size = boxes.database.execute(query, args).fetchone()
            messages, size_bytes = messages + count, size_bytes + size
    return messages, size_bytes
