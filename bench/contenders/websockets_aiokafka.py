"""A gateway on the library ``websockets`` (its asyncio server) with aiokafka.

It sends with the library's broadcast() to one connection, because send() would block on a device that does not read,
and delay all others. So the queue of a slow device is unbounded until its pings fail.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from aiokafka import AIOKafkaConsumer
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosedError
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

PING_INTERVAL_S = 30
BACKLOG = 65_535  # the kernel's maximum; the library's default is too short for a storm
POSITION_PATIENCE_S = 1.0
MAX_MESSAGE_BYTES = 512 * 1024

log = logging.getLogger("websockets_aiokafka")


class DeviceConnection(ServerConnection):
    """A connection, with its device once the token is verified."""

    device_id = ""


class Hub:
    """The connections by device, one each."""

    def __init__(self, consumer: AIOKafkaConsumer, secret: bytes) -> None:
        self._consumer, self._secret = consumer, secret
        self._connections: dict[str, ServerConnection] = {}

    async def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a request, or return None for the library to open a WebSocket."""
        assert isinstance(connection, DeviceConnection)
        url = urlsplit(request.path)
        if url.path == "/ready":
            ready = await has_positions(self._consumer)
            return connection.respond(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, "")
        if url.path != "/ws":
            return connection.respond(HTTPStatus.NOT_FOUND, "")
        device_id = self._verify(parse_qs(url.query).get("token", [""])[0])
        if device_id is None:
            return connection.respond(HTTPStatus.UNAUTHORIZED, "bad token\n")
        if device_id in self._connections:
            return connection.respond(HTTPStatus.CONFLICT, "device already connected\n")
        connection.device_id = device_id
        return None

    async def serve_device(self, connection: ServerConnection) -> None:
        assert isinstance(connection, DeviceConnection)
        if connection.device_id in self._connections:  # another connection was admitted during the handshake
            await connection.close(CloseCode.POLICY_VIOLATION, "device already connected")
            return
        self._connections[connection.device_id] = connection
        try:
            async for _ in connection:
                pass
        except ConnectionClosedError:
            pass
        finally:
            del self._connections[connection.device_id]

    def deliver(self, value: bytes) -> None:
        """Send one record to its device, if that is connected."""
        try:
            record: dict[str, Any] = json.loads(value)
            connection = self._connections.get(record["device_id"])
        except (ValueError, TypeError, KeyError) as error:
            log.warning("record skipped: %r", error)
            return
        if connection is None:
            return
        record.pop("type", None)
        message = json.dumps({"type": "transcription", **record}, separators=(",", ":"), ensure_ascii=False)
        broadcast([connection], message)

    def _verify(self, token: str) -> str | None:
        try:
            claims = jwt.decode(token, self._secret, algorithms=["HS256"], options={"require": ["exp"]})
        except jwt.InvalidTokenError:
            return None
        device_id = claims.get("device_id")
        return device_id if isinstance(device_id, str) and device_id else None


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


async def main(options: argparse.Namespace) -> None:
    consumer = AIOKafkaConsumer(
        options.topic, bootstrap_servers=options.bootstrap, group_id=options.group, auto_offset_reset="latest"
    )
    hub = Hub(consumer, os.environ["COCOA_JWT_SECRET"].encode())
    async with serve(
        hub.serve_device,
        "0.0.0.0",
        options.port,
        create_connection=DeviceConnection,
        process_request=hub.answer,
        compression=None,
        backlog=BACKLOG,
        ping_interval=PING_INTERVAL_S,
        ping_timeout=PING_INTERVAL_S,
        max_size=MAX_MESSAGE_BYTES,
    ):
        print(f"listening on {options.port}", flush=True)
        try:
            await consumer.start()
            async for record in consumer:
                hub.deliver(record.value or b"")
        finally:
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
