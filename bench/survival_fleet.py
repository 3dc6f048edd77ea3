"""The devices of the survival run, which connect and disconnect at random, use cursors, and check their messages."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import websockets
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

ACKS = 0.3  # share of messages that an acknowledging device acknowledges


@dataclass(slots=True)
class Findings:
    """The totals of all devices.

    :ivar copies: messages that a device had received before
    :ivar out_of_order: new messages that arrived after a later one
    :ivar lost: messages that never arrived, including those in gap notices
    :ivar refusals: refused handshakes, by status
    """

    received: int = 0
    connects: int = 0
    copies: int = 0
    out_of_order: int = 0
    lost: int = 0
    gap_notices: int = 0
    wrong_device: int = 0
    refusals: dict[str, int] = field(default_factory=dict)


class Memory:
    """The messages that one device has received. Pure.

    A *stream* is the messages of one priority that were written with one key, so that their order is guaranteed.

    :param keys: the keys of the records that are for this device
    :ivar cursor: the cursor of its latest message; '' before the first
    """

    def __init__(self, device_id: str, keys: Iterable[str] = ()) -> None:
        self.device_id = device_id
        self.cursor = ""
        self._keys = frozenset(keys) or frozenset((device_id,))
        self._seen: set[tuple[str, int]] = set()
        self._highest: dict[str, int] = {}

    def take(self, text: str, findings: Findings) -> None:
        """Record a message."""
        message = json.loads(text)
        if message["type"] == "reconnect":
            return
        if message["type"] == "gap":
            findings.gap_notices += 1
            return
        key, number = message["key"], message["seq"]
        stream = f"{key}/{message['importance']}"
        findings.received += 1
        findings.wrong_device += key not in self._keys or self.device_id in message["not_for"]
        if (stream, number) in self._seen:
            findings.copies += 1
        elif number < self._highest.get(stream, -1):
            findings.out_of_order += 1
        self._seen.add((stream, number))
        self._highest[stream] = max(self._highest.get(stream, -1), number)
        self.cursor = message["cursor"]

    def missing(self, sent: int) -> int:
        """How many of ``sent`` messages have not arrived."""
        return sent - len(self._seen)


class Visitor:
    """A device that connects and disconnects at random, with its cursor. A subclass says how it visits.

    :cvar mean_stay_s: how long it stays connected
    :cvar mean_rest_s: how long it stays away
    :cvar last_word_s: for the rest of its box after the last fault
    :cvar again_s: between two attempts to connect
    """

    mean_stay_s: ClassVar[float]
    mean_rest_s: ClassVar[float]
    last_word_s: ClassVar[float]
    again_s: ClassVar[float]

    def __init__(self, memory: Memory, token: str, findings: Findings, seed: int) -> None:
        self.memory = memory
        self._token, self._findings = token, findings
        self._chance = random.Random(f"{seed}/{memory.device_id}")

    async def introduce(self) -> None:
        """Connect once, so that the deployment knows the device and its groups."""
        while not await self._visit(lambda: True, 0.0):
            await asyncio.sleep(self.again_s)

    async def wander(self) -> None:
        """Connect and disconnect until cancelled."""
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / self.mean_rest_s))
            await self._visit(lambda: False, self._chance.expovariate(1 / self.mean_stay_s))

    async def stay_for(self, sent: int) -> None:
        """Reconnect until everything has arrived, or until nothing has for ``last_word_s``."""
        missing, end = self.memory.missing(sent), time.monotonic() + self.last_word_s
        while missing > 0 and time.monotonic() < end:
            await self._visit(lambda: self.memory.missing(sent) <= 0, end - time.monotonic())
            if self.memory.missing(sent) < missing:
                missing, end = self.memory.missing(sent), time.monotonic() + self.last_word_s
            await asyncio.sleep(self.again_s)

    async def _visit(self, enough: Callable[[], bool], stay_s: float) -> bool:
        """Connect, and stay until enough has arrived and the time is over. Returns whether the device was admitted."""
        raise NotImplementedError  # each fleet has its own

    def _note_refusal(self, refusal: InvalidStatus) -> int:
        """Count a refused handshake; returns its status."""
        status = refusal.response.status_code
        self._findings.refusals[str(status)] = self._findings.refusals.get(str(status), 0) + 1
        return status


class Wanderer(Visitor):
    """One device, which may acknowledge messages.

    :param url: returns the current URL of the gateway, which changes when it restarts
    """

    mean_stay_s, mean_rest_s, last_word_s, again_s = 3.0, 1.0, 60.0, 0.1

    def __init__(
        self,
        memory: Memory,
        token: str,
        url: Callable[[], str],
        findings: Findings,
        acknowledges: bool,
        seed: int,
    ) -> None:
        super().__init__(memory, token, findings, seed)
        self._url, self._acknowledges = url, acknowledges

    async def _visit(self, enough: Callable[[], bool], stay_s: float) -> bool:
        try:
            device = await self._connect()
        except InvalidStatus as refusal:
            self._note_refusal(refusal)
            return False
        except (OSError, EOFError, TimeoutError, websockets.WebSocketException):
            return False  # the gateway is down
        self._findings.connects += 1
        try:
            await self._listen(device, enough, time.monotonic() + stay_s)
        except ConnectionClosed:
            pass
        finally:
            if self._chance.random() < 0.5:
                device.transport.abort()
            else:
                await device.close()
        return True

    async def _connect(self) -> ClientConnection:
        after = f"&after={self.memory.cursor}" if self.memory.cursor else ""
        url = f"{self._url()}?token={self._token}{after}"
        return await websockets.connect(url, ping_interval=None, proxy=None, close_timeout=0.5, open_timeout=5)

    async def _listen(self, device: ClientConnection, enough: Callable[[], bool], until: float) -> None:
        # Without a cursor a device cannot name its position, so it stays for its first message.
        while not enough() and (time.monotonic() < until or not self.memory.cursor):
            try:
                # Not wait_for(), which on Python 3.11 may lose the cancellation that ends this task.
                async with asyncio.timeout(max(0.05, min(1.0, until - time.monotonic()))):
                    text = await device.recv()
            except TimeoutError:
                continue
            assert isinstance(text, str)
            self.memory.take(text, self._findings)
            if self._acknowledges and self._chance.random() < ACKS:
                await device.send(json.dumps({"type": "ack", "cursor": self.memory.cursor}))
