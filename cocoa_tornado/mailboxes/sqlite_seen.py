"""The offsets of stored records, as rows of the SQLite mailbox. Writer thread only, inside its transactions.

``rules/seen.py`` decides which records are new. This module stores and loads its runs, and merges them when there are
many.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from ..rules.seen import HOLE, MAX_HOLE, WINDOW, Remembered, SeenOffsets, SeenRun
from .sqlite_schema import damaged

MANY_RUNS: Final = 512
"""The runs of a source are merged after this many new rows."""

LONG_RUN: Final = 4_096
"""A row with this many timestamps is not extended, so that it need not be rewritten."""

TOUCH_S: Final = 3_600.0
"""The precision of a source's time of last use."""

_INSERT: Final = "INSERT OR REPLACE INTO seen(source, first, stamps) VALUES (?, ?, ?)"


class _Source:
    __slots__ = ("floor", "id", "offsets", "rows", "touched_s")

    def __init__(self, id_: int, touched_s: float, runs: Sequence[SeenRun]) -> None:
        self.id, self.touched_s = id_, touched_s
        self.offsets = SeenOffsets(runs)
        self.rows = len(runs)
        self.floor = 0


class SeenRows:
    """The offsets of all sources. Call :meth:`forget` after a failed transaction, whose decisions are void."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._sources: dict[str, _Source] = {}

    def forget(self) -> None:
        self._sources.clear()

    def take(self, name: str, records: Sequence[tuple[int, int]], now: float) -> list[bool]:
        """Decide which ``(offset, timestamp_ms)`` of a source are new, in order, and store those."""
        source = self._sources.get(name)
        if source is None:
            source = self._sources[name] = self._load(name, now)
        fresh, remembered = source.offsets.take(records)
        self._write(source, remembered)
        if now - source.touched_s > TOUCH_S:
            source.touched_s = now
            self._database.execute("UPDATE source SET touched = ? WHERE id = ?", (now, source.id))
        return fresh

    def sweep(self, untouched_since: float, limit: int) -> None:
        """Delete up to ``limit`` rows of one source unused since then; delete the source with its last row."""
        found = self._database.execute(
            "SELECT id, name FROM source WHERE touched < ? LIMIT 1", (untouched_since,)
        ).fetchone()
        if found is None:
            return
        id_, name = found
        self._sources.pop(name, None)
        oldest = "SELECT first FROM seen WHERE source = ? ORDER BY first LIMIT ?"
        deleted = self._database.execute(
            f"DELETE FROM seen WHERE source = ? AND first IN ({oldest})", (id_, id_, limit)
        )
        if deleted.rowcount < limit:
            self._database.execute("DELETE FROM source WHERE id = ?", (id_,))

    def has_old(self, untouched_since: float) -> bool:
        query = "SELECT 1 FROM source WHERE touched < ? LIMIT 1"
        return self._database.execute(query, (untouched_since,)).fetchone() is not None

    def _load(self, name: str, now: float) -> _Source:
        found = self._database.execute("SELECT id, touched FROM source WHERE name = ?", (name,)).fetchone()
        if found is None:
            inserted = self._database.execute("INSERT INTO source(name, touched) VALUES (?, ?)", (name, now))
            assert inserted.lastrowid is not None
            return _Source(inserted.lastrowid, now, ())
        id_, touched_s = found
        return _Source(id_, touched_s, self._runs(id_))

    def _runs(self, id_: int) -> list[SeenRun]:
        rows = self._database.execute("SELECT first, stamps FROM seen WHERE source = ? ORDER BY first", (id_,))
        try:
            return [SeenRun.from_bytes(first, stamps) for first, stamps in rows]
        except ValueError as error:
            raise damaged(f"a row of the table seen is malformed: {error}") from error

    def _write(self, source: _Source, remembered: Remembered) -> None:
        if remembered.reset:
            self._database.execute("DELETE FROM seen WHERE source = ?", (source.id,))
            source.rows = source.floor = 0
        if remembered.runs:
            rows = [(source.id, run.first, run.to_bytes()) for run in remembered.runs]
            self._database.executemany(_INSERT, rows)
            source.rows += len(rows)
        if source.rows > MANY_RUNS or remembered.floor - source.floor > WINDOW // 4:
            self._tidy(source, remembered.floor)

    def _tidy(self, source: _Source, floor: int) -> None:
        """Delete the rows below ``floor``, which are never asked for again, and merge the others."""
        before = self._runs(source.id)
        after = put_together(run for run in before if run.end > floor)
        kept = {(run.first, len(run.stamps)) for run in before} & {(run.first, len(run.stamps)) for run in after}
        removed = [(source.id, run.first) for run in before if (run.first, len(run.stamps)) not in kept]
        added = [(source.id, run.first, run.to_bytes()) for run in after if (run.first, len(run.stamps)) not in kept]
        self._database.executemany("DELETE FROM seen WHERE source = ? AND first = ?", removed)
        self._database.executemany(_INSERT, added)
        source.offsets = SeenOffsets(after)
        source.rows, source.floor = 0, floor


def put_together(runs: Iterable[SeenRun]) -> list[SeenRun]:
    """Merge short runs with the runs close behind them.

    :param runs: in the order of their offsets
    """
    result: list[SeenRun] = []
    for run in runs:
        hole = run.first - result[-1].end if result else -1
        if 0 <= hole <= MAX_HOLE and len(result[-1].stamps) < LONG_RUN:
            result[-1].stamps.extend([HOLE] * hole)
            result[-1].stamps.extend(run.stamps)
        else:
            result.append(SeenRun(run.first, array("q", run.stamps)))
    return result
