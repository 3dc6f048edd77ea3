"""Tests that every contender meets the benchmark's contract: ``python -m bench.contenders.check [NAME ...]``.

Each runs on one Apache Kafka, with its own group. Exit status 1 if a contender fails, or if a named one cannot run
here. Centrifugo has its own protocol: ``check_centrifugo.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import click
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from . import ALL, GATEWAY_DIALECT, Contender, Run, Unavailable
from .check_centrifugo import exercise as exercise_centrifugo
from .tokens import token

TOPIC = "transcription.results"
PARTITIONS = 6
EACH = 10
PATIENCE_S = 60.0
SILENCE_S = 0.3


@contextlib.contextmanager
def started(contender: Contender, run: Run, secret: str, log: Path) -> Iterator[float]:
    """Start a contender and wait until it is ready. Yields the seconds that it took.

    Raises AssertionError, with its output, if it ends or takes too long.
    """
    since = time.monotonic()
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            contender.command(run),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | {"COCOA_JWT_SECRET": secret},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode().strip()
        assert line == f"listening on {run.port}", f"{line!r}; {log.read_text(errors='replace')[-2000:]}"
        while not is_ready(run.port):
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() - since < PATIENCE_S, f"not ready; {log.read_text(errors='replace')[-2000:]}"
            time.sleep(0.02)
        yield time.monotonic() - since
        process.terminate()
        process.wait(PATIENCE_S)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5.0) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise AssertionError(f"/ready answers {error.code}") from error
        return False
    except urllib.error.URLError:  # Centrifugo does not report when it listens
        return False


async def refusal(url: str) -> int:
    """The status of a handshake that must be refused."""
    try:
        async with connect(url, compression=None, proxy=None):
            return 101
    except InvalidStatus as error:
        return error.response.status_code


@contextlib.asynccontextmanager
async def device(url: str) -> AsyncIterator[ClientConnection]:
    # Offer compression, which the contender must decline.
    async with connect(url, compression="deflate", proxy=None) as connection:
        assert connection.response is not None
        assert "Sec-WebSocket-Extensions" not in connection.response.headers, "permessage-deflate is on"
        yield connection


def record(device_id: str, number: int) -> dict[str, Any]:
    # An escape, an umlaut, a space and a nested object; a field "type" in every fifth. Without unnecessary escapes,
    # which contenders may keep or not.
    fields = {"session_id": "s", "device_id": device_id, "text": 'Grüß "Gott" ', "seq": number, "words": [{"a": 1.5}]}
    return fields | ({"type": "other"} if number % 5 == 4 else {})


def publish(bootstrap: str, device_ids: list[str]) -> None:
    from testing.kafka_admin import writer

    with writer(bootstrap) as producer:
        for value in (b"no JSON", b"[]", b"{}", b"null", json.dumps(record("nobody", 0)).encode()):
            producer.send(TOPIC, value=value)
        for number in range(EACH):
            for device_id in device_ids:
                value = json.dumps(record(device_id, number), ensure_ascii=False).encode()
                producer.send(TOPIC, key=device_id.encode(), value=value)
        producer.flush(timeout=PATIENCE_S)


async def read(connection: ClientConnection, device_id: str) -> None:
    """Raise AssertionError unless exactly the device's messages arrive, in order and in the right format."""
    for number in range(EACH):
        async with asyncio.timeout(PATIENCE_S):
            message = await connection.recv()
        assert isinstance(message, str), "a binary message"
        fields = json.loads(message)
        wanted = record(device_id, number) | {"type": "transcription"}
        assert fields == wanted, f"{message} is not {wanted}"
        assert next(iter(fields)) == "type", message
        compact = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
        assert message == compact, f"{message} is not compact"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SILENCE_S):
            raise AssertionError(f"one more: {await connection.recv()!r}")


async def is_free_again(url: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (status := await refusal(url)) != 101:
        assert status == 409, f"status {status} for a device that has gone"
        assert time.monotonic() < deadline, "a device that has gone is never forgotten"
        await asyncio.sleep(0.02)


async def exercise(run: Run, secret: str) -> None:
    """Raise AssertionError at the first deviation."""
    base = f"ws://127.0.0.1:{run.port}/ws"
    ids = ["device-a", "device-b"]
    bad = {
        "that is not there": base,
        "that is none": f"{base}?token=rubbish",
        "that has expired": f"{base}?token={token(secret, ids[0], -60)}",
        "that never expires": f"{base}?token={token(secret, ids[0], None)}",
        "of another secret": f"{base}?token={token(secrets.token_hex(32), ids[0])}",
        "of another algorithm": f"{base}?token={token(secret, ids[0], algorithm='HS384')}",
        "of no device": f"{base}?token={token(secret, '')}",
    }
    for what, url in bad.items():
        status = await refusal(url)
        assert status == 401, f"token {what}: status {status}"
    urls = [f"{base}?token={token(secret, device_id)}" for device_id in ids]
    async with device(urls[0]) as first, device(urls[1]) as second:
        status = await refusal(urls[0])
        assert status == 409, f"second connection: status {status}"
        await first.send("to be ignored")
        await first.send(b"\x00this too")
        await asyncio.to_thread(publish, run.bootstrap, ids)
        await asyncio.gather(read(first, ids[0]), read(second, ids[1]))
        await asyncio.wait_for(await first.ping(), PATIENCE_S)
    await is_free_again(urls[0])


def check(contender: Contender, bootstrap: str, folder: Path) -> str:
    """Test one contender. Raises AssertionError or Unavailable."""
    from testing.ports import ReservedPort

    contender.prepare()
    secret = secrets.token_hex(32)
    with contextlib.closing(ReservedPort()) as reserved:
        run = Run(reserved.number, bootstrap, TOPIC, f"check-{contender.name}-{secrets.token_hex(4)}")
        with started(contender, run, secret, folder / f"{contender.name}.log") as seconds:
            asyncio.run((exercise if contender.dialect == GATEWAY_DIALECT else exercise_centrifugo)(run, secret))
    return f"ready after {seconds:.1f} s, {EACH} messages to each of two devices, in order; refusals where due"


def chosen(names: tuple[str, ...]) -> list[Contender]:
    unknown = set(names) - {contender.name for contender in ALL}
    if unknown:
        raise click.UsageError(f"no contender is called {', '.join(sorted(unknown))}")
    return [contender for contender in ALL if not names or contender.name in names]


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
def main(names: tuple[str, ...]) -> None:
    from testing.kafka_admin import create_topic
    from testing.kafka_server import KafkaServer

    contenders, failures = chosen(names), 0
    with tempfile.TemporaryDirectory(prefix="cocoa-contenders-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        kafka = KafkaServer(folder / "kafka")
        kafka.start()
        stack.callback(kafka.kill)
        create_topic(kafka.bootstrap, TOPIC, PARTITIONS)
        for contender in contenders:
            try:
                verdict = f"ok: {check(contender, kafka.bootstrap, folder)}"
            except Unavailable as reason:
                verdict = f"skipped: {reason}"
                failures += bool(names)
            except (AssertionError, OSError, subprocess.TimeoutExpired, TimeoutError) as error:
                verdict = f"FAILED: {error or type(error).__name__}"
                failures += 1
            click.echo(f"{contender.name}: {verdict}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
