"""Measures the path of a message through one process, without a broker: ``python -m bench.path``.

Records are decoded and passed to the gateway's sink in batches, like in the Kafka adapter, and sent over loopback to
devices in another process, which discards them. It measures this process's CPU time per message, and compares it with
the floor: one send() of the same bytes on the same sockets. All variants alternate in one run.

All devices are in one group. "To the group" is one record for it, decoded and routed, per message that a device gets.

With ``--trace``: what it costs to remember what becomes of each message. Two gateways in one process, with and without
(``trace_bytes=0``), take turns; each pair of measurements gives a ratio. The memory is full from the first pair on.
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

from cli.gateway import collect_less_often
from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.rules.handoff import size_of
from cocoa_tornado.rules.identity import TokenPolicy
from cocoa_tornado.rules.records import Record, decode
from cocoa_tornado.service.gateway import Gateway
from cocoa_tornado.settings import Settings

SECRET = "a secret of thirty-two bytes, or more"
GROUP = "everyone here"
SOURCE = "results/0"
MIB = 1024 * 1024


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
        self._sink, self._offset = gateway.wiring.router, 0

    def __call__(self, batch: list[Record], size: int = 0) -> None:
        """:param size: of the batch, which a broker's thread knows; 0: it is not known"""
        offsets = range(self._offset, self._offset + len(batch))
        self._offset += len(batch)
        self._sink(Batch(batch, offsets=offsets, sources=[(SOURCE, len(batch))], size=size))


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
    gateway, child = await start(devices, mailbox)
    sink = Sink(gateway)
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


async def start(devices: int, mailbox: str, **settings: object) -> tuple[Gateway, subprocess.Popen[bytes]]:
    """A gateway with its devices, in a process of their own."""
    # Its devices answer no ping, and would be closed after a minute.
    quiet = {
        "ping_interval_s": 3600.0,
        "port": 0,
        "jwt_secret": SECRET,
        "speech": "none://",
        "log_level": "error",
        "access_log": False,
    }
    gateway = Gateway(Settings(**(quiet | {"mailbox": mailbox} | settings)))  # type: ignore[arg-type]  # of any types
    await gateway.start()
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.path", "--drain", str(gateway.port), "--devices", str(devices)]
    )
    while len(gateway.hub) < devices:
        if child.poll() is not None:
            raise click.ClickException(f"the devices have ended with status {child.returncode}")
        await asyncio.sleep(0.05)
    return gateway, child


async def compare_traces(devices: int, rounds: int, seconds: float, mailbox: str, trace_bytes: int) -> None:
    admin = {"admin_jwt_secret": SECRET[::-1]}
    started = {
        name: await start(devices, mailbox, **admin, **settings)
        for name, settings in (("with", {"trace_bytes": trace_bytes}), ("without", {"trace_bytes": 0}))
    }
    memory = started["with"][0].parts.memory
    collect_less_often()  # as cocoa serve does
    for each in (1, 10):
        records = values(devices, each)
        now_ms = int(time.time() * 1000)
        size = size_of([item for key, value in records if isinstance(item := decode(key, value, now_ms), Record)])
        turns = {name: whole_turn(Sink(gateway), records, size) for name, (gateway, _) in started.items()}
        while memory is not None and memory.size < trace_bytes * 0.9:
            await turns["with"]()
        ratios = []
        for number in range(rounds):
            order = ("with", "without") if number % 2 else ("without", "with")
            costs = {name: await measure(turns[name], len(records), seconds) for name in order}
            ratios.append(costs["with"] / costs["without"])
            print(
                f"{each:2} per device: with {costs['with']:6.2f} us, without {costs['without']:6.2f}: {ratios[-1]:.3f}"
            )
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"{each:2} per device: ratio {middle:.3f} ({low:.3f} to {high:.3f})")
    for gateway, child in started.values():
        await gateway.drain_and_stop()
        child.wait()


def whole_turn(sink: Sink, records: list[tuple[bytes, bytes]], size: int) -> Callable[[], Awaitable[None]]:
    async def turn() -> None:
        now_ms = int(time.time() * 1000)
        batch = [decode(key, value, now_ms) for key, value in records]
        sink(batch, size)  # type: ignore[arg-type]  # all of them can be decoded
        await settle()

    return turn


@click.command(help=__doc__)
@click.option("--devices", default=500, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=0.4, show_default=True, help="CPU time of each measurement.")
@click.option("--mailbox", default="none://", show_default=True)
@click.option("--trace", is_flag=True, help="Compare with and without remembering messages.")
@click.option("--trace-mib", default=64, show_default=True, help="What is remembered, with --trace.")
@click.option("--drain", "port", type=int, default=0, hidden=True)
def main(devices: int, rounds: int, seconds: float, mailbox: str, trace: bool, trace_mib: int, port: int) -> None:
    if port:
        drain(port, devices)
    elif trace:
        asyncio.run(compare_traces(devices, rounds, seconds, mailbox, trace_mib * MIB))
    else:
        asyncio.run(run(devices, rounds, seconds, mailbox))


if __name__ == "__main__":
    main()
