"""The previous release and this one beside each other on one Kafka and one Redis, as during an update and its rollback.

Canaries are on in this release, from its first start.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import AdminTokenRequest, TokenRequest, admin_claims, mint
from cocoa_tornado.rules.admin_tokens import SCOPES
from cocoa_tornado.rules.identity import TokenPolicy
from testing import previous_release
from testing.kafka_admin import create_topic, read_all, writer
from testing.kafka_server import KafkaServer, TansuServer
from testing.ports import ReservedPort
from testing.redis_server import RedisServer

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.slow]

PATIENCE_S = 60.0
SECRET = "a secret of thirty-two bytes, or more"
ADMIN_SECRET = "the operators' secret of thirty-two bytes"
PARTITIONS = 4
OLD, NEW = "old", "new"


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the previous release."""
    folder = tmp_path_factory.mktemp("previous")
    try:
        previous_release.check_out(previous_release.find_commit(), folder)
    except previous_release.NoHistory as reason:
        pytest.skip(f"the previous release is not here: {reason}")
    return folder


class Server:
    """A server that keeps its name, port and home through restarts, of either release.

    :param program: what runs this release instead of ``cocoa``
    """

    def __init__(
        self, folder: Path, previous: Path, name: str, options: Sequence[str], program: Sequence[str] = ()
    ) -> None:
        folder.mkdir()
        self.name, self._folder, self._previous, self._options = name, folder, previous, list(options)
        self._program = list(program) or [str(Path(sys.executable).parent / "cocoa")]
        self._reserved = ReservedPort()
        self.port = self._reserved.number
        self._process: subprocess.Popen[bytes] | None = None

    def use(self, presence: str, mailbox: str) -> None:
        """Instead of Redis."""
        self._options += ["--presence", presence, "--mailbox", mailbox]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(encoding="utf-8")

    def start(self, release: str) -> None:
        command, canaries = self._program, ["--canary-interval", "200ms"]
        environ = {"PATH": os.environ["PATH"], "HOME": str(self._folder), "XDG_DATA_HOME": str(self._folder)}
        environ |= {"COCOA_SPEECH": "none://", "COCOA_JWT_SECRET": SECRET, "COCOA_ADMIN_JWT_SECRET": ADMIN_SECRET}
        if release == OLD:
            command, canaries = previous_release.command(), []
            environ["PYTHONPATH"] = str(self._previous)
        options = ["--port", str(self.port), "--server-name", self.name, "--drain-grace", "10s", *self._options]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "serve", *options, *canaries], env=environ, stdout=subprocess.DEVNULL, stderr=log
            )

    def await_ready(self) -> None:
        eventually(self._is_ready)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log[-3000:]
        try:
            return '"status":"ready"' in self.get("/api/v1/ready")
        except OSError:
            return False

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(PATIENCE_S) == 0, self.log[-3000:]

    def restart(self, release: str) -> None:
        self.stop()
        self.start(release)
        self.await_ready()

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._reserved.close()

    # -- HTTP

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE_S) as response:
            text: str = response.read().decode()
            return text

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """One request to the admin API: the status and the answer."""
        try:
            with self._open(method, path, body) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def first_event(self) -> Any:
        """The first of the live events from now on."""
        with self._open("GET", "/events", None) as stream:
            while not (line := stream.readline()).startswith(b"data: "):
                assert line, "the stream has ended"
            return json.loads(line.removeprefix(b"data: "))

    def _open(self, method: str, path: str, body: object) -> HTTPResponse:
        token = Signer.from_secret(ADMIN_SECRET).sign(admin_claims(AdminTokenRequest("ann", SCOPES), time.time()))
        data = None if body is None else json.dumps(body).encode()
        url, headers = f"http://127.0.0.1:{self.port}/api/v1/admin{path}", {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(url, data, headers, method=method)
        response: HTTPResponse = urllib.request.urlopen(request, timeout=PATIENCE_S)
        return response

    def metric(self, name: str) -> float:
        """The sum over all labels; 0 if there is none."""
        lines = (line.rpartition(" ") for line in self.get("/metrics").splitlines())
        return sum(float(value) for key, _, value in lines if key.partition("{")[0] == name)

    # -- devices

    def url(self, device_id: str, groups: Sequence[str] = ()) -> str:
        request = TokenRequest(device_id, 99, groups=tuple(groups))
        token = mint(request, Signer.from_secret(SECRET), TokenPolicy(), time.time())
        return f"ws://127.0.0.1:{self.port}/ws?token={token}"

    def status(self, device_id: str) -> int:
        """Of a handshake without groups; the connection ends at once if it succeeds."""
        try:
            with connect(self.url(device_id), proxy=None):
                return 101
        except InvalidStatus as refused:
            return refused.response.status_code


class Doll:
    """A device with cursors, which moves from server to server. All that it hears, it must hear once and in order.

    :ivar cursor: of the last message
    """

    def __init__(self, device_id: str, groups: Sequence[str] = ()) -> None:
        self.device_id, self.cursor, self._groups = device_id, "", groups
        self.heard: list[str] = []
        self._connected = contextlib.ExitStack()
        self._socket: ClientConnection

    def go_to(self, server: Server) -> None:
        """Leave, and connect there as soon as it takes the device: the server that it has left may not have said so."""
        self.leave()
        asked = f"after={self.cursor}" if self.cursor else "cursors=1"
        url, end = f"{server.url(self.device_id, self._groups)}&{asked}", time.monotonic() + PATIENCE_S
        while True:
            try:
                self._socket = self._connected.enter_context(connect(url, proxy=None))
            except InvalidStatus as refused:
                if refused.response.status_code not in (409, 503) or time.monotonic() > end:
                    raise
                time.sleep(0.1)
            else:
                return

    def leave(self) -> None:
        self._connected.close()

    def hear(self, *texts: str) -> None:
        """Receive messages, each partition's in order."""
        found: list[str] = []
        while len(found) < len(texts):
            message = json.loads(self._socket.recv(PATIENCE_S))
            if message["type"] == "reconnect":
                continue
            assert message["type"] == "transcription", message
            self.cursor = message["cursor"]
            found.append(message["text"])
        assert sorted(found) == sorted(texts), self.device_id
        for partition in range(PARTITIONS):
            suffix = f"/{partition}"
            assert [text for text in found if text.endswith(suffix)] == [
                text for text in texts if text.endswith(suffix)
            ]

    def hear_nothing(self) -> None:
        with pytest.raises(TimeoutError):
            self._socket.recv(0.2)

    def is_closed(self) -> bool:
        try:
            self._socket.recv(0.1)
        except ConnectionClosed:
            return True
        except TimeoutError:
            return False
        return False


class Fleet:
    """Two servers, ``a`` and ``b``, on one Kafka and one Redis, and a backend."""

    def __init__(self, folder: Path, previous: Path, kafka: KafkaServer | TansuServer, redis: RedisServer) -> None:
        name = f"neighbors-{uuid.uuid4().hex[:8]}"
        self.topic, self.quarantine, self.redis, self.kafka = name, f"{name}.bad", redis, kafka
        create_topic(kafka.bootstrap, name, PARTITIONS)
        options = ["--broker", f"kafka://{kafka.bootstrap}", "--presence", redis.url, "--mailbox", redis.url]
        options += ["--kafka-results-topic", name, "--kafka-group", name, "--kafka-quarantine-topic", self.quarantine]
        options += ["--kafka-messages-topic", f"{name}.said", "--kafka-partitions", "1", "--kafka-replication", "1"]
        self.a, self.b = (Server(folder / each, previous, each, options) for each in ("a", "b"))
        self._numbers = iter(range(10**9))

    def say(self, *dolls: Doll, **fields: Any) -> list[str]:
        """Produce two records to each partition for each device, or for ``to``, and return their texts in the order in
        which they were produced."""
        with writer(self.kafka.bootstrap) as producer:
            texts = [f"{next(self._numbers)}/{at % PARTITIONS}" for at in range(2 * PARTITIONS)]
            for text in texts:
                for each in [{"device_id": doll.device_id} for doll in dolls] or [fields]:
                    value = json.dumps({"text": text, "session_id": "s"} | each).encode()
                    producer.send(self.topic, value, partition=int(text.rpartition("/")[2]))
            producer.flush()
        return texts

    def produce(self, value: bytes) -> None:
        with writer(self.kafka.bootstrap) as producer:
            producer.send(self.topic, value)
            producer.flush()

    def end(self) -> None:
        self.a.end()
        self.b.end()
        self.redis.command("FLUSHALL")


@pytest.fixture
def fleet(
    tmp_path: Path, previous: Path, kafka: KafkaServer | TansuServer, redis_server: RedisServer
) -> Iterator[Fleet]:
    redis_server.command("FLUSHALL")
    fleet = Fleet(tmp_path, previous, kafka, redis_server)
    yield fleet
    fleet.end()


def await_each_other(*servers: Server) -> None:
    """Wait until each server's answers cover all."""
    for server in servers:
        eventually(lambda: server.ask("GET", "/devices?limit=1")[1].get("missing") == [])  # noqa: B023  # called at once


def newest(server: Server) -> str:
    """The target that requeues the newest quarantined record that has not been; '' if there is none."""
    _, answer = server.ask("GET", "/quarantine?limit=10")
    rows = [row for row in answer["records"] if not row["requeued"]]
    return f"/quarantine/{rows[0]['partition']}/{rows[0]['offset']}/requeue" if rows else ""


def knows_as_written(server: Server, id_: str) -> bool:
    """Whether the trace of a message for one device says that it was written, and covers all servers."""
    _, trace = server.ask("GET", f"/messages/{id_}")
    assert trace["missing"] == []
    return [device["outcome"] in ("written", "acknowledged") for device in trace["devices"]] == [True]


def arrive(server: Server) -> None:
    """The canaries of a server: ten more messages arrive, and none has leaked or got lost."""
    goal = server.metric("cocoa_canary_seconds_count") + 10
    eventually(lambda: server.metric("cocoa_canary_seconds_count") >= goal)
    assert '"canary":{"ok":true,"state":"ready"}' in server.get("/api/v1/ready")
    assert (server.metric("cocoa_canary_leaked_total"), server.metric("cocoa_canary_lost_total")) == (0, 0)


def test_servers_of_both_releases_share_devices_messages_and_operators(fleet: Fleet) -> None:
    old, new = fleet.a, fleet.b
    old.start(OLD)
    old.await_ready()
    new.start(NEW)
    new.await_ready()
    await_each_other(old, new)

    # Canaries: the old server reads some of their messages, forwards them, and neither stores nor quarantines any.
    consumed = old.metric("cocoa_records_consumed_total")
    arrive(new)
    eventually(lambda: old.metric("cocoa_records_consumed_total") > consumed)
    for server in (old, new):
        assert server.metric("cocoa_mailbox_stored_total") == 0
        assert server.metric("cocoa_records_quarantined_total") == 0
        assert "cocoa-canary-" not in server.log

    # Devices roam, and each message arrives once and in order, whichever server reads it.
    one, two, away = Doll("one", ["g"]), Doll("two", ["g"]), Doll("away", ["g"])
    homes = [(old, new), (new, old)]
    away.go_to(old)
    away.leave()
    for here, there in homes * 2:
        one.go_to(here)
        two.go_to(there)
        said = fleet.say(one, two, away)
        one.hear(*said)
        two.hear(*said)
        one.leave()
        two.leave()
        said = fleet.say(one, two)
        one.go_to(there)
        two.go_to(here)
        one.hear(*said)
        two.hear(*said)
        said = fleet.say(to={"group": "g"})
        one.hear(*said)
        two.hear(*said)
    one.hear_nothing()
    two.hear_nothing()
    assert [server.status(name) for server in (old, new) for name in ("one", "two")] == [409] * 4

    # Operators: what both releases have covers both servers, whichever is asked; what only the new one has names the
    # old one as missing.
    for asked in (old, new):
        _, listed = asked.ask("GET", "/devices")
        assert ([row["device_id"] for row in listed["devices"]], listed["missing"]) == (["one", "two"], [])
        _, members = asked.ask("GET", "/groups/g/devices")
        assert [row["device_id"] for row in members["devices"]] == ["away", "one", "two"]
        for doll in (one, two):
            _, row = asked.ask("GET", f"/devices/{doll.device_id}")
            assert ({each["server"] for each in row["connections"]} <= {"a", "b"}, row["missing"]) == (True, [])
            assert row["events"], "of whichever server has them"
            status, sent = asked.ask(
                "POST", "/messages", {"to": {"device": doll.device_id}, "text": f"by {asked.name}"}
            )
            assert status == 202
            doll.hear(f"by {asked.name}")
            is_written = functools.partial(knows_as_written, asked, sent["id"])
            eventually(is_written)
        _, explained = asked.ask("POST", "/explain", {"to": {"group": "g"}, "text": "?"})
        would = {row["device_id"]: row["would"] for row in explained["devices"]}
        assert would == {"one": "send", "two": "send", "away": "store"}
    assert old.ask("GET", "/top")[0] == 404
    for target in ("/top", "/overview"):
        status, answer = new.ask("GET", target)
        assert (status, answer["missing"]) == (200, ["a"]), target

    lost = new.first_event()
    assert (lost["event"], lost["server"], lost["lost"]) == ("lost", "a", None)

    # A block and a kick by either release hold on the other.
    for asked, doll in ((old, one), (new, two)):
        assert asked.ask("DELETE", f"/devices/{doll.device_id}/connections")[1] == {"closed": 1, "missing": []}
        eventually(doll.is_closed)
        doll.leave()
        assert asked.ask("PUT", f"/devices/{doll.device_id}/block")[0] == 200
        for server in (old, new):
            eventually(lambda: server.status(doll.device_id) == 403)  # noqa: B023  # called at once
        assert asked.ask("DELETE", f"/devices/{doll.device_id}/block")[0] == 200
        for server in (new, old):
            eventually(lambda: server.status(doll.device_id) != 403)  # noqa: B023  # called at once
            doll.go_to(server)
    arrive(new)
    assert read_all(fleet.kafka.bootstrap, fleet.quarantine, 1, 0.5) == []

    # What one release has put back, the other does not put back again.
    for first, second in ((old, new), (new, old)):
        fleet.produce(json.dumps({"device_id": "one", "text": "?", "ttl": "wrong"}).encode())
        eventually(lambda: bool(newest(first) and newest(first) == newest(second)))  # noqa: B023  # called at once
        target = newest(first)
        assert first.ask("POST", target, {"device_id": "one", "text": f"mended by {first.name}"})[0] == 202
        one.hear(f"mended by {first.name}")
        assert second.ask("POST", target, {"device_id": "one", "text": "again"})[0] == 409
        eventually(lambda: not newest(first))  # noqa: B023  # called at once
    one.hear_nothing()
    for server in (old, new):
        assert "Traceback" not in server.log
        assert server.metric("cocoa_relay_messages_skipped_total") == 0


def test_an_update_of_each_server_and_its_rollback_keep_boxes_cursors_blocks_and_members(fleet: Fleet) -> None:
    servers = fleet.a, fleet.b
    for server in servers:
        server.start(OLD)
    for server in servers:
        server.await_ready()
    await_each_other(*servers)
    stays, away, member = Doll("stays", ["g"]), Doll("away"), Doll("member", ["g"])
    for doll in (away, member):
        doll.go_to(fleet.a)
    away.hear(*fleet.say(away))
    owed: dict[Doll, list[str]] = {away: [], member: []}
    for doll in owed:
        doll.leave()
    assert fleet.a.ask("PUT", "/devices/blocked/block")[0] == 200

    for release in (NEW, OLD):
        for server, other in (servers, servers[::-1]):
            stays.go_to(server)
            stays.hear(*fleet.say(stays))
            server.stop()
            said = fleet.say(stays)
            stays.go_to(other)
            server.start(release)
            said += fleet.say(stays)
            owed[away] += fleet.say(away)
            in_group = fleet.say(to={"group": "g"})
            owed[member] += in_group
            server.await_ready()
            await_each_other(*servers)
            stays.hear(*said, *in_group)
            assert [each.status("blocked") for each in servers] == [403, 403]
        for server in servers:
            if release == NEW:
                arrive(server)
            else:
                assert server.metric("cocoa_canary_sent_total") == 0
        stays.hear_nothing()
        for doll, texts in owed.items():
            doll.go_to(fleet.b)
            doll.hear(*texts)
            doll.leave()
            texts.clear()
    for server in servers:
        assert "Traceback" not in server.log


def test_a_sqlite_mailbox_and_its_blocks_go_to_this_release_and_back(
    tmp_path: Path, previous: Path, kafka: KafkaServer | TansuServer, redis_server: RedisServer
) -> None:
    fleet = Fleet(tmp_path, previous, kafka, redis_server)
    server = fleet.a
    try:
        server.use(presence="local://", mailbox=f"sqlite:///{tmp_path}/box.db")
        server.start(OLD)
        server.await_ready()
        away, member = Doll("away"), Doll("member", ["g"])
        for doll in (away, member):
            doll.go_to(server)
        away.hear(*fleet.say(away))
        assert server.ask("PUT", "/devices/blocked/block")[0] == 200
        for release in (NEW, OLD, NEW):
            for doll in (away, member):
                doll.leave()
            stored = server.metric("cocoa_mailbox_stored_total")
            said, in_group = fleet.say(away), fleet.say(to={"group": "g"})
            goal = stored + len(said) + len(in_group)
            eventually(lambda: server.metric("cocoa_mailbox_stored_total") >= goal)  # noqa: B023  # called at once
            server.restart(release)
            said += fleet.say(away)
            away.go_to(server)
            member.go_to(server)
            away.hear(*said)
            member.hear(*in_group)
            assert server.status("blocked") == 403
            if release == NEW:
                arrive(server)
    finally:
        fleet.end()
