"""The soak's devices: they connect, stay a while, disconnect in all possible ways, and check every message.

Everything runs on one event loop. It uses the Sans-I/O protocol of the ``websockets`` package, without tasks and
timers, so that three hundred devices leave most of the CPU to the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from websockets.frames import Frame, Opcode
from websockets.http11 import Response

from .bare_client import BareClient

ANSWER_PATIENCE_S = 15.0
CLOSE_PATIENCE_S = 10.0
MEAN_STAY_S = 4.0
MEAN_REST_S = 0.4
GHOST_S = (1.0, 12.0)  # how long a silent connection is kept open
MAX_GHOSTS = 200
OVERDUE_S = 3.0
LOST = "lost"  # instead of a status or close code, if the connection ended without one

WAYS_TO_LEAVE = {"close frame": 4, "TCP reset": 2, "hang-up": 2, "silence": 2}
ABANDONED_HANDSHAKE, DUPLICATE, WORD = 0.05, 0.15, 0.3  # probabilities per connection


Accepted: TypeAlias = Callable[[str], Sequence[tuple[float, int]]]


class DeviceFailed(Exception):
    """A device could not connect, or the soak has a bug."""


@dataclass(slots=True)
class Tally:
    """Counts of events, as seen by the devices.

    :ivar delivered: all messages, including wrong ones
    :ivar wrong_device: messages that name another device than the receiver
    :ivar unreadable: messages that are not a numbered record
    :ivar repeated: messages that the device had received before, on any connection
    :ivar out_of_order: messages that arrived after a later one, on one connection
    :ivar missing: messages skipped between two others on one connection
    :ivar overdue: messages that did not arrive within ``OVERDUE_S`` after their records were accepted
    :ivar two_at_once: second connections that were admitted while the first stayed open
    :ivar unanswered: handshakes and close frames without a response
    :ivar closed_by_gateway: connections that the gateway closed by itself, by close code
    """

    connects: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    closed_by_gateway: Counter[str] = field(default_factory=Counter)
    delivered: int = 0
    wrong_device: int = 0
    unreadable: int = 0
    repeated: int = 0
    out_of_order: int = 0
    missing: int = 0
    overdue: int = 0
    two_at_once: int = 0
    unanswered: int = 0
    words: int = 0


class Judge:
    """Checks the messages of one connection.

    :param seen: the sequence numbers that the device has received on any connection
    """

    def __init__(self, device_id: str, seen: set[int], tally: Tally) -> None:
        self._device_id, self._seen, self._tally = device_id, seen, tally
        self._last: int | None = None

    def still_to_come(self, numbers: Iterable[int]) -> int:
        """How many of these numbers are above the last received one."""
        return sum(self._last is None or number > self._last for number in numbers)

    def message(self, text: bytes) -> None:
        tally, last = self._tally, self._last
        tally.delivered += 1
        try:
            record = json.loads(text)
            device_id, number = record["device_id"], int(record["seq"])
        except (ValueError, KeyError, TypeError):
            tally.unreadable += 1
            return
        if device_id != self._device_id:
            tally.wrong_device += 1
            return
        if number in self._seen:
            tally.repeated += 1
        elif last is not None and number < last:
            tally.out_of_order += 1
        elif last is not None:
            tally.missing += number - last - 1
        self._seen.add(number)
        self._last = number if last is None else max(last, number)


class Connection(BareClient):
    """One connection of a device.

    :ivar judge: the checker of its messages
    :ivar opened: the HTTP status of the handshake, or ``lost``
    :ivar closed: the received close code, or ``lost``; done when the TCP connection has ended
    """

    def __init__(self, url: str, judge: Judge) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[str] = loop.create_future()
        self.closed: asyncio.Future[str] = loop.create_future()
        self.judge = judge
        super().__init__(url, max_size=None)

    def on_event(self, event: Any) -> None:
        if isinstance(event, Response):
            self._settle(self.opened, str(event.status_code))
        elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
            self.judge.message(bytes(event.data))

    def eof_received(self) -> None:
        self._protocol.receive_eof()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle(self.opened, LOST)
        received = self._protocol.close_rcvd
        self._settle(self.closed, LOST if received is None else str(int(received.code)))

    def say(self, text: str) -> None:
        self._protocol.send_text(text.encode())
        self._flush()

    def send_close(self) -> None:
        self._protocol.send_close(1000)
        self._flush()

    def reset(self) -> None:
        """Disconnect with a TCP reset."""
        # With TLS, CPython 3.11 raises if the transport is closing, and has no socket if the connection has ended.
        sock = None if self._transport.is_closing() else self._transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # without TLS, if it has ended
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def hang_up(self) -> None:
        """Close the TCP connection without a closing handshake."""
        self._transport.close()

    def fall_silent(self) -> None:
        """Stop reading, and so answering pings, but stay connected, like a phone that has left its network."""
        self._transport.pause_reading()

    @staticmethod
    def _settle(future: asyncio.Future[str], value: str) -> None:
        if not future.done():
            future.set_result(value)


class Fleet:
    """All devices of a soak, on one event loop.

    :param tokens: by device id
    :param port: of the gateway, on loopback
    :param accepted: returns the latest accepted records of a device: times (monotonic clock) and numbers
    :param seed: the seed of the devices' choices; timing depends on the machine
    :param trust: a TLS context that trusts the gateway's certificate; None without TLS
    """

    def __init__(
        self, tokens: dict[str, str], port: int, accepted: Accepted, seed: int, trust: ssl.SSLContext | None = None
    ) -> None:
        self.tally = Tally()
        self.accepted = accepted
        self._port, self._trust = port, trust
        self._storm = asyncio.Event()
        self._connections: set[Connection] = set()
        self._ghosts: list[Connection] = []
        self._devices = [
            _Device(self, device_id, token, random.Random(f"{seed}/{device_id}")) for device_id, token in tokens.items()
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        """The number of open connections, including silent ones and handshakes."""
        return len(self._connections)

    @property
    def storm(self) -> asyncio.Event:
        """The event of the next storm, set when it begins."""
        return self._storm

    def start(self) -> None:
        self._tasks = [asyncio.create_task(device.live()) for device in self._devices]

    def break_out(self) -> None:
        """Begin a storm: all devices lose their connections and reconnect at once."""
        storm, self._storm = self._storm, asyncio.Event()
        storm.set()

    async def stop(self) -> None:
        """Close all connections. Raises DeviceFailed if a device has failed."""
        for task in self._tasks:
            task.cancel()
        results: Sequence[BaseException | None] = await asyncio.gather(*self._tasks, return_exceptions=True)
        open_now = list(self._connections)
        for connection in open_now:
            connection.reset()
        await asyncio.gather(*(connection.closed for connection in open_now))
        for result in results:
            if result is not None and not isinstance(result, asyncio.CancelledError):
                raise DeviceFailed(f"a device could not go on: {result!r}") from result

    async def dial(self, token: str, judge: Judge) -> Connection:
        """Open a TCP connection and send the handshake."""
        url = f"ws://127.0.0.1:{self._port}/ws?token={token}"  # for the protocol only; the transport handles TLS
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(url, judge), "127.0.0.1", self._port, ssl=self._trust
        )
        self._connections.add(connection)
        connection.closed.add_done_callback(lambda _: self._connections.discard(connection))
        return connection

    def keep_ghost(self, connection: Connection, for_s: float) -> None:
        """Keep a silent connection open for this time; if there are too many, close the oldest."""
        self._ghosts = [ghost for ghost in self._ghosts if not ghost.closed.done()]
        self._ghosts.append(connection)
        for ghost in self._ghosts[:-MAX_GHOSTS]:
            ghost.reset()
        asyncio.get_running_loop().call_later(for_s, connection.reset)


class _Device:
    """One device for the duration of the soak."""

    def __init__(self, fleet: Fleet, device_id: str, token: str, chance: random.Random) -> None:
        self._fleet, self._tally = fleet, fleet.tally
        self._device_id, self._token, self._chance = device_id, token, chance
        self._seen: set[int] = set()

    async def live(self) -> None:
        chance = self._chance
        await asyncio.sleep(chance.random())
        while True:
            if chance.random() < ABANDONED_HANDSHAKE:
                await self._abandon_a_handshake()
            storm = self._fleet.storm
            connection = await self._connect()
            if connection is None:
                await asyncio.sleep(chance.uniform(0.05, 0.5))
                continue
            opened_at = time.monotonic()
            stayed = await self._stay(connection, storm)
            if stayed is connection and not connection.closed.done():
                self._count_overdue(connection, opened_at)
            await self._leave(stayed)
            if not storm.is_set():
                await asyncio.sleep(chance.expovariate(1 / MEAN_REST_S))

    async def _connect(self) -> Connection | None:
        """Connect. Returns None if the gateway refuses, which is counted."""
        connection = await self._fleet.dial(self._token, Judge(self._device_id, self._seen, self._tally))
        try:
            status = await _within(ANSWER_PATIENCE_S, connection.opened)
        except TimeoutError:
            self._tally.unanswered += 1
            connection.reset()
            return None
        if status == "101":
            self._tally.connects += 1
            return connection
        self._tally.refusals[status] += 1
        connection.hang_up()
        return None

    async def _abandon_a_handshake(self) -> None:
        """Send the handshake, and disconnect before or during the response."""
        connection = await self._fleet.dial(self._token, Judge(self._device_id, self._seen, self._tally))
        await asyncio.sleep(self._chance.choice((0.0, 0.001, 0.005, 0.02)))
        self._tally.left["abandoned handshake"] += 1
        connection.reset()

    async def _stay(self, connection: Connection, storm: asyncio.Event) -> Connection:
        """Stay for a while, or until a storm. Returns the device's connection at the end."""
        chance = self._chance
        stay_s = min(chance.expovariate(1 / MEAN_STAY_S), 5 * MEAN_STAY_S)
        if chance.random() < WORD:
            connection.say("Hello")
            self._tally.words += 1
        if chance.random() < DUPLICATE:
            connection = await self._try_a_second(connection)
        breaking = asyncio.ensure_future(storm.wait())
        ends: set[asyncio.Future[Any]] = {connection.closed, breaking}
        try:
            await asyncio.wait(ends, timeout=stay_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            breaking.cancel()
        return connection

    async def _try_a_second(self, first: Connection) -> Connection:
        """Try a second connection, which must be refused unless the first misses its challenge."""
        second = await self._connect()
        if second is None:
            return first
        try:
            code = await _within(CLOSE_PATIENCE_S, first.closed)
            self._tally.closed_by_gateway[code] += 1
        except TimeoutError:
            self._tally.two_at_once += 1
            first.reset()
        return second

    def _count_overdue(self, connection: Connection, opened_at: float) -> None:
        """Count messages that an open connection should have received."""
        now = time.monotonic()
        due = [number for at, number in self._fleet.accepted(self._device_id) if opened_at < at < now - OVERDUE_S]
        self._tally.overdue += connection.judge.still_to_come(due)

    async def _leave(self, connection: Connection) -> None:
        if connection.closed.done():
            self._tally.closed_by_gateway[connection.closed.result()] += 1
            return
        [way] = self._chance.choices(list(WAYS_TO_LEAVE), list(WAYS_TO_LEAVE.values()))
        self._tally.left[way] += 1
        match way:
            case "close frame":
                await self._say_goodbye(connection)
            case "TCP reset":
                connection.reset()
            case "hang-up":
                connection.hang_up()
            case _:
                connection.fall_silent()
                self._fleet.keep_ghost(connection, self._chance.uniform(*GHOST_S))

    async def _say_goodbye(self, connection: Connection) -> None:
        connection.send_close()
        try:
            await _within(CLOSE_PATIENCE_S, connection.closed)
        except TimeoutError:
            self._tally.unanswered += 1
            connection.reset()


async def _within(patience_s: float, future: asyncio.Future[str]) -> str:
    """The future's result. Raises TimeoutError, without cancelling the future, if it is late.

    Not wait_for(), which before Python 3.12 loses a cancellation in the same loop turn as the result.
    """
    async with asyncio.timeout(patience_s):
        return await asyncio.shield(future)
