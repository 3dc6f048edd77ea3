"""Drives a store: the queue, the group commit, the marks, the retries and the state of every mailbox that can fail.

One task opens the store and stores group after group; questions are answered beside it. What has queued up while a
group was stored goes into the next one. A group that failed is tried again, the same calls in the same order, until it
is stored or the mailbox is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from ..errors import CocoaError, MailboxClosed, MailboxError, ServiceError
from ..rules.backoff import Backoff
from ..rules.box import Box, Mark, PageLimits, Place
from ..rules.feed import Page
from .availability import Availability, Part
from .backlog import Backlog, Call, Group, GroupLimits
from .port import Entry, MailboxCounters, MailboxState, MailboxStatus
from .store import Answer, Ledger, Look, Pace, Question, Read, Store, StoreFault

CLOSING_RETRY_S: Final = 0.1
"""Between the attempts of a close, which does not wait for a longer delay."""

FAREWELL_S: Final = 1.0
"""Of the time that a close has, for the store to let go of its files and connections."""

log = logging.getLogger("cocoa.mailbox")


class _Asked(NamedTuple):
    question: Question
    answer: asyncio.Future[Any]
    due_s: float  # nobody waits any longer


class Driver:
    """The :class:`~cocoa_tornado.mailboxes.port.Mailbox` that a store makes. IOLoop thread only."""

    def __init__(self, store: Store, ledger: Ledger, pace: Pace, limits: GroupLimits) -> None:
        self._store, self._ledger, self._pace = store, ledger, pace
        self._availability = Availability()
        self._is_away = True
        # Storing.
        self._backlog = Backlog(limits)
        self._sweeps: list[asyncio.Future[int]] = []
        self._sweep_owed = self._is_fault_logged = False
        self._in_doubt = True
        self._backoff = Backoff(base_s=pace.retry_s[0], cap_s=pace.retry_s[1])
        self._runner: asyncio.Task[None] | None = None
        self._wake, self._tried, self._closes = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._marks_timer: asyncio.TimerHandle | None = None
        # Asking.
        self._questions: deque[_Asked] = deque()
        self._asked: Sequence[_Asked] = ()
        self._answers: asyncio.Future[list[Answer]] | None = None
        self._patience: asyncio.TimerHandle | None = None
        # The beginning and the end.
        self._is_started = self._is_over = False
        self._refusal: ServiceError | None = None
        self._closed: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._store.name} {self._availability.state.value}>"

    @property
    def key(self) -> bytes | None:
        return self._store.key

    @property
    def era(self) -> int:
        return self._store.era

    @property
    def counters(self) -> MailboxCounters:
        return self._ledger.counters

    async def start(self) -> None:
        self._runner = asyncio.get_running_loop().create_task(self._run())
        if self._pace.start_waits:
            await self._tried.wait()
        self._is_started = True
        if self._refusal is not None:
            await self._runner
            await self._store.close(FAREWELL_S)
            raise self._refusal

    def status(self) -> MailboxStatus:
        state, detail = self._availability.state, self._availability.detail
        if self._is_away:
            return MailboxStatus(state, detail)
        return MailboxStatus(state, detail, self._ledger.messages, self._ledger.size_bytes)

    def append(self, entries: Sequence[Entry]) -> asyncio.Future[list[int | None]]:
        self._refuse_if_closed()
        future: asyncio.Future[list[int | None]] = asyncio.get_running_loop().create_future()
        self._backlog.append(Call(entries, future))
        self._wake.set()
        return future

    def acknowledge(self, device_id: str, place: Place) -> None:
        self._mark(device_id, Mark(acked=place.number, era=place.era))

    def written(self, device_id: str, place: Place) -> None:
        self._mark(device_id, Mark(written=place.number, era=place.era))

    def look(self, device_id: str) -> asyncio.Future[Box]:
        return self._ask(Look(device_id, self._backlog.marks_of(device_id)))

    def read(self, device_id: str, after: int, limits: PageLimits) -> asyncio.Future[Page]:
        return self._ask(Read(device_id, self._backlog.marks_of(device_id), after, limits))

    async def sweep(self) -> int:
        self._refuse_if_closed()
        if self._is_away:
            raise MailboxError(self._availability.detail)
        swept: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._sweeps.append(swept)
        self._sweep_owed = True
        self._wake.set()
        return await swept

    async def close(self, timeout_s: float) -> None:
        if self._closed is None:
            self._closed = asyncio.ensure_future(self._close(timeout_s))
        await asyncio.shield(self._closed)

    # -- storing

    def _refuse_if_closed(self) -> None:
        if self._closed is not None or self._is_over:
            raise MailboxClosed("the mailbox is closed")

    def _mark(self, device_id: str, mark: Mark) -> None:
        if self._is_over:
            return
        self._backlog.mark(device_id, mark)
        if self._closed is not None:
            self._backlog.marks_due = True
        elif self._marks_timer is None:
            after_s = self._pace.marks_after_s
            self._marks_timer = asyncio.get_running_loop().call_later(after_s, self._on_marks_due)

    def _on_marks_due(self) -> None:
        self._marks_timer, self._backlog.marks_due = None, True
        self._wake.set()

    async def _run(self) -> None:
        # A cancellation alone does not end it reliably: a client library may turn it into an error of its own.
        while not self._is_over and (self._closed is None or self._backlog.is_due):
            try:
                await self._advance()
            except Exception as error:
                if isinstance(error, ServiceError) and not self._is_started:
                    self._refusal = error
                    self._tried.set()
                    return
                if not self._is_over:
                    await self._recover_from(self._fault_of(error))

    async def _advance(self) -> None:
        """One step: open the store where that is in doubt, then store what is due, or wait for it."""
        if self._in_doubt:
            self._in_doubt = False
            with self._watched():
                if await self._store.open():
                    self._backlog.forget_marks()
            self._is_away = False
        # Where there is work, it says first whether it can be done.
        if self._backlog.is_due:
            await self._store_group()
        await self._sweep()
        self._ready()
        while not (self._backlog.is_due or self._sweep_owed or self._in_doubt or self._closed is not None):
            self._wake.clear()
            await self._wake.wait()

    async def _store_group(self) -> None:
        group = self._backlog.group()
        with self._watched():
            results = await self._store.commit(group)
        self._backlog.stored()
        for call, numbers in zip(group.calls, results, strict=True):
            if not call.future.done():
                call.future.set_result(list(numbers))

    async def _sweep(self) -> None:
        if self._sweep_owed:
            with self._watched():
                removed = await self._store.sweep()
            # One that fails is owed, or a mailbox that can do everything else would come and go with each.
            self._sweep_owed = False
            sweeps, self._sweeps = self._sweeps, []
            for swept in sweeps:
                if not swept.done():
                    swept.set_result(removed)
                    removed = 0  # all who asked are answered, but what was removed is counted once

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Whatever may hang. It is waited for all the same, for two attempts at once would lose the order."""
        timer = asyncio.get_running_loop().call_later(self._pace.patience_s, self._hangs, Part.STORING)
        try:
            yield
        finally:
            timer.cancel()

    def _hangs(self, part: Part) -> None:
        self._down(part, self._pace.hang.format(done=part.value, patience_s=self._pace.patience_s))

    def _fault_of(self, error: Exception) -> StoreFault:
        if isinstance(error, StoreFault):
            return error
        if isinstance(error, CocoaError):
            return StoreFault(str(error))
        # Ours, not the store's: what is waiting must not wait for a restart.
        if not self._is_fault_logged:
            self._is_fault_logged = True
            log.error("mailbox failed, a fault of the gateway", exc_info=error)
        return StoreFault(f"{type(error).__name__}: {error}")

    async def _recover_from(self, fault: StoreFault) -> None:
        self._in_doubt = True
        if not fault.reopen:
            self._is_away = fault.away
            self._down(Part.STORING, str(fault))
            if not fault.away:
                await self._make_room()
        for swept in self._sweeps:
            _fail(swept, MailboxError(str(fault)))
        self._sweeps.clear()
        if not fault.reopen and not self._is_over:
            await self._rest(self._backoff.next_s())

    async def _make_room(self) -> None:
        """Where the store takes nothing more, it may still delete."""
        try:
            if self._backlog.has_marks and self._store.key is not None:
                group = self._backlog.group()
                with self._watched():
                    await self._store.commit(Group([], group.marks))
                group.marks.clear()
            await self._sweep()
        except Exception as error:
            self._fault_of(error)

    async def _rest(self, seconds: float) -> None:
        if self._closes.is_set():
            await asyncio.sleep(min(seconds, CLOSING_RETRY_S))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closes.wait()

    # -- asking

    def _ask(self, question: Question) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        if self._closed is not None or self._is_over:
            _fail(answer, MailboxClosed("the mailbox is closed"))
        elif self._is_away or self._store.key is None:
            _fail(answer, MailboxError(self._availability.detail))
        else:
            if not self._questions and self._answers is None:
                # At the end of the turn of the loop: what is asked in one is answered together.
                loop.call_soon(self._ask_next)
            self._questions.append(_Asked(question, answer, loop.time() + self._pace.patience_s))
        return answer

    def _ask_next(self) -> None:
        if self._is_over or self._answers is not None:
            return
        loop = asyncio.get_running_loop()
        self._fail_late(loop.time())
        asked: list[_Asked] = []
        while self._questions and len(asked) < self._pace.questions:
            one = self._questions.popleft()
            if not one.answer.done():
                asked.append(one)
        if asked:
            self._asked = asked
            self._patience = loop.call_later(self._pace.patience_s, self._on_impatience)
            self._answers = self._store.answer([question for question, _, _ in asked])
            self._answers.add_done_callback(partial(self._on_answers, asked))

    def _on_impatience(self) -> None:
        """The answers that are being waited for hang."""
        loop = asyncio.get_running_loop()
        self._hangs(Part.READING)
        for one in self._asked:
            _fail(one.answer, self._late())
        self._fail_late(loop.time())
        next_s = self._questions[0].due_s if self._questions else loop.time() + self._pace.patience_s
        self._patience = loop.call_at(next_s, self._on_impatience)

    def _fail_late(self, now: float) -> None:
        while self._questions and self._questions[0].due_s <= now:
            _fail(self._questions.popleft().answer, self._late())

    def _late(self) -> MailboxError:
        return MailboxError(f"{self._store.name}: no answer within {self._pace.patience_s:g} s")

    def _on_answers(self, asked: Sequence[_Asked], answers: asyncio.Future[list[Answer]]) -> None:
        self._asked, self._answers = (), None
        if self._patience is not None:
            self._patience.cancel()
        if self._is_over or answers.cancelled():
            return  # a close fails what is left
        self._note(self._availability.recovered(Part.READING))
        error = answers.exception()
        if error is None:
            for one, answer in zip(asked, answers.result(), strict=True):
                if isinstance(answer, MailboxError):
                    _fail(one.answer, answer)
                    self._in_doubt = self._in_doubt or (isinstance(answer, StoreFault) and answer.reopen)
                elif not one.answer.done():
                    one.answer.set_result(answer)
        else:
            fault = self._fault_of(error if isinstance(error, Exception) else RuntimeError(str(error)))
            self._in_doubt = True
            if not fault.reopen:
                self._is_away = fault.away
                self._down(Part.STORING, str(fault))
            for one in (*asked, *self._questions):
                _fail(one.answer, MailboxError(str(fault)))
            self._questions.clear()
        if self._in_doubt:
            self._wake.set()
        self._ask_next()

    # -- the state

    def _ready(self) -> None:
        if self._in_doubt:
            return
        self._backoff.reset()
        self._is_fault_logged = False
        self._note(self._availability.ready(f"{self._store.place}: {self._store.promise}"))
        self._tried.set()

    def _note(self, is_ready: bool) -> None:
        if is_ready:
            log.info("mailbox ready", extra={"mailbox": self._store.name, "promise": self._store.promise})

    def _down(self, part: Part, cause: str) -> None:
        self.counters.failures += self._availability.state is MailboxState.READY
        if self._availability.down(part, cause):
            log.warning("mailbox unavailable", extra={"mailbox": self._store.name, "cause": cause})
        self._tried.set()

    # -- the end

    async def _close(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        self._backlog.marks_due = self._backlog.has_marks
        self._wake.set()
        self._closes.set()
        if self._runner is not None and self._backlog.is_due:
            await asyncio.wait([self._runner], timeout=timeout_s - min(FAREWELL_S, timeout_s / 2))
        tasks = self._end()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._store.close(max(0.0, end_s - loop.time()))

    def _give_up(self) -> None:
        """End at once, without the store. The loop may have been closed before."""
        if self._runner is None or not self._runner.get_loop().is_closed():
            self._end()
        self._availability.closed()

    def _end(self) -> list[Awaitable[Any]]:
        """Nothing happens from now on. Returns what is to be waited for."""
        self._is_over = self._is_away = True
        self._tried.set()
        for timer in (self._marks_timer, self._patience):
            if timer is not None:
                timer.cancel()
        ending: list[Awaitable[Any]] = []
        for under_way in (self._runner, self._answers):
            if under_way is not None:
                under_way.cancel()
                ending.append(under_way)
        self._availability.closed()
        closed = MailboxClosed("the mailbox was closed before this was stored")
        waiting: list[asyncio.Future[Any]] = [call.future for call in self._backlog.give_up()]
        for future in (*waiting, *self._sweeps):
            _fail(future, closed)
        for one in (*self._asked, *self._questions):
            _fail(one.answer, MailboxClosed("the mailbox is closed"))
        return ending


def _fail(future: asyncio.Future[Any], error: MailboxError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # whoever looks away has no need to know
