"""The SQLite mailbox's write connection. It makes sure that its file has not been replaced, and that no other gateway
uses it.

Writer thread only. Failures raise StoreFault, with a message for operators.
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
from .sqlite_rows import LastSeen, Rows
from .sqlite_schema import FileIdentity, Migration
from .store import StoreFault

log = logging.getLogger("cocoa.mailbox")


class SqliteFile:
    """The database file and its locks.

    :ivar key: the MAC key of the cursors; None until the file was first opened
    :ivar identity: the identity of the open files; None until they are open. Any thread may read it
    """

    def __init__(
        self, path: Path, limits: BoxLimits, clock: Callable[[], float], migrations: Sequence[Migration]
    ) -> None:
        self._path, self._limits, self._clock, self._migrations = path, limits, clock, migrations
        self.key: bytes | None = None
        self.identity: FileIdentity | None = None
        self._rows: Rows | None = None
        self._last_seen: LastSeen | None = None
        self._lock: int | None = None
        self._inode_lock = sqlite_schema.InodeLock()
        self._is_in_doubt = False

    @contextlib.contextmanager
    def used(self) -> Iterator[Rows]:
        """The rows of the open database. Opens the file first if it is not open, or if its log was replaced.

        :raises ServiceError: the file was never open and can never be opened
        :raises StoreFault: the file cannot be used now
        """
        try:
            rows = self._made_sure()
            if self._is_in_doubt:
                # A failed commit may be in the log without being durable. Until a checkpoint succeeds, rows that are
                # found there must not be reported as stored.
                if not rows.checkpoint():
                    raise MailboxError("another process is reading its log")
                self._is_in_doubt = False
            yield rows
        except (ServiceError, StoreFault):
            raise
        except (sqlite3.Error, OSError, CocoaError) as error:
            if isinstance(error, sqlite3.Error) and not sqlite_schema.is_passing(error):
                self._is_in_doubt = True
                self._close_database()
            cause = str(error) if isinstance(error, CocoaError) else sqlite_schema.cause_of(error)
            raise StoreFault(cause if str(self._path) in cause else f"{self._path}: {cause}") from error

    def probe(self) -> Rows:
        """Open the file and check that it is writable; another process may hold its lock."""
        with self.used() as rows:
            rows.probe()
            return rows

    def close(self) -> None:
        """Close the database, with a checkpoint if the file still has its name, and release the locks."""
        if self._rows is not None and self.identity is not None:
            with contextlib.suppress(MailboxError, OSError):
                self._find(self.identity)
        self._close_database()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._inode_lock.release()

    def _made_sure(self) -> Rows:
        """The rows, after checking that the path still names the open files. Writes to a file that was moved or
        replaced would be lost.

        The connection stays open if the check fails: so no other file can get the same inode, and the log stays intact.
        """
        if self._rows is None or self.identity is None:
            return self._open()
        self._keep_lock()
        if self._find(self.identity).log != self.identity.log:
            # Something removed the log; this connection still has its contents.
            if not self._rows.checkpoint():
                raise MailboxError("its -wal file is gone")
            self._close_database()
            return self._open()
        return self._rows

    def _open(self) -> Rows:
        """Open the file, for the first time or again.

        :raises ServiceError: it can never be opened
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
            rows = Rows(database, self._limits, self._clock, self._last_seen)
            identity = FileIdentity.of(self._path)
            if self.key is not None and self.key != rows.key:
                raise MailboxError("another mailbox is in its place")
        except sqlite3.Error as error:
            database.close()
            sqlite_schema.refuse_if_hopeless(self._path, error)
            raise
        except BaseException:
            database.close()
            raise
        if self._last_seen is not None and self._last_seen.epoch != rows.last_seen.epoch:
            log.warning("mailbox restored", extra={"mailbox": str(self._path), "epoch": rows.last_seen.epoch})
        self._rows, self._last_seen, self.key, self.identity = rows, rows.last_seen, rows.key, identity
        return rows

    def _keep_lock(self) -> None:
        """Take the lock again if its file was removed, as a second gateway could lock a new file."""
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
        """Checkpoint the log into the database, wherever that file is now.

        SQLite does not delete the log of a database that was moved. The next start would apply it to the file that has
        the name then.
        """
        if self._rows is not None:
            with contextlib.suppress(sqlite3.Error):
                self._rows.checkpoint()

    def _close_database(self) -> None:
        if self._rows is not None:
            self._last_seen = self._rows.last_seen
            # An error in close() still closes the connection.
            with contextlib.suppress(sqlite3.Error):
                self._rows.close()
            self._rows = None
