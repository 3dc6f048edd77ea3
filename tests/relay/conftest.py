from __future__ import annotations

from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

from .stands import MemoryStand, RedisStand, RelayStand


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
def stand(request: pytest.FixtureRequest, io_loop: IOLoop) -> Iterator[RelayStand]:
    """A transport of every kind in turn."""
    made: RelayStand
    made = MemoryStand() if request.param == "memory" else RedisStand(request.getfixturevalue("redis_server"))
    yield made
    io_loop.run_sync(made.close)
