"""The mailbox in a file: an SQLite database on a local disk, for one gateway.

It has two threads: ``cocoa-sqlite-writer`` stores (``sqlite_file.py``), ``cocoa-sqlite-reader`` reads
(``sqlite_reader.py``). The file uses write-ahead logging with ``synchronous = FULL``: a commit returns once the disk
reports that it is durable. The file never shrinks; deleted messages leave room for new ones. It must not be on a
network file system.

Each start begins an epoch of the mailbox (``rules/box.py``): nothing in a file shows that it was restored from a
backup, rolled back with its disk, or copied.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from ..rules.box import BoxLimits
from .backlog import CommitGroup, GroupLimits
from .driver import Driver
from .port import FanOutStep
from .sqlite_boxes import Change
from .sqlite_file import SqliteFile
from .sqlite_pages import Expiry
from .sqlite_reader import Reader
from .sqlite_schema import MIGRATIONS, Migration
from .sqlite_thread import JobThread
from .store import Committed, Ledger, Query, QueryResult, StoreFault, StoreTiming

TIMING: Final = StoreTiming(
    retry_s=(0.1, 2.0),
    patience_s=5.0,
    hang="the disk hangs: nothing was {done} for {patience_s:g} s",
    start_waits=True,
    queries=32,  # all pages of a batch are in memory at once, and are returned together
)
LIMITS: Final = GroupLimits(max_entries=5_000, max_bytes=32 * 1024 * 1024, max_marks=5_000)


class SqliteMailbox(Driver):
    """The :class:`~cocoa_tornado.mailboxes.port.Mailbox` in a file. IOLoop thread only.

    Reads work while the disk is full or another process holds the write lock.

    :param path: the database file, in an existing folder. SQLite adds files with the suffixes ``-wal`` and ``-shm``; a
        ``.lock`` file excludes a second gateway
    :param clock: Unix seconds; called on the writer's and on the IOLoop's thread
    """

    def __init__(
        self,
        path: Path,
        limits: BoxLimits,
        clock: Callable[[], float] = time.time,
        migrations: Sequence[Migration] = MIGRATIONS,
        timing: StoreTiming = TIMING,
    ) -> None:
        ledger = Ledger()
        # All gateways that use the file, under its own name or a symbolic link's, must contend for one lock file.
        self._files = SqliteStore(Path(os.path.realpath(path)), limits, clock, ledger, migrations)
        super().__init__(self._files, ledger, timing, LIMITS)

    def abandon(self) -> None:
        """End as if the process were killed: store nothing that is queued. Blocks until the threads have ended."""
        self._files.abandon()
        self._give_up()


class SqliteStore:
    """The :class:`~cocoa_tornado.mailboxes.store.Store` in a file. Runs its jobs on the two threads."""

    def __init__(
        self,
        path: Path,
        limits: BoxLimits,
        clock: Callable[[], float],
        ledger: Ledger,
        migrations: Sequence[Migration],
    ) -> None:
        self.name, self.location = str(path), f"SQLite in {path}"
        self.promise = "stored messages survive the end of the gateway and a power failure"
        self.key: bytes | None = None
        self.epoch = 0
        self.checks_holders = False
        self.fan_outs = 0
        self._limits, self._clock, self._ledger = limits, clock, ledger
        self._file = SqliteFile(path, limits, clock, migrations)
        self._reader = Reader(path, lambda: self._file.identity)
        self._writing = JobThread("cocoa-sqlite-writer", self._file.close)
        self._reading = JobThread("cocoa-sqlite-reader", self._reader.close)

    async def open(self) -> bool:
        try:
            self._reading.start()
            self._writing.start()
        except RuntimeError as error:
            raise StoreFault(f"{self.name}: {error}", away=True) from error
        self._note(await self._writing.submit(lambda: self._file.probe().state()))
        self.key = self._file.key
        return False

    async def commit(self, group: CommitGroup) -> Committed:
        def store() -> Change:
            with self._file.used() as rows:
                return rows.store([call.entries for call in group.calls], group.marks, group.joins, group.id)

        change = await self._writing.submit(store)
        self._note(change)
        return Committed(change.results, change.steps)

    async def try_storing(self) -> None:
        def store() -> Change:
            with self._file.used() as rows:
                return rows.store([()], {}, group=secrets.token_hex(8))

        self._note(await self._writing.submit(store))

    async def fan_out(self) -> Sequence[FanOutStep]:
        def step() -> Change:
            with self._file.used() as rows:
                return rows.fan_out()

        change = await self._writing.submit(step)
        self._note(change)
        return change.steps

    async def sweep(self) -> int:
        def sweep() -> Change:
            with self._file.used() as rows:
                return rows.sweep()

        change = await self._writing.submit(sweep)
        self._note(change)
        return change.expired + change.retired

    def answer(self, queries: Sequence[Query]) -> asyncio.Future[list[QueryResult]]:
        expiry = Expiry.at(self._clock(), self._limits.ttl_s)
        return self._reading.submit(partial(self._reader.answers, queries, expiry))

    async def close(self, timeout_s: float) -> None:
        # The writer last, as its close checkpoints the log.
        begun = time.monotonic()
        await self._reading.stop(min(1.0, timeout_s))
        await self._writing.stop(max(0.0, timeout_s - (time.monotonic() - begun)))

    def abandon(self) -> None:
        self._reading.abandon()
        self._writing.abandon()

    def _note(self, change: Change) -> None:
        counters = self._ledger.counters
        counters.stored += change.stored
        counters.duplicates += change.duplicates
        counters.collapsed += change.collapsed
        counters.withdrawn += change.withdrawn
        counters.acknowledged += change.acknowledged
        if change.overflowed:
            now = self._clock()
            for device_id, count in change.overflowed.items():
                counters.overflow(device_id, count, now)
        counters.lose("expired", change.expired)
        counters.retired += change.retired
        self.epoch, self.fan_outs = change.epoch, change.fan_outs
        self._ledger.set_totals(*change.totals)
