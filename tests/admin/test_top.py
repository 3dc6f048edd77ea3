"""The devices that an operator looks at first, over all servers."""

from __future__ import annotations

import asyncio
import json
from itertools import repeat
from typing import Any

import pytest

from cocoa_tornado.admin.top import ReaderRow, RepeatRow, TopAnswer, merge_top
from cocoa_tornado.rules.records import Record
from cocoa_tornado.rules.trace_memory import TraceMemory
from testing.raw_device import TEXT
from testing.waiting import eventually

from ..harness import Harness, Neighbors
from .conftest import StartAdmin, ask

pytestmark = pytest.mark.gen_test(timeout=60)
Two = tuple[Harness, Harness]


async def top(gateway: Harness, query: str = "") -> Any:
    status, body, _ = await ask(gateway, "GET", f"/top{query}")
    assert status == 200
    assert list(body) == ["queues", "round_trips", "reconnects", "loops", "full_boxes", "read_again", "missing"]
    return body


async def test_of_a_server_without_trouble_every_list_is_empty(gateway: Harness) -> None:
    await gateway.raw("doll")
    lists: dict[str, list[object]] = {"queues": [], "round_trips": [], "reconnects": [], "loops": [], "full_boxes": []}
    lists["read_again"] = []
    assert await top(gateway) == lists | {"missing": []}


async def test_slow_readers_are_those_with_the_largest_queues_and_the_longest_round_trips(two_admins: Two) -> None:
    a, b = two_admins
    for number, gateway in enumerate((a, b, a)):
        device_id = f"doll-{number}"
        await gateway.raw(device_id)
        client = gateway.gateway.hub.get_client_by_device(device_id)
        assert client is not None
        client.protocol.heartbeat.round_trip_s = 0.1 * number  # type: ignore[attr-defined]  # as if measured
        client.protocol.write = object()  # type: ignore[attr-defined]  # the socket is busy
        for _ in range(number):
            client.send(b"x", 0)
    body = await top(b, "?limit=2")
    assert [(row["device_id"], row["server"], row["queue"]) for row in body["queues"]] == [
        ("doll-2", "a", 2),
        ("doll-1", "b", 1),
    ]
    assert [(row["device_id"], row["rtt_ms"]) for row in body["round_trips"]] == [("doll-2", 200.0), ("doll-1", 100.0)]
    for gateway in two_admins:
        for client in gateway.gateway.hub:
            client.protocol.write = None  # type: ignore[attr-defined]  # it is free


async def test_devices_that_connect_again_and_again_or_are_refused_are_reconnects(two_admins: Two) -> None:
    a, b = two_admins
    for gateway in (a, b, a, b):
        device = await gateway.raw("doll")
        device.reset()
        await eventually(lambda gateway=gateway: not gateway.gateway.hub.is_device_connected("doll"))  # type: ignore[misc]
    await a.connect("calm")  # it answers the challenge
    (row,) = (await top(b))["reconnects"]
    assert (row["device_id"], row["count"]) == ("doll", 4)
    assert row["since"] <= row["last"]
    for _ in range(2):
        assert (await a.upgrade(a.token("calm"))).response.status == 409
    assert [row["count"] for row in (await top(b))["reconnects"]] == [4, 2]


async def test_a_device_that_gets_the_same_message_again_and_never_acknowledges_is_in_a_loop(
    start_admin: StartAdmin,
) -> None:
    gateway = await start_admin(mailbox="memory://")
    await gateway.publish("doll", "hello")
    await gateway.publish("fine", "hello")
    cursor = b""
    for times in range(4):
        for device_id in ("doll", "fine"):
            device = await gateway.upgrade(f"{gateway.token(device_id)}&cursors=1")
            if device_id == "doll" or times == 0:
                cursor = json.loads((await device.read_until(TEXT)).payload)["cursor"]
            if device_id == "fine" and times == 0:
                device.send(TEXT, json.dumps({"type": "ack", "cursor": cursor}).encode())
                mailbox = gateway.gateway.mailbox
                assert mailbox is not None
                while not (await mailbox.look("fine")).has_acked:
                    await asyncio.sleep(0.01)
            device.reset()
            await eventually(lambda device_id=device_id: not gateway.gateway.hub.is_device_connected(device_id))  # type: ignore[misc]
    (row,) = (await top(gateway))["loops"]
    assert (row["device_id"], row["count"]) == ("doll", 3)
    device = await gateway.upgrade(f"{gateway.token('doll')}&cursors=1")
    device.send(TEXT, json.dumps({"type": "ack", "cursor": cursor}).encode())
    while (await top(gateway))["loops"]:
        await asyncio.sleep(0.01)


async def test_devices_whose_boxes_have_dropped_messages_are_listed_by_all_servers(
    neighbors: Neighbors, start_admin: StartAdmin
) -> None:
    options: dict[str, Any] = {"neighbors": neighbors, "mailbox": "memory://", "mailbox_max_messages": 2}
    a, b = await start_admin(server_name="a", **options), await start_admin(server_name="b", **options)
    for gateway, device_id, count in ((a, "full", 4), (b, "full", 3), (b, "fuller", 9), (a, "fine", 2)):
        for number in range(count):
            await gateway.publish(device_id, str(number))
    while sum(row["count"] for row in (await top(a))["full_boxes"]) < 10:
        await asyncio.sleep(0.01)
    rows = (await top(b, "?limit=2"))["full_boxes"]
    assert [(row["device_id"], row["count"]) for row in rows] == [("fuller", 7), ("full", 3)]
    assert all(row["since"] <= row["last"] for row in rows)


async def test_records_that_were_read_again_are_listed_once_for_all_servers(two_admins: Two) -> None:
    a, b = two_admins
    for gateway, offsets in ((a, [0, 1, 2]), (b, [2, 3]), (b, [2])):
        records = [Record("doll", b'{"n":%d}' % offset, 7) for offset in offsets]
        memory = gateway.gateway.parts.memory
        assert memory is not None
        memory.remember(records, offsets, [("results@x/0#y", len(offsets))])
    (row,) = (await top(a))["read_again"]
    last = row.pop("last")
    assert row == {"id": "results/0/2", "records": 1, "count": 3, "servers": ["a", "b"]}
    assert last.startswith("20")


async def test_a_server_that_cannot_look_in_time_for_records_read_again_answers_the_other_lists(
    two_admins: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two_admins
    device = await b.raw("doll")
    for _ in range(2):
        await device.end()
        await eventually(lambda: not b.gateway.hub.is_device_connected("doll"))
        device = await b.raw("doll")
    monkeypatch.setattr("cocoa_tornado.admin.top.RUNS_PATIENCE_S", 0.05)
    monkeypatch.setattr(TraceMemory, "runs", lambda memory: repeat(None))
    body = await top(a)
    assert [row["device_id"] for row in body["reconnects"]] == ["doll"]
    assert (body["read_again"], body["missing"]) == ([], ["a", "b"])


@pytest.mark.parametrize("limit", ["0", "101", "x"])
async def test_an_invalid_limit_is_a_400(gateway: Harness, limit: str) -> None:
    assert (await ask(gateway, "GET", f"/top?limit={limit}"))[:2] == (400, {"message": "Invalid limit"})


def test_what_happened_at_several_servers_counts_together_and_no_list_is_longer_than_asked_for() -> None:
    readers = [ReaderRow(device_id=str(n), server="a", generation="1.1", queue=n, rtt_ms=float(n)) for n in range(9)]
    repeats = [RepeatRow(device_id=str(n), count=n, since=float(n), last=10.0 + n) for n in range(2, 9)]
    answer = TopAnswer(
        queues=tuple(readers), round_trips=tuple(readers), reconnects=tuple(repeats), full_boxes=(repeats[0],)
    )
    merged: Any = merge_top([answer, answer], 3)
    assert [row.queue for row in merged["queues"]] == [8, 8, 7]
    assert [(row["device_id"], row["count"]) for row in merged["reconnects"]] == [("8", 16), ("7", 14), ("6", 12)]
    assert merged["loops"] == []
    assert [(row["device_id"], row["count"]) for row in merged["full_boxes"]] == [("2", 4)]
