"""Between servers on several machines, through one inbox for each of them in Redis 6.2 or later: a bounded stream.

It uses two connections: one sends, the other one waits for messages. Presence, which uses the same Redis, begins and
ends the addresses: it calls :meth:`RedisRelay.join` with an epoch that exists in the store.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from ..redis_store.connection import RedisConnection
from ..redis_store.faults import RedisFault
from ..redis_store.scripts import Command
from ..rules.rate import LineBudget, RateLimit
from . import wire
from .handlers import Handlers
from .messages import Forward, ForwardedMessage, RelayMessage, size_of
from .port import Fate, M, RelayCounters, RelayLimits, RelayState, RelayStatus
from .redis_inbox import InboxPosition
from .redis_lua import (
    SCRIPTS,
    Entry,
    Inbox,
    Posted,
    ToHolders,
    done_command,
    entries_of,
    fates_of,
    inbox_of,
    read_command,
    send_command,
)

SEND_MOST: Final = 200
SEND_BYTES: Final = 1024 * 1024
"""Messages in one script, and their size: Redis does nothing else while it runs. A single message may be larger."""
READ_MOST: Final = 100
BLOCK_MS: Final = 1000
"""How long Redis waits for a message: each answer shows that the inbox is being read."""
HAND_OVER_MOST: Final = 500
"""After this many messages, other work of the loop gets its turn."""
RETRY_S: Final = (0.1, 2.0)
ANOTHER_PROCESS_PATIENCE_S: Final = 5.0
"""After a restart of Redis, presence joins again. If it does not in this time, Redis hides its run id."""
_COUNTED_REFUSALS: Final = frozenset({Fate.OVERFLOW, Fate.LOST, Fate.CLOSED})
LOSS_LOG: Final = RateLimit(per_s=0.1, burst=5)

T = TypeVar("T")

log = logging.getLogger("cocoa.relay")


class _Outgoing(NamedTuple):
    """:ivar settle: is given the fates"""

    kind: str
    posted: Posted | ToHolders
    settle: Callable[[Sequence[Fate]], None]


class RedisRelay:
    """A :class:`~cocoa_tornado.relay.port.Relay` through Redis.

    A message that cannot be sent because Redis is unavailable waits, and is sent once. If this server joins again
    meanwhile, a message that may have been sent already is ``LOST``.

    :param url: as for :class:`RedisConnection`
    :param clock: monotonic seconds
    """

    def __init__(self, url: str, clock: Callable[[], float], limits: RelayLimits | None = None) -> None:
        self._limits = RelayLimits() if limits is None else limits
        self._clock = clock
        self._links = {name: RedisConnection(url, SCRIPTS) for name in ("sending", "reading")}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._running: set[asyncio.Task[None]] = set()  # these, and earlier ones that have not ended
        self._faults: dict[str, str] = {}
        self._on_loss: Callable[[], None] = _nothing
        self._outgoing: deque[_Outgoing] = deque()
        self._waiting: dict[str, tuple[int, int]] = {}  # messages and bytes in ``_outgoing``, by server
        self._refused: set[str] = set()  # servers that do not know yet that something did not fit
        self._calls = 0
        self._counters = RelayCounters()
        self._handlers = Handlers(self._counters)
        self._loss_lines = LineBudget(LOSS_LOG)
        self._last_read_at = -math.inf
        self._is_closed = False
        self._server = ""

    def __repr__(self) -> str:
        return f"<RedisRelay {self._server or 'not joined'}, {len(self._outgoing)} messages wait>"

    @property
    def server(self) -> str:
        return self._server

    @property
    def counters(self) -> RelayCounters:
        return self._counters

    @property
    def last_read_at(self) -> float:
        return self._last_read_at

    def handle(self, kind: type[M], handler: Callable[[str, M], None]) -> None:
        self._handlers.register(kind, handler)

    def watch_losses(self, on_loss: Callable[[], None]) -> None:
        self._on_loss = on_loss

    def join(self, server: str) -> None:
        had_inbox = bool(self._server)
        self._stop()
        self._give_up_on_holders()
        self._is_closed, self._server, self._last_read_at = False, server, self._clock()
        self._begin("reading", self._read(server))
        self._begin("sending", self._send_waiting(server, is_new=True))
        if had_inbox:
            asyncio.get_running_loop().call_soon(self._on_loss)

    def send(self, server: str, message: RelayMessage) -> asyncio.Future[Fate]:
        sent: asyncio.Future[Fate] = asyncio.get_running_loop().create_future()
        refusal = self._refusal(server, message.count, message.size_bytes)
        data = b"" if refusal else wire.encode(message)
        posted = Posted(server, message.count, message.size_bytes, data)
        outgoing = _Outgoing(message.kind, posted, lambda fates: _settle(sent, fates[0]))
        if refusal:
            if refusal is Fate.OVERFLOW:
                self._refused.add(server)
            self._settle(outgoing, [refusal])
            return sent
        self._enqueue(outgoing)
        return sent

    @property
    def finds_holders(self) -> bool:
        return True

    def send_to_holders(self, stamp: str, messages: Sequence[ForwardedMessage]) -> asyncio.Future[Sequence[Fate]]:
        sent: asyncio.Future[Sequence[Fate]] = asyncio.get_running_loop().create_future()
        parts = [*_divided(messages)]
        found: dict[int, Sequence[Fate]] = {}

        def settle(part: int, fates: Sequence[Fate]) -> None:
            found[part] = fates
            if len(found) == len(parts):
                _settle(sent, [fate for each in range(len(parts)) for fate in found[each]])

        for part, some in enumerate(parts):
            sizes = sum(map(size_of, some))
            encoded = wire.encode_each(some) if self._server else ()
            posted = ToHolders(stamp, [str(each.address) for each in some], encoded, sizes)
            outgoing = _Outgoing(Forward.kind, posted, partial(settle, part))
            if self._server:
                self._enqueue(outgoing)
            else:
                self._settle_all([outgoing], Fate.CLOSED)
        return sent

    def _enqueue(self, outgoing: _Outgoing) -> None:
        self._count_waiting(outgoing.posted, 1)
        self._outgoing.append(outgoing)
        if self._tasks["sending"].done():
            self._begin("sending", self._send_waiting(self._server))

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[name] = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(partial(self._on_end, name))

    def _on_end(self, name: str, task: asyncio.Task[None]) -> None:
        """Nothing but an internal error ends a task that goes on: :meth:`status` has it until this end joins again."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("relay failed", exc_info=error)
            if self._tasks.get(name) is task:
                self._faults[name] = f"{type(error).__name__}: {error}"
                if name == "sending" and self._outgoing:  # the messages that were being sent are lost
                    self._begin(name, self._send_waiting(self._server))

    def status(self) -> RelayStatus:
        if self._is_closed:
            return RelayStatus(RelayState.CLOSED, "closed")
        if not self._server:
            return RelayStatus(RelayState.CONNECTING, "not joined")
        if self._faults:
            return RelayStatus(RelayState.CONNECTING, next(iter(self._faults.values())))
        return RelayStatus(RelayState.READY, "in Redis")

    async def close(self, timeout_s: float) -> None:
        if "sending" in self._tasks and not self._is_closed:
            await asyncio.wait([self._tasks["sending"]], timeout=timeout_s)
        self._is_closed, self._server = True, ""
        ending = self._stop()
        while self._outgoing:
            self._settle_all([self._outgoing.popleft()], Fate.CLOSED)
        self._waiting.clear()
        await _end(ending, timeout_s)
        # Not before: a task that still runs would open its connection again.
        await _end([asyncio.ensure_future(link.close()) for link in self._links.values()], timeout_s)

    def _stop(self) -> list[asyncio.Task[None]]:
        """Stop reading and sending. Messages that are being sent are lost; waiting ones are kept.

        Returns the tasks that have not ended. One that was cancelled earlier may be among them: ``asyncio.wait_for``,
        which redis-py uses, loses a cancellation in Python 3.11 if it comes together with the result.
        """
        for task in self._running:
            task.cancel()
        self._tasks.clear()
        self._faults.clear()
        return [*self._running]

    # -- sending

    def _give_up_on_holders(self) -> None:
        """Messages sent before them may be lost: their sender keeps their order."""
        waiting, self._outgoing = self._outgoing, deque()
        for each in waiting:
            if isinstance(each.posted, ToHolders):
                self._count_waiting(each.posted, -1)
                self._settle_all([each], Fate.CLOSED)
            else:
                self._outgoing.append(each)

    def _refusal(self, server: str, count: int, size_bytes: int) -> Fate | None:
        """Cases, in order: this end has not joined; as much waits as the inbox may hold; it can be sent."""
        if not self._server:
            return Fate.CLOSED
        messages, size = self._waiting.get(server, (0, 0))
        is_too_much = messages + count > self._limits.max_messages
        return Fate.OVERFLOW if is_too_much or size + size_bytes > self._limits.max_bytes else None

    def _count_waiting(self, posted: Posted | ToHolders, sign: int) -> None:
        messages, size = self._waiting.get(posted.server, (0, 0))
        left = (messages + sign * posted.messages, size + sign * posted.size_bytes)
        if left == (0, 0):
            self._waiting.pop(posted.server, None)
        else:
            self._waiting[posted.server] = left

    async def _send_waiting(self, epoch: str, is_new: bool = False) -> None:
        """Send what waits, in scripts of several messages: while one is under way, the next one fills up."""
        if is_new:
            await self._links["sending"].begin_anew()
        while self._outgoing:
            batch = self._next_batch()
            self._calls += 1
            # An entry that never fits makes the script record, for its server, that a message was lost.
            refused = [Posted(server, self._limits.max_messages + 1, 0, b"") for server in self._refused]
            posted = [*(each.posted for each in batch), *refused]
            self._refused.clear()
            try:
                command = send_command(epoch, self._calls, self._limits, posted, wire.FORWARD_HEAD)
                fates = await self._ask("sending", [command], _fates)
            except BaseException:
                self._settle_all(batch, Fate.LOST)
                raise
            if fates is None:  # this epoch is over: presence notices for itself, and joins again
                self._settle_all(batch, Fate.CLOSED)
                continue
            for each in batch:
                self._settle(each, fates[: each.posted.fates])
                del fates[: each.posted.fates]

    def _next_batch(self) -> list[_Outgoing]:
        batch: list[_Outgoing] = []
        size = count = 0
        while self._outgoing:
            size += self._outgoing[0].posted.size_bytes
            count += self._outgoing[0].posted.fates
            if batch and (size > SEND_BYTES or count > SEND_MOST):
                break
            batch.append(self._outgoing.popleft())
            self._count_waiting(batch[-1].posted, -1)
        return batch

    def _settle_all(self, batch: Sequence[_Outgoing], fate: Fate) -> None:
        for each in batch:
            self._settle(each, [fate] * each.posted.fates)

    def _settle(self, outgoing: _Outgoing, fates: Sequence[Fate]) -> None:
        posted, counters = outgoing.posted, self._counters
        for fate in set(fates):
            accepted = fate is Fate.ACCEPTED
            if not accepted and fate not in _COUNTED_REFUSALS and isinstance(posted, ToHolders):
                continue  # nothing was to be sent
            counted, label = (counters.accepted, outgoing.kind) if accepted else (counters.refused, fate.value)
            messages = fates.count(fate) if isinstance(posted, ToHolders) else posted.messages
            counted[label] = counted.get(label, 0) + messages
        outgoing.settle(fates)

    # -- reading

    async def _read(self, epoch: str) -> None:
        await self._links["reading"].begin_anew()
        position = InboxPosition()
        while True:
            # Messages that were handed over leave the inbox in the round trip that requests more. Nothing is read
            # twice: the position is that of this process, and an epoch is that of one process.
            done = done_command(epoch, position.sequence, position.totals)
            read = read_command(epoch, position.sequence, BLOCK_MS, READ_MOST)
            inbox, entries = await self._ask("reading", [done, read], _inbox_and_entries)
            self._last_read_at = self._clock()
            if inbox is None:
                # This epoch is over. Presence notices for itself with its next beat, and joins again; but it does not
                # beat while an inbox waits to be read, and the last answer may be of before an outage.
                self._last_read_at = math.inf
                return
            losses = position.check(inbox)
            position.take(entries)
            try:
                if losses:
                    self._lose(losses)
                await self._hand_over(epoch, entries)
            except Exception:  # one mistake must not end the reading
                log.exception("relay messages dropped")

    async def _hand_over(self, epoch: str, entries: Sequence[Entry]) -> None:
        count = 0
        for entry in entries:
            if self._server != epoch:
                return  # a handler has ended this address, and its inbox with it
            if count >= HAND_OVER_MOST:
                count = 0
                await asyncio.sleep(0)
            message, skipped = wire.decode(entry.data)
            self._counters.skipped += skipped
            if message is not None:
                count += message.count
                self._handlers.call(entry.sender, message)

    def _lose(self, reasons: Sequence[str]) -> None:
        self._counters.losses += 1
        suppressed = self._loss_lines.take(self._clock())
        if suppressed is not None:
            extra = {"reason": ", ".join(reasons)} | ({"suppressed": suppressed} if suppressed else {})
            log.warning("relay messages lost", extra=extra)
        self._on_loss()

    # -- Redis

    async def _ask(self, name: str, commands: Sequence[Command], read: Callable[[Sequence[Any]], T]) -> T:
        """Send commands and interpret the replies. Commands are repeated until Redis gives readable replies.

        :param read: may get the fault of a key of another type, and raises it if it does not know what to do about it
        """
        delay_s, longest_s = RETRY_S
        while True:
            try:
                replies = await self._links[name].exchange(commands)
                for reply in replies:
                    if isinstance(reply, RedisFault) and not reply.is_foreign:
                        raise reply
                answer = read(replies)
            except RedisFault as error:
                fault = error
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                fault = RedisFault(f"a reply of Redis is unreadable: {error}", away=False)
            else:
                self._recover(name)
                return answer
            self._note_fault(name, str(fault))
            await asyncio.sleep(ANOTHER_PROCESS_PATIENCE_S if fault.is_another_process else delay_s)
            delay_s = min(longest_s, 2 * delay_s)

    def _note_fault(self, name: str, fault: str) -> None:
        if not self._faults:
            log.warning("relay unavailable", extra={"reason": fault})
        self._faults[name] = fault

    def _recover(self, name: str) -> None:
        if self._faults.pop(name, None) is not None and not self._faults:
            log.info("relay available")


def _nothing() -> None:
    pass


def _fates(replies: Sequence[Any]) -> list[Fate] | None:
    """The reply to SEND."""
    (sent,) = replies
    if isinstance(sent, RedisFault):
        raise sent
    return fates_of(sent)


def _inbox_and_entries(replies: Sequence[Any]) -> tuple[Inbox | None, Sequence[Entry]]:
    """The replies to DONE and XREAD. DONE replaces an inbox of another type, but no other key."""
    done, read = replies
    if isinstance(done, RedisFault):
        raise done
    return inbox_of(done), () if isinstance(read, RedisFault) else entries_of(read)


async def _end(tasks: Collection[asyncio.Task[None]], timeout_s: float) -> None:
    """Wait for tasks, and cancel those that have not ended in time: closing a TLS connection may hang."""
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _settle(future: asyncio.Future[T], result: T) -> None:
    if not future.done():  # its caller may have cancelled it
        future.set_result(result)


def _divided(messages: Sequence[ForwardedMessage]) -> Iterator[Sequence[ForwardedMessage]]:
    """Parts for one script each."""
    start = size = 0
    for at, message in enumerate(messages):
        size += size_of(message)
        if at > start and (at - start >= SEND_MOST or size > SEND_BYTES):
            yield messages[start:at]
            start, size = at, size_of(message)
    if messages:
        yield messages[start:]
