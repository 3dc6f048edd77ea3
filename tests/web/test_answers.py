"""Answers that are given before a body is read: they arrive, and the body is neither kept nor parsed."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from pathlib import Path
from typing import Final

import pytest
from tornado.ioloop import IOLoop

from cocoa_tornado.web.handlers import MAX_BODIES_BYTES
from cocoa_tornado.web.publish_handler import PublishHandler
from cocoa_tornado.web.token_handler import TokenHandler
from testing.certificates import write_certificate
from testing.raw_device import UPGRADE, RawDevice, Response
from testing.waiting import eventually

from ..harness import Harness
from ..scripted_engine import ScriptedEngine
from .conftest import StartGateway

KIB, MIB = 1024, 1024 * 1024
TOKEN_PATH, AUDIO_PATH, PUBLISH_PATH = "/api/v1/auth/token", "/api/v1/audio/stream", "/api/v1/transcriptions"
GET_PATHS = ("/api/v1/health", "/api/v1/ready", "/metrics")
CREDENTIALS = (("backend", "s3cret"),)
GOOD = "X-API-Key: backend\r\nX-API-Secret: s3cret\r\n"
AUDIO = "Content-Type: audio/wav\r\n"
EXPECT = "Expect: 100-continue\r\n"
PIECE: Final = bytes(64 * KIB)


@pytest.fixture
def gateway(io_loop: IOLoop, start_gateway: StartGateway) -> Harness:
    """Every route works: speech is on, and the token endpoint has credentials."""

    async def start() -> Harness:
        return await start_gateway(engine=ScriptedEngine(), api_credentials=CREDENTIALS, audio_max_bytes=MIB)

    harness: Harness = io_loop.run_sync(start)
    return harness


def bearer(gateway: Harness, device_id: str = "doll") -> str:
    return f"Authorization: Bearer {gateway.token(device_id)}\r\n"


def head(request: str, fields: str = "", version: str = "1.1") -> bytes:
    return f"{request} HTTP/{version}\r\nHost: localhost\r\n{fields}\r\n".encode()


async def pour(device: RawDevice, data: bytes, size: int) -> Response:
    """Send a head and a body without a look at the answer, as a client may that does not wait (RFC 9110, 10.1.1).

    :raises ConnectionError: the gateway did not take it all: to many a client, the answer is lost then
    """
    device.writer.write(data)
    for _ in range(size // len(PIECE)):
        device.writer.write(PIECE)
        await device.writer.drain()
        # Another turn of the gateway's loop, which is this one.
        await asyncio.sleep(0)
    return await device.read_response()


def is_error(response: Response, status: int) -> bool:
    body = json.loads(response.body)
    assert response.body == json.dumps(body, separators=(",", ":")).encode()
    assert list(body) == ["message"]
    return response.status == status


@pytest.mark.parametrize("expect", ["", EXPECT], ids=["streams", "expects and does not wait"])
@pytest.mark.parametrize(
    ("request_line", "fields", "size", "status"),
    [
        (f"POST {AUDIO_PATH}", AUDIO, 4 * MIB, 401),
        (f"POST {AUDIO_PATH}", AUDIO + "{bearer}", 4 * MIB, 413),
        (f"POST {AUDIO_PATH}", "Content-Type: text/plain\r\n{bearer}", 512 * KIB, 400),
        (f"PUT {AUDIO_PATH}", AUDIO, 4 * MIB, 405),
        (f"POST {TOKEN_PATH}", "", 4 * MIB, 401),
        (f"POST {TOKEN_PATH}", GOOD, 4 * MIB, 413),
        (f"POST {PUBLISH_PATH}", "", 4 * MIB, 401),
        (f"POST {PUBLISH_PATH}", "{bearer}", 4 * MIB, 413),
        ("POST /nowhere", "", 4 * MIB, 404),
        ("DELETE /metrics", "", 4 * MIB, 405),
        ("BREW /api/v1/health", "", 4 * MIB, 405),
        ("GET /ws", "", 4 * MIB, 400),
        ("GET /api/v1/health?" + "a&" * 200, "", 4 * MIB, 400),
    ],
)
@pytest.mark.gen_test
async def test_a_client_that_goes_on_sending_gets_its_refusal(
    gateway: Harness, request_line: str, fields: str, size: int, status: int, expect: str
) -> None:
    fields = fields.format(bearer=bearer(gateway)) + f"Content-Length: {size}\r\n" + expect
    device = await gateway.dial()
    response = await pour(device, head(request_line, fields), size)
    assert is_error(response, status)
    assert response.headers["connection"] == "close"
    assert await device.read_to_end() == b""


@pytest.mark.gen_test
async def test_a_client_that_goes_on_sending_what_is_no_http_gets_its_refusal(gateway: Harness) -> None:
    for data, status in (
        (b"rubbish\r\n\r\n", 400),
        (head("POST /nowhere", "Content-Length: 1\r\nContent-Length: 2\r\n"), 400),
        (b"GET /" + b"x" * 20_000, 431),
        (head("GET /", "a:\r\n" * 200), 431),
    ):
        assert is_error(await pour(await gateway.dial(), data, 4 * MIB), status)


@pytest.mark.gen_test
async def test_over_tls_too_a_client_that_goes_on_sending_gets_its_refusal(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    certificate = write_certificate(tmp_path)
    gateway = await start_gateway(tls_cert=certificate.cert, tls_key=certificate.key)

    def upload() -> bytes:
        context = certificate.client_context()
        plain = socket.create_connection(("127.0.0.1", gateway.port), timeout=30)
        with context.wrap_socket(plain, server_hostname="localhost") as sock:
            sock.sendall(head(f"POST {AUDIO_PATH}", f"{EXPECT}Content-Length: {2 * MIB}\r\n"))
            for _ in range(2 * MIB // len(PIECE)):
                sock.sendall(PIECE)
            return sock.recv(4096)

    answer = await asyncio.get_running_loop().run_in_executor(None, upload)
    assert answer.startswith(b"HTTP/1.1 501 ")


@pytest.mark.gen_test
async def test_a_route_without_a_use_for_a_body_answers_without_waiting_for_it(gateway: Harness) -> None:
    for path in GET_PATHS:
        for fields in ("Content-Length: 1000\r\n", "Transfer-Encoding: chunked\r\n"):
            device = await gateway.dial()
            device.writer.write(head(f"GET {path}", fields))
            response = await device.read_response()
            assert (response.status, response.headers["connection"]) == (200, "close")


@pytest.mark.gen_test
async def test_nothing_behind_the_last_answer_is_taken_for_a_request(
    gateway: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "cocoa.access")
    health = head("GET /api/v1/health")
    for data in (
        head("POST /nowhere", "Content-Length: 5\r\n") + health,
        head("POST /nowhere", "Transfer-Encoding: chunked\r\n") + b"zz\r\n" + health,
        head(f"POST {TOKEN_PATH}", "Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n" + health,
        head("GET /ws", "Content-Length: 5\r\n") + b"12345" + health,
        head("GET /api/v1/health", "Connection: close\r\n") + health,
        head("GET /api/v1/health", version="1.0") + health,
        head("GET /nowhere?" + "a&" * 100) + health,
    ):
        device = await gateway.dial()
        caplog.clear()
        device.writer.write(data)
        assert (await device.read_to_end()).count(b"HTTP/1.1 ") == 1, data
        assert (await gateway.http("GET", "/next")).status == 404
        assert len(caplog.records) == 2, data


@pytest.mark.gen_test
async def test_a_refused_request_without_a_body_does_not_end_the_connection(gateway: Harness) -> None:
    device = await gateway.dial()
    for method, path, status in (
        ("POST", TOKEN_PATH, 401),
        ("POST", AUDIO_PATH, 401),
        ("PUT", AUDIO_PATH, 405),
        ("POST", PUBLISH_PATH, 401),
        ("POST", "/nowhere", 404),
        ("GET", "/api/v1/health", 200),
    ):
        response = await device.request(method, path, {"Content-Length": "0"})
        assert response.status == status
        assert "connection" not in response.headers


@pytest.mark.gen_test
async def test_whoever_waits_is_told_to_continue_in_the_usual_words_and_only_where_the_body_is_read(
    gateway: Harness,
) -> None:
    for expect in (EXPECT, "expect: 100-Continue\r\n"):
        device = await gateway.dial()
        device.writer.write(head(f"POST {TOKEN_PATH}", f"{GOOD}{expect}Content-Length: 2\r\n"))
        assert await device.reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        device.writer.write(b"{}")
        assert (await device.read_response()).status == 200
    for path in (TOKEN_PATH, "/nowhere"):
        for length in (0, 2):
            device = await gateway.dial()
            device.writer.write(head(f"POST {path}", f"{EXPECT}Content-Length: {length}\r\n"))
            assert (await device.read_response()).status in (401, 404)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.gen_test
async def test_http_1_0_with_chunks_is_answered_and_closed(gateway: Harness, version: str) -> None:
    """RFC 9112, 6.1: one of those on the way does not know what the field means."""
    device = await gateway.dial()
    fields = f"{GOOD}Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n"
    request = head(f"POST {TOKEN_PATH}", fields, version) + b"2\r\n{}\r\n0\r\n\r\n"
    device.writer.write(request + request)
    response = await device.read_response()
    assert response.status == 200
    if version == "1.0":
        assert response.headers["connection"] == "close"
        assert await device.read_to_end() == b""
    else:
        assert (await device.read_response()).status == 200


@pytest.mark.gen_test
async def test_names_are_spelled_as_the_rfcs_have_them(gateway: Harness) -> None:
    """Embedded clients compare bytes."""
    upgrade = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
    pair = f"Sec-WebSocket-Protocol: bearer, {gateway.token('doll')}\r\n"
    device = await gateway.dial()
    device.writer.write(head("GET /ws", upgrade + pair))
    answer = await device.reader.readuntil(b"\r\n\r\n")
    assert b"\r\nSec-WebSocket-Accept: " in answer
    assert b"\r\nSec-WebSocket-Protocol: bearer\r\n" in answer
    for request, name in (
        (head("GET /ws", upgrade), b"\r\nWWW-Authenticate: Bearer\r\n"),
        (head(f"POST {AUDIO_PATH}", "Content-Length: 9\r\n"), b"\r\nWWW-Authenticate: Bearer\r\n"),
        (head("GET /ws", upgrade.replace("13", "12")), b"\r\nSec-WebSocket-Version: 13\r\n"),
    ):
        device = await gateway.dial()
        device.writer.write(request)
        assert name in await device.reader.readuntil(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"HEAD / HTTP/1.1\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (head("HEAD /?" + "a&" * 2000), 400),
        (head("HEAD /", "no colon\r\n"), 400),
        (head("HEAD /", "Content-Length: x\r\n"), 400),
        (head("HEAD /", "Transfer-Encoding: chunked\r\n") + b"zz\r\n", 404),
        (head("HEAD /", "a:\r\n" * 200), 431),
        (head("HEAD /" + "x" * 20_000), 431),
        (head("HEAD /nowhere", "Connection: close\r\n"), 404),
        (head(f"HEAD {TOKEN_PATH}", "Connection: close\r\n"), 405),
        (head(f"HEAD {AUDIO_PATH}", "Content-Length: 99999999\r\n"), 405),
    ],
)
@pytest.mark.gen_test
async def test_a_refused_head_is_answered_without_a_body_and_makes_one_line_of_the_log(
    gateway: Harness, data: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    device = await gateway.dial()
    device.writer.write(data)
    answer = await device.read_to_end()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.endswith(b"\r\n\r\n")
    assert b"\r\nContent-Length: " in answer
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "Traceback" not in caplog.text


@pytest.mark.gen_test
async def test_a_head_is_a_get_without_the_body_on_every_route_that_monitoring_reads(gateway: Harness) -> None:
    for path in GET_PATHS:
        device = await gateway.dial()
        device.writer.write(head(f"HEAD {path}", "Connection: close\r\n"))
        answer = await device.read_to_end()
        assert answer.startswith(b"HTTP/1.1 200 "), path
        assert answer.endswith(b"\r\n\r\n"), path


@pytest.mark.gen_test
async def test_what_monitoring_reads_is_never_kept_and_never_304(gateway: Harness) -> None:
    for path in GET_PATHS:
        for fields in ({}, {"If-None-Match": "*"}):
            response = await gateway.http("GET", path, fields)
            assert (response.status, response.headers["cache-control"]) == (200, "no-store")
            assert "etag" not in response.headers


@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
@pytest.mark.gen_test
async def test_a_form_is_nothing_but_bytes(gateway: Harness, content_type: str) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="device_id"\r\n\r\ndoll\r\n--x--\r\n'
    for method, path, fields, status in (
        ("POST", TOKEN_PATH, {"X-API-Key": "backend", "X-API-Secret": "s3cret"}, 400),
        ("POST", "/nowhere", {}, 404),
        ("GET", "/api/v1/health", {}, 200),
    ):
        response = await gateway.http(method, path, fields | {"Content-Type": content_type}, form)
        assert response.status == status
    assert (await gateway.http("GET", "/api/v1/health", {"Content-Type": content_type})).status == 200


@pytest.mark.gen_test
async def test_a_body_of_just_the_limit_passes_and_one_byte_more_is_413(gateway: Harness) -> None:
    record = b'{"device_id":"doll","text":"'
    device = await gateway.dial()
    for fields, path, start, limit, status in (
        (bearer(gateway), PUBLISH_PATH, record, PublishHandler.max_body_bytes, 202),
        (GOOD, TOKEN_PATH, b'{"ignored":"', TokenHandler.max_body_bytes, 200),
    ):
        body = start + b"x" * (limit - len(start) - 2) + b'"}'
        for framing, sent in (
            (f"Content-Length: {limit}\r\n", body),
            ("Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (limit, body)),
        ):
            device.writer.write(head(f"POST {path}", fields + framing) + sent)
            assert (await device.read_response()).status == status
        for framing, sent in (
            (f"Content-Length: {limit + 1}\r\n", b""),
            ("Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n" % (limit + 1, body + b" ")),
        ):
            refused = await gateway.dial()
            refused.writer.write(head(f"POST {path}", fields + framing) + sent)
            assert is_error(await refused.read_response(), 413)
    metrics = await gateway.metrics()
    assert metrics['cocoa_bodies_refused_total{reason="too_large"}'] == 4


@pytest.mark.gen_test
async def test_bodies_have_a_bound_together_beyond_which_they_are_503(gateway: Harness) -> None:
    web = gateway.gateway.wiring.web
    web.bodies.limit = 2 * PublishHandler.max_body_bytes
    chunked = head(f"POST {PUBLISH_PATH}", bearer(gateway) + "Transfer-Encoding: chunked\r\n")
    holding = [await gateway.dial() for _ in range(2)]
    for device in holding:
        device.writer.write(chunked)
    await eventually(lambda: web.bodies.taken == web.bodies.limit)
    late = await gateway.dial()
    late.writer.write(chunked)
    response = await late.read_response()
    assert is_error(response, 503)
    assert response.headers["retry-after"] == "5"
    assert (await gateway.metrics())['cocoa_bodies_refused_total{reason="full"}'] == 1
    holding[0].reset()
    holding[1].writer.write(b"2\r\n{}\r\n0\r\n\r\n")
    assert (await holding[1].read_response()).status == 400
    await eventually(lambda: web.bodies.taken == 0)
    assert MAX_BODIES_BYTES == 16 * MIB


@pytest.mark.gen_test
async def test_a_stranger_reserves_nothing(gateway: Harness) -> None:
    web = gateway.gateway.wiring.web
    for path in (TOKEN_PATH, PUBLISH_PATH, AUDIO_PATH, "/nowhere", "/api/v1/health"):
        device = await gateway.dial()
        device.writer.write(head(f"POST {path}", f"Content-Length: {8 * MIB}\r\n") + PIECE)
        await device.read_response()
        assert web.bodies.taken == 0


@pytest.mark.parametrize(
    ("version", "connection", "goes_on"),
    [
        ("1.1", "Keep-Alive", True),
        ("1.1", "close, TE", False),
        ("1.1", "Keep-Alive , Close", False),
        ("1.0", "keep-alive", False),
        ("1.0", "close", False),
    ],
)
@pytest.mark.gen_test
async def test_the_connection_of_an_answer_goes_on_only_where_both_sides_can_tell(
    gateway: Harness, version: str, connection: str, goes_on: bool
) -> None:
    """HTTP/1.0 leaves open whether a POST without a length has a body."""
    device = await gateway.dial()
    device.writer.write(head(f"POST {TOKEN_PATH}", f"{GOOD}Connection: {connection}\r\n", version))
    response = await device.read_response()
    assert (response.status, response.headers.get("connection")) == (200, None if goes_on else "close")
    if not goes_on:
        assert await device.read_to_end() == b""
    await device.end()
