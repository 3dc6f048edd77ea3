"""One gateway's life: drain, reload, certificates, and how it fails to start."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets
from tornado.ioloop import IOLoop

from cocoa_tornado.brokers.kafka_settings import KafkaClient
from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.brokers.port import BrokerState
from cocoa_tornado.errors import InvalidToken, KeyMaterialError, ServiceError
from cocoa_tornado.identity.http_fetch import HttpFetch
from cocoa_tornado.identity.keys import Signer
from cocoa_tornado.identity.minting import TokenRequest, mint
from cocoa_tornado.mailboxes.port import MailboxState
from cocoa_tornado.presence.port import PresenceState
from cocoa_tornado.rules.identity import TokenPolicy
from cocoa_tornado.rules.worker_count import Machine
from cocoa_tornado.service import Gateway
from cocoa_tornado.service_parts import kafka_client, make_engine
from cocoa_tornado.settings import Settings
from testing.certificates import served_serial, write_certificate
from testing.raw_device import CLOSE, TEXT
from testing.waiting import eventually

from .harness import SECRET, Harness
from .identity.material import jwk, jwks, private_pem, public_pem

GIB = 1 << 30
NEW_SECRET = "the new secret of thirty-two bytes, or more"
DRAINING = b'{"message":"Gateway is draining"}'
RECONNECT = b'{"type":"reconnect","after_ms":0}'  # to the only device


class Running:
    """Gateways of one test; all of them are stopped at its end."""

    def __init__(self) -> None:
        self.started: list[Harness] = []

    async def start(self, **settings: Any) -> Harness:
        harness = await Harness.start(**settings)
        self.started.append(harness)
        return harness


@pytest.fixture
def running(io_loop: IOLoop) -> Iterator[Running]:
    gateways = Running()
    yield gateways
    for harness in gateways.started:
        io_loop.run_sync(harness.stop)


async def reload(harness: Harness, **settings: Any) -> None:
    await harness.gateway.reload(dataclasses.replace(harness.gateway.settings, **settings))


def messages(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.getMessage() == message]


# -- draining


@pytest.mark.gen_test
async def test_while_draining_ready_is_a_503_and_newcomers_get_503_with_retry_after(running: Running) -> None:
    gateway = await running.start(drain_delay_s=0.5)
    drained = asyncio.ensure_future(gateway.gateway.drain_and_stop())
    await asyncio.sleep(0)
    ready = await gateway.http("GET", "/api/v1/ready")
    assert (ready.status, ready.headers["retry-after"]) == (503, "5")
    assert ready.body.startswith(b'{"message":"not ready: draining"')
    newcomer = (await gateway.upgrade(gateway.token())).response
    assert (newcomer.status, newcomer.body, newcomer.headers["retry-after"]) == (503, DRAINING, "5")
    assert (await gateway.http("GET", "/api/v1/health")).status == 200
    await drained
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", gateway.port)


@pytest.mark.gen_test
async def test_devices_are_served_until_the_drain_delay_is_over(running: Running) -> None:
    gateway = await running.start(drain_delay_s=0.4)
    device = await gateway.connect("doll")
    drained = asyncio.ensure_future(gateway.gateway.drain_and_stop())
    await asyncio.sleep(0)
    assert (await gateway.http("GET", "/api/v1/ready")).status == 503
    await gateway.publish("doll", "still served")
    assert "still served" in await device.recv()
    await device.send("and heard")
    await eventually(lambda: len(gateway.broker.records("device.messages")) == 1)
    assert await device.recv() == RECONNECT.decode()
    with pytest.raises(websockets.ConnectionClosed) as closed:
        await device.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001
    await drained


@pytest.mark.gen_test
async def test_what_is_queued_for_a_device_reaches_it_before_the_close(running: Running) -> None:
    gateway = await running.start()
    device = await gateway.raw("doll")
    for number in range(200):
        gateway.gateway.hub.send_to_device("doll", b"%d" % number)
    drained = asyncio.ensure_future(gateway.gateway.drain_and_stop())
    received = []
    while (frame := await device.read_frame()).opcode == TEXT:
        received.append(frame.payload)
    assert received == [*(b"%d" % number for number in range(200)), RECONNECT]
    assert (frame.opcode, frame.close_code) == (CLOSE, 1001)
    device.send(CLOSE, frame.payload)
    assert await device.read_to_end() == b""
    await drained


@pytest.mark.gen_test
async def test_what_waits_for_a_slow_device_reaches_it_before_the_close(running: Running) -> None:
    gateway = await running.start()
    slow = await gateway.raw("slow", receive_buffer=4096)
    hub = gateway.gateway.hub
    # More than the kernel takes at once, so that the second half waits behind the first.
    for number in range(16):
        hub.send_to_device("slow", bytes([65 + number]) * 60_000)
        if number == 7:
            await asyncio.sleep(0.05)
    drained = asyncio.ensure_future(gateway.gateway.drain_and_stop())
    await eventually(lambda: len(hub) == 0)
    received = []
    while (frame := await slow.read_frame()).opcode == TEXT:
        received.append(frame.payload)
    assert [payload[0] - 65 for payload in received[:-1]] == list(range(16))
    assert received[-1] == RECONNECT
    assert (frame.opcode, frame.close_code) == (CLOSE, 1001)
    slow.send(CLOSE, frame.payload)
    await drained


@pytest.mark.gen_test
async def test_a_record_published_just_before_the_drain_still_arrives(running: Running) -> None:
    gateway = await running.start(drain_delay_s=0.1, drain_grace_s=0.6)
    device = await gateway.raw("doll")
    await gateway.publish("doll", "the last word")
    drained = asyncio.ensure_future(gateway.gateway.drain_and_stop())
    assert b"the last word" in (await device.read_until(TEXT)).payload
    await drained


@pytest.mark.gen_test
async def test_devices_that_neither_answer_nor_read_cannot_hold_up_the_drain(running: Running) -> None:
    gateway = await running.start(drain_grace_s=1.0)
    mute = await gateway.raw("mute")
    deaf = await gateway.raw("deaf", receive_buffer=4096)
    for _ in range(15):
        gateway.gateway.hub.send_to_device("deaf", b"x" * 60_000)
    started = time.monotonic()
    await gateway.gateway.drain_and_stop()
    assert time.monotonic() - started < 8.0  # of the ten seconds that a socket may take no byte
    assert len(gateway.gateway.hub) == 0
    assert (await mute.read_until(CLOSE)).close_code == 1001
    assert await mute.read_to_end() == b""
    assert CLOSE not in await deaf.read_to_end()


@pytest.mark.gen_test
async def test_a_challenge_under_way_ends_with_the_drain(running: Running) -> None:
    gateway = await running.start(duplicate_challenge_s=60.0, drain_grace_s=0.6)
    await gateway.raw("doll")
    newcomer = asyncio.ensure_future(gateway.upgrade(gateway.token("doll")))
    await eventually(lambda: gateway.gateway.presence.counters.challenges == 1)
    started = time.monotonic()
    await gateway.gateway.drain_and_stop()
    assert time.monotonic() - started < 30.0
    assert (await newcomer).response.status == 503


@pytest.mark.gen_test
async def test_draining_twice_is_one_drain(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    gateway = await running.start()
    await asyncio.gather(gateway.gateway.drain_and_stop(), gateway.gateway.drain_and_stop())
    await gateway.gateway.drain_and_stop()
    assert len(messages(caplog, "draining")) == len(messages(caplog, "stopped")) == 1
    assert gateway.gateway.broker.status().state is BrokerState.CLOSED


@pytest.mark.gen_test
async def test_nothing_runs_on_after_the_stop(running: Running) -> None:
    before = asyncio.all_tasks()
    gateway = await running.start(drain_grace_s=0.6)
    for number in range(3):
        (await gateway.raw(f"doll-{number}")).send(TEXT, b"hello")
    await gateway.gateway.drain_and_stop()
    for raw in range(3):
        assert not gateway.gateway.hub.is_device_connected(f"doll-{raw}")
    await eventually(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


# -- reloading


@pytest.mark.gen_test
async def test_a_reload_takes_over_origins_limits_credentials_and_level(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await running.start()
    await gateway.raw("first")
    headers = {"Origin": "https://app.example"}
    assert (await gateway.upgrade(gateway.token(), headers)).response.status == 403
    credentials = (("key", "api-secret"),)
    await reload(gateway, allowed_origins=("https://app.example",), max_connections=2, api_credentials=credentials)
    assert (await gateway.upgrade(gateway.token(), headers)).response.status == 101
    assert (await gateway.upgrade(gateway.token("third"))).response.status == 503
    api = {"X-API-Key": "key", "X-API-Secret": "api-secret"}
    assert (await gateway.http("POST", "/api/v1/auth/token", api)).status == 200
    (line,) = messages(caplog, "reloaded")
    assert line["applied"] == "api_credentials,allowed_origins,max_connections"
    await reload(gateway, log_level="error")
    assert logging.getLogger().level == logging.ERROR


@pytest.mark.gen_test
async def test_a_reload_changes_the_limits_of_new_connections(running: Running) -> None:
    gateway = await running.start()
    await reload(gateway, max_message_bytes=10)
    device = await gateway.raw("doll")
    device.send(TEXT, b"x" * 11)
    assert (await device.read_until(CLOSE)).close_code == 1009


@pytest.mark.gen_test
async def test_after_a_change_of_secrets_old_tokens_pass_only_with_the_previous_secret(running: Running) -> None:
    gateway = await running.start()
    old, new = gateway.token("old"), gateway.token("new", secret=NEW_SECRET)
    connected = await gateway.connect("connected")
    assert (await gateway.upgrade(new)).response.status == 401
    await reload(gateway, jwt_secret=NEW_SECRET, jwt_previous_secrets=(SECRET,))
    assert (await gateway.upgrade(new)).response.status == 101
    assert (await gateway.upgrade(old)).response.status == 101
    await reload(gateway, jwt_previous_secrets=())
    assert (await gateway.upgrade(gateway.token("old"))).response.status == 401
    await connected.wait_closed()
    assert connected.close_code == 4401


@pytest.mark.gen_test
async def test_of_reloads_in_quick_succession_the_last_one_counts(running: Running) -> None:
    gateway = await running.start()
    await asyncio.gather(*(reload(gateway, max_connections=number) for number in (9, 8, 7)))
    assert gateway.gateway.settings.max_connections == gateway.gateway.presence.limits().total == 7


@pytest.mark.parametrize(
    "part",
    ["key_sources", "make_signer", "make_tls", "device_limits", "slot_limits", "speech_limits", "audio_limits"],
)
@pytest.mark.gen_test
async def test_a_reload_that_fails_halfway_changes_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(part)

    gateway = await running.start()
    service = gateway.gateway
    before = (service.live.now, service.settings)
    monkeypatch.setattr(f"cocoa_tornado.service_live.{part}", fail)
    with pytest.raises(RuntimeError, match=part):
        await reload(gateway, jwt_secret=NEW_SECRET, max_connections=1, inbound_rate=1.0)
    assert (service.live.now, service.settings) == before
    assert (await gateway.upgrade(gateway.token())).response.status == 101


def serve_keys_slowly(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Have every URL of keys answer once the event is set."""
    may_answer = asyncio.Event()

    async def fetch(self: HttpFetch, url: str) -> bytes:
        await may_answer.wait()
        return jwks(jwk("EC"))

    monkeypatch.setattr(HttpFetch, "__call__", fetch)
    return may_answer


@pytest.mark.gen_test
async def test_a_reload_that_is_cancelled_while_it_reads_keys_changes_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await running.start()
    before = gateway.gateway.live.now
    may_answer = serve_keys_slowly(monkeypatch)
    reloading = asyncio.ensure_future(reload(gateway, jwt_key=("https://issuer.example/jwks",), max_connections=1))
    await asyncio.wait({reloading}, timeout=0)
    reloading.cancel()
    await asyncio.wait({reloading})
    may_answer.set()
    assert gateway.gateway.live.now is before


@pytest.mark.gen_test
async def test_nobody_ever_sees_a_part_of_a_reload(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the URL that is dropped takes its time to end, which is after the reload has taken effect."""
    serve_keys_slowly(monkeypatch).set()
    old = {"api_credentials": (("key", "old"),), "allowed_origins": ("https://old.example",), "max_connections": 9}
    new = {"api_credentials": (("key", "new"),), "allowed_origins": ("https://new.example",), "max_connections": 8}
    gateway = await running.start(jwt_key=("https://issuer.example/jwks",), **old)
    web, token = gateway.gateway._web, es256_token("doll")
    assert web is not None
    seen = []

    def look() -> tuple[object, ...]:
        now = web.live.now
        try:
            verifies_old = now.keys.identify_now(token, time.time()) is not None
        except InvalidToken:
            verifies_old = False
        origins, limits = now.allowed_origins, gateway.gateway.presence.limits()
        return verifies_old, now.credentials["key"], origins, limits.total, web.devices.limits().inbound.per_s

    reloading = asyncio.ensure_future(reload(gateway, jwt_key=(), inbound_rate=7.0, **new))
    while not reloading.done():
        seen.append(look())
        await asyncio.sleep(0)
    seen.append(look())
    assert list(dict.fromkeys(seen)) == [
        (True, "old", ("https://old.example",), 9, 100.0),
        (False, "new", ("https://new.example",), 8, 7.0),
    ]


# -- what its start says


@pytest.mark.gen_test
@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
async def test_the_start_says_which_library_reads_from_kafka(
    caplog: pytest.LogCaptureFixture, client: KafkaClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    if client == "confluent":
        pytest.importorskip("confluent_kafka")
    # Only what is said matters here: a reader would go on looking for its brokers while the next test runs.
    monkeypatch.setattr("cocoa_tornado.service.make_broker", lambda settings: MemoryBroker())
    caplog.set_level(logging.INFO)
    where_nobody_listens = "kafka://127.0.0.1:1"
    gateway = Gateway(
        Settings(port=0, jwt_secret=SECRET, speech="none://", broker=where_nobody_listens, kafka_client=client)
    )
    await gateway.start()
    await gateway.drain_and_stop()
    (line,) = messages(caplog, "listening")
    assert line["kafka_client"] == client


@pytest.mark.gen_test
async def test_the_start_says_nothing_of_kafka_with_the_embedded_broker(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await running.start()
    (line,) = messages(caplog, "listening")
    assert "kafka_client" not in line


@pytest.mark.parametrize(("installed", "client"), [(None, "kafka-python"), (object(), "confluent")])
def test_librdkafka_is_taken_where_it_is_installed(
    installed: object, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: installed)
    settings = Settings(broker="kafka://127.0.0.1:1")
    assert kafka_client(settings) == client
    assert kafka_client(dataclasses.replace(settings, kafka_client="kafka-python")) == "kafka-python"
    assert kafka_client(Settings()) is None


@pytest.mark.gen_test
async def test_a_reload_names_what_needs_a_restart_and_leaves_it(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await running.start()
    await reload(gateway, port=1, ping_interval_s=60.0)
    (line,) = messages(caplog, "reloaded")
    assert (line["applied"], line["needs_restart"]) == ("nothing new", "port,ping_interval")
    assert gateway.gateway.settings.ping_interval_s == 30.0


@pytest.mark.logs("cocoa.service", "^reload refused$")
@pytest.mark.gen_test
async def test_a_reload_that_is_refused_changes_nothing_and_says_so_once(
    running: Running, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    certificate = write_certificate(tmp_path)
    gateway = await running.start(tls_cert=certificate.cert, tls_key=certificate.key)
    before = gateway.gateway.settings
    broken: list[dict[str, Any]] = [
        {"jwt_key": (str(tmp_path / "missing.pem"),)},
        {
            "jwt_key": (str(certificate.cert),),
            "jwt_signing_key": tmp_path / "missing",
            "api_credentials": (("key", "api-secret"),),
        },
        {"inbound_rate": 5.0, "max_message_bytes": before.publish_bytes + 1},
    ]
    write_certificate(tmp_path)
    for change in broken:
        caplog.clear()
        await reload(gateway, jwt_secret=NEW_SECRET, **change)
        (line,) = [record for record in caplog.records if record.levelno >= logging.INFO]
        assert (line.getMessage(), line.levelno) == ("reload refused", logging.ERROR)
        assert "\n" not in vars(line)["error"]
        assert gateway.gateway.settings is before
        serial = await asyncio.to_thread(served_serial, gateway.port)
        assert serial == certificate.serial, "a new certificate came with a refused reload"


@pytest.mark.gen_test
async def test_a_certificate_that_breaks_while_keys_are_read_is_served_as_it_was_read(
    running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def fetch(self: HttpFetch, url: str) -> bytes:
        certificate.cert.write_text("half of a certificate")
        return jwks(jwk("EC"))

    monkeypatch.setattr(HttpFetch, "__call__", fetch)
    certificate = write_certificate(tmp_path)
    gateway = await running.start(tls_cert=certificate.cert, tls_key=certificate.key)
    certificate = write_certificate(tmp_path)
    await reload(gateway, jwt_key=("https://issuer.example/jwks",))
    assert await gateway.gateway.keys.identify(es256_token("doll"), time.time())
    assert await asyncio.to_thread(served_serial, gateway.port) == certificate.serial


@pytest.mark.gen_test
async def test_key_files_are_read_again_though_their_names_have_not_changed(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(public_pem("EC"))
    gateway = await running.start(jwt_secret="", jwt_key=(str(path),))
    token = es256_token("doll")
    assert (await gateway.upgrade(token)).response.status == 101
    path.write_bytes(public_pem("Ed25519"))
    await reload(gateway)
    assert (await gateway.upgrade(es256_token("other"))).response.status == 401


def es256_token(device_id: str) -> str:
    signer = Signer.from_pem(private_pem("EC"), "test")
    return mint(TokenRequest(device_id, 1, lifetime_s=60), signer, TokenPolicy(), time.time())


# -- TLS


@pytest.mark.gen_test
async def test_a_device_is_served_over_wss(running: Running, tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path)
    gateway = await running.start(tls_cert=certificate.cert, tls_key=certificate.key)
    assert gateway.gateway.url == f"https://127.0.0.1:{gateway.port}"
    url = f"wss://127.0.0.1:{gateway.port}/ws?token={gateway.token('doll')}"
    async with websockets.connect(url, ssl=certificate.client_context(), proxy=None) as device:
        text = "ü" * 100_000
        await gateway.publish("doll", text)
        assert text in await device.recv()
        await device.send(text)
        await eventually(lambda: len(gateway.broker.records("device.messages")) == 1)
    await eventually(lambda: len(gateway.gateway.hub) == 0)


@pytest.mark.gen_test
async def test_a_drain_over_tls_delivers_what_is_queued_and_closes_with_1001(running: Running, tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path)
    gateway = await running.start(tls_cert=certificate.cert, tls_key=certificate.key)
    url = f"wss://127.0.0.1:{gateway.port}/ws?token={gateway.token('doll')}"
    async with websockets.connect(url, ssl=certificate.client_context(), proxy=None) as device:
        gateway.gateway.hub.send_to_device("doll", b"last")
        drained = asyncio.ensure_future(gateway.gateway.drain_and_stop())
        assert await device.recv() == "last"
        assert await device.recv() == RECONNECT.decode()
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await device.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        await drained


@pytest.mark.logs("cocoa.service", "^reload refused$")
@pytest.mark.gen_test
async def test_a_new_certificate_is_served_after_a_reload_and_a_bad_one_is_not(
    running: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = write_certificate(tmp_path)
    gateway = await running.start(tls_cert=first.cert, tls_key=first.key)
    assert await asyncio.to_thread(served_serial, gateway.port) == first.serial
    second = write_certificate(tmp_path)
    await reload(gateway)
    assert await asyncio.to_thread(served_serial, gateway.port) == second.serial
    second.key.write_bytes(write_certificate(tmp_path, "other").key.read_bytes())
    await reload(gateway)
    assert len(messages(caplog, "reload refused")) == 1
    assert await asyncio.to_thread(served_serial, gateway.port) == second.serial


@pytest.mark.logs("tornado.general", "^SSL Error on ")
@pytest.mark.gen_test
async def test_clients_that_speak_no_tls_or_vanish_disturb_nobody(
    running: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = write_certificate(tmp_path)
    gateway = await running.start(tls_cert=certificate.cert, tls_key=certificate.key, header_timeout_s=0.5)
    silent = await gateway.dial()
    for data in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"", b"\x16\x03\x01", b"rubbish" * 100):
        for leave in (True, False):
            client = await gateway.dial()
            client.writer.write(data)
            if leave:
                client.reset()
            elif data:
                await client.read_to_end()
    assert await silent.read_to_end() == b""
    assert await asyncio.to_thread(served_serial, gateway.port) == certificate.serial
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


# -- starting


def test_a_certificate_that_cannot_be_used_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    good, other = write_certificate(tmp_path), write_certificate(tmp_path, "other")
    encrypted = write_certificate(tmp_path, "encrypted", password=b"secret")
    (tmp_path / "rubbish.pem").write_text("rubbish")
    for cert, key in (
        (good.cert, other.key),
        (good.key, good.key),
        (tmp_path / "rubbish.pem", good.key),
        (tmp_path / "missing.pem", good.key),
        (encrypted.cert, encrypted.key),
    ):
        with pytest.raises(ServiceError) as raised:
            Gateway(Settings(jwt_secret=SECRET, tls_cert=cert, tls_key=key))
        assert str(cert) in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.gen_test
async def test_a_key_that_cannot_be_read_is_an_error_before_the_port_is_taken(tmp_path: Path, io_loop: IOLoop) -> None:
    gateway = Gateway(Settings(port=0, jwt_key=(str(tmp_path / "missing.pem"),)))
    with pytest.raises(KeyMaterialError, match=r"missing\.pem"):
        await gateway.start()
    assert gateway.port == 0


@pytest.mark.logs("cocoa.identity", "^jwks unavailable$")
@pytest.mark.gen_test
async def test_a_start_that_fails_leaves_nothing_running(io_loop: IOLoop) -> None:
    before = asyncio.all_tasks()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # Nobody serves keys there; a URL is read again and again, as long as the gateway lives.
        gateway = Gateway(Settings(port=port, jwt_key=("http://127.0.0.1:9/keys",)))
        with pytest.raises(ServiceError, match=str(port)):
            await gateway.start()
    assert gateway.http_connections == 0
    await eventually(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


def test_a_signing_key_that_cannot_be_read_is_an_error_before_anything_is_opened(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    with pytest.raises(KeyMaterialError, match=r"missing\.pem"):
        Gateway(Settings(jwt_secret=SECRET, api_credentials=(("key", "secret"),), jwt_signing_key=missing))


@pytest.mark.parametrize(
    ("setting", "machine", "workers", "line"),
    [
        (0, Machine(64, 4.0, 8 * GIB), 3, "speech workers counted"),
        (0, Machine(64, 4.0, GIB // 2), 1, "speech workers counted"),
        (9, Machine(64, 4.0, 8 * GIB), 9, "speech workers counted"),
        pytest.param(
            *(9, Machine(64, 4.0, GIB), 9, "speech workers exceed memory"),
            marks=pytest.mark.logs("cocoa.service", "speech workers exceed memory"),
        ),
    ],
)
def test_the_log_says_how_many_speech_workers_there_are_and_why(
    setting: int,
    machine: Machine,
    workers: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("cocoa_tornado.service_parts.this_machine", lambda: machine)
    caplog.set_level(logging.INFO, "cocoa.service")
    engine = make_engine(Settings(speech="pocketsphinx://", speech_workers=setting))
    assert engine is not None
    (record,) = [record for record in caplog.records if record.getMessage() == line]
    assert (vars(record)["workers"], vars(record)["processors"]) == (workers, 4)
    assert engine.options.workers == workers


def broken(*_: object, **__: object) -> None:
    raise ServiceError("broken")


@pytest.mark.parametrize("part", ["keys", "presence", "mailbox", "engine", "broker"])
@pytest.mark.gen_test
async def test_whichever_part_fails_to_open_all_that_were_opened_are_closed(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = asyncio.all_tasks()
    gateway = Gateway(Settings(port=0, jwt_secret=SECRET, mailbox="memory://"))
    monkeypatch.setattr(getattr(gateway, part), "start", broken)
    with pytest.raises(ServiceError, match="broken"):
        await gateway.start()
    if gateway.port:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", gateway.port)
    if part not in ("keys", "presence"):
        assert gateway.mailbox is not None
        assert gateway.mailbox.status().state is MailboxState.CLOSED
    if part != "keys":
        assert gateway.presence.status().state is PresenceState.CLOSED
    await eventually(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


@pytest.mark.gen_test
async def test_a_part_that_fails_to_close_keeps_no_other_from_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(Settings(port=0, jwt_secret=SECRET, mailbox="memory://", speech="none://"))
    monkeypatch.setattr(gateway.mailbox, "close", broken)
    await gateway.start()
    with pytest.raises(ServiceError, match="broken"):
        await gateway.drain_and_stop()
    assert gateway.broker.status().state is BrokerState.CLOSED
    assert gateway.presence.status().state is PresenceState.CLOSED
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", gateway.port)
