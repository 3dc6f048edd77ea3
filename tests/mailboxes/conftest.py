from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from .stands import MemoryStand, Stand


@pytest.fixture(params=["memory", "sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def stand(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stand]:
    """A place for a mailbox, of each kind in turn."""
    made: Stand
    if request.param == "memory":
        made = MemoryStand()
    elif request.param == "sqlite":
        from .sqlite_stand import SqliteStand

        made = SqliteStand(tmp_path / "box.db")
    else:
        from .redis_stand import RedisStand

        made = RedisStand(request.getfixturevalue("redis_server"))
    yield made
    asyncio.run(made.clear())
