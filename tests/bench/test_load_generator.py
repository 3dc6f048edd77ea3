"""The compiled devices, against servers that refuse one of them at first."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from bench.contenders import Unavailable
from bench.load_generator import Floor, Load, Unfinished, build, message_bytes
from testing.ports import ReservedPort

SECRET = "a secret of thirty-two bytes, or more"
DEVICES = 20

pytestmark = [
    pytest.mark.skipif(shutil.which("go") is None, reason="there is no go"),
    pytest.mark.nightly,  # with Go's caches empty, its Kafka client takes two minutes to build
]


class Server:
    """Refuses device-1 once; sends one message to each that comes in, and hears its pongs."""

    def __init__(self) -> None:
        self.refused = False
        self.pongs = 0
        self.port = 0
        self.started = threading.Event()
        self.ended = threading.Event()

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        device_id = self.device(request)
        if device_id == "device-1" and not self.refused:
            self.refused = True
            refusal = connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "")
            refusal.headers["Retry-After"] = "1"
            return refusal
        return None

    @staticmethod
    def device(request: Request) -> str:
        token = parse_qs(urlsplit(request.path).query)["token"][0]
        return str(jwt.decode(token, SECRET, algorithms=["HS256"], options={"require": ["exp"]})["device_id"])

    async def serve_device(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        device_id = self.device(connection.request)
        named = device_id if device_id != "device-2" else "device-3"
        await connection.send(f'{{"device_id":"{named}","seq":0,"sent_us":1}}')
        await (await connection.ping())
        self.pongs += 1
        await connection.wait_closed()

    async def run(self) -> None:
        async with serve(
            self.serve_device, "127.0.0.1", 0, process_request=self.answer, compression=None, ping_interval=None
        ) as server:
            self.port = server.sockets[0].getsockname()[1]
            self.started.set()
            while not self.ended.is_set():
                await asyncio.sleep(0.01)


class CentrifugoLike(Server):
    """Closes device-1 once, after the upgrade; welcomes each that comes in, pings it and sends it one message.

    device-2 gets one in another channel, and device-3 one before it is welcome.
    """

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        return None

    @staticmethod
    def device(request: Request) -> str:
        (text,) = parse_qs(urlsplit(request.path).query)["cf_connect"]
        token = json.loads(text)["token"]
        return str(jwt.decode(token, SECRET, algorithms=["HS256"], options={"require": ["exp"]})["device_id"])

    async def serve_device(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        device_id = self.device(connection.request)
        if device_id == "device-1" and not self.refused:
            self.refused = True
            await connection.close(3500, "invalid token")
            return
        channel = device_id if device_id != "device-2" else "device-3"
        message = (
            f'{{"channel":"#{channel}","pub":{{"data":{{"device_id":"{device_id}","text":"","seq":0,"sent_us":1}}}}}}'
        )
        if device_id == "device-3":
            await connection.send(message)
        for text in (f'{{"connect":{{"subs":{{"#{channel}":{{}}}}}}}}', "{}", message):
            await connection.send(text)
        await connection.wait_closed()


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=lambda: asyncio.run(server.run()))
    thread.start()
    assert server.started.wait(10)
    yield server
    server.ended.set()
    thread.join(10)


@pytest.fixture(scope="module")
def binary() -> Path:
    try:
        return build()
    except Unavailable as why:
        pytest.skip(str(why))


@pytest.fixture
def server() -> Iterator[Server]:
    with running(Server()) as server:
        yield server


@pytest.fixture
def load(server: Server, binary: Path) -> Iterator[Load]:
    with Load(binary, SECRET, server.port, "", "", 40) as load:
        yield load


def test_devices_come_in_are_refused_come_back_listen_and_answer_pings(load: Load, server: Server) -> None:
    found = load.connect_all(DEVICES, 8, 20)
    assert (found["in"], found["attempts"], found["refused"], found["errors"]) == (DEVICES, DEVICES + 1, {"503": 1}, {})
    assert found["seconds"] >= 1.0  # as Retry-After has it
    heard = load.heard(DEVICES, 5)
    assert (heard["received"], heard["strays"], heard["disorder"], heard["closed"]) == (DEVICES, 1, 0, {})
    assert heard["server_pings"] == DEVICES
    assert server.pongs <= DEVICES


def test_who_is_not_in_when_patience_is_over_is_counted(load: Load) -> None:
    with pytest.raises(Unfinished, match="19 of 20 devices are in after 0 s"):
        load.connect_all(DEVICES, 8, 0.4)


def test_devices_vanish_and_come_back(load: Load, server: Server) -> None:
    load.connect_all(DEVICES, 8, 20)
    assert load.heard(DEVICES, 5)["received"] == DEVICES
    assert load.vanish(5, DEVICES) == DEVICES - 5
    found = load.connect(5, DEVICES - 5, DEVICES, 20)
    assert (found["in"], found["attempts"], found["errors"]) == (DEVICES - 5, DEVICES - 5, {})
    heard = load.heard(2 * DEVICES - 5, 5)
    assert (heard["received"], heard["closed"]) == (2 * DEVICES - 5, {})


def test_devices_dial_at_a_fixed_rate(load: Load) -> None:
    """The first is refused once, so it is in a second after its time; nobody waits for it."""
    found = load.connect(0, DEVICES, 1_000, 20, rate=50.0)
    assert (found["in"], found["attempts"], found["errors"]) == (DEVICES, DEVICES + 1, {})
    assert found["seconds"] >= (DEVICES - 1) / 50.0
    assert found["time_us"]["max"] >= 1_000_000


def test_more_devices_than_vanish_or_dial_at_once(load: Load) -> None:
    many = 450
    load.connect_all(many, many, 30)
    assert load.vanish(10, many - 10) == many - 10
    assert load.vanish(0, many) == 10
    assert load.connect_all(many, many, 30)["in"] == many


def test_devices_of_centrifugo_are_in_when_they_are_welcome(binary: Path) -> None:
    with running(CentrifugoLike()) as server, Load(binary, SECRET, server.port, "", "", 40, "centrifugo") as load:
        found = load.connect_all(DEVICES, 8, 20)
        assert (found["in"], found["attempts"], found["errors"]) == (DEVICES, DEVICES + 1, {"3500": 1})
        heard = load.heard(DEVICES, 5)
        # Of the strays one was in another's channel, and one too early.
        assert (heard["received"], heard["strays"], heard["disorder"], heard["closed"]) == (DEVICES, 2, 0, {})
        assert heard["server_pings"] == DEVICES


def test_a_dialect_that_does_not_exist_is_an_error(binary: Path) -> None:
    with Load(binary, SECRET, 1, "", "", 40, "latin") as load, pytest.raises(Unfinished, match="process has ended"):
        load.heard()


def test_the_floor_starts_on_a_port_that_is_reserved(binary: Path) -> None:
    with (
        contextlib.closing(ReservedPort()) as reserved,
        Floor(binary, reserved.number) as floor,
        Load(binary, SECRET, reserved.number, "", "", 40) as load,
    ):
        load.connect_all(2, 2, 20)
        floor.flood(4, 1, 0, 130)
        assert load.heard(4, 5)["received"] == 4


def test_a_command_that_does_not_exist_is_an_error(load: Load) -> None:
    with pytest.raises(Unfinished, match="no command"):
        load.ask("dance")


def test_messages_are_as_long_as_their_text_and_some_more() -> None:
    assert message_bytes(100) - message_bytes(40) == 60
