"""The faults of the survival run: a killed gateway, a stopped broker or mailbox, a full disk, a clock set back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from .soak_gateway import GatewayFailed, GatewayProcess

DISK_BYTES = 32 * 1024 * 1024
FULL_S = 10.0


class Server(Protocol):
    """A server that keeps its port and data when it is stopped and started."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Gateways:
    """One gateway after another, with the same settings.

    :ivar kills: how often it was killed
    """

    def __init__(
        self, folder: Path, secret: str, options: list[str], environ: Mapping[str, str], program: Sequence[str] = ()
    ) -> None:
        self._folder, self._secret, self._options = folder, secret, options
        self._environ, self._program = environ, program
        self._gateway: GatewayProcess | None = None
        self.kills = 0
        self.complaints: list[str] = []

    def url(self) -> str:
        return f"ws://127.0.0.1:{self._gateway.port if self._gateway else 1}/ws"

    async def start(self) -> None:
        folder = self._folder / f"life-{self.kills}"
        folder.mkdir()
        gateway = GatewayProcess(folder, self._secret, self._options, self._environ, self._program)
        await gateway.start()
        self._gateway = gateway

    async def await_ready(self) -> None:
        assert self._gateway is not None
        await self._gateway.await_ready()

    async def kill(self) -> None:
        """Kill it with SIGKILL, like a machine failure."""
        assert self._gateway is not None
        await self._gateway.kill()
        self.complaints += self._gateway.complaints()
        self.kills += 1

    async def stop(self) -> int | None:
        if self._gateway is None:
            return None
        status = await self._gateway.stop()
        self.complaints += self._gateway.complaints()
        return status

    async def metrics(self) -> dict[str, float]:
        assert self._gateway is not None
        return await self._gateway.metrics()


async def kill_again_and_again(gateways: Gateways, times: int, chance: random.Random) -> None:
    """Kill the gateway repeatedly, each time after it has been ready for a moment."""
    for _ in range(times):
        # Kill it even if another fault prevents it from being ready.
        with contextlib.suppress(GatewayFailed):
            await gateways.await_ready()
        await asyncio.sleep(chance.uniform(0.5, 4.0))
        await gateways.kill()
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        await gateways.start()


async def restart(server: Server, times: int, chance: random.Random) -> None:
    for _ in range(times):
        await asyncio.sleep(chance.uniform(8.0, 15.0))
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(chance.uniform(2.0, 4.0))
        await asyncio.to_thread(server.start)


class SmallDisk:
    """A tmpfs of 32 MiB. Raises OSError if this user may not mount one."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cocoa-disk-"))
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.folder)], capture_output=True
        )
        if mounted.returncode:
            self.folder.rmdir()
            raise OSError(f"no tmpfs can be mounted: {mounted.stderr.decode().strip()}")

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    async def be_full(self) -> None:
        """Fill the disk for ten seconds, after a delay."""
        await asyncio.sleep(12.0)
        filler = self.folder / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        await asyncio.sleep(FULL_S)
        filler.unlink()


class Clock:
    """The gateway's wall clock."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self._file.write_text("0")
        self.program = [sys.executable, "-m", "bench.clock_set_back", str(self._file)]

    async def go_back(self) -> None:
        """Set the clock back by an hour, after a delay."""
        await asyncio.sleep(15.0)
        self._file.write_text("-3600")


def pythonpath() -> dict[str, str]:
    """The PYTHONPATH with which a gateway imports the same packages as this process."""
    return {"PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[1])])}
