"""Queries to a store, concurrent with its commits: in order, in batches, each with a deadline."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..errors import MailboxError
from .store import Query, QueryResult, Store, StoreFault, StoreTiming


class _Asked(NamedTuple):
    query: Query
    answer: asyncio.Future[Any]
    due_s: float  # the deadline, by the loop's clock


class Asker:
    """Sends queries to the store, one batch at a time. IOLoop thread only.

    :param on_end: called after each batch, before its futures are resolved: with the batch's error, else with an answer
        that requires reopening the store, else with None
    :param on_hang: called when a batch takes longer than ``StoreTiming.patience_s``
    """

    def __init__(
        self,
        store: Store,
        timing: StoreTiming,
        on_end: Callable[[BaseException | None], None],
        on_hang: Callable[[], None],
    ) -> None:
        self._store, self._timing, self._on_end, self._on_hang = store, timing, on_end, on_hang
        self._waiting: deque[_Asked] = deque()
        self._asked: Sequence[_Asked] = ()
        self._answers: asyncio.Future[list[QueryResult]] | None = None
        self._patience: asyncio.TimerHandle | None = None

    def ask(self, query: Query) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(_Asked(query, answer, loop.time() + self._timing.patience_s))
        if self._answers is None:
            self._ask_next()
        return answer

    def end(self, error: MailboxError) -> asyncio.Future[Any] | None:
        """Fail all queries. Returns the batch in progress, cancelled, if there is one."""
        if self._patience is not None:
            self._patience.cancel()
        self._fail(error)
        if self._answers is not None:
            self._answers.cancel()
        return self._answers

    def _ask_next(self) -> None:
        loop = asyncio.get_running_loop()
        self._fail_late(loop.time())
        asked: list[_Asked] = []
        while self._waiting and len(asked) < self._timing.queries:
            one = self._waiting.popleft()
            if not one.answer.done():
                asked.append(one)
        if asked:
            self._asked = asked
            self._patience = loop.call_later(self._timing.patience_s, self._on_impatience)
            self._answers = self._store.answer([one.query for one in asked])
            self._answers.add_done_callback(partial(self._on_answers, asked))

    def _on_answers(self, asked: Sequence[_Asked], answers: asyncio.Future[list[QueryResult]]) -> None:
        self._answers = None
        if self._patience is not None:
            self._patience.cancel()
        if answers.cancelled():
            return  # by end()
        error = answers.exception()
        if error is not None:
            self._on_end(error)
            self._fail(MailboxError(str(error) or repr(error)))
        else:
            results = answers.result()
            faults = (answer for answer in results if isinstance(answer, StoreFault) and answer.reopen)
            self._on_end(next(faults, None))
            for one, answer in zip(asked, results, strict=True):
                if isinstance(answer, MailboxError):
                    fail(one.answer, answer)
                elif not one.answer.done():
                    one.answer.set_result(answer)
        self._asked = ()
        self._ask_next()

    def _on_impatience(self) -> None:
        """The current batch has taken too long: fail its queries, and those whose deadline has passed."""
        loop = asyncio.get_running_loop()
        self._on_hang()
        for one in self._asked:
            fail(one.answer, self._late())
        self._fail_late(loop.time())
        next_s = self._waiting[0].due_s if self._waiting else loop.time() + self._timing.patience_s
        self._patience = loop.call_at(next_s, self._on_impatience)

    def _fail(self, error: MailboxError) -> None:
        for one in (*self._asked, *self._waiting):
            fail(one.answer, error)
        self._asked = ()
        self._waiting.clear()

    def _fail_late(self, now: float) -> None:
        while self._waiting and self._waiting[0].due_s <= now:
            fail(self._waiting.popleft().answer, self._late())

    def _late(self) -> MailboxError:
        return MailboxError(f"{self._store.name}: no answer within {self._timing.patience_s:g} s")


def fail(future: asyncio.Future[Any], error: MailboxError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # retrieved, so that asyncio logs nothing if the caller has gone
