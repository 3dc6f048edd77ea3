"""What the SQLite mailbox's reader returns: the state of a box, and pages of its messages. They raise sqlite3.Error."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Iterable
from typing import Final, NamedTuple

from ..rules.box import Box, Epochs, Lane, Marks, StoredMessage, with_marks
from ..rules.feed import Page
from .port import LaneRead, NamedMessage, NamedPage
from .sqlite_boxes import COLUMNS, BoxRow
from .sqlite_epochs import epochs_of
from .store import Read

BOXES_AT_ONCE: Final = 500
"""How many boxes one query searches for an ``id``."""


class Expiry(NamedTuple):
    """Which messages have expired: those stored up to ``stored_s``, and those whose own ``ttl`` ended before
    ``own_ms``. The first is in Unix seconds, the other in Unix milliseconds."""

    stored_s: float
    own_ms: int

    @classmethod
    def at(cls, now: float, ttl_s: float) -> Expiry:
        return cls(now - ttl_s, int(now * 1000))


def look(database: sqlite3.Connection, device_id: str, marks: Marks) -> Box:
    """A device's box with ``marks`` applied; a new one if there is none."""
    found = _find(database, device_id)
    return _new(database) if found is None else with_marks(found.box(_epochs(database)), marks)


def read(database: sqlite3.Connection, query: Read, expiry: Expiry) -> list[Page]:
    """A page of each lane, with marks applied. Expired messages are skipped."""
    found = _find(database, query.device_id)
    if found is None:
        base = _new(database).normal.base
        return [Page((), base, base) for _ in query.lanes]
    box = found.box(_epochs(database))
    if query.marks:
        box = with_marks(box, query.marks)
    return [_page(database, found.place(asked.lane), box.lane(asked.lane), asked, expiry) for asked in query.lanes]


def find_id(database: sqlite3.Connection, id_: str, cursor: int, device_id: str | None) -> NamedPage:
    """See ``Mailbox.find_id``; the cursor is the id of the last box that was looked into."""
    query = "SELECT device, place, number, stored_at FROM named JOIN box ON box.id = named.box WHERE named.id = ?"
    if device_id is not None:
        return NamedPage(_named(database.execute(f"{query} AND device = ?", (id_, device_id))), 0)
    ids = "SELECT id FROM box WHERE id > ? ORDER BY id LIMIT 1 OFFSET ?"
    end = database.execute(ids, (cursor, BOXES_AT_ONCE - 1)).fetchone()
    last = sys.maxsize if end is None else int(end[0])
    rows = database.execute(f"{query} AND named.box > ? AND named.box <= ?", (id_, cursor, last))
    return NamedPage(_named(rows), 0 if end is None else last)


def _named(rows: Iterable[tuple[str, int, int, float]]) -> list[NamedMessage]:
    return [
        NamedMessage(device_id, "high" if place < 0 else "normal", number, stored_s)
        for device_id, place, number, stored_s in rows
    ]


def _page(database: sqlite3.Connection, place: int, lane: Lane, asked: LaneRead, expiry: Expiry) -> Page:
    messages: list[StoredMessage] = []
    size = 0
    query = (
        "SELECT number, payload, timestamp_ms, expires_ms, collapse_key, low, shared FROM message WHERE box = ?"
        " AND number > ? AND stored_at > ? AND (expires_ms = 0 OR expires_ms >= ?) ORDER BY number LIMIT ?"
    )
    args = (place, max(asked.after, lane.gone), *expiry, max(1, asked.limits.max_messages))
    with contextlib.closing(database.execute(query, args)) as rows:
        for number, payload, timestamp_ms, expires_ms, collapse_key, low, shared in rows:
            if shared is not None:
                found = database.execute("SELECT data FROM payload WHERE id = ?", (shared,)).fetchone()
                if found is None:
                    continue  # it had expired with a shorter ``ttl_s``
                (payload,) = found
            size += len(payload)
            if messages and size > asked.limits.max_bytes:
                break
            messages.append(StoredMessage(number, payload, timestamp_ms, expires_ms, collapse_key, bool(low)))
    return Page(messages, lane.last, lane.base, lane.acked or 0, lane.retracted)


def _find(database: sqlite3.Connection, device_id: str) -> BoxRow | None:
    columns = database.execute(f"SELECT {COLUMNS} FROM box WHERE device = ?", (device_id,)).fetchone()
    return None if columns is None else BoxRow.of(device_id, columns)


def _new(database: sqlite3.Connection) -> Box:
    ((given,),) = database.execute("SELECT value FROM meta WHERE key = 'given'")
    return Box.new(int(given), _epochs(database))


def _epochs(database: sqlite3.Connection) -> Epochs:
    ((epochs,),) = database.execute("SELECT value FROM meta WHERE key = 'eras'")
    return epochs_of(epochs)
