"""Measures when the devices of a killed server are connected again: ``python -m bench.killed_server --fence 10``.

Three servers share Redis and Apache Kafka, and a third of the devices is connected to each. One server is killed
(SIGKILL). Its devices notice at once, and connect to one of the others, which a load balancer chooses. They wait as
docs/protocol.rst asks of firmware: the ``Retry-After`` that they are given, and a random part of 1, 2, 4 ... seconds.
The time of each device counts from the kill. Goal: ``presence_fence`` + 2 s at most, without the random part of the
last wait, which is the device's own. Exit status 1 if a device was later.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import secrets
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import click

from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.presence.redis_settings import LEAST_DIFFERENCE_S
from cocoa_tornado.rules.identity import TokenPolicy

from .soak_gateway import GatewayProcess
from .survival_faults import pythonpath

MOST_RANDOM_S = 60.0
DIAL_PATIENCE_S = 10.0
ROUND_PATIENCE_S = 60.0
PROMISE_S = 2.0  # beyond presence_fence
OPTIONS = [
    *("--log-format", "json", "--log-level", "warning", "--no-access-log", "--ping-interval", "5m"),
    *("--drain-grace", "5s", "--speech", "none://"),
]


class Device:
    """It is connected, or tries to be, until cancelled.

    :ivar server: that it is connected to
    :ivar back_at: when it was connected last, monotonic seconds
    :ivar random_s: what it has added to its last wait by itself
    """

    def __init__(self, token: str, refusals: Counter[str]) -> None:
        self._token, self._refusals = token, refusals
        self.server: GatewayProcess | None = None
        self.back_at = self.random_s = 0.0
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self, server: GatewayProcess) -> int | None:
        """Returns the least wait until the next attempt, in seconds; None: it is connected."""
        request = (
            f"GET /ws?token={self._token} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        try:
            async with asyncio.timeout(DIAL_PATIENCE_S):
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", server.port)
                self._writer.write(request.encode())
                head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (OSError, EOFError, TimeoutError) as error:
            self._refusals[type(error).__name__] += 1
            self.close()
            return 0
        if head.split(maxsplit=2)[1] == "101":
            self.server, self.back_at = server, time.monotonic()
            return None
        self.close()
        found = re.search(r"(?i)^retry-after: *(\d+)", head, re.MULTILINE)
        after = found[1] if found else "1"
        self._refusals[f"{head.split(maxsplit=2)[1]} Retry-After {after}"] += 1
        return int(after)

    async def until_lost(self) -> None:
        with contextlib.suppress(OSError):
            while await self._reader.read(4096):
                pass
        self.close()

    async def return_to(self, servers: list[GatewayProcess]) -> None:
        """The connection will be lost; be connected to one of these servers again."""
        await self.until_lost()
        least_s: int | None = 0
        attempt = 0
        while least_s is not None:
            self.random_s = random.uniform(0.0, min(MOST_RANDOM_S, 2.0**attempt))
            await asyncio.sleep(least_s + self.random_s)
            least_s = await self.connect(random.choice(servers))
            attempt += 1

    def close(self) -> None:
        self.server = None
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None


@dataclass(slots=True)
class Outcome:
    """Seconds from the kill until a device was connected again, for all rounds.

    :ivar without_s: without what it has added to its last wait by itself
    """

    times_s: list[float] = field(default_factory=list)
    without_s: list[float] = field(default_factory=list)
    missing: int = 0
    refusals: Counter[str] = field(default_factory=Counter)


class Deployment:
    """Servers that share Redis and Kafka. A server that is killed is started again."""

    def __init__(self, folder: Path, secret: str, options: list[str]) -> None:
        self._folder, self._secret, self._options, self._lives = folder, secret, options, 0
        self.servers: list[GatewayProcess] = []

    async def start_one(self) -> None:
        self._lives += 1
        folder = self._folder / f"server-{self._lives}"
        folder.mkdir()
        server = GatewayProcess(folder, self._secret, [*self._options, "--server-name", folder.name], pythonpath())
        await server.start()
        await server.await_ready()
        self.servers.append(server)

    async def kill_one(self) -> tuple[GatewayProcess, float]:
        """Returns it, and when it was killed."""
        victim = random.choice(self.servers)
        self.servers.remove(victim)
        killed_at = time.monotonic()
        await victim.kill()
        return victim, killed_at

    async def close(self) -> None:
        for server in self.servers:
            await server.kill()


async def play_round(deployment: Deployment, devices: list[Device], outcome: Outcome) -> None:
    for at, device in enumerate(devices):
        device.close()
        while device.server is None:
            least_s = await device.connect(deployment.servers[at % len(deployment.servers)])
            await asyncio.sleep(least_s or 0.0)
    await asyncio.sleep(random.uniform(2.0, 3.0))  # the beats of the servers are at any point of their second
    before = Counter(outcome.refusals)
    victim, killed_at = await deployment.kill_one()
    affected = [device for device in devices if device.server is victim]
    returning = [asyncio.ensure_future(device.return_to(list(deployment.servers))) for device in affected]
    _, late = await asyncio.wait(returning, timeout=ROUND_PATIENCE_S)
    for task in late:
        task.cancel()
    outcome.missing += len(late)
    back = [device for device in affected if device.server is not None]
    times_s = [device.back_at - killed_at for device in back]
    without_s = [device.back_at - device.random_s - killed_at for device in back]
    outcome.times_s += times_s
    outcome.without_s += without_s
    refused = dict(sorted((outcome.refusals - before).items()))
    click.echo(f"{len(affected)} devices: {summary(times_s, without_s)}; refused: {refused}")
    await deployment.start_one()


def summary(times_s: list[float], without_s: list[float]) -> str:
    if not times_s:
        return "none is back"
    ours = f"{statistics.median(without_s):.1f} s, longest {max(without_s):.1f} s"
    return f"median {statistics.median(times_s):.1f} s, longest {max(times_s):.1f} s; without their own delay {ours}"


async def measure(servers: int, count: int, rounds: int, fence_s: float) -> Outcome:
    # Lazy, like all that needs the libraries of the services.
    from testing.kafka_admin import create_topic
    from testing.kafka_server import KafkaServer
    from testing.redis_server import RedisServer

    secret, outcome = secrets.token_hex(32), Outcome()
    with tempfile.TemporaryDirectory(prefix="cocoa-killed-") as name, contextlib.ExitStack() as stack:
        kafka, redis = KafkaServer(Path(name) / "kafka"), RedisServer(Path(name) / "redis")
        kafka.start()
        stack.callback(kafka.kill)
        redis.start()
        stack.callback(redis.close)
        create_topic(kafka.bootstrap, "transcription.results", 6)
        shared = ["--broker", f"kafka://{kafka.bootstrap}", "--presence", redis.url, "--mailbox", redis.url]
        freeze_s = min(5.0, fence_s - LEAST_DIFFERENCE_S)
        shared += ["--presence-fence", f"{fence_s:g}s", "--presence-freeze", f"{freeze_s:g}s"]
        deployment = Deployment(Path(name), secret, [*OPTIONS, *shared])
        signer, policy = Signer(secret.encode(), "HS256"), TokenPolicy()
        requests = [TokenRequest(f"device-{at}", 99) for at in range(count)]
        tokens = [mint(request, signer, policy, time.time()) for request in requests]
        devices = [Device(token, outcome.refusals) for token in tokens]
        try:
            for _ in range(servers):
                await deployment.start_one()
            for _ in range(rounds):
                await play_round(deployment, devices, outcome)
        finally:
            for device in devices:
                device.close()
            await deployment.close()
    return outcome


@click.command(help=__doc__)
@click.option("--servers", type=click.IntRange(2), default=3, show_default=True)
@click.option("--devices", type=click.IntRange(1), default=200, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--fence", type=click.FloatRange(5.0), default=10.0, show_default=True, help="presence_fence, seconds.")
def main(servers: int, devices: int, rounds: int, fence: float) -> None:
    outcome = asyncio.run(measure(servers, devices, rounds, fence))
    click.echo(f"all: {len(outcome.times_s)} devices, {summary(outcome.times_s, outcome.without_s)}")
    if outcome.missing or not outcome.times_s or max(outcome.without_s) > fence + PROMISE_S:
        click.echo(f"not within {fence + PROMISE_S:g} s", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
