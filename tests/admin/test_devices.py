"""What operators see of the connected devices, and how they close connections: on one server and on several."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_network
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError

from cocoa_tornado.admin.connected import CHUNK, Connected
from cocoa_tornado.admin.rows import Selection
from cocoa_tornado.hub import Hub
from testing.raw_device import CLOSE, TEXT
from testing.waiting import eventually

from ..clients import connect
from ..harness import Harness, Neighbors
from .conftest import StartAdmin, admin_token, ask

pytestmark = pytest.mark.gen_test(timeout=60)
Two = tuple[Harness, Harness]


def ids(body: Any) -> list[str]:
    return [row["device_id"] for row in body["devices"]]


async def test_a_row_says_who_a_device_is_and_how_its_connection_does(start_admin: StartAdmin) -> None:
    gateway = await start_admin(server_name="here")
    device = await gateway.connect_with(gateway.token("doll", groups=["kitchen", "küche"], device_version="2.1"))
    await eventually(lambda: gateway.gateway.hub.is_device_connected("doll"))
    status, body, headers = await ask(gateway, "GET", "/devices")
    assert (status, headers["cache-control"], body["next"], body["missing"]) == (200, "no-store", None, [])
    ((row,), (connection,)) = body["devices"], body["devices"][0]["connections"]
    assert (row["device_id"], row["user_id"], row["groups"]) == ("doll", 99, ["kitchen", "küche"])
    client = gateway.gateway.hub.get_client_by_device("doll")
    assert client is not None
    assert connection.pop("connected_at")[:2] == connection.pop("last_activity")[:2] == "20"
    assert connection == {
        "server": "here",
        "generation": f"{client.grant.generation.term}.{client.grant.generation.number}",
        "ip": "127.0.0.1",
        "version": "2.1",
        "rtt_ms": None,
        "queue": 0,
    }
    client.challenge()  # a ping
    await eventually(lambda: client.health.round_trip_s is not None)
    (row,) = (await ask(gateway, "GET", "/devices"))[1]["devices"]
    assert row["connections"][0]["rtt_ms"] >= 0
    await device.close()


async def test_the_address_is_that_of_the_device_behind_a_trusted_proxy(start_admin: StartAdmin) -> None:
    gateway = await start_admin(trusted_proxies=(ip_network("127.0.0.0/8"),))
    await gateway.raw("doll", headers={"X-Forwarded-For": "192.0.2.7"})
    (row,) = (await ask(gateway, "GET", "/devices"))[1]["devices"]
    assert row["connections"][0]["ip"] == "192.0.2.7"


async def test_the_list_is_selected_by_user_group_and_prefix(start_admin: StartAdmin) -> None:
    gateway = await start_admin()
    for device_id, claims in (
        ("doll-1", {"user_id": 99, "groups": ["a"]}),
        ("doll-2", {"user_id": "99", "groups": ["a", "b"]}),
        ("bear", {"user_id": 99, "groups": ["b"]}),
    ):
        await gateway.upgrade(gateway.token(device_id, **claims))
    for query, expected in (
        ("", ["bear", "doll-1", "doll-2"]),
        ("?user=99", ["bear", "doll-1"]),
        ("?user=%2299%22", ["doll-2"]),
        ("?group=a", ["doll-1", "doll-2"]),
        ("?group=b&user=99", ["bear"]),
        ("?group=nobody", []),
        ("?user=nobody&group=a", []),
        ("?prefix=doll-", ["doll-1", "doll-2"]),
        ("?after=bear&limit=1", ["doll-1"]),
        ("?prefix=x", []),
    ):
        status, body, _ = await ask(gateway, "GET", f"/devices{query}")
        assert (status, ids(body)) == (200, expected), query


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=1&limit=2", "user=%ff", "group="])
async def test_an_invalid_query_is_a_400_that_names_the_field(gateway: Harness, query: str) -> None:
    status, body, _ = await ask(gateway, "GET", f"/devices?{query}")
    assert (status, body) == (400, {"message": f"Invalid {query.partition('=')[0]}"})


async def test_a_page_of_many_devices_leaves_the_loop_to_others() -> None:
    """The listing of a large server is divided between turns of the loop."""
    hub = Hub()
    for number in range(3 * CHUNK):
        connect(hub, f"{number:05}")
    page = asyncio.ensure_future(Connected(hub, lambda: "a", lambda: 0.0).page(Selection(after="00009", limit=2)))
    turns = 0
    while not page.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 3
    assert [row.device_id for row in page.result().devices] == ["00010", "00011"]
    assert page.result().more


# -- closing


async def test_a_kick_closes_with_4410_after_saying_when_to_connect_again(gateway: Harness) -> None:
    doll, bear = await gateway.raw("doll"), await gateway.raw("bear")
    status, body, _ = await ask(gateway, "DELETE", "/devices/doll/connections?reconnect_after=7")
    assert (status, body) == (200, {"closed": 1, "missing": []})
    assert (await doll.read_until(TEXT)).payload == b'{"type":"reconnect","after_ms":7000}'
    close = await doll.read_until(CLOSE)
    assert (close.close_code, close.payload[2:]) == (4410, b"disconnected by an operator")
    assert gateway.gateway.hub.is_device_connected("bear")
    assert (await gateway.raw("doll")).response.status == 101  # it may return at once
    await bear.end()


async def test_without_reconnect_after_a_kick_says_nothing_before_the_close(gateway: Harness) -> None:
    device = await gateway.connect("doll")
    assert (await ask(gateway, "DELETE", "/devices/doll/connections"))[1] == {"closed": 1, "missing": []}
    with pytest.raises(ConnectionClosedError) as caught:
        await device.recv()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 4410
    assert gateway.gateway.counters.closed["4410"] == 1


async def test_what_waits_for_a_device_is_written_before_it_is_closed(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    gateway.gateway.hub.send_to_device("doll", b"last words")
    await ask(gateway, "DELETE", "/devices/doll/connections?reconnect_after=0")
    assert (await device.read_until(TEXT)).payload == b"last words"
    assert (await device.read_until(TEXT)).payload == b'{"type":"reconnect","after_ms":0}'
    await device.read_until(CLOSE)


async def test_a_kick_of_a_user_or_a_group_closes_its_devices_and_no_others(gateway: Harness) -> None:
    for device_id, user_id in (("one", 99), ("two", "99"), ("three", 99)):
        await gateway.upgrade(gateway.token(device_id, user_id=user_id, groups=["g/1"] if device_id == "two" else []))
    assert (await ask(gateway, "DELETE", "/users/99/connections"))[1]["closed"] == 2
    assert list(gateway.gateway.hub.devices()) == ["two"]
    assert (await ask(gateway, "DELETE", "/users/%2299%22/connections"))[1]["closed"] == 1
    await gateway.upgrade(gateway.token("two", groups=["g/1"]))
    assert (await ask(gateway, "DELETE", "/groups/g%2F1/connections"))[1]["closed"] == 1
    assert (await ask(gateway, "DELETE", "/groups/g%2F1/connections"))[1]["closed"] == 0


@pytest.mark.parametrize(
    "target", ["/devices/%ff/connections", f"/devices/{'d' * 129}/connections", "/groups/%00/connections"]
)
async def test_an_impossible_id_is_a_400(gateway: Harness, target: str) -> None:
    assert (await ask(gateway, "DELETE", target))[0] == 400


@pytest.mark.parametrize("value", ["-1", "1.5", "86401", "x", ""])
async def test_an_invalid_reconnect_after_closes_nothing(gateway: Harness, value: str) -> None:
    await gateway.raw("doll")
    status, body, _ = await ask(gateway, "DELETE", f"/devices/doll/connections?reconnect_after={value}")
    assert (status, body) == (400, {"message": "Invalid reconnect_after"})
    assert gateway.gateway.hub.is_device_connected("doll")


# -- several servers


async def test_any_server_lists_the_devices_of_all(two_admins: Two) -> None:
    a, b = two_admins
    for number in range(6):
        await (a, b)[number % 2].raw(f"doll-{number}")
    for gateway in two_admins:
        seen: list[str] = []
        after: str | None = ""
        for limit in (1, 2, 3):
            _, body, _ = await ask(gateway, "GET", f"/devices?limit={limit}&after={after}")
            seen += ids(body)
            after = body["next"]
            assert (body["connected"], body["missing"]) == (6, [])
            assert {row["connections"][0]["server"] for row in body["devices"]} <= {"a", "b"}
        assert seen == [f"doll-{number}" for number in range(6)]
        assert after is None
        for query, fitting in (("prefix=doll-3", 1), ("user=99", 6), ("group=kitchen", 0), ("user=99&prefix=b", 0)):
            assert (await ask(gateway, "GET", f"/devices?limit=1&{query}")).body["connected"] == fitting


async def test_any_server_closes_the_connections_of_all(two_admins: Two) -> None:
    a, b = two_admins
    here, there = await a.raw("here"), await b.raw("there")
    status, body, _ = await ask(a, "DELETE", "/users/99/connections?reconnect_after=1")
    assert (status, body) == (200, {"closed": 2, "missing": []})
    for device in (here, there):
        assert json.loads((await device.read_until(TEXT)).payload) == {"type": "reconnect", "after_ms": 1000}
        assert (await device.read_until(CLOSE)).close_code == 4410


async def test_a_server_that_cannot_be_reached_is_missing_and_the_others_answer(
    two_admins: Two, neighbors: Neighbors, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two_admins
    monkeypatch.setattr("cocoa_tornado.admin.servers.PATIENCE_S", 0.1)
    if type(neighbors) is not Neighbors:
        pytest.skip("in memory, a server can be cut off without being declared dead")
    await a.raw("here")
    neighbors.cut(b.gateway)
    status, body, _ = await ask(a, "GET", "/devices", token=admin_token("admin:read"))
    assert (status, ids(body)) == (200, ["here"])
    assert len(body["missing"]) == 1


# -- members


async def test_members_are_listed_connected_or_not_where_there_is_a_mailbox(start_admin: StartAdmin) -> None:
    for mailbox, expected in (("memory://", ["away", "doll-1", "doll-2"]), ("none://", ["doll-1", "doll-2"])):
        gateway = await start_admin(mailbox=mailbox)
        away = await gateway.upgrade(gateway.token("away", user_id="99", groups=["kü/che"]))
        for number in (2, 1):
            await gateway.upgrade(
                gateway.token(f"doll-{number}", user_id=99 if number == 1 else "99", groups=["kü/che"])
            )
        await away.end()
        await eventually(lambda gateway=gateway: len(gateway.gateway.hub) == 2)  # type: ignore[misc]
        status, body, _ = await ask(gateway, "GET", "/groups/k%C3%BC%2Fche/devices")
        assert (status, ids(body), body["next"], body["missing"]) == (200, expected, None, [])
        assert [bool(row["connections"]) for row in body["devices"]] == [each != "away" for each in expected]
        assert body["connected"] == 2
        assert ids((await ask(gateway, "GET", "/users/99/devices"))[1]) == ["doll-1"]
        assert ids((await ask(gateway, "GET", "/users/%2299%22/devices"))[1]) == [
            each for each in expected if each != "doll-1"
        ]
        seen, after = [], ""
        for _ in expected:
            _, body, _ = await ask(gateway, "GET", f"/groups/k%C3%BC%2Fche/devices?limit=1&after={after}")
            seen += ids(body)
            after = body["next"]
        assert (seen, str(after)) == (expected, "None")
