"""Real proxies, each with its file of ``conf/proxies``, keep what the gateway promises to its devices."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import struct
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tornado.ioloop import IOLoop

from cocoa_tornado.brokers.port import BrokerState, BrokerStatus
from cocoa_tornado.probe import wire
from cocoa_tornado.speech.port import SpeechState, Transcript
from testing.proxies import CADDY, HAPROXY, NGINX, Proxy
from testing.raw_device import CLOSE, PATIENCE_S, PING, PONG, TEXT, UPGRADE, RawDevice, Response
from testing.waiting import eventually

from .harness import SECRET, Harness
from .scripted_engine import ScriptedEngine, ScriptedStream
from .shared_folder import SHARED_FOLDER

ROOT = Path(__file__).parent.parent
DEVICE_ADDRESS = "127.0.0.2"
"""Where devices come from, so that the gateway can tell them from the proxy."""

AUDIO = "/api/v1/audio/stream"
WORD = "hello"
MIB = 1024 * 1024


class _Stream(ScriptedStream):
    """Recognizes one word in any audio."""

    async def feed(self, data: bytes) -> None:
        self.fed += data
        if self.on_interim is not None:
            self.on_interim(WORD)

    async def finish(self) -> Transcript:
        await self.engine.answers.wait()
        self.finished = True
        return Transcript(WORD, len(self.fed) / 10, 0.25, len(self.fed) / 100)


class _Engine(ScriptedEngine):
    def make_stream(self, *arguments: Any) -> ScriptedStream:
        return _Stream(self, *arguments)


class Front:
    """A gateway, and a proxy in front of it."""

    def __init__(self, harness: Harness, engine: ScriptedEngine, proxy: Proxy) -> None:
        self.harness, self.engine, self.proxy = harness, engine, proxy
        self._opened: list[RawDevice] = []
        self._is_up = True

    async def dial(self) -> RawDevice:
        """A TLS connection to the proxy."""
        device = RawDevice(
            *await asyncio.open_connection(
                "127.0.0.1",
                self.proxy.secure_port,
                ssl=self.proxy.certificate.client_context(),
                server_hostname="localhost",
                local_addr=(DEVICE_ADDRESS, 0),
            )
        )
        self._opened.append(device)
        return device

    async def asks(self, path: str, headers: dict[str, str] | None = None) -> RawDevice:
        """A device that has asked to connect; its ``response`` says how that went."""
        device = await self.dial()
        await device.request("GET", path, self.host | UPGRADE | (headers or {}))
        return device

    async def device(self, device_id: str = "doll") -> RawDevice:
        """The same, with a token that is good."""
        return await self.asks(f"/ws?token={self.harness.token(device_id)}")

    async def leave(self, device: RawDevice) -> None:
        """Close a connection in due form."""
        assert device.response.status == 101
        device.send(CLOSE, struct.pack("!H", 1000))
        await device.read_until(CLOSE)
        await device.end()

    async def upload(self, token: str, **headers: str) -> RawDevice:
        """A POST of audio whose head alone is sent."""
        device = await self.dial()
        fields = self.host | {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"POST {AUDIO} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        device.writer.write("\r\n".join([*lines, "", ""]).encode())
        return device

    @property
    def host(self) -> dict[str, str]:
        return {"Host": f"localhost:{self.proxy.secure_port}"}

    def seen_addresses(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        """Where devices come from, by the gateway's log."""
        return [vars(record)["remote_ip"] for record in caplog.records if record.getMessage() == "device connected"]

    async def stop_gateway(self) -> None:
        if self._is_up:
            self._is_up = False
            await self.harness.stop()

    async def end(self) -> None:
        for device in self._opened:
            await device.end()
        await self.stop_gateway()


@pytest.fixture(params=[(NGINX, {}), (HAPROXY, {}), (CADDY, {})], ids=["nginx", "haproxy", "caddy"])
def front(request: pytest.FixtureRequest, io_loop: IOLoop) -> Iterator[Front]:
    program, edits = request.param
    if reason := program.why_not() or ("" if sys.platform == "linux" else f"only Linux has {DEVICE_ADDRESS}"):
        pytest.skip(reason)
    engine = _Engine()
    settings: dict[str, Any] = {"trusted_proxies": (ip_network("127.0.0.1"),), "jwt_leeway_s": 0.0}
    settings |= {"ping_interval_s": 0.2, "ping_timeout_s": 5.0, "drain_grace_s": 5.0}
    harness = io_loop.run_sync(lambda: Harness.start(engine=engine, **settings))
    folder = tempfile.mkdtemp(prefix="proxy-", dir=request.config.stash[SHARED_FOLDER])
    proxy = Proxy(program, Path(folder), harness.port, edits)
    front = Front(harness, engine, proxy)
    try:
        proxy.start()
        yield front
    finally:
        io_loop.run_sync(front.end)
        proxy.close()


# --- The whole contract --------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_every_check_of_the_probe_passes(front: Front, tmp_path: Path) -> None:
    recording = tmp_path / "buzz.wav"
    recording.write_bytes(buzz())
    checks = await probed(front, "--audio", str(recording), "--idle", "1")

    assert [check for check in checks if check["status"] == "failed"] == []
    assert [check["name"] for check in checks if check["status"] == "skipped"] == ["group", "server-ping"]


FORGOTTEN: dict[str, tuple[dict[str, str], str, str]] = {
    "Upgrade": ({"proxy_set_header Upgrade $http_upgrade;": ""}, "handshake", "does not reach the gateway"),
    "proxy_request_buffering": ({"proxy_request_buffering off;": ""}, "live-upload", "proxy_request_buffering off"),
    "Host": (
        {"proxy_set_header Host $http_host;": "", "proxy_set_header X-Forwarded-Host $http_host;": ""},
        "own-origin",
        "proxy_set_header Host",
    ),
}


@pytest.mark.parametrize(
    ("front", "failing", "words"),
    [((NGINX, edits), failing, words) for edits, failing, words in FORGOTTEN.values()],
    ids=FORGOTTEN.keys(),
    indirect=["front"],
)
@pytest.mark.gen_test
async def test_a_line_that_is_forgotten_is_one_failure_that_names_it(front: Front, failing: str, words: str) -> None:
    [failure] = [check for check in await probed(front) if check["status"] == "failed"]

    assert failure["name"] == failing
    assert words in failure["detail"]


# --- Who is there, and what the logs say ---------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_the_gateway_logs_the_address_of_the_device(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert (await front.device()).response.status == 101

    assert front.seen_addresses(caplog) == [DEVICE_ADDRESS]


@pytest.mark.gen_test
async def test_an_address_that_a_client_makes_up_is_not_believed(
    front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    device = await front.dial()
    token = front.harness.token()
    await device.request("GET", f"/ws?token={token}", front.host | UPGRADE | {"X-Forwarded-For": "203.0.113.9"})

    assert device.response.status == 101
    assert front.seen_addresses(caplog) == [DEVICE_ADDRESS]


@pytest.mark.gen_test
async def test_no_log_of_the_proxy_has_a_token(front: Front) -> None:
    """Of devices that come and go, are refused, take the wrong port, or find no gateway."""
    tokens = [front.harness.token(name) for name in ("in-query", "in-protocol", "in-header", "plain", "no-gateway")]
    query, protocol, header, plain, no_gateway = tokens
    await front.leave(await front.asks(f"/ws?token={query}"))
    await front.leave(await front.asks("/ws", {"Sec-WebSocket-Protocol": f"bearer, {protocol}"}))
    await front.leave(await front.asks("/ws", {"Authorization": f"Bearer {header}"}))
    refused = await front.asks(f"/ws?token={query}x&after=1")
    assert refused.response.status == 401
    redirected = await RawDevice.connect(front.proxy.plain_port)
    await redirected.request("GET", f"/ws?token={plain}", {"Connection": "close"} | front.host)
    await redirected.end()
    await front.stop_gateway()
    assert (await front.asks(f"/ws?token={no_gateway}")).response.status in (502, 503)

    await eventually(lambda: front.proxy.logged().count("/ws") >= 5)
    logged = front.proxy.logged()
    assert [token for token in tokens if token.rpartition(".")[2] in logged] == []


@pytest.mark.gen_test
async def test_plain_http_is_redirected_to_https(front: Front) -> None:
    device = await RawDevice.connect(front.proxy.plain_port)
    response = await device.request("GET", "/api/v1/health", {"Host": "localhost", "Connection": "close"})
    await device.end()

    assert response.status == 308
    location = urlsplit(response.headers["location"])
    assert (location.scheme, location.hostname, location.path) == ("https", "localhost", "/api/v1/health")


# --- Connections ---------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_pings_and_pongs_pass_while_a_device_is_silent(front: Front) -> None:
    device = await front.device()
    for _ in range(5):
        ping = await device.read_until(PING)
        device.send(PONG, ping.payload)
    await front.harness.publish("doll", "still there")

    assert b"still there" in (await device.read_until(TEXT)).payload


@pytest.mark.gen_test
async def test_a_drain_closes_devices_with_1001(front: Front) -> None:
    device = await front.device()
    stopping = asyncio.ensure_future(front.stop_gateway())
    frame = await device.read_until(CLOSE)
    device.send(CLOSE, frame.payload)
    await stopping

    assert frame.close_code == 1001
    assert await device.read_to_end() == b""


@pytest.mark.parametrize("front", [(HAPROXY, {"inter 2s": "inter 20ms"})], ids=["haproxy"], indirect=True)
@pytest.mark.gen_test
async def test_haproxy_sends_devices_to_a_gateway_that_is_not_ready_but_to_none_that_drains(
    front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    front.engine.state = SpeechState.LOADING

    def checks(status: int) -> int:
        seen = [vars(record) for record in caplog.records if record.getMessage() == "request"]
        return sum(fields["path"] == "/api/v1/ready" and fields["status"] == status for fields in seen)

    await eventually(lambda: checks(503) > 5)  # three that fail would do
    device = await front.device()
    assert device.response.status == 101

    front.harness.gateway.presence.drain()
    await eventually(lambda: "Server cocoa/gateway1 is DOWN" in front.proxy.logged())
    assert is_message((await front.device("another")).response)
    await front.harness.publish("doll", "still there")
    assert b"still there" in (await device.read_until(TEXT)).payload


@pytest.mark.parametrize("front", [(HAPROXY, {"inter 2s": "inter 20ms"})], ids=["haproxy"], indirect=True)
@pytest.mark.gen_test
async def test_haproxy_sends_no_device_to_a_gateway_in_standby(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    status = BrokerStatus(BrokerState.STANDBY, "another gateway reads")
    monkeypatch.setattr(front.harness.gateway.broker, "status", lambda: status)

    await eventually(lambda: "Server cocoa/gateway1 is DOWN" in front.proxy.logged())
    assert is_message((await front.device()).response)

    status = BrokerStatus(BrokerState.SHARED, "another reader takes part")
    await eventually(lambda: "Server cocoa/gateway1 is UP" in front.proxy.logged())
    assert (await front.device()).response.status == 101


@pytest.mark.gen_test
async def test_close_codes_of_the_gateway_reach_the_device(front: Front) -> None:
    device = await front.asks(f"/ws?token={front.harness.token(lifetime_s=1.5)}")

    assert (await device.read_until(CLOSE)).close_code == 4401


@pytest.mark.gen_test
async def test_a_device_that_vanishes_frees_its_place(front: Front) -> None:
    device = await front.device()
    assert front.harness.gateway.hub.is_device_connected("doll")
    device.reset()

    await eventually(lambda: not front.harness.gateway.hub.is_device_connected("doll"))


# --- Uploads -------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_live_audio_reaches_the_gateway_before_its_end(front: Front) -> None:
    upload = await front.upload(front.harness.token(), Transfer_Encoding="chunked")
    heard = b""
    for said in (b"one two ", b"three four "):
        upload.writer.write(b"%x\r\n%b\r\n" % (len(said), said))
        heard += said
        await eventually(lambda heard=heard: bool(front.engine.streams) and front.engine.stream.fed == heard)  # type: ignore[misc]  # mypy cannot infer a default's type
    upload.writer.write(b"0\r\n\r\n")
    response = await read_response(upload)

    assert response.status == 200
    assert json.loads(response.body)["text"] == WORD


@pytest.mark.gen_test
async def test_a_refusal_comes_before_the_end_of_an_upload(front: Front) -> None:
    upload = await front.upload("not-a-token", Transfer_Encoding="chunked")
    upload.writer.write(b"4\r\nabcd\r\n")

    response = await read_response(upload)
    assert (response.status, response.body) == (401, b'{"message":"Invalid JWT token"}')
    assert response.headers["www-authenticate"] == "Bearer"


# Not by Caddy 2.6: rarely, Go's server writes its own 100 into the middle of a refusal that comes at that moment.
@pytest.mark.parametrize("front", [(NGINX, {}), (HAPROXY, {})], ids=["nginx", "haproxy"], indirect=True)
@pytest.mark.gen_test
async def test_a_client_that_waits_for_100_continue_gets_its_refusal(front: Front) -> None:
    upload = await front.upload("not-a-token", Content_Length="100", Expect="100-continue")

    response = await read_response(upload)
    assert (response.status, response.body) == (401, b'{"message":"Invalid JWT token"}')


@pytest.mark.gen_test
async def test_too_large_an_upload_is_refused_in_json(front: Front) -> None:
    upload = await front.upload(front.harness.token(), Content_Length=str(64 * MIB))
    upload.writer.write(b"some of it")
    response = await read_response(upload)

    assert response.status == 413
    assert is_message(response)


# --- What a proxy answers itself -----------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_without_a_gateway_the_answer_is_json_and_says_when_to_come_back(front: Front) -> None:
    await front.stop_gateway()
    response = (await front.device()).response

    assert response.status in (502, 503)
    assert is_message(response)
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    "front",
    [
        (NGINX, {"proxy_read_timeout 5m": "proxy_read_timeout 1s"}),
        (HAPROXY, {"timeout server 5m": "timeout server 1s"}),
    ],
    ids=["nginx", "haproxy"],
    indirect=True,
)
@pytest.mark.gen_test
async def test_a_gateway_that_says_nothing_is_a_504_in_json(front: Front) -> None:
    front.engine.answers.clear()
    upload = await front.upload(front.harness.token(), Transfer_Encoding="chunked")
    upload.writer.write(b"4\r\nabcd\r\n0\r\n\r\n")
    response = await read_response(upload)
    front.engine.answers.set()

    assert response.status == 504
    assert is_message(response)
    assert response.headers["retry-after"] == "5"


REFUSED_BY_NGINX = {
    "413": (413, b"POST /api/v1/audio/stream HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n"),
    "headers too large": (400, b"GET /ws HTTP/1.1\r\nHost: a\r\nCookie: " + b"a" * 70_000 + b"\r\n\r\n"),
    "target too long": (414, b"GET /ws?token=" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
}


@pytest.mark.parametrize(
    ("front", "status", "request_bytes"),
    [((NGINX, {"client_max_body_size 0": "client_max_body_size 1k"}), *case) for case in REFUSED_BY_NGINX.values()],
    ids=REFUSED_BY_NGINX.keys(),
    indirect=["front"],
)
@pytest.mark.gen_test
async def test_what_nginx_refuses_by_itself_is_refused_in_json(front: Front, status: int, request_bytes: bytes) -> None:
    device = await front.dial()
    device.writer.write(request_bytes)
    response = await read_response(device)

    assert response.status == status
    assert is_message(response)


@pytest.mark.parametrize("front", [(NGINX, {})], ids=["nginx"], indirect=True)
@pytest.mark.gen_test
async def test_plain_http_on_nginx_tls_port_is_refused_in_json(front: Front) -> None:
    device = await RawDevice.connect(front.proxy.secure_port)
    response = await device.request("GET", "/ws", {"Connection": "close"})
    await device.end()

    assert response.status == 400
    assert is_message(response)


@pytest.mark.gen_test
async def test_what_is_no_request_is_refused(front: Front) -> None:
    """By nginx in JSON. What HAProxy and Go's server say to that cannot be configured."""
    device = await front.dial()
    device.writer.write(b"GET /ws HTTP/1.1\r\nno header at all\r\n\r\n")
    response = await read_response(device)

    assert response.status == 400
    assert is_message(response) == (front.proxy.program.name == "nginx")


# --- Helpers -------------------------------------------------------------------------------------------------------


async def probed(front: Front, *options: str) -> list[dict[str, str]]:
    """What ``cocoa probe-device`` says of the deployment, check by check."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from cli.probe_device import probe_device; probe_device()",
        f"wss://localhost:{front.proxy.secure_port}/ws",
        *("--ca", str(front.proxy.certificate.cert), "--format", "json", *options),
        env=os.environ | {"COCOA_JWT_SECRET": SECRET},
        cwd=ROOT,
        stdout=PIPE,
        stderr=PIPE,
    )
    output, errors = await process.communicate()
    assert errors == b""
    checks: list[dict[str, str]] = json.loads(output)["checks"]
    return checks


def buzz() -> bytes:
    """Half a second of something that is not silence, as a WAV file."""
    samples = bytes(0x80 + (0x60 if at // 20 % 2 else -0x60) for at in range(4000))
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8)
    data = b"WAVE" + form + struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI", b"RIFF", len(data)) + data


async def read_response(device: RawDevice) -> Response:
    """An answer, chunked or not: proxies choose."""
    response = await asyncio.wait_for(wire.read_response(device.reader), PATIENCE_S)
    return Response(response.status, {name.lower(): value for name, value in response.headers}, response.body)


def is_message(response: Response) -> bool:
    """``{"message":"..."}``, compact."""
    try:
        value = json.loads(response.body)
    except ValueError:
        return False
    return list(value) == ["message"] and response.body == b'{"message":"%b"}' % value["message"].encode()
