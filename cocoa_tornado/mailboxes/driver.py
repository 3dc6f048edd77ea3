"""The queue, group commit, marks, retries and state of every mailbox that can fail.

One task opens the store and stores one group after another; queries run concurrently. Calls that arrive while a group
is being stored form the next group. A group that fails is retried, with the same calls in the same order, until it is
stored or the mailbox closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from ..errors import CocoaError, MailboxClosed, MailboxError, ServiceError
from ..rules.audiences import Audience
from ..rules.backoff import Backoff
from ..rules.box import Box, Mark, Position
from ..rules.claims import FencingToken
from ..rules.feed import Page
from .asking import Asker, fail
from .backlog import Backlog, Call, CommitGroup, GroupLimits, PendingJoin
from .chore import Chore
from .fan_out_pace import FanOutPace
from .port import Doorbell, Entry, FanOut, FanOutStep, LaneRead, MailboxCounters, MailboxState, MailboxStatus, NamedPage
from .readiness import MailboxReadiness, Operation
from .store import Committed, FindId, Ledger, ListMembers, Look, Query, Read, Store, StoreFault, StoreTiming
from .upkeep import Upkeep

CLOSING_RETRY_S: Final = 0.1
"""The longest delay between attempts while the mailbox closes."""

FAREWELL_S: Final = 1.0
"""The part of a close's timeout that is reserved for the store to release its files and connections."""

log = logging.getLogger("cocoa.mailbox")


class Driver:
    """A :class:`~cocoa_tornado.mailboxes.port.Mailbox` on top of a store. IOLoop thread only."""

    def __init__(self, store: Store, ledger: Ledger, timing: StoreTiming, limits: GroupLimits) -> None:
        self._store, self._ledger, self._timing = store, ledger, timing
        self._readiness = MailboxReadiness()
        self._is_away = True
        self._pace = FanOutPace()
        self._is_waiting = False  # the next call, for a fan-out to be complete
        self._on_step: Callable[[FanOutStep], None] = lambda step: None
        # Storing.
        self._backlog = Backlog(limits)
        self._upkeep = Upkeep(store.name, timing.retry_s, self._on_retry)
        self._is_fault_logged = False
        self._in_doubt = True
        self._backoff = Backoff(base_s=timing.retry_s[0], cap_s=timing.retry_s[1])
        self._runner: asyncio.Task[None] | None = None
        self._wake, self._closes = asyncio.Event(), asyncio.Event()
        self._marks_timer: asyncio.TimerHandle | None = None
        self._asker = Asker(store, timing, self._on_asked, partial(self._hangs, Operation.READING))
        # The beginning and the end.
        self._first: asyncio.Future[None] | None = None  # the first attempt to open it
        self._closed: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._store.name} {self._readiness.state.value}>"

    @property
    def key(self) -> bytes | None:
        return self._store.key

    @property
    def epoch(self) -> int:
        return self._store.epoch

    @property
    def counters(self) -> MailboxCounters:
        return self._ledger.counters

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._first, self._runner = loop.create_future(), loop.create_task(self._run())
        if not self._timing.start_waits:
            self._first.set_result(None)
        try:
            await self._first
        except ServiceError:
            await self._runner
            await self._store.close(FAREWELL_S)
            raise

    def status(self) -> MailboxStatus:
        state, detail = self._readiness.state, self._readiness.detail
        if self._is_away:
            return MailboxStatus(state, detail)
        return MailboxStatus(state, detail, self._ledger.messages, self._ledger.size_bytes, self._store.fan_outs)

    def watch_fan_outs(self, on_step: Callable[[FanOutStep], None]) -> None:
        self._on_step = on_step

    @property
    def rings(self) -> bool:
        return False

    def append(
        self, entries: Sequence[Entry | FanOut], doorbell: Doorbell | None = None
    ) -> asyncio.Future[list[int | None]]:
        self._refuse_if_closed()
        call = Call.of(entries, doorbell)
        self._backlog.append(call)
        self._wake.set()
        return call.future

    def join(
        self, device_id: str, audiences: frozenset[Audience], fencing_token: FencingToken | None = None
    ) -> asyncio.Future[None]:
        return self._join(device_id, audiences, fencing_token, is_new=True)

    def refresh(self, device_id: str, audiences: frozenset[Audience]) -> asyncio.Future[None]:
        return self._join(device_id, audiences, None, is_new=False)

    def _join(
        self, device_id: str, audiences: frozenset[Audience], token: FencingToken | None, *, is_new: bool
    ) -> asyncio.Future[None]:
        self._refuse_if_closed()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._backlog.join(device_id, PendingJoin(audiences, [future], is_new, token))
        self._wake.set()
        return future

    def acknowledge(self, device_id: str, position: Position) -> None:
        self._mark(device_id, Mark(acked=position.numbers, epoch=position.epoch))

    def written(self, device_id: str, position: Position, fencing_token: FencingToken | None = None) -> None:
        self._mark(device_id, Mark(None, position.numbers, position.epoch, fencing_token))

    def marked(self, device_id: str) -> asyncio.Future[None] | None:
        if not self._store.checks_holders or self._is_over:
            return None
        waiting = self._backlog.wait_for_marks(device_id)
        if waiting is not None:
            self._backlog.marks_due = True
            self._wake.set()
        return waiting

    def look(self, device_id: str) -> asyncio.Future[Box]:
        return self._ask(Look(device_id, self._backlog.marks_of(device_id)))

    def members(self, audience: Audience, after: str, most: int) -> asyncio.Future[list[str]]:
        return self._ask(ListMembers(audience, after, most))

    def find_id(self, id_: str, cursor: int = 0, device_id: str | None = None) -> asyncio.Future[NamedPage]:
        return self._ask(FindId(id_, cursor, device_id))

    def read(
        self, device_id: str, lanes: Sequence[LaneRead], fencing_token: FencingToken | None = None
    ) -> asyncio.Future[list[Page]]:
        return self._ask(Read(device_id, self._backlog.marks_of(device_id), lanes, fencing_token))

    async def sweep(self) -> int:
        self._refuse_if_closed()
        if self._is_away:
            raise MailboxError(self._readiness.detail)
        swept = self._upkeep.ask_sweep()
        self._wake.set()
        return await swept

    async def close(self, timeout_s: float) -> None:
        if self._closed is None:
            # Before the task starts: from here on the runner ends as soon as nothing is due.
            self._backlog.marks_due, self._backlog.marks_held = self._backlog.has_marks, False
            self._backlog.fan_outs = 0
            self._closed = asyncio.ensure_future(self._close(timeout_s))
        await asyncio.shield(self._closed)

    @property
    def _is_over(self) -> bool:
        return self._readiness.state is MailboxState.CLOSED

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
            after_s = self._timing.marks_after_s
            self._marks_timer = asyncio.get_running_loop().call_later(after_s, self._on_marks_due)

    def _on_marks_due(self) -> None:
        self._marks_timer, self._backlog.marks_due = None, True
        self._wake.set()

    async def _run(self) -> None:
        # Cancellation alone does not end this task reliably: a client library may turn it into an error of its own.
        while not self._is_over and (self._closed is None or self._backlog.is_due):
            try:
                await self._advance()
            except Exception as error:
                if isinstance(error, ServiceError) and self._first is not None and not self._first.done():
                    self._first.set_exception(error)
                    return
                if not self._is_over:
                    await self._recover_from(self._fault_of(error))

    async def _advance(self) -> None:
        """One step: reopen the store if it is in doubt, store what is due, sweep, then wait for more."""
        if self._in_doubt:
            self._in_doubt = False
            with self._watched():
                if await self._store.open():
                    self._backlog.forget_marks()
            self._is_away = False
        self._note_fan_outs()
        # If a group is due, storing it decides whether the mailbox is ready.
        if self._backlog.is_due:
            await self._store_group()
        await self._fan_out()
        await self._sweep()
        self._ready()
        while not (self._has_work or self._in_doubt or self._closed is not None):
            self._wake.clear()
            await self._wake.wait()

    @property
    def _has_work(self) -> bool:
        return self._backlog.is_due or self._upkeep.sweep_is_due or self._fan_out_is_due

    async def _store_group(self) -> None:
        group = self._backlog.group()
        has_marks = bool(group.marks)
        try:
            with self._watched():
                committed = await self._store.commit(group)
        except StoreFault as fault:
            if (group.calls or group.joins) and fault.committed is None:
                raise
            self._backlog.stored_without_marks(are_refused=not (fault.away or fault.reopen))
            committed = fault.committed or Committed(())
            self._answer(group, committed)
            if not self._holds(self._upkeep.marking, fault):
                raise
            self._backlog.marks_held = True
            self._note_stored(committed.results)
            await self._make_sure_of_storing(self._upkeep.marking)
            return
        self._backlog.stored()
        self._answer(group, committed)
        if has_marks:
            self._upkeep.done(self._upkeep.marking)
        self._note_stored(committed.results)

    def _answer(self, group: CommitGroup, committed: Committed) -> None:
        for call, numbers in zip(group.calls, committed.results, strict=True):
            if not call.future.done():
                call.future.set_result(list(numbers))
        self._report(committed.steps)
        for join in group.joins.values():
            for future in join.futures:
                if not future.done():
                    future.set_result(None)

    async def _fan_out(self) -> None:
        """One step, so that a fan-out delays the next group by no more than that. A group that is due goes first, but a
        fan-out makes progress under any load. There is no rest while a call waits for a fan-out to be complete."""
        self._note_fan_outs()
        if not self._fan_out_is_due:
            return
        if not self._pace.may_step(group_is_due=self._backlog.is_due):
            return
        loop = asyncio.get_running_loop()
        begun = loop.time()
        with self._watched():
            steps = await self._store.fan_out()
        rest_s = self._pace.stepped(loop.time() - begun, steps[-1].recipients if steps else 0)
        if rest_s is not None:
            loop.call_later(rest_s, self._end_rest)
        self._report(steps)
        self._note_fan_outs()

    @property
    def _fan_out_is_due(self) -> bool:
        return self._store.fan_outs > 0 and (not self._pace.is_resting or self._backlog.calls_held)

    def _note_fan_outs(self) -> None:
        """How many are under way may have changed. All that is queued is stored when the driver closes."""
        self._backlog.fan_outs = self._store.fan_outs if self._closed is None else 0
        was_waiting, self._is_waiting = self._is_waiting, self._backlog.calls_held
        self.counters.fan_out_waits += self._is_waiting and not was_waiting

    def _end_rest(self) -> None:
        self._pace.end_rest()
        self._wake.set()

    def _report(self, steps: Sequence[FanOutStep]) -> None:
        for step in steps:
            try:
                self._on_step(step)
            except Exception:
                log.exception("fan-out not routed", extra={"mailbox": self._store.name})

    async def _sweep(self) -> None:
        if not self._upkeep.sweep_is_due:
            return
        try:
            with self._watched():
                removed = await self._store.sweep()
        except StoreFault as fault:
            # The runner retries it. Left to the next call, a mailbox that fails only its sweeps would alternate between
            # READY and OPENING.
            if not self._holds(self._upkeep.sweeping, fault):
                raise
            await self._make_sure_of_storing(self._upkeep.sweeping)
            self._upkeep.fail_sweeps(MailboxError(str(fault)))
            return
        self._upkeep.swept(removed)

    def _holds(self, chore: Chore, fault: StoreFault) -> bool:
        """Hold a chore that the store has refused, and retry it later. False if the whole store fails, or if the driver
        is closing, which retries at once until its time is over."""
        if fault.away or fault.reopen or self._closed is not None:
            return False
        self._upkeep.hold(chore, str(fault))
        return True

    async def _make_sure_of_storing(self, chore: Chore) -> None:
        """The store has refused a chore, and no message shows whether it refuses messages as well: try."""
        if chore.is_outage:
            with self._watched():
                await self._store.try_storing()
            self._upkeep.messages_stored()

    def _on_retry(self, chore: Chore) -> None:
        if chore is self._upkeep.marking:
            self._backlog.marks_held, self._backlog.marks_due = False, self._backlog.has_marks
        self._wake.set()

    def _note_stored(self, results: Sequence[Sequence[int | None]]) -> None:
        if results:
            self._pace.messages_stored()
        if any(results):
            self._upkeep.messages_stored()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Report the body as hanging if it takes too long, but wait for it: parallel attempts would lose the order."""
        timer = asyncio.get_running_loop().call_later(self._timing.patience_s, self._hangs, Operation.STORING)
        try:
            yield
        finally:
            timer.cancel()

    def _hangs(self, operation: Operation) -> None:
        self._down(operation, self._timing.hang.format(done=operation.value, patience_s=self._timing.patience_s))

    def _fault_of(self, error: BaseException) -> StoreFault:
        if isinstance(error, StoreFault):
            return error
        if isinstance(error, CocoaError):
            return StoreFault(str(error))
        # A bug in the gateway. It retries, so that queued messages need no restart.
        if not self._is_fault_logged:
            self._is_fault_logged = True
            log.error("mailbox internal error", exc_info=error)
        return StoreFault(f"{type(error).__name__}: {error}")

    async def _recover_from(self, fault: StoreFault) -> None:
        self._in_doubt = True
        if not fault.reopen:
            self._is_away = fault.away
            self._down(Operation.STORING, str(fault))
            if not fault.away:
                await self._make_room()
        self._upkeep.fail_sweeps(MailboxError(str(fault)))
        if not fault.reopen and not self._is_over:
            await self._rest(self._backoff.next_s())

    async def _make_room(self) -> None:
        """A store that accepts no messages may still delete: store acknowledgements, and sweep."""
        try:
            group = self._backlog.group()
            if group.marks and self._store.key is not None:
                with self._watched():
                    await self._store.commit(CommitGroup([], group.marks))
                self._backlog.marks_stored()
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

    def _ask(self, query: Query) -> asyncio.Future[Any]:
        if self._closed is None and not self._is_over and not self._is_away and self._store.key is not None:
            return self._asker.ask(query)
        refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        is_closed = self._closed is not None or self._is_over
        fail(refused, MailboxClosed("the mailbox is closed") if is_closed else MailboxError(self._readiness.detail))
        return refused

    def _on_asked(self, error: BaseException | None) -> None:
        if error is not None:
            fault = self._fault_of(error)
            self._in_doubt = True
            if not fault.reopen:
                self._is_away = fault.away
                self._down(Operation.STORING, str(fault))
            self._wake.set()
        # After the fault is recorded: a batch that hangs and then fails is one outage, not two with a recovery between.
        self._note(self._readiness.recovered(Operation.READING))

    # -- the state

    def _ready(self) -> None:
        if self._in_doubt or self._upkeep.is_outage:
            return
        self._backoff.reset()
        self._is_fault_logged = False
        self._note(self._readiness.ready(f"{self._store.location}: {self._store.promise}"))
        self._opened()

    def _opened(self) -> None:
        """The first attempt to open the store has ended or hangs: release a waiting start."""
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    def _note(self, is_ready: bool) -> None:
        if is_ready:
            log.info("mailbox ready", extra={"mailbox": self._store.name, "promise": self._store.promise})

    def _down(self, operation: Operation, cause: str) -> None:
        self.counters.failures += self._readiness.state is MailboxState.READY
        if self._readiness.down(operation, cause):
            log.warning("mailbox unavailable", extra={"mailbox": self._store.name, "cause": cause})
        self._opened()

    # -- the end

    async def _close(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        self._wake.set()
        self._closes.set()
        if self._runner is not None and self._backlog.is_due:
            await asyncio.wait([self._runner], timeout=timeout_s - min(FAREWELL_S, timeout_s / 2))
        tasks = self._end()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._store.close(max(0.0, end_s - loop.time()))

    def _give_up(self) -> None:
        """End immediately, without the store. The loop may already be closed."""
        if self._runner is None or not self._runner.get_loop().is_closed():
            self._end()
        self._readiness.closed()

    def _end(self) -> Sequence[Awaitable[Any]]:
        """Stop everything and fail all pending calls. Returns what the caller must wait for."""
        self._is_away = True
        self._readiness.closed()
        self._opened()
        if self._marks_timer is not None:
            self._marks_timer.cancel()
        asking = self._asker.end(MailboxClosed("the mailbox is closed"))
        ending = [future for future in (self._runner, asking) if future is not None]
        if self._runner is not None:
            self._runner.cancel()
        closed = MailboxClosed("the mailbox was closed before this was stored")
        for future in self._backlog.give_up():
            fail(future, closed)
        self._upkeep.fail_sweeps(closed)
        return ending
