"""Compares one gateway with two workers: ``python -m bench.workers``.

Records flow from Kafka to devices, with presence in Redis. It measures the CPU time of all processes of the gateway per
message that a device got, and Redis' beside it, in alternating trials. All processes of the gateway share one core, so
the time that a message takes says nothing; the CPU time says how much two workers could do with a core each: ``2 * one
/ two`` times as much as one.

Each worker gets as many messages a second as the one gateway, because a message costs less the more of them are read at
once: two workers get twice the rate. With ``--same-rate`` they share the rate of the one gateway; then part of what two
workers cost more is the price of smaller batches.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import click
import redis

from testing.redis_server import RedisServer, why_not

from .contenders import Contender, Run
from .gateways import GATEWAYS
from .harness import TEXT_BYTES
from .load_generator import Flow, build
from .parts import AT_ONCE, FLOW_PATIENCE_S, SETTLE_PATIENCE_S, WARM_UP_S, patience_s
from .proc import cpu_s, raise_file_limit, split
from .stage import Stage, staged

WORKERS = 2


@dataclass(slots=True)
class Costs:
    """CPU time per message in microseconds, one number for each trial."""

    gateway_us: list[float] = field(default_factory=list)
    redis_us: list[float] = field(default_factory=list)

    def line(self, name: str) -> str:
        spread = f"{min(self.gateway_us):.1f} to {max(self.gateway_us):.1f}"
        here, there = statistics.median(self.gateway_us), statistics.median(self.redis_us)
        return f"{name:12}{here:8.1f} us ({spread}), Redis {there:.1f} us"


def with_options(contender: Contender, name: str, *options: str) -> Contender:
    """The same command with further options."""

    def command(run: Run, base: Callable[[Run], list[str]] = contender.command) -> list[str]:
        return [*base(run), *options]

    return Contender(name, contender.description, contender.prepare, command)


def measure(stage: Stage, server: RedisServer, contender: Contender, devices: int, flow: Flow, costs: Costs) -> None:
    with redis.Redis(port=server.port) as client:
        client.flushall()  # the devices of the trial before, whose server was killed
    with stage.trial(contender) as trial:
        trial.load.connect_all(devices, AT_ONCE, patience_s(devices))
        warm_up = Flow(devices, 1, flow.rate, int(flow.rate * WARM_UP_S))
        for now in (warm_up, flow):
            before, redis_before = trial.read(), cpu_s(server.pid)
            trial.load.start(now, SETTLE_PATIENCE_S)
            heard = trial.load.settle(FLOW_PATIENCE_S + now.messages / now.rate)
        each = 1e6 / heard["received"]
        costs.gateway_us.append((trial.read() - before).server_s * each)
        costs.redis_us.append((cpu_s(server.pid) - redis_before) * each)
        lost = now.messages - heard["received"]
        click.echo(f"{contender.name}: {costs.gateway_us[-1]:.1f} us, {lost} of {now.messages} lost", err=True)


@click.command(help=__doc__)
@click.option("--contender", "name", type=click.Choice([one.name for one in GATEWAYS]), default=GATEWAYS[0].name)
@click.option("--devices", type=click.IntRange(1), default=200, show_default=True)
@click.option("--rate", type=float, default=2_000.0, show_default=True, help="Messages per second and gateway.")
@click.option("--same-rate", is_flag=True, help="Two workers share the rate of one gateway.")
@click.option("--seconds", type=click.FloatRange(1), default=6.0, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
def main(name: str, devices: int, rate: float, same_rate: bool, seconds: float, rounds: int) -> None:
    if missing := why_not():
        raise click.ClickException(missing)
    contender = next(one for one in GATEWAYS if one.name == name)
    contender.prepare()
    raise_file_limit()
    cores = split(frozenset(os.sched_getaffinity(0)))
    flow, one, two = Flow(devices, 1, rate, int(rate * seconds)), Costs(), Costs()
    shared_rate = rate if same_rate else rate * WORKERS
    shared_flow = Flow(devices, 1, shared_rate, int(shared_rate * seconds))
    with staged(build(), cores, TEXT_BYTES) as stage:
        server = RedisServer(stage.folder / "redis")
        server.start()
        try:
            shared = with_options(contender, "one", "--presence", server.url)
            several = with_options(shared, "two", "--workers", str(WORKERS))
            for _ in range(rounds):
                measure(stage, server, shared, devices, flow, one)
                measure(stage, server, several, devices, shared_flow, two)
        finally:
            server.kill()
            server.close()
    click.echo(one.line("one gateway"))
    click.echo(two.line("two workers"))
    factor = WORKERS * statistics.median(one.gateway_us) / statistics.median(two.gateway_us)
    click.echo(f"two workers can do {factor:.2f} times as much, by CPU time per message")


if __name__ == "__main__":
    main()
