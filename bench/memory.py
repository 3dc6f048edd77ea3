"""Measures the gateway's memory while something downstream is stalled: ``python -m bench.memory``.

``mailbox``: Redis is down, and a backend continues to write large records. ``broker``: Kafka is down, and devices
continue to send. ``bomb``: a small batch that decompresses to 400 MB, with zstd and gzip. Each prints the growth of the
process (resident set, MiB) since it became ready, and its ``peak``. ``--code`` measures another checkout, to compare
two versions on the same machine and broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import click

from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.rules.identity import TokenPolicy
from testing.kafka_admin import create_topic, writer
from testing.kafka_server import KafkaServer, TansuServer, make_broker
from testing.redis_server import RedisServer

from .proc import parse_kib, raise_file_limit
from .soak_gateway import GatewayProcess

MIB = 1024 * 1024
TOPIC = "transcription.results"
SETTLED_S = 5.0  # without growth, it has reached its final size
PATIENCE_S = 120.0
OPTIONS = ["--log-format", "json", "--log-level", "error", "--no-access-log", "--inbound-rate", "0"]
OPTIONS += ["--ping-interval", "10m", "--ping-timeout", "10m"]  # these devices answer no pings


def resident_mib(pid: int) -> tuple[float, float]:
    """The current and the peak resident set, in MiB."""
    fields = parse_kib(Path(f"/proc/{pid}/status").read_text())
    return fields["VmRSS"] / 1024, fields["VmHWM"] / 1024


class Stand:
    """A broker, and one gateway after another on it."""

    def __init__(self, folder: Path, code: Path | None, client: str) -> None:
        self.folder, self._code, self._client = folder, code, client
        self.kafka: KafkaServer | TansuServer = make_broker(folder / "kafka")
        self.secret = secrets.token_hex(32)

    @contextlib.asynccontextmanager
    async def gateway(self, *options: str) -> AsyncIterator[GatewayProcess]:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        program = [sys.executable, "-P", "-c", "from cli.main import main; main()"]
        environ = {"PYTHONPATH": str(self._code or Path(__file__).parent.parent)}
        broker = ["--broker", f"kafka://{self.kafka.bootstrap}", "--kafka-client", self._client]
        group = ["--kafka-group", f"memory-{folder.name}"]
        process = GatewayProcess(folder, self.secret, [*OPTIONS, *broker, *group, *options], environ, program)
        await process.start()
        try:
            await process.await_ready()
            yield process
        finally:
            await process.kill()


async def growth(process: GatewayProcess, before: float) -> str:
    """The growth, once it has stopped."""
    loop = asyncio.get_running_loop()
    high, end = resident_mib(process.pid)[0], loop.time() + PATIENCE_S
    since = loop.time()
    while loop.time() < min(since + SETTLED_S, end):
        await asyncio.sleep(0.5)
        now = resident_mib(process.pid)[0]
        if now > high + 1:
            high, since = now, loop.time()
    now, peak = resident_mib(process.pid)
    metrics = await process.metrics()
    held = {
        name.partition('"')[2].partition('"')[0]: value / MIB
        for name, value in metrics.items()
        if name.startswith("cocoa_buffer_bytes{") and value
    }
    shown = ", ".join(f"{part} {size:.1f}" for part, size in held.items()) or "nothing that it counts"
    devices = (
        f"{metrics['cocoa_connections']:.0f} devices, {metrics['cocoa_device_messages_total']:.0f} messages of theirs"
    )
    return f"{now - before:+.0f} MiB (peak {peak - before:+.0f}), of which {shown}; {devices}"


async def mailbox_away(stand: Stand, records: int, size: int) -> str:
    redis = RedisServer(stand.folder / "redis")
    redis.start()
    async with stand.gateway("--mailbox", redis.url) as process:
        redis.kill()
        before = resident_mib(process.pid)[0]
        text = b"".join(random.choices([b"%d" % digit for digit in range(10)], k=size))
        value = b'{"device_id":"doll-1","text":"%s"}' % text

        def send() -> None:
            with writer(stand.kafka.bootstrap, max_in_flight_requests_per_connection=1) as producer:
                for _ in range(records):
                    producer.send(TOPIC, value=value).get(30)

        await asyncio.to_thread(send)
        return await growth(process, before)


async def bomb(stand: Stand, size: int, codec: str) -> str:
    async with stand.gateway() as process:
        before = resident_mib(process.pid)[0]

        def send() -> None:
            limits = {"max_request_size": 2 * size, "batch_size": 2 * size, "compression_type": codec}
            with writer(stand.kafka.bootstrap, **limits) as producer:
                producer.send(TOPIC, value=bytes(size)).get(60)

        await asyncio.to_thread(send)
        return await growth(process, before)


class Talker(asyncio.Protocol):
    """A device that sends messages as fast as the gateway accepts them."""

    def __init__(self, path: str, message: bytes) -> None:
        self._path, self._message = path, message
        self._transport: asyncio.Transport
        self._is_paused = False
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        lines = [f"GET {self._path} HTTP/1.1", "Host: gateway", "Upgrade: websocket", "Connection: Upgrade"]
        lines += ["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13"]
        transport.write("\r\n".join([*lines, "", ""]).encode())

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            self.opened.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(error or ConnectionError("closed"))

    def talk(self) -> None:
        """Start sending."""
        self._transport.set_write_buffer_limits(high=2 * len(self._message))
        self.resume_writing()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        while not self._is_paused and not self._transport.is_closing():
            self._transport.write(self._message)


def frame(text: bytes) -> bytes:
    """A text message with a mask of zeros."""
    size = len(text)
    length = bytes((0x80 | 126,)) + size.to_bytes(2, "big") if size < 0x10000 else b"\xff" + size.to_bytes(8, "big")
    return b"\x81" + length + bytes(4) + text


def _same(talker: Talker) -> Talker:
    return talker


async def broker_away(stand: Stand, devices: int, size: int) -> str:
    async with stand.gateway() as process:
        signer = Signer.from_secret(stand.secret)
        talkers: list[Talker] = []
        for number in range(devices):
            token = mint(TokenRequest(f"doll-{number}", number), signer, TokenPolicy(), time.time())
            talker = Talker(f"/ws?token={token}", frame(b"x" * size))
            await asyncio.get_running_loop().create_connection(partial(_same, talker), "127.0.0.1", process.port)
            await talker.opened
            talkers.append(talker)
        stand.kafka.kill()
        await asyncio.sleep(3.0)
        before = resident_mib(process.pid)[0]
        for talker in talkers:
            talker.talk()
        result = await growth(process, before)
    stand.kafka.start()
    return result


async def measure(code: Path | None, client: str, only: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="cocoa-memory-") as name:
        stand = Stand(Path(name), code, client)
        stand.kafka.start()
        create_topic(stand.kafka.bootstrap, TOPIC)
        try:
            if "mailbox" in only:
                click.echo(f"{client}, mailbox away, 1500 x 700 KB: {await mailbox_away(stand, 1500, 700_000)}")
            if "bomb" in only:
                for codec in ("zstd", "gzip"):
                    click.echo(f"{client}, a batch of 400 MB by {codec}: {await bomb(stand, 400_000_000, codec)}")
            if "broker" in only:
                for devices, size in ((3000, 4_000), (800, 100_000)):
                    found = await broker_away(stand, devices, size)
                    click.echo(f"{client}, broker away, {devices} devices x {size} bytes: {found}")
        finally:
            stand.kafka.close()


@click.command()
@click.option("--code", type=click.Path(exists=True, path_type=Path), help="Another checkout of the code to measure.")
@click.option("--client", type=click.Choice(["kafka-python", "confluent"]), multiple=True, help="Default: both.")
@click.option("--only", type=click.Choice(["mailbox", "bomb", "broker"]), multiple=True, help="Default: all.")
def main(code: Path | None, client: tuple[str, ...], only: tuple[str, ...]) -> None:
    """Measure the gateway's memory while something downstream is stalled."""
    raise_file_limit()
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    for name in client or ("kafka-python", "confluent"):
        asyncio.run(measure(code and code.resolve(), name, only or ("mailbox", "bomb", "broker")))


if __name__ == "__main__":
    main()
