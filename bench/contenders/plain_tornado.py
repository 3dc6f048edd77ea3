"""A gateway in the style of Tornado's documentation: WebSocketHandler, write_message, json, and a dict of devices.

The queue of a slow device is unbounded, as the result of write_message is not awaited.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
from typing import Any

import jwt
from aiokafka import AIOKafkaConsumer
from tornado.web import Application, HTTPError, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

PING_INTERVAL_S = 30
BACKLOG = 65_535  # the kernel's maximum; the library's default is too short for a storm
POSITION_PATIENCE_S = 1.0
MAX_MESSAGE_BYTES = 512 * 1024

Clients = dict[str, "DeviceHandler"]
log = logging.getLogger("plain_tornado")


class DeviceHandler(WebSocketHandler):
    """One device. It is in ``clients`` from open() to on_close()."""

    def initialize(self, clients: Clients, secret: bytes) -> None:
        self.clients, self.secret = clients, secret
        self.device_id = ""

    def prepare(self) -> None:
        try:
            claims = jwt.decode(
                self.get_query_argument("token", ""), self.secret, algorithms=["HS256"], options={"require": ["exp"]}
            )
        except jwt.InvalidTokenError as error:
            raise HTTPError(401, str(error)) from error
        device_id = claims.get("device_id")
        if not isinstance(device_id, str) or not device_id:
            raise HTTPError(401, "no device_id")
        if device_id in self.clients:
            raise HTTPError(409, "device already connected")
        self.device_id = device_id

    def open(self, *args: str, **kwargs: str) -> None:
        # Nothing was awaited since prepare(), so there is no race with another connection.
        self.set_nodelay(True)
        self.clients[self.device_id] = self

    def on_message(self, message: str | bytes) -> None:
        pass

    def on_close(self) -> None:
        if self.clients.get(self.device_id) is self:
            del self.clients[self.device_id]


class ReadyHandler(RequestHandler):
    """200 once all records produced from now on will be read."""

    def initialize(self, consumer: AIOKafkaConsumer) -> None:
        self.consumer = consumer

    async def get(self) -> None:
        self.set_status(200 if await has_positions(self.consumer) else 503)


async def has_positions(consumer: AIOKafkaConsumer) -> bool:
    """Whether the consumer has partitions, and a position in each."""
    partitions = consumer.assignment()
    try:
        async with asyncio.timeout(POSITION_PATIENCE_S):
            for partition in partitions:
                await consumer.position(partition)
    except Exception:  # revoked, or the broker did not answer in time
        return False
    return bool(partitions)


def deliver(value: bytes, clients: Clients) -> None:
    """Send one record to its device, if that is connected."""
    try:
        record: dict[str, Any] = json.loads(value)
        client = clients.get(record["device_id"])
    except (ValueError, TypeError, KeyError) as error:
        log.warning("record skipped: %r", error)
        return
    if client is None:
        return
    record.pop("type", None)
    message = json.dumps({"type": "transcription", **record}, separators=(",", ":"), ensure_ascii=False)
    with contextlib.suppress(WebSocketClosedError):
        client.write_message(message)


async def main(options: argparse.Namespace) -> None:
    clients: Clients = {}
    secret = os.environ["COCOA_JWT_SECRET"].encode()
    consumer = AIOKafkaConsumer(
        options.topic, bootstrap_servers=options.bootstrap, group_id=options.group, auto_offset_reset="latest"
    )
    application = Application(
        [
            ("/ws", DeviceHandler, {"clients": clients, "secret": secret}),
            ("/ready", ReadyHandler, {"consumer": consumer}),
        ],
        websocket_ping_interval=PING_INTERVAL_S,
        websocket_ping_timeout=PING_INTERVAL_S,
        websocket_max_message_size=MAX_MESSAGE_BYTES,
    )
    server = application.listen(options.port, backlog=BACKLOG)
    print(f"listening on {options.port}", flush=True)
    try:
        await consumer.start()
        async for record in consumer:
            deliver(record.value or b"", clients)
    finally:
        server.stop()
        await consumer.stop()


async def run_until_terminated(options: argparse.Namespace) -> None:
    running = asyncio.ensure_future(main(options))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    asyncio.run(run_until_terminated(parser.parse_args()))
