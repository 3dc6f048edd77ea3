"""The embedded mailbox: boxes in this process, lost when it ends. For development, and for fleets whose messages need
to survive a device's absence but not a restart.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final, TypeVar

from ..errors import MailboxClosed
from ..rules.audiences import Audience
from ..rules.box import FORGET_AFTER_S, FORGET_MISSED_AFTER_S, Box, BoxLimits, Numbers, Position
from ..rules.claims import FencingToken
from ..rules.cursors import KEY_BYTES
from ..rules.feed import Page
from ..rules.members import Members
from ..rules.seen import SeenOffsets, judge
from . import fan_out_bound
from .backlog import Call
from .memory_box import KeptBox, Removed
from .port import (
    RECORDED,
    Doorbell,
    Entry,
    FanOut,
    FanOutStep,
    LaneRead,
    MailboxCounters,
    MailboxState,
    MailboxStatus,
    NamedMessage,
    NamedPage,
)
from .store import FAN_OUT_STEP

SWEEP_BOXES: Final = 300

T = TypeVar("T")

log = logging.getLogger("cocoa.mailbox")


class _UnderWay:
    """A fan-out that is not complete.

    :ivar members: of its audience when it was appended, in the order in which they joined
    :ivar up_to: its recipients are the members that joined up to then, see ``KeptBox.audiences``
    :ivar at: the index of the next member
    :ivar done: it has been stored for those that joined up to then
    :ivar served: devices that are not to get it, or have it although their turn is still to come
    """

    __slots__ = ("at", "done", "fan_out", "members", "recipients", "served", "up_to")

    def __init__(self, fan_out: FanOut, members: Sequence[str], up_to: int) -> None:
        self.fan_out, self.members, self.up_to = fan_out, members, up_to
        self.served = set(fan_out.excluded)
        self.at = self.done = self.recipients = 0

    @property
    def is_complete(self) -> bool:
        return self.at == len(self.members)

    def is_for(self, device_id: str, kept: KeptBox | None) -> bool:
        """True if a device is still to get it: it has not left the audience since."""
        joined = 0 if kept is None else kept.audiences.get(self.fan_out.audience, 0)
        return self.done < joined <= self.up_to and device_id not in self.served

    def entry(self, device_id: str) -> Entry:
        of = self.fan_out
        return Entry(device_id, of.payload, of.timestamp_ms, of.source, of.offset, of.options, of.expires_ms)

    def step(self, numbers: dict[str, int], *, is_last: bool) -> FanOutStep:
        """Report what has been stored."""
        of = self.fan_out
        message = (of.audience, of.excluded, of.payload, of.timestamp_ms, of.options, of.expires_ms)
        return FanOutStep(*message, numbers, is_last=is_last, recipients=self.recipients)


class MemoryStore:
    """Boxes in memory. Every method completes before it returns, and never fails.

    :param clock: Unix seconds
    """

    def __init__(self, limits: BoxLimits, clock: Callable[[], float]) -> None:
        self._limits, self._clock = limits, clock
        self._kept: dict[str, KeptBox] = {}
        self._members: Members[Audience] = Members()
        self._joined = 0  # how many members were ever added
        self._seen: dict[str, SeenOffsets] = {}
        self._under_way: deque[_UnderWay] = deque()
        self._given = 0  # messages ever stored: no box has assigned a higher number
        self._messages = self._size_bytes = 0
        self._sweeping: Iterator[str] = iter(())
        self.counters = MailboxCounters()

    @property
    def totals(self) -> tuple[int, int]:
        """The number of messages, and the total size of their payloads in bytes."""
        return self._messages, self._size_bytes

    @property
    def fan_outs(self) -> int:
        """How many fan-outs are not complete."""
        return len(self._under_way)

    def append(self, entries: Sequence[Entry | FanOut]) -> tuple[list[int | None], list[FanOutStep]]:
        """Store messages; return their numbers, and the steps of fan-outs that have been stored with them."""
        numbers: list[int | None] = []
        steps: list[FanOutStep] = []
        for entry, is_fresh in zip(entries, judge([entries], self._take), strict=True):
            number = None
            if not is_fresh:
                self.counters.duplicates += 1
            elif isinstance(entry, FanOut):
                steps += self._begin(entry)
                number = RECORDED
            else:
                if self._under_way:
                    steps += self._pull(entry.device_id)
                number = self._store(entry, None)
            numbers.append(number)
        return numbers, steps

    def fan_out(self) -> list[FanOutStep]:
        """Store the next messages of the oldest fan-out."""
        if not self._under_way:
            return []
        under_way = self._under_way[0]  # it is the oldest: there is none to pull forward
        numbers = self._step(under_way)
        if under_way.is_complete:
            self._under_way.popleft()
        return [under_way.step(numbers, is_last=under_way.is_complete)]

    def join(self, device_id: str, audiences: frozenset[Audience], *, is_new: bool = True) -> None:
        """:param is_new: False: the device stays in the audiences that it has, if any"""
        now = self._clock()
        kept = self._kept.get(device_id)
        if kept is None:
            kept = self._kept[device_id] = KeptBox(self._given, now)
        kept.joined_s = now
        if audiences != kept.audiences.keys() and (is_new or not kept.audiences):
            self._set_audiences(device_id, kept, audiences)
            withdrawn = self._removed(kept.withdraw())
            self.counters.withdrawn += withdrawn

    def members(self, audience: Audience, after: str, most: int) -> list[str]:
        return heapq.nsmallest(most, [device_id for device_id in self._members.of(audience) if device_id > after])

    def find_id(self, id_: str, device_id: str | None) -> list[NamedMessage]:
        boxes = self._kept.items() if device_id is None else [(device_id, self._kept.get(device_id))]
        found = [(name, kept.place_of(id_)) for name, kept in boxes if kept is not None]
        return [NamedMessage(name, *place) for name, place in found if place is not None]

    def look(self, device_id: str) -> Box:
        kept = self._kept.get(device_id)
        return Box.new(self._given) if kept is None else kept.box

    def read(self, device_id: str, lanes: Sequence[LaneRead]) -> list[Page]:
        kept = self._kept.get(device_id)
        if kept is None:
            return [Page((), self._given, self._given) for _ in lanes]
        now = self._clock()
        return [kept.read(asked, self._limits, now) for asked in lanes]

    def acknowledge(self, device_id: str, numbers: Numbers) -> None:
        kept = self._kept.get(device_id)
        if kept is not None:
            self.counters.acknowledged += self._removed(kept.acknowledge(numbers))

    def written(self, device_id: str, normal: int, high: int) -> None:
        kept = self._kept.get(device_id)
        if kept is not None:
            kept.write(normal, high)

    def sweep(self) -> int:
        now = self._clock()
        devices = list(islice(self._sweeping, SWEEP_BOXES))
        if not devices:
            self._sweeping = iter(list(self._kept))
            return 0
        removed = 0
        for device_id in devices:
            kept = self._kept.get(device_id)
            if kept is not None:
                expired = kept.expire(self._limits, now)
                lost = kept.count_unconfirmed(expired)
                self.counters.lose("expired", lost)
                self.counters.retired += len(expired) - lost
                removed += self._removed(expired)
                self._forget(device_id, kept, now)
        return removed

    # -- one message

    def _take(self, source: str, records: Sequence[tuple[int, int]]) -> list[bool]:
        return self._seen.setdefault(source, SeenOffsets()).take(records)[0]

    def _store(self, entry: Entry, audience: Audience | None) -> int | None:
        """Store one message; None if its device has had one with its ``id``."""
        now, options = self._clock(), entry.options
        kept = self._kept.get(entry.device_id)
        if kept is None:
            if options is not None and options.is_transient and options.id is None:
                return self._given
            kept = self._kept[entry.device_id] = KeptBox(self._given, now)
        if options is not None:
            if options.id is not None and kept.has(options.id, now):
                self.counters.duplicates += 1
                return None
            if options.is_transient:
                after, replaced = kept.pass_by(options, now)
                self.counters.collapsed += self._removed(replaced)
                return after
        number, replaced = kept.append(entry, audience, now)
        self._given += 1
        self._messages += 1
        self._size_bytes += len(entry.payload)
        self.counters.stored += 1
        if replaced:
            self.counters.collapsed += self._removed(replaced)
        dropped = kept.shrink(self._limits)
        if dropped:
            lost = kept.count_unconfirmed(dropped)
            self.counters.overflow(entry.device_id, lost, now)
            self.counters.retired += self._removed(dropped) - lost
        return number

    def _removed(self, removed: Removed) -> int:
        self._messages -= len(removed)
        self._size_bytes -= sum([len(message.payload) for message in removed])
        return len(removed)

    # -- fan-outs and members

    def _begin(self, fan_out: FanOut) -> list[FanOutStep]:
        """A small fan-out does not wait for large ones that are under way."""
        under_way = _UnderWay(fan_out, tuple(self._members.of(fan_out.audience)), self._joined)
        if len(under_way.members) - len(fan_out.excluded.intersection(under_way.members)) > FAN_OUT_STEP:
            self._under_way.append(under_way)
            return [] if len(self._under_way) > 1 else self.fan_out()
        steps: list[FanOutStep] = []
        for device_id in under_way.members if self._under_way else ():
            if device_id not in fan_out.excluded:
                steps += self._pull(device_id)
        numbers = self._step(under_way)
        while not under_way.is_complete:
            numbers |= self._step(under_way)
        return [*steps, under_way.step(numbers, is_last=True)]

    def _step(self, under_way: _UnderWay) -> dict[str, int]:
        """Store a fan-out's messages for its next members."""
        numbers: dict[str, int] = {}
        for device_id in under_way.members[under_way.at : under_way.at + FAN_OUT_STEP]:
            under_way.at += 1
            kept = self._kept.get(device_id)
            if under_way.is_for(device_id, kept):
                self._fan_out_to(under_way, device_id, numbers)
            joined = 0 if kept is None else kept.audiences.get(under_way.fan_out.audience, 0)
            if joined <= under_way.up_to:  # otherwise it has left the audience, and joined it again
                under_way.done = max(under_way.done, joined)
        return numbers

    def _pull(self, device_id: str) -> list[FanOutStep]:
        """Store a device's messages of all fan-outs under way: they are older than what is stored for it next."""
        steps = []
        for under_way in self._under_way:
            if under_way.is_for(device_id, self._kept.get(device_id)):
                numbers: dict[str, int] = {}
                self._fan_out_to(under_way, device_id, numbers)
                under_way.served.add(device_id)
                steps.append(under_way.step(numbers, is_last=False))
        return steps

    def _fan_out_to(self, under_way: _UnderWay, device_id: str, numbers: dict[str, int]) -> None:
        under_way.recipients += 1
        number = self._store(under_way.entry(device_id), under_way.fan_out.audience)
        if number is not None:
            numbers[device_id] = number

    def _set_audiences(self, device_id: str, kept: KeptBox, audiences: frozenset[Audience]) -> None:
        before = kept.audiences
        for audience in before.keys() - audiences:
            self._members.remove(audience, device_id)
        kept.audiences = {audience: joined for audience, joined in before.items() if audience in audiences}
        for audience in sorted(audiences - before.keys()):
            self._joined += 1
            self._members.add(audience, device_id)
            kept.audiences[audience] = self._joined

    def _forget(self, device_id: str, kept: KeptBox, now: float) -> None:
        if kept.audiences:
            if now - kept.joined_s <= self._limits.member_ttl_s:
                return
            self._set_audiences(device_id, kept, frozenset())
        patience_s = FORGET_MISSED_AFTER_S if kept.box.owes_a_gap else FORGET_AFTER_S
        if not len(kept) and now - max(kept.touched_s, kept.joined_s) > patience_s:
            del self._kept[device_id]


class MemoryMailbox:
    """The :class:`~cocoa_tornado.mailboxes.port.Mailbox` that needs no service. READY from :meth:`start` on.

    It has no driver: a store that completes immediately and cannot fail needs no queue, and a queue would cost more per
    message than storing it.
    """

    def __init__(self, limits: BoxLimits, clock: Callable[[], float] = time.time) -> None:
        self._store = MemoryStore(limits, clock)
        self._key = secrets.token_bytes(KEY_BYTES)
        self._state = MailboxState.OPENING
        self._on_step: Callable[[FanOutStep], None] = lambda step: None
        self._is_stepping = False
        self._waiting: deque[Call] = deque()  # until fewer fan-outs are under way

    def __repr__(self) -> str:
        return f"<MemoryMailbox {self._store.totals[0]} messages>"

    @property
    def key(self) -> bytes | None:
        return None if self._state is MailboxState.OPENING else self._key

    @property
    def epoch(self) -> int:
        return 0

    @property
    def counters(self) -> MailboxCounters:
        return self._store.counters

    async def start(self) -> None:
        self._state = MailboxState.READY

    def status(self) -> MailboxStatus:
        if self._state is MailboxState.READY:
            detail = "in this process: messages survive their device's absence, but not the end of the gateway"
            return MailboxStatus(self._state, detail, *self._store.totals, self._store.fan_outs)
        return MailboxStatus(self._state, self._state.value)

    def watch_fan_outs(self, on_step: Callable[[FanOutStep], None]) -> None:
        self._on_step = on_step

    @property
    def rings(self) -> bool:
        return False

    def append(
        self, entries: Sequence[Entry | FanOut], doorbell: Doorbell | None = None
    ) -> asyncio.Future[list[int | None]]:
        self._refuse_if_closed()
        call = Call.of(entries)
        if self._waiting or not self._may_begin(call):
            self.counters.fan_out_waits += not self._waiting
            self._waiting.append(call)
        else:
            self._append(call)
        return call.future

    def _append(self, call: Call) -> None:
        numbers, steps = self._store.append(call.entries)
        self._report_soon(steps)
        self._step_later()
        if not call.future.done():
            call.future.set_result(numbers)

    def _may_begin(self, call: Call) -> bool:
        return fan_out_bound.may_begin(call.fan_outs, self._store.fan_outs)

    def join(
        self, device_id: str, audiences: frozenset[Audience], fencing_token: FencingToken | None = None
    ) -> asyncio.Future[None]:
        self._refuse_if_closed()
        self._store.join(device_id, audiences)
        return _done(None)

    def refresh(self, device_id: str, audiences: frozenset[Audience]) -> asyncio.Future[None]:
        self._refuse_if_closed()
        self._store.join(device_id, audiences, is_new=False)
        return _done(None)

    def members(self, audience: Audience, after: str, most: int) -> asyncio.Future[list[str]]:
        return _done(self._store.members(audience, after, most))

    def find_id(self, id_: str, cursor: int = 0, device_id: str | None = None) -> asyncio.Future[NamedPage]:
        return _done(NamedPage(self._store.find_id(id_, device_id), 0))

    def look(self, device_id: str) -> asyncio.Future[Box]:
        return _done(self._store.look(device_id))

    def read(
        self, device_id: str, lanes: Sequence[LaneRead], fencing_token: FencingToken | None = None
    ) -> asyncio.Future[list[Page]]:
        return _done(self._store.read(device_id, lanes))

    def acknowledge(self, device_id: str, position: Position) -> None:
        self._store.acknowledge(device_id, position.numbers)

    def written(self, device_id: str, position: Position, fencing_token: FencingToken | None = None) -> None:
        self._store.written(device_id, position.normal, position.high)

    def marked(self, device_id: str) -> None:
        return None

    async def sweep(self) -> int:
        return self._store.sweep()

    async def close(self, timeout_s: float) -> None:
        while self._waiting:
            self._append(self._waiting.popleft())
        self._state = MailboxState.CLOSED

    def _refuse_if_closed(self) -> None:
        if self._state is MailboxState.CLOSED:
            raise MailboxClosed("the mailbox is closed")

    # -- fan-outs: one step in a turn of the loop

    def _step_later(self) -> None:
        if self._store.fan_outs and not self._is_stepping:
            self._is_stepping = True
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        self._is_stepping = False
        if self._state is not MailboxState.CLOSED:
            self._report_soon(self._store.fan_out())
            while self._waiting and self._may_begin(self._waiting[0]):
                self._append(self._waiting.popleft())
            self._step_later()

    def _report_soon(self, steps: Sequence[FanOutStep]) -> None:
        """Report steps once the future of the call that they were stored with is known, before its callbacks run."""
        if steps:
            asyncio.get_running_loop().call_soon(self._report, steps)

    def _report(self, steps: Sequence[FanOutStep]) -> None:
        for step in steps:
            try:
                self._on_step(step)
            except Exception:
                log.exception("fan-out not routed", extra={"mailbox": "memory"})


def _done(result: T) -> asyncio.Future[T]:
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_result(result)
    return future
