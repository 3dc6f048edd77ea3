"""Tests that Centrifugo meets the benchmark's contract: it verifies tokens, and delivers a device's records
unchanged."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterable
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from . import Run
from .tokens import token

EACH = 10
PATIENCE_S = 60.0
SILENCE_S = 0.3
INVALID, EXPIRED = 3500, 3005


def url(run: Run, token: str) -> str:
    return f"ws://127.0.0.1:{run.port}/ws?cf_connect={quote(json.dumps({'token': token}))}"


async def close_code(url: str) -> int | None:
    """The close code of a device that must be refused. Raises AssertionError if it is admitted."""
    async with connect(url, compression=None, proxy=None) as connection:
        try:
            async with asyncio.timeout(PATIENCE_S):
                async for message in connection:
                    assert "disconnect" in json.loads(message), message
        except ConnectionClosed:
            pass
        return connection.close_code


def value(device_id: str, number: int) -> bytes:
    return json.dumps({"device_id": device_id, "seq": number, "text": 'Grüß "Gott" '}, ensure_ascii=False).encode()


def publish(run: Run, device_ids: Iterable[str]) -> None:
    from testing.kafka_admin import writer

    with writer(run.bootstrap) as producer:
        producer.send(run.topic, value=value("device-a", 0))  # names no channel
        for number in range(EACH):
            for device_id in device_ids:
                headers = [("centrifugo-channels", f"#{device_id}".encode())]
                key = device_id.encode()
                producer.send(run.topic, key=key, value=value(device_id, number), headers=headers)
        producer.flush(timeout=PATIENCE_S)


async def read(connection: ClientConnection, device_id: str) -> None:
    """Raise AssertionError unless exactly the device's records arrive, in order."""
    for number in range(EACH):
        async with asyncio.timeout(PATIENCE_S):
            message = json.loads(await connection.recv())
        wanted = {"channel": f"#{device_id}", "pub": {"data": json.loads(value(device_id, number))}}
        assert message == wanted, f"{message} is not {wanted}"
    try:
        async with asyncio.timeout(SILENCE_S):
            raise AssertionError(f"one more: {await connection.recv()!r}")
    except TimeoutError:
        pass


async def exercise(run: Run, secret: str) -> None:
    """Raise AssertionError at the first deviation."""
    bad = {
        "that is none": ("rubbish", INVALID),
        "that has expired": (token(secret, "device-a", -60), EXPIRED),
        "of another secret": (token(secrets.token_hex(32), "device-a"), INVALID),
    }
    for what, (wrong, wanted) in bad.items():
        code = await close_code(url(run, wrong))
        assert code == wanted, f"token {what}: closed with {code}"
    ids = ["device-a", "device-b"]
    first, second = (connect(url(run, token(secret, one)), compression="deflate", proxy=None) for one in ids)
    async with first as one, second as other:
        for connection, device_id in ((one, ids[0]), (other, ids[1])):
            assert connection.response is not None
            assert "Sec-WebSocket-Extensions" not in connection.response.headers, "permessage-deflate is on"
            welcome = json.loads(await connection.recv())
            assert list(welcome["connect"]["subs"]) == [f"#{device_id}"], welcome
        await asyncio.to_thread(publish, run, ids)
        await asyncio.gather(read(one, ids[0]), read(other, ids[1]))
        await asyncio.wait_for(await one.ping(), PATIENCE_S)
