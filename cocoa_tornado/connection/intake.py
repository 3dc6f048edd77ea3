"""Backpressure on incoming messages of all devices of the process: which sockets are read, and which have to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from ..rules.close_codes import SLOW_SENDER, CloseReason
from ..rules.intake import Intake, piece_bytes

MAX_RECORDS_OF_GONE = 1000


class Sender(Protocol):
    """A connection, as the intake knows it."""

    def end(self, reason: CloseReason, keep_queued: bool = False) -> None: ...


class IntakeGate:
    """Carries out ``rules/intake.py``, and counts what devices sent before they disconnected. IOLoop thread only.

    :param clock: monotonic seconds
    :param connections: how many share it
    """

    def __init__(self, limit: int, clock: Callable[[], float], connections: Callable[[], int]) -> None:
        self.rule = Intake[Sender](limit)
        self._clock, self._connections = clock, connections
        self._rooms: dict[Sender, asyncio.Event] = {}
        self._is_waking = False
        self._gone_records = self._gone_bytes = 0
        self._settled = asyncio.Event()
        self._settled.set()

    def __repr__(self) -> str:
        return f"<IntakeGate {self.rule!r}>"

    @property
    def piece_bytes(self) -> int:
        """How many bytes to read from a socket at a time."""
        return piece_bytes(self.rule.bound, self._connections())

    # -- the sockets

    def may_read(self, who: Sender, under_way: int, held: int) -> bool:
        return self.rule.may_read(who, under_way, held, self._clock())

    async def wait_for_room(self, who: Sender, under_way: int) -> None:
        """Return when something may have changed: there is room, or :meth:`wake` was called."""
        room = self._rooms[who] = asyncio.Event()
        self.rule.wait(who, under_way)
        try:
            await room.wait()
        finally:
            self._rooms.pop(who, None)

    def wake(self, who: Sender) -> None:
        """Have a waiting sender check again whether there is room."""
        room = self._rooms.get(who)
        if room is not None:
            room.set()

    def under_way(self, change: int) -> None:
        """Count bytes of messages that have arrived in part; negative: fewer than before."""
        self.rule.under_way += change
        if change < 0:
            self._room_made()

    def end_turn(self, who: Sender) -> None:
        self.rule.end_turn(who)
        self._room_made()

    def forget(self, who: Sender) -> None:
        self.rule.forget(who)
        self._room_made()

    def end_late_turns(self) -> None:
        """Close senders whose turn has taken too long. Call it regularly."""
        for who in self.rule.late(self._clock()):
            who.end(SLOW_SENDER)

    def _room_made(self) -> None:
        if self._rooms and not self._is_waking:
            self._is_waking = True
            asyncio.get_running_loop().call_soon(self._wake_next)

    def _wake_next(self) -> None:
        self._is_waking = False
        woken = self.rule.next_to_wake()
        for who in woken:
            self.wake(who)
        if woken:
            self._room_made()  # they may have nothing more to send, which leaves room for the next ones

    # -- complete messages

    @property
    def is_full(self) -> bool:
        return self.rule.is_full

    def hold(self, size: int) -> None:
        self.rule.held += size

    def release(self, size: int) -> None:
        self.rule.held -= size
        self._room_made()

    def keep_of_gone(self, size: int) -> bool:
        """Whether a held record of this size may wait on after its connection has ended."""
        if self._gone_records >= MAX_RECORDS_OF_GONE or self._gone_bytes + size > self.rule.bound:
            return False
        self._gone_records += 1
        self._gone_bytes += size
        self._settled.clear()
        return True

    def release_of_gone(self, size: int) -> None:
        self._gone_records -= 1
        self._gone_bytes -= size
        self.release(size)
        if not self._gone_records:
            self._settled.set()

    async def settled(self) -> None:
        """Return once no record of an ended connection waits any more."""
        await self._settled.wait()
