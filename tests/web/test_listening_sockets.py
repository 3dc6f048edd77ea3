from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from cocoa_tornado.errors import ServiceError
from cocoa_tornado.web.listening_sockets import bind, reserve


@pytest.fixture
def opened() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def test_a_reserved_port_is_shared_by_workers_and_by_nobody_else(opened: contextlib.ExitStack) -> None:
    (reserved,) = map(opened.enter_context, reserve("127.0.0.1", 0))
    port = reserved.getsockname()[1]
    for refused in (reserve, bind):
        with pytest.raises(ServiceError, match=f"cannot listen on 127.0.0.1 port {port}"):
            refused("127.0.0.1", port)
    workers = [opened.enter_context(bind("127.0.0.1", port, shared=True)[0]) for _ in range(2)]
    for refused in (reserve, bind):
        with pytest.raises(ServiceError, match=f"cannot listen on 127.0.0.1 port {port}"):
            refused("127.0.0.1", port)
    # The reservation takes no connection from them.
    for _ in range(20):
        opened.enter_context(socket.create_connection(("127.0.0.1", port)))
    assert sum(accepted(worker) for worker in workers) == 20


def test_a_port_of_another_program_cannot_be_reserved(opened: contextlib.ExitStack) -> None:
    (other,) = map(opened.enter_context, bind("127.0.0.1", 0))
    with pytest.raises(ServiceError, match="cannot listen"):
        reserve("127.0.0.1", other.getsockname()[1])


def test_a_port_with_old_connections_can_be_reserved_at_once() -> None:
    """They are in TIME_WAIT: the server closed them first."""
    with bind("127.0.0.1", 0)[0] as old:
        port = old.getsockname()[1]
        old.setblocking(True)
        with socket.create_connection(("127.0.0.1", port)) as client:
            old.accept()[0].close()
            assert client.recv(1) == b""
    for sock in (*reserve("127.0.0.1", port), *bind("127.0.0.1", port, shared=True)):
        sock.close()


def accepted(listening: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listening.accept()[0].close()
            count += 1
    return count
