"""The thread that reads the SQLite mailbox, on a connection of its own: neither it nor the writer waits for the other.

Whatever was asked for while it was busy is read from one snapshot and answered together.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import CocoaError, MailboxClosed, MailboxError
from . import sqlite_schema
from .sqlite_availability import HANGS_AFTER_S, Availability, Part
from .sqlite_schema import FileIdentity

PATIENCE_S: Final = 5.0
"""From the question to the answer; what takes longer fails."""

MAX_TOGETHER: Final = 32
"""Questions answered from one snapshot. Their pages are all in memory at once, and the first waits for the last."""


class _Question(NamedTuple):
    ask: Callable[[sqlite3.Connection], Any]  # nobody waits any more, later than until_s
    answer: asyncio.Future[Any]
    timer: asyncio.TimerHandle
    until_s: float


class Reader:
    """Methods without a leading underscore are the IOLoop thread's, and none of them waits for the disk.

    :param open_files: the files that the writer has open; None while it has none
    """

    def __init__(self, path: Path, open_files: Callable[[], FileIdentity | None], availability: Availability) -> None:
        self._path, self._open_files, self._availability = path, open_files, availability
        self._changed = threading.Condition()
        self._questions: deque[_Question] = deque()
        self._stopping = False
        self._busy_since_s: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Future[None] | None = None
        # The reader's own.
        self._database: sqlite3.Connection | None = None
        self._identity: FileIdentity | None = None
        self._thread = threading.Thread(target=self._run, name="cocoa-sqlite-reader", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._thread.start()

    def ask(self, question: Callable[[sqlite3.Connection], Any]) -> asyncio.Future[Any]:
        """The future has what ``question`` returns, which is called on the reader's thread; or MailboxError."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        timer = loop.call_later(PATIENCE_S, _settle, answer, self._late())
        with self._changed:
            self._questions.append(_Question(question, answer, timer, time.monotonic() + PATIENCE_S))
            self._changed.notify()
        return answer

    def look_for_a_hang(self) -> None:
        """Tell if questions are being answered for longer than a disk that answers takes."""
        with self._changed:
            # Under the lock: if that ends meanwhile, the thread says so afterwards.
            since_s = self._busy_since_s
            if since_s is not None and time.monotonic() - since_s >= HANGS_AFTER_S:
                self._availability.down(f"the disk hangs: nothing was read for {HANGS_AFTER_S:g} s", Part.READING)

    async def stop(self, timeout_s: float) -> None:
        """What was asked and not answered fails."""
        self._tell_to_stop()
        if self._ended is not None:
            await asyncio.wait([self._ended], timeout=timeout_s)
            if self._ended.done():
                self._thread.join()
        with self._changed:
            left = list(self._questions)
            self._questions.clear()
        _answer([(question, MailboxClosed("the mailbox is closed")) for question in left])

    def abandon(self) -> None:
        """End at once. Blocks until it is done."""
        self._tell_to_stop()
        if self._thread.ident is not None:
            self._thread.join()

    def _tell_to_stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def _run(self) -> None:
        try:
            while questions := self._next():
                answers = self._answers(questions)
                with self._changed:
                    self._busy_since_s = None
                self._availability.ready(Part.READING)
                self._on_loop(_answer, answers)
        finally:
            self._close()
            self._on_loop(self._answer_end)

    def _next(self) -> list[_Question]:
        """What to answer now; empty: it is all over."""
        with self._changed:
            while not self._questions and not self._stopping:
                self._changed.wait()
            if self._stopping:
                return []
            self._busy_since_s = time.monotonic()
            count = min(MAX_TOGETHER, len(self._questions))
            return [self._questions.popleft() for _ in range(count)]

    def _answers(self, questions: Sequence[_Question]) -> list[tuple[_Question, object]]:
        now = time.monotonic()
        answers: list[tuple[_Question, object]] = []
        try:
            database = self._opened()
            database.execute("BEGIN")
            try:
                for question in questions:
                    answers.append(
                        (question, self._ask(question, database) if question.until_s > now else self._late())
                    )
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")
        except Exception as error:
            if isinstance(error, sqlite3.Error) and not sqlite_schema.is_passing(error):
                self._close()
            answers += [(question, self._failure(error)) for question in questions[len(answers) :]]
        return answers

    def _ask(self, question: _Question, database: sqlite3.Connection) -> object:
        try:
            return question.ask(database)
        except sqlite3.Error:
            raise
        except Exception as error:
            # What is wrong with a question is wrong with no other.
            return self._failure(error)

    def _late(self) -> MailboxError:
        return MailboxError(f"{self._path}: no answer within {PATIENCE_S:g} s")

    def _failure(self, error: Exception) -> MailboxError:
        if isinstance(error, MailboxError):
            return error
        cause = str(error) if isinstance(error, CocoaError) else sqlite_schema.cause_of(error)
        failure = MailboxError(f"{self._path}: {cause}")
        failure.__cause__ = error
        return failure

    def _opened(self) -> sqlite3.Connection:
        """The connection, to the same files as the writer's, which still have their names."""
        writers = self._open_files()
        try:
            found = FileIdentity.of(self._path)
        except FileNotFoundError:
            found = None
        if writers is None or found is None or found.database != writers.database:
            raise MailboxError(f"{self._path}: the file is gone" if writers else f"{self._path}: not open yet")
        if self._database is None or self._identity != found:
            self._close()
            self._database = sqlite_schema.open_reader(self._path)
            self._identity = found
        return self._database

    def _close(self) -> None:
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _on_loop(self, callback: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        # A loop that is closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *args)

    def _answer_end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)


def _answer(answers: Sequence[tuple[_Question, object]]) -> None:
    for question, result in answers:
        question.timer.cancel()
        _settle(question.answer, result)


def _settle(answer: asyncio.Future[Any], result: object) -> None:
    if answer.done():
        return
    if isinstance(result, BaseException):
        answer.set_exception(result)
        answer.exception()  # whoever has stopped waiting has no need to know
    else:
        answer.set_result(result)
