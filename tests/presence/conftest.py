from __future__ import annotations

from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

from .stands import LocalStand, PresenceStand


@pytest.fixture(params=["local", pytest.param("redis", marks=pytest.mark.redis)])
def stand(request: pytest.FixtureRequest, io_loop: IOLoop) -> Iterator[PresenceStand]:
    """A store of every make in turn."""
    made: PresenceStand
    if request.param == "local":
        made = LocalStand()
    else:
        from .redis_stand import RedisStand

        RedisStand.redis = request.getfixturevalue("redis_server")
        made = RedisStand()
    yield made
    io_loop.run_sync(made.close)
