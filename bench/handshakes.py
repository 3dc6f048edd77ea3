"""Measures the cost of presence in Redis at the handshake, compared with presence in the process:
``python -m bench.handshakes``.

Two gateways run side by side on one core; devices connect to one and the other in turn, with a token each. Some rounds
are a closed loop, with a fixed number of handshakes under way, and measure the gateway's CPU time. The others are an
open loop: devices arrive at a fixed rate, and each time counts from the moment at which the device was due to begin.
Redis shares the other core with the devices, so its answers wait for them now and then.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import click

from testing.redis_server import RedisServer, why_not

from .contenders import Contender
from .gateways import GATEWAYS
from .harness import TEXT_BYTES
from .load_generator import Unfinished, build
from .parts import patience_s
from .proc import cpu_s, raise_file_limit, split
from .stage import Trial, staged
from .workers import with_options

LOCAL, SHARED = "local", "Redis"
CASES = (64, 4)
"""Handshakes at once in a closed loop."""
EVERYBODY = 1_000_000
SETTLE_S = 1.0


@dataclass(slots=True)
class Costs:
    """One number for each round.

    :ivar each_us: CPU time of the gateway for a handshake
    :ivar redis_us: of Redis
    :ivar p50_ms: of the time that a device waits
    """

    each_us: list[float] = field(default_factory=list)
    redis_us: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)


def measure(trial: Trial, redis_pid: int, devices: int, at_once: int, rate: float, costs: Costs) -> None:
    """Connect devices, and have all of them vanish again."""
    before, redis_before = trial.read(), cpu_s(redis_pid)
    found = trial.load.connect(0, devices, at_once, patience_s(devices), rate=rate)
    taken, redis_s = trial.read() - before, cpu_s(redis_pid) - redis_before
    if found["in"] < devices or found["attempts"] > devices:
        raise Unfinished(f"{found['in']:,} of {devices:,} devices are in, after {found['attempts']:,} attempts")
    costs.each_us.append(taken.server_s / devices * 1e6)
    costs.redis_us.append(redis_s / devices * 1e6)
    costs.per_s.append(devices / found["seconds"])
    costs.p50_ms.append(found["time_us"]["p50"] / 1e3)
    costs.p99_ms.append(found["time_us"]["p99"] / 1e3)
    trial.load.vanish(0, devices)
    time.sleep(SETTLE_S)


def closed_lines(at_once: int, costs: Mapping[str, Costs]) -> Iterator[str]:
    ratios = sorted(there / here for here, there in zip(costs[LOCAL].each_us, costs[SHARED].each_us, strict=True))
    yield f"{at_once} at once: {statistics.median(ratios):.2f} times ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"
    for name, cost in costs.items():
        spread = f"{min(cost.each_us):.0f} to {max(cost.each_us):.0f}"
        in_redis = f", Redis {statistics.median(cost.redis_us):.0f} us" if name == SHARED else ""
        yield f"    {name:8}{statistics.median(cost.each_us):6.0f} us of CPU a handshake ({spread}){in_redis}"


def open_lines(rate: float, costs: Mapping[str, Costs]) -> Iterator[str]:
    yield f"{rate:,.0f} a second"
    for name, cost in costs.items():
        each = ", ".join(f"{value:.1f}" for value in cost.p99_ms)
        p50, p99 = statistics.median(cost.p50_ms), statistics.median(cost.p99_ms)
        cpu = statistics.median(cost.each_us)
        yield f"    {name:8}p50 {p50:5.2f} ms, p99 {p99:6.2f} ms ({each}), {cpu:.0f} us of CPU a handshake"


@contextlib.contextmanager
def redis_server(stage_folder: os.PathLike[str]) -> Iterator[RedisServer]:
    from pathlib import Path

    server = RedisServer(Path(stage_folder) / "redis")
    server.start()
    try:
        yield server
    finally:
        server.close()


@click.command(help=__doc__)
@click.option("--contender", "name", type=click.Choice([one.name for one in GATEWAYS]), default=GATEWAYS[0].name)
@click.option("--devices", type=click.IntRange(1), default=1_000, show_default=True, help="In a round.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of each kind.")
@click.option("--rate", type=float, help="Devices a second in the open loop; half of what was reached before it.")
@click.option("--only", type=click.Choice(["closed", "open"]), help="One kind of rounds.")
def main(name: str, devices: int, rounds: int, rate: float | None, only: str | None) -> None:
    if missing := why_not():
        raise click.ClickException(missing)
    contender = next(one for one in GATEWAYS if one.name == name)
    contender.prepare()
    raise_file_limit()
    with (
        staged(build(), split(frozenset(os.sched_getaffinity(0))), TEXT_BYTES) as stage,
        redis_server(stage.folder) as server,
        stage.trial(_named(contender, LOCAL)) as local,
        stage.trial(_named(contender, SHARED, "--presence", server.url)) as shared,
    ):
        trials = {LOCAL: local, SHARED: shared}
        warm_up = _rounds(trials, server.pid, devices, CASES[0], 0.0, 1)
        for at_once in CASES if only != "open" else ():
            for line in closed_lines(at_once, _rounds(trials, server.pid, devices, at_once, 0.0, rounds)):
                click.echo(line)
        if only != "closed":
            wanted = rate or min(cost.per_s[0] for cost in warm_up.values()) / 2
            for line in open_lines(wanted, _rounds(trials, server.pid, devices, EVERYBODY, wanted, rounds)):
                click.echo(line)


def _rounds(
    trials: Mapping[str, Trial], redis_pid: int, devices: int, at_once: int, rate: float, rounds: int
) -> dict[str, Costs]:
    costs = {name: Costs() for name in trials}
    for _ in range(rounds):
        for name, trial in trials.items():
            measure(trial, redis_pid, devices, at_once, rate, costs[name])
    return costs


def _named(contender: Contender, name: str, *options: str) -> Contender:
    return with_options(contender, name, *options)


if __name__ == "__main__":
    main()
