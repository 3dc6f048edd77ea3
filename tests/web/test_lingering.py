"""Sockets that are closed in stages: who is heard out, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from cocoa_tornado.web import lingering as module
from cocoa_tornado.web.lingering import Lingering
from testing.waiting import eventually


@pytest.fixture
def lingering() -> Iterator[Lingering]:
    lingering = Lingering(max_sockets=2)
    yield lingering
    lingering.close()


@pytest.fixture
def pair() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Ours and the client's, as often as asked for."""
    clients: list[socket.socket] = []

    def make() -> tuple[socket.socket, socket.socket]:
        ours, client = socket.socketpair()
        ours.setblocking(False)
        client.settimeout(10)
        clients.append(client)
        return ours, client

    yield make
    for client in clients:
        client.close()


Pair = Callable[[], tuple[socket.socket, socket.socket]]


@pytest.mark.gen_test
async def test_a_client_is_told_at_once_that_nothing_more_comes_and_heard_until_it_closes(
    lingering: Lingering, pair: Pair
) -> None:
    ours, client = pair()
    lingering.close_in_stages(ours)
    assert client.recv(1) == b""
    for _ in range(100):
        await asyncio.get_running_loop().run_in_executor(None, client.sendall, bytes(64 * 1024))
    assert len(lingering) == 1
    client.close()
    await eventually(lambda: len(lingering) == 0)
    assert ours.fileno() == -1


@pytest.mark.gen_test
async def test_a_client_that_is_silent_has_its_answer(
    lingering: Lingering, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.02)
    ours, _ = pair()
    lingering.close_in_stages(ours)
    await eventually(lambda: len(lingering) == 0)
    assert ours.fileno() == -1


@pytest.mark.gen_test
async def test_a_client_that_never_stops_is_heard_for_so_many_bytes(
    lingering: Lingering, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 100_000)
    ours, client = pair()
    lingering.close_in_stages(ours)
    client.setblocking(False)
    sent = 0
    while len(lingering):
        with contextlib.suppress(BlockingIOError):
            sent += client.send(bytes(1000))
        await asyncio.sleep(0)
    assert sent >= 100_000
    with pytest.raises(BrokenPipeError):
        client.send(b"x")


@pytest.mark.gen_test
async def test_a_client_that_drips_is_heard_for_so_long(
    lingering: Lingering, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.02)
    monkeypatch.setattr(module, "TIME_S", 0.1)
    ours, client = pair()
    lingering.close_in_stages(ours)
    while len(lingering):
        client.send(b"x")
        await asyncio.sleep(0.001)
    with pytest.raises(BrokenPipeError):
        client.send(b"x")


@pytest.mark.gen_test
async def test_where_too_many_linger_the_one_that_had_the_most_time_goes(lingering: Lingering, pair: Pair) -> None:
    sockets = [pair()[0] for _ in range(3)]
    for sock in sockets:
        lingering.close_in_stages(sock)
    assert [sock.fileno() == -1 for sock in sockets] == [True, False, False]


@pytest.mark.gen_test
async def test_a_client_that_is_gone_costs_nothing(lingering: Lingering) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        ours = socket.socket()
        lingering.close_in_stages(ours)
        assert (ours.fileno(), len(lingering)) == (-1, 0)


@pytest.mark.gen_test
async def test_at_the_end_all_are_closed_and_whoever_comes_later(lingering: Lingering, pair: Pair) -> None:
    before, after = pair()[0], pair()[0]
    lingering.close_in_stages(before)
    lingering.close()
    lingering.close_in_stages(after)
    lingering.close()
    assert (before.fileno(), after.fileno(), len(lingering)) == (-1, -1, 0)
