"""Measures single messages beside a fan-out, from Kafka to the device.

    python -m bench.fan_out_latency --kind sqlite

A gateway reads from Apache Kafka and has a mailbox with 100,000 known boxes, all of one group. A few other devices are
connected and get single messages at a steady rate. Windows alternate: without a fan-out, and with one record for the
group until it is stored for all of its members. It reports the latency in each window, and for each pair the ratio, the
CPU time for the fan-out itself (without what the single messages cost in the window before), the growth of the
gateway's memory, and how much of the cores went to anything else on the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from kafka import KafkaProducer

from cocoa_tornado.mailboxes.port import Mailbox, MailboxState
from cocoa_tornado.mailboxes.sqlite import SqliteMailbox
from cocoa_tornado.rules.audiences import ALL, of_group
from cocoa_tornado.rules.box import BoxLimits

from .gateways import with_mailbox
from .load_generator import Flow, build
from .proc import cpu_s, on_cores, split
from .stage import Reading, Stage, Trial, staged

GROUP: Final = "fleet"
CONNECTED: Final = 20
TEXT_BYTES: Final = 40
WARM_UP_S: Final = 8.0  # for the broker's compiler
PATIENCE_S: Final = 120.0
SETTLE_S: Final = 2.0
POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of the command."""

    members: int
    size: int
    rate: float
    pairs: int
    seconds: float
    linger_ms: int
    client: str
    ahead: bool


@dataclass(frozen=True, slots=True)
class Window:
    """:ivar ack_us: from a record to the broker's acknowledgement, which is part of the latency
    :ivar redis_s: the CPU time of Redis
    :ivar grown_mib: the growth of the gateway's resident memory
    """

    latency_us: dict[str, int]
    ack_us: dict[str, int]
    taken: Reading
    redis_s: float
    grown_mib: float
    lost: int

    def __str__(self) -> str:
        p50, p99, most = (self.latency_us[name] / 1000 for name in ("p50", "p99", "max"))
        return (
            f"{self.latency_us['count']:5} messages in {self.taken.at:4.1f} s: p50 {p50:5.1f} ms, p99 {p99:5.1f}, max"
            f" {most:5.1f} (broker's ack p99 {self.ack_us['p99'] / 1000:.1f}, max {self.ack_us['max'] / 1000:.1f});"
            f" {self.lost} lost; gateway {self.taken.server_s:.2f} s of CPU, Redis {self.redis_s:.2f} s"
        )


class Singles:
    """Windows of single messages to the devices of a trial.

    :param redis_pid: 0: there is no Redis
    """

    def __init__(self, trial: Trial, flow: Flow, redis_pid: int) -> None:
        self._trial, self._flow, self._redis_pid = trial, flow, redis_pid

    @contextlib.contextmanager
    def window(self) -> Iterator[list[Window]]:
        """Messages flow within the context; afterwards the window is in the list."""
        found: list[Window] = []
        resident, redis_s, before = self._resident_mib(), self._redis_s(), self._trial.read()
        self._trial.load.start(self._flow, SETTLE_S)
        yield found
        heard = self._trial.load.settle(PATIENCE_S)
        taken, redis_s = self._trial.read() - before, self._redis_s() - redis_s
        lost = heard["sent"] - heard["received"] + heard["strays"] + heard["disorder"]
        found.append(
            Window(heard["latency_us"], heard["ack_us"], taken, redis_s, self._resident_mib() - resident, lost)
        )

    def stored(self) -> int:
        """The messages that the gateway has stored so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._trial.load.port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return int(float(next(line for line in lines if line.startswith("cocoa_mailbox_stored_total")).split()[1]))

    def foreign(self, window: Window) -> str:
        """How much of the cores went to other processes. Redis is a child of this process, on the gateway's core."""
        taken, cores, redis_s = window.taken, self._trial.cores, window.redis_s
        server = 1 - (taken.server_idle_s + taken.server_s + redis_s) / taken.at / len(cores.server)
        load = 1 - (taken.load_idle_s + taken.load_s - redis_s) / taken.at / len(cores.load)
        return f"foreign load {max(server, 0):.0%} of its core, {max(load, 0):.0%} of the others"

    def _redis_s(self) -> float:
        return cpu_s(self._redis_pid) if self._redis_pid else 0.0

    def _resident_mib(self) -> float:
        pages = int(Path(f"/proc/{self._trial.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True, slots=True)
class Pair:
    """A window without a fan-out and one with it.

    :ivar fan_out_s: how long the fan-out took
    """

    alone: Window
    beside: Window
    fan_out_s: float

    @property
    def ratio(self) -> float:
        return self.beside.latency_us["p99"] / self.alone.latency_us["p99"]

    @property
    def cpu_s(self) -> tuple[float, float]:
        """Of the gateway and of Redis, for the fan-out itself."""
        alone, beside = self.alone, self.beside
        share = beside.taken.at / alone.taken.at
        return beside.taken.server_s - share * alone.taken.server_s, beside.redis_s - share * alone.redis_s


async def fill(mailbox: Mailbox, members: int) -> None:
    """This many devices join the group, and are not connected."""
    await mailbox.start()
    while mailbox.status().state is not MailboxState.READY:
        await asyncio.sleep(0.05)
    audiences = frozenset((ALL, of_group(GROUP)))
    for first in range(0, members, 1_000):
        names = range(first, min(first + 1_000, members))
        await asyncio.gather(*(mailbox.join(f"member-{name}", audiences) for name in names))
    await mailbox.close(30)


def arrange(load_pid: int, broker_pid: int) -> None:
    """Among the threads that run before ordinary ones: those of the load before the broker's, and the broker's compiler
    after all of them. Otherwise each would wait for whole time slices of the compiler, which are 100 ms long."""
    for task in Path(f"/proc/{load_pid}/task").iterdir():
        os.sched_setscheduler(int(task.name), os.SCHED_RR, os.sched_param(2))
    for task in Path(f"/proc/{broker_pid}/task").iterdir():
        if (task / "comm").read_text().startswith(("C1 Compiler", "C2 Compiler")):
            os.sched_setscheduler(int(task.name), os.SCHED_OTHER, os.sched_param(0))


def take(singles: Singles, fan_out: Callable[[], None], members: int, rate: float, seconds: float) -> Pair:
    """One window without, and one with a fan-out."""
    with singles.window() as found:
        time.sleep(seconds)
    [alone] = found
    before = singles.stored()
    with singles.window() as found:
        since = time.monotonic()
        fan_out()
        while singles.stored() - before < members + 0.9 * rate * (took_s := time.monotonic() - since):
            if took_s > PATIENCE_S:
                raise click.ClickException(f"the fan-out was not complete after {PATIENCE_S:.0f} s")
            time.sleep(POLL_S)
    [beside] = found
    return Pair(alone, beside, took_s)


def report(singles: Singles, pair: Pair, members: int) -> None:
    for name, window in (("alone", pair.alone), ("beside", pair.beside)):
        click.echo(f"  {name:6} {window}; {singles.foreign(window)}")
    gateway_s, redis_s = pair.cpu_s
    click.echo(
        f"  p99 ratio {pair.ratio:.2f}; {members} boxes in {pair.fan_out_s:.1f} s; CPU for the fan-out itself:"
        f" gateway {gateway_s:.1f} s, Redis {redis_s:.1f} s; memory {pair.beside.grown_mib:+.1f} MiB"
    )


def measure(stage: Stage, url: str, redis_pid: int, of: Settings) -> None:
    flow = Flow(CONNECTED, 1, of.rate, 0, linger_ms=of.linger_ms)
    record = json.dumps({"session_id": "s", "to": {"group": GROUP}, "text": "x" * of.size, "success": True})
    with stage.trial(with_mailbox(url, of.client)) as trial:
        if of.ahead:
            arrange(trial.load.pid, stage.broker_pid)
        trial.load.connect_all(CONNECTED, CONNECTED, 30)
        producer = KafkaProducer(bootstrap_servers=stage.bootstrap)
        singles = Singles(trial, flow, redis_pid)

        def fan_out() -> None:
            producer.send(trial.load.topic, key=GROUP.encode(), value=record.encode()).get(10)

        with singles.window():
            time.sleep(WARM_UP_S)
        pairs = []
        for _ in range(of.pairs):
            pairs.append(take(singles, fan_out, of.members, of.rate, of.seconds))
            report(singles, pairs[-1], of.members)
        producer.close()
    middle = statistics.median(pair.ratio for pair in pairs)
    alone, beside = ([getattr(pair, name).latency_us["p99"] / 1000 for pair in pairs] for name in ("alone", "beside"))
    click.echo(
        f"median ratio {middle:.2f}; of the median p99 {statistics.median(beside) / statistics.median(alone):.2f}"
        f" ({statistics.median(alone):.1f} -> {statistics.median(beside):.1f} ms); CPU for a fan-out"
        f" {statistics.median(sum(pair.cpu_s) for pair in pairs):.1f} s"
    )


@click.command(help=__doc__)
@click.option("--kind", type=click.Choice(["sqlite", "redis"]), default="sqlite", show_default=True)
@click.option("--members", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--size", type=click.IntRange(1), default=300, show_default=True, help="Bytes of the text for all.")
@click.option("--rate", type=click.FloatRange(1), default=200, show_default=True, help="Single messages per second.")
@click.option("--pairs", type=click.IntRange(1), default=3, show_default=True, help="Pairs of windows.")
@click.option("--seconds", type=click.FloatRange(1), default=8, show_default=True, help="Of a window without.")
@click.option("--linger-ms", type=click.IntRange(0), default=0, show_default=True, help="Of the producer.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the mailbox's files are; else those of Kafka.")
@click.option("--ahead", is_flag=True, help="Run everything before the machine's other processes (needs CAP_SYS_NICE).")
@click.option("--client", type=click.Choice(["confluent", "kafka-python"]), default="confluent", show_default=True)
def main(kind: str, folder: Path | None, **settings: Any) -> None:
    of, cores = Settings(**settings), split(frozenset(os.sched_getaffinity(0)))
    if of.ahead:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # the processes that this one starts inherit it
    with staged(build(), cores, TEXT_BYTES) as stage, contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cocoa-fan-out-", dir=folder)))
        mailbox: Mailbox
        if kind == "sqlite":
            url, redis_pid = f"sqlite:///{place}/box.db", 0
            mailbox = SqliteMailbox(place / "box.db", BoxLimits())
        else:
            from cocoa_tornado.mailboxes.redis import RedisMailbox
            from testing.redis_server import RedisServer

            redis = RedisServer(place / "redis")  # appendonly, as the documentation recommends
            with on_cores(cores.server):
                redis.start()
            stack.callback(redis.close)
            url, redis_pid = redis.url, redis.pid
            if of.ahead:
                # But not a child that rewrites its log.
                os.sched_setscheduler(redis_pid, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
            mailbox = RedisMailbox(url, BoxLimits())
        asyncio.run(fill(mailbox, of.members))
        click.echo(f"{kind}, {of.rate:g} single messages a second to {CONNECTED} devices:")
        measure(stage, url, redis_pid, of)


if __name__ == "__main__":
    main()
