"""CPU of Redis and of the gateway for messages that another server holds: ``python -m bench.relay_cost``.

Forwards batches through the relay in Redis from one relay to another, both in this process, and prints microseconds of
CPU for each message. The look-up of the holders comes with it, as the router asks: one script for each batch.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from cocoa_tornado.mailboxes.port import Doorbell, Entry
from cocoa_tornado.mailboxes.redis import RedisMailbox
from cocoa_tornado.presence import redis_scripts as scripts
from cocoa_tornado.presence.redis_lua import HOLDERS
from cocoa_tornado.redis_store.connection import RedisConnection
from cocoa_tornado.redis_store.scripts import Script
from cocoa_tornado.relay.messages import Forward, ForwardedMessage
from cocoa_tornado.relay.redis import RedisRelay
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.rules.claims import bucket_of
from testing.redis_server import RedisServer
from testing.waiting import eventually

from .proc import cpu_s

PAYLOAD = b'{"type":"transcription","text":"' + b"x" * 218 + b'"}'
STAMP = "1:run"


class Meter:
    """CPU seconds of Redis and of this process since it was made."""

    def __init__(self, server: RedisServer) -> None:
        self._pid = server.pid
        self._redis, self._own = cpu_s(self._pid), time.process_time()

    def report(self, what: str, messages: int) -> None:
        redis, own = cpu_s(self._pid) - self._redis, time.process_time() - self._own
        print(f"{what:<44} Redis {redis / messages * 1e6:6.2f} us, gateway {own / messages * 1e6:6.2f} us a message")


async def forward(server: RedisServer, batches: int, size: int) -> None:
    a, b = (RedisRelay(server.url, time.monotonic) for _ in range(2))
    for relay, name in ((a, "a"), (b, "b")):
        server.command("HSET", "cocoa:{box}:p:servers", name, 1)
        relay.join(name)
    count = 0

    def take(sender: str, message: Forward) -> None:
        nonlocal count
        count += len(message.messages)

    b.handle(Forward, take)
    meter = Meter(server)
    for n in range(batches):
        await a.send(
            "b",
            Forward(
                tuple(ForwardedMessage(f"device-{at:06}", PAYLOAD, n, "results/3", n * size + at) for at in range(size))
            ),
        )
    await eventually(lambda: count == batches * size)
    meter.report(f"forwarded, {size} a batch", count)
    await a.close(1.0)
    await b.close(1.0)


async def look_up(server: RedisServer, batches: int, size: int) -> None:
    devices = [f"device-{at:06}" for at in range(size)]
    server.command("HSET", scripts.META, "term", 1, "run", "run")
    for device_id in devices:
        server.command("HSET", f"cocoa:{{box}}:p:h:{bucket_of(device_id.encode())}", device_id, "b:1:1")
    script = Script(HOLDERS, key=scripts.META)
    link = RedisConnection(server.url, [script])
    meter = Meter(server)
    for _ in range(batches):
        (reply,) = await link.exchange([script.call(*scripts.holders_arguments(STAMP, devices))])
        assert len(scripts.holders_replies(reply)) == size
    meter.report(f"looked up, {size} a batch", batches * size)
    await link.close()


async def append(server: RedisServer, batches: int, size: int, *, is_ringing: bool) -> None:
    mailbox = RedisMailbox(server.url, BoxLimits(), rings=is_ringing)
    await mailbox.start()
    await eventually(lambda: mailbox.key is not None)
    devices = [f"device-{at:06}" for at in range(size)]
    meter = Meter(server)
    for n in range(batches):
        entries = [Entry(name, PAYLOAD, n + 1, "results/3", n * size + at) for at, name in enumerate(devices)]
        doorbell = Doorbell(devices) if is_ringing else None
        await mailbox.append(entries, doorbell)
        server.command("DEL", "cocoa:{box}:p:in:b", "cocoa:{box}:p:q:b")
    meter.report(f"stored{' and rung' if is_ringing else ''}, {size} a batch", batches * size)
    await mailbox.close(1.0)
    server.command("FLUSHALL")


async def main(batches: int, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            for _ in range(2):
                await forward(server, batches, size)
                await look_up(server, batches, size)
                await append(server, batches // 4, size, is_ringing=False)
                server.command("HSET", "cocoa:{box}:p:servers", "b", 1)
                await look_up(server, 1, size)
                await append(server, batches // 4, size, is_ringing=True)
        finally:
            server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=2_000)
    parser.add_argument("--size", type=int, default=100)
    options = parser.parse_args()
    asyncio.run(main(options.batches, options.size))
