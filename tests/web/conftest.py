"""A gateway for each test that asks for one, on the test's own IOLoop (pytest-tornado's)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from tornado.ioloop import IOLoop

from cocoa_tornado.brokers.port import Broker
from cocoa_tornado.speech.port import SpeechEngine

from ..harness import Harness
from ..scripted_engine import ScriptedEngine
from .uploads import MIB, Bench


class StartGateway(Protocol):
    """Starts a gateway with other settings than the defaults."""

    async def __call__(
        self, broker: Broker | None = None, engine: SpeechEngine | None = None, **settings: Any
    ) -> Harness: ...


@pytest.fixture
def start_gateway(io_loop: IOLoop) -> Iterator[StartGateway]:
    started: list[Harness] = []

    async def start(broker: Broker | None = None, engine: SpeechEngine | None = None, **settings: Any) -> Harness:
        harness = await Harness.start(broker, engine, **settings)
        started.append(harness)
        return harness

    yield start
    for harness in started:
        io_loop.run_sync(harness.stop)


@pytest.fixture
def gateway(io_loop: IOLoop, start_gateway: StartGateway) -> Harness:
    harness: Harness = io_loop.run_sync(start_gateway)
    return harness


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def bench(io_loop: IOLoop, start_gateway: StartGateway, engine: ScriptedEngine) -> Iterator[Bench]:
    async def start() -> Harness:
        return await start_gateway(engine=engine, audio_max_bytes=MIB, drain_grace_s=1.0)

    bench = Bench(io_loop.run_sync(start), engine)
    yield bench
    assert bench.open_streams == 0
