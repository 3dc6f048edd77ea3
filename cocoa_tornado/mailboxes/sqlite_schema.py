"""The SQLite mailbox's file: its tables and migrations, its locks, opening it, and rejecting other files.

A file that can never be opened raises ServiceError and is left unchanged. Errors that may pass raise sqlite3.Error or
OSError.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import sqlite3
import stat
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from ..errors import ServiceError
from ..rules.cursors import KEY_BYTES

APPLICATION_ID: Final = 0x434F4341  # "COCA", in the file's header
BUSY_TIMEOUT_S: Final = 0.25
"""How long to wait for another process's lock."""

CHECKED_BYTES: Final = 256 * 1024 * 1024
"""Files up to this size are checked completely when they are opened, which takes half a second."""

_MAGIC: Final = b"SQLite format 3\0"
_USER_VERSION_AT, _APPLICATION_ID_AT, _HEADER_BYTES = 60, 68, 100
_HOPELESS: Final = frozenset(
    {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}
)
_HOPELESS_ERRNOS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ELOOP})

Migration = Callable[[sqlite3.Connection], None]

# Messages are rowid tables with an index on box and number. WITHOUT ROWID would store them in index order, so that
# each message of a batch dirties a page of its own, and a large payload several.
_TABLES: Final = (
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
    "CREATE TABLE box(id INTEGER PRIMARY KEY, device TEXT NOT NULL UNIQUE, base INTEGER NOT NULL,"
    " last INTEGER NOT NULL, gone INTEGER NOT NULL, acked INTEGER, written INTEGER NOT NULL, bytes INTEGER NOT NULL,"
    " touched REAL NOT NULL)",
    "CREATE TABLE message(box INTEGER NOT NULL, number INTEGER NOT NULL, stored_at REAL NOT NULL,"
    " timestamp_ms INTEGER NOT NULL, payload BLOB NOT NULL, PRIMARY KEY(box, number))",
    "CREATE TABLE source(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, touched REAL NOT NULL)",
    "CREATE TABLE seen(source INTEGER NOT NULL, first INTEGER NOT NULL, stamps BLOB NOT NULL,"
    " PRIMARY KEY(source, first))",
)


def _create(database: sqlite3.Connection) -> None:
    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    for table in _TABLES:
        database.execute(table)
    rows = [("key", secrets.token_bytes(KEY_BYTES)), ("given", 0), ("eras", "")]
    database.executemany("INSERT INTO meta(key, value) VALUES (?, ?)", rows)


def _add_epochs(database: sqlite3.Connection) -> None:
    # Older files have had one epoch, and their cursors carry its number, 0.
    database.execute("INSERT OR IGNORE INTO meta(key, value) VALUES ('eras', '0')")
    database.execute("ALTER TABLE box ADD COLUMN cuts TEXT NOT NULL DEFAULT ''")


# Adding a column to a table changes no stored row. In ``message``, the added columns are behind the payload, but NULL
# and 0 are read without the pages of a large payload.
_LANES_AND_MEMBERS: Final = (
    # The lane of high priority. NULL: as in a new box.
    "ALTER TABLE box ADD COLUMN high_last INTEGER",
    "ALTER TABLE box ADD COLUMN high_gone INTEGER",
    "ALTER TABLE box ADD COLUMN high_acked INTEGER",
    "ALTER TABLE box ADD COLUMN high_written INTEGER",
    "ALTER TABLE box ADD COLUMN high_cuts TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE box ADD COLUMN high_retracted TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE box ADD COLUMN retracted TEXT NOT NULL DEFAULT ''",
    # Unused numbers above ``gone`` and ``high_gone``: the other numbers are the messages.
    "ALTER TABLE box ADD COLUMN holes INTEGER NOT NULL DEFAULT 0",
    # When the device last joined its audiences; NULL: it is not known.
    "ALTER TABLE box ADD COLUMN seen_at REAL",
    # How many messages with an ``id`` the box has been given.
    "ALTER TABLE box ADD COLUMN ids INTEGER NOT NULL DEFAULT 0",
    # A message of high priority has its box's id, negated, as ``box``.
    "ALTER TABLE message ADD COLUMN expires_ms INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE message ADD COLUMN low INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE message ADD COLUMN collapse_key TEXT",
    # The user or group that it was addressed to, if the device is only one of its members.
    "ALTER TABLE message ADD COLUMN audience TEXT",
    # The row of the table payload that has its payload, and the payload's size.
    "ALTER TABLE message ADD COLUMN shared INTEGER",
    "ALTER TABLE message ADD COLUMN size INTEGER",
    "CREATE INDEX message_low ON message(box, number) WHERE low = 1",
    "CREATE INDEX message_collapsible ON message(box, collapse_key) WHERE collapse_key IS NOT NULL",
    "CREATE INDEX message_expiring ON message(expires_ms) WHERE expires_ms > 0",
    "CREATE TABLE payload(id INTEGER PRIMARY KEY, stored_at REAL NOT NULL, data BLOB NOT NULL)",
    "CREATE INDEX payload_old ON payload(stored_at)",
    "CREATE TABLE named(box INTEGER NOT NULL, id TEXT NOT NULL, ordinal INTEGER NOT NULL, stored_at REAL NOT NULL,"
    " place INTEGER NOT NULL, number INTEGER NOT NULL, PRIMARY KEY(box, id)) WITHOUT ROWID",
    # ``joined`` numbers all rows ever added, so a fan-out knows those that were there before it.
    "CREATE TABLE member(audience TEXT NOT NULL, joined INTEGER NOT NULL, box INTEGER NOT NULL,"
    " PRIMARY KEY(audience, joined)) WITHOUT ROWID",
    "CREATE UNIQUE INDEX member_of ON member(box, audience)",
    "CREATE TABLE fan_out(id INTEGER PRIMARY KEY AUTOINCREMENT, audience TEXT NOT NULL, excluded TEXT NOT NULL,"
    " payload BLOB NOT NULL, shared INTEGER, timestamp_ms INTEGER NOT NULL, options TEXT, expires_ms INTEGER NOT NULL,"
    " up_to INTEGER NOT NULL, done INTEGER NOT NULL, recipients INTEGER NOT NULL)",
    "CREATE INDEX fan_out_to ON fan_out(audience)",
    "CREATE TABLE skipped(fan_out INTEGER NOT NULL, box INTEGER NOT NULL, PRIMARY KEY(fan_out, box)) WITHOUT ROWID",
    "INSERT INTO meta(key, value) VALUES ('joined', 0)",
)


def _add_lanes_and_members(database: sqlite3.Connection) -> None:
    for statement in _LANES_AND_MEMBERS:
        database.execute(statement)


MIGRATIONS: Final[tuple[Migration, ...]] = (_create, _add_epochs, _add_lanes_and_members)
"""The migration at index n upgrades version n to n + 1. Each runs in a transaction of its own."""


class FileIdentity(NamedTuple):
    """The files that a connection has open, as (device, inode). Their paths may name other files by now."""

    database: tuple[int, int]
    log: tuple[int, int] | None

    @classmethod
    def of(cls, path: Path) -> FileIdentity:
        """:raises FileNotFoundError: there is no database; its log may be missing"""
        found = os.stat(path)
        try:
            log = os.stat(f"{path}-wal")
        except FileNotFoundError:
            return cls((found.st_dev, found.st_ino), None)
        return cls((found.st_dev, found.st_ino), (log.st_dev, log.st_ino))


def take_lock(path: Path) -> int:
    """Lock the mailbox against other gateways until the returned descriptor is closed or this process ends.

    :raises ServiceError: another gateway holds the lock, or the folder is missing or not writable
    """
    if not path.parent.is_dir():
        raise ServiceError(f"mailbox {path}: folder {path.parent} does not exist; create it first")
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        refuse_if_hopeless(path, error)
        raise
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ServiceError(f"mailbox {path}: is in use by another gateway; each needs a file of its own") from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class InodeLock:
    """A lock on the database's inode, which a hard link or a bind mount can give a second name with another lock file.

    On Linux only. On BSD and macOS ``flock`` conflicts with SQLite's own locks, so it would block this process.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._is_held = False

    def take(self, path: Path) -> None:
        """Lock the file at ``path``. No connection to it may be open. May be called again after a failure.

        POSIX drops all locks of a process on a file when it closes any descriptor of that file, and this process may
        have the file open under its other name. So a failed call keeps its descriptor open for the next one.

        :raises ServiceError: another gateway holds the lock, or it is not a regular file
        :raises FileNotFoundError: there is no database
        """
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            kind = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
            raise ServiceError(f"mailbox {path}: is {kind}")
        if sys.platform != "linux":
            return
        try:
            if self._descriptor is None or not os.path.samestat(os.fstat(self._descriptor), found):
                self._close()
                self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = "is in use by another gateway, under another name; each needs a file of its own"
            raise ServiceError(f"mailbox {path}: {problem}") from None
        except FileNotFoundError:
            raise
        except OSError as error:
            refuse_if_hopeless(path, error)
            raise
        self._is_held = True

    def release(self) -> None:
        """Idempotent. Call it after the connections to the database are closed."""
        if self._is_held:
            self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor, self._is_held = None, False


def has_its_name(lock: int, path: Path) -> bool:
    """Whether the lock file at its path is still the one that is locked."""
    try:
        there = os.stat(f"{path}.lock")
    except FileNotFoundError:
        return False
    ours = os.fstat(lock)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def check_header(path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Reject a file that is not a mailbox before SQLite opens it. This process must have no connection to the file:
    POSIX drops its locks when any descriptor of the file is closed.

    :raises ServiceError: the file is not a database, or belongs to another application or a newer version
    """
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        refuse_if_hopeless(path, error)
        raise
    if not header:
        return
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise ServiceError(f"mailbox {path}: is not an SQLite database; choose another file")
    (version,) = struct.unpack_from(">I", header, _USER_VERSION_AT)
    (application_id,) = struct.unpack_from(">I", header, _APPLICATION_ID_AT)
    _refuse_foreign(path, application_id, version, len(migrations))


def open_writer(path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> sqlite3.Connection:
    """Open the write connection, for the calling thread, and migrate the tables to the newest version.

    :raises ServiceError: the database belongs to another application or a newer version, or is damaged
    :raises sqlite3.Error: it cannot be opened now
    """
    is_new = path.stat().st_size == 0
    database = _connect(path, "rw")
    try:
        _prepare(database, path, migrations, is_new)
    except sqlite3.Error as error:
        database.close()
        refuse_if_hopeless(path, error)
        raise
    except BaseException:
        database.close()
        raise
    return database


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a read-only connection, for the calling thread."""
    database = _connect(path, "ro")
    database.execute("PRAGMA query_only = ON")
    return database


def cause_of(error: BaseException) -> str:
    """The cause in words that follow the path in a message, on one line."""
    code = primary_code(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "is locked by another process"
    if code == sqlite3.SQLITE_FULL or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return "the disk is full"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return "cannot be written"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return f"is damaged ({error})"
    if isinstance(error, OSError):
        return f"cannot be opened: {error.strerror or error}"
    if isinstance(error, sqlite3.Error):
        return f"{error} ({getattr(error, 'sqlite_errorname', type(error).__name__)})"
    return f"{type(error).__name__}: {error}"


def primary_code(error: BaseException) -> int | None:
    """SQLite's primary result code, such as ``sqlite3.SQLITE_FULL``; None for other errors."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def damaged(problem: str) -> sqlite3.DatabaseError:
    """An SQLITE_CORRUPT error, for rows whose contents are malformed."""
    error = sqlite3.DatabaseError(problem)
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
    return error


def is_passing(error: sqlite3.Error) -> bool:
    """Whether the connection is still usable after ``error``."""
    return primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)


def refuse_if_hopeless(path: Path, error: sqlite3.Error | OSError) -> None:
    """Raise ServiceError if retrying cannot help."""
    hopeless = error.errno in _HOPELESS_ERRNOS if isinstance(error, OSError) else primary_code(error) in _HOPELESS
    if hopeless:
        raise ServiceError(f"mailbox {path}: {cause_of(error)}") from error


def _refuse_foreign(path: Path, application_id: int, version: int, newest: int) -> None:
    if application_id != APPLICATION_ID:
        raise ServiceError(f"mailbox {path}: is a database of another application; choose another file")
    if version > newest:
        raise ServiceError(
            f"mailbox {path}: was created by a newer version of this gateway (table version {version}; this one"
            f" supports {newest}); use that version, or choose another file"
        )


def make_file(path: Path) -> None:
    """Create an empty file with mode 0600, unless the file exists. SQLite gives its other files the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        refuse_if_hopeless(path, error)
        raise


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"file:{quote(str(path))}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)


def _prepare(database: sqlite3.Connection, path: Path, migrations: Sequence[Migration], is_new: bool) -> None:
    # Before anything else is read: from here on, a commit survives a power failure.
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA cache_size = -16000")
    # Fails if this SQLite was built without JSON, which fan-outs need.
    database.execute("SELECT json_group_array(value) FROM json_each('[]')").fetchone()
    # Fails if another process holds the write lock: better now than at the first message.
    database.execute("BEGIN IMMEDIATE")
    database.execute("ROLLBACK")
    version = _pragma(database, "user_version")
    if not _is_empty(database):
        _refuse_foreign(path, _pragma(database, "application_id"), version, len(migrations))
        if path.stat().st_size <= CHECKED_BYTES:
            _check(database, path)
    # The first migration of a new file runs before the log exists, so that the file's header always identifies it.
    for number, migrate in enumerate(migrations[version:], version + 1):
        _migrate(database, migrate, number)
    (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise ServiceError(f"mailbox {path}: its file system is unsuitable (no shared memory); choose another folder")
    # A commit that checkpoints takes some milliseconds. Four times as many pages make it four times as long, and save
    # neither CPU time nor, in bulk, time.
    database.execute("PRAGMA wal_autocheckpoint = 1000")
    database.execute("PRAGMA journal_size_limit = 67108864")
    if is_new:
        # Make the directory entries of the new file and its log durable.
        _sync_folder(path.parent)


def _is_empty(database: sqlite3.Connection) -> bool:
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return tables == 0 and _pragma(database, "application_id") == _pragma(database, "user_version") == 0


def _check(database: sqlite3.Connection, path: Path) -> None:
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        line = " ".join(str(verdict).split())
        raise ServiceError(f"mailbox {path}: is damaged ({line}); restore it, or move it away to start empty")


def _migrate(database: sqlite3.Connection, migrate: Migration, number: int) -> None:
    database.execute("BEGIN IMMEDIATE")
    try:
        migrate(database)
        database.execute(f"PRAGMA user_version = {number}")
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _pragma(database: sqlite3.Connection, name: str) -> int:
    (value,) = database.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
