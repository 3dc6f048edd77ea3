"""The devices of the run over several servers: each roams from server to server, and some come twice."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Final

import websockets
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from .servers_history import History, Operation, now
from .survival_fleet import ACKS, Findings, Memory, Visitor

OPEN_S: Final = 8.0
WAYS_TO_END: Final = {"close": 4, "abort": 4, "silence": 2}


class Roamer(Visitor):
    """One device. Its connections carry a number of their own, which it publishes, so that their generations are known.

    A *rival* is a second client with the token of a device that is connected. Answers go into the history; if it is
    admitted, it goes at once.

    :param urls: return the servers' addresses
    """

    mean_stay_s, mean_rest_s, last_word_s, again_s = 4.0, 0.3, 90.0, 0.2

    def __init__(
        self,
        memory: Memory,
        token: str,
        urls: list[Callable[[], str]],
        findings: Findings,
        history: History,
        seed: int,
        *,
        has_rivals: bool,
    ) -> None:
        super().__init__(memory, token, findings, seed)
        self._urls, self._history, self._has_rivals = urls, history, has_rivals
        self._conn = 0
        self._silent: list[tuple[ClientConnection, Operation]] = []

    @property
    def device_id(self) -> str:
        return self.memory.device_id

    def hang_up(self) -> None:
        """End what was left open in silence."""
        for device, ended in self._silent:
            device.transport.abort()
            ended.returned = now()
        self._silent.clear()

    async def _visit(self, enough: Callable[[], bool], stay_s: float) -> bool:
        device, conn = await self._connect()
        if device is None:
            await asyncio.sleep(self._chance.uniform(0.1, 0.8))
            return False
        # The server may end the connection at any moment from now on.
        ended = self._history.begin(self.device_id, "end", conn)
        try:
            await device.send(json.dumps({"conn": conn}))
            await self._listen(device, conn, enough, time.monotonic() + stay_s)
        except ConnectionClosed:
            ended.returned = now()
            return True
        except asyncio.CancelledError:
            device.transport.abort()
            raise
        await self._end(device, ended)
        return True

    async def _end(self, device: ClientConnection, ended: Operation) -> None:
        (how,) = self._chance.choices(list(WAYS_TO_END), list(WAYS_TO_END.values()))
        if how == "silence":
            # Frames that arrive from now on are never read, and no ping is answered.
            device.transport.pause_reading()
            self._silent.append((device, ended))
        elif how == "abort":
            device.transport.abort()
            ended.returned = now()
        else:
            await device.close()
            ended.returned = now()

    async def _connect(self) -> tuple[ClientConnection | None, int]:
        self._conn += 1
        conn = self._conn
        after = f"&after={self.memory.cursor}" if self.memory.cursor else "&cursors=1"
        url = f"{self._chance.choice(self._urls)()}?token={self._token}{after}"
        operation = self._history.begin(self.device_id, "connect", conn)
        try:
            device = await websockets.connect(
                url, ping_interval=None, proxy=None, close_timeout=1.0, open_timeout=OPEN_S, max_queue=None
            )
        except InvalidStatus as refusal:
            operation.returned, operation.status = now(), self._note_refusal(refusal)
            return None, conn
        except (OSError, EOFError, TimeoutError, websockets.WebSocketException):
            operation.returned = now()
            self._history.note_given_up(self.device_id)
            return None, conn
        operation.returned, operation.status = now(), 101
        self._findings.connects += 1
        return device, conn

    async def _listen(self, device: ClientConnection, conn: int, enough: Callable[[], bool], until: float) -> None:
        rival_at = time.monotonic() + self._chance.uniform(0.2, 3.0) if self._has_rivals else float("inf")
        # Without a cursor a device cannot name its position, so it stays for its first message.
        while not enough() and (time.monotonic() < until or not self.memory.cursor):
            if time.monotonic() > rival_at:
                rival_at = float("inf")
                await self._send_rival(device, conn)
            try:
                async with asyncio.timeout(max(0.05, min(0.5, until - time.monotonic()))):
                    text = await device.recv()
            except TimeoutError:
                continue
            assert isinstance(text, str)
            self._take(conn, text)
            if self._chance.random() < ACKS:
                await device.send(json.dumps({"type": "ack", "cursor": self.memory.cursor}))

    def _take(self, conn: int, text: str) -> None:
        message = json.loads(text)
        made = message.get("made")
        if made is not None:
            # It has reached this connection after it was written to the topic.
            operation = self._history.begin(self.device_id, "act", conn, since=made)
            operation.returned = now()
        self.memory.take(text, self._findings)

    async def _send_rival(self, device: ClientConnection, conn: int) -> None:
        """Let another client try to connect while this one answers pings."""
        rival, other = await self._connect()
        if rival is not None:
            ended = self._history.begin(self.device_id, "end", other)
            rival.transport.abort()
            ended.returned = now()
