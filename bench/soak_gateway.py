"""The soak's gateway process, and the two producers of records for it: over HTTP, and to Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

START_PATIENCE_S = 90.0
READY_PATIENCE_S = 60.0
STOP_PATIENCE_S = 30.0
PUBLISHERS = 8  # HTTP connections that publish; each device uses one of them, which keeps its records in order
TICK_S = 0.01
FLUSH_S = 10.0
LATEST = 200  # accepted records that are remembered per device
BURST_S = 1.0  # a delayed producer catches up by this much, and skips the rest


class GatewayFailed(Exception):
    """The gateway did not start, become ready, or answer."""


class GatewayProcess:
    """``cocoa serve`` on a free loopback port, with a separate home.

    :param folder: an empty folder for its home and log
    :param environ: additional environment variables
    :param program: the command to run with ``serve`` instead of ``cocoa``
    :param trust: a TLS context that trusts its certificate; None without TLS
    """

    def __init__(
        self,
        folder: Path,
        secret: str,
        options: Sequence[str],
        environ: Mapping[str, str] = MappingProxyType({}),
        program: Sequence[str] = (),
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self.trust = trust
        self._program = program or [str(Path(sys.executable).parent / "cocoa")]
        self._log_path, self._options = folder / "log", options
        self._environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
        self._environ |= {"COCOA_JWT_SECRET": secret, "COCOA_SPEECH": "none://", **environ}
        self._process: asyncio.subprocess.Process
        self.port = 0

    async def start(self) -> None:
        """Start it. Raises GatewayFailed, with its log, if it does not announce its address in time."""
        command = [*self._program, "serve", "--port", "0", *self._options]
        with self._log_path.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                env=self._environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), START_PATIENCE_S)
        except TimeoutError:
            line = b""
        found = re.search(rb"listening on https?://127\.0\.0\.1:(\d+)", line)
        if found is None:
            await self.kill()
            raise GatewayFailed(f"the gateway did not start:\n{self._log_path.read_text(errors='replace')[-2000:]}")
        self.port = int(found[1])

    @property
    def pid(self) -> int:
        return self._process.pid

    async def await_ready(self) -> None:
        end = time.monotonic() + READY_PATIENCE_S
        while True:
            problem = await self._why_not_ready()
            if not problem:
                return
            if time.monotonic() > end:
                raise GatewayFailed(f"not ready in {READY_PATIENCE_S:.0f} s: {problem}")
            await asyncio.sleep(0.1)

    async def _why_not_ready(self) -> str:
        try:
            status, body = await self.get("/api/v1/ready")
        except GatewayFailed as error:
            # On a machine that is busy with other things, an answer may take long.
            if self._process.returncode is not None:
                raise
            return str(error)
        return "" if status == 200 else body.decode()

    async def metrics(self) -> dict[str, float]:
        _, body = await self.get("/metrics")
        lines = (line.rpartition(" ") for line in body.decode().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    async def get(self, path: str) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(10.0), http_connection(self.port, self.trust) as call:
                return await call("GET", path)
        except (OSError, EOFError, TimeoutError) as error:
            raise GatewayFailed(f"no answer to GET {path}: {error!r}") from error

    async def stop(self, patience_s: float = STOP_PATIENCE_S) -> int | None:
        """Send SIGTERM. Returns the exit status; None if it had to be killed."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self._process.wait(), patience_s)
        except TimeoutError:
            await self.kill()
            return None

    async def kill(self) -> None:
        """Kill it in any state. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    def complaints(self) -> list[str]:
        """The error lines of its log, and the lines that are not log lines."""
        found = []
        for line in self._log_path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                level = json.loads(line)["level"]
            except (ValueError, KeyError, TypeError):
                level = "unformatted"
            if level not in ("debug", "info", "warning"):
                found.append(line)
        return found


class Call(Protocol):
    """Sends a request on a persistent connection."""

    async def __call__(
        self, method: str, path: str, token: str | None = None, body: bytes = b""
    ) -> tuple[int, bytes]: ...


@contextlib.asynccontextmanager
async def http_connection(port: int, trust: ssl.SSLContext | None = None) -> AsyncIterator[Call]:
    """Yields a :class:`Call`, over TLS if ``trust`` is given. Its errors are OSError and EOFError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
    is_ended = False

    async def call(method: str, path: str, token: str | None = None, body: bytes = b"") -> tuple[int, bytes]:
        nonlocal reader, writer, is_ended
        if is_ended:
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
        bearer = f"Authorization: Bearer {token}\r\n" if token else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{bearer}Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = re.search(r"(?i)^content-length: *(\d+)", answer, re.MULTILINE)
        is_ended = re.search(r"(?i)^connection: *close", answer, re.MULTILINE) is not None
        status = int(answer.split(maxsplit=2)[1])
        return status, await reader.readexactly(int(length[1])) if length else b""

    try:
        yield call
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


class Records:
    """Creates the records, numbered per device. One thread at a time per device."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        self._accepted: dict[str, deque[tuple[float, int]]] = {}

    def accepted(self, device_id: str) -> list[tuple[float, int]]:
        """The latest accepted records of a device: times (monotonic clock) and numbers. Thread-safe."""
        return list(self._accepted.get(device_id, ()))

    def note_accepted(self, device_id: str, number: int) -> None:
        self._accepted.setdefault(device_id, deque(maxlen=LATEST)).append((time.monotonic(), number))

    def make(self, device_id: str) -> tuple[int, bytes]:
        """Create a record; returns its number and its value."""
        number = self._next.get(device_id, 0)
        self._next[device_id] = number + 1
        record = {"session_id": "soak", "user_id": 99, "device_id": device_id, "text": "Hello", "seq": number}
        return number, json.dumps(record).encode()


class Producer(Protocol):
    """Sends records for random devices at a fixed rate, in order per device.

    :ivar records: the source of the records
    :ivar accepted: the number of records acknowledged by the gateway or the broker
    :ivar failed: the number of failed records
    """

    records: Records
    accepted: int
    failed: int

    async def run(self) -> None:
        """Send until cancelled; records in progress are completed."""


class HttpProducer:
    """Posts to ``/api/v1/transcriptions`` with each device's token."""

    def __init__(self, gateway: GatewayProcess, tokens: dict[str, str], rate: float, seed: int) -> None:
        self._gateway, self._tokens, self._rate, self._seed = gateway, tokens, rate, seed
        self.records = Records()
        self.accepted = self.failed = 0

    async def run(self) -> None:
        shares = [list(self._tokens)[index::PUBLISHERS] for index in range(PUBLISHERS)]
        async with asyncio.TaskGroup() as tasks:
            for index, share in enumerate(shares):
                if share:
                    rate = self._rate * len(share) / len(self._tokens)
                    tasks.create_task(self._publish(share, rate, random.Random(f"{self._seed}/http/{index}")))

    async def _publish(self, devices: list[str], rate: float, chance: random.Random) -> None:
        due = time.monotonic()
        async with http_connection(self._gateway.port, self._gateway.trust) as call:
            while True:
                due = max(due + chance.expovariate(rate), time.monotonic() - BURST_S)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                device_id = chance.choice(devices)
                await self._post(call, device_id)

    async def _post(self, call: Call, device_id: str) -> None:
        number, record = self.records.make(device_id)
        status = 503
        while status == 503:
            status, _ = await call("POST", "/api/v1/transcriptions", self._tokens[device_id], record)
            if status == 503:
                await asyncio.sleep(0.05)
        if status == 202:
            self.accepted += 1
            self.records.note_accepted(device_id, number)
        else:
            self.failed += 1


class KafkaTopicProducer:
    """A backend that writes to the results topic from its own thread."""

    def __init__(self, bootstrap: str, topic: str, devices: Sequence[str], rate: float, seed: int) -> None:
        self._bootstrap, self._topic, self._devices, self._rate = bootstrap, topic, devices, rate
        self._chance = random.Random(f"{seed}/kafka")
        self._stopping = threading.Event()
        self.records = Records()
        self.accepted = self.failed = 0

    async def run(self) -> None:
        thread = asyncio.ensure_future(asyncio.to_thread(self._produce))
        try:
            await asyncio.shield(thread)
        finally:
            self._stopping.set()
            await thread

    def _produce(self) -> None:
        # Lazy: slow to import, and not needed for the embedded broker.
        from kafka import KafkaProducer

        # Idempotent by default: a retry neither repeats nor reorders records.
        producer = KafkaProducer(bootstrap_servers=self._bootstrap.split(","), linger_ms=5, retry_backoff_ms=100)
        try:
            self._send_until_stopped(producer.send)
            producer.flush(timeout=FLUSH_S)
        finally:
            producer.close(timeout=FLUSH_S)

    def _send_until_stopped(self, send: Callable[..., Any]) -> None:
        devices, chance = self._devices, self._chance
        due = time.monotonic()
        while not self._stopping.wait(TICK_S):
            due = max(due, time.monotonic() - BURST_S)
            while due < time.monotonic():
                due += chance.expovariate(self._rate)
                device_id = chance.choice(devices)
                number, value = self.records.make(device_id)
                sent = send(self._topic, key=device_id.encode(), value=value)
                sent.add_callback(self._on_accepted, device_id, number)
                sent.add_errback(self._on_failed)

    def _on_accepted(self, device_id: str, number: int, metadata: object) -> None:
        self.accepted += 1
        self.records.note_accepted(device_id, number)

    def _on_failed(self, error: object) -> None:
        self.failed += 1
