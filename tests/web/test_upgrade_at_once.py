"""Nearly every device is upgraded before its request is dispatched; from outside, the two ways are
indistinguishable."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cocoa_tornado.presence.grants import Lease, SlotLimits
from cocoa_tornado.presence.local import LocalPresence
from cocoa_tornado.relay.memory import Exchange, MemoryRelay
from cocoa_tornado.web import upgrading
from cocoa_tornado.web.access_log import AccessLog
from cocoa_tornado.web.device_handler import DeviceHandler
from cocoa_tornado.web.handshake import Handshake
from cocoa_tornado.web.newcomer import Newcomer
from cocoa_tornado.web.streams import HttpStream
from testing.raw_device import PING, PONG, TEXT, UPGRADE, frame
from testing.waiting import eventually

from ..harness import Harness
from ..presence.stands import Connections
from ..profiles import examples
from .conftest import StartGateway

Request = tuple[str, str, str, dict[str, str | None]]
"""Method, kind of token, rest of the query, header fields."""

tokens = st.sampled_from(["good", "good", "good", "taken", "expired", "foreign", "", "x", "none"])
queries = st.lists(
    st.sampled_from(
        ["interim=1", "interim=x", "cursors=1", "cursors=false", "cursors=%ff", "after=abc", "token=x", "a=b", "&" * 40]
    ),
    max_size=2,
).map("&".join)
values = ["", "x", "0", "1", "8", "websocket", "close, Upgrade", "http://localhost", "https://evil.example", "null"]
changes: st.SearchStrategy[dict[str, str | None]] = st.dictionaries(
    st.sampled_from([*UPGRADE, "Origin", "Host", "Content-Length", "Expect", "Sec-WebSocket-Protocol"]),
    st.sampled_from([None, *values]),
    max_size=2,
)
requests = st.tuples(st.sampled_from(["GET", "GET", "GET", "POST"]), tokens, queries, changes)


class Lines(logging.Handler):
    """The log lines about requests and devices."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[dict[str, object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = ("status", "outcome", "device_id", "device_version", "remote_ip", "method", "path")
        self.lines.append({"event": record.getMessage()} | {name: getattr(record, name, None) for name in fields})


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    loggers = [logging.getLogger(name) for name in ("cocoa.access", "cocoa.device")]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)


@contextlib.contextmanager
def running(runner: asyncio.Runner, **settings: Any) -> Iterator[Harness]:
    harness = runner.run(Harness.start(duplicate_policy="reject", **settings))
    try:
        yield harness
    finally:
        runner.run(harness.stop())


def head(request: Request, found: dict[str, str], version: str) -> bytes:
    method, kind, query, changed = request
    arguments = "&".join(filter(None, [f"token={found[kind]}" if kind != "none" else "", query]))
    fields = {"Host": "localhost"} | UPGRADE | changed
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([f"{method} /ws?{arguments} HTTP/{version}", *lines, "", ""]).encode()


async def answer(gateway: Harness, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Return its status, header fields and body, and disconnect."""
    device = await gateway.dial()
    device.writer.write(request)
    response = await device.read_response()
    response.headers.pop("date", None)
    await device.end()
    await eventually(lambda: len(gateway.gateway.hub) == 1)
    return response.status, response.headers, response.body


def test_what_is_upgraded_at_once_is_what_the_handler_upgrades(
    runner: asyncio.Runner, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(runner) as gateway:
        found = {"good": gateway.token("doll"), "taken": gateway.token("taken"), "": "", "x": "x"}
        found |= {"expired": gateway.token(lifetime_s=-60), "foreign": gateway.token(secret="s" * 32)}
        runner.run(gateway.raw("taken"))
        counted = gateway.gateway.counters.handshakes

        def judged(request: bytes) -> object:
            counted.clear()
            lines.lines.clear()
            said = runner.run(answer(gateway, request))
            return said, dict(counted), [line for line in lines.lines if line["event"] != "device disconnected"]

        @given(requests, st.sampled_from(["1.1", "1.1", "1.1", "1.0"]))
        @example(("GET", "good", "", {}), "1.1")
        @example(("GET", "good", "cursors=1&interim=true", {"Origin": "http://localhost"}), "1.1")
        @example(("GET", "taken", "", {}), "1.1")
        @examples(60)
        def check(request: Request, version: str) -> None:
            at_once = judged(head(request, found, version))
            with monkeypatch.context() as without:
                without.setattr(upgrading, "recognize", lambda _: None)
                assert judged(head(request, found, version)) == at_once

        check()


@pytest.mark.gen_test
async def test_a_device_that_is_free_is_upgraded_before_its_request_is_dispatched(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatched: list[DeviceHandler] = []
    monkeypatch.setattr(DeviceHandler, "prepare", dispatched.append)
    assert (await gateway.raw("doll")).response.status == 101
    bearer = {"Authorization": f"Bearer {gateway.token('other')}"}
    assert (await gateway.http("GET", "/ws", UPGRADE | bearer)).status == 101
    assert (dispatched, len(gateway.gateway.hub)) == ([], 2)


@pytest.mark.parametrize("cut", [-1, 0, 3, 99], ids=["in the head", "behind the head", "in a frame", "nowhere"])
@pytest.mark.gen_test
async def test_frames_right_behind_the_head_reach_the_connection_however_both_are_cut(
    gateway: Harness, cut: int
) -> None:
    request = head(("GET", "good", "", {}), {"good": gateway.token("doll")}, "1.1")
    sent = request + frame(TEXT, b"hello") + frame(PING, b"!")
    device = await gateway.dial()
    device.writer.write(sent[: len(request) + cut])
    await eventually(lambda: len(gateway.gateway.hub) == (cut >= 0))
    device.writer.write(sent[len(request) + cut :])
    assert (await device.read_response()).status == 101
    assert (await device.read_until(PONG)).payload == b"!"
    assert gateway.gateway.counters.handshakes == {"accepted": 1}


@pytest.mark.gen_test
async def test_a_client_that_closes_or_resets_before_it_says_anything_leaves_nothing_behind(gateway: Harness) -> None:
    for reset in (False, True):
        silent = await gateway.dial()
        await eventually(lambda: gateway.gateway.http_connections == 1)
        if reset:
            silent.reset()
        else:
            silent.writer.write_eof()
            assert await silent.read_to_end() == b""
        await eventually(lambda: gateway.gateway.http_connections == 0)
    assert gateway.gateway.counters.handshakes == {}


async def ask_until_the_end(gateway: Harness) -> None:
    """Send a handshake. Returns when the gateway has closed the connection."""
    device = await gateway.dial()
    device.writer.write(head(("GET", "good", "", {}), {"good": gateway.token("doll")}, "1.1"))
    await device.read_to_end()


UPGRADE_STEPS = [f"web.upgrading.{step}" for step in ("switching_protocols", "device_socket", "DeviceConnection.open")]


@pytest.mark.parametrize(
    ("step", "at_once"),
    [
        *((step, True) for step in UPGRADE_STEPS),
        *((step, False) for step in ("web.streams.HttpStream.give_up_socket", *UPGRADE_STEPS)),
    ],
)
@pytest.mark.logs("cocoa.http", "^handler failed$")
@pytest.mark.gen_test
async def test_where_an_upgrade_fails_the_slot_is_given_back_and_the_connection_closed(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, step: str, at_once: bool
) -> None:
    gateway = await start_gateway()

    def fail(*args: object) -> None:
        raise RuntimeError("planned")

    monkeypatch.setattr(f"cocoa_tornado.{step}", fail)
    if not at_once:
        monkeypatch.setattr(upgrading, "recognize", lambda _: None)
    await ask_until_the_end(gateway)
    presence = gateway.gateway.presence
    await eventually(lambda: presence.slots_taken == 0 and gateway.gateway.http_connections == 0)
    assert "accepted" not in gateway.gateway.counters.handshakes


@pytest.mark.logs("cocoa.http", "^handler failed$")
@pytest.mark.logs("cocoa.access", "^request$")
@pytest.mark.gen_test
async def test_where_the_judgment_itself_fails_the_answer_is_a_500(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_gateway()

    def fail(*args: object) -> None:
        raise RuntimeError("planned")

    monkeypatch.setattr(Handshake, "find_token", fail)
    device = await gateway.upgrade(gateway.token("doll"))
    assert device.response.status == 500
    device.close()
    await eventually(lambda: gateway.gateway.http_connections == 0)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.gen_test
async def test_so_is_it_where_the_client_turns_out_to_have_gone(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    gateway = await start_gateway()

    def find_end(stream: HttpStream) -> bytes:
        stream.close()
        return b""

    def peek_and_lose(newcomer: Newcomer) -> bytes | None:
        received = peek(newcomer)
        if received is not None:
            newcomer.sock.recv(len(received))
        return received

    peek = Newcomer.peek
    if at_once:
        monkeypatch.setattr(Newcomer, "peek", peek_and_lose)
    else:
        monkeypatch.setattr(HttpStream, "_find_unread", find_end)
        monkeypatch.setattr(upgrading, "recognize", lambda _: None)
    await ask_until_the_end(gateway)
    presence, handshakes = gateway.gateway.presence, gateway.gateway.counters.handshakes
    await eventually(lambda: presence.slots_taken == 0 and gateway.gateway.http_connections == 0)
    assert handshakes == {"vanished": 1}


@pytest.mark.gen_test
async def test_a_handshake_that_waited_is_not_upgraded_without_a_slot() -> None:
    """A new term has begun meanwhile; the lease of its grant is valid still."""
    presence = LocalPresence(SlotLimits, MemoryRelay(Exchange()), lambda: 1.0)
    presence.start(Connections())
    grant = await presence.claim("doll")
    live = SimpleNamespace(now=SimpleNamespace(keys=SimpleNamespace(still_trusts=lambda identity: True)))
    devices = SimpleNamespace(presence=presence, wall_clock=lambda: 1.0)
    blocked = SimpleNamespace(holds=lambda device_id, now: False)
    context: Any = SimpleNamespace(devices=devices, live=live, blocked=blocked)
    identity: Any = SimpleNamespace(device_id="doll")
    upgrader = upgrading.Upgrader(context, AccessLog())
    assert upgrader._may_upgrade(identity, grant)
    presence._slots.rejoin(Lease("later"), 5.0, 8.5, 1.0)
    assert grant.lease.is_valid(presence.clock())
    assert not upgrader._may_upgrade(identity, grant)
