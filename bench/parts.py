"""The parts of the benchmark: the operations and measurements for each contender.

Each part is a generator of samples, so samples before a contender's failure are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .contenders import GATEWAY_DIALECT, Contender
from .gateways import GATEWAYS
from .load_generator import Flow, Unfinished, message_bytes
from .plans import Plan
from .proc import Memory, ahead, memory
from .report import Findings
from .samples import FLOOR, Sample, half_of_saturation
from .stage import Reading, Stage, Trial

WARM_UP_S = 1.0
EACH = (1, 10)
AT_ONCE = 64  # concurrent handshakes in a calm phase
LEAST_HANDSHAKES_PER_S = 100.0
SETTLE_PATIENCE_S = 10.0
FLOW_PATIENCE_S = 120.0
MOST_OWN = 0.75  # the load's maximum share of its core; above it, latency may be the load's own
MOST_FOREIGN = 0.1  # likewise, the share of the server's core that goes to other processes
SETTLE_S = 6.0  # after the start, for the runtime's compilation and garbage collection
FLOOD_MESSAGES = 100_000
FLOOD_RATE = 1_000_000.0  # messages per second: more than any publisher can write
ESTABLISHED = 200  # devices that stay connected during the storm
ESTABLISHED_RATE = 400.0
CALM_S = 4.0
STORM_PATIENCE_S = 120.0
PING_PERIOD_S = 30.0  # of all contenders except Centrifugo, which pings every 25 s
PEACE_S = 2.0  # for work after a connection


@dataclass(frozen=True, slots=True)
class Turn:
    """The turn of one contender in one case of a part. ``contender`` is None for the floor."""

    stage: Stage
    plan: Plan
    findings: Findings
    contender: Contender | None
    devices: int
    number: int

    @property
    def name(self) -> str:
        return self.contender.name if self.contender else FLOOR

    def samples(self, part: str, case: str, **values: float) -> Iterator[Sample]:
        return (Sample(part, case, self.name, metric, value, self.number) for metric, value in values.items())


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the benchmark.

    :ivar devices: the numbers of devices to run it with
    :ivar names: the names under which it yields samples
    """

    play: Callable[[Turn], Iterator[Sample]]
    devices: Callable[[Plan], Sequence[int]]
    names: tuple[str, ...]
    with_floor: bool = False


def patience_s(devices: int) -> float:
    return 30.0 + devices / LEAST_HANDSHAKES_PER_S


def title(devices: int) -> str:
    return f"{devices:,} devices"


# -- messages


def measure(turn: Turn, trial: Trial, flow: Flow, is_counted: bool = True) -> tuple[float, dict[str, Any]]:
    """The server's CPU time per message in microseconds, and what the devices received.

    :param is_counted: False for a warm-up
    """
    before = trial.read()
    trial.load.start(flow, SETTLE_PATIENCE_S)
    heard = trial.load.settle(FLOW_PATIENCE_S + 2 * flow.messages / flow.rate)
    taken = trial.read() - before
    if not heard["received"]:
        raise Unfinished(f"none of {heard['sent']:,} messages has come {heard['closed'] or ''}")
    if is_counted:
        _witness(turn, trial, taken, heard)
    return taken.server_s / heard["received"] * 1e6, heard


def _witness(turn: Turn, trial: Trial, taken: Reading, heard: dict[str, Any]) -> None:
    """Record the readings of the load and the machine."""
    load_cores, server_cores = len(trial.cores.load), len(trial.cores.server)
    own, idle = taken.load_s / taken.at / load_cores, taken.load_idle_s / taken.at / load_cores
    readings = {
        "generator_us": heard["cpu_s"] / heard["received"] * 1e6,
        "load_own": own,
        "load_foreign": max(1 - own - idle, 0.0),
        "generator_lag_ms": heard["lag_us"] / 1000,
        "foreign": _foreign(taken, server_cores),
    }
    for name, value in readings.items():
        turn.findings.evidence.setdefault(name, []).append(value)
    if own > MOST_OWN:
        where = f"{turn.name}, {title(turn.devices)}, round {turn.number + 1}"
        turn.findings.note(f"{where}: generator and broker were busy for {own:.0%}; these latencies are theirs as well")


def _foreign(taken: Reading, server_cores: int) -> float:
    """The share of the server's cores that went to other processes."""
    return max(1 - (taken.server_idle_s + taken.server_s) / taken.at / server_cores, 0.0)


def _flow(plan: Plan, devices: int, each: int, rate: float, seconds: float = 0.0) -> Flow:
    return Flow(devices, each, rate, int(rate * (seconds or plan.seconds)) // each * each)


def _losses(heard: dict[str, Any]) -> dict[str, float]:
    return {"lost": heard["sent"] - heard["received"], "wrong": heard["strays"] + heard["disorder"]}


def _cost(turn: Turn, trial: Trial, each: int, rate: float) -> dict[str, float]:
    """The cost and latency of a message at a fixed rate."""
    return _cost_of(turn, trial, _flow(turn.plan, turn.devices, each, rate), rate)


def _cost_of(turn: Turn, trial: Trial, flow: Flow, rate: float) -> dict[str, float]:
    """:param rate: messages a second"""
    cpu_us, heard = measure(turn, trial, flow)
    latency = {f"{name}_ms": heard["latency_us"][name] / 1000 for name in ("p50", "p99", "p999")}
    return {"rate": rate, "cpu_us": cpu_us, "per_cpu_s": 1e6 / cpu_us, **latency, **_losses(heard)}


def broker(turn: Turn) -> Iterator[Sample]:
    """Messages from the broker to the devices: cost and latency at a fixed rate; cost at saturation, with a backlog;
    cost and latency at half of the saturated rate."""
    plan, devices = turn.plan, turn.devices
    cases = {each: f"{title(devices)}, {each} at a time" for each in EACH}
    if turn.contender is None:
        yield from _floor(turn, "broker", plan.rate, cases)
        yield from _floor(turn, "broker", 0.0, {each: f"{case}, saturated" for each, case in cases.items()})
        return
    with turn.stage.trial(turn.contender) as trial:
        trial.load.connect_all(devices, AT_ONCE, patience_s(devices))
        for each, case in cases.items():
            measure(turn, trial, _flow(plan, devices, each, plan.rate, WARM_UP_S), is_counted=False)
            found = _cost(turn, trial, each, plan.rate)
            yield from turn.samples("broker", case, **found)
            cpu_us, heard = measure(turn, trial, Flow(devices, each, FLOOD_RATE, plan.backlog), is_counted=False)
            most = {"cpu_us": cpu_us, "per_cpu_s": 1e6 / cpu_us}
            yield from turn.samples("broker", f"{case}, saturated", **most, **_losses(heard))
            rate = half_of_saturation(cpu_us, plan.most_rate)
            if rate == plan.most_rate:
                turn.findings.note(f"at half: not more than {rate:,.0f} messages a second, for the generator's sake")
            yield from turn.samples("broker", f"{case}, at half of saturation", **_cost(turn, trial, each, rate))


def growth(turn: Turn) -> Iterator[Sample]:
    """The cost of a message by the number of devices, at a fixed rate."""
    plan, devices, case = turn.plan, turn.devices, title(turn.devices)
    if turn.contender is None:
        yield from _floor(turn, "growth", plan.growth_rate, {1: case})
        return
    with turn.stage.trial(turn.contender) as trial:
        trial.load.connect_all(devices, AT_ONCE, patience_s(devices))
        measure(turn, trial, _flow(plan, devices, 1, plan.growth_rate, WARM_UP_S), is_counted=False)
        yield from turn.samples("growth", case, **_cost(turn, trial, 1, plan.growth_rate))


def _floor(turn: Turn, part: str, rate: float, cases: Mapping[int, str]) -> Iterator[Sample]:
    """The cost of the send() calls at this rate (0: unlimited), and the generator's maximum rate."""
    size = message_bytes(turn.stage.text_bytes)
    with turn.stage.floor() as (floor, trial):
        trial.load.connect_all(turn.devices, AT_ONCE, patience_s(turn.devices))
        for each, case in cases.items():
            messages = int(rate * turn.plan.seconds) or turn.plan.backlog
            taken = floor.flood(messages, each, rate, size)
            yield from turn.samples(part, case, cpu_us=taken["cpu_s"] / messages * 1e6)
            yield from turn.samples(part, case, per_cpu_s=messages / taken["cpu_s"])
        before = trial.load.heard()
        floor.flood(FLOOD_MESSAGES, 1, 0, size)
        after = trial.load.heard(before["received"] + FLOOD_MESSAGES, SETTLE_PATIENCE_S)
        received = after["received"] - before["received"]
        turn.findings.evidence.setdefault("generator_per_s", []).append(received / (after["cpu_s"] - before["cpu_s"]))


def fan_out(turn: Turn) -> Iterator[Sample]:
    """Messages for all devices of a group, at a fixed rate: a record for each device, or one for the group. Contenders
    without groups have no part in it."""
    assert turn.contender is not None
    plan, devices, case = turn.plan, turn.devices, f"a group of {title(turn.devices)}"
    if turn.contender not in GATEWAYS and turn.contender.dialect == GATEWAY_DIALECT:
        turn.findings.note(f"fan-out: {turn.name} has no groups")
        return
    with turn.stage.trial(turn.contender) as trial:
        trial.load.connect_all(devices, AT_ONCE, patience_s(devices), grouped=True)
        measure(turn, trial, _flow(plan, devices, 1, plan.rate, WARM_UP_S), is_counted=False)
        yield from turn.samples("fan-out", f"{case}, one record each", **_cost(turn, trial, 1, plan.rate))
        records = max(3, round(plan.rate * plan.seconds / devices))
        flow = Flow(devices, 1, plan.rate / devices, records, to_group=True)
        measure(turn, trial, replace(flow, messages=3), is_counted=False)
        yield from turn.samples("fan-out", f"{case}, one record for all", **_cost_of(turn, trial, flow, plan.rate))


# -- devices at rest


def rest(turn: Turn) -> Iterator[Sample]:
    """The memory and CPU time for devices that exchange only pings with the server."""
    devices, case, peace_s = turn.devices, title(turn.devices), turn.plan.rest_s
    if turn.contender is None:
        with turn.stage.floor() as (_, trial):
            grown, _ = _rested(trial, devices, PEACE_S)
            yield from turn.samples("memory", case, kernel_kib=grown.kernel / devices)
        return
    with turn.stage.trial(turn.contender) as trial:
        time.sleep(SETTLE_S)
        if "idle" in turn.plan.rounds:
            before = trial.read()
            time.sleep(CALM_S)
            alone = trial.read() - before
            yield from turn.samples("idle", "no devices", idle_ms=alone.server_s / alone.at * 1000)
        grown, peace = _rested(trial, devices, peace_s)
        yield from turn.samples(
            "memory",
            case,
            user_kib=grown.user / devices,
            own_kib=grown.own / devices,
            kernel_kib=grown.kernel / devices,
        )
        heard = trial.load.heard()
        if peace_s < PING_PERIOD_S:
            turn.findings.note(f"memory was read after {peace_s:.0f} s, before all devices had their first ping")
        elif heard["server_pings"] < devices:
            turn.findings.note(f"{turn.name}: only {heard['server_pings']:,} pings to {case} within {peace_s:.0f} s")
        yield from turn.samples(
            "idle", case, idle_ms=peace.server_s / peace.at * 1000, closed=sum(heard["closed"].values())
        )


def _rested(trial: Trial, devices: int, peace_s: float) -> tuple[Memory, Reading]:
    """The growth of memory after the devices have connected and rested, and the clock readings of that time."""
    before = memory(trial.pid)
    trial.load.connect_all(devices, AT_ONCE, patience_s(devices))
    time.sleep(PEACE_S)
    trial.load.forget()
    began = trial.read()
    time.sleep(peace_s)
    return memory(trial.pid) - before, trial.read() - began


# -- handshakes


def handshakes(turn: Turn) -> Iterator[Sample]:
    """The cost of handshakes with token verification, after a warm-up."""
    assert turn.contender is not None
    warm = turn.devices // 5
    with turn.stage.trial(turn.contender) as trial:
        trial.load.connect_all(warm, AT_ONCE, patience_s(warm))
        before = trial.read()
        found = trial.load.connect(warm, turn.devices, AT_ONCE, patience_s(turn.devices))
        taken = trial.read() - before
        if found["in"] < turn.devices:
            raise Unfinished(f"{found['in']:,} are in after {found['seconds']:.0f} s")
        case = f"{turn.devices:,}, {AT_ONCE} at a time"
        each_us = taken.server_s / turn.devices * 1e6
        yield from turn.samples("handshakes", case, handshake_us=each_us, handshakes_per_cpu_s=1e6 / each_us)


def storm(turn: Turn) -> Iterator[Sample]:
    """Most devices lose their connections and reconnect at once, while the others receive messages and ping.

    The devices that dial would take the whole core for half a second, and no record would reach the broker beside them.
    So the broker runs before them, as if it had a core of its own.
    """
    assert turn.contender is not None
    case = f"{turn.devices:,} come back at once, {ESTABLISHED} stay"
    flow = Flow(ESTABLISHED, 1, ESTABLISHED_RATE, 0, ping_every_s=1.0)
    with turn.stage.trial(turn.contender) as trial, ahead(turn.stage.broker_pid) as is_ahead:
        if not is_ahead:
            turn.findings.note("storm: the broker had to wait for the devices that dial; the latencies are its as well")
        load = trial.load
        load.connect_all(ESTABLISHED, AT_ONCE, patience_s(ESTABLISHED))
        measure(turn, trial, replace(flow, messages=int(ESTABLISHED_RATE * WARM_UP_S)), is_counted=False)
        load.connect(ESTABLISHED, turn.devices, AT_ONCE, patience_s(turn.devices))
        load.start(flow, SETTLE_PATIENCE_S)
        time.sleep(CALM_S)
        calm = load.settle(FLOW_PATIENCE_S)
        yield from turn.samples("storm", case, calm_p99_ms=calm["latency_us"]["p99"] / 1000)
        load.start(flow, SETTLE_PATIENCE_S)
        time.sleep(PEACE_S)
        before = trial.read()
        gone = load.vanish(ESTABLISHED, turn.devices)
        if gone < turn.devices:
            raise Unfinished(f"only {gone:,} were in when the storm broke")
        found = load.connect(ESTABLISHED, turn.devices, turn.devices, STORM_PATIENCE_S)
        foreign = _foreign(trial.read() - before, len(trial.cores.server))
        heard = load.settle(FLOW_PATIENCE_S)
        yield from turn.samples(
            "storm",
            case,
            refused=sum(found["refused"].values()),
            failed=sum(found["errors"].values()),
            **{f"{name}_ms": heard["latency_us"][name] / 1000 for name in ("p50", "p99", "max")},
            ack_max_ms=heard["ack_us"]["max"] / 1000,
            pong_p99_ms=heard["pong_us"]["p99"] / 1000,
            pongs_lost=heard["pings_sent"] - heard["pong_us"]["count"],
            closed=sum(heard["closed"].values()),
            **_losses(heard),
        )
        if foreign > MOST_FOREIGN:
            where = f"storm, {turn.name}, round {turn.number + 1}"
            turn.findings.note(f"{where}: {foreign:.0%} of the server's core went to other processes")
        for kind in ("refused", "errors"):
            for why, count in found[kind].items():
                turn.findings.note(f"storm, {turn.name}: {count:,} attempts ended with {why}")
        if found["in"] < turn.devices:
            raise Unfinished(f"{found['in']:,} are in after {STORM_PATIENCE_S:.0f} s")
        yield from turn.samples("storm", case, all_in_s=found["seconds"])


PARTS = [
    Part(broker, lambda plan: plan.broker_devices, ("broker",), with_floor=True),
    Part(growth, lambda plan: plan.growth_devices, ("growth",), with_floor=True),
    Part(fan_out, lambda plan: plan.fan_out_devices, ("fan-out",)),
    Part(rest, lambda plan: plan.rest_devices, ("memory", "idle"), with_floor=True),
    Part(handshakes, lambda plan: (plan.handshakes,), ("handshakes",)),
    Part(storm, lambda plan: (plan.storm_devices,), ("storm",)),
]
