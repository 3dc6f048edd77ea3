"""The faults of the run over several servers: servers and Redis are killed or paused, links are cut, Redis loses its
last writes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .servers_link import Link
from .soak_gateway import GatewayFailed, GatewayProcess

if TYPE_CHECKING:
    from testing.redis_server import RedisServer

START_AGAIN_S: Final = (0.5, 3.0)
BETWEEN_S: Final = (2.0, 6.0)
SIZES_EVERY_S: Final = 0.5
TAIL_S: Final = 3.0
"""How much Redis forgets, if it loses its last writes."""
FAULTS: Final = {"kill": 3, "pause": 3, "cut": 2, "redis": 1, "stop": 1}


class Server:
    """One of the servers: a gateway and its link to Redis. It keeps its name through all its lives.

    :ivar complaints: the errors in its logs
    """

    def __init__(
        self, name: str, folder: Path, secret: str, options: list[str], redis: Link, environ: Mapping[str, str]
    ) -> None:
        self.name, self.redis = name, redis
        self._folder, self._secret, self._options, self._environ = folder, secret, options, environ
        self._gateway: GatewayProcess | None = None
        self._lives = 0
        self.complaints: list[str] = []

    def url(self) -> str:
        return f"ws://127.0.0.1:{self._gateway.port if self._gateway else 1}/ws"

    async def start(self) -> None:
        self._lives += 1
        folder = self._folder / f"{self.name}-{self._lives}"
        folder.mkdir()
        where = f"redis://{self.redis.address}/0"
        options = [*self._options, "--server-name", self.name, "--presence", where, "--mailbox", where]
        gateway = GatewayProcess(folder, self._secret, options, self._environ)
        await gateway.start()
        self._gateway = gateway

    @property
    def gateway(self) -> GatewayProcess:
        assert self._gateway is not None
        return self._gateway

    async def await_ready(self) -> None:
        await self.gateway.await_ready()

    async def kill(self) -> None:
        await self.gateway.kill()
        self.complaints += self.gateway.complaints()

    async def stop(self) -> int | None:
        status = await self.gateway.stop()
        self.complaints += self.gateway.complaints()
        return status


class Faults:
    """One fault after another, each at a random server, until cancelled. Each kind happens once before any happens
    again, the one named last first. All is well when :meth:`end` returns.

    :param longest_pause_s: of a server
    :param kinds: their shares
    :ivar done: how often each has happened
    """

    def __init__(
        self,
        servers: Sequence[Server],
        redis: RedisServer,
        chance: random.Random,
        longest_pause_s: float,
        kinds: Mapping[str, int] = FAULTS,
    ) -> None:
        self._servers, self._redis, self._chance, self._longest_pause_s = servers, redis, chance, longest_pause_s
        self._kinds, self._lengths = kinds, list[dict[Path, int]]()
        self.done: Counter[str] = Counter(dict.fromkeys(kinds, 0))
        self._under_way: asyncio.Task[None] | None = None

    async def run(self) -> None:
        measuring = asyncio.ensure_future(self._note_lengths())
        try:
            while True:
                await asyncio.sleep(self._chance.uniform(*BETWEEN_S))
                self._under_way = asyncio.ensure_future(self._happen(self._choose()))
                await asyncio.shield(self._under_way)
        finally:
            measuring.cancel()

    async def end(self) -> None:
        if self._under_way is not None:
            await self._under_way

    def missing(self) -> list[str]:
        """The kinds that have not happened. Thread-safe."""
        return [kind for kind, times in self.done.items() if not times]

    def _choose(self) -> str:
        missing = self.missing()
        if missing:
            return missing[-1]
        (kind,) = self._chance.choices(list(self._kinds), list(self._kinds.values()))
        return kind

    async def _happen(self, kind: str) -> None:
        server = self._chance.choice(self._servers)
        if kind == "kill":
            await server.kill()
            await asyncio.sleep(self._chance.uniform(*START_AGAIN_S))
            await server.start()
        elif kind == "stop":
            await server.stop()
            await server.start()
        elif kind == "pause":
            pid = server.gateway.pid
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(self._chance.uniform(1.0, self._longest_pause_s))
            os.kill(pid, signal.SIGCONT)
        elif kind == "cut":
            server.redis.cut()
            await asyncio.sleep(self._chance.uniform(1.0, self._longest_pause_s))
            server.redis.mend()
        else:
            lost = await self._restart_redis(loses_tail=kind == "tail")
            if kind == "tail" and not lost:
                return
        self.done[kind] += 1
        with contextlib.suppress(GatewayFailed):
            await server.await_ready()

    async def _restart_redis(self, *, loses_tail: bool) -> int:
        """Returns how many bytes of its log are lost."""
        await asyncio.to_thread(self._redis.kill)
        lost = 0
        for path, length in self._lengths[0].items() if loses_tail else ():
            with contextlib.suppress(FileNotFoundError):  # rewritten since
                lost += max(0, path.stat().st_size - length)
                os.truncate(path, min(length, path.stat().st_size))
        await asyncio.sleep(self._chance.uniform(0.0, 2.0))
        await asyncio.to_thread(self._redis.start)
        self._lengths.clear()
        return lost

    async def _note_lengths(self) -> None:
        """Remember how long the append-only files were ``TAIL_S`` ago."""
        while True:
            files = (self._redis.folder / "appendonlydir").glob("*.incr.aof")
            with contextlib.suppress(OSError):
                self._lengths.append({path: path.stat().st_size for path in files})
            del self._lengths[: -int(TAIL_S / SIZES_EVERY_S)]
            await asyncio.sleep(SIZES_EVERY_S)
