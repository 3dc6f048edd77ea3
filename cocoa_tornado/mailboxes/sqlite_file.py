"""The SQLite mailbox's writing connection: to the file that still has its name, in the hands of one gateway.

For the writer's thread only. What fails raises StoreFault, in words for people.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import CocoaError, MailboxError, ServiceError
from ..rules.box import BoxLimits
from . import sqlite_schema
from .sqlite_rows import History, Store
from .sqlite_schema import FileIdentity, Migration
from .store import StoreFault

log = logging.getLogger("cocoa.mailbox")


class SqliteFile:
    """:ivar key: the cursors' key, from the first opening on
    :ivar identity: of the files that are open; None until they are. Any thread may read it
    """

    def __init__(
        self, path: Path, limits: BoxLimits, clock: Callable[[], float], migrations: Sequence[Migration]
    ) -> None:
        self._path, self._limits, self._clock, self._migrations = path, limits, clock, migrations
        self.key: bytes | None = None
        self.identity: FileIdentity | None = None
        self._store: Store | None = None
        self._history: History | None = None
        self._lock: int | None = None
        self._inode_lock = sqlite_schema.InodeLock()
        self._is_in_doubt = False

    @contextlib.contextmanager
    def used(self) -> Iterator[Store]:
        """The rows, to be read and written; opened where they are not, or are not what has the name now.

        :raises ServiceError: the file was not open before, and is not fit to be opened
        :raises StoreFault: it cannot be used now
        """
        try:
            store = self._made_sure()
            if self._is_in_doubt:
                # A commit that failed may be in the log all the same, and not on the disk. What would be found stored
                # now must not be called safe before it is.
                if not store.checkpoint():
                    raise MailboxError("somebody is reading its log")
                self._is_in_doubt = False
            yield store
        except (ServiceError, StoreFault):
            raise
        except (sqlite3.Error, OSError, CocoaError) as error:
            if isinstance(error, sqlite3.Error) and not sqlite_schema.is_passing(error):
                self._is_in_doubt = True
                self._close_store()
            cause = str(error) if isinstance(error, CocoaError) else sqlite_schema.cause_of(error)
            raise StoreFault(cause if str(self._path) in cause else f"{self._path}: {cause}") from error

    def probe(self) -> Store:
        """Open it, and make sure that it can be written to: another process may have it locked."""
        with self.used() as store:
            store.probe()
            return store

    def close(self) -> None:
        """Leave a tidy file, where it is still ours."""
        if self._store is not None and self.identity is not None:
            with contextlib.suppress(MailboxError, OSError):
                self._find(self.identity)
        self._close_store()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._inode_lock.release()

    def _made_sure(self) -> Store:
        """What is written to a file that has lost its name is written to nowhere.

        The connection stays open meanwhile: another file can't come by the same inode then, and the log stays whole.
        """
        if self._store is None or self.identity is None:
            return self._open()
        self._keep_lock()
        if self._find(self.identity).log != self.identity.log:
            # Someone has removed the log, of which this connection still has all there was.
            if not self._store.checkpoint():
                raise MailboxError("its -wal file is gone")
            self._close_store()
            return self._open()
        return self._store

    def _open(self) -> Store:
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
            self._find(self.identity)
        database = sqlite_schema.open_writer(self._path, self._migrations)
        try:
            store = Store(database, self._limits, self._clock, self._history)
            identity = FileIdentity.of(self._path)
            if self.key is not None and self.key != store.key:
                raise MailboxError("another mailbox is in its place")
        except sqlite3.Error as error:
            database.close()
            sqlite_schema.refuse_if_hopeless(self._path, error)
            raise
        except BaseException:
            database.close()
            raise
        if self._history is not None and self._history.epoch != store.history.epoch:
            log.warning("mailbox was restored", extra={"mailbox": str(self._path), "epoch": store.history.epoch})
        self._store, self._history, self.key, self.identity = store, store.history, store.key, identity
        return store

    def _keep_lock(self) -> None:
        """Whoever tidies up lock files lets a second gateway in."""
        if self._lock is None or sqlite_schema.has_its_name(self._lock, self._path):
            return
        try:
            lock = sqlite_schema.take_lock(self._path)
        except ServiceError as error:
            raise MailboxError(f"{error}; its lock file was removed") from error
        os.close(self._lock)
        self._lock = lock

    def _find(self, identity: FileIdentity) -> FileIdentity:
        try:
            found = FileIdentity.of(self._path)
        except FileNotFoundError:
            self._empty_log()
            raise MailboxError("the file is gone") from None
        if found.database != identity.database:
            self._empty_log()
            raise MailboxError("another file is in its place; put it back, or restart the gateway")
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
