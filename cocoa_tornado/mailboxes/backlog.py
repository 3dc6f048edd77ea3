"""The queue of calls and marks to store, and the groups in which they are stored. Pure; not thread-safe."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

from ..rules.audiences import Audience
from ..rules.box import Mark, Marks, marked
from ..rules.claims import FencingToken
from . import fan_out_bound
from .port import Doorbell, Entry, FanOut


class Call(NamedTuple):
    """One pending call of append.

    :ivar fan_outs: how many fan-outs may be under way because of it
    """

    entries: Sequence[Entry | FanOut]
    future: asyncio.Future[list[int | None]]
    fan_outs: int = 0
    doorbell: Doorbell | None = None

    @classmethod
    def of(cls, entries: Sequence[Entry | FanOut], doorbell: Doorbell | None = None) -> Call:
        return cls(entries, asyncio.get_running_loop().create_future(), fan_out_bound.count(entries), doorbell)


@dataclass(slots=True)
class PendingJoin:
    """The newest audiences of a device, and the calls of join and refresh that wait for them to be stored.

    :ivar is_new: they replace those that are stored; False: they count only if none are
    :ivar fencing_token: of the connection that names them
    """

    audiences: frozenset[Audience]
    futures: list[asyncio.Future[None]]
    is_new: bool = True
    fencing_token: FencingToken | None = None

    def then(self, later: PendingJoin) -> PendingJoin:
        """Return this one, followed by another."""
        newest, futures = later if later.is_new else self, [*self.futures, *later.futures]
        return PendingJoin(newest.audiences, futures, self.is_new or later.is_new, newest.fencing_token)


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """The limits of a group. A single call may exceed them.

    :ivar max_marks: the largest number of devices whose marks, or joins, are stored with a group
    """

    max_entries: int
    max_bytes: int
    max_marks: int


@dataclass(slots=True)
class CommitGroup:
    """Calls, joins and marks that are stored together: first the marks, then the joins, then the calls.

    :ivar id: unique. The store keeps its reply under this id, in case the driver misses the reply
    :ivar waiting: by device, done when its marks are stored
    """

    calls: list[Call]
    marks: dict[str, Marks]
    joins: dict[str, PendingJoin] = field(default_factory=dict)
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    waiting: dict[str, list[asyncio.Future[None]]] = field(default_factory=dict)


class Backlog:
    """Calls leave in order, group by group. A group stays current until :meth:`stored`.

    :ivar marks_due: marks wait for no further call
    :ivar marks_held: marks stay here, because the store has refused them
    :ivar fan_outs: how many are under way in the store
    """

    def __init__(self, limits: GroupLimits) -> None:
        self._limits = limits
        self._calls: deque[Call] = deque()
        self._marks: dict[str, Marks] = {}
        self._joins: dict[str, PendingJoin] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}  # for the marks of a device in _marks
        self._group: CommitGroup | None = None
        self.marks_due = self.marks_held = False
        self.fan_outs = 0

    def __repr__(self) -> str:
        return f"<Backlog {len(self._calls)} calls, marks of {len(self._marks)} devices, {self._group}>"

    @property
    def is_due(self) -> bool:
        """Whether there is something to store now."""
        group = self._group
        under_way = group is not None and (group.calls or group.joins or group.marks)
        calls_due, marks_due = self._calls and not self.calls_held, self.marks_due and not self.marks_held
        return bool(calls_due or self._joins or under_way or (self._marks and marks_due))

    @property
    def calls_held(self) -> bool:
        """Whether the next call waits until fewer fan-outs are under way."""
        return bool(self._calls) and not fan_out_bound.may_begin(self._calls[0].fan_outs, self.fan_outs)

    @property
    def has_marks(self) -> bool:
        return bool(self._marks or (self._group and self._group.marks))

    def append(self, call: Call) -> None:
        self._calls.append(call)

    def join(self, device_id: str, join: PendingJoin) -> None:
        """The device's newest audiences count. Every call that is appended later is stored after them."""
        waiting = self._joins.get(device_id)
        self._joins[device_id] = join if waiting is None else waiting.then(join)

    def mark(self, device_id: str, mark: Mark) -> None:
        self._marks[device_id] = marked(self._marks.get(device_id, ()), mark)

    def wait_for_marks(self, device_id: str) -> asyncio.Future[None] | None:
        """Done when the marks of a device that are here now are stored; None if there are none."""
        group = self._group
        if device_id in self._marks:
            waiting = self._waiting.setdefault(device_id, [])
        elif group is not None and device_id in group.marks:
            waiting = group.waiting.setdefault(device_id, [])
        else:
            return None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(future)
        return future

    def marks_of(self, device_id: str) -> Marks:
        """The marks of a device that may not be stored yet."""
        waiting = self._marks.get(device_id, ())
        return waiting if self._group is None else (*self._group.marks.get(device_id, ()), *waiting)

    def group(self) -> CommitGroup:
        """The group to store now: the current one, with the marks added since, or the next."""
        group = self._group
        if group is None or not group.calls:
            # Marks that are refused repeatedly must not block later calls.
            kept = group or CommitGroup([], {})
            group = self._group = CommitGroup([], kept.marks, kept.joins, waiting=kept.waiting)
            self._take_joins(group)
            if not self._joins:
                group.calls = self._next_calls()
        else:
            self._take_joins(group)
        marks = group.marks
        room = 0 if self.marks_held else max(0, self._limits.max_marks - len(marks))
        for device_id in list(islice(self._marks, room)):
            for mark in self._marks.pop(device_id):
                marks[device_id] = marked(marks.get(device_id, ()), mark)
            if device_id in self._waiting:
                group.waiting.setdefault(device_id, []).extend(self._waiting.pop(device_id))
        self.marks_due = self.marks_due and bool(self._marks)
        return group

    def _take_joins(self, group: CommitGroup) -> None:
        for device_id in list(islice(self._joins, max(0, self._limits.max_marks - len(group.joins)))):
            newer = self._joins.pop(device_id)
            older = group.joins.get(device_id)
            group.joins[device_id] = older.then(newer) if older else newer

    def stored(self) -> None:
        """The current group has been stored."""
        group, self._group = self._group, None
        if group is not None:
            _end(group.waiting)

    def marks_stored(self) -> None:
        """Only the marks of the current group have been stored."""
        if self._group is not None:
            self._group.marks.clear()
            _end(self._group.waiting)

    def stored_without_marks(self, *, are_refused: bool) -> None:
        """The calls and joins of the current group have been stored. Its marks are queued again, before newer ones.

        :param are_refused: by the store, perhaps for long: nothing waits for them any more
        """
        group = self._group
        if group is not None:
            waiting, self._marks = self._marks, group.marks
            for device_id, marks in waiting.items():
                for mark in marks:
                    self.mark(device_id, mark)
            self._group, self.marks_due = None, bool(self._marks)
            if are_refused:
                _end(group.waiting)
            for device_id, futures in group.waiting.items():
                self._waiting.setdefault(device_id, []).extend(futures)

    def forget_marks(self) -> None:
        """Discard all marks: they belong to another mailbox."""
        self._marks.clear()
        self._end_waiting()
        if self._group is not None:
            self._group.marks.clear()

    def give_up(self) -> list[asyncio.Future[Any]]:
        """Remove all calls and joins that have not been stored; return their futures."""
        group = self._group or CommitGroup([], {})
        joins = [*group.joins.values(), *self._joins.values()]
        futures: list[asyncio.Future[Any]] = [call.future for call in (*group.calls, *self._calls)]
        futures += [future for join in joins for future in join.futures]
        self._end_waiting()
        self._group = None
        self._calls.clear()
        self._joins.clear()
        return futures

    def _end_waiting(self) -> None:
        """No mark is waited for any more."""
        if self._group is not None:
            _end(self._group.waiting)
        _end(self._waiting)

    def _next_calls(self) -> list[Call]:
        taken: list[Call] = []
        entries = size = 0
        fan_outs = self.fan_outs
        while self._calls:
            call = self._calls[0]
            entries, size, more = entries + len(call.entries), size + _size(call.entries), call.fan_outs
            if taken and (entries > self._limits.max_entries or size > self._limits.max_bytes):
                break
            if not fan_out_bound.may_begin(more, fan_outs):
                break
            fan_outs += more
            taken.append(self._calls.popleft())
        return taken


def _end(waiting: dict[str, list[asyncio.Future[None]]]) -> None:
    for future in chain.from_iterable(waiting.values()):
        if not future.done():
            future.set_result(None)
    waiting.clear()


def _size(entries: Iterable[Entry | FanOut]) -> int:
    return sum(len(entry.payload) for entry in entries)
