"""CPU time of a message by where its device is: ``python -m bench.servers_cost``.

Two gateways share a consumer group, a topic with one partition, and presence in Redis. So one of them reads everything,
and the devices are connected to it (``here``), or to the other one (``forwarded``). A third gateway has a topic and all
devices to itself, without Redis (``alone``). The three cases take turns. The figures are CPU time per message: of both
gateways together, without what they use while nothing happens, and of Redis.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import statistics
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

import click
import redis

from testing.kafka_admin import create_topic
from testing.ports import ReservedPort
from testing.redis_server import RedisServer, why_not

from .contenders import Contender, Run
from .gateways import GATEWAYS
from .harness import TEXT_BYTES
from .load_generator import Flow, Load, build
from .parts import AT_ONCE, FLOW_PATIENCE_S, SETTLE_PATIENCE_S, WARM_UP_S, patience_s
from .proc import cpu_s, raise_file_limit, split
from .stage import Stage, running, staged
from .survival_faults import pythonpath
from .workers import with_options

IDLE_S = 3.0
CASES = ("alone", "here", "forwarded")
CONSUMED = "cocoa_records_consumed_total"


@dataclass(frozen=True, slots=True)
class Server:
    """A gateway that is ready."""

    port: int
    pid: int

    def consumed(self) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(CONSUMED))


@dataclass(slots=True)
class Group:
    """Gateways that share a topic, and their devices."""

    servers: list[Server]
    load: Load
    idle: float = 0.0  # CPU seconds a second

    def cpu_s(self) -> float:
        return sum(cpu_s(server.pid) for server in self.servers)

    def reader(self, flow: Flow) -> int:
        """The index of the gateway that owns the partition."""
        before = [server.consumed() for server in self.servers]
        play(self.load, flow)
        found = [server.consumed() - count for server, count in zip(self.servers, before, strict=True)]
        return found.index(max(found))


@dataclass(slots=True)
class Costs:
    """Microseconds of CPU a message, one number for each trial.

    :ivar idle: what the gateways use while nothing happens, a message
    """

    gateways: list[float] = field(default_factory=list)
    redis: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    commands: list[float] = field(default_factory=list)
    lost: int = 0

    def line(self, name: str) -> str:
        middle = [statistics.median(each) for each in (self.gateways, self.redis, self.idle, self.commands)]
        spread = f"{min(self.gateways):.1f} to {max(self.gateways):.1f}"
        return (
            f"{name:12}{middle[0]:7.1f} us ({spread}), Redis {middle[1]:5.2f} us, {middle[3]:.3f} calls; "
            f"idle {middle[2]:.1f} us; lost {self.lost}"
        )


@contextlib.contextmanager
def group(stage: Stage, contender: Contender, count: int, name: str) -> Iterator[Group]:
    """This many gateways, and a topic of one partition."""
    create_topic(stage.bootstrap, name, 1)
    secret = secrets.token_hex(32)
    environ = os.environ | pythonpath() | {"COCOA_JWT_SECRET": secret}
    with contextlib.ExitStack() as stack:
        servers = []
        for number in range(count):
            reserved = stack.enter_context(contextlib.closing(ReservedPort()))
            command = contender.command(Run(reserved.number, stage.bootstrap, name, name))
            log = stage.folder / f"{name}-{number}.log"
            process = stack.enter_context(running(command, environ, log, reserved.number, stage.cores.server))
            servers.append(Server(reserved.number, process.pid))
        load = Load(stage.binary, secret, servers[0].port, stage.bootstrap, name, stage.text_bytes)
        yield Group(servers, stack.enter_context(load))


def play(load: Load, flow: Flow) -> int:
    """Returns how many messages have arrived."""
    load.start(flow, SETTLE_PATIENCE_S)
    return int(load.settle(FLOW_PATIENCE_S + flow.messages / flow.rate)["received"])


def calls(server: RedisServer) -> int:
    """Commands that clients have sent."""
    with redis.Redis(port=server.port) as client:
        info = client.info("commandstats")
    return sum(int(found["calls"]) for name, found in info.items() if name in ("cmdstat_evalsha", "cmdstat_xread"))


def measure(of: Group, port: int, flow: Flow, warm_up: Flow, server: RedisServer, costs: Costs) -> None:
    of.load.port = port
    of.load.connect_all(flow.count, AT_ONCE, patience_s(flow.count))
    play(of.load, warm_up)
    commands = calls(server)
    since, before, redis_before = time.monotonic(), of.cpu_s(), cpu_s(server.pid)
    received = play(of.load, flow)
    took_s = time.monotonic() - since
    used_s, each = of.cpu_s() - before, 1e6 / received
    costs.gateways.append((used_s - of.idle * took_s) * each)
    costs.redis.append((cpu_s(server.pid) - redis_before) * each)
    costs.idle.append(of.idle * took_s * each)
    costs.commands.append((calls(server) - commands) / received)
    costs.lost += flow.messages - received
    of.load.vanish(0, flow.count)


def ratios(found: dict[str, Costs]) -> str:
    """Of the medians, and the smallest and the greatest one of a round."""

    def ratio(name: str, of: str) -> str:
        each = [one / other for one, other in zip(found[name].gateways, found[of].gateways, strict=True)]
        middle = statistics.median(found[name].gateways) / statistics.median(found[of].gateways)
        return f"{name}/{of} {middle:.2f} ({min(each):.2f} to {max(each):.2f})"

    return f"{ratio('forwarded', 'here')}, {ratio('here', 'alone')}"


@click.command(help=__doc__)
@click.option("--contender", "name", type=click.Choice([one.name for one in GATEWAYS]), default=GATEWAYS[0].name)
@click.option("--devices", type=click.IntRange(1), default=200, show_default=True)
@click.option("--rate", type=float, default=2_000.0, show_default=True, help="Messages per second.")
@click.option("--seconds", type=click.FloatRange(1), default=4.0, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=4, show_default=True)
def main(name: str, devices: int, rate: float, seconds: float, rounds: int) -> None:
    if missing := why_not():
        raise click.ClickException(missing)
    contender = next(one for one in GATEWAYS if one.name == name)
    contender.prepare()
    raise_file_limit()
    flow, warm_up = (Flow(devices, 1, rate, int(rate * length)) for length in (seconds, WARM_UP_S))
    found = {case: Costs() for case in CASES}
    with staged(build(), split(frozenset(os.sched_getaffinity(0))), TEXT_BYTES) as stage:
        server = RedisServer(stage.folder / "redis")
        server.start()
        shared = with_options(contender, "shared", "--presence", server.url)
        try:
            with group(stage, contender, 1, "bench.alone") as one, group(stage, shared, 2, "bench.shared") as two:
                for of in (one, two):
                    of.load.connect_all(devices, AT_ONCE, patience_s(devices))
                reader = two.reader(warm_up)
                ports = {"alone": one.servers[0].port, "here": two.servers[reader].port}
                ports["forwarded"] = two.servers[1 - reader].port
                for of in (one, two):
                    of.load.vanish(0, devices)
                    before = of.cpu_s()
                    time.sleep(IDLE_S)
                    of.idle = (of.cpu_s() - before) / IDLE_S
                for _ in range(rounds):
                    for case in CASES:
                        measure(one if case == "alone" else two, ports[case], flow, warm_up, server, found[case])
                        click.echo(found[case].line(case), err=True)
        finally:
            server.kill()
            server.close()
    for case, costs in found.items():
        click.echo(costs.line(case))
    click.echo(ratios(found))


if __name__ == "__main__":
    main()
