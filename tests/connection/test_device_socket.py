"""A device's socket by itself, in the clear and over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from cocoa_tornado.connection import device_socket as device_socket_module
from cocoa_tornado.connection.device_socket import TLS_RECORD_BYTES, DeviceSocket, TlsDeviceSocket, device_socket
from testing.certificates import write_certificate
from testing.waiting import eventually

pytestmark = pytest.mark.gen_test(timeout=30)

LONG = bytes(range(256)) * 8192


def never() -> None:
    raise AssertionError("nothing was to be called")


class Far:
    """The other end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                view = view[self.sock.send(view) :]
            await asyncio.sleep(0)

    async def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                data += self.sock.recv(1 << 16)
            await asyncio.sleep(0)
        return data


def blocking_end(sock: socket.socket) -> bytes:
    """The data that the other end sent before it closed."""
    sock.settimeout(10)
    return sock.recv(100)


Pair = tuple[DeviceSocket, Far]
MakePair = Callable[..., contextlib.AbstractAsyncContextManager[Pair]]


def tcp(room: int) -> tuple[socket.socket, socket.socket]:
    """A connection over loopback whose kernels buffer about this many bytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.socket()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        theirs.connect(server.getsockname())
        ours, _ = server.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


async def shake(*ends: ssl.SSLSocket) -> None:
    done = [False, False]
    while not all(done):
        for number, end in enumerate(ends):
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                end.do_handshake()
                done[number] = True
        await asyncio.sleep(0)


@pytest.fixture(params=["plain", "tls"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> MakePair:
    @contextlib.asynccontextmanager
    async def make(
        unread: bytes = b"", unsent: bytes = b"", room: int = 4096, *, is_held: bool = False
    ) -> AsyncIterator[Pair]:
        ours, theirs = tcp(room)
        if request.param == "tls":
            certificate = write_certificate(tmp_path)
            serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            serving.load_cert_chain(certificate.cert, certificate.key)
            trusting = certificate.client_context()
            trusting.check_hostname = False
            ours = serving.wrap_socket(ours, server_side=True, do_handshake_on_connect=False)
            theirs = trusting.wrap_socket(theirs, do_handshake_on_connect=False)
            await shake(ours, theirs)
        near = device_socket(ours, unread, unsent, is_held=is_held)
        assert type(near) is (TlsDeviceSocket if request.param == "tls" else DeviceSocket)
        try:
            yield near, Far(theirs)
        finally:
            near.close()
            theirs.close()

    return make


over_tls = pytest.mark.parametrize("pair", ["tls"], indirect=True)


class Reader:
    """Reads one piece of this many bytes per call."""

    def __init__(self, near: DeviceSocket, size: int = 1 << 16) -> None:
        self._near, self._size = near, size
        self.calls, self.read, self.has_ended = 0, b"", False
        self.sizes: list[int] = []
        near.start_reading(self)

    def __call__(self) -> None:
        self.calls += 1
        try:
            data = self._near.read(self._size)
        except OSError:
            data = b""
        if data == b"":
            self.has_ended = True
            self._near.stop_reading()
        self.read += data or b""
        self.sizes.append(len(data or b""))

    async def has(self, data: bytes) -> None:
        await eventually(lambda: len(self.read) >= len(data))
        assert self.read == data


# -- reading


async def test_what_comes_is_read_piece_by_piece_until_the_end(pair: MakePair) -> None:
    async with pair() as (near, far):
        reader = Reader(near, 1000)
        await far.send(LONG[:10_000])
        await reader.has(LONG[:10_000])
        far.sock.close()
        await eventually(lambda: reader.has_ended)


async def test_nothing_is_there_until_something_comes(pair: MakePair) -> None:
    async with pair() as (near, _):
        assert near.read(100) is None
        assert not near.may_have_unread


async def test_the_rest_of_a_record_that_tls_has_is_read_though_the_kernel_has_nothing(pair: MakePair) -> None:
    async with pair() as (near, far):
        await far.send(LONG[:4000])
        await eventually(lambda: near.may_have_unread)
        reader = Reader(near, 100)
        await reader.has(LONG[:4000])
        assert not near.may_have_unread


async def test_what_was_read_before_the_upgrade_comes_first(pair: MakePair) -> None:
    async with pair(unread=b"first, ") as (near, far):
        assert near.may_have_unread
        reader = Reader(near)
        assert not reader.calls  # not within start_reading()
        await reader.has(b"first, ")
        await far.send(b"then")
        await reader.has(b"first, then")


async def test_of_what_was_read_before_the_upgrade_no_more_is_read_at_a_time_than_asked_for(pair: MakePair) -> None:
    async with pair(unread=LONG[:250]) as (near, far):
        await far.send(LONG[250:300])
        reader = Reader(near, 100)
        await reader.has(LONG[:300])
        assert max(reader.sizes) == 100


async def test_what_comes_while_nobody_reads_stays_where_it_is(pair: MakePair) -> None:
    async with pair() as (near, far):
        near.start_reading(never)
        near.stop_reading()
        await far.send(b"hello")
        await eventually(lambda: near.may_have_unread)
        await asyncio.sleep(0)
        await Reader(near).has(b"hello")


async def test_an_answer_to_a_ping_takes_one_call(pair: MakePair) -> None:
    """An idle device costs nothing else."""
    async with pair() as (near, far):
        reader = Reader(near)
        for number in range(1, 4):
            await far.send(b"\x8a\x80mask")
            await reader.has(b"\x8a\x80mask" * number)
        assert reader.calls == 3


# -- writing


async def test_a_socket_that_takes_everything_has_it_at_once(pair: MakePair) -> None:
    async with pair() as (near, far):
        assert near.write(b"hello", never)
        assert await far.receive(5) == b"hello"


async def test_what_a_socket_does_not_take_follows_in_order_and_then_it_is_said_once(pair: MakePair) -> None:
    async with pair() as (near, far):
        said: list[str] = []
        assert not near.write(LONG, lambda: said.append("sent"))
        assert not near.all_is_acknowledged
        mark, received = near.write_mark, await far.receive(200_000)
        assert near.write_mark != mark
        assert not said
        received += await far.receive(len(LONG) - len(received))
        await eventually(lambda: bool(said))
        assert received == LONG
        assert said == ["sent"]
        assert near.write(b"and another", never)
        assert await far.receive(11) == b"and another"
        await eventually(lambda: near.all_is_acknowledged)


async def test_a_burst_that_the_kernel_has_room_for_is_taken_at_once(pair: MakePair) -> None:
    """Else it would count as waiting, and a device that reads would be too slow."""
    async with pair(room=1 << 20) as (near, far):
        burst = bytes(range(250)) * 800
        assert near.write(burst, never)
        assert await far.receive(len(burst)) == burst


async def test_after_a_failure_nothing_is_written_behind_the_gap(
    pair: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair() as (near, far):
        said: list[str] = []
        with monkeypatch.context() as broken:
            broken.setattr(type(near), "_send", Mock(side_effect=OSError(errno.ENOBUFS, "no buffer space")))
            assert not near.write(b"lost", lambda: said.append("failed"))
        assert not near.write(b"behind it", lambda: said.append("failed too"))
        await eventually(lambda: said == ["failed", "failed too"])
        near.close()
        with contextlib.suppress(OSError):
            assert far.sock.recv(1 << 16) == b""


async def test_of_a_long_write_the_kernel_takes_much_and_then_nothing(pair: MakePair) -> None:
    """OpenSSL refuses a piece that is shorter than what it has written of the one before."""
    async with pair(room=1 << 20) as (near, far):
        said: list[str] = []
        assert not near.write(4 * LONG, lambda: said.append("sent"))
        assert await far.receive(4 * len(LONG)) == 4 * LONG
        await eventually(lambda: bool(said))
        assert not near.has_failed


async def test_what_a_socket_has_not_begun_to_take_can_be_taken_back(pair: MakePair) -> None:
    """Over TLS also, where a piece that could not be written is tried again as it was."""
    async with pair() as (near, far):
        said = list[str]()
        for number in range(20):
            data = bytes([number]) + LONG
            assert not near.write(data, lambda: said.append("sent"))
            taken, committed = near.progress(len(data))
            assert taken <= committed <= taken + TLS_RECORD_BYTES
            kept = committed + number % 3
            near.take_back(len(data) - kept)
            assert await far.receive(kept) == data[:kept]
            await eventually(lambda: bool(said))
            assert said == ["sent"]
            said.clear()
        assert not near.has_failed


async def test_a_socket_without_room_says_when_it_has_some_though_everything_was_taken_back() -> None:
    ours, theirs = tcp(4096)
    near, far, said = DeviceSocket(ours), Far(theirs), list[str]()
    assert not near.write(LONG, lambda: said.append("sent"))
    taken, _ = near.progress(len(LONG))
    near.take_back(len(LONG) - taken)
    for _ in range(3):
        await asyncio.sleep(0)
    assert said == []
    assert await far.receive(taken) == LONG[:taken]
    await eventually(lambda: said == ["sent"])
    assert near.write(b"more", never)
    near.close()
    theirs.close()


@pytest.mark.parametrize("answer", [b"an answer, ", LONG], ids=["short", "long"])
async def test_what_was_to_be_sent_before_the_upgrade_goes_first(pair: MakePair, answer: bytes) -> None:
    async with pair(unsent=answer) as (near, far):
        said: list[str] = []
        assert near.write(b"then a message", lambda: said.append("sent")) is (answer is not LONG)
        assert await far.receive(len(answer) + 14) == answer + b"then a message"
        await eventually(lambda: bool(said) is (answer is LONG))
        assert near.write(b"and another", never)
        assert await far.receive(11) == b"and another"


@pytest.mark.parametrize("answer", [b"an answer, ", LONG], ids=["short", "long"])
async def test_what_is_held_is_sent_when_it_is_let_go_and_everything_else_after_it(
    pair: MakePair, answer: bytes
) -> None:
    async with pair(unsent=answer, is_held=True) as (near, far):
        reader, said = Reader(near), list[str]()
        await far.send(b"data")  # the socket is read from meanwhile
        await reader.has(b"data")
        assert not near.write(b"then a message", lambda: said.append("sent"))
        for _ in range(3):
            await asyncio.sleep(0)
        with pytest.raises((BlockingIOError, ssl.SSLWantReadError)):
            far.sock.recv(1)
        assert not said
        near.let_go()
        assert await far.receive(len(answer) + 14) == answer + b"then a message"
        await eventually(lambda: said == ["sent"])
        near.let_go()
        assert near.write(b"and another", never)
        assert await far.receive(11) == b"and another"


async def test_nothing_is_held_longer_than_its_bound(pair: MakePair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_socket_module, "HOLD_S", 0.01)
    async with pair(unsent=b"an answer", is_held=True) as (near, far):
        assert await far.receive(9) == b"an answer"
        assert near.write(b"and more", never)
        assert await far.receive(8) == b"and more"


async def test_what_is_held_when_the_socket_closes_is_not_sent(pair: MakePair) -> None:
    async with pair(unsent=b"an answer", is_held=True) as (near, far):
        near.close()
        near.let_go()
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            assert await asyncio.get_running_loop().run_in_executor(None, blocking_end, far.sock) == b""


async def test_a_write_that_fails_is_said_later_and_what_came_before_may_be_read(pair: MakePair) -> None:
    async with pair() as (near, far):
        await far.send(b"goodbye")
        await eventually(lambda: near.may_have_unread)
        socket.socket.shutdown(near._sock, socket.SHUT_WR)  # which an SSLSocket would do otherwise
        said: list[str] = []
        assert not near.write(b"x", lambda: said.append("failed"))
        assert near.has_failed
        assert not said
        await eventually(lambda: bool(said))
        await Reader(near).has(b"goodbye")


async def test_a_long_write_that_fails_on_its_way_is_said(pair: MakePair) -> None:
    async with pair() as (near, far):
        said: list[str] = []
        assert not near.write(LONG, lambda: said.append("failed"))
        far.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        far.sock.close()
        await eventually(lambda: bool(said))
        assert near.has_failed
        assert said == ["failed"]


# -- directions of TLS


class Renegotiating:
    """A method of a TLS socket that waits for the other direction until it is let go on."""

    def __init__(self, tls: DeviceSocket, method: str, waits_for: type[ssl.SSLError]) -> None:
        self._method, self._waits_for = getattr(tls._sock, method), waits_for
        self.waits, self.calls = True, 0
        setattr(tls._sock, method, self)

    def __call__(self, data: bytes) -> object:
        self.calls += 1
        if self.waits:
            raise self._waits_for
        return self._method(data)


async def turns(number: int = 20) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@over_tls
async def test_a_read_that_waits_for_room_is_not_tried_again_before_there_is_room(pair: MakePair) -> None:
    async with pair() as (near, far):
        reader, sent = Reader(near), Mock()
        assert not near.write(LONG, sent)
        reading = Renegotiating(near, "recv", ssl.SSLWantWriteError)
        await far.send(b"hello")
        await eventually(lambda: reading.calls == 1)
        await turns()
        assert reading.calls == 1
        reading.waits = False
        assert await far.receive(len(LONG)) == LONG
        await reader.has(b"hello")
        await eventually(lambda: sent.called)
        await far.send(b", and more")
        await reader.has(b"hello, and more")


@over_tls
async def test_a_read_that_waits_for_room_goes_on_though_nothing_is_written(pair: MakePair) -> None:
    async with pair() as (near, far):
        reader = Reader(near)
        reading = Renegotiating(near, "recv", ssl.SSLWantWriteError)
        await far.send(b"hello")
        await eventually(lambda: reading.calls > 0)
        reading.waits = False
        await reader.has(b"hello")


@over_tls
async def test_a_read_that_waits_for_room_may_be_stopped_and_begun_again(pair: MakePair) -> None:
    async with pair() as (near, far):
        near.write(LONG)
        reading = Renegotiating(near, "recv", ssl.SSLWantWriteError)
        await far.send(b"hello")
        assert near.read(10) is None
        near.start_reading(never)
        near.stop_reading()
        await turns()
        reading.waits = False
        reader = Reader(near)
        await far.receive(len(LONG))
        await reader.has(b"hello")


@over_tls
@pytest.mark.parametrize("reads", [True, False])
async def test_a_write_that_waits_for_data_is_not_tried_again_before_there_is_some(pair: MakePair, reads: bool) -> None:
    async with pair() as (near, far):
        reader, sent = Reader(near), Mock()
        if not reads:
            near.stop_reading()
        writing = Renegotiating(near, "send", ssl.SSLWantReadError)
        assert not near.write(b"hello", sent)
        await turns()
        assert writing.calls == 1
        writing.waits = False
        await far.send(b"what it waits for")
        assert await far.receive(5) == b"hello"
        await eventually(lambda: sent.called)
        assert near.write(b"and another", never)
        if not reads:
            near.start_reading(reader)
        await reader.has(b"what it waits for")


# -- the end


async def test_a_socket_that_is_closed_calls_nobody(pair: MakePair) -> None:
    async with pair(unread=b"x") as (near, _):
        near.start_reading(never)
        near.write(LONG, never)
        near.close()
        near.close()
        assert near.is_closed
        assert not near.may_have_unread
        assert not near.peer_has_closed
        await asyncio.sleep(0.01)


async def test_a_socket_that_is_closed_holds_nobody(pair: MakePair) -> None:
    """A connection and its socket are freed at once, without the garbage collector."""
    async with pair() as (near, far):
        reader = Reader(near)
        near.write(LONG, reader)
        near.close()
        await asyncio.sleep(0)
        freed = weakref.ref(reader)
        gc.disable()
        try:
            del reader
            assert freed() is None
        finally:
            gc.enable()
        assert far.sock.fileno() >= 0


async def test_the_end_of_the_other_side_shows_though_not_all_is_read(pair: MakePair) -> None:
    async with pair() as (near, far):
        await far.send(b"hello")
        assert not near.peer_has_closed
        far.sock.close()
        await eventually(lambda: near.peer_has_closed)
        await Reader(near).has(b"hello")


async def test_half_closing_ends_our_side_alone_and_does_nothing_over_tls(pair: MakePair) -> None:
    async with pair() as (near, far):
        near.half_close()
        if isinstance(near, TlsDeviceSocket):
            assert near.write(b"x", never)
        else:
            far.sock.setblocking(True)
            assert far.sock.recv(1) == b""
            far.sock.setblocking(False)
        await far.send(b"hello")
        await Reader(near).has(b"hello")
