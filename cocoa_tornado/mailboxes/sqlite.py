"""The mailbox in a file: boxes in an SQLite database on this machine's disk, for one gateway.

Two threads: ``cocoa-sqlite-writer`` stores (``sqlite_writer.py``), ``cocoa-sqlite-reader`` reads
(``sqlite_reader.py``).
The file is in write-ahead mode with ``synchronous = FULL``: what is stored is on the disk, as far as the disk tells.
It does not shrink; what has been deleted makes room for what comes. It must not be on a network's file system.

Each start begins an era of the mailbox (``rules/box.py``): a file can't tell that it was restored from a backup, rolled
back with its disk, or copied.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..errors import MailboxClosed, MailboxError
from ..rules.box import Box, BoxLimits, Mark, PageLimits, Place
from ..rules.feed import Page
from .port import Entry, MailboxCounters, MailboxStatus
from .sqlite_availability import Availability
from .sqlite_reader import Reader
from .sqlite_rows import look, read
from .sqlite_schema import MIGRATIONS, Migration
from .sqlite_writer import Writer

WATCH_S = 0.5
"""How often it is looked whether the disk hangs."""

T = TypeVar("T")


class SqliteMailbox:
    """The :class:`~cocoa_tornado.mailboxes.port.Mailbox` in a file. IOLoop thread only.

    Reads go on while the disk is full or another process has the file locked for writing.

    :param path: of the database; its folder must be there. Beside it stand, with its name, ``-wal``, ``-shm`` and
        ``.lock``, which keeps a second gateway away
    :param clock: Unix seconds; called on the writer's thread and on the IOLoop's
    """

    def __init__(
        self,
        path: Path,
        limits: BoxLimits,
        clock: Callable[[], float] = time.time,
        migrations: Sequence[Migration] = MIGRATIONS,
    ) -> None:
        # A gateway that names the file by a link must meet the lock of one that does not.
        self._path, self._limits, self._clock = Path(os.path.realpath(path)), limits, clock
        self._counters = MailboxCounters()
        self._availability = Availability(self._path, self._counters)
        self._writer = Writer(self._path, limits, clock, self._availability, self._counters, migrations)
        self._reader = Reader(self._path, lambda: self._writer.identity, self._availability)
        self._closing: asyncio.Future[None] | None = None
        self._watch: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<SqliteMailbox {self._path} {self._availability.state.value}>"

    @property
    def key(self) -> bytes | None:
        return self._writer.key

    @property
    def era(self) -> int:
        return self._writer.era

    @property
    def counters(self) -> MailboxCounters:
        return self._counters

    async def start(self) -> None:
        self._look_for_a_hang()
        try:
            await self._writer.start()
        except BaseException:
            self._stop_watch()
            raise
        self._reader.start()

    def _look_for_a_hang(self) -> None:
        if self._closing is None:
            self._writer.look_for_a_hang()
            self._reader.look_for_a_hang()
            self._watch = asyncio.get_running_loop().call_later(WATCH_S, self._look_for_a_hang)

    def _stop_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def status(self) -> MailboxStatus:
        return self._availability.status()

    def append(self, entries: Sequence[Entry]) -> asyncio.Future[list[int | None]]:
        if self._closing is not None:
            raise MailboxClosed("the mailbox is closed")
        return self._writer.append(entries)

    def look(self, device_id: str) -> asyncio.Future[Box]:
        marks = self._writer.marks_of(device_id)
        return self._ask(partial(look, device_id=device_id, marks=marks))

    def read(self, device_id: str, after: int, limits: PageLimits) -> asyncio.Future[Page]:
        marks, expired_at = self._writer.marks_of(device_id), self._clock() - self._limits.ttl_s
        question = partial(read, device_id=device_id, after=after, limits=limits, expired_at=expired_at, marks=marks)
        return self._ask(question)

    def acknowledge(self, device_id: str, place: Place) -> None:
        self._writer.mark(device_id, Mark(acked=place.number, era=place.era))

    def written(self, device_id: str, place: Place) -> None:
        self._writer.mark(device_id, Mark(written=place.number, era=place.era))

    async def sweep(self) -> int:
        if self._closing is not None:
            raise MailboxClosed("the mailbox is closed")
        return await self._writer.sweep()

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        if self._closing is None and self._writer.identity is not None:
            return self._reader.ask(question)
        refused: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        refused.set_exception(MailboxClosed("the mailbox is closed") if self._closing else self._away())
        refused.exception()  # whoever looks away has no need to know
        return refused

    def _away(self) -> MailboxError:
        return MailboxError(self._availability.detail)

    async def close(self, timeout_s: float) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close(timeout_s))
        await asyncio.shield(self._closing)

    def abandon(self) -> None:
        """End as if the process were killed: nothing that is queued is stored. Blocks until the threads are gone."""
        self._reader.abandon()
        self._writer.abandon()
        self._availability.closed()

    async def _close(self, timeout_s: float) -> None:
        # The writer last: it is the one that can leave a tidy file.
        self._stop_watch()
        begun = time.monotonic()
        await self._reader.stop(min(1.0, timeout_s))
        await self._writer.stop(max(0.0, timeout_s - (time.monotonic() - begun)))
        self._availability.closed()
