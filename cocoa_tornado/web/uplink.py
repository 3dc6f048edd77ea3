"""A device's words on their way to the broker: in order, bounded, and with backpressure to the device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..brokers.port import Broker
from ..errors import BrokerError

HELD_RECORDS = 16
HELD_WHILE_CHALLENGED = 64
HELD_BYTES = 64 * 1024


class UplinkBudget:
    """How much of connections that are gone may still wait for the broker, in the whole process."""

    def __init__(self, max_records: int = 1000, max_bytes: int = 16 * 1024 * 1024) -> None:
        self.max_records, self.max_bytes = max_records, max_bytes
        self.records = self.bytes = 0
        self._settled = asyncio.Event()
        self._settled.set()

    def take(self, size: int) -> bool:
        """Whether a record of this size may wait."""
        if self.records >= self.max_records or self.bytes + size > self.max_bytes:
            return False
        self.records += 1
        self.bytes += size
        self._settled.clear()
        return True

    def give_back(self, size: int) -> None:
        self.records -= 1
        self.bytes -= size
        if not self.records:
            self._settled.set()

    async def settled(self) -> None:
        """Return once nothing of connections that are gone waits any more."""
        await self._settled.wait()


class Uplink:
    """One connection's records. Made when the device first speaks. IOLoop thread only.

    While the broker takes records they go straight to its queue. Above the queue's bound a few are held here, so that
    a close behind them is seen; then :meth:`has_room` turns False: the connection stops reading its socket, and TCP
    tells the device. What is held when the connection ends is still published, within the budget.
    """

    __slots__ = ("_broker", "_budget", "_closed", "_held", "_held_bytes", "_on_dropped", "_publish", "_pump", "_room")

    def __init__(
        self, broker: Broker, budget: UplinkBudget, publish: Callable[[bytes], None], on_dropped: Callable[[int], None]
    ) -> None:
        self._broker, self._budget = broker, budget
        self._publish, self._on_dropped = publish, on_dropped
        self._held: list[bytes] = []  # short, and there is one per device that ever spoke
        self._held_bytes = 0
        self._pump: asyncio.Task[None] | None = None
        self._room: asyncio.Event | None = None
        self._closed = False

    def offer(self, record: bytes) -> None:
        """Publish, or hold until the broker has room. Order is kept."""
        if not self._held and self._broker.can_write():
            self._publish(record)
            return
        self._held.append(record)
        self._held_bytes += len(record)
        if self._pump is None:
            self._room = asyncio.Event()
            self._pump = asyncio.get_running_loop().create_task(self._run())

    def has_room(self, challenged: bool) -> bool:
        """Whether the connection may read on. A challenged one reads further, to find the pong behind the words."""
        most = HELD_WHILE_CHALLENGED if challenged else HELD_RECORDS
        return len(self._held) < most and (challenged or self._held_bytes < HELD_BYTES)

    async def wait_for_room(self) -> None:
        """Return when something has changed: room was made, or :meth:`wake` was called."""
        if self._room is not None:
            self._room.clear()
            await self._room.wait()

    def wake(self) -> None:
        if self._room is not None:
            self._room.set()

    def close(self) -> None:
        """The connection is gone. What is held stays in the queue for the broker, as far as the budget reaches."""
        self._closed = True
        kept = 0
        while kept < len(self._held) and self._budget.take(len(self._held[kept])):
            kept += 1
        dropped = len(self._held) - kept
        if dropped:
            del self._held[kept:]
            self._on_dropped(dropped)
        self.wake()

    async def _run(self) -> None:
        try:
            while self._held:
                await self._broker.writable()
                while self._held and self._broker.can_write():
                    self._publish(self._release())
                self.wake()
        except BrokerError:
            # The broker adapter was closed: the process is going away.
            self._on_dropped(len(self._held))
            while self._held:
                self._release()
        finally:
            self._pump = None
            self.wake()

    def _release(self) -> bytes:
        record = self._held.pop(0)
        self._held_bytes -= len(record)
        if self._closed:
            self._budget.give_back(len(record))
        return record
