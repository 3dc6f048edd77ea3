"""Devices that come and go at random and remember, by their cursors, where they were: the survival's judges."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import websockets
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

MEAN_STAY_S = 3.0
MEAN_REST_S = 1.0
ACKS = 0.3  # of the messages, by devices that acknowledge
LAST_WORD_S = 60.0  # for what is still in the box when nothing goes wrong any more


@dataclass(slots=True)
class Findings:
    """What the devices were sent, all together.

    :ivar copies: messages that a device had got before
    :ivar out_of_order: messages that came after a later one, and had not come before
    :ivar lost: messages that never came, those of gaps that were told among them
    :ivar refusals: handshakes that were refused, by status
    """

    received: int = 0
    connects: int = 0
    copies: int = 0
    out_of_order: int = 0
    lost: int = 0
    gaps_told: int = 0
    wrong_device: int = 0
    refusals: dict[str, int] = field(default_factory=dict)


class Memory:
    """What one device has been sent. Pure.

    :ivar cursor: of its latest message; '' before the first
    """

    def __init__(self, device_id: str) -> None:
        self.device_id = device_id
        self.cursor = ""
        self._seen: set[int] = set()
        self._highest = -1

    def take(self, text: str, findings: Findings) -> None:
        """The next message."""
        message = json.loads(text)
        if message["type"] == "gap":
            findings.gaps_told += 1
            return
        number = message["seq"]
        findings.received += 1
        findings.wrong_device += message["device_id"] != self.device_id
        if number in self._seen:
            findings.copies += 1
        elif number < self._highest:
            findings.out_of_order += 1
        self._seen.add(number)
        self._highest = max(self._highest, number)
        self.cursor = message["cursor"]

    def missing(self, sent: int) -> int:
        """How many of the first ``sent`` messages have not come."""
        return sent - len(self._seen)


class Wanderer:
    """One device with a cursor: it says after which message it wants the next, and may acknowledge what it has.

    :param url: where the gateway is now; changes when it is started again
    """

    def __init__(
        self, device_id: str, token: str, url: Callable[[], str], findings: Findings, acknowledges: bool, seed: int
    ) -> None:
        self.memory = Memory(device_id)
        self._token, self._url, self._findings, self._acknowledges = token, url, findings, acknowledges
        self._chance = random.Random(f"{seed}/{device_id}")

    async def wander(self) -> None:
        """Come and go until cancelled."""
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / MEAN_REST_S))
            await self._visit(lambda: False, self._chance.expovariate(1 / MEAN_STAY_S))

    async def stay_for(self, sent: int) -> None:
        """Come back until everything has arrived, or it is clear that it does not."""
        end = time.monotonic() + LAST_WORD_S
        while self.memory.missing(sent) > 0 and time.monotonic() < end:
            await self._visit(lambda: self.memory.missing(sent) <= 0, end - time.monotonic())
            await asyncio.sleep(0.1)

    async def _visit(self, enough: Callable[[], bool], stay_s: float) -> None:
        try:
            device = await self._connect()
        except InvalidStatus as refusal:
            status = str(refusal.response.status_code)
            self._findings.refusals[status] = self._findings.refusals.get(status, 0) + 1
            return
        except (OSError, EOFError, TimeoutError, websockets.WebSocketException):
            return  # the gateway is not there
        self._findings.connects += 1
        try:
            await self._listen(device, enough, time.monotonic() + stay_s)
        except ConnectionClosed:
            return
        finally:
            if self._chance.random() < 0.5:
                device.transport.abort()
            else:
                await device.close()

    async def _connect(self) -> ClientConnection:
        after = f"&after={self.memory.cursor}" if self.memory.cursor else ""
        url = f"{self._url()}?token={self._token}{after}"
        return await websockets.connect(url, ping_interval=None, proxy=None, close_timeout=0.5, open_timeout=5)

    async def _listen(self, device: ClientConnection, enough: Callable[[], bool], until: float) -> None:
        # A device without a cursor has no way to say what it did not get: it stays for its first message.
        while not enough() and (time.monotonic() < until or not self.memory.cursor):
            try:
                # Not wait_for(), which on Python 3.11 may swallow the cancellation that ends a device's wandering.
                async with asyncio.timeout(max(0.05, min(1.0, until - time.monotonic()))):
                    text = await device.recv()
            except TimeoutError:
                continue
            assert isinstance(text, str)
            self.memory.take(text, self._findings)
            if self._acknowledges and self._chance.random() < ACKS:
                await device.send(json.dumps({"type": "ack", "cursor": self.memory.cursor}))
