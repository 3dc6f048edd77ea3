"""Checks several servers: ``python -m bench.servers --servers 3 --seconds 300``.

Gateways share one Redis, which holds presence, relay and mailbox, and one group of Apache Kafka. Devices roam between
them, some with rivals that use the same token, while servers are killed (SIGKILL), paused (SIGSTOP), drained and cut
off from Redis, and Redis is restarted. At the end every device must have received every message once and in order, and
Porcupine must find an order of everything that clients have seen in which no device ever had two holders, no 409 was
given without one, and no message came through a connection that was not the holder's. Exit status 1 if any check fails.

With ``--fault none`` it is a soak: the servers' memory and open files must be steady too. Else each kind of fault
happens at least once; where that takes longer than ``--seconds``, the run does. ``--fault tail`` also has Redis lose
its last three seconds, whose messages it may lose: then only who holds what is checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import mint
from cocoa_tornado.presence.redis_settings import PresenceMode, least_fence
from cocoa_tornado.rules.identity import TokenPolicy

from .servers_faults import FAULTS, Faults, Server
from .servers_fleet import Roamer
from .servers_history import History, Verdict
from .servers_link import Link
from .servers_steady import Steadiness
from .survival import PARTITIONS, TOPIC, Audiences, Writer
from .survival import Plan as WriterPlan
from .survival_faults import pythonpath
from .survival_fleet import Findings, Memory

MESSAGES = "device.messages"
LONGER_S = 240.0  # for faults that have not happened yet
OVERTIME_S = 420.0
LEAST_FREEZE_S = 2.0  # that the setting allows
RIVALS = 0.5  # share of the devices that have some
GATEWAY_OPTIONS = [
    *("--ping-interval", "5s", "--ping-timeout", "5s", "--duplicate-challenge", "1s", "--retry-after", "1s"),
    *("--log-format", "json", "--log-level", "warning", "--no-access-log", "--mailbox-max-messages", "100000"),
    *("--mailbox-max-bytes", "1GiB", "--drain-grace", "5s"),
]


@dataclass(frozen=True, slots=True)
class Plan:
    """:ivar rate: messages a second for all devices
    :ivar fence: ``presence_fence`` in seconds
    """

    servers: int = 3
    devices: int = 200
    seconds: float = 300.0
    rate: float = 150.0
    fence: float = 10.0
    mode: PresenceMode = "freeze"
    fault: str = "all"
    seed: int = 1

    @property
    def freeze(self) -> float:
        """``presence_freeze``: half of the fence, or less if the mode needs more between them."""
        tenths = range(round(self.fence * 5), round(LEAST_FREEZE_S * 10) - 1, -1)
        fitting = (tenth / 10 for tenth in tenths if least_fence(self.mode, tenth / 10) <= self.fence)
        return next(fitting, 0.0)

    @property
    def kinds(self) -> dict[str, int]:
        """The kinds of faults, and their shares."""
        if self.fault in ("all", "tail"):
            return FAULTS | ({"tail": 2} if self.fault == "tail" else {})
        return {} if self.fault == "none" else {self.fault: 1}


@dataclass(slots=True)
class Outcome:
    findings: Findings
    verdict: Verdict
    faults: dict[str, int]
    accepted: int = 0
    failed: int = 0
    seconds: float = 0.0
    complaints: list[str] = field(default_factory=list)
    generations: int = 0
    backwards: list[str] = field(default_factory=list)
    steadiness: Steadiness = field(default_factory=Steadiness)


def violations(plan: Plan, outcome: Outcome) -> list[str]:
    """The failed checks, one line each; empty if all passed."""
    findings, verdict = outcome.findings, outcome.verdict
    must_be_zero = {
        "devices with two holders, or a refusal without one": len(verdict.violations),
        "histories that could not be checked": len(verdict.unknown),
        "devices whose generations went back": len(outcome.backwards),
        "messages at a wrong device": findings.wrong_device,
    }
    if plan.fault != "tail":
        must_be_zero |= {
            "messages lost": findings.lost,
            "messages out of order": findings.out_of_order,
            "messages twice": findings.copies,
            "gap notices": findings.gap_notices,
            "cursors not known": findings.refusals.get("400", 0),
            "messages that Kafka did not take": outcome.failed,
            "errors in the servers' logs": len(outcome.complaints),
        }
    found = [f"{name}: {count}" for name, count in must_be_zero.items() if count]
    found += outcome.steadiness.violations()
    found += [f"fault that did not happen: {kind}" for kind in plan.kinds if not outcome.faults.get(kind)]
    if not (findings.connects and outcome.accepted and outcome.generations):
        found.append("nothing happened")
    return found


class Published:
    """What devices have published, for the generations of their connections.

    :ivar seen: device, number of the connection, and generation, in the order of the topic
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, tuple[int, int]]] = []

    def read(self, bootstrap: str) -> None:
        """Read the whole topic."""
        from kafka import KafkaConsumer, TopicPartition

        consumer = KafkaConsumer(bootstrap_servers=bootstrap)
        try:
            partition = TopicPartition(MESSAGES, 0)
            consumer.assign([partition])
            consumer.seek_to_beginning(partition)
            end = consumer.end_offsets([partition])[partition]
            while consumer.position(partition) < end:
                for records in consumer.poll(timeout_ms=1_000).values():
                    for record in records:
                        self._take(record)
        finally:
            consumer.close()

    def _take(self, record: Any) -> None:
        message, headers = json.loads(record.value), dict(record.headers)
        text = json.loads(message["text"])
        if "conn" in text:
            term, _, number = headers["cocoa.generation"].partition(b".")
            self.seen.append((message["device_id"], text["conn"], (int(term), int(number))))

    def note_in(self, history: History) -> list[str]:
        """Returns the devices for which a later connection had no later generation."""
        latest: dict[str, tuple[int, tuple[int, int]]] = {}
        backwards = set()
        for device_id, conn, generation in self.seen:
            history.note_generation(device_id, conn, generation)
            before = latest.get(device_id)
            if before is not None and (conn > before[0]) != (generation > before[1]):
                backwards.add(device_id)
            if before is None or conn > before[0]:
                latest[device_id] = (conn, generation)
        return sorted(backwards)


class Stage:
    """Kafka, Redis, and the servers."""

    def __init__(self, plan: Plan, stack: contextlib.ExitStack) -> None:
        from testing.kafka_admin import create_topic
        from testing.kafka_server import KafkaServer
        from testing.redis_server import RedisServer

        self.plan = plan
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cocoa-servers-")))
        (self.folder / "kafka").mkdir()
        self.kafka = KafkaServer(self.folder / "kafka")
        self.kafka.start()
        stack.callback(self.kafka.kill)
        create_topic(self.kafka.bootstrap, TOPIC, PARTITIONS)
        create_topic(self.kafka.bootstrap, MESSAGES, 1)
        # A restart loses nothing, unless a test takes it away.
        self.redis = RedisServer(self.folder / "redis", appendfsync="always", aof_load_truncated="yes")
        self.redis.start()
        stack.callback(self.redis.kill)

    async def servers(self, secret: str) -> list[Server]:
        plan = self.plan
        options = [
            *GATEWAY_OPTIONS,
            *("--broker", f"kafka://{self.kafka.bootstrap}", "--presence-mode", plan.mode),
            *("--presence-fence", f"{plan.fence:g}s", "--presence-freeze", f"{plan.freeze:g}s"),
        ]
        made = []
        for number in range(plan.servers):
            link = Link(f"127.0.0.1:{self.redis.port}")
            await link.start()
            made.append(Server(f"server-{number}", self.folder, secret, options, link, pythonpath()))
        return made


async def serve(plan: Plan) -> Outcome:
    """Run once. Raises Unavailable if Go is missing."""
    with contextlib.ExitStack() as stack:
        stage = await asyncio.to_thread(Stage, plan, stack)
        secret = secrets.token_hex(32)
        servers = await stage.servers(secret)
        history, findings = History(), Findings()
        audiences = Audiences([f"device-{number}" for number in range(plan.devices)])
        signer, policy = Signer.from_secret(secret), TokenPolicy()
        fleet = [
            Roamer(
                Memory(device_id, keys),
                mint(audiences.request(device_id), signer, policy, time.time()),
                [server.url for server in servers],
                # A rival takes what the box has for the device, so its messages may come twice.
                findings if number >= RIVALS * plan.devices else Findings(),
                history,
                plan.seed,
                has_rivals=number < RIVALS * plan.devices,
            )
            for number, (device_id, keys) in enumerate(audiences.keys.items())
        ]
        since = time.monotonic()
        try:
            outcome = await _run(stage, servers, fleet, audiences, history, findings)
        finally:
            for server in servers:
                with contextlib.suppress(Exception):
                    await server.kill()
                await server.redis.close()
        outcome.seconds = time.monotonic() - since
        return outcome


async def _run(
    stage: Stage,
    servers: list[Server],
    fleet: list[Roamer],
    audiences: Audiences,
    history: History,
    findings: Findings,
) -> Outcome:
    plan = stage.plan
    await asyncio.gather(*(server.start() for server in servers))
    await asyncio.gather(*(server.await_ready() for server in servers))
    await asyncio.gather(*(device.introduce() for device in fleet))
    faults = Faults(servers, stage.redis, random.Random(f"{plan.seed}/faults"), 2 * plan.fence, plan.kinds)
    latest = time.monotonic() + plan.seconds + LONGER_S
    writer = Writer(
        stage.kafka.bootstrap,
        audiences,
        WriterPlan(messages=int(plan.rate * plan.seconds), rate=plan.rate, seed=plan.seed),
        may_end=lambda: not faults.missing() or time.monotonic() > latest,
    )
    roaming = [asyncio.ensure_future(device.wander()) for device in fleet]
    steadiness = Steadiness()
    failing = asyncio.ensure_future(faults.run() if plan.kinds else steadiness.measure(servers, plan.seconds - 1))
    try:
        await asyncio.to_thread(writer.run)
        if not plan.kinds:
            await failing
    finally:
        for task in (failing, *roaming):
            task.cancel()
        ended = await asyncio.gather(failing, *roaming, return_exceptions=True)
    await faults.end()
    for problem in ended:
        if isinstance(problem, Exception):
            raise problem
    await asyncio.gather(*(server.await_ready() for server in servers))
    await asyncio.gather(*(device.stay_for(writer.sent[device.device_id]) for device in fleet))
    for device in fleet:
        device.hang_up()
    lost = [device.memory.missing(writer.sent[device.device_id]) for device in fleet]
    findings.lost = sum(lost)
    await asyncio.gather(*(server.stop() for server in servers))
    published = Published()
    await asyncio.to_thread(published.read, stage.kafka.bootstrap)
    backwards = published.note_in(history)
    complaints = [line for server in servers for line in server.complaints]
    return Outcome(
        findings,
        await asyncio.to_thread(history.check),
        dict(faults.done),
        sum(writer.sent.values()),
        writer.failed,
        complaints=complaints,
        generations=len(published.seen),
        backwards=backwards,
        steadiness=steadiness,
    )


def report(plan: Plan, outcome: Outcome) -> list[str]:
    findings, verdict = outcome.findings, outcome.verdict
    return [
        f"{plan.servers} servers, {plan.mode}, fence {plan.fence:g} s: {plan.devices} devices, {outcome.accepted} "
        f"messages in {outcome.seconds:.0f} s, faults {outcome.faults}",
        f"  connections {findings.connects}, refused {findings.refusals or 0}, received {findings.received}, "
        f"generations known {outcome.generations}",
        f"  lost {findings.lost}, out of order {findings.out_of_order}, twice {findings.copies}, "
        f"wrong device {findings.wrong_device}",
        f"  Porcupine: {verdict.histories} histories, {verdict.operations} operations, "
        f"{len(verdict.violations)} violations, {len(verdict.unknown)} unknown",
        *outcome.steadiness.report(),
    ]


@click.command(help=__doc__)
@click.option("--servers", type=click.IntRange(1), default=3, show_default=True)
@click.option("--devices", type=click.IntRange(1), default=200, show_default=True)
@click.option("--seconds", type=float, default=300.0, show_default=True, help="How long messages are written at least.")
@click.option("--rate", type=float, default=150.0, show_default=True, help="Messages per second.")
@click.option("--fence", type=float, default=10.0, show_default=True, help="presence_fence in seconds.")
@click.option("--mode", type=click.Choice(["freeze", "strict"]), default="freeze", show_default=True)
@click.option(
    "--fault", type=click.Choice(["all", "none", "tail", *FAULTS]), default="all", show_default=True, help="Which ones."
)
@click.option("--seed", type=int, default=1, show_default=True)
def main(**choices: Any) -> None:
    plan = Plan(**choices)
    if not plan.freeze:
        least = least_fence(plan.mode, LEAST_FREEZE_S)
        raise click.UsageError(f"--mode {plan.mode} needs a --fence of at least {least:g}")
    outcome = asyncio.run(asyncio.wait_for(serve(plan), plan.seconds + LONGER_S + OVERTIME_S))
    for line in report(plan, outcome):
        click.echo(line)
    found = violations(plan, outcome)
    for line in [*found, *outcome.verdict.violations[:20], *outcome.backwards[:20], *outcome.complaints[:20]]:
        click.echo(f"  NOT {line}" if line in found else f"    {line}", err=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
