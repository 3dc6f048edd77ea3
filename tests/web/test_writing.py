"""Writing to a device's socket: straight to it while it takes everything, by its stream where it does not."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from pathlib import Path

import pytest
import websockets
from tornado.iostream import IOStream, StreamClosedError

from cocoa_tornado.connection.sockets import (
    direct_write_works,
    drop_room_for_writes,
    keep_room_for_writes,
    write_at_once,
    writes_without_room_work,
)
from cocoa_tornado.web.streams import HttpStream
from testing.certificates import write_certificate

from .conftest import StartGateway

pytestmark = pytest.mark.gen_test(timeout=30)


def pair() -> tuple[IOStream, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return IOStream(ours), theirs


async def test_a_socket_that_takes_everything_has_it_at_once() -> None:
    stream, theirs = pair()
    assert write_at_once(stream, b"hello") == 5
    assert theirs.recv(100) == b"hello"
    stream.close()
    theirs.close()


async def test_what_a_socket_does_not_take_is_the_streams_to_write_behind_it() -> None:
    stream, theirs = pair()
    data = bytes(range(256)) * 4096
    taken = write_at_once(stream, data)
    assert 0 < taken < len(data)
    rest = stream.write(data[taken:])
    assert write_at_once(stream, b"not before the rest") == 0
    theirs.setblocking(False)
    received = b""
    while len(received) < len(data):
        received += await asyncio.get_running_loop().sock_recv(theirs, 1 << 16)
    await rest
    assert received == data
    assert write_at_once(stream, b"now") == 3
    stream.close()
    theirs.close()


async def test_a_socket_that_is_gone_takes_nothing_and_the_stream_finds_out() -> None:
    stream, theirs = pair()
    theirs.close()
    assert write_at_once(stream, b"x") == 0
    with pytest.raises(Exception, match="closed"):
        await stream.write(b"x")
    assert write_at_once(stream, b"x") == 0


async def test_a_stream_without_room_for_writes_writes_what_it_is_given_in_order() -> None:
    stream, theirs = pair()
    drop_room_for_writes(stream)
    parts = [bytes([number]) * 30_000 for number in range(20)]
    writes = [stream.write(part) for part in parts]
    assert stream.writing()
    theirs.setblocking(False)
    received = b""
    while len(received) < len(parts) * 30_000:
        received += await asyncio.get_running_loop().sock_recv(theirs, 1 << 16)
    await asyncio.gather(*writes)
    assert received == b"".join(parts)
    again = stream.write(bytes(1 << 20))
    stream.close()
    theirs.close()
    with pytest.raises(StreamClosedError):
        await again


async def test_a_stream_that_is_busy_with_a_write_keeps_its_room() -> None:
    stream, theirs = pair()
    rest = stream.write(bytes(1 << 20))
    drop_room_for_writes(stream)
    theirs.setblocking(False)
    received = 0
    while received < 1 << 20:
        received += len(await asyncio.get_running_loop().sock_recv(theirs, 1 << 16))
    await rest
    stream.close()
    theirs.close()


async def test_a_stream_of_a_tornado_that_keeps_its_writes_elsewhere_stays_as_it_is() -> None:
    stream, theirs = pair()
    del stream._write_futures
    del stream._write_buffer
    drop_room_for_writes(stream)
    assert not {"_write_futures", "_write_buffer"} & set(vars(stream))
    stream.socket.close()
    theirs.close()


async def test_the_streams_of_devices_share_the_names_of_their_attributes() -> None:
    """CPython does that for 30 of an object at most; beyond, each stream takes 1.3 KiB more."""
    ours, theirs = socket.socketpair()
    stream = HttpStream(ours)
    assert len(vars(stream)) <= 28
    stream.close()
    theirs.close()


async def test_whether_a_socket_can_be_written_to_directly_is_found_out_by_trying(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert direct_write_works()

    def write_to_fd(self: IOStream, *arguments: object) -> int:
        raise TypeError("it wants something else")

    monkeypatch.setattr(IOStream, "write_to_fd", write_to_fd)
    assert not direct_write_works()


async def test_whether_a_stream_writes_without_its_own_queues_is_found_out_by_trying(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert writes_without_room_work()
    write = IOStream.write

    def write_with_more_of_a_deque(self: IOStream, data: bytes) -> asyncio.Future[None]:
        self._write_futures.extendleft([])
        return write(self, data)

    monkeypatch.setattr(IOStream, "write", write_with_more_of_a_deque)
    assert not writes_without_room_work()


@pytest.mark.logs("cocoa.service", "straight to the socket")
@pytest.mark.logs("cocoa.service", "needs its own write queues")
@pytest.mark.logs("cocoa.service", "write progress is not visible")
async def test_with_a_tornado_that_lets_itself_be_used_in_public_ways_only_its_streams_write_and_it_is_said_once(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cocoa_tornado.service.direct_write_works", lambda: False)
    monkeypatch.setattr("cocoa_tornado.service.write_progress_is_visible", lambda: False)
    monkeypatch.setattr("cocoa_tornado.service.writes_without_room_work", lambda: False)
    gateway = await start_gateway()
    assert gateway.gateway._devices is not None
    assert gateway.gateway._devices.drop_room_for_writes is keep_room_for_writes
    device = await gateway.raw("doll")
    written: list[bytes] = []
    write = HttpStream.write

    def noted(self: HttpStream, data: bytes) -> asyncio.Future[None]:
        written.append(data)
        return write(self, data)

    monkeypatch.setattr(HttpStream, "write", noted)
    for number in range(3):
        await gateway.publish("doll", str(number))
        assert json.loads((await device.read_frame()).payload)["text"] == str(number)
    assert len(written) == 3
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 3


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
