"""Compares the gateway with alternatives: ``make bench``, ``make bench-full``.

Each contender is one process, pinned to one core of this machine; the devices, the publisher and Apache Kafka use the
others. Contenders take turns in several rounds. Absolute figures depend on the machine, so read the ratios. The floor
is a program that only makes one send() call per message, on the same number of sockets, in the same run.

Parts: broker (cost and latency of messages), growth (the same with more and more devices), fan-out (one record for a
group of devices, and one for each of them), memory and idle (silent devices), handshakes (with a JWT), storm (all
devices reconnect at once).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click
from kafka.errors import KafkaError

from . import plot
from .contenders import ALL, Contender, Unavailable
from .gateways import GATEWAYS
from .load_generator import Unfinished, build
from .parts import PARTS, Part, Turn
from .plans import FULL, QUICK, Plan
from .proc import describe_machine, raise_file_limit, split
from .report import TITLES, Findings, document, text
from .samples import Failure, fitting
from .stage import Stage, staged

RESULTS = Path(__file__).parent / "results"
TEXT_BYTES = 40


def able(names: Sequence[str], findings: Findings) -> list[Contender]:
    """The selected contenders that can run here; the others are noted."""
    found = []
    for contender in (*GATEWAYS, *ALL):
        if names and contender.name not in names:
            continue
        try:
            contender.prepare()
        except Unavailable as why:
            findings.note(f"skipped: {contender.name}: {why}")
            continue
        findings.descriptions[contender.name] = contender.description
        found.append(contender)
    return found


def chosen(plan: Plan, wanted: Sequence[str], rounds: int) -> Plan:
    """The plan, restricted to the selected parts if any, with this number of rounds unless it is 0."""
    parts = wanted or list(plan.rounds)
    # The cost of idle devices is their pings, so it must run for at least one ping interval.
    rest_s = max(plan.rest_s, FULL.rest_s) if "idle" in parts else plan.rest_s
    return replace(plan, rounds={part: rounds or plan.rounds.get(part, 1) for part in parts}, rest_s=rest_s)


def turns(
    plan: Plan, part: Part, contenders: Sequence[Contender], most: int, stage: Stage, findings: Findings
) -> Iterator[Turn]:
    """The turns in order: by round, then size, then contender, the floor first."""
    sizes, notes = fitting(part.devices(plan), most)
    for note in notes:
        findings.note(note)
    cast: list[Contender | None] = [*([None] if part.with_floor else []), *contenders]
    rounds = max((plan.rounds.get(name, 0) for name in part.names), default=0)
    for number in range(rounds):
        for devices in sizes:
            for contender in cast:
                yield Turn(stage, plan, findings, contender, devices, number)


def play(part: Part, turn: Turn, wanted: Sequence[str]) -> None:
    """Run one turn. A contender that does not finish is recorded, and gets no further turn with this many devices."""
    findings, label = turn.findings, f"{turn.devices:,} devices"
    if any(one.contender == turn.name and one.part in part.names and one.case == label for one in findings.failures):
        return
    since = time.monotonic()
    try:
        for sample in part.play(turn):
            if sample.part in wanted:
                findings.samples.append(sample)
        outcome = "done"
    except (Unfinished, OSError, KafkaError) as why:
        findings.failures.append(Failure(part.names[0], label, turn.name, str(why)))
        outcome = f"did not finish: {why}"
    took_s = time.monotonic() - since
    names = " and ".join(TITLES[name].lower() for name in part.names)
    click.echo(f"{names}, {label}, round {turn.number + 1}: {turn.name}: {outcome} ({took_s:.0f} s)", err=True)


def run(plan: Plan, names: Sequence[str], folder: Path) -> Findings:
    """Run the whole plan, and write the results after each part."""
    findings = Findings()
    contenders = able(names, findings)
    cores = split(frozenset(os.sched_getaffinity(0)))
    if cores.server == cores.load:
        findings.note("this machine has one core: server and load have shared it, and the figures mean little")
    findings.machine = describe_machine(cores)
    most = raise_file_limit()
    since = time.monotonic()
    with staged(build(), cores, TEXT_BYTES) as stage:
        for part in PARTS:
            if any(name in plan.rounds for name in part.names):
                for turn in turns(plan, part, contenders, most, stage, findings):
                    play(part, turn, list(plan.rounds))
                findings.machine["duration"] = f"{(time.monotonic() - since) / 60:.1f} min"
                write(findings, folder)
    return findings


def write(findings: Findings, folder: Path) -> None:
    """Write the table, the JSON document and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.txt").write_text("\n".join(text(findings)) + "\n")
    (folder / "bench.json").write_text(json.dumps(document(findings), indent=1) + "\n")
    (folder / "bench.svg").write_text(plot.svg(findings))


def _why_not() -> str:
    if not sys.platform.startswith("linux"):
        return "the benchmark reads /proc and waits with epoll: it runs on Linux only"
    missing = [program for program in ("java", "mvn", "go") if shutil.which(program) is None]
    return f"the benchmark needs {', '.join(missing)}" if missing else ""


class PartNames(click.ParamType[tuple[str, ...]]):
    name = "parts"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = tuple(str(value).split(","))
        if unknown := set(names) - set(TITLES):
            self.fail(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(TITLES)}", param, ctx)
        return names


@click.command(help=__doc__)
@click.option("--full", is_flag=True, help="Run everything, for half an hour or more, instead of a few minutes.")
@click.option("--part", "parts", type=PartNames(), default=None, help="Run only these parts, separated by commas.")
@click.option("--contender", "names", multiple=True, help="Run only this contender.  [repeatable]")
@click.option("--rounds", type=click.IntRange(0), default=0, help="Rounds of each part; 0: as planned.")
@click.option(
    "--devices",
    type=click.IntRange(1),
    multiple=True,
    help="Number of devices instead of the planned ones.  [repeatable]",
)
@click.option("--seconds", type=float, default=0.0, help="Length of each flow of messages; 0: as planned.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, help="Folder for the results."
)
def main(
    full: bool,
    parts: tuple[str, ...] | None,
    names: tuple[str, ...],
    rounds: int,
    devices: tuple[int, ...],
    seconds: float,
    out: Path,
) -> None:
    if why_not := _why_not():
        raise click.ClickException(why_not)
    known = [contender.name for contender in (*GATEWAYS, *ALL)]
    if unknown := set(names) - set(known):
        raise click.UsageError(f"no contender is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    plan = chosen(FULL if full else QUICK, parts or (), rounds)
    if devices:
        plan = replace(plan, broker_devices=devices, growth_devices=devices, rest_devices=devices)
        plan = replace(plan, fan_out_devices=devices)
        plan = replace(plan, handshakes=max(devices), storm_devices=max(devices))
    plan = replace(plan, seconds=seconds or plan.seconds)
    for line in text(run(plan, names, out)):
        click.echo(line)


if __name__ == "__main__":
    main()
