"""``GET overview``: what the console's first page shows."""

from __future__ import annotations

import json

import pytest

from testing.raw_device import TEXT

from ..admin.conftest import StartAdmin, ask, two_admins
from ..harness import RESULTS, Harness

__all__ = ["two_admins"]

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_it_counts_connections_and_what_became_of_messages(start_admin: StartAdmin) -> None:
    gateway = await start_admin(server_name="a", mailbox="memory://")
    device = await gateway.connect("doll")
    assert (await gateway.upgrade(gateway.token("late", lifetime_s=-60))).response.status == 401
    await gateway.publish("doll", "hello")
    await device.recv()
    await gateway.publish("away", "later")
    while True:
        answered = await ask(gateway, "GET", "/overview")
        (row,) = answered.body["servers"]
        if row["counters"]["kept"] and row["counters"]["delivered"] and row["waiting"]:
            break
    assert (row["server"], row["connections"], row["devices"]) == ("a", 1, 1)
    assert row["counters"]["read"] == 2
    assert (row["counters"]["accepted"], row["counters"]["refused"]) == (1, 1)
    assert (row["refused"], row["closed"]) == ({"expired": 1}, {})
    assert sum(row["latency"]) == row["counters"]["delivered"] == 1
    late = await gateway.connect("away")
    assert json.loads(await late.recv())["text"] == "later"
    (row,) = (await ask(gateway, "GET", "/overview")).body["servers"]
    assert (sum(row["latency"]), row["counters"]["delivered"]) == (1, 2)
    assert len(row["latency"]) == len(answered.body["latency_bounds_ms"]) + 1
    assert row["failing"] == []
    assert (row["counters"]["other_key"], row["counters"]["fenced"]) == (0, 0)
    assert row["parts"]["mailbox"] == {"ok": True, "state": "ready"}
    assert row["device_port"] is None
    assert answered.body["missing"] == []


async def test_it_counts_records_whose_key_names_another_device(start_admin: StartAdmin) -> None:
    gateway = await start_admin(server_name="a")
    device = await gateway.raw("doll")
    stranger = await gateway.upgrade(gateway.token("stranger", secret="another secret of thirty-two bytes, or more"))
    assert stranger.response.status == 401
    await gateway.gateway.broker.publish(RESULTS, "bear", b'{"device_id":"doll"}')
    await device.read_until(TEXT)
    (row,) = (await ask(gateway, "GET", "/overview")).body["servers"]
    assert row["refused"] == {"signature": 1}
    assert (row["counters"]["refused"], row["counters"]["other_key"]) == (1, 1)


async def test_what_was_counted_within_the_last_hour_is_beside_the_totals_and_is_forgotten_after_it(
    start_admin: StartAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("rules.last_hour", "admin.overview"):
        monkeypatch.setattr(f"cocoa_tornado.{module}.PERIOD_S", 0.01)
    gateway = await start_admin(server_name="a")
    device = await gateway.raw("doll")
    assert (await gateway.upgrade(gateway.token("late", lifetime_s=-60))).response.status == 401
    await gateway.gateway.broker.publish(RESULTS, "bear", b'{"device_id":"doll"}')
    await device.read_until(TEXT)
    (row,) = (await ask(gateway, "GET", "/overview")).body["servers"]
    assert row["recent"] == {
        "since": row["started_at"],
        "counters": {name: count for name, count in row["counters"].items() if count},
        "refused": {"expired": 1},
        "closed": {},
    }
    assert row["recent"]["counters"]["other_key"] == 1
    # An hour that is soon over.
    monkeypatch.setattr("cocoa_tornado.rules.last_hour.HOUR_S", 0.05)
    while row["recent"]["counters"] or row["recent"]["refused"]:
        (row,) = (await ask(gateway, "GET", "/overview")).body["servers"]
    assert (row["counters"]["other_key"], row["refused"]) == (1, {"expired": 1})
    await gateway.gateway.broker.publish(RESULTS, "bear", b'{"device_id":"doll"}')
    monkeypatch.setattr("cocoa_tornado.rules.last_hour.HOUR_S", 3600.0)
    await device.read_until(TEXT)
    (row,) = (await ask(gateway, "GET", "/overview")).body["servers"]
    assert (row["counters"]["other_key"], row["recent"]["counters"]["other_key"]) == (2, 1)


async def test_canary_messages_are_counted_apart_from_the_records_that_are_read(start_admin: StartAdmin) -> None:
    gateway = await start_admin(server_name="a", canary_interval_s=0.05)
    counters: dict[str, int] = {}
    while counters.get("canaries", 0) < 4:
        (row,) = (await ask(gateway, "GET", "/overview")).body["servers"]
        counters = row["counters"]
    assert counters["delivered"] == counters["leaked"] == counters["canaries_lost"] == 0
    assert counters["read"] <= counters["canaries"]


async def test_each_server_has_a_row(two_admins: tuple[Harness, Harness]) -> None:
    first, second = two_admins
    await second.connect("doll")
    answered = await ask(first, "GET", "/overview")
    assert [(row["server"], row["connections"]) for row in answered.body["servers"]] == [("a", 0), ("b", 1)]
