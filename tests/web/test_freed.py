"""What belonged to a connection is freed as soon as it has ended, without the garbage collector: that one looks at all
there is only once in a long while (cli/serve.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import websockets
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPServerRequest

from cocoa_tornado.connection.connection import DeviceConnection
from cocoa_tornado.connection.feed import BoxFeed
from cocoa_tornado.connection.inbound import Inbound
from cocoa_tornado.connection.protocol import DeviceProtocol
from cocoa_tornado.transcriber import Utterance
from cocoa_tornado.web.audio_handler import AudioStreamHandler
from cocoa_tornado.web.device_handler import DeviceHandler
from cocoa_tornado.web.streams import HttpsStream, HttpStream
from testing.certificates import write_certificate
from testing.raw_device import CLOSE, PING, TEXT, UPGRADE, frame
from testing.waiting import eventually

from ..harness import Harness
from ..scripted_engine import ScriptedEngine
from .conftest import StartGateway

OURS = (
    HttpStream,
    HttpsStream,
    HTTP1Connection,
    HTTPServerRequest,
    DeviceHandler,
    DeviceConnection,
    DeviceProtocol,
    Inbound,
    BoxFeed,
    AudioStreamHandler,
    Utterance,
)

pytestmark = pytest.mark.gen_test(timeout=30)


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def living() -> int:
    return sum(type(thing) in OURS for thing in gc.get_objects())


async def resets(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    device.reset()


async def hangs_up(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    device.close()


async def speaks_and_says_goodbye(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    await gateway.publish("doll", "hello")
    await device.read_until(TEXT)
    device.send(TEXT, b"hello")
    device.send(PING, b"?")
    device.send(CLOSE, struct.pack("!H", 1000))
    await device.read_to_end()


async def breaks_the_protocol(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    device.send(TEXT, b"hello", masked=False)
    await device.read_until(CLOSE)
    device.close()


async def expires(gateway: Harness) -> None:
    device = await gateway.connect_with(gateway.token("doll", lifetime_s=0.3))
    with contextlib.suppress(websockets.ConnectionClosed):
        await device.recv()


async def is_refused(gateway: Harness) -> None:
    device = await gateway.upgrade("no.token")
    assert device.response.status == 401
    device.close()


async def vanishes_in_the_handshake(gateway: Harness) -> None:
    device = await gateway.dial()
    device.writer.write(b"GET /ws HTTP/1.1\r\nHost")
    await device.writer.drain()
    device.reset()


ENDS = [
    resets,
    hangs_up,
    speaks_and_says_goodbye,
    breaks_the_protocol,
    expires,
    is_refused,
    vanishes_in_the_handshake,
]


@pytest.mark.parametrize("mailbox", ["none://", "memory://"])
async def test_of_a_connection_that_has_ended_nothing_is_left_however_it_ends(
    start_gateway: StartGateway, mailbox: str
) -> None:
    gateway = await start_gateway(mailbox=mailbox, jwt_leeway_s=0.0)
    before = living()
    for end in ENDS:
        for _ in range(3):
            await end(gateway)
        await eventually(lambda: living() == before)


async def test_nor_is_anything_left_of_an_upload(start_gateway: StartGateway) -> None:
    engine = ScriptedEngine()
    gateway = await start_gateway(engine=engine)
    headers = {"Authorization": f"Bearer {gateway.token('doll')}", "Content-Type": "application/octet-stream"}
    before = living()
    for _ in range(3):
        device = await gateway.dial()
        assert (await device.request("POST", "/api/v1/audio/stream", headers, bytes(3200))).status == 200
        device.close()
    engine.streams.clear()
    await eventually(lambda: living() == before)


async def test_nor_is_anything_left_of_one_over_tls(start_gateway: StartGateway, tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path)
    gateway = await start_gateway(tls_cert=certificate.cert, tls_key=certificate.key)
    before = living()
    for how in ("goodbye", "abort"):
        url = f"wss://127.0.0.1:{gateway.port}/ws?token={gateway.token('doll')}"
        async with websockets.connect(url, ssl=certificate.client_context()) as device:
            await gateway.publish("doll", "hello")
            await device.recv()
            if how == "abort":
                device.transport.abort()
    await eventually(lambda: living() == before)


async def test_nor_of_one_whose_words_are_followed_by_what_is_no_tls(
    start_gateway: StartGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = write_certificate(tmp_path)
    gateway = await start_gateway(tls_cert=certificate.cert, tls_key=certificate.key)

    def connect() -> ssl.SSLSocket:
        sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
        device = certificate.client_context().wrap_socket(sock, server_hostname="127.0.0.1")
        headers = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
        device.sendall(f"GET /ws?token={gateway.token('doll')} HTTP/1.1\r\nHost: doll\r\n{headers}\r\n".encode())
        assert device.recv(1024).startswith(b"HTTP/1.1 101 ")
        return device

    before = living()
    for _ in range(3):
        device = await asyncio.to_thread(connect)
        # In one turn of the gateway's loop, which is this one too: so it reads both at once.
        device.sendall(frame(TEXT, b"hello"))
        os.write(device.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
        await eventually(lambda: not len(gateway.gateway.hub))
        device.close()
    await eventually(lambda: living() == before)
    assert "connection failed" not in caplog.messages
