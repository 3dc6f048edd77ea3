"""Measures a fan-out to many boxes: ``python -m bench.fan_out --kind sqlite``.

All devices join, then messages for single devices are appended at a steady pace, without and with a fan-out to
everyone under way. It reports the CPU time of this process (and of Redis) for the fan-out, the growth of its memory,
and how long single messages took to be stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Entry, FanOut, FanOutStep, Mailbox, MailboxState
from cocoa_tornado.mailboxes.sqlite import SqliteMailbox
from cocoa_tornado.rules.audiences import ALL
from cocoa_tornado.rules.box import BoxLimits

from .mailbox_cost import cpu_s

SINGLE = b"x" * 250


def own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident_mib() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize() / 2**20


class Singles:
    """Appends messages for single devices at a steady pace."""

    def __init__(self, mailbox: Mailbox, devices: int) -> None:
        self._mailbox, self._devices = mailbox, devices
        self._chance = random.Random(1)
        self._offset = 0

    async def run(self, pause_s: float, is_over: Callable[[], bool]) -> list[float]:
        """The seconds that each message took, sorted."""
        taken: list[float] = []
        waiting: set[asyncio.Task[None]] = set()
        while not is_over():
            task = asyncio.create_task(self._append(taken))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            await asyncio.sleep(pause_s)
        await asyncio.gather(*waiting)
        return sorted(taken)

    async def _append(self, taken: list[float]) -> None:
        self._offset += 1
        device_id = f"device-{self._chance.randrange(self._devices)}"
        since = time.monotonic()
        await self._mailbox.append([Entry(device_id, SINGLE, self._offset, "singles/0", self._offset)])
        taken.append(time.monotonic() - since)


async def join_all(mailbox: Mailbox, devices: int) -> None:
    for first in range(0, devices, 1_000):
        names = range(first, min(first + 1_000, devices))
        await asyncio.gather(*(mailbox.join(f"device-{name}", frozenset((ALL, f"user:{name}"))) for name in names))


async def measure(mailbox: Mailbox, devices: int, size: int, rate: float, server_pid: int | None) -> None:
    await join_all(mailbox, devices)
    singles = Singles(mailbox, devices)
    for turn in range(3):
        end = time.monotonic() + 5
        alone = await singles.run(1 / rate, lambda end=end: time.monotonic() > end)  # type: ignore[misc]  # the default has no type
        steps: list[FanOutStep] = []
        mailbox.watch_fan_outs(steps.append)
        before = (own_cpu_s(), cpu_s(server_pid) if server_pid else 0.0, resident_mib(), time.monotonic())
        message = FanOut(ALL, frozenset(), b"x" * size, turn, "fan-outs/0", turn)
        begun = mailbox.append([message])
        beside = await singles.run(1 / rate, lambda steps=steps: bool(steps and steps[-1].is_last))  # type: ignore[misc]  # the default has no type
        await begun
        own, there = own_cpu_s() - before[0], (cpu_s(server_pid) if server_pid else 0.0) - before[1]
        click.echo(
            f"{steps[-1].recipients} boxes in {time.monotonic() - before[3]:.1f} s, {len(steps)} steps: {own:.1f} s of"
            f" CPU here, {there:.1f} s in the server, memory {resident_mib() - before[2]:+.0f} MiB"
        )
        click.echo(f"  single messages alone:  {_spread(alone)}")
        click.echo(f"  single messages beside: {_spread(beside)}")


def _spread(seconds: list[float]) -> str:
    middle, late = seconds[len(seconds) // 2], seconds[int(len(seconds) * 0.99)]
    return f"{len(seconds)}, median {middle * 1000:.1f} ms, p99 {late * 1000:.1f} ms, most {seconds[-1] * 1000:.1f} ms"


async def run(kind: str, folder: Path, devices: int, size: int, rate: float) -> None:
    with contextlib.ExitStack() as stack:
        mailbox: Mailbox
        server_pid = None
        if kind == "memory":
            mailbox = MemoryMailbox(BoxLimits())
        elif kind == "sqlite":
            mailbox = SqliteMailbox(folder / "box.db", BoxLimits())
        else:
            from cocoa_tornado.mailboxes.redis import RedisMailbox
            from testing.redis_server import RedisServer

            redis = RedisServer(folder / "redis")
            redis.start()
            stack.callback(redis.kill)
            mailbox, server_pid = RedisMailbox(redis.url, BoxLimits()), redis.pid
        await mailbox.start()
        while mailbox.status().state is not MailboxState.READY:
            await asyncio.sleep(0.05)
        await measure(mailbox, devices, size, rate, server_pid)
        await mailbox.close(30)


@click.command(help=__doc__)
@click.option("--kind", type=click.Choice(["memory", "sqlite", "redis"]), default="sqlite", show_default=True)
@click.option("--devices", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--size", type=click.IntRange(1), default=300, show_default=True, help="Bytes of the message for all.")
@click.option("--rate", type=click.FloatRange(1), default=200, show_default=True, help="Single messages per second.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the files are; a temporary folder.")
def main(kind: str, devices: int, size: int, rate: float, folder: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="cocoa-fan-out-", dir=folder) as place:
        asyncio.run(run(kind, Path(place), devices, size, rate))


if __name__ == "__main__":
    main()
