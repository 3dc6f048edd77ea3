"""The mailbox in Redis, 6.2 or newer: one stream for each device. For fleets that several gateways share, or that have
a Redis anyway.

Two connections: one stores, group after group; the other answers what is asked. What they carry is in
``redis_scripts.py``. Any number of gateways may use one Redis: each script makes sure that what it was made from is
still true, and is made anew where it is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from ..errors import MailboxClosed, MailboxError
from ..rules.addresses import without_user_info
from ..rules.backoff import Backoff
from ..rules.box import (
    FORGET_AFTER_S,
    FORGET_MISSED_AFTER_S,
    Box,
    BoxLimits,
    Mark,
    Marks,
    PageLimits,
    Place,
    marked,
)
from ..rules.cursors import KEY_BYTES
from ..rules.feed import Page
from .port import Entry, MailboxCounters, MailboxState, MailboxStatus
from .redis_group import UNDELIVERABLE, Call, Group, Source, device_key, seen_key, source_of
from .redis_link import Link, RedisFault
from .redis_replies import box_of, foreign_keys, key_name, mark_arguments, page_of, promise_of, refusal_of
from .redis_scripts import MARK, OPEN, READ, SCHEMA, SWEEP, Command

GROUP_ENTRIES = 2_000
GROUP_BYTES = 4 * 1024 * 1024
MARKS_AFTER_S = 0.5
MARKS_AT_ONCE = 1_000
QUESTIONS_AT_ONCE = 50
SOURCES_AT_ONCE = 8
SWEEP_BOXES, SWEEP_MESSAGES = 200, 500
FOREIGN_NAMED = 1_000
STORE_PATIENCE_S, READ_PATIENCE_S = 8.0, 4.0
RETRY_BASE_S, RETRY_CAP_S = 0.2, 5.0
CLOSING_RETRY_S = 0.1
ERAS_SINCE_S = 1_767_225_600  # 2026: eras are numbered by the second in which they begin, or above

log = logging.getLogger("cocoa.mailbox")


class RedisMailbox:
    """The :class:`~cocoa_tornado.mailboxes.port.Mailbox` in Redis. IOLoop thread only.

    :param url: ``redis://[user:password@]host:port/db``, or ``rediss://``
    :param clock: Unix seconds
    """

    def __init__(self, url: str, limits: BoxLimits, clock: Callable[[], float] = time.time) -> None:
        self._shown = without_user_info(url)
        self._limits, self._clock = limits, clock
        self._storing, self._asking = Link(url, STORE_PATIENCE_S), Link(url, READ_PATIENCE_S)
        self._gateway = secrets.token_hex(8).encode()
        self._key: bytes | None = None
        self._counters = MailboxCounters()
        self._messages = self._size_bytes = 0
        self._era = self._given = 0

        self._state, self._detail, self._promise = MailboxState.OPENING, "not started", ""
        self._is_away, self._is_closing, self._in_doubt = True, False, False
        self._foreign: set[bytes] = set()  # keys of a wrong type that the log has named
        self._told: set[str] = set()  # lines that are not to be logged again before it was READY
        self._cautions: tuple[str, ...] = ()
        self._backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)

        self._calls: deque[Call] = deque()
        self._group: Group | None = None
        self._sources: dict[str, Source] = {}
        self._marks: dict[str, Marks] = {}
        self._marks_timer: asyncio.TimerHandle | None = None
        self._marks_due = False
        self._questions: deque[tuple[Command, asyncio.Future[list[Any]]]] = deque()
        self._wake, self._drained = asyncio.Event(), asyncio.Event()
        self._closes = asyncio.Event()
        self._closed: asyncio.Task[None] | None = None
        self._is_over = False
        self._runner: asyncio.Task[None] | None = None
        self._answerer: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<RedisMailbox {self._shown} {self._state.value}>"

    @property
    def key(self) -> bytes | None:
        return self._key

    @property
    def era(self) -> int:
        return self._era

    @property
    def counters(self) -> MailboxCounters:
        return self._counters

    async def start(self) -> None:
        """Returns at once, and opens it in the background."""
        self._detail = "connecting to Redis"
        self._runner = asyncio.get_running_loop().create_task(self._run())

    def status(self) -> MailboxStatus:
        if self._state is not MailboxState.READY:
            return MailboxStatus(self._state, self._detail)
        return MailboxStatus(self._state, self._detail, self._messages, self._size_bytes)

    # -- what the gateway asks for

    def append(self, entries: Sequence[Entry]) -> asyncio.Future[list[int | None]]:
        if self._is_closing:
            raise MailboxClosed("the mailbox is closed")
        future: asyncio.Future[list[int | None]] = asyncio.get_running_loop().create_future()
        if entries:
            self._calls.append(Call(entries, future))
            self._wake.set()
        else:
            future.set_result([])
        return future

    def look(self, device_id: str) -> asyncio.Future[Box]:
        return asyncio.ensure_future(self._look(device_id))

    def read(self, device_id: str, after: int, limits: PageLimits) -> asyncio.Future[Page]:
        return asyncio.ensure_future(self._read(device_id, after, limits))

    def acknowledge(self, device_id: str, place: Place) -> None:
        self._mark(device_id, Mark(acked=place.number, era=place.era))

    def written(self, device_id: str, place: Place) -> None:
        self._mark(device_id, Mark(written=place.number, era=place.era))

    async def sweep(self) -> int:
        now = self._clock()
        times = (now, now - self._limits.ttl_s, now - FORGET_AFTER_S, now - FORGET_MISSED_AFTER_S)
        steps = (SWEEP_BOXES, SWEEP_MESSAGES)
        reply = await self._ask(SWEEP, *(b"%d" % _ms(at) for at in times), *(b"%d" % step for step in steps))
        removed = int(reply[1])
        self._lost("expired", removed)
        self._note_totals(reply[2:4])
        return removed

    async def close(self, timeout_s: float) -> None:
        if self._closed is None:
            self._closed = asyncio.ensure_future(self._close(timeout_s))
        await asyncio.shield(self._closed)

    async def _close(self, timeout_s: float) -> None:
        self._is_closing = True
        self._marks_due = True
        self._wake.set()
        self._closes.set()
        if timeout_s > 0 and self._runner is not None and self._has_work():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._drained.wait()
        await self._end()

    async def _end(self) -> None:
        self._is_over = True
        tasks = [task for task in (self._runner, self._answerer) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._marks_timer is not None:
            self._marks_timer.cancel()
        self._state, self._detail, self._is_away = MailboxState.CLOSED, "closed", True
        calls = [*(self._group.calls if self._group is not None else ()), *self._calls]
        for waiting in [*(call.future for call in calls), *(future for _, future in self._questions)]:
            if not waiting.done():
                waiting.set_exception(MailboxClosed("the mailbox is closed"))
                waiting.exception()  # whoever has looked away is no reason for a complaint at exit
        self._calls.clear()
        self._questions.clear()
        await self._storing.close()
        await self._asking.close()

    # -- reading

    async def _look(self, device_id: str) -> Box:
        set_before = self._marks.get(device_id, ())
        now_ms = b"%d" % _ms(self._clock())
        reply = await self._ask(READ, device_key(device_id), b"0", b"0", b"0", b"0", b"0", now_ms)
        # Those that were stored meanwhile may be in the reply, or may not.
        return box_of(reply, (*set_before, *self._marks.get(device_id, ())))

    async def _read(self, device_id: str, after: int, limits: PageLimits) -> Page:
        set_before = self._marks.get(device_id, ())
        acked = max((mark.acked or 0 for mark in set_before if mark.era == self._era), default=0)
        now = self._clock()
        expired_ms = _ms(now - self._limits.ttl_s)
        sizes = (after, max(1, limits.max_messages), limits.max_bytes, expired_ms, acked, _ms(now))
        reply = await self._ask(READ, device_key(device_id), *(b"%d" % size for size in sizes))
        return page_of(reply, set_before, max(after, acked))

    async def _ask(self, script: Any, *arguments: bytes) -> list[Any]:
        """One of the scripts that read or sweep; its reply comes together with those of others."""
        if self._is_closing:
            raise MailboxClosed("the mailbox is closed")
        if self._is_away or self._key is None:
            raise MailboxError(self._detail)
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._questions.append((script.call(self._stamp(), *arguments), future))
        if self._answerer is None or self._answerer.done():
            self._answerer = asyncio.get_running_loop().create_task(self._answer())
        return await future

    async def _answer(self) -> None:
        while self._questions:
            asked = [self._questions.popleft() for _ in range(min(QUESTIONS_AT_ONCE, len(self._questions)))]
            try:
                replies = await self._asking.exchange([command for command, _ in asked])
            except BaseException as error:
                self._questions.extendleft(reversed(asked))
                if not isinstance(error, RedisFault):
                    raise
                self._down(error)
                self._doubt()
                return self._fail_questions(error)
            for (_, future), reply in zip(asked, replies, strict=True):
                fault = refusal_of(reply)
                self._name_foreign(reply)
                if fault is not None and fault.is_late:
                    self._doubt()
                if future.done():
                    continue
                if fault is not None:
                    future.set_exception(MailboxError(str(fault)))
                else:
                    future.set_result(reply)

    def _fail_questions(self, error: RedisFault) -> None:
        while self._questions:
            _, future = self._questions.popleft()
            if not future.done():
                future.set_exception(MailboxError(str(error)))

    # -- storing

    def _mark(self, device_id: str, mark: Mark) -> None:
        self._marks[device_id] = marked(self._marks.get(device_id, ()), mark)
        if self._marks_timer is None and not self._is_closing:
            self._marks_timer = asyncio.get_running_loop().call_later(MARKS_AFTER_S, self._on_marks_due)

    def _on_marks_due(self) -> None:
        self._marks_timer, self._marks_due = None, True
        self._wake.set()

    def _doubt(self) -> None:
        """Have the other connection find out what there is."""
        self._in_doubt = True
        self._wake.set()

    async def _run(self) -> None:
        # A cancellation alone does not end it reliably: a client library may turn it into an error of its own.
        while not self._is_over:
            try:
                await self._open()
                await self._store_for_ever()
            except RedisFault as fault:
                self._down(fault)
                if not fault.away:
                    await self._make_room()
            except Exception as error:
                # Ours, not that of Redis: it is told once, and what is waiting must not wait for a restart.
                if "fault" not in self._told:
                    self._told.add("fault")
                    log.exception("mailbox fault")
                self._down(RedisFault(f"{type(error).__name__}: {error}"))
            await self._rest(self._backoff.next_s())

    async def _rest(self, seconds: float) -> None:
        """Before another try; a close does not wait for it, but then there is a pause of its own between the tries."""
        if self._closes.is_set():
            await asyncio.sleep(min(seconds, CLOSING_RETRY_S))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closes.wait()

    async def _make_room(self) -> None:
        """Where Redis takes nothing more, it may still take the marks that have messages deleted."""
        marks = self._next_marks()
        if marks and self._key is not None:
            with contextlib.suppress(RedisFault):
                (reply,) = await self._storing.exchange([MARK.call(self._stamp(), *mark_arguments(marks))])
                if refusal_of(reply) is None:
                    self._marked(marks, reply)

    def _stamp(self) -> bytes:
        """What the scripts are made for: this mailbox, in this era."""
        assert self._key is not None
        return b"%b:%d" % (self._key, self._era)

    def _next_marks(self) -> dict[str, Mark]:
        """The oldest of each device: a script that had two of one device would have to look at its box twice."""
        return {device_id: marks[0] for device_id, marks in islice(self._marks.items(), MARKS_AT_ONCE)}

    async def _open(self) -> None:
        self._in_doubt = False
        await self._storing.begin_anew()
        await self._asking.begin_anew()
        questions: list[Command] = [
            [b"CONFIG", b"GET", name] for name in (b"maxmemory-policy", b"appendonly", b"appendfsync")
        ]
        settings = await self._storing.exchange(questions)
        known, schema, given = self._key or b"", b"%d" % SCHEMA, b"%d" % self._given
        era, least = b"" if self._key is None else b"%d" % self._era, b"%d" % max(0, self._clock() - ERAS_SINCE_S)
        new_key, run = secrets.token_bytes(KEY_BYTES), self._storing.run or b""
        totals = (b"%d" % self._messages, b"%d" % self._size_bytes)
        open_it = OPEN.call(known, new_key, schema, run, given, era, least, *totals)
        (opened,) = await self._storing.exchange([open_it])
        self._name_foreign(opened)
        fault = refusal_of(opened)
        if fault is not None:
            raise fault
        if opened[0] == b"version":
            version = (opened[1] or b"?").decode(errors="replace")
            raise RedisFault(f"the mailbox in Redis is of version {version}, and this gateway knows {SCHEMA}")
        _, key, _, given, era, messages, size_bytes, was, _ = opened
        if key is None or len(key) != KEY_BYTES:
            raise RedisFault("the mailbox in Redis has no key of cursors, or a wrong one")
        await self._asking.exchange([[b"PING"]])
        before, self._key = self._messages, key
        self._given, self._era = int(given), int(era)
        self._note_totals((messages, size_bytes))
        if was:
            self._note_loss(was, max(0, before - self._messages))
        self._is_away = False
        self._promise, self._cautions = promise_of(settings)

    def _note_loss(self, was: bytes, lost: int) -> None:
        """Redis was emptied and the mailbox made anew, or it has another mailbox, which is used from now on."""
        extra: dict[str, object] = {"mailbox": self._shown, "era": self._era, "lost": lost}
        if was == b"replaced":
            # What devices have told is of numbers that the other one has given to other messages.
            self._marks.clear()
            log.error("mailbox was replaced", extra=extra)
        else:
            log.error("mailbox was emptied", extra=extra)
        self._lost("emptied", lost)

    def _name_foreign(self, reply: Any) -> None:
        for key in foreign_keys(reply):
            if len(self._foreign) >= FOREIGN_NAMED:
                self._foreign.clear()
            if key not in self._foreign:
                self._foreign.add(key)
                log.warning("foreign key in mailbox", extra={"mailbox": self._shown, "key": key_name(key)})

    async def _store_for_ever(self) -> None:
        while not self._is_over:
            if not self._has_work():
                self._ready()  # where there is work, it says first whether it can be done
                await self._work()
            if self._in_doubt:
                await self._open()
            if self._group is None and self._calls:
                self._group = self._next_group()
            await self._store()

    def _has_work(self) -> bool:
        return bool(self._calls or self._group is not None or (self._marks and self._marks_due))

    async def _work(self) -> None:
        """Wait for something to do."""
        while not self._has_work() and not self._in_doubt:
            if self._is_closing:
                self._drained.set()
            self._marks_due = False
            self._wake.clear()
            await self._wake.wait()

    def _next_group(self) -> Group:
        calls = [self._calls.popleft()]
        count, size = len(calls[0].entries), _size(calls[0])
        while self._calls:
            call = self._calls[0]
            count, size = count + len(call.entries), size + _size(call)
            if count > GROUP_ENTRIES or size > GROUP_BYTES:
                break
            calls.append(self._calls.popleft())
        return Group(calls)

    async def _store(self) -> None:
        """Marks and a group, as far as there are any. The group stays where it is until it is stored."""
        assert self._key is not None
        commands = []
        marks = self._next_marks()
        if marks:
            commands.append(MARK.call(self._stamp(), *mark_arguments(marks)))
        group = self._group
        if group is not None:
            if not group.is_judged:
                await self._load([name for name in group.sources() if name not in self._sources])
                self._judge(group)
            commands.append(group.command(self._stamp(), _ms(self._clock())))
        if not commands:
            return
        replies = await self._storing.exchange(commands)
        for reply in replies:
            self._name_foreign(reply)
        faults = [fault for fault in map(refusal_of, replies) if fault is not None]
        if marks and refusal_of(replies[0]) is None:
            self._marked(marks, replies[0])
        if group is not None and refusal_of(replies[-1]) is None:
            self._stored(group, replies[-1])
        if faults and all(fault.is_late for fault in faults):
            self._in_doubt = True  # it is looked at anew before the next try
            return
        if faults:
            raise faults[-1]
        self._ready()

    def _judge(self, group: Group) -> None:
        try:
            group.judge(self._sources, self._gateway, self._limits)
        except BaseException:
            # What is known of the sources has changed, and nothing was stored.
            for name in group.sources():
                self._sources.pop(name, None)
            group.doubt()
            raise

    async def _load(self, names: list[str]) -> None:
        """What is written down of these sources; a few at a time, for there is a lot to read."""
        for start in range(0, len(names), SOURCES_AT_ONCE):
            some = names[start : start + SOURCES_AT_ONCE]
            replies = await self._storing.exchange([[b"LRANGE", seen_key(name), b"0", b"-1"] for name in some])
            for name, reply in zip(some, replies, strict=True):
                fault = refusal_of(reply)
                if fault is not None and fault.is_foreign:
                    # It is remembered here alone, and as long as the gateway runs.
                    self._name_foreign([b"foreign", seen_key(name)])
                    reply = []
                elif fault is not None:
                    raise fault
                try:
                    self._sources[name] = source_of(reply)
                except ValueError as error:
                    raise RedisFault(f"what was stored of {name} cannot be read: {error}", away=False) from error
                await asyncio.sleep(0)

    def _stored(self, group: Group, reply: list[Any]) -> None:
        if reply[0] == b"stale":
            # Another gateway has stored of the same sources, or Redis has lost its latest.
            for name in group.sources():
                del self._sources[name]
            group.doubt()
            return
        _, numbers, lost, given, messages, size_bytes, _ = reply
        self._group, self._given = None, max(self._given, int(given))
        refused = numbers.split().count(UNDELIVERABLE)
        self._counters.stored += group.fresh.count(True) - refused
        self._lost("foreign_key", refused)
        self._counters.duplicates += group.fresh.count(False)
        self._lost("overflow", int(lost))
        self._note_totals((messages, size_bytes))
        group.settle(numbers, self._sources)

    def _marked(self, marks: dict[str, Mark], reply: list[Any]) -> None:
        for device_id, mark in marks.items():
            if device_id not in self._marks:
                continue  # it was another mailbox
            oldest, *others = self._marks[device_id]
            if oldest == mark and not others:
                del self._marks[device_id]
            elif oldest == mark:
                self._marks[device_id] = tuple(others)
        if not self._marks and self._marks_timer is not None:
            self._marks_timer.cancel()
            self._marks_timer = None
        _, removed, messages, size_bytes, _ = reply
        self._counters.acknowledged += removed
        self._note_totals((messages, size_bytes))

    def _lost(self, reason: str, count: int) -> None:
        if count:
            self._counters.lost[reason] = self._counters.lost.get(reason, 0) + count

    def _note_totals(self, totals: Sequence[bytes]) -> None:
        self._messages, self._size_bytes = (max(0, int(total)) for total in totals)

    # -- the state

    def _ready(self) -> None:
        self._backoff.reset()
        if self._state is not MailboxState.OPENING or self._in_doubt:
            return
        self._state, self._detail = MailboxState.READY, f"Redis at {self._shown}: {self._promise}"
        log.info("mailbox ready", extra={"mailbox": self._shown, "promise": self._promise})
        for caution in self._cautions:
            if caution not in self._told:
                log.warning("mailbox may lose messages", extra={"mailbox": self._shown, "reason": caution})
        self._told = set(self._cautions)

    def _down(self, fault: RedisFault) -> None:
        if self._state is MailboxState.CLOSED:
            return
        was_ready = self._state is MailboxState.READY
        self._state, self._detail = MailboxState.OPENING, str(fault)
        self._is_away = fault.away
        self._counters.failures += was_ready
        if "unavailable" not in self._told:
            self._told.add("unavailable")
            log.warning("mailbox unavailable", extra={"mailbox": self._shown, "cause": self._detail})


def _ms(at_s: float) -> int:
    return int(at_s * 1000)


def _size(call: Call) -> int:
    return sum(len(entry.payload) for entry in call.entries)
