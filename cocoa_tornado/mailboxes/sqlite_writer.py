"""The thread that owns the SQLite mailbox's one writing connection.

Whatever has queued up while it was busy goes into its next transaction: one wait for the disk for all of it. What it
could not store it tries again, the same calls in the same order, until it can or is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import CocoaError, MailboxClosed, MailboxError, ServiceError
from ..rules.backoff import Backoff
from ..rules.box import BoxLimits, Mark, Marks, marked
from . import sqlite_schema
from .port import Entry, MailboxCounters
from .sqlite_availability import HANGS_AFTER_S, Availability
from .sqlite_rows import Change, History, Store
from .sqlite_schema import MIGRATIONS, FileIdentity, Migration

MAX_ENTRIES: Final = 5_000
"""Of one transaction; a single call may have more. Marks are as many at most."""

MARKS_WAIT_S: Final = 0.5
"""How long a mark may wait for a transaction to go along with."""

RETRY_S: Final = (0.1, 2.0)

log = logging.getLogger("cocoa.mailbox")


class _Call(NamedTuple):
    entries: Sequence[Entry]
    stored: asyncio.Future[list[int | None]]


@dataclass(slots=True)
class _Group:
    """What goes into one transaction."""

    calls: list[_Call]
    marks: dict[str, Marks]
    name: str = field(default_factory=lambda: secrets.token_hex(8))


class Writer:
    """Methods without a leading underscore are the IOLoop thread's, and none of them waits for the disk.

    :ivar key: the cursors' key, from the first opening on
    :ivar era: the mailbox's, as far as the IOLoop has been told: not before it has the numbers of the last one
    :ivar identity: of the files that are open; None until they are
    """

    def __init__(
        self,
        path: Path,
        limits: BoxLimits,
        clock: Callable[[], float],
        availability: Availability,
        counters: MailboxCounters,
        migrations: Sequence[Migration] = MIGRATIONS,
    ) -> None:
        self._path, self._limits, self._clock, self._migrations = path, limits, clock, migrations
        self._availability, self._counters = availability, counters
        self.key: bytes | None = None
        self.era = 0
        self.identity: FileIdentity | None = None
        # What the two threads share, under the condition's lock.
        self._changed = threading.Condition()
        self._calls: deque[_Call] = deque()
        self._marks: dict[str, Marks] = {}
        self._marks_due_s = 0.0
        self._group: _Group | None = None
        self._sweeps: list[asyncio.Future[int]] = []
        self._stopping = self._abandoned = False
        self._busy_since_s: float | None = None
        self._is_start_over = False
        self._refusal: ServiceError | None = None
        self._retry_at_s: float | None = None
        # The IOLoop thread's.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: asyncio.Future[None] | None = None  # or the attempt has failed
        self._ended: asyncio.Future[None] | None = None
        # The writer's own.
        self._backoff = Backoff(base_s=RETRY_S[0], cap_s=RETRY_S[1])
        self._store: Store | None = None
        self._history: History | None = None
        self._lock: int | None = None
        self._inode_lock = sqlite_schema.InodeLock()
        self._sweep_owed = False
        self._is_in_doubt = False
        self._thread = threading.Thread(target=self._run, name="cocoa-sqlite-writer", daemon=True)

    # -- the IOLoop thread's side

    async def start(self) -> None:
        """Returns when the first attempt to open the file has come to its end, or hangs.

        :raises ServiceError: it can never be opened; the thread has ended
        """
        self._loop = asyncio.get_running_loop()
        self._opened, self._ended = self._loop.create_future(), self._loop.create_future()
        self._thread.start()
        await asyncio.wait([self._opened], timeout=HANGS_AFTER_S)
        with self._changed:
            self._is_start_over = True
            refusal = self._refusal
        if refusal is not None:
            await self._ended
            self._thread.join()
            raise refusal

    def look_for_a_hang(self) -> None:
        """Tell if a transaction is under way for longer than a disk that answers takes."""
        with self._changed:
            # Under the lock: if it ends meanwhile, the thread says so afterwards.
            since_s = self._busy_since_s
            if since_s is not None and time.monotonic() - since_s >= HANGS_AFTER_S:
                self._availability.down(f"the disk hangs: nothing was stored for {HANGS_AFTER_S:g} s")

    def append(self, entries: Sequence[Entry]) -> asyncio.Future[list[int | None]]:
        stored: asyncio.Future[list[int | None]] = asyncio.get_running_loop().create_future()
        with self._changed:
            self._calls.append(_Call(entries, stored))
            self._changed.notify()
        return stored

    def mark(self, device_id: str, mark: Mark) -> None:
        with self._changed:
            if not self._marks:
                self._marks_due_s = time.monotonic() + MARKS_WAIT_S
                self._changed.notify()
            self._marks[device_id] = marked(self._marks.get(device_id, ()), mark)

    def marks_of(self, device_id: str) -> Marks:
        """What has been marked and is perhaps not in the file yet."""
        with self._changed:
            under_way = () if self._group is None else self._group.marks.get(device_id, ())
            return (*under_way, *self._marks.get(device_id, ()))

    def sweep(self) -> asyncio.Future[int]:
        swept: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with self._changed:
            self._sweeps.append(swept)
            self._changed.notify()
        return swept

    async def stop(self, timeout_s: float) -> None:
        """Store what is queued, for at most so long; then end, whatever is left. A thread that hangs is left behind."""
        if self._ended is not None:
            self._tell_to_stop(at_once=False)
            # Once it is told to leave, it is at most one statement away from its end, unless the disk does not answer.
            farewell_s = min(1.0, timeout_s / 2)
            await asyncio.wait([self._ended], timeout=timeout_s - farewell_s)
            self._tell_to_stop(at_once=True)
            await asyncio.wait([self._ended], timeout=farewell_s)
            if self._ended.done():
                self._thread.join()
        self._give_up(self._take_all())
        _fail_sweeps(self._take_sweeps(), MailboxClosed("the mailbox is closed"))

    def abandon(self) -> None:
        """End as the process would if it were killed: nothing that is queued is stored. Blocks until it is done."""
        self._tell_to_stop(at_once=True)
        if self._thread.ident is not None:
            self._thread.join()

    def _tell_to_stop(self, *, at_once: bool) -> None:
        with self._changed:
            self._stopping = True
            self._abandoned = self._abandoned or at_once
            if self._retry_at_s is not None:
                self._retry_at_s = 0.0
            self._changed.notify()

    def _take_all(self) -> list[asyncio.Future[list[int | None]]]:
        """The futures of calls that nobody will carry out."""
        with self._changed:
            calls = [*(self._group.calls if self._group else ()), *self._calls]
            self._group = None
            self._calls.clear()
        return [call.stored for call in calls]

    def _give_up(self, futures: Sequence[asyncio.Future[list[int | None]]]) -> None:
        for future in futures:
            if not future.done():
                future.set_exception(MailboxClosed("the mailbox was closed before this was stored"))
                future.exception()  # whoever looks away has no need to know: it will be read again

    # -- the writer's side

    def _run(self) -> None:
        try:
            if self._open_first():
                while self._wait():
                    self._attempt()
        finally:
            self._end()

    def _open_first(self) -> bool:
        """Open the file for the first time; False: it can never be opened."""
        try:
            with self._busy():
                self._open()
        except Exception as error:
            with self._changed:
                if isinstance(error, ServiceError) and not self._is_start_over:
                    self._refusal = error
            if self._refusal is None:
                self._failed(error)
        else:
            self._availability.ready()
        self._on_loop(self._answer_start)
        return self._refusal is None

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        """Whatever waits for the disk."""
        with self._changed:
            self._busy_since_s = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                self._busy_since_s = None

    def _wait(self) -> bool:
        """Until there is something to do, or to do again; False: it is all over."""
        with self._changed:
            while not self._abandoned:
                now = time.monotonic()
                patience_s = self._patience_s(now)
                if patience_s is not None and patience_s <= 0:
                    return True
                if self._stopping and not self._is_anything_queued():
                    return False
                self._changed.wait(patience_s)
        return False

    def _patience_s(self, now: float) -> float | None:
        """How long there is nothing to do: 0 or less, there is something now; None, until somebody says so."""
        if self._retry_at_s is not None:
            if self._stopping and not self._is_anything_queued():
                return None
            return self._retry_at_s - now
        if self._calls or self._sweeps or (self._marks and self._stopping):
            return 0.0
        return self._marks_due_s - now if self._marks else None

    def _is_anything_queued(self) -> bool:
        return bool(self._calls or self._marks or self._group)

    def _attempt(self) -> None:
        """One transaction, and a step of sweeping if that is asked for."""
        try:
            with self._busy():
                self._make_sure_of_file()
                self._store_group()
                self._sweep_step()
        except Exception as error:
            self._failed(error)
        else:
            self._backoff.reset()
            with self._changed:
                self._retry_at_s = None
            self._availability.ready()

    def _store_group(self) -> None:
        assert self._store is not None
        if self._is_in_doubt:
            # A commit that failed may be in the log all the same, and not on the disk. What would be found stored now
            # must not be called safe before it is.
            if not self._store.checkpoint():
                raise MailboxError(f"{self._path}: somebody is reading its log")
            self._is_in_doubt = False
        with self._changed:
            group = self._group = self._group or self._next_group()
        if not group.calls and not group.marks:
            with self._changed:
                self._group = None
            return
        change = self._store.store([call.entries for call in group.calls], group.marks, group.name)
        self._count(change)
        with self._changed:
            # From here on, readers see the marks in the file: each begins its transaction after it was asked.
            self._group = None
        if group.calls:
            self._on_loop(_answer, group.calls, change.results)

    def _next_group(self) -> _Group:
        calls: list[_Call] = []
        entries = 0
        while self._calls and (not calls or entries + len(self._calls[0].entries) <= MAX_ENTRIES):
            calls.append(self._calls.popleft())
            entries += len(calls[-1].entries)
        if len(self._marks) <= MAX_ENTRIES:
            marks, self._marks = self._marks, {}
        else:
            marks = dict(islice(self._marks.items(), MAX_ENTRIES))
            self._marks = dict(islice(self._marks.items(), MAX_ENTRIES, None))
        return _Group(calls, marks)

    def _sweep_step(self) -> None:
        assert self._store is not None
        with self._changed:
            asked = bool(self._sweeps)
        if asked or self._sweep_owed:
            # One that fails is tried again, or a mailbox that can do everything else would come and go with each.
            self._sweep_owed = True
            change = self._store.sweep()
            self._sweep_owed = False
            self._count(change)
            self._on_loop(_answer_sweeps, self._take_sweeps(), change.expired)

    def _take_sweeps(self) -> list[asyncio.Future[int]]:
        with self._changed:
            sweeps, self._sweeps = self._sweeps, []
        return sweeps

    def _count(self, change: Change) -> None:
        assert self._store is not None
        counters = self._counters
        counters.stored += change.stored
        counters.duplicates += change.duplicates
        counters.acknowledged += change.acknowledged
        for reason, lost in (("overflow", change.overflowed), ("expired", change.expired)):
            if lost:
                counters.lost[reason] = counters.lost.get(reason, 0) + lost
        self._availability.set_totals(self._store.messages, self._store.size_bytes)

    def _failed(self, error: Exception) -> None:
        is_known = isinstance(error, (sqlite3.Error, OSError, CocoaError))
        cause = str(error) if isinstance(error, CocoaError) else sqlite_schema.cause_of(error)
        if not is_known and self._backoff.attempt == 0:
            log.error("mailbox failed, a fault of the gateway", exc_info=error)
        self._availability.down(cause)
        if isinstance(error, sqlite3.Error) and not sqlite_schema.is_passing(error):
            self._is_in_doubt = True
            self._close_store()
        with self._changed:
            self._retry_at_s = time.monotonic() + max(0.02, self._backoff.next_s())
        failure = MailboxError(self._availability.detail)
        self._on_loop(_fail_sweeps, self._take_sweeps(), failure)

    # -- the file

    def _open(self) -> None:
        """Open the file, for the first time or again.

        :raises ServiceError: it is not fit to be opened
        """
        if self._lock is None:
            self._lock = sqlite_schema.take_lock(self._path)
        if self.identity is None:
            sqlite_schema.make_file(self._path)
            self._inode_lock.take(self._path)
            sqlite_schema.check_header(self._path, self._migrations)
        else:
            self._make_sure_of_place(self.identity)
        database = sqlite_schema.open_writer(self._path, self._migrations)
        try:
            store = Store(database, self._limits, self._clock, self._history)
            identity = FileIdentity.of(self._path)
        except sqlite3.Error as error:
            database.close()
            sqlite_schema.refuse_if_hopeless(self._path, error)
            raise
        except BaseException:
            database.close()
            raise
        if self.key is not None and self.key != store.key:
            database.close()
            raise MailboxError(f"{self._path}: another mailbox is in its place")
        self._enter_era(store.history)
        self._store, self.key, self.identity = store, store.key, identity
        self._availability.set_totals(store.messages, store.size_bytes)

    def _enter_era(self, history: History) -> None:
        before, self._history = self._history, history
        if before is None:
            self.era = history.era  # nobody has a number yet
        elif before.era != history.era:
            log.warning("mailbox was restored", extra={"mailbox": str(self._path), "era": history.era})
            # Not before the loop has the numbers that were given in the last one.
            self._on_loop(self._tell_era, history.era)

    def _tell_era(self, era: int) -> None:
        self.era = era

    def _make_sure_of_file(self) -> None:
        """What is written to a file that has lost its name is written to nowhere.

        The connection stays open meanwhile: another file can't come by the same inode then, and the log stays whole.
        """
        if self._store is None or self.identity is None:
            self._open()
            return
        self._make_sure_of_lock()
        found = self._make_sure_of_place(self.identity)
        if found.log != self.identity.log:
            # Someone has removed the log, of which this connection still has all there was.
            if not self._store.checkpoint():
                raise MailboxError(f"{self._path}: its -wal file is gone")
            self._close_store()
            self._open()

    def _make_sure_of_lock(self) -> None:
        """Whoever tidies up lock files lets a second gateway in."""
        if self._lock is None or sqlite_schema.has_its_name(self._lock, self._path):
            return
        try:
            lock = sqlite_schema.take_lock(self._path)
        except ServiceError as error:
            raise MailboxError(f"{error}; its lock file was removed") from error
        os.close(self._lock)
        self._lock = lock

    def _make_sure_of_place(self, identity: FileIdentity) -> FileIdentity:
        try:
            found = FileIdentity.of(self._path)
        except FileNotFoundError:
            self._empty_log()
            raise MailboxError(f"{self._path}: the file is gone") from None
        if found.database != identity.database:
            self._empty_log()
            raise MailboxError(f"{self._path}: another file is in its place; put it back, or restart the gateway")
        return found

    def _empty_log(self) -> None:
        """Bring what is in the log into the database, wherever that is now.

        SQLite leaves the log of a database that has lost its name, and the next start would take it for that of the
        file that has the name then.
        """
        if self._store is not None:
            with contextlib.suppress(sqlite3.Error):
                self._store.checkpoint()

    def _close_store(self) -> None:
        if self._store is not None:
            self._history = self._store.history
            # What cannot be closed properly is closed all the same.
            with contextlib.suppress(sqlite3.Error):
                self._store.close()
            self._store = None

    def _end(self) -> None:
        if self._store is not None and self.identity is not None:
            with contextlib.suppress(MailboxError, OSError):
                self._make_sure_of_place(self.identity)
        self._close_store()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._inode_lock.release()
        self._on_loop(_fail_sweeps, self._take_sweeps(), MailboxClosed("the mailbox is closed"))
        self._on_loop(self._answer_end)

    def _on_loop(self, callback: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        # A loop that is closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *args)

    def _answer_start(self) -> None:
        assert self._opened is not None
        if not self._opened.done():
            self._opened.set_result(None)

    def _answer_end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)


def _answer(calls: Sequence[_Call], results: Sequence[list[int | None]]) -> None:
    for call, numbers in zip(calls, results, strict=True):
        if not call.stored.done():
            call.stored.set_result(numbers)


def _answer_sweeps(sweeps: Sequence[asyncio.Future[int]], expired: int) -> None:
    # All who asked are told, but what was removed is counted once.
    for swept in sweeps:
        if not swept.done():
            swept.set_result(expired)
            expired = 0


def _fail_sweeps(sweeps: Sequence[asyncio.Future[int]], failure: MailboxError) -> None:
    for swept in sweeps:
        if not swept.done():
            swept.set_exception(failure)
            swept.exception()
