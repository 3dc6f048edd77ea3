"""The embedded mailbox: boxes in this process, lost when it ends. For development, and for fleets whose messages need
to survive a device's absence but not a restart.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from ..errors import MailboxClosed
from ..rules.box import (
    FORGET_AFTER_S,
    FORGET_MISSED_AFTER_S,
    Box,
    BoxLimits,
    PageLimits,
    Position,
    StoredMessage,
)
from ..rules.cursors import KEY_BYTES
from ..rules.feed import Page
from ..rules.seen import SeenOffsets, judge
from .port import Entry, MailboxCounters, MailboxState, MailboxStatus

SWEEP_BOXES = 300

T = TypeVar("T")


class _Kept:
    """A box and its messages. ``times`` holds when each was stored, in Unix seconds."""

    __slots__ = ("box", "messages", "size_bytes", "times", "touched_s")

    def __init__(self, base: int, now: float) -> None:
        self.box = Box.new(base)
        self.messages: deque[StoredMessage] = deque()
        self.times: deque[float] = deque()
        self.size_bytes = 0
        self.touched_s = now


class MemoryStore:
    """Boxes in memory. Every method completes before it returns, and never fails.

    :param clock: Unix seconds
    """

    def __init__(self, limits: BoxLimits, clock: Callable[[], float]) -> None:
        self._limits, self._clock = limits, clock
        self._kept: dict[str, _Kept] = {}
        self._seen: dict[str, SeenOffsets] = {}
        self._given = 0  # messages ever stored: no box has assigned a higher number
        self._messages = self._size_bytes = 0
        self._sweeping: Iterator[str] = iter(())
        self.counters = MailboxCounters()

    @property
    def totals(self) -> tuple[int, int]:
        """The number of messages, and the total size of their payloads in bytes."""
        return self._messages, self._size_bytes

    def append(self, entries: Sequence[Entry]) -> list[int | None]:
        fresh = judge([entries], self._take)
        self.counters.duplicates += fresh.count(False)
        return [self._store(entry) if new else None for entry, new in zip(entries, fresh, strict=True)]

    def look(self, device_id: str) -> Box:
        kept = self._kept.get(device_id)
        return Box.new(self._given) if kept is None else kept.box

    def read(self, device_id: str, after: int, limits: PageLimits) -> Page:
        kept = self._kept.get(device_id)
        if kept is None:
            return Page((), self._given, self._given, self._given)
        self._expire(kept)
        messages: list[StoredMessage] = []
        size = 0
        for message in islice(kept.messages, max(0, after - kept.box.gone), None):
            size += len(message.payload)
            if messages and (len(messages) == limits.max_messages or size > limits.max_bytes):
                break
            messages.append(message)
        return Page(messages, kept.box.gone, kept.box.last, kept.box.base, kept.box.acked or 0)

    def acknowledge(self, device_id: str, number: int) -> None:
        kept = self._kept.get(device_id)
        if kept is not None:
            kept.box = kept.box.acknowledge(number)
            self.counters.acknowledged += self._trim(kept)

    def written(self, device_id: str, number: int) -> None:
        kept = self._kept.get(device_id)
        if kept is not None:
            kept.box = kept.box.write(number)

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
                removed += self._expire(kept)
                patience_s = FORGET_MISSED_AFTER_S if kept.box.owes_a_gap else FORGET_AFTER_S
                if not kept.messages and now - kept.touched_s > patience_s:
                    del self._kept[device_id]
        return removed

    def _take(self, source: str, records: Sequence[tuple[int, int]]) -> list[bool]:
        return self._seen.setdefault(source, SeenOffsets()).take(records)[0]

    def _store(self, entry: Entry) -> int:
        kept = self._kept.get(entry.device_id)
        if kept is None:
            kept = self._kept[entry.device_id] = _Kept(self._given, self._clock())
        kept.box = kept.box.append()
        kept.messages.append(StoredMessage(kept.box.last, entry.payload, entry.timestamp_ms))
        kept.times.append(self._clock())
        kept.touched_s = self._clock()
        size = len(entry.payload)
        kept.size_bytes += size
        self._given += 1
        self._messages += 1
        self._size_bytes += size
        self.counters.stored += 1
        limits = self._limits
        while len(kept.messages) > limits.max_messages or (
            kept.size_bytes > limits.max_bytes and len(kept.messages) > 1
        ):
            self._lose(kept, kept.box.gone + 1, "overflow")
        return kept.box.last

    def _expire(self, kept: _Kept) -> int:
        oldest_s = self._clock() - self._limits.ttl_s
        expired = 0
        for stored_s in kept.times:
            if stored_s > oldest_s:
                break
            expired += 1
        return self._lose(kept, kept.box.gone + expired, "expired") if expired else 0

    def _lose(self, kept: _Kept, up_to: int, reason: str) -> int:
        kept.box = kept.box.lose(up_to)
        lost = self._trim(kept)
        self.counters.lose(reason, lost)
        return lost

    def _trim(self, kept: _Kept) -> int:
        """Delete the messages that are no longer in the box; return their number."""
        removed = 0
        while kept.messages and kept.messages[0].number <= kept.box.gone:
            size = len(kept.messages.popleft().payload)
            kept.times.popleft()
            kept.size_bytes -= size
            self._size_bytes -= size
            removed += 1
        self._messages -= removed
        return removed


class MemoryMailbox:
    """The :class:`~cocoa_tornado.mailboxes.port.Mailbox` that needs no service. READY from :meth:`start` on.

    It has no driver: a store that completes immediately and cannot fail needs no queue, and a queue would cost more per
    message than storing it.
    """

    def __init__(self, limits: BoxLimits, clock: Callable[[], float] = time.time) -> None:
        self._store = MemoryStore(limits, clock)
        self._key = secrets.token_bytes(KEY_BYTES)
        self._state = MailboxState.OPENING

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
            return MailboxStatus(self._state, detail, *self._store.totals)
        return MailboxStatus(self._state, self._state.value)

    def append(self, entries: Sequence[Entry]) -> asyncio.Future[list[int | None]]:
        if self._state is MailboxState.CLOSED:
            raise MailboxClosed("the mailbox is closed")
        return _done(self._store.append(entries))

    def look(self, device_id: str) -> asyncio.Future[Box]:
        return _done(self._store.look(device_id))

    def read(self, device_id: str, after: int, limits: PageLimits) -> asyncio.Future[Page]:
        return _done(self._store.read(device_id, after, limits))

    def acknowledge(self, device_id: str, position: Position) -> None:
        self._store.acknowledge(device_id, position.number)

    def written(self, device_id: str, position: Position) -> None:
        self._store.written(device_id, position.number)

    async def sweep(self) -> int:
        return self._store.sweep()

    async def close(self, timeout_s: float) -> None:
        self._state = MailboxState.CLOSED


def _done(result: T) -> asyncio.Future[T]:
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_result(result)
    return future
