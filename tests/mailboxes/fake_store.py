"""A store that tests control: it can fail at any step, lose replies, hang, and turn into another one."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from cocoa_tornado.errors import MailboxError, ServiceError
from cocoa_tornado.mailboxes.backlog import CommitGroup
from cocoa_tornado.mailboxes.memory import MemoryStore
from cocoa_tornado.mailboxes.port import FanOutStep, LaneRead, NamedPage
from cocoa_tornado.mailboxes.store import Committed, FindId, ListMembers, Look, Query, QueryResult, Read, StoreFault
from cocoa_tornado.rules.box import Box, BoxLimits, Marks, with_marks

from .stands import ALL


class Fate(enum.Enum):
    """The fate of one operation of the store."""

    FINE = "fine"
    AWAY = "away"
    REFUSED = "refused"  # it may still be read
    REOPEN = "reopen"
    LOST = "lost"  # it is done, and its answer is not
    BUG = "bug"
    HANGS = "hangs"  # until `go_on`
    HANGS_AND_FAILS = "hangs and fails"


class FakeStore:
    """The :class:`~cocoa_tornado.mailboxes.store.Store` of a test: boxes in memory, with injected faults.

    :ivar fates: the fates of the next operations; FINE if empty
    :ivar asking_fates: the fates of the next answers
    :ivar boxes: the stored messages
    :ivar steps: the executed operations: ``open``, ``commit``, ``fan_out``, ``sweep``, ``answer`` and ``close``
    """

    name, location, promise = "fake", "a fake store", "messages survive"
    checks_holders = False

    def __init__(self, clock: Callable[[], float]) -> None:
        self.boxes = MemoryStore(BoxLimits(max_messages=1_000_000, ttl_s=1e9), clock)
        self.key: bytes | None = None
        self.epoch = 0
        self.fates: deque[Fate] = deque()
        self.asking_fates: deque[Fate] = deque()
        self.steps: list[str] = []
        self.go_on = asyncio.Event()
        self.refusal: ServiceError | None = None
        self.is_another = self.refuses_marks = self.refuses_sweeps = self.refuses_messages = False
        self._under_way: set[str] = set()
        self._answered: tuple[str, Committed] = ("", Committed(()))

    @contextlib.asynccontextmanager
    async def _step(self, name: str) -> AsyncIterator[None]:
        """Run one operation; its fate takes effect in another loop turn."""
        lane = "ask" if name == "answer" else "store"
        fates = self.asking_fates if name == "answer" else self.fates
        assert lane not in self._under_way, f"{name} beside another operation"
        self._under_way.add(lane)
        self.steps.append(name)
        fate = fates.popleft() if fates else Fate.FINE
        try:
            await asyncio.sleep(0.001)
            match fate:
                case Fate.AWAY:
                    raise StoreFault("the store is away", away=True)
                case Fate.REFUSED:
                    raise StoreFault("the store is full")
                case Fate.REOPEN:
                    raise StoreFault("the store is another one", reopen=True)
                case Fate.BUG:
                    raise ZeroDivisionError
                case Fate.HANGS:
                    await self.go_on.wait()
                case Fate.HANGS_AND_FAILS:
                    await self.go_on.wait()
                    raise StoreFault("no answer", away=True)
            yield
            if fate is Fate.LOST:
                raise StoreFault("no answer", away=True)
        finally:
            self._under_way.discard(lane)

    async def open(self) -> bool:
        async with self._step("open"):
            if self.refusal is not None:
                raise self.refusal
            self.key = b"k" * 32
            was_another, self.is_another = self.is_another, False
            return was_another

    async def commit(self, group: CommitGroup) -> Committed:
        async with self._step("commit"):
            for device_id, marks in () if self.refuses_marks else group.marks.items():
                for mark in marks:
                    if mark.acked is not None:
                        self.boxes.acknowledge(device_id, mark.acked)
                    if mark.written is not None:
                        self.boxes.written(device_id, *mark.written)
            for device_id, join in group.joins.items():
                self.boxes.join(device_id, join.audiences, is_new=join.is_new)
            if group.calls and self.refuses_messages:
                raise StoreFault("the store refuses messages")
            if group.calls and self._answered[0] != group.id:
                stored = [self.boxes.append(call.entries) for call in group.calls]
                steps = [step for _, of_call in stored for step in of_call]
                self._answered = (group.id, Committed([numbers for numbers, _ in stored], steps))
            committed = self._answered[1] if group.calls else Committed(())
            if self.refuses_marks and group.marks:
                fault = StoreFault("the store refuses marks")
                fault.committed = committed if group.calls or group.joins else None
                raise fault
            return committed
        raise AssertionError

    @property
    def fan_outs(self) -> int:
        return self.boxes.fan_outs

    async def try_storing(self) -> None:
        async with self._step("try_storing"):
            if self.refuses_messages:
                raise StoreFault("the store refuses messages")
            return
        raise AssertionError

    async def fan_out(self) -> Sequence[FanOutStep]:
        async with self._step("fan_out"):
            return self.boxes.fan_out()
        raise AssertionError

    async def sweep(self) -> int:
        async with self._step("sweep"):
            if self.refuses_sweeps:
                raise StoreFault("the store refuses to sweep")
            return self.boxes.sweep()
        raise AssertionError

    def answer(self, queries: Sequence[Query]) -> asyncio.Future[list[QueryResult]]:
        return asyncio.ensure_future(self._answer(queries))

    async def _answer(self, queries: Sequence[Query]) -> list[QueryResult]:
        async with self._step("answer"):
            return [self._answer_to(query) for query in queries]
        raise AssertionError

    def _answer_to(self, query: Query) -> QueryResult:
        if isinstance(query, ListMembers):
            return self.boxes.members(*query)
        if isinstance(query, FindId):
            return NamedPage(self.boxes.find_id(query.id, query.device_id), 0)
        if query.device_id == "unspeakable":
            return MailboxError("no such name")
        marks: Marks = query.marks
        match query:
            case Look(device_id):
                return with_marks(self.boxes.look(device_id), marks)
            case Read(device_id, _, lanes):
                return self.boxes.read(device_id, lanes)
        raise AssertionError

    async def close(self, timeout_s: float) -> None:
        self.steps.append("close")

    def kept(self, device_id: str) -> int:
        """The number of messages in a box."""
        [page] = self.boxes.read(device_id, [LaneRead("normal", 0, ALL)])
        return len(page.messages)

    def box(self, device_id: str) -> Box:
        return self.boxes.look(device_id)
