"""``cocoa serve --workers 2`` as in production: on a real Kafka, with presence in a real Redis."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import AdminTokenRequest, TokenRequest, admin_claims, mint
from cocoa_tornado.rules.admin_tokens import SCOPES
from cocoa_tornado.rules.identity import TokenPolicy
from testing.kafka_admin import create_topic, writer
from testing.kafka_server import KafkaServer, TansuServer
from testing.redis_server import RedisServer

pytestmark = pytest.mark.kafka

PATIENCE_S = 60.0
SECRET = "a secret of thirty-two bytes, or more"
ADMIN_SECRET = "the operators' secret of thirty-two bytes"
WORKERS = {"here/1", "here/2"}
DEVICES = [f"doll-{number}" for number in range(8)]


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


class Served:
    def __init__(self, folder: Path, kafka: KafkaServer | TansuServer, presence: str) -> None:
        self.topic = f"workers-{uuid.uuid4().hex}"
        self._log = folder / "log"
        create_topic(kafka.bootstrap, self.topic, 4)
        options = ["--port", "0", "--workers", "2", "--broker", f"kafka://{kafka.bootstrap}", "--presence", presence]
        options += ["--kafka-results-topic", self.topic, "--kafka-group", self.topic, "--server-name", "here"]
        options += ["--canary-interval", "500ms"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).parent / "cocoa"), "serve", *options],
                env={"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
                | {"COCOA_SPEECH": "none://", "COCOA_JWT_SECRET": SECRET, "COCOA_ADMIN_JWT_SECRET": ADMIN_SECRET},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        found = re.search(r"listening on http://127\.0\.0\.1:(\d+) ", self.process.stdout.readline())
        assert found is not None, self.log
        self.port = int(found[1])
        eventually(self.is_ready)

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE_S) as response:
            text: str = response.read().decode()
            return text

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """One request to the admin API, which either worker may get."""
        with self.open_admin(method, path, body) as response:
            answer = json.load(response)
            assert answer.get("missing", []) == []
            return answer

    def open_admin(self, method: str, path: str, body: object = None) -> HTTPResponse:
        token = Signer.from_secret(ADMIN_SECRET).sign(admin_claims(AdminTokenRequest("ann", SCOPES), time.time()))
        data = None if body is None else json.dumps(body).encode()
        url, headers = f"http://127.0.0.1:{self.port}/api/v1/admin{path}", {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(url, data, headers, method=method)
        response: HTTPResponse = urllib.request.urlopen(request, timeout=PATIENCE_S)
        return response

    def holders(self) -> dict[str, str]:
        """The worker that holds each device."""
        rows = self.ask("GET", "/devices")["devices"]
        return {row["device_id"]: connection["server"] for row in rows for connection in row["connections"]}

    def is_ready(self) -> bool:
        try:
            return '"status":"ready"' in self.get("/api/v1/ready")
        except OSError:
            return False

    def metric(self, name: str) -> float:
        lines = (line.rpartition(" ") for line in self.get("/metrics").splitlines())
        return next(float(value) for key, _, value in lines if key == name)

    def device(self, device_id: str) -> ClientConnection:
        token = mint(TokenRequest(device_id, 99), Signer.from_secret(SECRET), TokenPolicy(), time.time())
        device: ClientConnection = connect(f"ws://127.0.0.1:{self.port}/ws?token={token}", proxy=None)
        return device

    def worker(self, number: int) -> int:
        """The latest process of this number."""
        return int(re.findall(rf"worker started .*worker=here/{number} pid=(\d+)", self.log)[-1])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, kafka: KafkaServer | TansuServer, redis_server: RedisServer
) -> Iterator[tuple[Served, Callable[..., None]]]:
    """Two workers for all tests, and what sends a record to each device. At the end they stop as they should."""
    one = Served(tmp_path_factory.mktemp("served"), kafka, redis_server.url)
    with writer(kafka.bootstrap) as producer:

        def publish(text: str, shift: int = 0) -> None:
            """A record for each device, in all partitions."""
            for number, device_id in enumerate(DEVICES, shift):
                value = json.dumps({"device_id": device_id, "text": text}).encode()
                producer.send(one.topic, value, partition=number % 4)
            producer.flush()

        yield one, publish
    try:
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(PATIENCE_S) == 0, one.log
        assert "Traceback" not in one.log
    finally:
        one.end()
        redis_server.command("FLUSHALL")


def next_event(stream: HTTPResponse) -> dict[str, Any]:
    """The data of the next server-sent event."""
    while not (line := stream.readline()).startswith(b"data: "):
        assert line, "the stream has ended"
    event: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
    return event


def test_the_admin_api_covers_both_workers_whichever_is_asked(served: tuple[Served, Callable[..., None]]) -> None:
    one, _ = served
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(one.open_admin("GET", "/events")) for _ in range(4)]
        devices: dict[str, ClientConnection] = {}
        while set(one.holders().values()) != WORKERS:
            device_id = f"bear-{len(devices)}"
            devices[device_id] = stack.enter_context(one.device(device_id))
        holders = one.holders()
        assert holders.keys() == devices.keys()
        sent = one.ask("POST", "/messages", {"to": {"all": True}, "text": "hello", "id": "to-all"})
        for device in devices.values():
            assert json.loads(device.recv(PATIENCE_S))["text"] == "hello"
        assert one.ask("GET", f"/messages/{sent['id']}")["counts"] == {"written": len(devices)}

        kicked = [next(name for name in devices if holders[name] == worker) for worker in sorted(WORKERS)]
        for device_id in kicked:
            assert one.ask("DELETE", f"/devices/{device_id}/connections")["closed"] == 1
            with pytest.raises(ConnectionClosedError):
                devices[device_id].recv(PATIENCE_S)
            assert devices[device_id].close_code == 4410
        for stream in streams:
            events = [next_event(stream) for _ in range(2 * len(devices) + 2)]
            for kind, seen in (("connected", devices), ("message", devices), ("closed", kicked)):
                found = {(event["device_id"], event["server"]) for event in events if event["event"] == kind}
                assert found == {(name, holders[name]) for name in seen}

        assert one.ask("PUT", f"/devices/{kicked[0]}/block")["blocked"] is True
        for _ in range(8):
            with pytest.raises(InvalidStatus, match="403"):
                one.device(kicked[0])
        assert one.ask("DELETE", f"/devices/{kicked[0]}/block")["blocked"] is False
        for _ in range(8):
            with one.device(kicked[0]):
                pass
            eventually(lambda: kicked[0] not in one.holders())
        assert kicked[0] in {row["device_id"] for row in one.ask("GET", "/top")["reconnects"]}
    eventually(lambda: one.metric("cocoa_connections") == 0)


def test_a_message_finds_its_device_whichever_worker_reads_it_and_a_killed_one_is_replaced(
    served: tuple[Served, Callable[..., None]],
) -> None:
    one, publish = served
    with contextlib.ExitStack() as stack:
        devices = [stack.enter_context(one.device(device_id)) for device_id in DEVICES]
        eventually(lambda: one.metric("cocoa_connections") == len(DEVICES))
        routed = one.metric("cocoa_messages_routed_total")
        publish("hello")
        for device in devices:
            assert json.loads(device.recv(PATIENCE_S))["text"] == "hello"
        assert one.metric("cocoa_messages_routed_total") == routed + len(DEVICES)

        shifts = itertools.count(1)

        def is_handed_over() -> bool:
            """Once each partition has had a record of each device, both workers have read some of the other's."""
            shift = next(shifts)
            publish(str(shift), shift)
            for device in devices:
                assert json.loads(device.recv(PATIENCE_S))["text"] == str(shift)
            return one.metric("cocoa_records_handed_over_total") > one.metric("cocoa_canary_sent_total")

        eventually(is_handed_over)
        assert one.metric("cocoa_records_taken_over_total") > 0

        killed = one.worker(2)
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: one.worker(2) != killed and one.is_ready())
        arrived = one.metric("cocoa_canary_seconds_count")
        eventually(lambda: one.metric("cocoa_canary_seconds_count") >= arrived + 2 * 4)
        # The messages may all have been the other worker's.
        eventually(lambda: '"canary":{"ok":true,"state":"ready"}' in one.get("/api/v1/ready"))
        assert (one.metric("cocoa_canary_leaked_total"), one.metric("cocoa_canary_lost_total")) == (0, 0)
        assert one.metric("cocoa_connections") == len([device for device in devices if device.close_code is None])
