"""Many devices that connect, vanish and return while records flow: ``python -m bench.soak``.

It starts a gateway and checks that no message reaches a wrong device, arrives twice or overtakes another, and that at
the end no connection, slot or memory has leaked. Exit status 1 if any check fails.

The verdicts are pure; the devices are in ``soak_fleet``, the gateway and the producers in ``soak_gateway``.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click

from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.rules.addresses import kafka_servers
from cocoa_tornado.rules.identity import TokenPolicy
from testing.certificates import write_certificate

from .soak_fleet import DeviceFailed, Fleet, Tally
from .soak_gateway import GatewayFailed, GatewayProcess, HttpProducer, KafkaTopicProducer, Producer
from .survival_faults import pythonpath

MIB = 1024 * 1024
FLAT_SHARE, FLAT_BYTES = 0.10, 5 * MIB
STORMS = 8.5  # per soak, evenly spread; the half separates them from the measurements
LEAST_CALM_S = 6.0  # between two storms: some devices have to stay for longer than OVERDUE_S
EMPTY_PATIENCE_S = 20.0
OVERTIME_S = 180.0  # for starting, emptying and stopping, which have their own timeouts too
PARTITIONS = 6
PATHS = ("direct", "tls")

# Short timeouts, so that many of them expire within two minutes.
GATEWAY_OPTIONS = [
    *("--ping-interval", "3s", "--ping-timeout", "3s", "--duplicate-challenge", "1s", "--retry-after", "1s"),
    *("--log-format", "json", "--log-level", "warning", "--no-access-log"),
]


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of a soak.

    :ivar rate: records per second for all devices together
    :ivar path: the path of messages to the devices, one of ``PATHS``
    :ivar kafka_client: the gateway's setting
    """

    devices: int = 300
    seconds: float = 120.0
    broker: str = "memory://"
    seed: int = 1
    rate: float = 500.0
    path: str = "direct"
    kafka_client: str = "auto"


@dataclass(slots=True)
class Outcome:
    """The results of a soak.

    :ivar rss_bytes: the gateway's resident memory after each quarter of the time, under load
    :ivar metrics: the gateway's metrics after all devices have disconnected
    :ivar exit_status: the gateway's exit status; None if it had to be killed
    :ivar complaints: the error lines of its log
    """

    tally: Tally
    accepted: int = 0
    failed: int = 0
    rss_bytes: list[int] = field(default_factory=list)
    metrics: Mapping[str, float] = field(default_factory=dict)
    exit_status: int | None = None
    complaints: list[str] = field(default_factory=list)

    @property
    def connections_left(self) -> int:
        return int(self.metrics["cocoa_connections"])

    @property
    def slots_left(self) -> int:
        return int(self.metrics["cocoa_slots_taken"])


def is_flat(half_bytes: int, end_bytes: int) -> bool:
    """Whether memory has grown by at most a tenth, or 5 MiB if that is more, since half-time."""
    return end_bytes - half_bytes <= max(half_bytes * FLAT_SHARE, FLAT_BYTES)


def violations(outcome: Outcome) -> list[str]:
    """The failed checks, one line each; empty if all passed."""
    tally = outcome.tally
    must_be_zero = {
        "messages at a wrong device": tally.wrong_device,
        "messages unreadable": tally.unreadable,
        "messages out of order": tally.out_of_order,
        "messages repeated": tally.repeated,
        "messages missing between two others": tally.missing,
        "messages overdue on an open connection": tally.overdue,
        "second connections beside a first": tally.two_at_once,
        "handshakes and close frames unanswered": tally.unanswered,
        "records given up by the producer": outcome.failed,
        "connections left": outcome.connections_left,
        "slots left": outcome.slots_left,
        "errors in the gateway's log": len(outcome.complaints),
    }
    found = [f"{name}: {count}" for name, count in must_be_zero.items() if count]
    strange = sorted(set(tally.refusals) - {"409"})
    found += [f"handshakes answered {status}: {tally.refusals[status]}" for status in strange]
    if not tally.connects or not tally.delivered:
        found.append("nothing was tried: no device connected, or no message arrived")
    if not is_flat(outcome.rss_bytes[1], outcome.rss_bytes[-1]):
        found.append("memory grows")
    if outcome.exit_status != 0:
        found.append(f"the gateway's exit status: {outcome.exit_status}")
    return found


def report(outcome: Outcome) -> list[str]:
    """The lines of the final report."""
    tally, metrics = outcome.tally, outcome.metrics
    rss = [f"{size / MIB:.1f}" for size in outcome.rss_bytes]
    dropped = sum(value for name, value in metrics.items() if name.startswith("cocoa_messages_dropped_total"))
    flat = "flat" if is_flat(outcome.rss_bytes[1], outcome.rss_bytes[-1]) else "GROWS"
    return [
        f"connects              {tally.connects}",
        f"refusals by status    {_listed(tally.refusals)}",
        f"left by               {_listed(tally.left)}",
        f"closed by gateway     {_listed(tally.closed_by_gateway)}",
        f"challenges            {_whole(metrics, 'cocoa_duplicate_challenges_total')}, "
        f"evictions {_whole(metrics, 'cocoa_duplicate_evictions_total')}",
        f"texts from devices    {_whole(metrics, 'cocoa_device_messages_total')} of {tally.words} sent",
        f"records accepted      {outcome.accepted}, given up {outcome.failed}",
        f"routed                {_whole(metrics, 'cocoa_messages_routed_total')}, device not connected "
        f"{_whole(metrics, 'cocoa_messages_unknown_device_total')}, dropped with a connection {dropped:.0f}",
        f"messages delivered    {tally.delivered}",
        f"at a wrong device     {tally.wrong_device}",
        f"unreadable            {tally.unreadable}",
        f"out of order          {tally.out_of_order}",
        f"repeated              {tally.repeated}",
        f"missing in between    {tally.missing}",
        f"overdue               {tally.overdue}",
        f"two at once           {tally.two_at_once}",
        f"unanswered            {tally.unanswered}",
        f"connections left      {outcome.connections_left}",
        f"slots left            {outcome.slots_left}",
        f"RSS in MiB            {rss[0]} at 25 %, {rss[1]} at 50 %, {rss[2]} at 75 %, {rss[3]} at the end: {flat}",
        f"gateway's exit status {outcome.exit_status}, errors in its log {len(outcome.complaints)}",
    ]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())) or "none"


def _whole(metrics: Mapping[str, float], name: str) -> int:
    return int(metrics.get(name, 0))


async def soak(plan: Plan) -> Outcome:
    """Run a soak.

    :raises GatewayFailed: the gateway did not start, or stopped answering
    :raises DeviceFailed: the gateway accepted no connection
    :raises TimeoutError: the run took much longer than planned
    """
    secret, run = secrets.token_urlsafe(48), uuid.uuid4().hex[:8]
    signer, policy, now = Signer.from_secret(secret), TokenPolicy(), time.time()
    names = [f"soak-{number}" for number in range(plan.devices)]
    tokens = {name: mint(TokenRequest(name, 99), signer, policy, now) for name in names}
    results = f"soak.{run}.results"
    options = [*GATEWAY_OPTIONS, "--broker", plan.broker]
    options += ["--kafka-results-topic", results, "--kafka-messages-topic", f"soak.{run}.messages"]
    options += ["--kafka-quarantine-topic", f"soak.{run}.quarantine", "--kafka-group", f"soak.{run}"]
    options += ["--kafka-partitions", str(PARTITIONS), "--kafka-client", plan.kafka_client]
    async with asyncio.timeout(plan.seconds + OVERTIME_S), _serving(secret, options, plan.path) as gateway:
        await gateway.await_ready()
        producer: Producer
        if plan.broker == "memory://":
            producer = HttpProducer(gateway, tokens, plan.rate, plan.seed)
        else:
            servers = ",".join(kafka_servers(plan.broker))
            producer = KafkaTopicProducer(servers, results, names, plan.rate, plan.seed)
        fleet = Fleet(tokens, gateway.port, producer.records.accepted, plan.seed, gateway.trust)
        outcome = Outcome(fleet.tally)
        await _run_and_measure(plan, gateway, fleet, producer, outcome)
        outcome.accepted, outcome.failed = producer.accepted, producer.failed
        outcome.metrics = await _emptied(gateway)
        outcome.exit_status = await gateway.stop()
        outcome.complaints = gateway.complaints()
        return outcome


async def _until_terminated(plan: Plan) -> Outcome:
    """Like :func:`soak`; SIGTERM cancels it and stops the gateway."""
    task = asyncio.ensure_future(soak(plan))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


@contextlib.asynccontextmanager
async def _serving(secret: str, options: list[str], path: str) -> AsyncIterator[GatewayProcess]:
    """A running gateway, which is killed at the end in any case."""
    with tempfile.TemporaryDirectory(prefix="cocoa-soak-") as name:
        folder, trust = Path(name), None
        if path == "tls":
            certificate = write_certificate(folder)
            options = [*options, "--tls-cert", str(certificate.cert), "--tls-key", str(certificate.key)]
            trust = certificate.client_context()
        gateway = GatewayProcess(folder, secret, options, pythonpath(), trust=trust)
        await gateway.start()
        try:
            yield gateway
        finally:
            await gateway.kill()


async def _run_and_measure(
    plan: Plan, gateway: GatewayProcess, fleet: Fleet, producer: Producer, outcome: Outcome
) -> None:
    """Run devices and records for the planned time, then disconnect all devices."""
    started = time.monotonic()
    fleet.start()
    producing = asyncio.create_task(producer.run())
    storms = asyncio.create_task(_storms(fleet, max(LEAST_CALM_S, plan.seconds / STORMS)))
    try:
        for quarter in (1, 2, 3, 4):
            await asyncio.sleep(max(0.0, started + plan.seconds * quarter / 4 - time.monotonic()))
            if producing.done():
                raise GatewayFailed(f"the producer could not go on: {producing.exception()!r}")
            metrics = await gateway.metrics()
            outcome.rss_bytes.append(int(metrics["process_resident_memory_bytes"]))
            print(_progress(quarter, fleet, metrics), file=sys.stderr, flush=True)
    finally:
        for task in (storms, producing):
            task.cancel()
        await asyncio.gather(storms, producing, return_exceptions=True)
        await fleet.stop()


async def _storms(fleet: Fleet, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        fleet.break_out()


def _progress(quarter: int, fleet: Fleet, metrics: Mapping[str, float]) -> str:
    tally, rss = fleet.tally, metrics["process_resident_memory_bytes"] / MIB
    return (
        f"{quarter * 25} %: {tally.connects} connects, {tally.delivered} messages, {len(fleet)} connections open, "
        f"{_whole(metrics, 'cocoa_connections')} known to the gateway, RSS {rss:.1f} MiB"
    )


async def _emptied(gateway: GatewayProcess) -> dict[str, float]:
    """The metrics once no connection and no slot is left, or after a timeout."""
    end = time.monotonic() + EMPTY_PATIENCE_S
    while True:
        metrics = await gateway.metrics()
        if not metrics["cocoa_connections"] and not metrics["cocoa_slots_taken"]:
            return metrics
        if time.monotonic() > end:
            return metrics
        await asyncio.sleep(0.1)


@click.command()
@click.option("--devices", type=click.IntRange(1, 20_000), default=300, show_default=True)
@click.option("--seconds", type=click.FloatRange(4, 86_400), default=120.0, show_default=True)
@click.option("--broker", metavar="URL", default="memory://", show_default=True, help="memory:// or kafka://host:port")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of all random choices.")
@click.option("--rate", type=click.FloatRange(1), default=500.0, show_default=True, help="Total records per second.")
@click.option(
    "--path", type=click.Choice(PATHS), default=PATHS[0], show_default=True, help="Path of messages to devices."
)
@click.option(
    "--kafka-client", metavar="NAME", default="auto", show_default=True, help="The gateway's setting kafka_client."
)
def main(devices: int, seconds: float, broker: str, seed: int, rate: float, path: str, kafka_client: str) -> None:
    """Let many devices connect, vanish and return while records flow, and check for lost messages and leaks."""
    try:
        outcome = asyncio.run(_until_terminated(Plan(devices, seconds, broker, seed, rate, path, kafka_client)))
    except (GatewayFailed, DeviceFailed, TimeoutError) as error:
        raise click.ClickException(str(error) or "the soak took too long") from error
    except asyncio.CancelledError as error:
        raise click.ClickException("stopped by SIGTERM") from error
    for line in report(outcome):
        click.echo(line)
    for complaint in outcome.complaints[:20]:
        click.echo(f"gateway: {complaint}", err=True)
    found = violations(outcome)
    click.echo("verdict               " + ("; ".join(found) if found else "all checks passed"))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
