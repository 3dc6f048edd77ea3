"""Measures the path of a message through one process, without a broker: ``python -m bench.path``.

Records are decoded and passed to the gateway's sink in batches, like in the Kafka adapter, and sent over loopback to
devices in another process, which discards them. It measures this process's CPU time per message, and compares it with
the floor: one send() of the same bytes on the same sockets. All variants alternate in one run.

All devices are in one group. "To the group" is one record for it, decoded and routed, per message that a device gets.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import click

from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.rules.identity import TokenPolicy
from cocoa_tornado.rules.records import Record, decode
from cocoa_tornado.service import Gateway
from cocoa_tornado.settings import Settings

SECRET = "a secret of thirty-two bytes, or more"
GROUP = "everyone here"
SOURCE = "results/0"


def drain(port: int, devices: int) -> None:
    """Run the devices: connect, and read until the gateway closes."""
    signer, poller, sockets = Signer.from_secret(SECRET), select.epoll(), {}
    for number in range(devices):
        request = TokenRequest(f"device-{number}", 99, extra_claims={"groups": [GROUP]})
        token = mint(request, signer, TokenPolicy(), time.time())
        sock = socket.create_connection(("127.0.0.1", port))
        lines = [
            f"GET /ws?token={token} HTTP/1.1",
            "Host: localhost",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        assert b" 101 " in sock.recv(4096)
        sock.setblocking(False)
        sockets[sock.fileno()] = sock
        poller.register(sock, select.EPOLLIN)
    while sockets:
        for fd, _ in poller.poll():
            if not sockets[fd].recv(1 << 20):
                poller.unregister(fd)
                sockets.pop(fd).close()


def values(devices: int, each: int) -> list[tuple[bytes, bytes]]:
    """The records of one batch, as keys and values."""
    return [
        (f"device-{number}".encode(), value({"device_id": f"device-{number}"}, turn))
        for turn in range(each)
        for number in range(devices)
    ]


def value(address: dict[str, object], seq: int) -> bytes:
    record = {
        "session_id": "a1b2c3d4e5f6g7h8",
        "user_id": 99,
        **address,
        "text": "Hello, this is what was heard just now",
        "timestamp": "2024-01-15T10:30:00Z",
        "success": True,
        "seq": seq,
    }
    return json.dumps(record).encode()


class Sink:
    """Passes batches to the gateway as one partition of a broker does."""

    def __init__(self, gateway: Gateway) -> None:
        self._sink, self._offset = gateway._sink, 0

    def __call__(self, batch: list[Record]) -> None:
        offsets = range(self._offset, self._offset + len(batch))
        self._offset += len(batch)
        self._sink(Batch(batch, offsets=offsets, sources=[(SOURCE, len(batch))]))


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def measure(turn: Callable[[], Awaitable[None]], messages: int, seconds: float) -> float:
    """CPU time per message in microseconds."""
    await turn()
    count, since = 0, time.process_time()
    while time.process_time() - since < seconds:
        await turn()
        count += messages
    taken = time.process_time() - since
    await asyncio.sleep(0.2)  # for the devices to catch up
    return taken / count * 1e6


async def run(devices: int, rounds: int, seconds: float, mailbox: str) -> None:
    settings = Settings(
        port=0, jwt_secret=SECRET, speech="none://", log_level="error", access_log=False, mailbox=mailbox
    )
    gateway = Gateway(settings)
    await gateway.start()
    sink = Sink(gateway)
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.path", "--drain", str(gateway.port), "--devices", str(devices)]
    )
    while len(gateway.hub) < devices:
        if child.poll() is not None:
            raise click.ClickException(f"the devices have ended with status {child.returncode}")
        await asyncio.sleep(0.05)
    results: dict[str, list[float]] = {}
    sockets = [client._socket._sock for client in gateway.hub]  # type: ignore[attr-defined]  # the floor's own way
    for each in (1, 10):
        records = values(devices, each)
        now_ms = int(time.time() * 1000)
        decoded = [decode(key, value, now_ms) for key, value in records]
        deliveries = [delivery for delivery in decoded if isinstance(delivery, Record)]
        frames = [b"\x81\x7e" + len(item.payload).to_bytes(2, "big") + item.payload for item in deliveries]

        async def whole(records: list[tuple[bytes, bytes]] = records) -> None:
            now_ms = int(time.time() * 1000)
            batch = [decode(key, value, now_ms) for key, value in records]
            sink(batch)  # type: ignore[arg-type]  # all of them can be decoded
            await settle()

        to_group = [(b"", value({"to": {"group": GROUP}}, turn)) for turn in range(each)]

        async def group(records: list[tuple[bytes, bytes]] = to_group) -> None:
            end = gateway.counters.routed + devices * len(records)
            await whole(records)
            while gateway.counters.routed < end:  # with a mailbox, a large fan-out has several steps
                await asyncio.sleep(0)
            await settle()

        async def routed(deliveries: list[Record] = deliveries) -> None:
            sink(deliveries)
            await settle()

        async def floor(frames: list[bytes] = frames, each: int = each) -> None:
            for sock, frame in zip(sockets * each, frames, strict=True):
                sock.send(frame)
            await settle()

        for _ in range(rounds):
            for name, turn in (
                ("floor", floor),
                ("routed", routed),
                ("decoded and routed", whole),
                ("to the group", group),
            ):
                cost = await measure(turn, len(records), seconds)
                results.setdefault(f"{each:2} per device: {name}", []).append(cost)
    for name, costs in results.items():
        print(f"{name:34} {statistics.median(costs):6.2f} us ({min(costs):.2f} to {max(costs):.2f})")
    await gateway.drain_and_stop()
    child.wait()


@click.command(help=__doc__)
@click.option("--devices", default=500, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=0.4, show_default=True, help="CPU time of each measurement.")
@click.option("--mailbox", default="none://", show_default=True)
@click.option("--drain", "port", type=int, default=0, hidden=True)
def main(devices: int, rounds: int, seconds: float, mailbox: str, port: int) -> None:
    if port:
        drain(port, devices)
    else:
        asyncio.run(run(devices, rounds, seconds, mailbox))


if __name__ == "__main__":
    main()
