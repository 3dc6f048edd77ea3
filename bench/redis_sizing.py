"""Measures the needs of Redis for several servers: ``python -m bench.redis_sizing``.

Measures, with the scripts that the gateway uses and a real Redis: the memory of devices that are held, and commands,
bytes and CPU time of a claim, a release, a forwarded message and a notification of a mailbox (``doorbell``). Then works
out what a fleet needs, on paper, and how long its devices are away after a server has died: from the times that
``presence/membership.py`` has, and the rate at which servers admit devices.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import redis

from cocoa_tornado.mailboxes.port import Doorbell, Entry
from cocoa_tornado.mailboxes.redis import RedisMailbox
from cocoa_tornado.presence import redis_scripts as scripts
from cocoa_tornado.presence.membership import Timing
from cocoa_tornado.redis_store.scripts import Command, Script
from cocoa_tornado.relay import redis_lua, wire
from cocoa_tornado.relay.messages import ForwardedMessage, size_of
from cocoa_tornado.relay.port import RelayLimits
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.rules.claims import Claim
from cocoa_tornado.rules.departure import ADMITTED_PER_S
from testing.redis_server import RedisServer, why_not
from testing.waiting import eventually

from .proc import cpu_s

HERE, THERE = "0123456789abcdef", "fedcba9876543210"
STAMP = "1:run"
SCRIPTS = {name: Script(text, key=scripts.META) for name, text in scripts.TEXTS.items()}
COUNTED = ("evalsha", "xread")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one operation: commands of clients, bytes over the network both ways, and microseconds of Redis' CPU."""

    commands: float
    bytes: float
    cpu_us: float

    def line(self, name: str) -> str:
        return f"{name:<32}{self.commands:8.3f} commands{self.bytes:8.0f} bytes{self.cpu_us:8.1f} us"


class Meter:
    """Measures the work of Redis."""

    def __init__(self, server: RedisServer) -> None:
        self._server, self._client = server, server.client()

    def run(self, count: int, act: Callable[[], object]) -> Cost:
        """:param count: how many operations ``act`` is"""
        before = self._read()
        act()
        commands, size, cpu = (one - other for one, other in zip(self._read(), before, strict=True))
        return Cost(commands / count, size / count, cpu / count * 1e6)

    def memory(self) -> int:
        return int(self._client.info("memory")["used_memory"])

    def _read(self) -> tuple[int, int, float]:
        stats, calls = self._client.info("stats"), self._client.info("commandstats")
        commands = sum(int(calls.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in COUNTED)
        size = int(stats["total_net_input_bytes"]) + int(stats["total_net_output_bytes"])
        return commands, size, cpu_s(self._server.pid)


class Sizing:
    """A Redis with two servers."""

    def __init__(self, server: RedisServer, batch: int) -> None:
        self.server, self.meter, self._batch = server, Meter(server), batch
        self._client = redis.Redis(port=server.port, protocol=2)
        self._client.response_callbacks.clear()  # replies as the gateway gets them
        self._calls = self._taken = 0
        for script in (*SCRIPTS.values(), *redis_lua.SCRIPTS):
            server.command("SCRIPT", "LOAD", script.text)
        server.command("HSET", scripts.META, "term", 1, "run", "run", "settled", 1)
        server.command("HSET", "cocoa:{box}:p:servers", HERE, 1, THERE, 1)

    def ask(self, command: Command) -> Any:
        return self._client.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py has no types here

    def claim(self, devices: Sequence[str], first: int = 1) -> None:
        """:param first: the number of the first claim"""
        for start in range(0, len(devices), self._batch):
            some = devices[start : start + self._batch]
            items = [scripts.ClaimItem(name, number) for number, name in enumerate(some, first + start)]
            scripts.claim_replies(self.ask(SCRIPTS["claim"].call(*scripts.claim_arguments(STAMP, THERE, 1, items))))

    def release(self, devices: Sequence[str]) -> None:
        for start in range(0, len(devices), self._batch):
            some = devices[start : start + self._batch]
            items = [(name, Claim(THERE, number)) for number, name in enumerate(some, 1 + start)]
            self.ask(SCRIPTS["release"].call(*scripts.release_arguments(STAMP, items)))

    def forward(self, devices: Sequence[str], payload: bytes) -> None:
        """Messages that one server sends and the other reads."""
        for start in range(0, len(devices), self._batch):
            names = devices[start : start + self._batch]
            made = [ForwardedMessage(name, payload, 1, "results/3", at) for at, name in enumerate(names, start)]
            sent = redis_lua.ToHolders(STAMP, names, wire.encode_each(made), sum(map(size_of, made)))
            self._calls += 1
            limits = RelayLimits()
            reply = self.ask(redis_lua.send_command(HERE, self._calls, limits, [sent], wire.FORWARD_HEAD))
            assert reply[1] == b"a" * len(names), reply
            entries = redis_lua.entries_of(self.ask(redis_lua.read_command(THERE, self._taken, 1000, 100)))
            self._taken = entries[-1].sequence
            self.ask(redis_lua.done_command(THERE, self._taken, entries[-1].totals))


async def store(server: RedisServer, devices: Sequence[str], payload: bytes, batch: int, *, rings: bool) -> Cost:
    """Messages that are stored, all of them for devices of another server."""
    mailbox = RedisMailbox(server.url, BoxLimits(), rings=rings)
    await mailbox.start()
    await eventually(lambda: mailbox.key is not None)
    meter, offset = Meter(server), 0

    async def append() -> None:
        nonlocal offset
        for start in range(0, len(devices), batch):
            names = devices[start : start + batch]
            entries = [Entry(name, payload, 1, f"results/{rings}", offset + at) for at, name in enumerate(names)]
            offset += len(names)
            await mailbox.append(entries, Doorbell(names) if rings else None)

    before = meter._read()
    await append()
    commands, size, cpu = (one - other for one, other in zip(meter._read(), before, strict=True))
    await mailbox.close(1.0)
    return Cost(commands / len(devices), size / len(devices), cpu / len(devices) * 1e6)


def names_of(count: int) -> list[str]:
    return [f"device-{number:09}" for number in range(count)]


def away_s(timing: Timing, devices: int, servers: int, admitted_per_s: float) -> tuple[float, float, float]:
    """After a server has died: when the first and the last of its devices are in again, at the earliest and at the
    latest, seconds. The others fence it between ``fence - beat`` and ``fence`` after its last beat."""
    claims = devices / (admitted_per_s * (servers - 1))
    return timing.watch_s, timing.fence_s, timing.fence_s + claims


@click.command(help=__doc__)
@click.option("--held", type=int, multiple=True, default=(100_000, 1_000_000), show_default=True)
@click.option("--batch", type=click.IntRange(1, 100), default=25, show_default=True, help="Operations of a round trip.")
@click.option("--operations", type=int, default=20_000, show_default=True, help="Of each kind.")
@click.option("--fleet", type=int, default=1_000_000, show_default=True)
@click.option("--servers", type=click.IntRange(2), default=20, show_default=True)
@click.option("--messages", type=float, default=20_000.0, show_default=True, help="Messages a second, all devices.")
@click.option("--stay", type=float, default=3600.0, show_default=True, help="Seconds that a device stays connected.")
def main(
    held: Sequence[int], batch: int, operations: int, fleet: int, servers: int, messages: float, stay: float
) -> None:
    if missing := why_not():
        raise click.ClickException(missing)
    payload = b'{"type":"transcription","text":"' + b"x" * 218 + b'"}'
    with tempfile.TemporaryDirectory(prefix="cocoa-sizing-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            sizing = Sizing(server, batch)
            empty, in_place, per_device = sizing.meter.memory(), 0, 0.0
            for count in sorted(held):
                since = time.monotonic()
                names = names_of(count)
                sizing.claim(names[in_place:], first=1 + in_place)
                in_place = count
                per_device = (sizing.meter.memory() - empty) / count
                click.echo(
                    f"{count:>9,} devices held: {per_device:.0f} bytes each, {(per_device * count) / 2**20:.0f} MiB "
                    f"({time.monotonic() - since:.0f} s)"
                )
            some = names_of(operations)
            costs = {
                "release": sizing.meter.run(operations, lambda: sizing.release(some)),
                "claim": sizing.meter.run(operations, lambda: sizing.claim(some)),
                "forwarded message": sizing.meter.run(operations, lambda: sizing.forward(some, payload)),
            }
            stored, rung = (
                asyncio.run(store(server, some[: operations // 2], payload, batch, rings=rings))
                for rings in (False, True)
            )
            costs |= {"message in a box": stored, "the same with a doorbell": rung}
        finally:
            server.kill()
            server.close()
    for name, cost in costs.items():
        click.echo(cost.line(name))
    timing, elsewhere = Timing(), (servers - 1) / servers
    forwards, claims = messages * elsewhere, fleet / stay
    cpu = (
        forwards * costs["forwarded message"].cpu_us + claims * (costs["claim"].cpu_us + costs["release"].cpu_us)
    ) / 1e6
    commands = forwards * costs["forwarded message"].commands + 2 * claims * costs["claim"].commands + servers
    size = forwards * costs["forwarded message"].bytes + claims * (costs["claim"].bytes + costs["release"].bytes)
    first, fenced, last = away_s(timing, fleet // servers, servers, ADMITTED_PER_S)
    click.echo(
        f"{fleet:,} devices on {servers} servers, {messages:,.0f} messages/s, reconnecting every {stay:,.0f} s: "
        f"{per_device * fleet / 2**20:.0f} MiB, {commands:,.0f} commands/s, {size * 8 / 1e6:,.0f} Mbit/s, "
        f"{cpu:.0%} of a core"
    )
    click.echo(
        f"one of {servers} servers dies with {fleet // servers:,} devices: fenced after {first:.1f} to {fenced:.1f} s, "
        f"all in again after {last:.1f} s at {ADMITTED_PER_S:,.0f} devices/s each; "
        f"Redis: {fleet // servers * costs['claim'].cpu_us / 1e6:.2f} s of CPU"
    )


if __name__ == "__main__":
    main()
