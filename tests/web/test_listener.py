"""Accepting: the bound on connections that are not a device's, faults of accept, and the sockets to listen on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.web import Application, RequestHandler

from cocoa_tornado.counters import Counters
from cocoa_tornado.errors import ServiceError
from cocoa_tornado.rules.accepting import SERVED_PER_TURN
from cocoa_tornado.web.listener import Listener, ListenerOptions, TryUpgrade
from cocoa_tornado.web.listening_sockets import bind
from cocoa_tornado.web.newcomer import Newcomer
from testing.certificates import write_certificate
from testing.raw_device import TEXT, UPGRADE, RawDevice
from testing.waiting import eventually

from ..harness import Harness
from .conftest import StartGateway

HEALTH = b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
CROWD = pytest.mark.logs("cocoa.listener", "^too many connections that are not a device's: newcomers wait$")


def pending(gateway: Harness) -> int:
    return gateway.gateway.http_connections


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "cocoa.listener"]


async def is_not_served(device: RawDevice) -> bool:
    """It has asked for something, and hears nothing while the gateway has all the time it needs."""
    answer = asyncio.ensure_future(device.reader.read(1))
    await asyncio.wait({answer}, timeout=0.2)
    answer.cancel()
    return not answer.done()


# -- connections that are not a device's


@CROWD
@pytest.mark.gen_test
async def test_above_the_bound_a_newcomer_waits_until_another_is_gone(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_pending_connections=3)
    silent = [await gateway.dial() for _ in range(3)]
    await eventually(lambda: pending(gateway) == 3)
    fourth = await gateway.dial()
    fourth.writer.write(HEALTH)
    assert await is_not_served(fourth)
    silent[0].close()
    assert (await fourth.read_response()).status == 200
    assert pending(gateway) == 3


@pytest.mark.gen_test
async def test_a_connection_that_is_a_devices_does_not_count(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_pending_connections=3)
    for number in range(5):
        device = await gateway.raw(f"doll-{number}")
    await eventually(lambda: pending(gateway) == 0)
    assert (await gateway.metrics())["cocoa_connections"] == 5
    device.close()
    await eventually(lambda: len(gateway.gateway.hub) == 4)
    assert pending(gateway) <= 1, "the end of a device's connection counted"


@pytest.mark.gen_test
async def test_a_handshake_that_was_refused_and_one_that_was_given_up_leave_nothing_behind(gateway: Harness) -> None:
    refused = await gateway.upgrade(None)
    assert refused.response.status == 401
    half = await gateway.dial()
    half.writer.write(b"GET /ws HTTP/1.1\r\n")
    await eventually(lambda: pending(gateway) == 2)
    refused.reset()
    half.reset()
    await eventually(lambda: pending(gateway) == 0)


@CROWD
@pytest.mark.gen_test
async def test_silent_connections_at_the_bound_are_gone_after_the_header_timeout(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(max_pending_connections=2, header_timeout_s=0.3)
    for _ in range(4):
        await gateway.dial()
    assert (await gateway.raw("doll")).response.status == 101


@CROWD
@pytest.mark.gen_test
async def test_idle_connections_are_in_the_metrics_and_so_are_the_times_that_newcomers_waited(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(max_pending_connections=2)
    idle = await gateway.dial()
    await eventually(lambda: pending(gateway) == 1)
    values = await gateway.metrics()
    assert values["cocoa_http_connections"] == 2
    assert values['cocoa_accept_pauses_total{reason="pending"}'] == 1
    idle.close()


@CROWD
@pytest.mark.gen_test
async def test_a_crowd_at_the_bound_is_one_line_at_its_beginning_and_one_at_its_end(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await start_gateway(max_pending_connections=2)
    crowd = [await gateway.dial() for _ in range(20)]
    await eventually(lambda: pending(gateway) == 2)
    assert lines(caplog) == ["too many connections that are not a device's: newcomers wait"]
    for client in crowd[2:]:
        client.close()
    for client in crowd[:2]:
        client.close()
    await eventually(lambda: pending(gateway) == 0)
    assert lines(caplog)[-1] == "accepting connections again"


@CROWD
@pytest.mark.gen_test
async def test_a_crowd_that_comes_and_goes_cannot_flood_the_log(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await start_gateway(max_pending_connections=1)
    for _ in range(50):
        client = await gateway.dial()
        await eventually(lambda: pending(gateway) == 1)
        client.close()
        await eventually(lambda: pending(gateway) == 0)
    assert len(lines(caplog)) == 20


@pytest.mark.gen_test
async def test_a_client_that_takes_no_byte_of_its_answers_is_cut_off(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(write_wait_s=0.2, header_timeout_s=60.0)
    unreading = await gateway.dial(receive_buffer=4096)
    request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"

    async def ask() -> None:
        # In small portions, because requests that were read before the cut are still answered. The transport knows that
        # the connection has ended before this task is cancelled.
        while not unreading.writer.is_closing():
            unreading.writer.write(request * 4)
            await asyncio.sleep(0.01)

    asking = asyncio.ensure_future(ask())
    try:
        await eventually(lambda: pending(gateway) == 1)
        await eventually(lambda: pending(gateway) == 0)
    finally:
        asking.cancel()


@pytest.mark.gen_test
async def test_a_client_that_takes_its_time_to_read_is_not_cut_off(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(write_wait_s=0.2)
    idle = await gateway.dial()
    assert (await idle.request("GET", "/metrics")).status == 200
    await asyncio.sleep(0.6)
    assert (await idle.request("GET", "/metrics")).status == 200


# -- TLS


@pytest.mark.gen_test
async def test_a_connection_counts_from_before_its_tls_handshake(start_gateway: StartGateway, tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path)
    gateway = await start_gateway(tls_cert=certificate.cert, tls_key=certificate.key)
    silent = await gateway.dial()
    await eventually(lambda: pending(gateway) == 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, ssl=certificate.client_context())
    device = RawDevice(reader, writer)
    assert (await device.request("GET", f"/ws?token={gateway.token()}", UPGRADE)).status == 101
    await eventually(lambda: pending(gateway) == 1)
    await gateway.publish("doll", "hello")
    assert (await device.read_until(TEXT)).payload.endswith(b'"text":"hello"}')
    silent.close()
    await eventually(lambda: pending(gateway) == 0)
    await device.end()


# -- accept fails


class FailingSocket(socket.socket):
    """A listening socket whose ``accept`` succeeds ``lasts`` times and then fails a set number of times."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.failures: list[int] = []
        self.attempts = self.lasts = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.attempts += 1
        if self.lasts:
            self.lasts -= 1
        elif self.failures:
            raise OSError(self.failures.pop(), "told to fail")
        return super().accept()


@pytest.fixture
def failing(start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> list[FailingSocket]:
    """The listening sockets of the gateways that the test starts."""
    made: list[FailingSocket] = []

    def bind_failing(host: str, port: int, **options: bool) -> list[socket.socket]:
        made.extend(FailingSocket(fileno=sock.detach()) for sock in bind(host, port, **options))
        for sock in made:
            sock.setblocking(False)
        return list(made)

    monkeypatch.setattr("cocoa_tornado.service.listeners.bind", bind_failing)
    return made


@pytest.mark.parametrize(
    ("number", "times", "event"),
    [
        pytest.param(
            errno.EMFILE,
            2,
            "out of file descriptors: no new connections for now",
            marks=pytest.mark.logs("cocoa.listener", "^out of file descriptors"),
        ),
        pytest.param(
            errno.ENOBUFS,
            1,
            "out of memory for sockets: no new connections for now",
            marks=pytest.mark.logs("cocoa.listener", "^out of memory for sockets"),
        ),
        pytest.param(
            errno.EINVAL,
            1,
            "accepting fails: no new connections for now",
            marks=pytest.mark.logs("cocoa.listener", "^accepting fails"),
        ),
    ],
)
@pytest.mark.gen_test
async def test_when_accept_fails_it_rests_and_says_so_once_and_goes_on(
    start_gateway: StartGateway,
    failing: list[FailingSocket],
    caplog: pytest.LogCaptureFixture,
    number: int,
    times: int,
    event: str,
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await start_gateway()
    device = await gateway.raw("doll")
    await asyncio.sleep(0)
    (listening,) = failing
    listening.failures, listening.attempts = [number] * times, 0
    newcomer = asyncio.ensure_future(gateway.raw("newcomer"))
    await eventually(lambda: listening.attempts == 1)
    await gateway.publish("doll", "still served")
    assert (await device.read_until(TEXT)).payload.endswith(b'"text":"still served"}')
    assert listening.attempts == 1, "it did not rest"
    assert (await newcomer).response.status == 101
    assert listening.attempts <= 4
    assert lines(caplog) == [event, "accepting connections again"]
    label = {"out of f": "descriptors", "out of m": "memory", "acceptin": "fault"}[event[:8]]
    assert (await gateway.metrics())[f'cocoa_accept_pauses_total{{reason="{label}"}}'] == 1


@pytest.mark.gen_test
async def test_a_newcomer_that_is_gone_before_it_is_accepted_disturbs_nobody(
    start_gateway: StartGateway, failing: list[FailingSocket], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gateway = await start_gateway()
    failing[0].failures = [errno.ECONNABORTED] * 200
    assert (await gateway.http("GET", "/api/v1/health")).status == 200
    assert lines(caplog) == []


# -- a crowd


@contextlib.contextmanager
def crowd(address: Any, count: int) -> Iterator[list[socket.socket]]:
    """This many clients connect and send a request while the event loop is blocked."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(count)]
        for client in clients:
            client.sendall(HEALTH)
            client.setblocking(False)
        yield clients


def upgrade_nobody(sock: socket.socket, received: bytes, peer: str) -> bool:
    return False


@contextlib.asynccontextmanager
async def listening(
    try_upgrade: TryUpgrade = upgrade_nobody, **options: Any
) -> AsyncIterator[tuple[Listener, Any, list[str]]]:
    """A listener on a port of its own, its address, and the ports of the clients that have been served."""
    served: list[str] = []

    class Health(RequestHandler):
        def get(self) -> None:
            served.append(self.request.connection.context.address[1])  # type: ignore[union-attr]

    application = Application([("/api/v1/health", Health)])
    listener = Listener(application, ListenerOptions(**options), lambda: None, Counters(), lambda: 0, try_upgrade)
    sockets = bind("127.0.0.1", 0)
    listener.start(sockets)
    try:
        yield listener, sockets[0].getsockname(), served
    finally:
        listener.stop()
        await listener.close_connections()


@pytest.mark.gen_test
async def test_a_crowd_is_taken_from_the_kernels_queue_at_once_and_served_in_the_order_in_which_it_came() -> None:
    async with listening() as (listener, address, served):
        with crowd(address, 100) as clients:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert (listener.pending, len(served)) == (100, 0)
            await eventually(lambda: len(served) == 100)
            assert served == [client.getsockname()[1] for client in clients]
        await eventually(lambda: listener.pending == 0)


@pytest.mark.gen_test
async def test_what_comes_in_for_connected_devices_waits_for_a_few_of_a_crowd_only() -> None:
    loop = asyncio.get_running_loop()
    came_after: list[int] = []
    handed_over_after: list[int] = []

    def note_and_upgrade_nobody(sock: socket.socket, received: bytes, peer: str) -> bool:
        came = len(came_after)
        came_after.append(came)
        # As a batch of records comes from the broker's thread, in the middle of a turn.
        loop.call_soon_threadsafe(lambda: handed_over_after.append(len(came_after) - came))
        return False

    async with listening(note_and_upgrade_nobody) as (_, address, served):
        with crowd(address, 100):
            await eventually(lambda: len(served) == 100)
    assert len(handed_over_after) == 100
    assert max(handed_over_after) <= SERVED_PER_TURN


@pytest.mark.gen_test
async def test_a_crowd_larger_than_may_wait_is_served_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with listening(max_pending=200) as (_, address, served):
        with crowd(address, 180):
            await eventually(lambda: len(served) == 180)
    assert lines(caplog) == []


@pytest.mark.gen_test
async def test_when_all_are_closed_so_are_those_who_wait_to_be_served() -> None:
    async with listening() as (listener, address, served):
        with crowd(address, 100) as clients:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            listener.stop()
            await listener.close_connections()
            assert listener.pending == 0
            assert len(served) <= SERVED_PER_TURN
            for client in clients:
                with contextlib.suppress(ConnectionResetError):
                    while await asyncio.get_running_loop().sock_recv(client, 1000):
                        pass


@pytest.mark.gen_test
async def test_those_who_wait_when_a_listener_stops_are_served() -> None:
    async with listening() as (listener, address, served):
        with crowd(address, 100):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            listener.stop()
            await eventually(lambda: len(served) == 100)


@pytest.mark.logs("cocoa.listener", "^upgrade failed$")
@pytest.mark.gen_test
async def test_an_upgrade_that_fails_closes_its_own_connection_and_no_other() -> None:
    failures = [RuntimeError("planned")]

    def fail_once(sock: socket.socket, received: bytes, peer: str) -> bool:
        if failures:
            raise failures.pop()
        return False

    async with listening(fail_once) as (listener, address, served):
        with crowd(address, 10) as clients:
            await eventually(lambda: len(served) == 9)
            with contextlib.suppress(ConnectionResetError):  # its request was not read
                assert await asyncio.get_running_loop().sock_recv(clients[0], 1) == b""
        await eventually(lambda: listener.pending == 0)


@pytest.mark.gen_test
async def test_a_newcomer_that_the_kernel_does_not_watch_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "planned")

    async with listening() as (listener, address, _):
        monkeypatch.setattr(Newcomer, "wait", fail)
        with socket.create_connection(address) as client:
            client.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
        await eventually(lambda: listener.pending == 0)


@pytest.mark.logs("cocoa.listener", "^out of file descriptors")
@pytest.mark.gen_test
async def test_those_accepted_before_accept_fails_are_served(
    start_gateway: StartGateway, failing: list[FailingSocket]
) -> None:
    await start_gateway(header_timeout_s=60)
    with crowd(failing[0].getsockname(), 20) as clients:
        failing[0].lasts, failing[0].failures = 19, [errno.EMFILE]
        served = [asyncio.ensure_future(asyncio.get_running_loop().sock_recv(client, 12)) for client in clients]
        await eventually(lambda: all(answer.done() for answer in served[:19]))
        assert not served[19].done()
        assert await served[19] == b"HTTP/1.1 200"


# -- the sockets


def test_a_taken_port_is_one_line_and_leaves_no_socket_open() -> None:
    # Warnings are errors here, and so is that of a socket which is forgotten.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"cannot listen on localhost port {port}: "):
            bind("localhost", port)


def test_when_the_second_address_cannot_be_had_the_first_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, name, ("127.0.0.1", 0)) for name in ("one", "the same")]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: entries)
    with pytest.raises(ServiceError, match="cannot listen on twice port 0: "):
        bind("twice", 0)


def test_a_host_that_is_none_is_one_line() -> None:
    with pytest.raises(ServiceError, match=r"cannot listen on no\.such\.host\.invalid port 0: "):
        bind("no.such.host.invalid", 0)


def test_all_addresses_of_a_host_share_the_port_that_was_picked() -> None:
    sockets = bind("localhost", 0)
    assert len({sock.getsockname()[1] for sock in sockets}) == 1
    for sock in sockets:
        sock.close()


@pytest.mark.gen_test
async def test_a_stopped_listener_takes_nobody_and_may_be_stopped_again() -> None:
    listener = Listener(Application(), ListenerOptions(), lambda: None, Counters(), lambda: 0)
    sockets = bind("127.0.0.1", 0)
    address = sockets[0].getsockname()
    listener.start(sockets)
    assert repr(listener) == "<Listener on 1 sockets <Gate 0 of 4096 pending, 0 to be served, open>>"
    listener.stop()
    listener.stop()
    await listener.close_connections()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address).close()


@pytest.mark.parametrize("host", ["::", "0:0:0:0:0:0:0:0"])
@pytest.mark.gen_test
async def test_a_gateway_on_every_address_is_heard_over_ipv4_and_over_ipv6(
    start_gateway: StartGateway, host: str
) -> None:
    gateway = await start_gateway(host=host)
    assert gateway.gateway.url == f"http://[{host}]:{gateway.port}"
    for address in ("127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])):
        device = RawDevice(*await asyncio.open_connection(address, gateway.port))
        assert (await device.request("GET", "/api/v1/health")).status == 200
        await device.end()


def test_a_machine_without_ipv6_listens_on_ipv4_alone_where_every_address_is_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NoIpv6(socket.socket):
        def bind(self, address: Any) -> None:
            if self.family == socket.AF_INET6:
                raise OSError(errno.EADDRNOTAVAIL, "told to fail")
            super().bind(address)

    monkeypatch.setattr("socket.socket", NoIpv6)
    (sock,) = bind("::", 0)
    assert sock.family == socket.AF_INET
    sock.close()
    with pytest.raises(ServiceError):
        bind("::1", 0)
