"""Malformed requests, byte by byte: each is answered or closed, and the gateway continues."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from cocoa_tornado.logs import TornadoLines
from cocoa_tornado.logs_format import make_formatter
from testing.certificates import write_certificate
from testing.raw_device import TEXT, UPGRADE, RawDevice

from ..harness import Harness
from .conftest import StartGateway

HOST = b"Host: localhost\r\n"
HEALTH = b"GET /api/v1/health HTTP/1.1\r\n" + HOST + b"\r\n"
POST = b"POST /api/v1/auth/token HTTP/1.1\r\nX-API-Key: backend\r\nX-API-Secret: s3cret\r\n" + HOST
CREDENTIALS = (("backend", "s3cret"),)
BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 25\r\nConnection: close\r\n\r\n"
    b'{"message":"Bad Request"}'
)
SECRET = "eyJhbGciOiJIUzI1NiJ9.eyJkZXZpY2VfaWQiOiJkb2xsIn0.c2lnbmF0dXJl"


@pytest.fixture
def gateway(io_loop: IOLoop, start_gateway: StartGateway) -> Harness:
    """One whose token endpoint reads bodies."""
    harness: Harness = io_loop.run_sync(lambda: start_gateway(api_credentials=CREDENTIALS))
    return harness


@pytest.fixture
def log_text() -> Iterator[io.StringIO]:
    """What ``cocoa serve`` would write to its log."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(make_formatter("text"))
    handler.addFilter(TornadoLines())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


async def say(gateway: Harness, data: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    device = await gateway.dial()
    device.writer.write(data)
    return await device.read_to_end()


async def is_healthy(gateway: Harness) -> bool:
    return (await gateway.http("GET", "/api/v1/health")).status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"rubbish\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /api/v1/health HTTP/2.0\r\n" + HOST + b"\r\n",
        b"GET /api/v1/health HTTP/1.1\r\n" + HOST + b"no colon\r\n\r\n",
        b"GET /api/v1/health HTTP/1.1\r\n" + HOST + b": no name\r\n\r\n",
        b"GET /api/v1/health HTTP/1.1\r\n" + HOST + b"X-A: a\0b\r\n\r\n",
        b"GET /api/v1/health HTTP/1.1\r\n" + HOST + b"X A: b\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 0x10\r\n\r\n",
        POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: gzip\r\n\r\nabc",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 2000,
        POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;a=\nb\r\na\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;a=" + b"b" * 2000 + b"\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nno colon\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 4000 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
@pytest.mark.gen_test
async def test_what_is_no_http_is_a_400_and_the_end_of_the_connection(gateway: Harness, data: bytes) -> None:
    assert await say(gateway, data) == BAD_REQUEST
    assert await is_healthy(gateway)


@pytest.mark.parametrize(
    "data",
    [
        b"GET /api/v1/health HTTP/1.1\r\n\r\n",
        b"GET /api/v1/health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /api/v1/health?" + b"a&" * 2000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    ],
)
@pytest.mark.gen_test
async def test_a_bad_host_or_query_is_a_400_with_the_contracts_body(gateway: Harness, data: bytes) -> None:
    head, _, body = (await say(gateway, data)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Connection: close" in head
    assert body == b'{"message":"Bad Request"}'
    assert await is_healthy(gateway)


@pytest.mark.gen_test
async def test_a_client_that_drips_its_headers_is_cut_off_at_the_header_timeout(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(header_timeout_s=0.4)
    dripping = await gateway.dial()

    async def drip() -> None:
        for byte in b"GET /api/v1/health HTTP/1.1\r\nX-Slow: " + b"x" * 10_000:
            dripping.writer.write(bytes([byte]))
            await asyncio.sleep(0.02)

    task = asyncio.ensure_future(drip())
    assert await dripping.read_to_end() == b""
    task.cancel()
    assert await is_healthy(gateway)


@pytest.mark.gen_test
async def test_a_client_that_says_nothing_is_cut_off_at_the_header_timeout(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(header_timeout_s=0.2)
    assert await (await gateway.dial()).read_to_end() == b""


@pytest.mark.gen_test
async def test_headers_of_100_kb_are_a_431_and_the_end_of_the_connection(gateway: Harness) -> None:
    start = b"GET /api/v1/health HTTP/1.1\r\n" + HOST
    for data in (
        start + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n",
        start + b"X-Many: x\r\n" * 10_000 + b"\r\n",
        b"GET /" + b"x" * 100_000,
    ):
        head, _, body = (await say(gateway, data)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert b"Connection: close" in head
        assert body == b'{"message":"Request Header Fields Too Large"}'
    assert await is_healthy(gateway)


@pytest.mark.gen_test
async def test_after_a_chunked_request_headers_that_are_too_large_are_still_a_431(gateway: Harness) -> None:
    device = await gateway.dial()
    device.writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n")
    assert (await device.read_response()).status == 400
    device.writer.write(b"GET /" + b"x" * 100_000)
    assert (await device.read_response()).status == 431


@pytest.mark.gen_test
async def test_over_tls_too_what_is_no_http_is_answered(start_gateway: StartGateway, tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path)
    gateway = await start_gateway(tls_cert=certificate.cert, tls_key=certificate.key)
    for data, status in ((b"rubbish\r\n\r\n", 400), (b"GET /" + b"x" * 100_000, 431)):
        tls = certificate.client_context()
        device = RawDevice(*await asyncio.open_connection("127.0.0.1", gateway.port, ssl=tls))
        device.writer.write(data)
        response = await device.read_response()
        assert (response.status, list(json.loads(response.body))) == (status, ["message"])
        await device.end()


@pytest.mark.gen_test
async def test_a_target_in_absolute_form_means_its_path_and_its_host(gateway: Harness) -> None:
    device = await gateway.dial()
    assert (await device.request("GET", "http://localhost/api/v1/health")).status == 200
    assert (await device.request("GET", "http://localhost")).status == 404
    origin = {"Host": "elsewhere", "Origin": "http://gateway.example"}
    response = await device.request("GET", f"http://gateway.example/ws?token={gateway.token()}", UPGRADE | origin)
    assert response.status == 101


@pytest.mark.parametrize("headers", [b"", b"Host: a\r\nHost: b\r\n"])
@pytest.mark.gen_test
async def test_in_absolute_form_too_there_must_be_one_host_header(gateway: Harness, headers: bytes) -> None:
    assert await say(gateway, b"GET http://localhost/api/v1/health HTTP/1.1\r\n" + headers + b"\r\n") == BAD_REQUEST


@pytest.mark.gen_test
async def test_in_absolute_form_the_host_must_be_one(gateway: Harness) -> None:
    for host in (b"a@b", b"a b", b"a,b"):
        answer = await say(gateway, b"GET http://" + host + b"/api/v1/health HTTP/1.1\r\n" + HOST + b"\r\n")
        assert answer == BAD_REQUEST, host


@pytest.mark.gen_test
async def test_a_client_that_drips_its_body_is_cut_off_at_the_body_timeout(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(api_credentials=CREDENTIALS, body_timeout_s=0.2)
    assert await say(gateway, POST + b"Content-Length: 10\r\n\r\nabc") == b""


@pytest.mark.gen_test
async def test_http_1_0_is_answered_and_closed(gateway: Harness) -> None:
    answer = await say(gateway, b"GET /api/v1/health HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"status":"healthy"' in answer


@pytest.mark.gen_test
async def test_pipelined_requests_are_answered_in_order(gateway: Harness) -> None:
    device = await gateway.dial()
    device.writer.write(HEALTH + b"GET /nowhere HTTP/1.1\r\n" + HOST + b"\r\n" + HEALTH)
    assert [(await device.read_response()).status for _ in range(3)] == [200, 404, 200]


@pytest.mark.gen_test
async def test_an_upgrade_after_other_requests_on_the_connection_works(gateway: Harness) -> None:
    device = await gateway.dial()
    assert (await device.request("GET", "/api/v1/health")).status == 200
    assert (await device.request("GET", f"/ws?token={gateway.token()}", UPGRADE)).status == 101
    await gateway.publish("doll", "hello")
    assert (await device.read_until(TEXT)).payload.endswith(b'"text":"hello"}')


@pytest.mark.gen_test
async def test_a_client_that_leaves_in_the_middle_of_a_request_leaves_nothing_behind(
    gateway: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    for part in (b"", b"GE", HEALTH[:-2], POST + b"Content-Length: 10\r\n\r\nabc", HEALTH * 3):
        device: RawDevice = await gateway.dial()
        device.writer.write(part)
        await device.writer.drain()
        device.reset()
    assert await is_healthy(gateway)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.gen_test
async def test_no_part_of_a_bad_request_is_in_the_log(gateway: Harness, log_text: io.StringIO) -> None:
    for data in (
        f"GET /ws?token={SECRET} HTTP/1.1 rubbish\r\n\r\n",
        f"GET /ws?token={SECRET} HTTP/3.0\r\n\r\n",
        f"{SECRET}\r\n\r\n",
        f"GET /ws HTTP/1.1\r\nAuthorization: Bearer {SECRET}\0\r\n\r\n",
        "GET /ws HTTP/1.1\r\nAuthorization: Bearer opaque-and-secret\0\r\n\r\n",
        "POST /api/v1/auth/token HTTP/1.1\r\nX-API-Secret: opaque-and-secret\x01\r\n\r\n",
        f"GET /ws HTTP/1.1\r\n{SECRET}\r\n\r\n",
        f"GET /ws HTTP/1.1\r\nHost: {SECRET}/@\r\n\r\n",
        f"GET /ws?token={SECRET}&{'a&' * 2000} HTTP/1.1\r\nHost: x\r\n\r\n",
        f"POST /ws?token={SECRET} HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n",
        f"GET /{SECRET} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ):
        await say(gateway, data.encode())
    assert "Malformed HTTP message from 127.0.0.1: Invalid header value" in log_text.getvalue()
    assert not any(part in log_text.getvalue() for part in (*SECRET.split("."), "opaque"))


@pytest.mark.parametrize(
    "headers",
    [
        f"Transfer-Encoding: {'x ' * 30_000}",
        f"Content-Length: {'x ' * 30_000}",
        f"Host: x\r\nHost: {'x' * 60_000}",
        f"X-A: a\0{'x' * 60_000}",
        f"{'x y' * 20_000}: 1",
        f"Host: {'x@' * 30_000}",
    ],
)
@pytest.mark.gen_test
async def test_little_of_a_malformed_request_is_in_the_log(
    gateway: Harness, log_text: io.StringIO, headers: str
) -> None:
    await say(gateway, f"POST /nowhere HTTP/1.1\r\n{headers}\r\n\r\n".encode())
    lines = log_text.getvalue().splitlines()
    assert lines
    assert max(map(len, lines)) < 400


@pytest.mark.gen_test
async def test_bad_requests_cannot_flood_the_log(gateway: Harness, log_text: io.StringIO) -> None:
    for _ in range(40):
        await say(gateway, b"rubbish\r\n\r\n")
    assert log_text.getvalue().count("Malformed HTTP message") == 10
