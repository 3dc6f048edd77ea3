"""The cases over TCP, all of them at one gateway, many at a time."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import pytest
from tornado.ioloop import IOLoop

from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.connection.inbound import Inbound
from cocoa_tornado.rules import frames
from testing.raw_device import CLOSE, PONG, Frame, RawDevice

from ..harness import Harness
from .case import Binary, Case, Closed, Event, Pong, Text, agrees, chopped, close
from .table import cases

pytestmark = pytest.mark.slow

AT_A_TIME: Final = 32
WRITES_PER_TURN: Final = 16
"""So many chops are written before the gateway has its turn."""

PATIENCE_S: Final = 15.0


class Overheard(MemoryBroker):
    """The embedded broker, which remembers nothing of what devices say but who said what."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted: dict[str, list[Event]] = defaultdict(list)

    def publish(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes] | None = None
    ) -> asyncio.Future[None]:
        if topic != "device.messages":
            return super().publish(topic, key, value, headers)
        self.accepted[key].append(Text(json.loads(value)["text"]))
        published: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        published.set_result(None)
        return published


class Conversation:
    """One case, played by a device of its own."""

    def __init__(self, case: Case, gateway: Harness, broker: Overheard) -> None:
        self._case, self._gateway, self._broker = case, gateway, broker
        self._seen: list[Event] = []  # on the wire

    async def problem(self) -> str | None:
        """The differences between the gateway's and the expected behavior, as a report for people."""
        case, expected = self._case, list(self._case.expected)
        if not any(isinstance(event, Closed) for event in expected):
            expected.append(Closed(1000))
        try:
            async with asyncio.timeout(PATIENCE_S):
                problem = await self._play()
        except TimeoutError:
            problem = f"no end within {PATIENCE_S:g} s"
        except (asyncio.IncompleteReadError, OSError) as error:
            problem = f"the connection was lost: {error!r}"
        got = self._broker.accepted[case.id] + self._seen
        if problem is None and not agrees(expected, got):
            problem = "over TCP"
        return None if problem is None else case.report(problem, expected, got)

    async def _play(self) -> str | None:
        offers = {"Sec-WebSocket-Extensions": self._case.offers} if self._case.offers else None
        device = await self._gateway.upgrade(self._gateway.token(self._case.id), offers)
        if device.response.status != 101 or "sec-websocket-extensions" in device.response.headers:
            return f"the handshake was answered {device.response}"
        for step in self._case.steps:
            await _send(device, chopped(step.encode(), self._case.chop))
            await self._hear(device, [event for event in step.then if isinstance(event, Pong | Closed)])
            if self._is_closed:
                break
        else:
            await _send(device, [close().encode()])
            await self._hear(device, [Closed(1000)])
        rest = await device.read_to_end()
        device.close()
        return f"{rest!r} came behind the close frame" if rest else None

    @property
    def _is_closed(self) -> bool:
        return bool(self._seen) and isinstance(self._seen[-1], Closed)

    async def _hear(self, device: RawDevice, awaited: Sequence[Event]) -> None:
        """Read up to the last frame that is awaited, or to the close frame."""
        for _ in awaited:
            self._seen.append(_event(await device.read_frame()))
            if self._is_closed or self._seen[-1] == awaited[-1]:
                return


async def _send(device: RawDevice, chops: Sequence[bytes]) -> None:
    for number, chop in enumerate(chops, 1):
        if not device.writer.is_closing():  # by a reset, after the close frame
            device.writer.write(chop)
        if number % WRITES_PER_TURN == 0:
            await asyncio.sleep(0)


def _event(frame: Frame) -> Event:
    if frame.opcode == PONG:
        return Pong(frame.payload)
    assert frame.opcode == CLOSE, frame
    return Closed(frame.close_code if frame.payload else None)


@pytest.fixture
def broker() -> Overheard:
    return Overheard()


@pytest.fixture
def listening(broker: Overheard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Binary messages are overheard on their way to speech, which is off."""
    hear = Inbound.hear

    def overhear(self: Inbound, message: frames.Text | frames.Binary) -> None:
        if isinstance(message, frames.Binary):
            broker.accepted[self._identity.device_id].append(Binary(message.data))
        else:
            hear(self, message)

    monkeypatch.setattr(Inbound, "hear", overhear)


@pytest.mark.usefixtures("listening")
def test_a_gateway_gets_every_case_right(io_loop: IOLoop, broker: Overheard) -> None:
    async def play() -> list[str]:
        gateway = await Harness.start(broker)
        places = asyncio.Semaphore(AT_A_TIME)

        async def problem(case: Case) -> str | None:
            async with places:
                return await Conversation(case, gateway, broker).problem()

        try:
            return [found for found in await asyncio.gather(*map(problem, cases())) if found is not None]
        finally:
            await gateway.stop()

    problems = io_loop.run_sync(play)
    if problems:
        pytest.fail("\n".join([f"{len(problems)} of {len(cases())} cases", *problems]), pytrace=False)
