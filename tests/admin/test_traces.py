"""Traces of messages: every step and every outcome, on one server and on several."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest

from cocoa_tornado.admin.trace_answers import TraceAnswer, TraceDevice, TraceStep, merge_traces
from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.connection.connection import DeviceConnection
from cocoa_tornado.rules.records import Record
from testing.raw_device import TEXT
from testing.waiting import eventually

from ..harness import RESULTS, Harness
from .conftest import StartAdmin, admin_token, ask

pytestmark = pytest.mark.gen_test(timeout=60)
Two = tuple[Harness, Harness]


async def trace(gateway: Harness, message_id: str, *scopes: str) -> dict[str, Any]:
    token = admin_token(*scopes) if scopes else None
    status, body, _ = await ask(gateway, "GET", f"/messages/{quote(message_id, safe='')}", token=token)
    assert status == 200, body
    assert isinstance(body, dict)
    return body


async def outcomes(gateway: Harness, message_id: str) -> dict[str, str | None]:
    return {row["device_id"]: row["outcome"] for row in (await trace(gateway, message_id))["devices"]}


async def becomes(gateway: Harness, message_id: str, expected: dict[str, str | None]) -> dict[str, Any]:
    """Ask until the trace has this outcome."""
    for _ in range(500):
        if await outcomes(gateway, message_id) == expected:
            return await trace(gateway, message_id)
        await asyncio.sleep(0.01)
    pytest.fail(f"{await outcomes(gateway, message_id)} is not {expected}")


def steps(body: dict[str, Any]) -> list[str]:
    return [step["step"] for step in body["steps"]]


async def publish(gateway: Harness, to: dict[str, object], text: str = "hello", **fields: object) -> None:
    await gateway.broker.publish(
        RESULTS, str(to.get("device", "")), json.dumps({"to": to, "text": text} | fields).encode()
    )


# -- the answer


@pytest.mark.parametrize("message_id", ["%ff", "a" * 600])
async def test_what_cannot_be_an_id_is_a_400(gateway: Harness, message_id: str) -> None:
    status, body, _ = await ask(gateway, "GET", f"/messages/{message_id}")
    assert (status, body) == (400, {"message": "Invalid id"})


async def test_a_message_is_found_by_topic_partition_and_offset_its_slashes_encoded_or_not(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    for text in ("one", "two"):
        await gateway.publish("doll", text)
        await device.read_until(TEXT)
    for message_id in (f"{RESULTS}/0/1", quote(f"{RESULTS}/0/1", safe="")):
        status, body, _ = await ask(gateway, "GET", f"/messages/{message_id}")
        assert (status, body["id"], body["devices"]) == (
            200,
            f"{RESULTS}/0/1",
            [{"device_id": "doll", "outcome": "written"}],
        )
        assert "two" in body["text"]


async def test_without_the_scope_for_text_there_is_its_length(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    await publish(gateway, {"device": "doll"}, "a secret", id="m")
    payload = (await device.read_until(TEXT)).payload
    body = await trace(gateway, "m", "admin:read")
    assert "secret" not in json.dumps(body)
    assert body["length"] == len(payload)
    assert (await trace(gateway, "m", "admin:read", "admin:text"))["text"] == payload.decode()


async def test_nothing_is_remembered_where_that_is_switched_off(start_admin: StartAdmin) -> None:
    gateway = await start_admin(trace_bytes=0)
    device = await gateway.raw("doll")
    await publish(gateway, {"device": "doll"}, id="m")
    await device.read_until(TEXT)
    assert (await ask(gateway, "GET", "/messages/m"))[0] == 404


# -- without a mailbox


async def test_produced_read_addressed_and_written(start_admin: StartAdmin) -> None:
    gateway = await start_admin(server_name="here")
    device = await gateway.raw("doll")
    await publish(gateway, {"device": "doll"}, id="m")
    await device.read_until(TEXT)
    body = await trace(gateway, "m")
    assert steps(body) == ["produced", "read", "addressed", "written"]
    assert [step["server"] for step in body["steps"]] == [None, "here", "here", "here"]
    assert [step["at"] is None for step in body["steps"]] == [False, False, False, True]
    assert (body["counts"], body["missing"]) == ({"written": 1}, [])


async def test_not_connected(gateway: Harness) -> None:
    await publish(gateway, {"device": "doll"}, id="m")
    body = await becomes(gateway, "m", {"doll": "not_connected"})
    assert steps(body) == ["produced", "read", "addressed"]


async def test_a_message_for_a_group_has_a_row_for_each_member(gateway: Harness) -> None:
    devices = [await gateway.upgrade(gateway.token(name, groups=["kitchen"])) for name in ("doll", "bear")]
    await publish(gateway, {"group": "kitchen"}, id="m")
    for device in devices:
        await device.read_until(TEXT)
    assert (await trace(gateway, "m"))["counts"] == {"written": 2}
    assert await outcomes(gateway, "m") == {"bear": "written", "doll": "written"}


async def test_a_message_for_several_devices_says_which_is_away(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    await publish(gateway, {"devices": ["doll", "away"]}, id="m")
    await device.read_until(TEXT)
    assert await outcomes(gateway, "m") == {"away": "not_connected", "doll": "written"}


async def test_a_group_without_members(gateway: Harness) -> None:
    await publish(gateway, {"group": "nobody"}, id="m")
    body = await trace(gateway, "m")
    assert (body["devices"], body["counts"]) == ([], {"not_connected": 1})
    assert "addressed" not in steps(body)


async def test_no_more_than_a_thousand_devices_are_shown() -> None:
    devices = tuple(TraceDevice(f"doll-{number:04}", "written") for number in range(1000))
    many = [
        TraceAnswer(records=1, devices=devices, others=5),
        TraceAnswer(records=1, devices=(TraceDevice("bear", "waiting"),)),
    ]
    merged = merge_traces("m", many, [])
    assert merged is not None
    body = merged.body()
    shown = body["devices"]
    assert isinstance(shown, list)
    assert (len(shown), body["counts"]) == (1000, {"waiting": 1, "written": 1000, "others": 5})


async def test_what_says_more_of_a_device_counts() -> None:
    answers = [
        TraceAnswer(records=1, devices=(TraceDevice("doll", None), TraceDevice("bear", "not_connected"))),
        TraceAnswer(
            records=1,
            steps=(TraceStep(2.0, "b", "stored"), TraceStep(None, "b", "written"), TraceStep(1.0, None, "produced")),
            devices=(TraceDevice("doll", "fault"), TraceDevice("bear", "written")),
        ),
    ]
    for order in (answers, answers[::-1]):
        merged = merge_traces("m", order, ["c"])
        assert merged is not None
        body = merged.body()
        assert body["devices"] == [
            {"device_id": "bear", "outcome": "written"},
            {"device_id": "doll", "outcome": "fault"},
        ]
        assert (steps(body), body["missing"]) == (["produced", "stored", "written"], ["c"])


async def test_expired_before_it_was_routed(gateway: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    await gateway.raw("doll")
    router = gateway.gateway.wiring.router
    monkeypatch.setattr(router._local, "_wall_clock", lambda: 9e9)
    await publish(gateway, {"device": "doll"}, id="m", ttl=1)
    await becomes(gateway, "m", {"doll": "expired"})


@pytest.mark.logs("cocoa.router", "^routing failed$")
async def test_fault(gateway: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    await gateway.raw("doll")

    def fail(*arguments: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(DeviceConnection, "send", fail)
    await publish(gateway, {"device": "doll"}, id="m")
    await becomes(gateway, "m", {"doll": "fault"})


@contextmanager
def nothing_is_written() -> Iterator[None]:
    """As if no socket took a byte."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeviceConnection, "flush", lambda _: None)
        patch.setattr(DeviceConnection, "_push_after_flush", lambda *_: False)
        yield


def connection_of(gateway: Harness, device_id: str) -> DeviceConnection:
    (connection,) = gateway.gateway.hub.clients_of(device_id)
    assert isinstance(connection, DeviceConnection)
    return connection


async def test_waiting_for_a_slow_device_and_lost_with_it(gateway: Harness) -> None:
    await gateway.raw("slow")
    with nothing_is_written():
        await publish(gateway, {"device": "slow"}, id="m")
        await becomes(gateway, "m", {"slow": "waiting"})
        connection_of(gateway, "slow").cut()
        await becomes(gateway, "m", {"slow": "not_connected"})


async def test_slow_consumer(start_admin: StartAdmin) -> None:
    gateway = await start_admin(outbox_max_messages=2)
    await gateway.raw("slow")
    with nothing_is_written():
        connection = connection_of(gateway, "slow")
        for number in range(3):
            await publish(gateway, {"device": "slow"}, id=f"m{number}")
        await eventually(lambda: not connection.is_open)
        for number in range(3):
            await becomes(gateway, f"m{number}", {"slow": "slow_consumer"})


async def test_overflow_of_an_outbox_drops_those_of_low_priority(start_admin: StartAdmin) -> None:
    gateway = await start_admin(outbox_max_messages=2)
    await gateway.raw("slow")
    with nothing_is_written():
        await publish(gateway, {"device": "slow"}, id="low", priority="low")
        for number in range(2):
            await publish(gateway, {"device": "slow"}, id=f"m{number}")
        await becomes(gateway, "low", {"slow": "overflow"})
        await becomes(gateway, "m1", {"slow": "waiting"})


async def test_collapsed_in_an_outbox(gateway: Harness) -> None:
    await gateway.raw("slow")
    with nothing_is_written():
        for name in ("older", "newer"):
            await publish(gateway, {"device": "slow"}, id=name, collapse_key="k")
        await becomes(gateway, "older", {"slow": "collapsed"})
        await becomes(gateway, "newer", {"slow": "waiting"})


async def test_expired_in_an_outbox(gateway: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    await gateway.raw("slow")
    with nothing_is_written():
        await publish(gateway, {"device": "slow"}, id="m", ttl=3600)
        await becomes(gateway, "m", {"slow": "waiting"})
        connection = connection_of(gateway, "slow")
        monkeypatch.setattr(DeviceConnection, "now_ms", lambda _: 9e12)
        connection.protocol.outbox.expire(connection)
        await becomes(gateway, "m", {"slow": "expired"})


# -- with a mailbox


async def test_waiting_in_a_box_then_written_then_acknowledged(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://")
    await publish(gateway, {"device": "doll"}, id="m")
    body = await becomes(gateway, "m", {"doll": "waiting"})
    assert steps(body) == ["produced", "read", "addressed", "stored"]
    device = await gateway.raw("doll")
    cursor = json.loads((await device.read_until(TEXT)).payload)["cursor"]
    await becomes(gateway, "m", {"doll": "written"})
    device.send(TEXT, json.dumps({"type": "ack", "cursor": cursor}).encode())
    body = await becomes(gateway, "m", {"doll": "acknowledged"})
    assert steps(body) == ["produced", "read", "addressed", "stored", "written", "acknowledged"]


async def test_overflow_of_a_box(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://", mailbox_max_messages=1)
    await publish(gateway, {"device": "doll"}, id="older")
    await publish(gateway, {"device": "doll"}, id="newer")
    await becomes(gateway, "older", {"doll": "overflow"})
    await becomes(gateway, "newer", {"doll": "waiting"})


async def test_collapsed_in_a_box(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://")
    for name in ("older", "newer"):
        await publish(gateway, {"device": "doll"}, id=name, collapse_key="k")
    await becomes(gateway, "older", {"doll": "collapsed"})
    await becomes(gateway, "newer", {"doll": "waiting"})


async def test_expired_in_a_box(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://")
    await publish(gateway, {"device": "doll"}, id="m", ttl=1)
    await becomes(gateway, "m", {"doll": "expired"})


async def test_a_stored_message_for_a_group_has_a_row_for_each_member(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://")
    device = await gateway.upgrade(gateway.token("doll", groups=["kitchen"]))
    await (await gateway.upgrade(gateway.token("bear", groups=["kitchen"]))).end()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("bear"))
    await publish(gateway, {"group": "kitchen"}, id="m")
    await device.read_until(TEXT)
    await becomes(gateway, "m", {"doll": "written", "bear": "waiting"})


async def test_a_message_that_is_never_stored_is_waiting_then_written(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://")
    device = await gateway.raw("doll")
    await publish(gateway, {"device": "doll"}, id="stored")
    with nothing_is_written():
        await publish(gateway, {"device": "doll"}, id="m", ttl=0)
        await publish(gateway, {"device": "doll"}, id="interim", session_id="s", final=False)
        for name in ("m", "interim"):
            await becomes(gateway, name, {"doll": "waiting"})
    connection_of(gateway, "doll").flush()
    await publish(gateway, {"device": "doll"}, id="last")
    while json.loads((await device.read_until(TEXT)).payload)["id"] != "last":
        pass
    for name in ("m", "interim"):
        body = await becomes(gateway, name, {"doll": "written"})
        assert steps(body) == ["produced", "read", "addressed", "written"]


async def test_a_message_that_is_never_stored_is_not_connected_if_its_device_is_away(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://")
    await (await gateway.upgrade(gateway.token("bear", groups=["kitchen"]))).end()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("bear"))
    await publish(gateway, {"device": "doll"}, id="m", ttl=0)
    await becomes(gateway, "m", {"doll": "not_connected"})
    await publish(gateway, {"group": "kitchen"}, id="group", ttl=0)
    await becomes(gateway, "group", {"bear": "not_connected"})


async def test_a_message_that_is_never_stored_is_lost_with_its_connection(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://")
    await gateway.raw("slow")
    with nothing_is_written():
        await publish(gateway, {"device": "slow"}, id="m", ttl=0)
        await becomes(gateway, "m", {"slow": "waiting"})
        connection_of(gateway, "slow").cut()
        await becomes(gateway, "m", {"slow": "not_connected"})


async def test_a_message_that_is_never_stored_is_an_overflow_if_it_cannot_wait(
    start_admin: StartAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device has yet to read the messages that were stored before."""
    gateway = await start_admin(mailbox="memory://")
    monkeypatch.setattr("cocoa_tornado.connection.transients.MOST_MESSAGES", 1)
    with nothing_is_written():
        for number in range(200):
            await publish(gateway, {"device": "slow"}, id=f"stored-{number}")
        await gateway.raw("slow")
        await publish(gateway, {"device": "slow"}, id="first", ttl=0)
        await publish(gateway, {"device": "slow"}, id="second", ttl=0)
        await publish(gateway, {"device": "slow"}, id="interim", session_id="s", final=False)
        await becomes(gateway, "first", {"slow": "waiting"})
        for name in ("second", "interim"):
            await becomes(gateway, name, {"slow": "overflow"})
        await publish(gateway, {"device": "slow"}, id="third", ttl=0, collapse_key="k")
        await becomes(gateway, "third", {"slow": "overflow"})


async def test_a_message_that_is_never_stored_is_collapsed_while_it_waits(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://")
    with nothing_is_written():
        for number in range(200):
            await publish(gateway, {"device": "slow"}, id=f"stored-{number}")
        await gateway.raw("slow")
        for name in ("older", "newer"):
            await publish(gateway, {"device": "slow"}, id=name, ttl=0, collapse_key="k")
        await becomes(gateway, "older", {"slow": "collapsed"})
        await becomes(gateway, "newer", {"slow": "waiting"})


async def test_a_record_that_is_read_again_is_looked_for_in_the_box(start_admin: StartAdmin) -> None:
    """Each server that reads it has a step, and the box decides."""
    gateway = await start_admin(mailbox="memory://", server_name="here", trace_bytes=6_000)
    found = [Record("doll", b'{"n":%d}' % number, 1_000 + number) for number in range(3)]
    for _ in range(10):  # the first reading, which has stored them, is forgotten
        gateway.gateway.wiring.router(Batch(found, offsets=range(3), sources=[("results/0", 3)]))
        await asyncio.sleep(0)
    body = await becomes(gateway, "results/0/2", {"doll": "waiting"})
    assert "stored" not in steps(body)
    assert body["summary"].endswith("; read 3 times, by here, here, here")


# -- several servers


async def test_a_forwarded_message_is_traced_over_both_servers_whichever_is_asked(two_admins: Two) -> None:
    a, b = two_admins
    device = await b.raw("doll")
    await publish(a, {"device": "doll"}, id="m")
    await device.read_until(TEXT)
    for gateway in two_admins:
        body = await becomes(gateway, "m", {"doll": "written"})
        assert [(step["server"], step["step"]) for step in body["steps"]] == [
            (None, "produced"),
            ("a", "read"),
            ("a", "addressed"),
            ("a", "forwarded"),
            ("b", "written"),
        ]
        assert body["missing"] == []


async def test_superseded(two_admins: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device leaves while its message is under way to its server."""
    a, b = two_admins
    await b.raw("doll")
    take = b.gateway.wiring.router._local.take

    def take_late(*arguments: Any) -> None:
        for client in list(b.gateway.hub.clients_of("doll")):
            assert isinstance(client, DeviceConnection)
            client.cut()
        take(*arguments)

    monkeypatch.setattr(b.gateway.wiring.router._local, "take", take_late)
    await publish(a, {"device": "doll"}, id="m")
    await becomes(a, "m", {"doll": "superseded"})


# -- what it costs


async def test_it_costs_no_call_per_message(start_admin: StartAdmin) -> None:
    """But a few per batch."""

    async def calls(gateway: Harness, records: int) -> int:
        made = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal made
            made += event == "call"

        found = [Record("doll", b'{"n":%d}' % number, 0) for number in range(records)]
        batch = Batch(found, offsets=range(records), sources=[("results/0", records)])
        gc.disable()  # hypothesis is called by each collection
        sys.setprofile(count)
        try:
            gateway.gateway.wiring.router(batch)
        finally:
            sys.setprofile(None)
            gc.enable()
        await asyncio.sleep(0)
        return made

    with_trace, without = await start_admin(), await start_admin(trace_bytes=0)
    for gateway in (with_trace, without):
        await gateway.raw("doll")
    extra = [await calls(with_trace, records) - await calls(without, records) for records in (10, 200)]
    assert extra[0] == extra[1] <= 10
