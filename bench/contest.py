"""The gateway beside what one could have built instead: ``python -m bench.contest``.

One contender after another, in turns, each a process of its own on a core of its own where there is one to spare: 500
devices connect with a JWT, messages for all of them in turn flow from Apache Kafka, and what is measured is the
contender's processor time, for each handshake and for each message. Absolute figures are this machine's; the ratios are
what is to be read. Of one that loses messages it is said how many, and its figure means nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.rules.identity import TokenPolicy

from .contenders import ALL, Contender, LeftOut, Run
from .mailbox_cost import Ear, cpu_s
from .survival_faults import pythonpath

READY_PATIENCE_S = 60.0
LAST_WORDS_S = 30.0
PARTITIONS = 6


@dataclass(slots=True)
class Figures:
    """Of one contender: each turn's.

    :ivar handshake_us: processor time for each, microseconds
    :ivar message_us: likewise
    :ivar lost: messages that never came
    """

    handshake_us: list[float] = field(default_factory=list)
    message_us: list[float] = field(default_factory=list)
    lost: int = 0


def ours(run: Run) -> list[str]:
    quiet = ["--log-level", "error", "--no-access-log", "--speech", "none://", "--outbox-max-messages", "100000"]
    kafka = ["--broker", f"kafka://{run.bootstrap}", "--kafka-results-topic", run.topic, "--kafka-group", run.group]
    return [str(Path(sys.executable).parent / "cocoa"), "serve", "--port", str(run.port), *kafka, *quiet]


GATEWAY = Contender("cocoa-tornado", "this project", lambda: None, ours)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        for path in ("/api/v1/ready", "/ready"):
            with contextlib.suppress(OSError):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
                        if answer.status == 200:
                            return
                except urllib.error.HTTPError as error:
                    error.close()
        time.sleep(0.1)
    raise click.ClickException("a contender does not become ready")


def write(bootstrap: str, topic: str, device_ids: Sequence[str], messages: int, rate: float) -> None:
    """For every device in turn, so that a batch holds about one for each."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=20)
    order = list(device_ids)
    random.Random(1).shuffle(order)
    since = time.monotonic()
    for number in range(messages):
        if number % 200 == 0:
            time.sleep(max(0.0, since + number / rate - time.monotonic()))
        device_id = order[number % len(order)]
        record = {"session_id": "s", "user_id": 99, "device_id": device_id, "text": "x" * 100, "seq": number}
        producer.send(topic, key=device_id.encode(), value=json.dumps(record).encode())
    producer.flush()
    producer.close()


async def measure(contender: Contender, run: Run, devices: int, messages: int, rate: float, into: Figures) -> None:
    secret = secrets.token_hex(32)
    pinned = ["taskset", "-c", str(max(os.sched_getaffinity(0)))] if shutil.which("taskset") else []
    environ = os.environ | pythonpath() | {"COCOA_JWT_SECRET": secret, "GOMAXPROCS": "1"}
    process = subprocess.Popen(
        [*pinned, *contender.command(run)], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        await asyncio.to_thread(await_ready, run.port, process)
        signer, ears = Signer.from_secret(secret), []
        device_ids = [f"device-{number}" for number in range(devices)]
        tokens = [mint(TokenRequest(device, 99), signer, TokenPolicy(), time.time()) for device in device_ids]
        before_s = cpu_s(process.pid)
        for token in tokens:
            ear = Ear(f"/ws?token={token}", b'"seq":')
            await asyncio.get_running_loop().create_connection(lambda ear=ear: ear, "127.0.0.1", run.port)  # type: ignore[misc]  # bound at once
            await asyncio.wait_for(ear.opened, 10)
            ears.append(ear)
        into.handshake_us.append((cpu_s(process.pid) - before_s) / devices * 1e6)
        before_s = cpu_s(process.pid)
        await asyncio.to_thread(write, run.bootstrap, run.topic, device_ids, messages, rate)
        end = time.monotonic() + LAST_WORDS_S
        while sum(ear.heard for ear in ears) < messages and time.monotonic() < end:
            await asyncio.sleep(0.05)
        into.message_us.append((cpu_s(process.pid) - before_s) / messages * 1e6)
        into.lost += messages - sum(ear.heard for ear in ears)
        for ear in ears:
            ear.close()
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def contest(rounds: int, devices: int, messages: int, rate: float, names: Sequence[str]) -> dict[str, Figures]:
    from tests.kafka_server import KafkaServer, create_topic, kafka_jars

    found: dict[str, Figures] = {}
    contenders = []
    for contender in (GATEWAY, *ALL):
        if names and contender.name not in names:
            continue
        try:
            contender.prepare()
        except LeftOut as why:
            click.echo(f"left out: {contender.name}: {why}", err=True)
            continue
        contenders.append(contender)
    with tempfile.TemporaryDirectory(prefix="cocoa-contest-") as folder, contextlib.ExitStack() as stack:
        kafka = KafkaServer(Path(folder), kafka_jars())
        kafka.start()
        stack.callback(kafka.kill)
        for turn in range(rounds):
            for contender in contenders:
                # A topic of its own: what the one before has left is nobody's business.
                run = Run(free_port(), kafka.bootstrap, f"contest.{contender.name}.{turn}", f"{contender.name}-{turn}")
                create_topic(kafka.bootstrap, run.topic, PARTITIONS)
                figures = found.setdefault(contender.name, Figures())
                await measure(contender, run, devices, messages, rate, figures)
    return found


def table(found: dict[str, Figures]) -> list[str]:
    """One line for each contender, the medians and, for the messages, how many of theirs one of the first's costs."""
    lines = [f"{'':24}{'us a message':>22}{'ratio':>8}{'us a handshake':>18}{'lost':>8}"]
    first = statistics.median(next(iter(found.values())).message_us)
    for name, figures in found.items():
        cost = statistics.median(figures.message_us)
        spread = f"{cost:.1f} ({min(figures.message_us):.1f}-{max(figures.message_us):.1f})"
        handshake = statistics.median(figures.handshake_us)
        lines.append(f"{name:24}{spread:>22}{cost / first:>8.2f}{handshake:>18.0f}{figures.lost:>8}")
    return lines


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--devices", type=click.IntRange(1), default=500, show_default=True)
@click.option("--messages", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--rate", type=float, default=4_000.0, show_default=True, help="Messages a second, at most.")
def main(names: tuple[str, ...], rounds: int, devices: int, messages: int, rate: float) -> None:
    for line in table(asyncio.run(contest(rounds, devices, messages, rate, names))):
        click.echo(line)


if __name__ == "__main__":
    main()
