"""The SQLite mailbox's read connection. Reads and writes do not block each other.

Reader thread only.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import CocoaError, MailboxError
from . import sqlite_schema
from .sqlite_members import list_members
from .sqlite_pages import Expiry, find_id, look, read
from .sqlite_schema import FileIdentity
from .store import FindId, ListMembers, Look, Query, QueryResult


class Reader:
    """Answers queries from the files that the writer has open.

    :param open_files: returns their identity; None while the writer has none open
    """

    def __init__(self, path: Path, open_files: Callable[[], FileIdentity | None]) -> None:
        self._path, self._open_files = path, open_files
        self._database: sqlite3.Connection | None = None
        self._identity: FileIdentity | None = None

    def answers(self, queries: Sequence[Query], expiry: Expiry) -> list[QueryResult]:
        """Answer all queries from one snapshot.

        :param expiry: which messages have expired and are not returned
        """
        answers: list[QueryResult] = []
        try:
            database = self._opened()
            database.execute("BEGIN")
            try:
                for query in queries:
                    answers.append(self._answer(database, query, expiry))
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")
        except (sqlite3.Error, OSError, CocoaError) as error:
            if isinstance(error, sqlite3.Error) and not sqlite_schema.is_passing(error):
                self.close()
            answers += [self._failure(error)] * (len(queries) - len(answers))
        return answers

    def close(self) -> None:
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _answer(self, database: sqlite3.Connection, query: Query, expiry: Expiry) -> QueryResult:
        try:
            if isinstance(query, ListMembers):
                return list_members(database, query.audience, query.after, query.most)
            if isinstance(query, FindId):
                return find_id(database, query.id, query.cursor, query.device_id)
            if isinstance(query, Look):
                return look(database, query.device_id, query.marks)
            return read(database, query, expiry)
        except sqlite3.Error:
            raise
        except Exception as error:
            # The error concerns this query only.
            return self._failure(error)

    def _failure(self, error: Exception) -> MailboxError:
        cause = str(error) if isinstance(error, CocoaError) else sqlite_schema.cause_of(error)
        failure = MailboxError(f"{self._path}: {cause}")
        failure.__cause__ = error
        return failure

    def _opened(self) -> sqlite3.Connection:
        """The connection, opened again if the path names other files. Raises unless the path names the writer's
        database."""
        writers = self._open_files()
        try:
            found = FileIdentity.of(self._path)
        except FileNotFoundError:
            found = None
        if writers is None or found is None or found.database != writers.database:
            raise MailboxError("the file is gone" if writers else "not open yet")
        if self._database is None or self._identity != found:
            self.close()
            self._database = sqlite_schema.open_reader(self._path)
            self._identity = found
        return self._database
