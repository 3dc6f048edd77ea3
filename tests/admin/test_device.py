"""What operators see of one device, and emptying its box: on one server and on several."""

from __future__ import annotations

import asyncio
import json
from itertools import repeat
from typing import Any

import pytest

from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Entry
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.rules.records import Record
from cocoa_tornado.rules.trace_memory import SLICE, TraceMemory
from testing.raw_device import CLOSE, TEXT, UPGRADE
from testing.waiting import eventually

from ..harness import RESULTS, Harness, Neighbors
from .conftest import StartAdmin, ask

pytestmark = pytest.mark.gen_test(timeout=60)
Two = tuple[Harness, Harness]


def messages_of(gateway: Harness) -> int | None:
    """In all boxes."""
    assert gateway.gateway.mailbox is not None
    return gateway.gateway.mailbox.status().messages


async def test_a_device_nobody_knows_is_a_404(start_admin: StartAdmin) -> None:
    for mailbox in ("none://", "memory://"):
        gateway = await start_admin(mailbox=mailbox)
        status, body, _ = await ask(gateway, "GET", "/devices/nobody")
        assert (status, body) == (404, {"message": "Unknown device"})


async def test_a_device_has_its_row_and_its_last_events(start_admin: StartAdmin) -> None:
    gateway = await start_admin(server_name="here", duplicate_policy="reject")
    device = await gateway.raw("doll")
    assert (await gateway.upgrade(gateway.token("doll"))).response.status == 409
    await gateway.upgrade(gateway.token("doll"), headers={"Origin": "https://evil.example"})
    client = gateway.gateway.hub.get_client_by_device("doll")
    assert client is not None
    client.challenge()
    _, body, _ = await ask(gateway, "GET", "/devices/doll")
    assert (body["device_id"], body["user_id"], body["box"], body["missing"]) == ("doll", 99, None, [])
    assert [connection["server"] for connection in body["connections"]] == ["here"]
    assert [(event["event"], event["code"], event["server"]) for event in body["events"]] == [
        ("connected", 101, "here"),
        ("refused", 409, "here"),
        ("refused", 403, "here"),
        ("challenged", None, "here"),
    ]
    await ask(gateway, "DELETE", "/devices/doll/connections")
    await device.read_until(CLOSE)
    _, body, _ = await ask(gateway, "GET", "/devices/doll")
    assert (body["connections"], body["user_id"]) == ([], None)
    assert [(event["event"], event["code"]) for event in body["events"]][-1] == ("closed", 4410)


async def test_a_connection_that_is_cut_closes_with_1006(start_admin: StartAdmin) -> None:
    gateway = await start_admin()
    device = await gateway.connect("doll")
    device.transport.abort()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    _, body, _ = await ask(gateway, "GET", "/devices/doll")
    assert [(event["event"], event["code"]) for event in body["events"]] == [("connected", 101), ("closed", 1006)]


async def test_the_box_says_what_waits(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://")
    await (await gateway.raw("doll")).end()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    for number in range(100):
        await gateway.publish("doll", "x" * number, **({"priority": "high"} if number % 2 else {}))
    await eventually(lambda: messages_of(gateway) == 100)
    (box,) = [(await ask(gateway, "GET", "/devices/doll"))[1]["box"]]
    assert (box["messages"], box["acknowledged"]) == (100, None)
    assert box["oldest"] <= box["newest"]
    assert gateway.gateway.mailbox is not None
    assert box["bytes"] == gateway.gateway.mailbox.status().size_bytes


async def test_a_timestamp_that_no_calendar_has_is_not_shown(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://")
    assert gateway.gateway.mailbox is not None
    await gateway.gateway.mailbox.append([Entry("doll", b"{}", 2**62, "results/0", 0)])
    status, body, _ = await ask(gateway, "GET", "/devices/doll")
    assert (status, body["box"]["messages"]) == (200, 1)
    assert (body["box"]["oldest"], body["box"]["newest"]) == (None, None)


async def test_the_text_of_a_box_is_not_shown(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://")
    await gateway.publish("doll", "a secret")
    await eventually(lambda: messages_of(gateway) == 1)
    response = await ask(gateway, "GET", "/devices/doll")
    assert "secret" not in str(response)


@pytest.mark.parametrize("acknowledges", [False, True])
async def test_an_emptied_box_gives_nothing_more_and_later_messages_as_before(
    start_admin: StartAdmin, acknowledges: bool
) -> None:
    gateway = await start_admin(mailbox="memory://")
    mailbox = gateway.gateway.mailbox
    assert mailbox is not None
    target = "/ws?cursors=1&token=" if acknowledges else "/ws?token="
    device = await gateway.dial()
    await device.request("GET", target + gateway.token("doll"), UPGRADE)
    await gateway.publish("doll", "first")
    first = await device.read_until(TEXT)
    if acknowledges:
        cursor = first.payload.rpartition(b'"cursor":')[2].removesuffix(b"}")
        device.send(TEXT, b'{"type":"ack","cursor":' + cursor + b"}")
        await eventually(lambda: mailbox.counters.acknowledged == 1)
    await device.end()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    for text in ("second", "third"):
        await gateway.publish("doll", text)
    await eventually(lambda: mailbox.counters.stored == 3)
    status, body, _ = await ask(gateway, "DELETE", "/devices/doll/box")
    assert (status, body) == (200, {"deleted": 2})
    assert (await ask(gateway, "GET", "/devices/doll"))[1]["box"]["messages"] == 0
    assert (await ask(gateway, "DELETE", "/devices/doll/box"))[1] == {"deleted": 0}
    for sent in (b"fourth", b"fifth"):  # each comes once, also to a device that never acknowledges
        again = await gateway.dial()
        await again.request("GET", "/ws?token=" + gateway.token("doll"), UPGRADE)
        await gateway.publish("doll", sent.decode())
        came = await again.read_until(TEXT)
        assert (sent in came.payload, b"gap" in came.payload) == (True, False), came
        if acknowledges:
            cursor = came.payload.rpartition(b'"cursor":')[2].removesuffix(b"}")
            again.send(TEXT, b'{"type":"ack","cursor":' + cursor + b"}")
            await eventually(lambda: messages_of(gateway) == 0)
        await again.end()
        await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))


async def test_without_a_mailbox_there_is_no_box_to_empty(gateway: Harness) -> None:
    assert (await ask(gateway, "DELETE", "/devices/doll/box"))[:2] == (404, {"message": "There is no mailbox"})


async def test_any_server_knows_the_events_of_all(two_admins: Two) -> None:
    a, b = two_admins
    await (await a.raw("doll")).end()
    await eventually(lambda: not a.gateway.hub.is_device_connected("doll"))
    await b.raw("doll")
    for gateway in two_admins:
        _, body, _ = await ask(gateway, "GET", "/devices/doll")
        assert [(event["event"], event["server"]) for event in body["events"]] == [
            ("connected", "a"),
            ("closed", "a"),
            ("connected", "b"),
        ]
        assert [connection["server"] for connection in body["connections"]] == ["b"]


async def test_several_servers_have_one_box(start_admin: StartAdmin) -> None:
    neighbors, mailbox = Neighbors(), MemoryMailbox(BoxLimits())
    a = await start_admin(neighbors=neighbors, shared_mailbox=mailbox)
    b = await start_admin(neighbors=neighbors, shared_mailbox=mailbox)
    await a.publish("doll", "kept")
    await eventually(lambda: mailbox.counters.stored == 1)
    for gateway in (a, b):
        assert (await ask(gateway, "GET", "/devices/doll"))[1]["box"]["messages"] == 1
    assert (await ask(b, "DELETE", "/devices/doll/box"))[1] == {"deleted": 1}
    _, body, _ = await ask(a, "GET", "/devices/doll")
    assert (body["box"]["messages"], body["events"]) == (0, [])
    assert [message["outcome"] for message in body["messages"]] == ["written"]  # as the box says


# -- the last messages


async def messages_are(gateway: Harness, expected: list[tuple[str, str | None]], device_id: str = "doll") -> Any:
    """Ask until these are the last messages: id and outcome of each, the newest first."""
    found: list[tuple[str, str | None]] = []
    for _ in range(500):
        _, body, _ = await ask(gateway, "GET", f"/devices/{device_id}")
        found = [(message["id"], message["outcome"]) for message in body.get("messages", ())]
        if found == expected:
            return body
        await asyncio.sleep(0.01)
    pytest.fail(f"{found} is not {expected}")


async def test_the_last_messages_of_a_device_are_listed_the_newest_first_with_what_became_of_them(
    start_admin: StartAdmin,
) -> None:
    gateway = await start_admin()
    device = await gateway.upgrade(gateway.token("doll", groups=["kitchen"]))
    await gateway.publish("doll", "hello", id="mine")
    await gateway.publish("bear", "hello", id="not mine")
    await gateway.broker.publish(RESULTS, "", b'{"to":{"group":"kitchen"},"text":"Dinner"}')
    for _ in range(2):
        await device.read_until(TEXT)
    await device.end()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    await gateway.publish("doll", "gone", id="gone")
    await messages_are(gateway, [("gone", "not_connected"), (f"{RESULTS}/0/2", "written"), ("mine", "written")])
    await messages_are(gateway, [("not mine", "not_connected")], "bear")  # although nothing else is known of it
    for number in range(25):
        await gateway.publish("doll", "more", id=f"m-{number}")
    body = await messages_are(gateway, [(f"m-{number}", "not_connected") for number in reversed(range(5, 25))])
    assert "hello" not in json.dumps(body)
    for message in body["messages"][:3]:
        status, found, _ = await ask(gateway, "GET", f"/messages/{message['id']}")
        assert (status, found["devices"]) == (200, [{"device_id": "doll", "outcome": "not_connected"}])


async def test_a_message_that_one_server_has_read_and_another_has_written_is_listed_once(two_admins: Two) -> None:
    a, b = two_admins
    device = await b.upgrade(b.token("doll", groups=["kitchen"]))
    await a.publish("doll", "hello", id="m")
    await device.read_until(TEXT)
    await a.broker.publish(RESULTS, "", b'{"to":{"group":"kitchen"},"text":"Dinner"}')
    await device.read_until(TEXT)
    for gateway in two_admins:
        await messages_are(gateway, [(f"{RESULTS}/0/1", "written"), ("m", "written")])


async def test_a_server_that_finds_no_messages_in_time_says_everything_else_of_a_device(
    two_admins: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, b = two_admins
    await b.raw("doll")
    monkeypatch.setattr("cocoa_tornado.admin.device.MESSAGES_PATIENCE_S", 0.05)
    # As if each turn of a busy loop were too long for a search of many: the pauses alone outlast the patience.
    monkeypatch.setattr(TraceMemory, "of_device", lambda memory, device_id, most: repeat(None))
    for gateway in two_admins:
        _, body, _ = await ask(gateway, "GET", "/devices/doll")
        assert ([each["server"] for each in body["connections"]], body["messages"]) == (["b"], [])
        assert [event["event"] for event in body["events"]] == ["connected"]
        assert body["missing"] == ["a", "b"]


async def test_requests_about_many_devices_at_once_are_all_answered(start_admin: StartAdmin) -> None:
    gateway = await start_admin()
    memory = gateway.gateway.parts.memory
    assert memory is not None
    for number in range(2 * SLICE):  # so many that a search takes several turns of the loop
        memory.remember([Record(f"doll-{number % 16}", b"{}", 0)], [number], [("results/0", 1)])
    answers = await asyncio.gather(*(ask(gateway, "GET", f"/devices/doll-{number}") for number in range(16)))
    assert [answer.status for answer in answers] == [200] * 16
    assert {len(answer.body["messages"]) for answer in answers} == {20}


async def test_the_box_says_what_became_of_the_messages_of_a_device(start_admin: StartAdmin) -> None:
    gateway = await start_admin(mailbox="memory://", mailbox_max_messages=2)
    for number in range(3):
        await gateway.publish("doll", "hello", id=f"m-{number}")
    body = await messages_are(gateway, [("m-2", "waiting"), ("m-1", "waiting"), ("m-0", "overflow")])
    assert [message["note"] for message in body["messages"]] == ["", "", "dropped from its full box"]
