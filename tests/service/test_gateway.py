"""One gateway's life: how it starts, and fails to, TLS, and the drain."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from pathlib import Path

import pytest
import websockets
from tornado.ioloop import IOLoop

from cocoa_tornado.brokers.kafka_settings import KafkaClient
from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.brokers.port import BrokerState
from cocoa_tornado.errors import ServiceError
from cocoa_tornado.mailboxes.port import MailboxState
from cocoa_tornado.presence.port import PresenceState
from cocoa_tornado.service.gateway import Gateway
from cocoa_tornado.settings import Settings
from testing.certificates import served_serial, write_certificate
from testing.raw_device import CLOSE, TEXT
from testing.waiting import eventually

from ..harness import SECRET
from .running import Running, messages

DRAINING = b'{"message":"Gateway is draining"}'
RECONNECT = b'{"type":"reconnect","after_ms":0}'  # to the only device


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
    stalled = await gateway.raw("stalled", receive_buffer=4096)
    for _ in range(15):
        gateway.gateway.hub.send_to_device("stalled", b"x" * 60_000)
    started = time.monotonic()
    await gateway.gateway.drain_and_stop()
    assert time.monotonic() - started < 8.0  # of the ten seconds that a socket may take no byte
    assert len(gateway.gateway.hub) == 0
    assert (await mute.read_until(CLOSE)).close_code == 1001
    assert await mute.read_to_end() == b""
    assert CLOSE not in await stalled.read_to_end()


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


# -- what its start says


@pytest.mark.gen_test
@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
async def test_the_start_says_which_library_reads_from_kafka(
    caplog: pytest.LogCaptureFixture, client: KafkaClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    if client == "confluent":
        pytest.importorskip("confluent_kafka")
    # Only the log matters here: a reader would continue to look for its brokers while the next test runs.
    monkeypatch.setattr("cocoa_tornado.service.parts.make_broker", lambda settings: MemoryBroker())
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


@pytest.mark.logs("cocoa.identity", "^jwks unavailable$")
@pytest.mark.gen_test
async def test_a_start_that_fails_leaves_nothing_running(io_loop: IOLoop) -> None:
    before = asyncio.all_tasks()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # No server has keys there; the gateway reads a URL repeatedly until it stops.
        gateway = Gateway(Settings(port=port, jwt_key=("http://127.0.0.1:9/keys",)))
        with pytest.raises(ServiceError, match=str(port)):
            await gateway.start()
    assert gateway.http_connections == 0
    await eventually(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


def broken(*_: object, **__: object) -> None:
    raise ServiceError("broken")


@pytest.mark.parametrize("part", ["keys", "presence", "mailbox", "engine", "broker"])
@pytest.mark.gen_test
async def test_whichever_part_fails_to_open_all_that_were_opened_are_closed(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = asyncio.all_tasks()
    gateway = Gateway(Settings(port=0, jwt_secret=SECRET, mailbox="memory://"))
    monkeypatch.setattr(
        gateway.parts.live.now.keys if part == "keys" else getattr(gateway.parts, part), "start", broken
    )
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
