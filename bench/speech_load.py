"""Measures the effect of speech on messages: ``python -m bench.speech_load``.

It starts a gateway with a speech engine, connects many devices, publishes records for them at a steady rate, and
measures their latency: first without speech, then with streams in real time, then with the same streams as fast as the
gateway accepts them, which keeps all workers busy. Exit status 1 if a record is lost, a device is disconnected, a ping
is late, or a stream fails. Latencies are only printed, as they depend on the machine.

Everything runs on one machine, so the clocks agree, but devices, workers and gateway share its cores. The latency of a
record counts from the time when it was due, so delays of the publisher are included.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import secrets
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import click
from websockets.frames import Frame, Opcode
from websockets.http11 import Response

from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.probe.recording import Recording, parse_wav
from cocoa_tornado.probe.speaking import AUDIO_ROUTE, post_speech
from cocoa_tornado.probe.target import Target
from cocoa_tornado.probe.wire import NotHttpError, exchange
from cocoa_tornado.rules.addresses import kafka_servers
from cocoa_tornado.rules.identity import TokenPolicy

from .bare_client import BareClient
from .soak_gateway import GatewayFailed, GatewayProcess, http_connection

RECORDINGS: Final = Path(__file__).parents[1] / "demo"
PING_INTERVAL_S: Final = 3.0
PING_LATE_S: Final = 1.0
WARM_UP_S: Final = 2.0
STRAGGLERS_S: Final = 5.0
PUBLISHERS: Final = 8  # HTTP connections; each device belongs to one of them
OPENING: Final = 50  # handshakes at a time

GATEWAY_OPTIONS: Final = [
    *(
        "--ping-interval",
        f"{PING_INTERVAL_S:g}s",
        "--ping-timeout",
        f"{PING_INTERVAL_S:g}s",
        "--log-format",
        "json",
        "--log-level",
        "warning",
        "--no-access-log",
    ),
    *("--audio-streams-per-device", "1"),
]


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of a run. ``rate`` is the total of records per second; ``seconds`` is the length of each phase."""

    devices: int = 500
    streams: int = 4
    workers: int = 4
    seconds: float = 30.0
    rate: float = 200.0
    broker: str = "memory://"
    engine: str = "pocketsphinx://"
    seed: int = 1


@dataclass(slots=True)
class Phase:
    """The measurements of one phase.

    :ivar latencies_s: the latencies of received records
    :ivar ping_gaps_s: the times between two pings of one connection
    :ivar answers: the number of uploads by HTTP status, or ``lost``
    :ivar audio_s: the total duration of the uploads with status 200
    """

    name: str
    published: int = 0
    latencies_s: list[float] = field(default_factory=list)
    ping_gaps_s: list[float] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    audio_s: float = 0.0
    seconds: float = 0.0

    @property
    def longest_gap_s(self) -> float:
        """The longest time between two pings of one connection; NaN if there were none."""
        return max(self.ping_gaps_s, default=math.nan)


def percentile(values: Sequence[float], share: float) -> float:
    """The percentile by nearest rank; NaN for no values.

    >>> percentile([1, 2, 3, 4], 0.5)
    2
    """
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)] if values else math.nan


def violations(phases: Sequence[Phase], closed: int) -> list[str]:
    """The failed checks, one line each; empty if all passed."""
    found = [f"connections that the gateway ended: {closed}"] if closed else []
    for phase in phases:
        lost = phase.published - len(phase.latencies_s)
        # 429: a worker was still busy with a stream of the previous phase. No success at all is a failure.
        failures = sum(number for status, number in phase.answers.items() if status not in ("200", "429"))
        failures += bool(phase.answers) and "200" not in phase.answers
        if not phase.latencies_s or not phase.ping_gaps_s:
            found.append(f"{phase.name}: nothing was measured")
        if lost:
            found.append(f"{phase.name}: {lost} records did not arrive")
        if phase.longest_gap_s > PING_INTERVAL_S + PING_LATE_S:
            found.append(f"{phase.name}: a ping came {phase.longest_gap_s:.2f} s after the one before")
        if failures:
            found.append(f"{phase.name}: streams not recognised: {phase.answers}")
    return found


def table(phases: Sequence[Phase]) -> list[str]:
    """The lines of the final report."""
    head = f"{'':<30}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'records':>9}{'pings':>7}{'longest gap s':>15}"
    lines = [f"{head}{'streams':>9}{'audio s/s':>11}"]
    for phase in phases:
        p50, p99, most = (percentile(phase.latencies_s, share) * 1000 for share in (0.5, 0.99, 1.0))
        line = f"{phase.name:<30}{p50:>9.1f}{p99:>9.1f}{most:>9.1f}{len(phase.latencies_s):>9}"
        line += f"{len(phase.ping_gaps_s):>7}{phase.longest_gap_s:>15.2f}"
        lines.append(f"{line}{sum(phase.answers.values()):>9}{phase.audio_s / max(phase.seconds, 0.001):>11.2f}")
    return lines


# --- Devices -------------------------------------------------------------------------------------------------------


class Device(BareClient):
    """A device that records the arrival times of records and pings.

    :ivar opened: done when it was admitted, or failed
    """

    def __init__(self, fleet: Fleet, url: str) -> None:
        self.opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._fleet = fleet
        self._pinged_at: float | None = None
        super().__init__(url)

    def on_event(self, event: Any) -> None:
        now = time.monotonic()
        if isinstance(event, Response):
            self._settle(event.status_code == 101)
        elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
            self._fleet.on_message(bytes(event.data), now)
        elif isinstance(event, Frame) and event.opcode is Opcode.PING:
            if self._pinged_at is not None:
                self._fleet.phase.ping_gaps_s.append(now - self._pinged_at)
            self._pinged_at = now

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle(False)
        self._fleet.on_lost()

    def hang_up(self) -> None:
        self._transport.abort()

    def _settle(self, is_open: bool) -> None:
        if not self.opened.done():
            self.opened.set_result(is_open)


class Fleet:
    """All devices.

    :ivar phase: the phase that gets the measurements
    :ivar closed: the number of connections that ended before :meth:`stop`
    """

    def __init__(self, port: int, tokens: Mapping[str, str]) -> None:
        self.phase = Phase("")
        self.closed = 0
        self._port, self._tokens = port, tokens
        self._devices: list[Device] = []
        self._stopping = False

    async def start(self) -> None:
        """Connect all devices. Raises GatewayFailed."""
        names = list(self._tokens)
        for start in range(0, len(names), OPENING):
            devices = await asyncio.gather(*(self._dial(self._tokens[name]) for name in names[start : start + OPENING]))
            self._devices += devices
            if not all(await asyncio.gather(*(device.opened for device in devices))):
                raise GatewayFailed("a device was not let in")

    async def _dial(self, token: str) -> Device:
        url = f"ws://127.0.0.1:{self._port}/ws?token={token}"
        loop = asyncio.get_running_loop()
        _, device = await loop.create_connection(lambda: Device(self, url), "127.0.0.1", self._port)
        return device

    def on_message(self, data: bytes, now: float) -> None:
        due = json.loads(data).get("due")
        # Ignore records of other phases, and transcripts, which have no such field.
        if isinstance(due, list) and due[0] == self.phase.name:
            self.phase.latencies_s.append(now - due[1])

    def on_lost(self) -> None:
        self.closed += not self._stopping

    def stop(self) -> None:
        self._stopping = True
        for device in self._devices:
            device.hang_up()


# --- Records -------------------------------------------------------------------------------------------------------


def record(device_id: str, phase: str, due: float) -> bytes:
    fields = {"session_id": "bench", "user_id": 99, "device_id": device_id, "text": "Hello", "due": [phase, due]}
    return json.dumps(fields).encode()


class Publisher(Protocol):
    async def run(self, phase: Phase, until: float) -> None:
        """Publish until this time (monotonic seconds), and count the accepted records."""


class HttpPublisher:
    """Posts to ``/api/v1/transcriptions`` with each device's token."""

    def __init__(self, port: int, tokens: Mapping[str, str], rate: float, seed: int) -> None:
        self._port, self._tokens, self._rate, self._seed = port, tokens, rate, seed

    async def run(self, phase: Phase, until: float) -> None:
        shares = [list(self._tokens)[index::PUBLISHERS] for index in range(PUBLISHERS)]
        await asyncio.gather(
            *(self._publish(phase, until, index, share) for index, share in enumerate(shares) if share)
        )

    async def _publish(self, phase: Phase, until: float, index: int, devices: list[str]) -> None:
        chance = random.Random(f"{self._seed}/{phase.name}/{index}")
        rate = self._rate * len(devices) / len(self._tokens)
        due = time.monotonic()
        async with http_connection(self._port) as call:
            while (due := due + chance.expovariate(rate)) < until:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                device_id = chance.choice(devices)
                value = record(device_id, phase.name, due)
                status, _ = await call("POST", "/api/v1/transcriptions", self._tokens[device_id], value)
                if status != 202:
                    raise GatewayFailed(f"a record was answered {status}")
                phase.published += 1


class KafkaPublisher:
    """A backend that writes to the results topic. The client's thread sends."""

    def __init__(self, servers: Sequence[str], topic: str, devices: Sequence[str], rate: float, seed: int) -> None:
        # Lazy: slow to import, and needed for --broker kafka:// only.
        from kafka import KafkaProducer

        self._topic, self._devices, self._rate, self._seed = topic, devices, rate, seed
        self._producer: Any = KafkaProducer(bootstrap_servers=list(servers), linger_ms=0)

    async def run(self, phase: Phase, until: float) -> None:
        # Otherwise the first record would block this thread until the partitions are known.
        await asyncio.to_thread(self._producer.partitions_for, self._topic)
        chance = random.Random(f"{self._seed}/{phase.name}")
        due, sent = time.monotonic(), []
        while (due := due + chance.expovariate(self._rate)) < until:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            device_id = chance.choice(self._devices)
            value = record(device_id, phase.name, due)
            sent.append(self._producer.send(self._topic, key=device_id.encode(), value=value))
        await asyncio.to_thread(self._producer.flush, 10)
        phase.published += sum(future.succeeded() for future in sent)

    def close(self) -> None:
        self._producer.close(timeout=5)


# --- Speech --------------------------------------------------------------------------------------------------------


async def speak(phase: Phase, target: Target, token: str, lines: Sequence[Recording], *, flat_out: bool) -> None:
    """Upload recordings until cancelled. An interrupted upload is not counted."""
    while True:
        for line in lines:
            try:
                if flat_out:
                    headers = [("Authorization", f"Bearer {token}"), ("Content-Type", "audio/wav")]
                    response = await exchange(target, "POST", f"{AUDIO_ROUTE}?interim=true", headers, line.data)
                else:
                    response = (await post_speech(target, token, line, lambda sent_s: None)).response
                status = str(response.status)
            except (OSError, NotHttpError):
                status = "lost"
            phase.answers[status] = phase.answers.get(status, 0) + 1
            phase.audio_s += line.duration_s if status == "200" else 0.0
            if status == "429":
                await asyncio.sleep(float(response.header("Retry-After") or 1))


# --- The whole -----------------------------------------------------------------------------------------------------


async def measure(plan: Plan) -> tuple[list[Phase], int]:
    """Run all phases. Returns them, and the number of connections that the gateway ended.

    :raises GatewayFailed: the gateway did not start, or failed
    """
    secret, run = secrets.token_urlsafe(48), uuid.uuid4().hex[:8]
    signer, policy, now = Signer.from_secret(secret), TokenPolicy(), time.time()
    devices = [f"bench-{number}" for number in range(plan.devices)]
    speakers = [f"speaker-{number}" for number in range(plan.streams)]
    tokens = {name: mint(TokenRequest(name, 99), signer, policy, now) for name in [*devices, *speakers]}
    results = f"bench.{run}.results"
    options = [*GATEWAY_OPTIONS, "--broker", plan.broker, "--speech", plan.engine]
    options += [
        "--speech-workers",
        str(plan.workers),
        "--kafka-results-topic",
        results,
        "--kafka-group",
        f"bench.{run}",
    ]
    options += ["--kafka-messages-topic", f"bench.{run}.messages"]
    options += ["--kafka-quarantine-topic", f"bench.{run}.quarantine"]
    async with _serving(secret, options) as gateway:
        await gateway.await_ready()
        fleet = Fleet(gateway.port, tokens)
        await fleet.start()
        listeners = {name: tokens[name] for name in devices}
        with _publishing(plan, gateway.port, results, listeners) as publisher:
            phases = [
                await _phase(plan, gateway.port, fleet, publisher, voices, name, flat_out=flat_out)
                for name, voices, flat_out in (
                    ("no speech", [], False),
                    (f"{plan.streams} streams, speed of speech", [tokens[name] for name in speakers], False),
                    (f"{plan.streams} streams, flat out", [tokens[name] for name in speakers], True),
                )
            ]
        fleet.stop()
        return phases, fleet.closed


@contextlib.asynccontextmanager
async def _serving(secret: str, options: Sequence[str]) -> AsyncIterator[GatewayProcess]:
    with tempfile.TemporaryDirectory(prefix="cocoa-bench-") as folder:
        gateway = GatewayProcess(Path(folder), secret, options)
        await gateway.start()
        try:
            yield gateway
        finally:
            await gateway.stop()


@contextlib.contextmanager
def _publishing(plan: Plan, port: int, topic: str, tokens: Mapping[str, str]) -> Iterator[Publisher]:
    if plan.broker == "memory://":
        yield HttpPublisher(port, tokens, plan.rate, plan.seed)
        return
    publisher = KafkaPublisher(kafka_servers(plan.broker), topic, list(tokens), plan.rate, plan.seed)
    try:
        yield publisher
    finally:
        publisher.close()


async def _phase(
    plan: Plan,
    port: int,
    fleet: Fleet,
    publisher: Publisher,
    voices: Sequence[str],
    name: str,
    *,
    flat_out: bool,
) -> Phase:
    """Warm up, measure, and wait for late records.

    :param voices: the tokens of the speaking devices
    """
    click.echo(f"{name}: {plan.seconds:g} s", err=True)
    lines = [parse_wav(path.read_bytes()) for path in sorted(RECORDINGS.glob("*.wav"))]
    target = Target("127.0.0.1", port, secure=False)
    warm_up, phase = Phase(f"{name}: warm-up"), Phase(name, seconds=plan.seconds)
    # Speech runs throughout, but counts only during the measurement.
    tally = Phase(name)
    talks = [
        asyncio.create_task(speak(tally, target, token, lines[index % 2 :] + lines[: index % 2], flat_out=flat_out))
        for index, token in enumerate(voices)
    ]
    try:
        fleet.phase = warm_up
        await publisher.run(warm_up, time.monotonic() + min(WARM_UP_S, plan.seconds / 4))
        fleet.phase, before_s, before = phase, tally.audio_s, dict(tally.answers)
        await publisher.run(phase, time.monotonic() + plan.seconds)
        phase.audio_s = tally.audio_s - before_s
        phase.answers = {status: number - before.get(status, 0) for status, number in tally.answers.items()}
        end = time.monotonic() + STRAGGLERS_S
        while len(phase.latencies_s) < phase.published and time.monotonic() < end:
            await asyncio.sleep(0.05)
    finally:
        for talk in talks:
            talk.cancel()
        ends = await asyncio.gather(*talks, return_exceptions=True)
    for end_of_talk in ends:
        if not isinstance(end_of_talk, asyncio.CancelledError):
            raise GatewayFailed(f"a device could not go on speaking: {end_of_talk!r}")
    return phase


@click.command()
@click.option("--devices", type=click.IntRange(1, 20_000), default=500, show_default=True)
@click.option("--streams", type=click.IntRange(1, 100), default=4, show_default=True, help="Concurrent streams.")
@click.option(
    "--workers", type=click.IntRange(1, 100), default=4, show_default=True, help="Workers of the speech engine."
)
@click.option(
    "--seconds", type=click.FloatRange(3, 86_400), default=30.0, show_default=True, help="Length of each phase."
)
@click.option("--rate", type=click.FloatRange(1), default=200.0, show_default=True, help="Total records per second.")
@click.option("--broker", metavar="URL", default="memory://", show_default=True, help="memory:// or kafka://host:port")
@click.option("--engine", metavar="URL", default="pocketsphinx://", show_default=True, help="As for --speech.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of all random choices.")
def main(**options: Any) -> None:
    """Measure the latency of messages with and without speech recognition."""
    plan = Plan(**options)
    try:
        phases, closed = asyncio.run(measure(plan))
    except (GatewayFailed, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{plan.devices} devices, {plan.rate:g} records/s, {plan.broker}, {plan.workers} workers, {plan.engine}")
    for line in table(phases):
        click.echo(line)
    found = violations(phases, closed)
    click.echo("verdict: " + ("; ".join(found) if found else "nothing lost, no device cut off, pings on time"))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
