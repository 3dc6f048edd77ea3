"""Measures the cost of a mailbox: ``python -m bench.mailbox_cost``.

First, the CPU time of the gateway (and of Redis) per message from Apache Kafka to 500 connected devices: one gateway
after another, on the same topic, with and without a mailbox, in turns. Then a mailbox with a million messages for
100,000 devices: the time to fill it, its size, and the time for a device to connect and drain its box. Everything runs
on one machine; ratios are more reliable than absolute figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import secrets
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import websockets

from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Entry, LaneRead, Mailbox, MailboxState
from cocoa_tornado.mailboxes.sqlite import SqliteMailbox
from cocoa_tornado.rules.box import BoxLimits, PageLimits
from cocoa_tornado.rules.identity import TokenPolicy

from .soak_gateway import GatewayProcess
from .survival_faults import pythonpath

TOPIC = "transcription.results"
DEVICES = 500
PARTITIONS = 6
OPTIONS = ["--log-format", "json", "--log-level", "warning", "--no-access-log", "--outbox-max-messages", "100000"]
PAYLOAD = b'{"type":"transcription","session_id":"0123456789abcdef","user_id":99,"device_id":"d","text":"%b"}' % (
    b"x" * 100
)
BATCH = 5_000


def cpu_s(pid: int) -> float:
    """The CPU time of a process so far, user and system, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Ear(asyncio.Protocol):
    """A device that only counts the bytes of messages, which is cheap and so does not distort the measurement."""

    def __init__(self, path: str, marker: bytes) -> None:
        self.path, self.marker = path, marker
        self.heard = 0
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        lines = [
            f"GET {self.path} HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", "", "",
        ]  # fmt: skip
        transport.write("\r\n".join(lines).encode())

    def data_received(self, data: bytes) -> None:
        if not self.opened.done() and b" 101 " in data:
            self.opened.set_result(None)
        self.heard += data.count(self.marker)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def write(bootstrap: str, messages: int, device_ids: list[str]) -> None:
    """Write records for random devices as fast as possible."""
    from kafka import KafkaProducer

    chance = random.Random(1)
    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=20)
    for number in range(messages):
        device_id = chance.choice(device_ids)
        record = {"session_id": "s", "user_id": 99, "device_id": device_id, "text": "x" * 100, "seq": number}
        producer.send(TOPIC, key=device_id.encode(), value=json.dumps(record, separators=(",", ":")).encode())
    producer.flush()
    producer.close()


async def cost_of(
    mailbox: str, bootstrap: str, folder: Path, messages: int, redis_pid: int | None
) -> tuple[float, float]:
    """CPU time per message in microseconds: of the gateway, and of Redis."""
    folder.mkdir()
    secret = secrets.token_hex(32)
    options = [*OPTIONS, "--broker", f"kafka://{bootstrap}", "--mailbox", mailbox, "--kafka-group", folder.name]
    gateway = GatewayProcess(folder, secret, options, pythonpath())
    await gateway.start()
    await gateway.await_ready()
    signer, device_ids = Signer.from_secret(secret), [f"device-{number}" for number in range(DEVICES)]
    ears = []
    for device_id in device_ids:
        token = mint(TokenRequest(device_id, 99), signer, TokenPolicy(), time.time())
        ear = Ear(f"/ws?token={token}", b'"seq":')
        await asyncio.get_running_loop().create_connection(lambda ear=ear: ear, "127.0.0.1", gateway.port)  # type: ignore[misc]  # bound at once
        await asyncio.wait_for(ear.opened, 10)
        ears.append(ear)
    before = cpu_s(gateway.pid), cpu_s(redis_pid) if redis_pid else 0.0
    await asyncio.to_thread(write, bootstrap, messages, device_ids)
    end = time.monotonic() + 120
    while (heard := sum(ear.heard for ear in ears)) < messages:
        if time.monotonic() > end:
            raise click.ClickException(f"{mailbox}: {heard} of {messages} messages came")
        await asyncio.sleep(0.05)
    after = cpu_s(gateway.pid), cpu_s(redis_pid) if redis_pid else 0.0
    for ear in ears:
        ear.close()
    await gateway.stop()
    return (after[0] - before[0]) / messages * 1e6, (after[1] - before[1]) / messages * 1e6


async def compare_costs(messages: int, rounds: int) -> None:
    from testing.kafka_admin import create_topic
    from testing.kafka_server import KafkaServer
    from testing.redis_server import RedisServer, why_not

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cocoa-cost-")))
        (folder / "kafka").mkdir()
        kafka = KafkaServer(folder / "kafka")
        kafka.start()
        stack.callback(kafka.kill)
        create_topic(kafka.bootstrap, TOPIC, PARTITIONS)
        redis = None
        if not why_not():
            redis = RedisServer(folder / "redis")
            redis.start()
            stack.callback(redis.kill)
        found: dict[str, list[tuple[float, float]]] = {}
        for turn in range(rounds):
            for name, url in (
                ("none", "none://"),
                ("memory", "memory://"),
                ("sqlite", f"sqlite:///{folder}/box-{turn}.db"),
                ("redis", redis.url if redis else ""),
            ):
                if url:
                    pid = redis.pid if redis and name == "redis" else None
                    place = folder / f"{name}-{turn}"
                    found.setdefault(name, []).append(await cost_of(url, kafka.bootstrap, place, messages, pid))
        floor = statistics.median(cost for cost, _ in found["none"])
        click.echo(f"CPU time of the gateway per message ({messages} messages from Kafka to {DEVICES} sockets):")
        for name, costs in found.items():
            own = [cost for cost, _ in costs]
            there = statistics.median(cost for _, cost in costs)
            beside = f", and {there:.1f} us in Redis" if there else ""
            middle = statistics.median(own)
            click.echo(
                f"  {name:7} {middle:6.1f} us ({min(own):.1f} to {max(own):.1f}), {middle / floor:.2f} of none{beside}"
            )


def batches(messages: int, devices: int) -> Iterator[list[Entry]]:
    for first in range(0, messages, BATCH):
        numbers = range(first, min(first + BATCH, messages))
        yield [Entry(f"device-{number % devices}", PAYLOAD, number, "topic/0", number) for number in numbers]


async def fill(mailbox: Mailbox, messages: int, devices: int) -> float:
    """Fill the mailbox; returns the seconds."""
    since = time.monotonic()
    for batch in batches(messages, devices):
        await mailbox.append(batch)
    return time.monotonic() - since


async def look_at_many(mailbox: Mailbox, devices: int) -> list[float]:
    """The seconds to look at one device's box and read all its messages, of 200 devices, sorted."""
    chance, taken = random.Random(2), []
    for _ in range(200):
        device_id = f"device-{chance.randrange(devices)}"
        since = time.monotonic()
        box = await mailbox.look(device_id)
        [page] = await mailbox.read(device_id, [LaneRead("normal", box.start(None).normal, PageLimits(100))])
        assert page.messages
        taken.append(time.monotonic() - since)
    return sorted(taken)


async def connect_and_drain(mailbox: str, folder: Path, each: int, devices: int) -> list[float]:
    """The seconds from the TCP connection to a device's last message, of 50 devices, sorted."""
    secret = secrets.token_hex(32)
    gateway = GatewayProcess(folder, secret, [*OPTIONS, "--mailbox", mailbox], pythonpath())
    await gateway.start()
    await gateway.await_ready()
    signer, taken = Signer.from_secret(secret), []
    for number in range(50):
        token = mint(TokenRequest(f"device-{number * (devices // 50)}", 99), signer, TokenPolicy(), time.time())
        since = time.monotonic()
        url = f"ws://127.0.0.1:{gateway.port}/ws?token={token}"
        async with websockets.connect(url, proxy=None, ping_interval=None) as device:
            for _ in range(each):
                await asyncio.wait_for(device.recv(), 20)
            taken.append(time.monotonic() - since)
    await gateway.stop()
    return sorted(taken)


async def measure_large(kind: str, messages: int, devices: int) -> None:
    limits = BoxLimits()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cocoa-large-")))
        url, size = f"sqlite:///{folder}/box.db", ""
        rss_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        mailbox: Mailbox
        if kind == "memory":
            mailbox = MemoryMailbox(limits)
        elif kind == "sqlite":
            mailbox = SqliteMailbox(folder / "box.db", limits)
        else:
            from cocoa_tornado.mailboxes.redis import RedisMailbox
            from testing.redis_server import RedisServer

            redis = RedisServer(folder / "redis")
            redis.start()
            stack.callback(redis.kill)
            url = redis.url
            mailbox = RedisMailbox(url, limits)
        await mailbox.start()
        while mailbox.status().state is not MailboxState.READY:
            await asyncio.sleep(0.05)
        seconds = await fill(mailbox, messages, devices)
        looks = await look_at_many(mailbox, devices)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss_before) / 1024
        await mailbox.close(30)
        if kind == "sqlite":
            size = f", file {sum(path.stat().st_size for path in folder.glob('box.db*')) / 2**20:.0f} MiB"
        if kind == "redis":
            resident = Path(f"/proc/{redis.pid}/status").read_text().partition("VmRSS:")[2].split()[0]
            size = f", Redis resident {int(resident) / 1024:.0f} MiB"
        click.echo(f"{kind}: {messages} messages for {devices} devices stored in {seconds:.0f} s{size}")
        click.echo(f"  this process grew by {grown:.0f} MiB; a box looked at and read: {_spread(looks)}")
        if kind != "memory":
            home = folder / "home"
            home.mkdir()
            drains = await connect_and_drain(url, home, messages // devices, devices)
            click.echo(f"  a device connects and drains its box of {messages // devices}: {_spread(drains)}")


def _spread(seconds: list[float]) -> str:
    middle, late = statistics.median(seconds), seconds[int(len(seconds) * 0.98)]
    return f"median {middle * 1000:.1f} ms, 98 of 100 within {late * 1000:.1f} ms"


@click.command(help=__doc__)
@click.option("--messages", type=click.IntRange(1), default=20_000, show_default=True, help="Messages per turn.")
@click.option("--rounds", type=click.IntRange(0), default=3, show_default=True)
@click.option(
    "--large",
    type=click.IntRange(0),
    default=1_000_000,
    show_default=True,
    help="Messages in the large mailbox; 0: skip it.",
)
@click.option(
    "--devices", type=click.IntRange(50), default=100_000, show_default=True, help="Devices of the large mailbox."
)
@click.option(
    "--kind", type=click.Choice(["memory", "sqlite", "redis"]), multiple=True, help="Kind of the large mailbox."
)
def main(messages: int, rounds: int, large: int, devices: int, kind: tuple[str, ...]) -> None:
    if rounds:
        asyncio.run(compare_costs(messages, rounds))
    for one in (kind or ("sqlite", "redis", "memory")) if large else ():
        asyncio.run(measure_large(one, large, devices))


if __name__ == "__main__":
    main()
