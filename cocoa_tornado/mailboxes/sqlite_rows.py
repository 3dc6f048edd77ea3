"""The SQLite mailbox's transactions: storing a group, one step of a fan-out, one sweep. None uses threads.

Writer thread only. All methods raise sqlite3.Error.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Literal, NamedTuple

from ..rules.box import FORGET_AFTER_S, BoxLimits, Marks
from ..rules.seen import judge
from .backlog import PendingJoin
from .port import RECORDED, Entry, FanOut
from .sqlite_append import Appender
from .sqlite_boxes import Boxes, Change
from .sqlite_epochs import begin_epoch, epochs_of
from .sqlite_fan_outs import FanOuts
from .sqlite_marks import store_marks
from .sqlite_members import store_joins
from .sqlite_schema import damaged
from .sqlite_seen import SeenRows
from .sqlite_sweep import SWEEP_MESSAGES, Sweep

_NO_JOINS: Final[Mapping[str, PendingJoin]] = {}


class Attempt(NamedTuple):
    """A transaction that may have been committed although it raised.

    :ivar id: it is stored with the transaction
    """

    id: str
    change: Change


Kind = Literal["answer", "step"]
"""The key in the table ``meta`` with the id of the last group, or of the last step of a fan-out."""


class LastSeen(NamedTuple):
    """The state of a mailbox when it was last seen.

    :ivar given: messages ever stored
    :ivar attempts: the last group, and the step of a fan-out that may not have been reported
    """

    epoch: int
    given: int
    attempts: Mapping[Kind, Attempt]


class Rows:
    """The writer's connection. A method that raises has changed nothing and may be called again.

    Unless the file continues from ``known``, a new epoch with a random number begins: the file may be a copy or a
    restored backup, so a cursor may name a message that another copy stored.

    :param known: the state that this process last saw, if any
    :ivar key: the MAC key of the cursors
    :ivar epochs: the epochs that the mailbox remembers
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
        self._swept_id = 0
        self._attempts: dict[Kind, Attempt] = dict(known.attempts) if known else {}
        meta = dict(database.execute("SELECT key, value FROM meta"))
        kinds = (("key", bytes), ("given", int), ("eras", str), ("joined", int))
        if not all(isinstance(meta.get(name), kind) for name, kind in kinds):
            raise damaged("the table meta is incomplete")
        self.key: bytes = meta["key"]
        self.epochs = epochs_of(meta["eras"])
        self._given, self._joined = int(meta["given"]), int(meta["joined"])
        self._fan_outs = FanOuts(database)
        if known is None or self.epochs.names[-1:] != (known.epoch,) or self._given < known.given:
            self._begin_epoch()
        totals = (
            "SELECT coalesce(max(id), 0), coalesce(sum(last - gone + coalesce(high_last - high_gone, 0) - holes), 0),"
            " coalesce(sum(bytes), 0) FROM box"
        )
        self._last_id, self.messages, self.size_bytes = database.execute(totals).fetchone()

    @property
    def last_seen(self) -> LastSeen:
        return LastSeen(self.epochs.current, self._given, self._attempts)

    @property
    def fan_outs(self) -> int:
        """How many fan-outs are not complete, or not reported completely."""
        return max(len(self._fan_outs), "step" in self._attempts)

    def store(
        self,
        calls: Sequence[Sequence[Entry | FanOut]],
        marks: Mapping[str, Marks],
        joins: Mapping[str, PendingJoin] = _NO_JOINS,
        group: str = "",
    ) -> Change:
        """Apply the marks, then the joins, then the calls of append, in one transaction.

        :param group: the unique id of this request. If an attempt raised although its transaction was committed, a
            retry with the same id returns its results and stores nothing twice
        """
        earlier = self._committed("answer", group) if calls and group else None
        if earlier is not None:
            calls = ()  # but the marks may include newer ones
        with self._transaction(("answer", group) if calls and group else None) as boxes:
            device_ids = {entry.device_id for entries in calls for entry in entries}
            boxes.load(device_ids | marks.keys() | joins.keys())
            store_marks(boxes, marks)
            if joins:
                store_joins(boxes, joins)
            self._append(boxes, calls)
        if earlier is not None:
            boxes.change.adopt(earlier)
        return boxes.change

    def fan_out(self) -> Change:
        """Store the next messages of the oldest fan-out. If an attempt raised although its transaction was committed,
        report its messages instead."""
        attempt = self._attempts.get("step")
        change = self._committed("step", attempt.id) if attempt else None
        if change is None and self._fan_outs:
            with self._transaction(("step", secrets.token_hex(8))) as boxes:
                appender = Appender(boxes)
                boxes.change.steps.append(self._fan_outs.step(boxes, appender))
                appender.flush()
                change = boxes.change
        self._attempts.pop("step", None)
        return self._with_state(change or Change())

    def sweep(self) -> Change:
        """Delete the expired messages of the next boxes, and unused boxes. Starts over after the last box."""
        before_s = self._clock() - FORGET_AFTER_S
        # Deferred: it takes no lock unless there is something to delete.
        with self._transaction(None, "BEGIN") as boxes:
            sweep = Sweep(boxes, self._swept_id)
            sweep.run()
            if self._seen.has_old(before_s):
                self._seen.sweep(before_s, SWEEP_MESSAGES)
        self._swept_id = sweep.swept_id
        return boxes.change

    def state(self) -> Change:
        """The state of the mailbox, without any change."""
        return self._with_state(Change())

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

    def _begin_epoch(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            epochs = begin_epoch(self._database, self.epochs)
            self._database.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        self.epochs = epochs

    def _append(self, boxes: Boxes, calls: Sequence[Sequence[Entry | FanOut]]) -> None:
        appender, change, fan_outs = Appender(boxes), boxes.change, self._fan_outs
        fresh = iter(judge(calls, partial(self._seen.take, now=boxes.now)))
        has_fan_outs = bool(fan_outs)
        for entries in calls:
            numbers: list[int | None] = []
            for entry in entries:
                number = None
                if not next(fresh):
                    change.duplicates += 1
                elif isinstance(entry, FanOut):
                    change.steps += fan_outs.begin(boxes, appender, entry)
                    has_fan_outs, number = bool(fan_outs), RECORDED
                else:
                    if has_fan_outs:
                        change.steps += fan_outs.pull(boxes, appender, entry.device_id)
                    number = appender.append(entry)
                numbers.append(number)
            change.results.append(numbers)
        appender.flush()

    # -- transactions

    @contextlib.contextmanager
    def _transaction(self, attempt: tuple[Kind, str] | None, begin: str = "BEGIN IMMEDIATE") -> Iterator[Boxes]:
        """:param attempt: the kind and the id for :meth:`_committed`"""
        counts = (self._given, self._last_id, self._joined)
        boxes = Boxes(self._database, self.epochs, self._limits, self._clock(), counts)
        try:
            self._database.execute(begin)
            yield boxes
            boxes.write()
            self._write_counts(boxes)
            if attempt:
                self._remember(*attempt, boxes.change)
            self._database.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        self._given, self._last_id, self._joined = boxes.given, boxes.last_id, boxes.joined
        self.messages += boxes.change.messages
        self.size_bytes += boxes.change.size_bytes
        self._with_state(boxes.change)

    def _write_counts(self, boxes: Boxes) -> None:
        update = "UPDATE meta SET value = ? WHERE key = ?"
        if boxes.given != self._given:
            self._database.execute(update, (boxes.given, "given"))
        if boxes.joined != self._joined:
            self._database.execute(update, (boxes.joined, "joined"))

    def _remember(self, kind: Kind, id_: str, change: Change) -> None:
        self._database.execute("INSERT OR REPLACE INTO meta(key, value) VALUES (?, ?)", (kind, id_))
        self._attempts[kind] = Attempt(id_, change)

    def _roll_back(self) -> None:
        # SQLite may have rolled back already. If the rollback fails, closing the connection rolls back.
        with contextlib.suppress(sqlite3.Error):
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
        self._seen.forget()
        self._fan_outs.forget()

    def _committed(self, kind: Kind, id_: str) -> Change | None:
        """Return the result of the last attempt of this kind, if it has this id and was committed."""
        attempt = self._attempts.get(kind)
        if attempt is None or attempt.id != id_:
            return None
        found = self._database.execute("SELECT value FROM meta WHERE key = ?", (kind,)).fetchone()
        return attempt.change if found and found[0] == id_ else None

    def _with_state(self, change: Change) -> Change:
        """Add the state of the mailbox after the change."""
        change.epoch, change.totals = self.epochs.current, (self.messages, self.size_bytes)
        change.fan_outs = self.fan_outs
        return change
