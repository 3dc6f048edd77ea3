"""Connections on real sockets, for the tests of the shell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from tornado.ioloop import IOLoop

from cocoa_tornado.brokers.memory import MemoryBroker

from .stand import Stand


class MakeStand(Protocol):
    """Makes a stand with other limits than the defaults."""

    async def __call__(self, broker: MemoryBroker | None = None, **limits: Any) -> Stand: ...


@pytest.fixture
def make_stand(io_loop: IOLoop) -> Iterator[MakeStand]:
    made: list[Stand] = []

    async def make(broker: MemoryBroker | None = None, **limits: Any) -> Stand:
        stand = Stand(broker, **limits)
        made.append(stand)
        await stand.start()
        return stand

    yield make
    for stand in made:
        io_loop.run_sync(stand.stop)


@pytest.fixture
def stand(io_loop: IOLoop, make_stand: MakeStand) -> Stand:
    stand: Stand = io_loop.run_sync(make_stand)
    return stand
