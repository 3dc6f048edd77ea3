"""Checks exactly-once delivery despite faults: ``python -m bench.survival --mailbox sqlite --fault broker``.

50 devices with cursors connect and disconnect at random while 20,000 records flow through Apache Kafka, and the
gateway is killed (SIGKILL) six times. A third of the records are for a user or a group, and some of those exclude a
device; a fifth each have high and low priority. One more fault may occur: the broker or Redis is stopped twice, the
disk is full for ten seconds, or the clock is set back by an hour. At the end, every device must have received every
message once, those of one key and one priority in order. Exit status 1 if any check fails.

Apache Kafka and, if needed, redis-server run on free loopback ports, and are stopped afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.rules.identity import TokenPolicy

from .survival_faults import Clock, Gateways, SmallDisk, kill_again_and_again, pythonpath, restart
from .survival_fleet import Findings, Memory, Wanderer

TOPIC = "transcription.results"
PARTITIONS = 6
HOURS_S = 3600.0
TO_MANY = 1 / 3  # share of records for a user or a group
EXCLUDING = 1 / 4  # share of those that exclude a device
DEVICES_PER_USER = 3
GROUPS = 5
FLUSH_S = 120.0
OVERTIME_S = 420.0
GATEWAY_OPTIONS = [
    *("--ping-interval", "3s", "--ping-timeout", "3s", "--duplicate-challenge", "1s", "--retry-after", "1s"),
    *("--log-format", "json", "--log-level", "warning", "--no-access-log", "--mailbox-max-messages", "100000"),
    *("--mailbox-max-bytes", "1GiB"),
]


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of a run.

    :ivar rate: messages per second for all devices together
    """

    mailbox: str = "sqlite"
    fault: str = "none"
    devices: int = 50
    messages: int = 20_000
    rate: float = 180.0
    kills: int = 6
    seed: int = 1


@dataclass(slots=True)
class Outcome:
    """The results of a run.

    :ivar failed: the number of messages that Kafka rejected, which need not be delivered
    """

    findings: Findings
    kills: int = 0
    accepted: int = 0
    failed: int = 0
    seconds: float = 0.0
    exit_status: int | None = None
    complaints: list[str] = field(default_factory=list)


def violations(outcome: Outcome) -> list[str]:
    """The failed checks, one line each; empty if all passed."""
    findings = outcome.findings
    must_be_zero = {
        "messages lost": findings.lost,
        "messages out of order": findings.out_of_order,
        "messages twice": findings.copies,
        "messages at a wrong device": findings.wrong_device,
        "gap notices": findings.gap_notices,
        "cursors not known": findings.refusals.get("400", 0),
        "errors in the gateway's log": len(outcome.complaints),
        "messages that Kafka did not take": outcome.failed,
    }
    found = [f"{name}: {count}" for name, count in must_be_zero.items() if count]
    if findings.received < outcome.accepted or not outcome.accepted:
        found.append(f"{findings.received} of {outcome.accepted} messages came")
    if outcome.exit_status != 0:
        found.append(f"the gateway's exit status: {outcome.exit_status}")
    return found


class Audiences:
    """Who is in the fleet: every device has a user and a group.

    :ivar keys: for each device, the keys of the records that are for it
    """

    def __init__(self, devices: list[str]) -> None:
        self.users = {device_id: number // DEVICES_PER_USER for number, device_id in enumerate(devices)}
        self.groups = {device_id: f"group-{number % GROUPS}" for number, device_id in enumerate(devices)}
        self.keys = {
            device_id: {device_id, f"user-{self.users[device_id]}", self.groups[device_id]} for device_id in devices
        }

    def request(self, device_id: str) -> TokenRequest:
        groups = (self.groups[device_id],)
        return TokenRequest(device_id, self.users[device_id], groups=groups, lifetime_s=72 * HOURS_S)

    def draw(self, chance: random.Random) -> tuple[str, dict[str, Any], list[str]]:
        """Return the key, the address, and the recipients of a random record."""
        device_id = chance.choice(list(self.users))
        if chance.random() >= TO_MANY:
            return device_id, {"device_id": device_id}, [device_id]
        to: dict[str, object]
        if chance.random() < 0.5:
            user_id = self.users[device_id]
            key, to, devices = f"user-{user_id}", {"user": user_id}, _having(self.users, user_id)
        else:
            key = self.groups[device_id]
            to, devices = {"group": key}, _having(self.groups, key)
        if chance.random() >= EXCLUDING:
            return key, {"to": to}, devices
        excluded = chance.choice(devices)
        return key, {"to": to, "except": {"devices": [excluded]}}, [other for other in devices if other != excluded]


def _having(table: Mapping[str, object], value: object) -> list[str]:
    return [device_id for device_id, found in table.items() if found == value]


class Writer:
    """A backend that writes numbered records from its own thread.

    :param may_end: asked on that thread after the planned number of records; as long as it is False, more are written
    :ivar sent: for each device, the number of acknowledged messages
    """

    def __init__(
        self, bootstrap: str, audiences: Audiences, plan: Plan, may_end: Callable[[], bool] = lambda: True
    ) -> None:
        self._bootstrap, self._audiences, self._plan, self._may_end = bootstrap, audiences, plan, may_end
        self.sent = dict.fromkeys(audiences.users, 0)
        self.failed = 0
        self._lock = threading.Lock()

    def run(self) -> None:
        from kafka import KafkaProducer

        chance = random.Random(f"{self._plan.seed}/writer")
        # Idempotent by default: a retry neither repeats nor reorders records.
        producer = KafkaProducer(bootstrap_servers=self._bootstrap, linger_ms=5, retry_backoff_ms=100)
        numbers: dict[str, int] = {}
        due = time.monotonic()
        written = 0
        while written < self._plan.messages or not self._may_end():
            written += 1
            due += 1 / self._plan.rate
            time.sleep(max(0.0, due - time.monotonic()))
            key, address, devices = self._audiences.draw(chance)
            importance = chance.choices(("normal", "high", "low"), (3, 1, 1))[0]
            stream = f"{key}/{importance}"
            number = numbers[stream] = numbers.get(stream, -1) + 1
            record = {"session_id": "s", "text": "Hello " * 20, "key": key, "importance": importance, "seq": number}
            record["made"] = time.monotonic_ns()
            record["not_for"] = address.get("except", {}).get("devices", [])
            value = json.dumps(record | address | {"priority": importance}).encode()
            future = producer.send(TOPIC, key=key.encode(), value=value)
            future.add_callback(self._on_sent, devices)
            future.add_errback(self._on_failed)
        producer.flush(timeout=FLUSH_S)
        producer.close(timeout=FLUSH_S)

    def _on_sent(self, devices: list[str], metadata: object) -> None:
        with self._lock:
            for device_id in devices:
                self.sent[device_id] += 1

    def _on_failed(self, error: object) -> None:
        with self._lock:
            self.failed += 1


class Stage:
    """The servers and folders of one run."""

    def __init__(self, plan: Plan, stack: contextlib.ExitStack) -> None:
        from testing.kafka_admin import create_topic
        from testing.kafka_server import KafkaServer

        self.plan = plan
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cocoa-survival-")))
        (self.folder / "kafka").mkdir()
        self.kafka = KafkaServer(self.folder / "kafka")
        self.kafka.start()
        stack.callback(self.kafka.kill)
        create_topic(self.kafka.bootstrap, TOPIC, PARTITIONS)
        self.redis: Any = None
        self.disk: SmallDisk | None = None
        self.clock: Clock | None = None
        self.environ = pythonpath()
        if plan.fault == "disk":
            self.disk = SmallDisk()
            stack.callback(self.disk.close)
        if plan.fault == "clock":
            self.clock = Clock(self.folder)
        self.mailbox = self._mailbox(stack)

    def _mailbox(self, stack: contextlib.ExitStack) -> str:
        if self.plan.mailbox != "redis":
            return f"sqlite:///{(self.disk.folder if self.disk else self.folder) / 'box.db'}"
        from testing.redis_server import RedisServer

        folder = self.disk.folder if self.disk else self.folder / "redis"
        folder.mkdir(exist_ok=True)
        self.redis = RedisServer(folder)
        self.redis.start()
        stack.callback(self.redis.kill)
        return f"redis://127.0.0.1:{self.redis.port}/0"

    def faults(self, gateways: Gateways, chance: random.Random) -> Iterator[Coroutine[Any, Any, None]]:
        """Run all faults."""
        yield kill_again_and_again(gateways, self.plan.kills, chance)
        if self.plan.fault == "broker":
            yield restart(self.kafka, 2, chance)
        if self.plan.fault == "redis":
            yield restart(self.redis, 2, chance)
        if self.disk is not None:
            yield self.disk.be_full()
        if self.clock is not None:
            yield self.clock.go_back()


async def survive(plan: Plan) -> Outcome:
    """Run once. Raises OSError if the fault is impossible on this machine."""
    with contextlib.ExitStack() as stack:
        stage = await asyncio.to_thread(Stage, plan, stack)
        secret = secrets.token_hex(32)
        options = [*GATEWAY_OPTIONS, "--broker", f"kafka://{stage.kafka.bootstrap}", "--mailbox", stage.mailbox]
        program = stage.clock.program if stage.clock else ()
        gateways = Gateways(stage.folder, secret, options, stage.environ, program)
        devices = [f"device-{number}" for number in range(plan.devices)]
        audiences = Audiences(devices)
        # Issued a day ago, as the gateway's clock may be an hour behind.
        made_s = time.time() - 24 * HOURS_S
        signer, policy = Signer.from_secret(secret), TokenPolicy()
        findings = Findings()
        fleet = [
            Wanderer(
                Memory(device_id, audiences.keys[device_id]),
                mint(audiences.request(device_id), signer, policy, made_s),
                gateways.url,
                findings,
                number % 2 == 0,
                plan.seed,
            )
            for number, device_id in enumerate(devices)
        ]
        since = time.monotonic()
        await gateways.start()
        await gateways.await_ready()
        await asyncio.gather(*(device.introduce() for device in fleet))
        writer = Writer(stage.kafka.bootstrap, audiences, plan)
        wanderings = [asyncio.ensure_future(device.wander()) for device in fleet]
        try:
            chance = random.Random(f"{plan.seed}/faults")
            faults = [asyncio.ensure_future(fault) for fault in stage.faults(gateways, chance)]
            await asyncio.gather(asyncio.to_thread(writer.run), *faults)
        finally:
            for wandering in wanderings:
                wandering.cancel()
            await asyncio.gather(*wanderings, return_exceptions=True)
        await gateways.await_ready()
        await asyncio.gather(*(device.stay_for(writer.sent[device.memory.device_id]) for device in fleet))
        findings.lost = sum(device.memory.missing(writer.sent[device.memory.device_id]) for device in fleet)
        return Outcome(
            findings,
            gateways.kills,
            sum(writer.sent.values()),
            writer.failed,
            time.monotonic() - since,
            await gateways.stop(),
            gateways.complaints,
        )


def report(plan: Plan, outcome: Outcome) -> list[str]:
    findings = outcome.findings
    return [
        f"{plan.mailbox}, {plan.fault}: {plan.devices} devices, {outcome.accepted} messages in "
        f"{outcome.seconds:.0f} s, killed {outcome.kills} times",
        f"  connections {findings.connects}, refused {findings.refusals or 0}, received {findings.received}",
        f"  lost {findings.lost}, out of order {findings.out_of_order}, twice {findings.copies}, "
        f"wrong device {findings.wrong_device}",
    ]


@click.command(help=__doc__)
@click.option("--mailbox", type=click.Choice(["sqlite", "redis"]), default="sqlite", show_default=True)
@click.option(
    "--fault", type=click.Choice(["none", "broker", "redis", "disk", "clock"]), default="none", show_default=True
)
@click.option("--devices", type=click.IntRange(1), default=50, show_default=True)
@click.option("--messages", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--rate", type=float, default=180.0, show_default=True, help="Messages per second.")
@click.option("--kills", type=click.IntRange(0), default=6, show_default=True, help="Kills of the gateway.")
@click.option("--seed", type=int, default=1, show_default=True)
def main(**choices: Any) -> None:
    plan = Plan(**choices)
    try:
        outcome = asyncio.run(asyncio.wait_for(survive(plan), plan.messages / plan.rate + OVERTIME_S))
    except OSError as error:
        raise click.ClickException(str(error)) from error
    for line in report(plan, outcome):
        click.echo(line)
    found = violations(outcome)
    for line in [*found, *outcome.complaints[:20]]:
        click.echo(f"  NOT {line}" if line in found else f"    {line}", err=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
