"""Restarts several servers, one after another, under 10,000 devices: ``python -m bench.rolling --restart servers``.

Three servers share Redis and a group of Apache Kafka, and messages flow all the time. Each server is sent SIGTERM,
started again, and the next one follows when all devices are connected. The devices return when their ``reconnect``
notice says so, to a server that a load balancer would choose. With the mailbox, every device must have received every
message once and in order. No server may be sent more than twice as many handshakes in a second as ``ADMITTED_PER_S``.
Exit status 1 if any check fails.

``--update`` begins with servers of the previous release (``testing/previous_release.py``). Each is restarted with this
release, in which canaries are on, and then each with the previous one again.

``--restart workers`` restarts the workers of one ``serve --workers`` in the same way, and ``--restart parent`` all of
them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from cocoa_tornado.rules.departure import ADMITTED_PER_S

from .load_generator import Flow, Load, Unfinished, build
from .proc import family, raise_file_limit, waited_s
from .rolling_logs import Handshakes, warnings
from .soak_gateway import GatewayFailed, GatewayProcess
from .survival_faults import pythonpath

TOPIC = "transcription.results"
PARTITIONS = 12
TEXT_BYTES = 120
AT_ONCE = 100  # connection attempts at a time, until all devices are connected
CALM_S = 5.0  # between a restart and the next
SETTLE_S = 20.0  # without a message, after which those that are missing are lost
PATIENCE_S = 240.0
STOP_PATIENCE_S = 60.0  # twice drain_grace, for a machine that is busy with other things
OPTIONS = [
    *("--log-format", "json", "--log-level", "info", "--mailbox-max-messages", "100000", "--mailbox-max-bytes", "1GiB"),
    *("--kafka-results-topic", TOPIC, "--max-pending-connections", "16384"),
]
CANARIES = ("--canary-interval", "500ms")
ARRIVED = "cocoa_canary_seconds_count"
CANARY_COUNTS = ("cocoa_canary_sent_total", ARRIVED, "cocoa_canary_lost_total", "cocoa_canary_leaked_total")
DROPS = ("cocoa_messages_unknown_device_total", "cocoa_messages_dropped_total", "cocoa_mailbox_lost_total")


@dataclass(frozen=True, slots=True)
class Plan:
    """:ivar rate: messages a second for all devices
    :ivar balance: how the load balancer chooses a server: ``random`` or ``least``, the one with the fewest connections
    :ivar update: from the previous release to this one, and back
    """

    restart: str = "servers"
    servers: int = 3
    devices: int = 10_000
    rate: float = 500.0
    mailbox: str = "redis"
    balance: str = "random"
    update: bool = False


@dataclass(slots=True)
class Restart:
    """One restart, in seconds since its SIGTERM.

    :ivar ended_s: when the process had ended
    :ivar ready_s: when the next one was ready
    :ivar back_s: when all devices were connected
    :ivar away: for how long devices were without a connection, in milliseconds
    :ivar refused: handshakes, by outcome
    :ivar unnoticed: connections that ended without a ``reconnect`` notice
    :ivar sent: the most handshakes that were sent to a server in a second, and in 100 ms
    :ivar answered: likewise, what a server or worker answered
    """

    name: str
    status: int | None
    ended_s: float
    ready_s: float
    back_s: float
    away: dict[str, int]
    unnoticed: int
    refused: dict[str, int]
    errors: dict[str, int]
    sent: tuple[int, int]
    answered: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Outcome:
    restarts: list[Restart] = field(default_factory=list)
    sent: int = 0
    failed: int = 0
    received: int = 0
    doubled: int = 0
    unordered: int = 0
    gaps: int = 0
    strays: int = 0
    connected_at_end: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    canaries: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    load: float = 0.0
    pressure: float = 0.0

    @property
    def lost(self) -> int:
        return self.sent - self.failed - self.received


def violations(plan: Plan, outcome: Outcome) -> list[str]:
    """The failed checks, one line each; empty if all passed."""
    must_be_zero = {
        "messages twice": outcome.doubled,
        "messages out of order": outcome.unordered,
        "messages at a wrong device": outcome.strays,
        "gap notices": outcome.gaps,
        "devices not connected at the end": plan.devices - outcome.connected_at_end,
        "servers that did not drain": sum(restart.status != 0 for restart in outcome.restarts),
        "connections that ended without a notice": sum(restart.unnoticed for restart in outcome.restarts),
        "errors in the servers' logs": len(outcome.complaints),
    }
    for name in CANARY_COUNTS[2:]:
        must_be_zero[name] = outcome.canaries.get(name, 0)
    if plan.mailbox != "none":
        must_be_zero["messages lost"] = outcome.lost
    found = [f"{name}: {count}" for name, count in must_be_zero.items() if count]
    # All workers have one port. With a parent, no other server remains to send the devices to.
    sent = plan.restart == "servers"
    most = max(((one.sent if sent else one.answered)[0] for one in outcome.restarts), default=0)
    if most > 2 * ADMITTED_PER_S and plan.restart != "parent":
        found.append(f"handshakes of one server in a second: {most}, of {2 * ADMITTED_PER_S} at most")
    if plan.update and not outcome.canaries.get(ARRIVED):
        found.append("no canary message arrived")
    if not (outcome.received and outcome.restarts):
        found.append("nothing happened")
    return found


class Place:
    """A server, or a parent with workers, that keeps its port and name from one life to the next.

    :param previous: the folder of the previous release; None: each life is of this one
    :ivar is_previous: whether the next life is of the previous release
    """

    def __init__(self, name: str, folder: Path, secret: str, options: list[str], previous: Path | None = None) -> None:
        from testing.ports import ReservedPort

        self.name = name
        self.port = ReservedPort().number
        self._folder, self._secret, self._lives = folder, secret, 0
        self._options = [*options, "--port", str(self.port), "--server-name", name]
        self._previous, self.is_previous = previous, previous is not None
        self.gateway: GatewayProcess
        self.logs: list[Path] = []
        self.complaints: list[str] = []
        self._counts: list[dict[str, float]] = []

    async def start(self) -> None:
        self._lives += 1
        folder = self._folder / f"{self.name}-{self._lives}"
        folder.mkdir()
        self.logs.append(folder / "log")
        self.gateway = self._gateway(folder)
        self._counts.append({})
        await self.gateway.start()

    def _gateway(self, folder: Path) -> GatewayProcess:
        from testing.previous_release import command

        if self.is_previous:
            return GatewayProcess(folder, self._secret, self._options, {"PYTHONPATH": str(self._previous)}, command())
        options = self._options if self._previous is None else [*self._options, *CANARIES]
        return GatewayProcess(folder, self._secret, options, pythonpath())

    async def look(self) -> None:
        """Remember what this life has counted so far."""
        with contextlib.suppress(GatewayFailed):
            self._counts[-1] = await self.gateway.metrics()

    def counted(self, prefix: str) -> int:
        """Over all lives, as far as they have been looked at."""
        return int(sum(value for life in self._counts for name, value in life.items() if name.startswith(prefix)))

    async def stop(self) -> int | None:
        status = await self.gateway.stop(STOP_PATIENCE_S)
        self.complaints += self.gateway.complaints()
        return status

    async def restart_worker(self, pid: int) -> int | None:
        """Returns when the worker has ended. The parent starts the next one."""
        os.kill(pid, signal.SIGTERM)
        while pid in family(self.gateway.pid):
            await asyncio.sleep(0.05)
        return 0

    async def await_ready(self, workers: int) -> None:
        """Wait until it is ready, with this many workers."""
        while workers and len(family(self.gateway.pid)) <= workers:
            await asyncio.sleep(0.05)
        await self.gateway.await_ready()


class Stage:
    """Kafka, Redis, and the servers."""

    def __init__(self, plan: Plan, stack: contextlib.ExitStack) -> None:
        from testing.kafka_admin import create_topic
        from testing.kafka_server import KafkaServer
        from testing.redis_server import RedisServer

        self.plan = plan
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cocoa-rolling-")))
        self.kafka = KafkaServer(folder / "kafka")
        self.kafka.start()
        stack.callback(self.kafka.kill)
        create_topic(self.kafka.bootstrap, TOPIC, PARTITIONS)
        redis = RedisServer(folder / "redis")
        redis.start()
        stack.callback(redis.kill)
        self.secret = secrets.token_hex(32)
        options = [*OPTIONS, "--broker", f"kafka://{self.kafka.bootstrap}", "--presence", redis.url]
        if plan.mailbox == "redis":
            options += ["--mailbox", redis.url]
        self.workers = 0 if plan.restart == "servers" else plan.servers
        if self.workers:
            options += ["--workers", str(self.workers)]
        places = 1 if self.workers else plan.servers
        self.windows: list[tuple[float, float]] = []
        previous = _check_out(folder) if plan.update else None
        self.places = [Place(f"server-{number}", folder, self.secret, options, previous) for number in range(places)]


def _check_out(folder: Path) -> Path:
    from testing.previous_release import check_out, find_commit

    previous = folder / "previous"
    check_out(find_commit(), previous)
    return previous


async def roll(plan: Plan) -> Outcome:
    """Run once.

    :raises Unfinished: the devices could not connect, or did not return
    :raises Unavailable: Go is missing
    """
    raise_file_limit()
    outcome = Outcome(load=os.getloadavg()[0])
    started, waited = time.monotonic(), waited_s()
    with contextlib.ExitStack() as stack:
        binary = await asyncio.to_thread(build)
        stage = await asyncio.to_thread(Stage, plan, stack)
        load = Load(binary, stage.secret, 0, stage.kafka.bootstrap, TOPIC, TEXT_BYTES)
        stack.enter_context(load)
        try:
            await asyncio.gather(*(place.start() for place in stage.places))
            await asyncio.gather(*(place.await_ready(stage.workers) for place in stage.places))
            await _run(stage, load, outcome)
        finally:
            for place in stage.places:
                with contextlib.suppress(AttributeError):
                    await place.stop()
        for place in stage.places:
            outcome.complaints += place.complaints
        logs = [path for place in stage.places for path in place.logs]
        handshakes = Handshakes.read(logs)
        outcome.warnings = dict(warnings(logs))
        for restart, (since, until) in zip(outcome.restarts, stage.windows, strict=True):
            restart.answered = handshakes.busiest(since, until, 1.0), handshakes.busiest(since, until, 0.1)
            restart.refused = handshakes.refusals(since, until)
    outcome.pressure = (waited_s() - waited) / (time.monotonic() - started)
    return outcome


async def _run(stage: Stage, load: Load, outcome: Outcome) -> None:
    plan = stage.plan
    ports = [place.port for place in stage.places]
    await asyncio.to_thread(_connect_all, plan, load, ports)
    looking = asyncio.ensure_future(_look(stage.places))
    flow = Flow(plan.devices, 1, plan.rate, 0)
    await asyncio.to_thread(load.start, flow, SETTLE_S)
    try:
        await asyncio.sleep(CALM_S)
        async for restart in _restarts(stage, load):
            print(_line(restart), file=sys.stderr, flush=True)
            outcome.restarts.append(restart)
            await asyncio.sleep(CALM_S)
        found = await asyncio.to_thread(load.settle, PATIENCE_S)
    finally:
        looking.cancel()
    outcome.sent, outcome.failed, outcome.received = found["sent"], found["failed"], found["received"]
    outcome.strays = found["strays"]
    seen = load.ask("returned")
    outcome.doubled, outcome.unordered, outcome.gaps = seen["doubled"], seen["unordered"], seen["gaps"]
    outcome.connected_at_end = load.ask("open")["open"]
    await asyncio.gather(*(place.look() for place in stage.places))
    outcome.dropped = {name: sum(place.counted(name) for place in stage.places) for name in DROPS}
    outcome.canaries = {name: sum(place.counted(name) for place in stage.places) for name in CANARY_COUNTS}


def _connect_all(plan: Plan, load: Load, ports: list[int]) -> None:
    wanted = {"ports": ports, "least_connections": plan.balance == "least", "cursors": plan.mailbox != "none"}
    wanted |= {"count": plan.devices, "at_once": AT_ONCE, "within_s": PATIENCE_S}
    found = load.ask("roam", 2 * PATIENCE_S, **wanted)
    if found["in"] < plan.devices:
        raise Unfinished(f"{found['in']} of {plan.devices} devices are connected: {found['refused']} {found['errors']}")


async def _restarts(stage: Stage, load: Load) -> AsyncIterator[Restart]:
    if stage.plan.restart == "workers":
        (parent,) = stage.places
        for pid in family(parent.gateway.pid)[1:]:
            yield await _restart(stage, load, parent, pid)
    else:
        for is_previous in (False, True) if stage.plan.update else (False,):
            for place in stage.places:
                place.is_previous = is_previous
                yield await _restart(stage, load, place, None)


async def _restart(stage: Stage, load: Load, place: Place, worker: int | None) -> Restart:
    load.ask("returned")
    began, since = time.time(), time.monotonic()
    status = await (place.stop() if worker is None else place.restart_worker(worker))
    ended = time.monotonic()
    if worker is None:
        await place.start()
    await place.await_ready(stage.workers)
    ready = time.monotonic()
    while (await asyncio.to_thread(load.ask, "open"))["open"] < stage.plan.devices:
        if time.monotonic() > since + PATIENCE_S:
            raise Unfinished(f"not all devices have returned in {PATIENCE_S:.0f} s")
        await asyncio.sleep(0.1)
    back = time.monotonic()
    stage.windows.append((began, time.time()))
    seen = load.ask("returned")
    name = place.name if worker is None else f"worker {worker}"
    return Restart(
        name,
        status,
        ended - since,
        ready - since,
        back - since,
        seen["outage_ms"],
        seen["unnoticed"],
        seen["refused"],
        seen["errors"],
        tuple(seen["busiest"]),
    )


async def _look(places: list[Place]) -> None:
    while True:
        await asyncio.sleep(0.5)
        await asyncio.gather(*(place.look() for place in places))


def _line(restart: Restart) -> str:
    away = restart.away
    return (
        f"{restart.name}: ended after {restart.ended_s:.1f} s, ready after {restart.ready_s:.1f} s, all devices back "
        f"after {restart.back_s:.1f} s; {away['count']} devices without a connection for {away['p50']} ms in the "
        f"median, {away['max']} ms at most; refused {restart.refused or 0}, failed {restart.errors or 0}"
    )


def report(plan: Plan, outcome: Outcome) -> list[str]:
    found = [
        f"restart of {plan.restart}, {plan.servers} of them, mailbox {plan.mailbox}, balance {plan.balance}: "
        f"{plan.devices} devices, {plan.rate:g} messages a second; some process has waited for a "
        f"processor for {outcome.pressure:.0%} of the time, load average before {outcome.load:.1f}"
    ]
    for restart in outcome.restarts:
        found.append(f"  {_line(restart)}")
        found.append(
            f"    handshakes of one server in a second and in 100 ms: sent {restart.sent}, answered {restart.answered}"
        )
    dropped = ", ".join(f"{name} {count}" for name, count in outcome.dropped.items())
    if plan.update:
        dropped += ", " + ", ".join(f"{name} {count}" for name, count in outcome.canaries.items())
    return [
        *found,
        f"  sent {outcome.sent}, received {outcome.received}, lost {outcome.lost}, twice {outcome.doubled}, "
        f"out of order {outcome.unordered}, gap notices {outcome.gaps}, wrong device {outcome.strays}",
        f"  counted by the servers: {dropped}; warnings in their logs: {outcome.warnings or 0}",
    ]


@click.command(help=__doc__)
@click.option("--restart", type=click.Choice(["servers", "workers", "parent"]), default="servers", show_default=True)
@click.option("--servers", type=click.IntRange(1), default=3, show_default=True, help="How many, or how many workers.")
@click.option("--devices", type=click.IntRange(1, 19_000), default=10_000, show_default=True)
@click.option("--rate", type=float, default=500.0, show_default=True, help="Messages per second.")
@click.option("--mailbox", type=click.Choice(["redis", "none"]), default="redis", show_default=True)
@click.option("--update", is_flag=True, help="From the previous release to this one, and back.")
@click.option("--balance", type=click.Choice(["random", "least"]), default="random", show_default=True)
def main(**choices: Any) -> None:
    plan = Plan(**choices)
    outcome = asyncio.run(roll(plan))
    for line in report(plan, outcome):
        click.echo(line)
    found = violations(plan, outcome)
    for line in [*found, *outcome.complaints[:20]]:
        click.echo(f"  NOT {line}" if line in found else f"    {line}", err=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
