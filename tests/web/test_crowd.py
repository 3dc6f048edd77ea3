"""Unauthenticated clients that hold connections do not lock devices out: crowds of each kind on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cocoa_tornado.rules import crowd as rules
from cocoa_tornado.rules.crowd import PATIENCE_S
from cocoa_tornado.web.listening_sockets import bind
from testing.certificates import write_certificate
from testing.raw_device import PING, PONG, UPGRADE, RawDevice
from testing.waiting import eventually

from ..harness import Harness
from .conftest import StartGateway

HEALTH = b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
BOUND = 32
CROWD = pytest.mark.logs("cocoa.listener", "^too many connections that are not a device's: newcomers wait$")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the patience: the tests check which connections are closed, not when."""
    for phase, patience_s in list(PATIENCE_S.items()):
        monkeypatch.setitem(PATIENCE_S, phase, patience_s / 10)


def shed(gateway: Harness) -> dict[str, int]:
    return gateway.gateway.counters.http_connections_shed


@contextlib.asynccontextmanager
async def strangers(port: int, act: Callable[[RawDevice], Awaitable[None]]) -> AsyncIterator[None]:
    """More clients than the bound, each of which reconnects as soon as it is closed."""

    here: dict[int, RawDevice] = {}
    is_over = asyncio.Event()

    async def one(number: int) -> None:
        while not is_over.is_set():
            device = here[number] = await RawDevice.connect(port)
            with contextlib.suppress(OSError, EOFError):
                await act(device)
            await device.end()
            await asyncio.sleep(0.005)

    tasks = [asyncio.ensure_future(one(number)) for number in range(BOUND * 3 // 2)]
    try:
        yield
    finally:
        is_over.set()
        while not all(task.done() for task in tasks):
            for device in here.values():
                device.writer.transport.abort()
            await asyncio.sleep(0.01)


async def is_served(device: RawDevice) -> bool:
    """Whether its connection was upgraded and is still open."""
    device.send(PING, b"here?")
    return device.response.status == 101 and (await device.read_until(PONG)).payload == b"here?"


async def ask_again_and_again(device: RawDevice) -> None:
    while (await device.request("GET", "/api/v1/health")).headers.get("connection") != "close":
        await asyncio.sleep(0.01)


async def ask_once_and_stay(device: RawDevice) -> None:
    device.writer.write(HEALTH)
    await device.read_to_end()


async def say_nothing(device: RawDevice) -> None:
    await device.read_to_end()


async def send_half_a_request(device: RawDevice) -> None:
    device.writer.write(b"GET /api/v1/health HTTP/1.1\r\nHo")
    await device.read_to_end()


async def send_a_request_without_its_body(device: RawDevice) -> None:
    device.writer.write(b"POST /api/v1/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
    await device.read_to_end()


@CROWD
@pytest.mark.parametrize(
    "act",
    [ask_again_and_again, ask_once_and_stay, say_nothing, send_half_a_request, send_a_request_without_its_body],
    ids=lambda act: act.__name__,
)
@pytest.mark.gen_test
async def test_a_device_and_a_probe_get_in_while_strangers_hold_the_bound(
    start_gateway: StartGateway, act: Callable[[RawDevice], Awaitable[None]]
) -> None:
    gateway = await start_gateway(max_pending_connections=BOUND, header_timeout_s=600.0, body_timeout_s=600.0)
    async with strangers(gateway.port, act):
        if act is not ask_again_and_again:
            await eventually(lambda: gateway.gateway.http_connections >= BOUND)
        for number in range(3):
            assert await is_served(await gateway.raw(f"doll-{number}"))
            assert (await gateway.http("GET", "/api/v1/health")).status == 200


@CROWD
@pytest.mark.gen_test
async def test_one_device_that_sends_no_bodies_keeps_nobody_out(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(
        max_pending_connections=BOUND, http_publish="on", header_timeout_s=600.0, body_timeout_s=600.0
    )
    head = f"POST /api/v1/transcriptions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.token('greedy')}\r\n"

    async def send_a_record_without_its_body(device: RawDevice) -> None:
        device.writer.write(f"{head}Content-Length: 5\r\n\r\n".encode())
        await device.read_to_end()

    async with strangers(gateway.port, send_a_record_without_its_body):
        await eventually(lambda: gateway.gateway.http_connections >= BOUND)
        assert await is_served(await gateway.raw("doll"))
        assert (await gateway.http("GET", "/api/v1/health")).status == 200


@CROWD
@pytest.mark.gen_test
async def test_a_device_gets_in_while_unfinished_tls_handshakes_hold_the_bound(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    certificate = write_certificate(tmp_path)
    gateway = await start_gateway(
        max_pending_connections=BOUND, header_timeout_s=600.0, tls_cert=certificate.cert, tls_key=certificate.key
    )
    async with strangers(gateway.port, say_nothing):
        await eventually(lambda: gateway.gateway.http_connections == BOUND)
        context: ssl.SSLContext = certificate.client_context()
        device = RawDevice(*await asyncio.open_connection("127.0.0.1", gateway.port, ssl=context))
        await device.request("GET", f"/ws?token={gateway.token()}", UPGRADE)
        assert await is_served(device)
        await device.end()


@pytest.mark.gen_test
async def test_near_the_bound_an_answer_closes_its_connection_and_says_so(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_pending_connections=16)
    lasting = await gateway.dial()
    assert "connection" not in (await lasting.request("GET", "/api/v1/health")).headers
    for _ in range(12):
        await gateway.dial()
    await eventually(lambda: gateway.gateway.http_connections == 13)
    assert (await lasting.request("GET", "/api/v1/health")).headers["connection"] == "close"
    assert await lasting.read_to_end() == b""


@pytest.mark.gen_test
async def test_an_upgrade_goes_on_though_any_other_answer_would_close_its_connection(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_gateway(max_pending_connections=16)
    held = [await gateway.dial() for _ in range(13)]
    await eventually(lambda: gateway.gateway.http_connections == 13)
    assert await is_served(await gateway.raw("near-the-bound"))
    for each in held:
        await each.end()
    monkeypatch.setattr(rules, "MAX_REQUESTS", 2)
    old = await gateway.dial()
    await old.request("GET", "/api/v1/health")
    await old.request("GET", f"/ws?token={gateway.token('last-request')}", UPGRADE)
    assert old.response.headers["connection"] == "Upgrade"
    assert await is_served(old)
    await old.end()


@pytest.mark.gen_test
async def test_no_request_behind_the_last_answer_of_a_connection_has_an_effect(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_pending_connections=16, http_publish="on")
    for _ in range(13):
        await gateway.dial()
    await eventually(lambda: gateway.gateway.http_connections == 13)
    body = b'{"device_id":"doll","text":"x"}'
    head = f"POST /api/v1/transcriptions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.token('doll')}\r\n"
    device = await gateway.dial()
    device.writer.write((f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body) * 3)
    response = await device.read_response()
    assert (response.status, response.headers["connection"]) == (202, "close")
    assert await device.read_to_end() == b""
    assert len(gateway.broker.records("transcription.results")) == 1


@pytest.mark.gen_test
async def test_the_longest_idle_connection_gives_way_first_and_one_with_a_request_does_not(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(max_pending_connections=32)
    idle = [await gateway.dial() for _ in range(3)]
    for each in [*idle, idle[0]]:
        await each.request("GET", "/api/v1/health")
    for _ in range(28):
        await gateway.dial()
    assert await idle[1].read_to_end() == b""
    await eventually(lambda: gateway.gateway.http_connections == 30)
    assert (await idle[0].request("GET", "/api/v1/health")).status == 200
    assert shed(gateway) == {"idle": 1}


@pytest.mark.gen_test
async def test_after_many_requests_or_a_long_time_the_answer_closes_the_connection(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MAX_REQUESTS", 3)
    gateway = await start_gateway()
    busy = await gateway.dial()
    headers = [(await busy.request("GET", "/api/v1/health")).headers for _ in range(3)]
    assert [each.get("connection") for each in headers] == [None, None, "close"]
    assert await busy.read_to_end() == b""
    monkeypatch.setattr(rules, "MAX_AGE_S", 0.0)
    old = await gateway.dial()
    assert (await old.request("GET", "/api/v1/health")).headers["connection"] == "close"


@pytest.mark.logs("cocoa.listener", "^too many connections of one address$")
@pytest.mark.gen_test
async def test_one_address_cannot_hold_all_places_and_its_devices_do_not_count(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Here this machine counts like any other.
    monkeypatch.setattr("cocoa_tornado.service.options.LOOPBACK", ())
    gateway = await start_gateway(max_pending_connections=16, max_connections_per_address=12)
    for number in range(20):
        await gateway.raw(f"doll-{number}")
    await eventually(lambda: gateway.gateway.http_connections == 0)
    for _ in range(12):
        await gateway.dial()
    await eventually(lambda: gateway.gateway.http_connections == 12)
    assert await (await gateway.dial()).read_to_end() == b""
    assert shed(gateway) == {"address": 1}
    elsewhere = await asyncio.open_connection("127.0.0.1", gateway.port, local_addr=("127.0.0.2", 0))
    other = RawDevice(*elsewhere)
    assert (await other.request("GET", "/api/v1/health")).status == 200
    await other.end()


@pytest.mark.gen_test
async def test_while_there_is_room_a_fleet_behind_one_address_may_come_all_at_once(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocoa_tornado.service.options.LOOPBACK", ())
    gateway = await start_gateway(max_pending_connections=16, max_connections_per_address=2)
    fleet = [await gateway.dial() for _ in range(12)]
    await eventually(lambda: gateway.gateway.http_connections == 12)
    for number, device in enumerate(fleet):
        assert (await device.request("GET", f"/ws?token={gateway.token(f'doll-{number}')}", UPGRADE)).status == 101


@pytest.mark.gen_test
async def test_a_proxy_and_this_machine_itself_have_no_limit(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_pending_connections=16, max_connections_per_address=1)
    for _ in range(13):
        await gateway.dial()
    assert (await gateway.http("GET", "/api/v1/health")).status == 200


@pytest.mark.logs("cocoa.listener", "^out of file descriptors")
@pytest.mark.gen_test
async def test_out_of_descriptors_a_stranger_gives_one_up(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(socket.socket):
        is_full = False

        def accept(self) -> tuple[socket.socket, Any]:
            if self.is_full:
                raise OSError(errno.EMFILE, "told to fail")
            return super().accept()

    made: list[Full] = []

    def bind_full(host: str, port: int, **options: bool) -> list[socket.socket]:
        made.extend(Full(fileno=sock.detach()) for sock in bind(host, port, **options))
        made[0].setblocking(False)
        return list(made)

    monkeypatch.setattr("cocoa_tornado.service.listeners.bind", bind_full)
    gateway = await start_gateway()
    idle = await gateway.dial()
    assert (await idle.request("GET", "/api/v1/health")).status == 200
    made[0].is_full = True
    newcomer = await gateway.dial()
    assert await idle.read_to_end() == b""
    made[0].is_full = False
    assert (await newcomer.request("GET", "/api/v1/health")).status == 200
    assert shed(gateway) == {"idle": 1}
