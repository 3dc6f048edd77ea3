"""Counts how often a device is connected twice at once, here and with others: ``python -m bench.roaming``.

Two servers of each contender share one Redis. Each device has several clients with the same identity, which know
nothing of each other. Once a second those that are not connected may connect, at the same moment and to either server;
those that are may end, move to the other server, or go silent, so that their connection stays half-open. All contenders
get the same clients, messages at the same rate, and the same faults at one of their servers: it is paused (SIGSTOP),
cut off from Redis by a proxy that swallows, or killed and started again. ``roaming_sides.py`` has their settings, and
what each of them documents. The clients must not starve: on a machine that has other work, use ``--ahead``.

What counts is only what the clients see, on one clock:

- A connection is *open* from the moment at which its client learns that it is admitted (here the 101, with Centrifugo
  and Socket.IO their connect message) until its client ends it or sees that it has ended. One that a client left
  half-open is not open, because no client reads it.
- *Two open*: two connections of one device were open. Where the newest wins, as with Centrifugo and Socket.IO, they
  always are until the close of the old one has arrived, so those of at most 100 ms are counted apart (*brief*).
- *Two served*: each of two open connections received a message that was published after both were admitted. It lasts
  from the admission of the newer one to the last message that the older one received.
- *Superseded*: messages that arrived at a connection although they were published after a newer one of the same device
  had been admitted, while that one was open.
- *Twice*: messages that arrived at two connections of a device, whenever.

A message is stamped before it is handed to the contender, so one that was under way when a device moved counts nowhere
but under *twice*, if it arrived twice. Lost messages are not counted: no side has a mailbox or a history here. The
publisher of Centrifugo and Socket.IO uses the server that has no fault. A paused process stays paused; of this project,
``serve --workers`` and a systemd watchdog would kill it after 3 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from .contenders import Unavailable
from .contenders.tokens import token
from .roaming_count import Counts, Spans
from .roaming_fleet import Device
from .roaming_sides import SIDES, TOPIC, Publication, Server, Side
from .soak_gateway import http_connection

PARTITIONS: Final = 6
PUBLISHERS: Final = 4
BEFORE_S: Final = 4.0
AFTER_S: Final = 10.0
START_AGAIN_S: Final = 2.0
FAULTS: Final = {
    "none": 0.0,
    "paused 3 s": 3.0,
    "paused 20 s": 20.0,
    "cut off 3 s": 3.0,
    "cut off 20 s": 20.0,
    "killed": START_AGAIN_S,
}
"""Seconds. The shorter ones end before this project declares a server dead (``presence_fence``), the others after."""


@dataclass(frozen=True, slots=True)
class Plan:
    """:ivar rate: messages a second for all devices
    :ivar quiet_s: length of the part without a fault
    """

    devices: int = 50
    clients: int = 3
    rate: float = 200.0
    quiet_s: float = 20.0
    faults: tuple[str, ...] = tuple(FAULTS)
    seed: int = 1


@dataclass(slots=True)
class Row:
    side: str
    fault: str
    published: int
    counts: Counts = field(default_factory=Counts)
    refused: Counter[str] = field(default_factory=Counter)


class Stage:
    """Redis, and Kafka for those that need it."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        from testing.kafka_server import KafkaServer
        from testing.redis_server import RedisServer

        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cocoa-roaming-")))
        (self.folder / "kafka").mkdir()
        self.kafka = KafkaServer(self.folder / "kafka")
        self.redis = RedisServer(self.folder / "redis")
        for server in (self.kafka, self.redis):
            server.start()
            stack.callback(server.kill)
        from testing.kafka_admin import create_topic

        create_topic(self.kafka.bootstrap, TOPIC, PARTITIONS)


class Publisher:
    """Publishes to one device after the other, at a steady rate, until cancelled. One that is late catches up.

    :ivar published: the number of published messages, which are numbered up to it
    """

    def __init__(self, devices: list[str], rate: float) -> None:
        self._devices, self._rate, self._begin = devices, rate, time.monotonic()
        self.published = 0

    async def run(self, side: Side, server: Server, bootstrap: str) -> None:
        if side.publication is None:
            await self._produce(bootstrap)
        else:
            await asyncio.gather(*(self._post(side.publication, server.port) for _ in range(PUBLISHERS)))

    async def _next(self) -> tuple[str, dict[str, Any]]:
        """A device and its message, when it is due."""
        self.published += 1
        number = self.published
        await asyncio.sleep(max(0.0, self._begin + number / self._rate - time.monotonic()))
        return self._devices[number % len(self._devices)], {"number": number, "made": time.monotonic_ns()}

    async def _produce(self, bootstrap: str) -> None:
        from testing.kafka_admin import writer

        with writer(bootstrap, linger_ms=5) as producer:
            while True:
                device_id, message = await self._next()
                value = {"device_id": device_id, "text": "Hello", **message}
                producer.send(TOPIC, key=device_id.encode(), value=json.dumps(value).encode())

    async def _post(self, publication: Publication, port: int) -> None:
        async with http_connection(port) as call:
            while True:
                path, body = publication(*await self._next())
                status, answer = await call("POST", path, body=json.dumps(body).encode())
                assert status < 300, answer


async def happen(fault: str, server: Server) -> None:
    """Let a server have this fault, and wait until it is over."""
    kind, _, _ = fault.partition(" ")
    if kind == "paused":
        server.send_signal(signal.SIGSTOP)
    elif kind == "cut":
        server.link.flows.clear()
    elif kind == "killed":
        await server.kill()
    await asyncio.sleep(FAULTS[fault])
    if kind == "paused":
        server.send_signal(signal.SIGCONT)
    elif kind == "cut":
        server.link.flows.set()
    elif kind == "killed":
        await server.start()


async def _play(plan: Plan, side: Side, servers: list[Server], bootstrap: str, secret: str, fault: str) -> Row:
    """One side with one fault. Each fault has new devices, so that nothing is left of the one before."""
    await asyncio.gather(*(server.await_ready() for server in servers))
    name = fault.replace(" ", "-")
    ids = [f"{name}-{number}" for number in range(plan.devices)]
    fleet = [Device(one, token(secret, one), plan.clients, f"{plan.seed}/{fault}") for one in ids]
    publisher = Publisher(ids, plan.rate)
    tasks = [
        asyncio.create_task(publisher.run(side, servers[1], bootstrap)),
        *(asyncio.create_task(device.roam([server.url for server in servers], side.dialect)) for device in fleet),
    ]
    try:
        if fault == "none":
            await asyncio.sleep(plan.quiet_s)
        else:
            await asyncio.sleep(BEFORE_S)
            await happen(fault, servers[0])
            await asyncio.sleep(AFTER_S)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(device.hang_up() for device in fleet))
    for problem in ended:
        if isinstance(problem, Exception):
            raise problem
    row = Row(side.name, fault, publisher.published)
    for device in fleet:
        row.counts += device.counts()
        row.refused += device.refused
    return row


async def roam(plan: Plan, side: Side, stage: Stage) -> None:
    """One side with each fault, a line for each."""
    secret = secrets.token_hex(32)
    stage.redis.command("FLUSHALL")
    servers = [Server(side, number, stage.folder, stage.redis.port, stage.kafka.bootstrap, secret) for number in (0, 1)]
    try:
        for server in servers:
            await server.link.start()
            await server.start()
        for fault in plan.faults:
            click.echo(line(await _play(plan, side, servers, stage.kafka.bootstrap, secret, fault)))
    finally:
        for server in servers:
            await server.close()


HEAD: Final = (
    f"{'':<36} admitted refused published received   two open       s  longest brief   two served       s  longest   "
    "superseded twice"
)


def line(row: Row) -> str:
    one = row.counts
    return (
        f"{row.side:<22} {row.fault:<13} {one.admitted:>8} {sum(row.refused.values()):>7} "
        f"{row.published:>9} {one.received:>8}   "
        f"{_line(one.lasting):>25} {one.open.count - one.lasting.count:>5}   {_line(one.served):>27}   "
        f"{one.superseded:>10} {one.twice:>5}"
    )


def _line(spans: Spans) -> str:
    return f"{spans.count} {spans.total_ns / 1e9:>7.1f} {spans.longest_ns / 1e9:>8.2f}"


@click.command(help=__doc__)
@click.option("--devices", type=click.IntRange(1), default=50, show_default=True)
@click.option("--clients", type=click.IntRange(2), default=3, show_default=True, help="Of each device.")
@click.option("--rate", type=float, default=200.0, show_default=True, help="Messages per second.")
@click.option("--quiet", "quiet_s", type=float, default=20.0, show_default=True, help="Seconds without a fault.")
@click.option("--side", "names", multiple=True, type=click.Choice([side.name for side in SIDES]), help="Only this one.")
@click.option("--fault", "faults", multiple=True, type=click.Choice(list(FAULTS)), help="Only this one.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--ahead", is_flag=True, help="Run everything before the machine's other processes (needs CAP_SYS_NICE).")
def main(names: tuple[str, ...], faults: tuple[str, ...], ahead: bool, **choices: Any) -> None:
    plan = Plan(faults=faults or tuple(FAULTS), **choices)
    if ahead:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # the processes that this one starts inherit it
    with contextlib.ExitStack() as stack:
        stage = Stage(stack)
        click.echo(HEAD)
        for side in SIDES:
            if names and side.name not in names:
                continue
            try:
                side.prepare()
            except Unavailable as why:
                click.echo(f"skipped: {side.name}: {why}", err=True)
                continue
            click.echo(f"{side.version()}:")
            asyncio.run(roam(plan, side, stage))


if __name__ == "__main__":
    main()
