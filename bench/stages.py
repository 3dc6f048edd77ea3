"""Breaks down the CPU time of a message by stage: ``python -m bench.stages``.

The gateway runs alone on its core while records flow. py-spy samples its Python threads, and the kernel reports the CPU
time of each thread, including librdkafka's; together they give microseconds per message. A sample counts for the
innermost function that belongs to a stage, including its calls of the standard library and the system.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import click

from .contenders import Contender, Run
from .gateways import GATEWAYS
from .harness import TEXT_BYTES
from .load_generator import Flow, build
from .parts import AT_ONCE, FLOW_PATIENCE_S, SETTLE_PATIENCE_S, WARM_UP_S, patience_s
from .proc import raise_file_limit, split
from .stage import Trial, staged

SAMPLES_PER_S = 500
SPARE_S = 1.0  # of the flow, before and after the sampling

STAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("decode", ("cocoa_tornado/rules/records.py", "cocoa_tornado/rules/identity.py", "msgspec/")),
    ("write", ("cocoa_tornado/connection/device_socket.py", "tornado/iostream.py")),
    ("route, frame, queue", ("cocoa_tornado/routing/", "cocoa_tornado/hub.py")),
    ("route, frame, queue", ("cocoa_tornado/rules/frames.py", "cocoa_tornado/connection/", "cocoa_tornado/web/")),
    ("Kafka client", ("kafka/", "confluent_kafka/", "_consume", "crc32c")),
    ("consumer's books", ("cocoa_tornado/brokers/", "cocoa_tornado/rules/handoff.py")),
)
"""The name of each stage, and the text in its frames (``function (file:line)``). The first match counts."""

LOOP, LOOP_MARKS = "event loop", ("asyncio/", "selectors.py", "tornado/")
OTHER = "other"
NATIVE = "librdkafka's threads"
ASLEEP = ("_let_records_gather", "_rest (")  # py-spy sometimes counts a short sleep as work
THREAD = re.compile(r"thread \((\d+)\)")


def stage_of(frames: Sequence[str]) -> str:
    """The stage of a sample.

    :param frames: the frames of a thread, outermost first
    """
    for frame in reversed(frames):
        for name, marks in STAGES:
            if any(mark in frame for mark in marks):
                return name
    return LOOP if any(mark in frame for frame in frames for mark in LOOP_MARKS) else OTHER


def parse(folded: str) -> dict[int, dict[str, int]]:
    """The samples by thread and stage in py-spy's format ``raw``: a thread, its frames, outermost first, a space and a
    count."""
    found: dict[int, dict[str, int]] = {}
    for line in folded.splitlines():
        stack, _, samples = line.rpartition(" ")
        thread, *frames = stack.split(";")
        number = THREAD.match(thread)
        # A thread that has just started has no frame yet.
        if number is None or not frames or any(mark in frames[-1] for mark in ASLEEP):
            continue
        of_thread = found.setdefault(int(number[1]), {})
        name = stage_of(frames)
        of_thread[name] = of_thread.get(name, 0) + int(samples)
    return found


ThreadTimes: TypeAlias = Mapping[tuple[int, str], float]


def thread_times(pid: int) -> ThreadTimes:
    """The CPU time of each thread so far in seconds, by id and name."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        found[int(task.name), name] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def by_stage(before: ThreadTimes, after: ThreadTimes, samples: Mapping[int, Mapping[str, int]]) -> dict[str, float]:
    """The seconds of each stage: the time of each thread, divided by its samples."""
    found: dict[str, float] = {}
    for (number, name), seconds in after.items():
        spent = seconds - before.get((number, name), 0.0)
        of_thread = samples.get(number) or {NATIVE if name.startswith("rdk:") else OTHER: 1}
        total = sum(of_thread.values())
        for stage, count in of_thread.items():
            found[stage] = found.get(stage, 0.0) + spent * count / total
    return found


def table(stages_us: Mapping[str, float]) -> list[str]:
    """The lines of the table.

    :param stages_us: microseconds per message
    """
    ordered = sorted(stages_us.items(), key=lambda stage: -stage[1])
    return [f"{name:28}{cost:8.2f} us" for name, cost in [*ordered, ("all", sum(stages_us.values()))]]


def profile(trial: Trial, flow: Flow, folder: Path) -> list[str]:
    program = shutil.which("py-spy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        raise click.ClickException("the profile needs py-spy: pip install 'cocoa-tornado[bench]'")
    seconds = flow.messages / flow.rate - 2 * SPARE_S
    out = folder / "stacks"
    options = [
        "--rate",
        str(SAMPLES_PER_S),
        "--duration",
        str(int(seconds)),
        "--format",
        "raw",
        "--threads",
        "--output",
        str(out),
    ]
    before, cpu_before = thread_times(trial.pid), trial.read()
    trial.load.start(flow, SETTLE_PATIENCE_S)
    time.sleep(SPARE_S)
    done = subprocess.run([program, "record", "--pid", str(trial.pid), *options], capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stderr.strip() or "py-spy failed")
    heard = trial.load.settle(FLOW_PATIENCE_S + 2 * flow.messages / flow.rate)
    stages_s = by_stage(before, thread_times(trial.pid), parse(out.read_text()))
    each = 1e6 / heard["received"]
    whole = (trial.read() - cpu_before).server_s * each
    lines = table({name: seconds * each for name, seconds in stages_s.items()})
    return [*lines, f"{'by the process clock':28}{whole:8.2f} us, {heard['received']:,} messages"]


def of_tree(tree: Path, contender: Contender) -> Contender:
    """The same command with the packages of another checkout."""
    packages = f"import sys; sys.path.insert(0, {str(tree)!r}); import cli; sys.modules['cocoa_tornado_cli'] = cli"
    program = f"{packages}; from cocoa_tornado_cli.main import main; main()"

    knows_clients = any("kafka_client:" in path.read_text() for path in (tree / "cocoa_tornado").rglob("*settings.py"))

    def command(run: Run) -> list[str]:
        _, *options = contender.command(run)
        if not knows_clients and "--kafka-client" in options:
            at = options.index("--kafka-client")
            del options[at : at + 2]  # supports kafka-python only
        return [sys.executable, "-c", program, *options]

    return replace(contender, command=command)


@click.command(help=__doc__)
@click.option("--contender", "name", type=click.Choice([one.name for one in GATEWAYS]), default=GATEWAYS[-1].name)
@click.option("--devices", type=click.IntRange(1), default=500, show_default=True)
@click.option(
    "--each", type=click.IntRange(1), default=1, show_default=True, help="Successive records for the same device."
)
@click.option("--rate", type=float, default=4_000.0, show_default=True, help="Messages per second.")
@click.option("--seconds", type=click.FloatRange(4), default=10.0, show_default=True)
@click.option(
    "--tree", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Another checkout to compare with."
)
def main(name: str, devices: int, each: int, rate: float, seconds: float, tree: Path | None) -> None:
    contender = next(one for one in GATEWAYS if one.name == name)
    contender.prepare()
    if tree is not None:
        contender = of_tree(tree, contender)
    raise_file_limit()
    cores = split(frozenset(os.sched_getaffinity(0)))
    with staged(build(), cores, TEXT_BYTES) as stage, stage.trial(contender) as trial:
        trial.load.connect_all(devices, AT_ONCE, patience_s(devices))
        for wanted in (WARM_UP_S, seconds):
            flow = Flow(devices, each, rate, int(rate * wanted) // each * each)
            if wanted == WARM_UP_S:
                trial.load.start(flow, SETTLE_PATIENCE_S)
                trial.load.settle(FLOW_PATIENCE_S)
        for line in profile(trial, flow, stage.folder):
            click.echo(line)


if __name__ == "__main__":
    main()
