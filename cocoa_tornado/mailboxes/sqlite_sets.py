"""One message for many boxes of the SQLite mailbox, in a few statements.

SQLite executes a statement without Python's global lock, so the IOLoop runs meanwhile. Only ordinary boxes can be
served like this: those that have room for the message. The others are left to :class:`~.sqlite_append.Appender`.
"""

from __future__ import annotations

import json
from typing import Any, Final

from ..rules.addressing import Options
from ..rules.audiences import ALL
from .port import FanOut, lane_of
from .sqlite_boxes import Boxes

LONG_CUTS: Final = 400
"""Boxes with this many characters of cuts are left to Python, which removes those of forgotten epochs."""

_THESE: Final = "id IN (SELECT value FROM json_each(:ids))"
_ORDINARY: Final = (
    "last - gone + coalesce(high_last - high_gone, 0) - holes < :max_messages AND bytes + :size <= :max_bytes"
    f" AND length(cuts) < {LONG_CUTS} AND length(high_cuts) < {LONG_CUTS}"
)
# As Lane.append: with named epochs, the first message of every epoch but the mailbox's first adds a cut.
_CUT: Final = (
    "CASE WHEN :epoch IS NULL OR instr(' ' || {cuts}, ' ' || :epoch || ':') THEN {cuts}"
    " ELSE ltrim({cuts} || ' ' || :epoch || ':' || {last}) END"
)
_LAST: Final = {"normal": "last", "high": "coalesce(high_last, base)"}
_INSERT: Final = (
    "INSERT INTO message(box, number, stored_at, timestamp_ms, payload, expires_ms, low, audience, shared, size)"
    " SELECT {place}, {last} + 1, :now, :timestamp_ms, :payload, :expires_ms, :low, :audience, :shared, :shared_size"
    f" FROM box WHERE {_THESE} AND {_ORDINARY}"
)
_UPDATE: Final = f" bytes = bytes + :size, touched = :now WHERE {_THESE} AND {_ORDINARY}"
_STORE: Final = {
    "normal": (
        _INSERT.format(place="id", last=_LAST["normal"]),
        f"UPDATE box SET cuts = {_CUT.format(cuts='cuts', last='last')}, last = last + 1,{_UPDATE}",
    ),
    "high": (
        _INSERT.format(place="-id", last=_LAST["high"]),
        f"UPDATE box SET high_cuts = {_CUT.format(cuts='high_cuts', last=_LAST['high'])},"
        f" high_last = {_LAST['high']} + 1, high_gone = coalesce(high_gone, base),"
        f" high_written = coalesce(high_written, base),{_UPDATE}",
    ),
}


def store_in_ordinary(boxes: Boxes, ids: str, message: FanOut, shared: int | None) -> tuple[dict[str, int], list[int]]:
    """Store a message in those of the boxes that are ordinary. Returns the number that each device was given, and the
    ids of the other boxes.

    :param ids: JSON array of the ids of boxes
    :param shared: the row of the table ``payload`` with the message's payload, if that is shared
    """
    database, name = boxes.database, lane_of(message.options)
    boxes.forget()
    args = _arguments(boxes, ids, message, shared)
    query = f"SELECT json_group_array(id) FROM box WHERE {_THESE} AND NOT ({_ORDINARY})"
    others = json.loads(database.execute(query, args).fetchone()[0])
    insert, update = _STORE[name]
    stored = database.execute(insert, args).rowcount
    database.execute(update, args)
    query = f"SELECT json_group_object(device, {_LAST[name]}) FROM box WHERE {_THESE}"
    query += " AND id NOT IN (SELECT value FROM json_each(:others))"
    (numbers,) = database.execute(query, {**args, "others": json.dumps(others)}).fetchone()
    _count(boxes, stored, len(message.payload))
    return json.loads(numbers), others


def is_ordinary(options: Options | None) -> bool:
    """False if a message with these options depends on what else is in the box, or is not stored."""
    return options is None or not (options.looks_into_box or options.is_transient)


def _arguments(boxes: Boxes, ids: str, message: FanOut, shared: int | None) -> dict[str, Any]:
    options, size = message.options, len(message.payload)
    return {
        "ids": ids,
        "size": size,
        "max_messages": boxes.limits.max_messages,
        "max_bytes": boxes.limits.max_bytes,
        "epoch": str(boxes.epochs.current) if len(boxes.epochs.names) > 1 else None,
        "now": boxes.now,
        "timestamp_ms": message.timestamp_ms,
        "payload": message.payload if shared is None else b"",
        "expires_ms": message.expires_ms,
        "low": int(options is not None and options.priority == "low"),
        "audience": None if message.audience == ALL else message.audience,
        "shared": shared,
        "shared_size": None if shared is None else size,
    }


def _count(boxes: Boxes, stored: int, size: int) -> None:
    boxes.given += stored
    boxes.change.stored += stored
    boxes.change.messages += stored
    boxes.change.size_bytes += stored * size
