"""The devices of the roaming test: several clients of each, which race, move, and leave connections half-open. They do
the same for every side."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol
from urllib.parse import quote

import websockets
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from .roaming_count import Counts, Receipt, Visit, count

TICK_S: Final = 1.0
CONNECTS: Final = 0.6
LEAVES: Final = (0.3, 0.04)
"""How often a client leaves in a tick. Half of the clients are restless, and the others stay for long."""
MOVES: Final = 0.5  # share of those that leave
WAYS_TO_END: Final = {"close": 3, "abort": 3, "silence": 4}
OPEN_S: Final = 8.0


class Dialect(Protocol):
    """How a contender speaks to a device."""

    def path(self, token: str) -> str:
        """The target of the handshake."""

    async def enter(self, connection: ClientConnection, token: str) -> bool:
        """Wait until the device is admitted. Returns False if it is not."""

    def message(self, frame: str) -> dict[str, Any] | None:
        """The published message in a frame, if there is one."""

    def reply(self, frame: str) -> str | None:
        """What the client must answer, if anything."""

    def is_end(self, frame: str) -> bool:
        """Whether the server has ended the connection with this frame, before it closes it."""


class Gateway:
    """This project: the 101 is the admission, and a message is a frame."""

    def path(self, token: str) -> str:
        return f"/ws?token={token}"

    async def enter(self, connection: ClientConnection, token: str) -> bool:
        return True

    def message(self, frame: str) -> dict[str, Any] | None:
        message: dict[str, Any] = json.loads(frame)
        return message if message["type"] == "transcription" else None

    def reply(self, frame: str) -> str | None:
        return None

    def is_end(self, frame: str) -> bool:
        return False


class Centrifugo:
    """Its unidirectional WebSocket: the first frame is the admission."""

    def path(self, token: str) -> str:
        return f"/ws?cf_connect={quote(json.dumps({'token': token}))}"

    async def enter(self, connection: ClientConnection, token: str) -> bool:
        return "connect" in json.loads(await connection.recv())

    def message(self, frame: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = json.loads(frame).get("pub", {}).get("data")
        return found

    def reply(self, frame: str) -> str | None:
        return None

    def is_end(self, frame: str) -> bool:
        return "disconnect" in json.loads(frame)


class SocketIO:
    """Engine.IO 4 over WebSocket (socketio/socket.io, docs/engine.io-protocol and docs/socket.io-protocol): ``0`` opens
    the transport, ``40`` is the admission, ``42`` an event, ``2`` a ping, ``41`` the end."""

    def path(self, token: str) -> str:
        return "/socket.io/?EIO=4&transport=websocket"

    async def enter(self, connection: ClientConnection, token: str) -> bool:
        await connection.recv()
        await connection.send(f"40{json.dumps({'token': token})}")
        return str(await connection.recv()).startswith("40")

    def message(self, frame: str) -> dict[str, Any] | None:
        return json.loads(frame[2:])[1] if frame.startswith("42") else None

    def reply(self, frame: str) -> str | None:
        return "3" if frame == "2" else None

    def is_end(self, frame: str) -> bool:
        return frame == "41"


class Device:
    """One identity, and the clients that have it.

    :ivar visits: their connections
    :ivar refused: why connections were not admitted
    """

    def __init__(self, device_id: str, token: str, clients: int, seed: str) -> None:
        self.device_id, self.token = device_id, token
        self.visits: list[Visit] = []
        self.refused: Counter[str] = Counter()
        chance = random.Random(f"{seed}/{device_id}")
        self.phase = chance.uniform(0.0, TICK_S)
        self._clients = [Client(self, LEAVES[number % 2], random.Random(chance.random())) for number in range(clients)]

    async def roam(self, urls: Sequence[Callable[[], str]], dialect: Dialect) -> None:
        """Run until cancelled."""
        # Clients that don't care whether others with the same identity connect: they begin at the same moment.
        begin = time.monotonic() + self.phase
        await asyncio.gather(*(client.roam(urls, dialect, begin) for client in self._clients))

    async def hang_up(self) -> None:
        for client in self._clients:
            await client.hang_up()

    def counts(self) -> Counts:
        return count(self.visits)


class Client:
    """:param leaves: how often it leaves in a tick"""

    def __init__(self, device: Device, leaves: float, chance: random.Random) -> None:
        self._device, self._leaves, self._chance = device, leaves, chance
        self._connection: ClientConnection | None = None
        self._visit: Visit | None = None
        self._listening: asyncio.Task[None] | None = None
        self._abandoned: list[ClientConnection] = []
        self._closing: set[asyncio.Task[None]] = set()

    async def roam(self, urls: Sequence[Callable[[], str]], dialect: Dialect, begin: float) -> None:
        tick = begin
        while True:
            await asyncio.sleep(max(0.0, tick - time.monotonic()))
            await self._step(urls, dialect)
            while tick <= time.monotonic():
                tick += TICK_S

    async def _step(self, urls: Sequence[Callable[[], str]], dialect: Dialect) -> None:
        if self._listening is None or self._listening.done():
            if self._chance.random() < CONNECTS:
                await self._connect(self._chance.choice(urls)(), dialect)
        elif self._chance.random() < self._leaves:
            (how,) = self._chance.choices(list(WAYS_TO_END), list(WAYS_TO_END.values()))
            self._leave(how)
            if self._chance.random() < MOVES:
                await self._connect(self._chance.choice(urls)(), dialect)

    async def _connect(self, url: str, dialect: Dialect) -> None:
        connection = None
        try:
            async with asyncio.timeout(OPEN_S):
                connection = await websockets.connect(
                    f"{url}{dialect.path(self._device.token)}",
                    open_timeout=None,
                    close_timeout=1.0,
                    ping_interval=None,
                    compression=None,
                    proxy=None,
                )
                is_admitted = await dialect.enter(connection, self._device.token)
                self._device.refused["refused"] += not is_admitted
        except (OSError, EOFError, TimeoutError, websockets.WebSocketException) as reason:
            self._device.refused[_named(reason)] += 1
            is_admitted = False
        except asyncio.CancelledError:
            if connection is not None:
                connection.transport.abort()
            raise
        if is_admitted:
            assert connection is not None
            visit = Visit(time.monotonic_ns())
            self._device.visits.append(visit)
            self._connection, self._visit = connection, visit
            self._listening = asyncio.create_task(self._listen(connection, visit, dialect))
        elif connection is not None:
            connection.transport.abort()

    async def _listen(self, connection: ClientConnection, visit: Visit, dialect: Dialect) -> None:
        with contextlib.suppress(ConnectionClosed):
            while not dialect.is_end(frame := str(await connection.recv())):
                now = time.monotonic_ns()
                message = dialect.message(frame)
                if message is not None:
                    visit.receipts.append(Receipt(message["number"], message["made"], now))
                elif reply := dialect.reply(frame):
                    await connection.send(reply)
        visit.ended = time.monotonic_ns()

    def _leave(self, how: str) -> None:
        """After that the client counts as disconnected, even if the server has not noticed."""
        assert self._connection is not None
        assert self._visit is not None
        assert self._listening is not None
        connection = self._connection
        self._listening.cancel()
        self._visit.ended = time.monotonic_ns()
        if how == "silence":
            # Half-open: nothing is read any more, and no ping is answered.
            connection.transport.pause_reading()
            self._abandoned.append(connection)
        elif how == "abort":
            connection.transport.abort()
        else:
            closing = asyncio.create_task(connection.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def hang_up(self) -> None:
        """End everything."""
        if self._listening is not None and not self._listening.done():
            self._leave("abort")
        for connection in self._abandoned:
            connection.transport.abort()
        self._abandoned.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)


def _named(reason: BaseException) -> str:
    if isinstance(reason, websockets.InvalidStatus):
        return str(reason.response.status_code)
    return "no answer" if isinstance(reason, TimeoutError) else "closed"
