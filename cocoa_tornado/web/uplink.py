"""A device's words on their way to the broker: in order, bounded, and with backpressure to the device."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ..brokers.port import Broker
from ..errors import BrokerError

HELD_WHILE_CHALLENGED = 64

log = logging.getLogger("cocoa.uplink")


class UplinkBudget:
    """How many records of connections that are gone may still wait for the broker, in the whole process."""

    def __init__(self, max_orphans: int = 1000) -> None:
        self.max_orphans = max_orphans
        self.orphans = 0


class Uplink:
    """One connection's records. Made when the device first speaks. IOLoop thread only.

    While the broker takes records they go straight to its queue. Above the queue's bound a record is held here, and
    :meth:`has_room` turns False: the connection stops reading its socket, and TCP tells the device. What is held when
    the connection ends is still published, within the budget.
    """

    __slots__ = ("_broker", "_budget", "_closed", "_held", "_on_dropped", "_publish", "_pump", "_room")

    def __init__(
        self, broker: Broker, budget: UplinkBudget, publish: Callable[[bytes], None], on_dropped: Callable[[int], None]
    ) -> None:
        self._broker, self._budget = broker, budget
        self._publish, self._on_dropped = publish, on_dropped
        self._held: list[bytes] = []  # short, and there is one per device that ever spoke
        self._pump: asyncio.Task[None] | None = None
        self._room: asyncio.Event | None = None
        self._closed = False

    def offer(self, record: bytes) -> None:
        """Publish, or hold until the broker has room. Order is kept."""
        if not self._held and self._broker.can_write():
            self._publish(record)
            return
        self._held.append(record)
        if self._pump is None:
            self._room = asyncio.Event()
            self._pump = asyncio.get_running_loop().create_task(self._run())

    def has_room(self, challenged: bool) -> bool:
        """Whether the connection may read on. A challenged one reads further, to find the pong behind the words."""
        return len(self._held) < (HELD_WHILE_CHALLENGED if challenged else 1)

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
        room = self._budget.max_orphans - self._budget.orphans
        dropped = max(0, len(self._held) - room)
        for _ in range(dropped):
            self._held.pop()
        self._budget.orphans += len(self._held)
        if dropped:
            self._on_dropped(dropped)
        self.wake()

    async def _run(self) -> None:
        try:
            while self._held:
                await self._broker.writable()
                while self._held and self._broker.can_write():
                    self._publish(self._held.pop(0))
                    if self._closed:
                        self._budget.orphans -= 1
                self.wake()
        except BrokerError:
            # The broker adapter was closed: the process is going away.
            self._on_dropped(len(self._held))
            if self._closed:
                self._budget.orphans -= len(self._held)
            self._held.clear()
        finally:
            self._pump = None
            self.wake()
