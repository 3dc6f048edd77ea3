"""Blocked devices in Redis, if presence or the mailbox uses it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..redis_store.connection import RedisConnection
from ..redis_store.faults import RedisFault
from ..redis_store.scripts import PREFIX, Command, Script
from .blocks import BlockFault

BLOCKS: Final = PREFIX + b"blocked"
"""A hash of devices, each with the end of its block in Unix seconds; 0: it has none."""
VERSION: Final = PREFIX + b"blocked-version"
"""Grows with each change."""
FORGET: Final = Script(
    """
-- ARGV: devices, each with the end of its block. A block that has another end by now stays.
for at = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[at]) == ARGV[at + 1] then redis.call('HDEL', KEYS[1], ARGV[at]) end
end
return #ARGV
""",
    key=BLOCKS,
)


class BlockRedis:
    """A :class:`~.blocks.BlockStore`."""

    is_shared = True

    def __init__(self, url: str) -> None:
        self._redis = RedisConnection(url, [FORGET])
        self._version: object = None

    def __repr__(self) -> str:
        return f"<BlockRedis version {self._version!r}>"

    async def changed(self) -> bool:
        (version,) = await self._ask([[b"GET", VERSION]])
        return bool(version != self._version)

    async def read(self) -> Mapping[str, float]:
        # The version first: a change between the two is found by the next look.
        version, fields = await self._ask([[b"GET", VERSION], [b"HGETALL", BLOCKS]])
        try:
            pairs = zip(fields[::2], fields[1::2], strict=True)
            blocks = {name.decode(): float(until) or math.inf for name, until in pairs}
        except (ValueError, TypeError) as error:
            raise BlockFault(f"blocked devices: {BLOCKS.decode()} is damaged") from error
        self._version = version
        return blocks

    async def write(self, device_id: str, until: float | None) -> None:
        name = device_id.encode()
        if until is None:
            change = [b"HDEL", BLOCKS, name]
        else:
            change = [b"HSET", BLOCKS, name, b"0" if until == math.inf else repr(until).encode()]
        await self._ask([change, [b"INCR", VERSION]])

    async def forget(self, over: Mapping[str, float]) -> None:
        pairs = [part for name, until in over.items() for part in (name.encode(), repr(until).encode())]
        await self._ask([FORGET.call(*pairs)])

    async def close(self) -> None:
        await self._redis.close()

    async def _ask(self, commands: Sequence[Command]) -> list[Any]:
        try:
            replies = await self._redis.exchange(commands)
        except RedisFault as error:
            if error.is_another_process:
                await self._redis.begin_anew()
            raise BlockFault(f"blocked devices: {error}") from error
        for reply in replies:
            if isinstance(reply, Exception):
                raise BlockFault(f"blocked devices: {reply}") from reply
        return replies
