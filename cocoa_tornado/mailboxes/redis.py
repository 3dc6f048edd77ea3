"""The mailbox in Redis 6.2 or later, with one stream per device. For fleets that share several gateways, or that run
Redis anyway.

It uses two connections: one stores groups, the other answers queries. The scripts are in ``redis_scripts.py``. Any
number of gateways may share one Redis: each script checks that the data its arguments were computed from is unchanged,
and the gateway recomputes them if it is not.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from ..errors import MailboxError, Superseded
from ..redis_store.connection import RedisConnection
from ..redis_store.faults import NOT_ANSWERING
from ..redis_store.scripts import PREFIX, Command
from ..rules.addresses import without_user_info
from ..rules.box import FORGET_AFTER_S, FORGET_MISSED_AFTER_S, BoxLimits, LaneName, Marks
from ..rules.cursors import KEY_BYTES
from .backlog import CommitGroup, GroupLimits
from .driver import Driver
from .port import FanOut, FanOutStep
from .redis_faults import RedisStoreFault, store_fault_of
from .redis_group import (
    FANNED_OUT,
    PASSED_BY,
    SAME_ID,
    UNDELIVERABLE,
    Judged,
    Source,
    device_key,
    limit_arguments,
    seen_key,
    source_of,
)
from .redis_replies import (
    box_of,
    fan_out_of,
    foreign_keys,
    guard_argument,
    join_arguments,
    key_name,
    mark_arguments,
    named_of,
    pages_of,
    promise_of,
    refusal_of,
    steps_of,
)
from .redis_scripts import FAN_OUT, FIND_ID, JOIN, MARK, OPEN, READ, SCHEMA, SCRIPTS, SWEEP
from .store import FAN_OUT_STEP, Committed, FindId, Ledger, ListMembers, Look, Query, QueryResult, Read, StoreTiming

TIMING: Final = StoreTiming(retry_s=(0.2, 5.0), patience_s=5.0, hang=NOT_ANSWERING, start_waits=False, queries=50)
LIMITS: Final = GroupLimits(max_entries=2_000, max_bytes=4 * 1024 * 1024, max_marks=1_000)
SOURCES_AT_ONCE = 8
SWEEP_BOXES, SWEEP_MESSAGES, SWEEP_MEMBERS = 200, 500, 500
MEMBERS_AT_ONCE: Final = 1_000
BOXES_AT_ONCE: Final = 200
"""How many boxes one script searches for an ``id``."""
STEP: Final = 25
"""Messages of a fan-out that one script stores: Redis does nothing else meanwhile."""

JOIN_AGAIN_S: Final = 3600.0
"""A device that joins the same audiences again within this time changes nothing. Less if members are soon forgotten."""

FAN_OUTS_KNOWN: Final = 32
"""Redis describes all other fan-outs with each of their steps."""
FOREIGN_NAMED = 1_000
EPOCHS_SINCE_S = 1_767_225_600  # 2026: an epoch's number is at least the seconds since then

MEMBERS: Final = PREFIX + b"a:"
"""See ``redis_scripts.py``."""

log = logging.getLogger("cocoa.mailbox")


class RedisMailbox(Driver):
    """The :class:`~cocoa_tornado.mailboxes.port.Mailbox` in Redis. IOLoop thread only.

    :param url: ``redis://[user:password@]host:port/db``, ``rediss://``, or ``redis+sentinel://``
    :param clock: Unix seconds
    :param rings: presence is in the same Redis
    """

    def __init__(
        self, url: str, limits: BoxLimits, clock: Callable[[], float] = time.time, *, rings: bool = False
    ) -> None:
        ledger = Ledger()
        super().__init__(RedisStore(url, limits, clock, ledger), ledger, TIMING, LIMITS)
        self._rings = rings

    @property
    def rings(self) -> bool:
        return self._rings


class RedisStore:
    """The :class:`~cocoa_tornado.mailboxes.store.Store` in Redis."""

    def __init__(self, url: str, limits: BoxLimits, clock: Callable[[], float], ledger: Ledger) -> None:
        self.name, self.promise = without_user_info(url), ""
        self.location = f"Redis at {self.name}"
        self.key: bytes | None = None
        self.epoch = 0
        self.fan_outs, self.checks_holders = 0, True
        self._limits, self._clock, self._ledger = limits, clock, ledger
        self._storing, self._asking = (RedisConnection(url, SCRIPTS, store_fault_of) for _ in range(2))
        self._gateway = secrets.token_hex(8).encode()
        self._given = 0  # messages ever stored, to this gateway's knowledge
        self._sources: dict[str, Source] = {}
        self._judged: Judged | None = None
        self._fan_outs: dict[bytes, FanOut] = {}  # some of those that are not complete, by the ids that Redis has
        self._step_id = secrets.token_hex(8).encode()  # of the next step, or of one whose reply was lost
        self._foreign: set[bytes] = set()  # keys of a wrong type that have been logged
        self._cautions: tuple[str, ...] = ()

    async def open(self) -> bool:
        await self._storing.begin_anew()
        await self._asking.begin_anew()
        queries: list[Command] = [
            [b"CONFIG", b"GET", name] for name in (b"maxmemory-policy", b"appendonly", b"appendfsync")
        ]
        settings = await self._storing.exchange(queries)
        (opened,) = await self._storing.exchange([self._open_command()])
        self._name_foreign(opened)
        fault = refusal_of(opened)
        if fault is not None:
            raise fault
        if opened[0] == b"version":
            version = (opened[1] or b"?").decode(errors="replace")
            raise RedisStoreFault(f"the mailbox in Redis has version {version}; this gateway supports {SCHEMA}")
        _, key, _, given, epoch, messages, size_bytes, was, fan_outs, _ = opened
        if key is None or len(key) != KEY_BYTES:
            raise RedisStoreFault("the mailbox in Redis has no cursor key, or an invalid one")
        await self._asking.exchange([[b"PING"]])
        before = self._ledger.messages or 0
        self.key, self._given, self.epoch, self.fan_outs = key, int(given), int(epoch), int(fan_outs)
        self._note_totals((messages, size_bytes))
        if was:
            # Redis was emptied and the mailbox recreated, or it holds another mailbox, which is used from now on.
            lost = max(0, before - int(messages))
            extra = {"mailbox": self.name, "epoch": self.epoch, "lost": lost}
            log.error("mailbox replaced" if was == b"replaced" else "mailbox emptied", extra=extra)
            self._ledger.counters.lose("emptied", lost)
        self._note_promise(settings)
        return bool(was == b"replaced")

    async def commit(self, group: CommitGroup) -> Committed:
        if group.joins:
            await self._join(group)
        is_empty = not any(call.entries for call in group.calls)
        nothing = Committed([[] for _ in group.calls])
        while True:
            commands = list(self._mark_commands(group.marks))
            marking = len(commands)
            if not is_empty:
                judged = await self._judge(group)
                now_ms, limits = _ms(self._clock()), self._limits
                commands.append(judged.command(self._stamp(), now_ms, limits, self._fan_outs, _step()))
            replies = await self._storing.exchange(commands) if commands else []
            for reply in replies:
                self._name_foreign(reply)
            faults = [fault for fault in map(refusal_of, replies) if fault is not None]
            if not any(map(refusal_of, replies[:marking])):
                group.marks.clear()
                self._note_marked(replies[:marking])
            if faults:
                fault = next((fault for fault in faults if not fault.reopen), faults[-1])
                if is_empty:
                    fault.committed = nothing if group.joins or group.calls else None
                elif refusal_of(replies[-1]) is None and replies[-1][0] == b"stored":
                    fault.committed = self._note_stored(judged, replies[-1])
                raise fault
            if is_empty:
                return nothing
            if replies[-1][0] != b"stale":
                return self._note_stored(judged, replies[-1])
            # Another gateway has stored records of the same sources, or Redis has lost its latest writes.
            self._forget(group)

    async def try_storing(self) -> None:
        nothing = Judged(CommitGroup([], {}), {}, self._gateway)
        now_ms, limits = _ms(self._clock()), self._limits
        [reply] = await self._storing.exchange(
            [nothing.command(self._stamp(), now_ms, limits, self._fan_outs, _step())]
        )
        fault = refusal_of(reply)
        if fault is not None:
            raise fault

    async def _join(self, group: CommitGroup) -> None:
        """Store the joins of a group, after its marks. Both may be stored twice."""
        again_s = min(JOIN_AGAIN_S, self._limits.member_ttl_s / 24)
        now = self._clock()
        head = (b"%d" % _ms(now), b"%d" % _ms(now - again_s), self._storing.process or b"")
        commands = [*self._mark_commands(group.marks), JOIN.call(self._stamp(), *head, *join_arguments(group.joins))]
        *marked, joined = await self._storing.exchange(commands)
        for reply in (*marked, joined):
            self._name_foreign(reply)
        if not any(map(refusal_of, marked)):
            group.marks.clear()
            self._note_marked(marked)
        fault = refusal_of(joined)
        if fault is not None:
            raise fault
        self._ledger.counters.withdrawn += joined[1]
        self._note_totals(joined[2:4])

    async def fan_out(self) -> Sequence[FanOutStep]:
        head = [b"%d" % _ms(self._clock()), self._gateway, self._step_id, *limit_arguments(self._limits)]
        command = FAN_OUT.call(self._stamp(), *head, b"%d" % _step(), b" ".join(self._fan_outs))
        (reply,) = await self._storing.exchange([command])
        self._name_foreign(reply)
        fault = refusal_of(reply)
        if fault is not None:
            raise fault
        self._step_id = secrets.token_hex(8).encode()
        _, lost, collapsed, messages, size_bytes, pending, steps, retired, _ = reply
        self._ledger.counters.retired += int(retired)
        self._note_totals((messages, size_bytes))
        return self._note_steps(steps, lost, int(collapsed), int(pending))

    async def sweep(self) -> int:
        now, limits = self._clock(), self._limits
        kept = (limits.ttl_s, FORGET_AFTER_S, FORGET_MISSED_AFTER_S, limits.member_ttl_s)
        times = [_ms(now), *(_ms(now - seconds) for seconds in kept), _ms(limits.ttl_s)]
        numbers = (*times, SWEEP_BOXES, SWEEP_MESSAGES, SWEEP_MEMBERS)
        (reply,) = await self._storing.exchange([SWEEP.call(self._stamp(), *(b"%d" % number for number in numbers))])
        self._name_foreign(reply)
        fault = refusal_of(reply)
        if fault is not None:
            raise fault
        removed = int(reply[1])
        retired = int(reply[5])
        self._ledger.counters.lose("expired", removed - retired)
        self._ledger.counters.retired += retired
        self._note_totals(reply[2:4])
        self.fan_outs = int(reply[4])
        return removed

    def answer(self, queries: Sequence[Query]) -> asyncio.Future[list[QueryResult]]:
        return asyncio.ensure_future(self._answer(queries))

    async def close(self, timeout_s: float) -> None:
        # If Redis hangs, closing a TLS connection hangs too.
        closing = [asyncio.ensure_future(link.close()) for link in (self._storing, self._asking)]
        _, late = await asyncio.wait(closing, timeout=timeout_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)

    # -- reading

    async def _answer(self, queries: Sequence[Query]) -> list[QueryResult]:
        asked = [query for query in queries if not isinstance(query, ListMembers)]
        replies = await self._asking.exchange([self._query(query) for query in asked]) if asked else []
        answers = iter([self._answer_of(*pair) for pair in zip(asked, replies, strict=True)])
        return [await self._members(query) if isinstance(query, ListMembers) else next(answers) for query in queries]

    async def _members(self, query: ListMembers) -> QueryResult:
        """Redis has the members in the order in which they joined, so each page takes reading all of them, some at a
        time: what else Redis does never waits for more."""
        key, after = MEMBERS + query.audience.encode(), query.after.encode()
        first: list[bytes] = []
        joined = b"-inf"
        while True:
            limit = (b"WITHSCORES", b"LIMIT", b"0", b"%d" % MEMBERS_AT_ONCE)
            (reply,) = await self._asking.exchange([[b"ZRANGEBYSCORE", key, joined, b"+inf", *limit]])
            if isinstance(reply, Exception):
                return MailboxError(f"the members of {query.audience!r} cannot be read: {reply}")
            first = heapq.nsmallest(query.most, [*first, *(name for name in reply[::2] if name > after)])
            if len(reply) < 2 * MEMBERS_AT_ONCE:
                return [name.decode("utf-8", "replace") for name in first]
            joined = b"(" + reply[-1]

    def _query(self, query: Look | Read | FindId) -> Command:
        if isinstance(query, FindId):
            id_, cursor, device_id = query
            where = (b"%d" % cursor, b"%d" % BOXES_AT_ONCE) if device_id is None else (b"", device_key(device_id))
            return FIND_ID.call(self._stamp(), id_.encode(), *where)
        now = self._clock()
        fencing_token = None if isinstance(query, Look) else query.fencing_token
        guarded = [self._asking.process or b"", guard_argument(query.device_id, fencing_token)]
        head = [device_key(query.device_id), b"%d" % _ms(now - self._limits.ttl_s), *guarded]
        if not isinstance(query, Look):
            for name, after, limits in query.lanes:
                after = max(after, self._acked(query.marks, name))
                numbers = (after, max(1, limits.max_messages), limits.max_bytes)
                head += [name[:1].encode(), *(b"%d" % number for number in numbers)]
        return READ.call(self._stamp(), b"%d" % _ms(now), *head)

    def _answer_of(self, query: Look | Read | FindId, reply: Any) -> QueryResult:
        self._name_foreign(reply)
        fault = refusal_of(reply)
        if fault is not None:
            return fault
        if isinstance(query, FindId):
            return named_of(reply)
        if reply[0] == b"superseded":
            return Superseded(f"another connection holds {query.device_id!r}")
        if reply[0] == b"term":
            return MailboxError("presence begins another term")
        try:
            if isinstance(query, Look):
                return box_of(reply, query.marks)
            return pages_of(reply, query.marks, query.lanes)
        except (ValueError, TypeError) as error:
            # Another program wrote to the box. Other boxes are unaffected.
            return MailboxError(f"the box of {query.device_id!r} cannot be read: {error}")

    def _acked(self, marks: Marks, name: LaneName) -> int:
        """The number up to which a lane was acknowledged, which may not be stored yet."""
        return max((getattr(mark.acked, name) for mark in marks if mark.acked and mark.epoch == self.epoch), default=0)

    # -- storing

    def _stamp(self) -> bytes:
        """The mailbox and epoch that a script's arguments were computed for."""
        assert self.key is not None
        return b"%b:%d" % (self.key, self.epoch)

    def _open_command(self) -> Command:
        epoch = b"" if self.key is None else b"%d" % self.epoch
        least = b"%d" % max(0, self._clock() - EPOCHS_SINCE_S)
        totals = (b"%d" % (self._ledger.messages or 0), b"%d" % (self._ledger.size_bytes or 0))
        known, new, run = self.key or b"", secrets.token_bytes(KEY_BYTES), self._storing.run or b""
        now = b"%d" % _ms(self._clock())
        return OPEN.call(known, new, b"%d" % SCHEMA, run, b"%d" % self._given, epoch, least, *totals, now)

    def _mark_commands(self, marks: dict[str, Marks]) -> Iterator[Command]:
        """One command per round, each with at most one mark per device, oldest first: a script with two marks of a
        device would have to read its box twice."""
        for at in range(max(map(len, marks.values()), default=0)):
            some = {device_id: of_device[at] for device_id, of_device in marks.items() if at < len(of_device)}
            now, run = b"%d" % _ms(self._clock()), self._storing.process or b""
            yield MARK.call(self._stamp(), now, run, *mark_arguments(some))

    async def _judge(self, group: CommitGroup) -> Judged:
        """Decide which entries are new. A retry gets the same result."""
        if self._judged is None or self._judged.group_id != group.id.encode():
            await self._load([name for name in _sources_of(group) if name not in self._sources])
            try:
                self._judged = Judged(group, self._sources, self._gateway)
            except BaseException:
                self._forget(group)
                raise
        return self._judged

    def _forget(self, group: CommitGroup) -> None:
        """The group's sources have changed and nothing was stored: judge and load them again."""
        self._judged = None
        for name in _sources_of(group):
            self._sources.pop(name, None)

    async def _load(self, names: Sequence[str]) -> None:
        """Load the stored offsets of these sources, a few at a time, as each is large."""
        for start in range(0, len(names), SOURCES_AT_ONCE):
            some = names[start : start + SOURCES_AT_ONCE]
            replies = await self._storing.exchange([[b"LRANGE", seen_key(name), b"0", b"-1"] for name in some])
            for name, reply in zip(some, replies, strict=True):
                fault = refusal_of(reply)
                if fault is not None and fault.is_foreign:
                    # Remember this source in memory only, until the gateway stops.
                    self._name_foreign([b"foreign", seen_key(name)])
                    reply = []
                elif fault is not None:
                    raise fault
                try:
                    self._sources[name] = source_of(reply)
                except ValueError as error:
                    raise RedisStoreFault(
                        f"the stored offsets of {name} cannot be read: {error}", away=False
                    ) from error
                await asyncio.sleep(0)

    # -- results

    def _note_stored(self, judged: Judged, reply: list[Any]) -> Committed:
        _, numbers, lost, collapsed, given, messages, size_bytes, pending, steps, rung, retired, _ = reply
        self._ledger.counters.retired += int(retired)
        self._judged, self._given = None, max(self._given, int(given))
        self._ledger.counters.duplicates += judged.fresh.count(False)
        self._note_results(numbers, judged.fresh.count(True))
        self._note_totals((messages, size_bytes))
        self._fan_outs.update(judged.fan_outs)
        stepped = self._note_steps(steps, lost, int(collapsed), int(pending))
        return Committed(judged.settle(numbers, rung), stepped)

    def _note_results(self, numbers: bytes, count: int) -> None:
        """:param numbers: the result of a script for ``count`` messages"""
        counters, refused, same = self._ledger.counters, numbers.count(UNDELIVERABLE), numbers.count(SAME_ID)
        counters.stored += count - numbers.count(FANNED_OUT) - numbers.count(PASSED_BY) - refused - same
        counters.duplicates += same
        counters.lose("foreign_key", refused)

    def _note_steps(self, reply: list[Any], lost: list[Any], collapsed: int, pending: int) -> list[FanOutStep]:
        counters, now = self._ledger.counters, self._clock()
        counters.collapsed += collapsed
        for name, count in zip(lost[::2], lost[1::2], strict=True):
            counters.overflow(name.decode("utf-8", "replace"), count, now)
        for step in reply:
            self._note_results(step[4], len(step[3]))
        steps = steps_of(reply, self._fan_outs)
        for id_, step in steps.items():
            if step.is_last:
                self._fan_outs.pop(id_, None)
            else:
                self._fan_outs[id_] = fan_out_of(step)
        while len(self._fan_outs) > FAN_OUTS_KNOWN:
            self._fan_outs.popitem()
        self.fan_outs = pending
        return list(steps.values())

    def _note_marked(self, replies: Sequence[list[Any]]) -> None:
        for _, removed, messages, size_bytes, superseded, _ in replies:
            self._ledger.counters.acknowledged += removed
            self._ledger.counters.superseded += superseded
            self._note_totals((messages, size_bytes))

    def _note_totals(self, totals: Sequence[bytes]) -> None:
        messages, size_bytes = (max(0, int(total)) for total in totals)
        self._ledger.set_totals(messages, size_bytes)

    def _note_promise(self, settings: list[Any]) -> None:
        self.promise, cautions = promise_of(settings)
        for caution in cautions:
            if caution not in self._cautions:
                log.warning("mailbox may lose messages", extra={"mailbox": self.name, "reason": caution})
        self._cautions = cautions

    def _name_foreign(self, reply: Any) -> None:
        for key in foreign_keys(reply):
            if len(self._foreign) >= FOREIGN_NAMED:
                self._foreign.clear()
            if key not in self._foreign:
                self._foreign.add(key)
                log.warning("unexpected key type", extra={"mailbox": self.name, "key": key_name(key)})


def _sources_of(group: CommitGroup) -> Sequence[str]:
    return list({entry.source: None for call in group.calls for entry in call.entries})


def _step() -> int:
    return min(STEP, FAN_OUT_STEP)


def _ms(at_s: float) -> int:
    return int(at_s * 1000)
