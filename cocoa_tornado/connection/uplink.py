"""A device's text messages on their way to the broker: in order, bounded, and with backpressure to the device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..brokers.port import Broker
from ..errors import BrokerError
from ..rules.handoff import RECORD_BYTES
from .intake import IntakeGate

HELD_RECORDS = 16
HELD_WHILE_CHALLENGED = 64
HELD_BYTES = 64 * 1024
HELD_BYTES_WHILE_CHALLENGED = 1024 * 1024


class Uplink:
    """One connection's records. Created when the device first sends a text message. IOLoop thread only.

    While the broker's queue has room, records go straight to it. When it is full, a few are held here, so that the
    gateway sees a close behind them. Then :meth:`has_room` turns False, the connection stops reading its socket, and
    TCP applies backpressure to the device. Records that are held when the connection ends are still published, within
    the bounds for ended connections.
    """

    __slots__ = ("_broker", "_closed", "_held", "_held_bytes", "_intake", "_on_dropped", "_publish", "_pump", "_room")

    def __init__(
        self, broker: Broker, intake: IntakeGate, publish: Callable[[bytes], None], on_dropped: Callable[[int], None]
    ) -> None:
        self._broker, self._intake = broker, intake
        self._publish, self._on_dropped = publish, on_dropped
        self._held: list[bytes] = []  # short, and there is one for each device that has sent text
        self._held_bytes = 0
        self._pump: asyncio.Task[None] | None = None
        self._room: asyncio.Event | None = None
        self._closed = False

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def offer(self, record: bytes, last_words: bool = False) -> None:
        """Publish, or hold until the broker has room. Order is kept.

        :param last_words: the device has disconnected, and its socket is read to the end: records that the intake has
            no room for are dropped, as :meth:`close` would
        """
        if not self._held and self._broker.can_write():
            self._publish(record)
            return
        if last_words and self._intake.is_full:
            self._on_dropped(1)
            return
        self._held.append(record)
        size = len(record) + RECORD_BYTES
        self._held_bytes += size
        self._intake.hold(size)
        if self._pump is None:
            self._room = asyncio.Event()
            self._pump = asyncio.get_running_loop().create_task(self._run())

    def has_room(self, challenged: bool) -> bool:
        """Whether the connection may read on. A challenged one reads further, to find the pong behind the messages."""
        if challenged:
            return len(self._held) < HELD_WHILE_CHALLENGED and self._held_bytes < HELD_BYTES_WHILE_CHALLENGED
        return len(self._held) < HELD_RECORDS and self._held_bytes < HELD_BYTES

    async def wait_for_room(self) -> None:
        """Return when something has changed: room was made, or :meth:`wake` was called."""
        if self._room is not None:
            self._room.clear()
            await self._room.wait()

    def wake(self) -> None:
        if self._room is not None:
            self._room.set()

    def close(self) -> None:
        """The connection has ended. Held records wait on for the broker, as far as the bound allows."""
        self._closed = True
        kept = 0
        while kept < len(self._held) and self._intake.keep_of_gone(len(self._held[kept]) + RECORD_BYTES):
            kept += 1
        dropped = self._held[kept:]
        if dropped:
            del self._held[kept:]
            self._intake.release(sum(len(record) + RECORD_BYTES for record in dropped))
            self._on_dropped(len(dropped))
        self.wake()

    async def _run(self) -> None:
        try:
            while self._held:
                await self._broker.writable()
                while self._held and self._broker.can_write():
                    self._publish(self._release())
                self.wake()
        except BrokerError:
            # The broker adapter was closed: the process is stopping.
            self._on_dropped(len(self._held))
            while self._held:
                self._release()
        finally:
            self._pump = None
            self.wake()

    def _release(self) -> bytes:
        record = self._held.pop(0)
        size = len(record) + RECORD_BYTES
        self._held_bytes -= size
        if self._closed:
            self._intake.release_of_gone(size)
        else:
            self._intake.release(size)
        return record
