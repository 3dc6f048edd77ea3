"""The streams of accepted connections: clients that close their side behind a request, and plain HTTP where TLS is."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from cocoa_tornado.web.streams import HttpStream
from testing.certificates import write_certificate
from testing.raw_device import UPGRADE, RawDevice, Response
from testing.waiting import eventually

from ..harness import Harness
from .conftest import StartGateway
from .uploads import Bench, Upload

GET_WS = (
    "GET /ws%s HTTP/1.1\r\nHost: x\r\n" + "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items()) + "\r\n"
)
PUBLISH = "POST /api/v1/transcriptions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 33\r\n\r\n"
BODY = b'{"device_id":"doll","text":"hey"}'


async def ask_and_close_our_side(gateway: Harness, request: bytes) -> Response:
    """``nc -N``: the request, the end, and then the whole answer to its end."""
    device = await gateway.dial()
    device.writer.write(request)
    device.writer.write_eof()
    response = await device.read_response()
    assert await device.read_to_end() == b"", "it was not closed behind the answer"
    return response


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /api/v1/health", 200),
        ("GET /api/v1/ready", 200),
        ("GET /metrics", 200),
        ("GET /nowhere", 404),
        ("POST /api/v1/auth/token", 404),
        ("POST /api/v1/audio/stream", 501),
        ("GET /ws", 401),
    ],
)
@pytest.mark.gen_test
async def test_a_client_that_closes_its_side_behind_its_request_gets_the_answer(
    gateway: Harness, request_line: str, status: int
) -> None:
    request = f"{request_line} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    responses = [await ask_and_close_our_side(gateway, request) for _ in range(10)]
    assert [response.status for response in responses] == [status] * 10
    await eventually(lambda: gateway.gateway.http_connections == 0)


@pytest.mark.gen_test
async def test_so_does_one_that_sends_a_body_and_one_that_sends_several_requests(gateway: Harness) -> None:
    request = (PUBLISH % gateway.token()).encode() + BODY
    assert (await ask_and_close_our_side(gateway, request)).status == 202
    device = await gateway.dial()
    device.writer.write(b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
    device.writer.write_eof()
    assert [(await device.read_response()).status for _ in range(5)] == [200] * 5
    assert await device.read_to_end() == b""


@pytest.mark.gen_test
async def test_what_is_cut_short_gets_no_answer_and_leaves_nothing_behind(gateway: Harness) -> None:
    for request in (b"", b"GET /api/v1/he", (PUBLISH % gateway.token()).encode() + BODY[:-1]):
        device = await gateway.dial()
        device.writer.write(request)
        device.writer.write_eof()
        assert await device.read_to_end() == b""
    await eventually(lambda: gateway.gateway.http_connections == 0)


@pytest.mark.gen_test
async def test_while_its_answer_is_being_made_the_loop_does_not_spin(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.engine.answers.clear()
    upload = Upload(await bench.harness.dial())
    upload.head(bench.fields(Content_Length="5"))
    upload.write(b"hello")
    await eventually(lambda: bool(bench.engine.streams) and bench.engine.stream.fed == b"hello")
    reads = 0
    read_from_fd = HttpStream.read_from_fd

    def count(stream: HttpStream, buffer: bytearray | memoryview) -> int | None:
        nonlocal reads
        reads += 1
        return read_from_fd(stream, buffer)

    monkeypatch.setattr(HttpStream, "read_from_fd", count)
    upload.device.writer.write_eof()
    await eventually(lambda: reads > 0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert reads <= 3
    bench.engine.answers.set()
    response = await upload.answer()
    assert (response.status, b'"text":"hello"' in response.body) == (200, True)
    assert await upload.is_closed()


@pytest.mark.gen_test
async def test_an_upgrade_is_refused_to_a_client_that_has_closed_its_side_and_challenges_nobody(
    gateway: Harness,
) -> None:
    await gateway.raw("doll")
    for _ in range(20):
        answer = await ask_and_close_our_side(gateway, (GET_WS % f"?token={gateway.token()}").encode())
        assert (answer.status, answer.body) == (400, b'{"message":"Connection is closed on the client\'s side"}')
    assert gateway.gateway.presence.counters.challenges == 0
    assert (await ask_and_close_our_side(gateway, (GET_WS % "").encode())).status == 401


@pytest.mark.gen_test
async def test_a_handshake_on_a_connection_that_was_reset_has_vanished(gateway: Harness) -> None:
    """Other requests in front of it and behind it are in Tornado's buffer by then."""
    await gateway.raw("doll")
    requests = b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n" + (GET_WS % f"?token={gateway.token()}").encode()
    tries = 100
    for _ in range(tries):
        device = await gateway.dial()
        device.writer.write(requests + b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000)
        await asyncio.sleep(0)
        device.reset()
    await eventually(lambda: gateway.gateway.http_connections == 0)
    assert gateway.gateway.presence.counters.challenges == 0
    assert gateway.gateway.counters.handshakes["accepted"] == 1


@pytest.mark.gen_test
async def test_a_client_that_closes_while_it_waits_for_a_challenge_has_vanished(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(duplicate_challenge_s=600.0)
    await gateway.raw("doll")
    newcomer = await gateway.dial()
    newcomer.writer.write((GET_WS % f"?token={gateway.token()}").encode())
    await eventually(lambda: gateway.gateway.presence.counters.challenges == 1)
    newcomer.close()
    await eventually(lambda: gateway.gateway.counters.handshakes.get("vanished") == 1)


@pytest.mark.gen_test
async def test_a_connection_that_was_refused_an_upgrade_may_close_its_side_behind_the_next_request(
    gateway: Harness,
) -> None:
    device = await gateway.upgrade(None)
    assert device.response.status == 401
    device.writer.write(b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
    device.writer.write_eof()
    assert (await device.read_response()).status == 200


# -- TLS


@pytest.mark.logs("tornado.general", "SSL Error")
@pytest.mark.gen_test
async def test_plain_http_to_the_tls_port_is_told_so(start_gateway: StartGateway, tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path)
    gateway = await start_gateway(tls_cert=certificate.cert, tls_key=certificate.key)
    for method in ("GET", "POST", "HEAD", "PUT"):
        answer = await gateway.http(method, "/api/v1/health", UPGRADE)
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert answer.body == b'{"message":"This port speaks TLS: use https or wss"}'
    await eventually(lambda: gateway.gateway.http_connections == 0)


@pytest.mark.gen_test
async def test_a_tls_client_that_closes_its_side_behind_its_request_gets_the_answer(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    certificate = write_certificate(tmp_path)
    gateway = await start_gateway(tls_cert=certificate.cert, tls_key=certificate.key)

    for _ in range(10):
        device = await gateway.dial()
        heard = await ask_over_tls_and_say_that_nothing_more_comes(device, certificate.client_context())
        assert heard == b"HTTP/1.1 200"


async def ask_over_tls_and_say_that_nothing_more_comes(device: RawDevice, context: ssl.SSLContext) -> bytes:
    """A request, then TLS's close_notify; returns the first bytes of the answer. asyncio can't do that."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    heard: list[bytes] = []

    async def step(act: Callable[[], object]) -> None:
        while True:
            try:
                act()
                return
            except ssl.SSLWantReadError:
                pass
            finally:
                device.writer.write(outgoing.read())
            incoming.write(await device.reader.read(65536))

    await step(tls.do_handshake)
    tls.write(b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.unwrap()
    await step(lambda: heard.append(tls.read(12)))
    return heard[0]
