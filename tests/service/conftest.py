"""See ``running.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

from .running import Running


@pytest.fixture
def running(io_loop: IOLoop) -> Iterator[Running]:
    gateways = Running()
    yield gateways
    for harness in gateways.started:
        io_loop.run_sync(harness.stop)
