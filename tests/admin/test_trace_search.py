"""Traces of messages that no server remembers: from the results topic, the boxes, the quarantine. The gateways remember
nothing, as after a restart."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args
from urllib.parse import quote

import pytest

from cocoa_tornado.admin import trace_search
from cocoa_tornado.admin.servers import Servers
from cocoa_tornado.admin.trace_answers import STEPS
from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.brokers.port import RecordAt
from cocoa_tornado.errors import BrokerError, MailboxError
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.rules.trace_memory import Outcome
from testing.raw_device import TEXT
from testing.waiting import eventually

from ..harness import RESULTS, Harness
from . import test_traces
from .conftest import StartAdmin, admin_token, ask
from .test_traces import Two, becomes, publish, steps, trace

pytestmark = pytest.mark.gen_test(timeout=60)
FIRST = f"{RESULTS}/0/0"


async def look(gateway: Harness, message_id: str, *scopes: str) -> tuple[int, dict[str, Any]]:
    token = admin_token(*scopes) if scopes else None
    status, body, _ = await ask(gateway, "GET", f"/messages/{quote(message_id, safe='')}", token=token)
    return status, body


async def forgetful(start_admin: StartAdmin, **options: Any) -> Harness:
    return await start_admin(**({"trace_bytes": 0, "mailbox": "memory://", "server_name": "here"} | options))


async def acknowledge(gateway: Harness, device_id: str = "doll") -> None:
    device = await gateway.raw(device_id)
    cursor = json.loads((await device.read_until(TEXT)).payload)["cursor"]
    device.send(TEXT, json.dumps({"type": "ack", "cursor": cursor}).encode())


# -- found nowhere


@pytest.mark.parametrize("mailbox", ["none://", "memory://"])
async def test_what_is_found_nowhere_is_a_404_that_says_where_it_was_looked_for(
    start_admin: StartAdmin, mailbox: str
) -> None:
    gateway = await start_admin(mailbox=mailbox)
    boxes = "" if mailbox == "none://" else "no box has it; "
    end = f"{boxes}the quarantine is empty; only the topic {RESULTS} is read"
    for message_id, where in (
        ("nothing", end),
        ("%2F", end),
        ("a" * 400, end),
        (f"{RESULTS}/0/0", f"{RESULTS}/0 is empty, or does not exist; {end}"),
        (f"{RESULTS}/7/0", f"{RESULTS}/7 is empty, or does not exist; {end}"),
        ("transcription.result/0/3", f"{end}, not transcription.result"),
    ):
        status, body = await look(gateway, message_id)
        assert (status, body) == (404, {"message": f"No server remembers this message; {where}"})


async def test_an_offset_that_the_topic_does_not_have_is_a_404(start_admin: StartAdmin) -> None:
    broker = MemoryBroker(retained=2)
    gateway = await forgetful(start_admin, broker=broker)
    for number in range(4):
        await gateway.publish("doll", str(number))
    await eventually(lambda: broker.counters.consumed == 4)
    await gateway.publish("doll", "4")
    assert f"{RESULTS}/0 begins at offset 3 now" in (await look(gateway, FIRST))[1]["message"]
    assert f"{RESULTS}/0 ends before offset 5" in (await look(gateway, f"{RESULTS}/0/5"))[1]["message"]


async def test_it_is_no_404_while_a_server_does_not_answer(two_admins: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    a, _ = two_admins
    monkeypatch.setattr("cocoa_tornado.admin.servers.PATIENCE_S", 0.1)

    async def say_nothing(*arguments: object) -> None: ...

    monkeypatch.setattr(Servers, "_reply", say_nothing)
    status, body = await look(a, "nothing")
    assert (status, body["steps"], body["devices"], body["counts"]) == (200, [], [], {})
    (missing,) = body["missing"]
    assert body["summary"].startswith("unknown; no server that answered remembers it; the quarantine is empty; ")
    assert body["summary"].endswith(f"no answer from {missing}")


async def test_it_is_a_503_if_the_brokers_cannot_be_asked(
    start_admin: StartAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await forgetful(start_admin)

    async def fail(*arguments: object) -> None:
        raise BrokerError("no broker answers")

    monkeypatch.setattr(gateway.broker, "record_at", fail)
    assert await look(gateway, FIRST) == (503, {"message": "Broker not available"})
    assert (await look(gateway, "nothing"))[0] == 404


async def test_a_quarantine_that_cannot_be_read_is_not_taken_for_the_brokers(
    start_admin: StartAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await forgetful(start_admin)
    await gateway.broker.publish(RESULTS, "", b"{")
    await eventually(lambda: bool(gateway.broker.counters.quarantined))

    async def fail(*arguments: object) -> None:
        raise BrokerError("the topic has not been read in time")

    monkeypatch.setattr(gateway.broker, "quarantined", fail)
    assert await look(gateway, "nothing") == (503, {"message": "Quarantine not available"})
    status, body = await look(gateway, FIRST)
    assert (status, steps(body), body["counts"]) == (200, ["produced"], {"quarantined": 1})
    why = "the quarantine could not be searched for its copy"
    assert body["summary"] == f"quarantined; The record is not JSON; {why}"


async def test_it_is_a_503_if_the_boxes_cannot_be_searched(
    start_admin: StartAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await forgetful(start_admin)
    monkeypatch.setattr(trace_search, "BOXES_S", -1.0)
    assert await look(gateway, "nothing") == (503, {"message": "Mailbox not available"})
    monkeypatch.undo()

    def fail(*arguments: object) -> None:
        raise MailboxError("no answer")

    monkeypatch.setattr(MemoryMailbox, "find_id", fail)
    assert await look(gateway, "nothing") == (503, {"message": "Mailbox not available"})
    monkeypatch.setattr(MemoryMailbox, "look", fail)
    await gateway.publish("doll", "hello")
    assert await look(gateway, FIRST) == (503, {"message": "Mailbox not available"})


# -- by its offset


async def test_waiting_then_written_then_acknowledged_by_offset(start_admin: StartAdmin) -> None:
    gateway = await forgetful(start_admin)
    await gateway.publish("doll", "hello")
    body = await becomes(gateway, FIRST, {"doll": "waiting"})
    assert steps(body) == ["produced", "read", "addressed", "stored"]
    assert (body["summary"], body["counts"]) == (
        "doll: waiting (not connected, and no earlier connection is known)",
        {"waiting": 1},
    )
    device = await gateway.raw("doll")
    cursor = json.loads((await device.read_until(TEXT)).payload)["cursor"]
    body = await becomes(gateway, FIRST, {"doll": "written"})
    assert body["summary"] == "doll: written (the device has never acknowledged anything)"
    device.send(TEXT, json.dumps({"type": "ack", "cursor": cursor}).encode())
    body = await becomes(gateway, FIRST, {"doll": "acknowledged"})
    assert steps(body) == ["produced", "read", "addressed", "stored", "written", "acknowledged"]


@pytest.mark.parametrize(
    ("options", "fields", "outcome", "note"),
    [
        (
            {"mailbox_max_messages": 1},
            {},
            "overflow",
            "it is not in the box any more, and the device never acknowledges",
        ),
        ({}, {"ttl": 1}, "expired", "its ttl of 1 s ended first"),
        ({"mailbox_max_messages": 1}, {"id": "m"}, "overflow", "dropped from its full box"),
    ],
)
async def test_what_left_the_box_by_offset(
    start_admin: StartAdmin, options: dict[str, Any], fields: dict[str, Any], outcome: str, note: str
) -> None:
    gateway = await forgetful(start_admin, **options)
    await publish(gateway, {"device": "doll"}, **fields)
    if options:
        await gateway.publish("doll", "newer")
    body = await becomes(gateway, FIRST, {"doll": outcome})
    assert note in body["summary"]


async def test_a_record_for_a_group_by_offset_has_a_row_for_each_member(start_admin: StartAdmin) -> None:
    gateway = await forgetful(start_admin)
    device = await gateway.upgrade(gateway.token("doll", groups=["kitchen"]))
    await (await gateway.upgrade(gateway.token("bear", groups=["kitchen"]))).end()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("bear"))
    await publish(gateway, {"group": "kitchen"})
    await device.read_until(TEXT)
    body = await becomes(gateway, FIRST, {"doll": "written", "bear": "waiting"})
    assert body["counts"] == {"waiting": 1, "written": 1}
    assert body["summary"] == "1 waiting, 1 written; bear: waiting"
    await publish(gateway, {"group": "nobody"})
    _, body = await look(gateway, f"{RESULTS}/0/1")
    assert body["summary"] == "unknown; no device is in the group nobody"


@pytest.mark.parametrize("mailbox", ["none://", "memory://"])
async def test_of_a_message_that_is_never_stored_no_more_is_known_than_its_record(
    start_admin: StartAdmin, mailbox: str
) -> None:
    gateway = await forgetful(start_admin, mailbox=mailbox)
    await publish(gateway, {"device": "doll"}, ttl=0)
    body = await becomes(gateway, FIRST, {"doll": None})
    why = "there is no mailbox" if mailbox == "none://" else "it is never stored"
    assert body["summary"] == f"doll: unknown; no server remembers what happened to it, and {why}"


async def test_a_record_that_is_not_committed_and_in_no_box(start_admin: StartAdmin) -> None:
    gateway = await forgetful(start_admin)
    await gateway.broker.stop_consuming()
    await gateway.publish("doll", "hello")
    status, body = await look(gateway, FIRST)
    assert (status, steps(body), body["devices"], body["counts"]) == (200, ["produced"], [], {})
    assert body["summary"] == "unknown; read or about to be read; not committed yet (the consumer group is at offset 0)"


async def test_a_record_that_is_not_committed_but_in_a_box_was_read(
    start_admin: StartAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await forgetful(start_admin)
    await gateway.publish("bear", "before")
    await acknowledge(gateway, "bear")  # what has left its box says nothing of a later record
    await publish(gateway, {"devices": ["doll", "bear"]})
    await becomes(gateway, f"{RESULTS}/0/1", {"doll": "waiting", "bear": "written"})
    await acknowledge(gateway, "bear")
    await becomes(gateway, f"{RESULTS}/0/1", {"doll": "waiting", "bear": "acknowledged"})
    record_at = gateway.broker.record_at

    async def uncommitted(partition: int, offset: int) -> RecordAt:
        return replace(await record_at(partition, offset), committed=1)

    monkeypatch.setattr(gateway.broker, "record_at", uncommitted)
    _, body = await look(gateway, f"{RESULTS}/0/1")
    assert steps(body) == ["produced", "read", "addressed", "stored"]
    assert {row["device_id"]: row["outcome"] for row in body["devices"]} == {"bear": None, "doll": "waiting"}
    assert "not committed yet (the consumer group is at offset 1)" in body["summary"]


# -- by its id, in the boxes


async def test_waiting_then_written_then_acknowledged_by_id(start_admin: StartAdmin) -> None:
    gateway = await forgetful(start_admin)
    await publish(gateway, {"devices": ["doll", "bear"]}, "a secret", id="m")
    body = await becomes(gateway, "m", {"doll": "waiting", "bear": "waiting"})
    assert (steps(body), "secret" in body["text"]) == (["stored"], True)
    assert "secret" not in json.dumps(await trace(gateway, "m", "admin:read"))
    await gateway.raw("bear")
    await acknowledge(gateway)
    body = await becomes(gateway, "m", {"doll": "acknowledged", "bear": "written"})
    assert steps(body) == ["stored", "written", "acknowledged"]


async def test_overflow_and_collapsed_by_id(start_admin: StartAdmin) -> None:
    gateway = await forgetful(start_admin, mailbox_max_messages=1)
    await publish(gateway, {"device": "doll"}, id="first")
    await publish(gateway, {"device": "doll"}, id="older", collapse_key="k")
    await publish(gateway, {"device": "doll"}, id="newer", collapse_key="k")
    await becomes(gateway, "newer", {"doll": "waiting"})
    await becomes(gateway, "older", {"doll": "collapsed"})
    await becomes(gateway, "first", {"doll": "overflow"})


# -- quarantined


@pytest.mark.parametrize(
    ("value", "headers", "devices", "problem"),
    [
        (b'{"device_id":"doll","id":"m","ttl":-1}', {}, ["doll"], "The record has an invalid ttl"),
        (b'{"device_id":"doll", "id": "m", "text":', {}, [], "The record is not JSON"),
        (b'{"text":"a secret"}', {"cocoa.id": b'"m"'}, [], "The record has no valid device_id"),
        (b'{"text":"a secret"}', {"cocoa.id": b"m"}, [], "The record has no valid device_id"),
    ],
)
async def test_quarantined_by_id_and_by_offset(
    start_admin: StartAdmin, value: bytes, headers: dict[str, bytes], devices: list[str], problem: str
) -> None:
    gateway = await forgetful(start_admin)
    await gateway.broker.publish(RESULTS, "", value, headers)
    await eventually(lambda: bool(gateway.broker.counters.quarantined))
    for message_id in ("m", FIRST):
        status, body = await look(gateway, message_id)
        assert status == 200
        assert body["devices"] == [{"device_id": name, "outcome": "quarantined"} for name in devices]
        assert (body["counts"], body["text"], body["length"]) == ({"quarantined": 1}, value.decode(), len(value))
        who = f"{devices[0]}: " if devices else ""
        assert body["summary"] == f"{who}quarantined; {problem}; its copy is 0/0 of the quarantine"
        assert "secret" not in json.dumps((await look(gateway, message_id, "admin:read"))[1])
    assert steps(body) == ["produced", "read"]
    assert (await look(gateway, "another"))[0] == 404


async def test_quarantined_and_requeued(start_admin: StartAdmin) -> None:
    gateway = await forgetful(start_admin)
    await gateway.broker.publish(RESULTS, "", b'{"device_id":"doll","id":"m","ttl":-1}')
    await eventually(lambda: bool(gateway.broker.counters.quarantined))
    assert (await ask(gateway, "POST", "/quarantine/0/0/requeue", {"device_id": "doll"})).status == 202
    summary = (await look(gateway, "m"))[1]["summary"]
    assert summary.endswith("its copy is 0/0 of the quarantine, and was requeued")


def test_every_step_and_every_outcome_is_in_the_name_of_a_test() -> None:
    names = " ".join(name for name in [*dir(test_traces), *globals()] if name.startswith("test_"))
    for word in (*STEPS, *get_args(Outcome)):
        assert word in names
