from __future__ import annotations

from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

from .stands import STANDS, PresenceStand


@pytest.fixture(params=STANDS)
def stand(request: pytest.FixtureRequest, io_loop: IOLoop) -> Iterator[PresenceStand]:
    """A store of every make in turn."""
    made = STANDS[request.param]()
    yield made
    io_loop.run_sync(made.close)
