"""A server's link to Redis, which can be cut: ``python -m bench.servers_link HOST:PORT`` is its proxy.

The proxy is a process of its own, since the fleet keeps the event loop of the run busy: Redis would seem not to answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import Final

from testing.tcp_proxy import proxying

START_PATIENCE_S: Final = 90.0


class Link:
    """While it is cut, connections stay open and nothing passes; what was sent meanwhile arrives later.

    :ivar address: ``host:port`` of the proxy
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._proxy: asyncio.subprocess.Process
        self.address = ""

    async def start(self) -> None:
        self._proxy = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.servers_link", self._target, stdout=asyncio.subprocess.PIPE
        )
        assert self._proxy.stdout is not None
        line = await asyncio.wait_for(self._proxy.stdout.readline(), START_PATIENCE_S)
        self.address = line.decode().strip()

    def cut(self) -> None:
        self._proxy.send_signal(signal.SIGSTOP)

    def mend(self) -> None:
        self._proxy.send_signal(signal.SIGCONT)

    async def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._proxy.kill()
        await self._proxy.wait()


async def _serve(target: str) -> None:
    async with proxying(target) as proxy:
        print(proxy.address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
