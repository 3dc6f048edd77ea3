"""Writing to a device's socket, where a whole gateway takes part: TLS, and what Tornado has left."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from pathlib import Path

import pytest
import websockets
from tornado.iostream import IOStream, StreamClosedError

from cocoa_tornado.web.streams import HttpStream
from testing.certificates import write_certificate

from .conftest import StartGateway

pytestmark = pytest.mark.gen_test(timeout=30)


async def test_a_stream_gives_up_its_socket_with_what_was_read_and_what_is_to_be_sent() -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    stream = HttpStream(ours)
    answer = bytes(range(256)) * 4096
    written = stream.write(answer)
    theirs.sendall(b"request, and more")
    assert await stream.read_bytes(8) == b"request,"
    sock, unread, unsent = stream.give_up_socket()
    with pytest.raises(StreamClosedError):
        await written
    assert stream.closed()
    assert unread == b" and more"
    assert sock.fileno() >= 0
    sent = b""
    while len(sent) + len(unsent) < len(answer):
        sent += theirs.recv(1 << 16)
    assert sent + unsent == answer
    sock.close()
    theirs.close()


async def test_so_does_a_stream_of_a_tornado_that_keeps_them_elsewhere_unless_it_is_writing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cocoa_tornado.web.streams.READ_BUFFER", "_elsewhere")
    monkeypatch.setattr("cocoa_tornado.web.streams.WRITE_BUFFER", "_elsewhere")
    for more in (b" and more", b""):
        ours, theirs = socket.socketpair()
        stream = HttpStream(ours)
        theirs.sendall(b"request," + more)
        assert await stream.read_bytes(8) == b"request,"
        sock, unread, unsent = stream.give_up_socket()
        assert (unread, unsent) == (more, b"")
        theirs.sendall(b"later")
        assert sock.recv(100) == b"later"
        sock.close()
        theirs.close()
    ours, theirs = socket.socketpair()
    stream = HttpStream(ours)
    written = stream.write(bytes(1 << 20))
    with pytest.raises(StreamClosedError):
        stream.give_up_socket()
    stream.close()
    with pytest.raises(StreamClosedError):
        await written
    theirs.close()


async def test_a_stream_that_is_closed_has_no_socket_to_give() -> None:
    ours, theirs = socket.socketpair()
    stream = HttpStream(ours)
    stream.close()
    with pytest.raises(StreamClosedError):
        stream.give_up_socket()
    theirs.close()


async def test_nor_has_one_that_finds_its_end_while_it_looks_for_what_is_unread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a Tornado that reads as far as it can."""

    def read_bytes(stream: IOStream, num_bytes: int, partial: bool = False) -> asyncio.Future[bytes]:
        there: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        stream.close()
        there.set_result(b" and more")
        return there

    monkeypatch.setattr("cocoa_tornado.web.streams.READ_BUFFER", "_elsewhere")
    monkeypatch.setattr(IOStream, "read_bytes", read_bytes)
    ours, theirs = socket.socketpair()
    stream = HttpStream(ours)
    with pytest.raises(StreamClosedError):
        stream.give_up_socket()
    theirs.close()


@pytest.mark.logs("cocoa.service", "^write progress unknown")
async def test_a_tornado_that_shows_no_progress_of_writes_is_named_once(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cocoa_tornado.service.gateway.write_progress_is_visible", lambda: False)
    await start_gateway()
    assert (
        len([record for record in caplog.records if record.name == "cocoa.service" and record.levelname == "WARNING"])
        == 1
    )


async def test_large_messages_to_a_slow_device_arrive_whole_and_in_order_over_tls(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    certificate = write_certificate(tmp_path)
    gateway = await start_gateway(outbox_max_bytes=64 * 1024 * 1024, tls_cert=certificate.cert, tls_key=certificate.key)
    trusting = ssl.create_default_context(cafile=str(certificate.cert))
    trusting.check_hostname = False
    url = f"wss://127.0.0.1:{gateway.port}/ws?token={gateway.token('doll')}"
    async with websockets.connect(url, ssl=trusting, proxy=None, ping_interval=None, max_size=None) as device:
        big = "x" * 200_000
        for number in range(40):
            await gateway.publish("doll", f"{number} {big if number % 3 else ''}")
        await asyncio.sleep(0.3)  # the device does not read yet: the sockets fill up
        for number in range(40):
            assert json.loads(await device.recv())["text"].split()[0] == str(number)
