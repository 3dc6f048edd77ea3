from __future__ import annotations

from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

from .stands import STANDS, RelayStand


@pytest.fixture(params=STANDS)
def stand(request: pytest.FixtureRequest, io_loop: IOLoop) -> Iterator[RelayStand]:
    """A transport of every make in turn."""
    made = STANDS[request.param]()
    yield made
    io_loop.run_sync(made.close)
