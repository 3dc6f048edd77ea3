"""What would become of a record, with and without a mailbox, over all servers."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from cocoa_tornado.admin.explain import MAX_DEVICES, HolderAnswer, explain, question_for
from cocoa_tornado.rules.records import Record, decode
from testing.waiting import eventually

from ..harness import RESULTS, Harness
from .conftest import StartAdmin, ask

pytestmark = pytest.mark.gen_test(timeout=60)


def record(**fields: object) -> Record:
    decoded = decode(None, json.dumps({"text": "hello"} | fields).encode(), 0)
    assert isinstance(decoded, Record)
    return decoded


def wishes(found: Record, *answers: HolderAnswer, has_mailbox: bool = False, members: list[str] | None = None) -> Any:
    verdicts = explain(found, answers, has_mailbox=has_mailbox, members=members)
    return [(each.device_id, each.would, each.why) for each in verdicts]


@pytest.mark.parametrize(
    ("fields", "has_mailbox", "expected"),
    [
        ({}, False, ("drop", "not connected, and there is no mailbox")),
        ({}, True, ("store", "not connected")),
        ({"ttl": 5}, True, ("store", "not connected")),
        ({"ttl": 0}, True, ("drop", "not connected, and a record with ttl 0 is never stored")),
        ({"ttl": 0, "collapse_key": "k"}, True, ("drop", "not connected, and a record with ttl 0 is never stored")),
        ({"final": False, "session_id": "s"}, True, ("drop", "not connected, and an interim is never stored")),
    ],
    ids=str,
)
def test_a_device_that_is_not_connected(
    fields: dict[str, object], has_mailbox: bool, expected: tuple[str, str]
) -> None:
    found = record(device_id="doll", **fields)
    assert wishes(found, HolderAnswer("a", ()), has_mailbox=has_mailbox) == [("doll", *expected)]
    sent = [("doll", "send", "connected to b")]
    assert wishes(found, HolderAnswer("a", ()), HolderAnswer("b", ("doll",)), has_mailbox=has_mailbox) == sent


def test_a_device_that_several_servers_hold_is_sent_it_by_each() -> None:
    answers = [HolderAnswer("a", ("doll",)), HolderAnswer("b", ("doll",))]
    assert wishes(record(device_id="doll"), *answers) == [("doll", "send", "connected to a, b")]


def test_without_a_mailbox_an_audience_is_who_is_connected() -> None:
    answers = [HolderAnswer("a", ("bear",)), HolderAnswer("b", ("doll",))]
    assert wishes(record(to={"all": True}), *answers) == [
        ("bear", "send", "connected to a"),
        ("doll", "send", "connected to b"),
    ]


def test_with_a_mailbox_an_audience_is_who_is_known() -> None:
    found = record(to={"group": "kitchen"})
    assert wishes(found, HolderAnswer("a", ("bear",)), has_mailbox=True, members=["bear", "doll"]) == [
        ("bear", "send", "connected to a"),
        ("doll", "store", "not connected"),
    ]


def test_the_servers_are_asked_for_what_the_record_addresses() -> None:
    assert question_for(record(device_id="doll").address, None).devices == ("doll",)
    assert question_for(record(to={"devices": ["b", "a", "b"]}).address, None).devices == ("b", "a")
    of_user = question_for(record(to={"user": "99"}, **{"except": {"devices": ["doll"]}}).address, None)
    assert (of_user.devices, of_user.user, of_user.group, of_user.excluded) == (None, '"99"', None, ("doll",))
    assert question_for(record(to={"group": "kitchen"}).address, None).group == "kitchen"
    assert question_for(record(to={"group": "kitchen"}).address, ["doll"]).devices == ("doll",)


# -- over HTTP


async def asked(gateway: Harness, **fields: object) -> dict[str, Any]:
    status, body, _ = await ask(gateway, "POST", "/explain", {"text": "hello"} | fields)
    assert status == 200
    explained: dict[str, Any] = body
    return explained


async def test_an_invalid_record_says_why_and_nothing_is_sent(gateway: Harness) -> None:
    assert await asked(gateway, device_id="doll", ttl=-1) == {
        "valid": False,
        "reason": "ttl",
        "message": "The record has an invalid ttl",
        "devices": [],
        "counts": {},
        "more": False,
        "missing": [],
    }
    assert (await asked(gateway, device_id="doll"))["valid"] is True
    assert RESULTS not in gateway.gateway.broker.counters.published


async def test_every_server_is_asked_which_devices_it_holds(two_admins: tuple[Harness, Harness]) -> None:
    a, b = two_admins
    await a.upgrade(a.token("bear", groups=["kitchen"]))
    await b.upgrade(b.token("doll", groups=["kitchen"]))
    for fields in ({"to": {"group": "kitchen"}}, {"to": {"devices": ["bear", "doll"]}}):
        found = await asked(a, **fields)
        assert found == {
            "valid": True,
            "devices": [
                {"device_id": "bear", "would": "send", "why": "connected to a"},
                {"device_id": "doll", "would": "send", "why": "connected to b"},
            ],
            "counts": {"send": 2},
            "more": False,
            "missing": [],
        }
    but_one = await asked(a, to={"user": 99}, **{"except": {"devices": ["doll"]}})
    assert [each["device_id"] for each in but_one["devices"]] == ["bear"]


async def test_with_a_mailbox_members_that_are_not_connected_are_among_the_devices(
    start_admin: StartAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocoa_tornado.admin.explain_handlers.PATIENCE_S", 30.0)
    gateway = await start_admin(mailbox="memory://")
    device = await gateway.upgrade(gateway.token("doll", groups=["kitchen"]))
    await gateway.upgrade(gateway.token("bear", groups=["kitchen"]))
    await device.end()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"), 30)
    found = await asked(gateway, to={"group": "kitchen"})
    assert [(each["device_id"], each["would"]) for each in found["devices"]] == [("bear", "send"), ("doll", "store")]
    assert found["counts"] == {"send": 1, "store": 1}


def test_no_more_devices_are_listed_than_the_bound() -> None:
    devices = tuple(f"{number:05}" for number in range(MAX_DEVICES + 1))
    assert len(wishes(record(to={"all": True}), HolderAnswer("a", devices))) == MAX_DEVICES + 1


async def test_the_headers_and_the_timestamp_of_the_record_count(gateway: Harness) -> None:
    await gateway.raw("doll")

    async def explained(**query: str) -> dict[str, Any]:
        status, body, _ = await ask(gateway, "POST", f"/explain?{urlencode(query)}", {"device_id": "bear"})
        assert status == 200, body
        assert isinstance(body, dict)
        return body

    to_doll = json.dumps({"cocoa.to": '{"device":"doll"}', "mine": "1"})
    assert [each["device_id"] for each in (await explained(headers=to_doll))["devices"]] == ["doll"]
    assert (await explained(headers='{"cocoa.ttl":"-1"}'))["reason"] == "ttl"
    both = json.dumps({"cocoa.to": '{"device":"doll"}', "cocoa.ttl": "5"})
    for timestamp, would in (("2020-01-01T00:00:00Z", "drop"), ("2120-01-01T00:00:00+01:00", "send")):
        (device,) = (await explained(headers=both, timestamp=timestamp))["devices"]
        assert device["would"] == would
    assert (await explained(headers=both, timestamp="0001-01-01T00:00:00Z"))["counts"] == {"drop": 1}


@pytest.mark.parametrize("headers", ["[]", "{", '{"a":1}', '{"a":"1","a":"2"}', '{"a":"\\ud800"}', "5"])
async def test_headers_that_are_none_are_a_400(gateway: Harness, headers: str) -> None:
    query = urlencode({"headers": headers})
    answered = await ask(gateway, "POST", f"/explain?{query}", {"device_id": "bear"})
    assert answered[:2] == (400, {"message": "Invalid headers"})


@pytest.mark.parametrize("timestamp", ["", "5", "tomorrow", "2020-01-01T00:00:00"])
async def test_a_timestamp_that_is_none_is_a_400(gateway: Harness, timestamp: str) -> None:
    query = urlencode({"timestamp": timestamp})
    answered = await ask(gateway, "POST", f"/explain?{query}", {"device_id": "bear"})
    assert answered[:2] == (400, {"message": "Invalid timestamp"})
