"""The quarantine in the admin API, with the embedded broker. On Kafka: ``brokers/test_kafka_quarantined.py``."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cocoa_tornado.admin.quarantine_handlers import SHOWN_BYTES, SHOWN_TOTAL_BYTES, rows_of
from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.errors import BrokerError, RecordTooLarge
from cocoa_tornado.rules.quarantined import Origin, Quarantined
from testing.raw_device import TEXT
from testing.waiting import eventually

from ..harness import RESULTS, Harness
from .conftest import BASE, admin_token, ask, send

pytestmark = pytest.mark.gen_test(timeout=60)
GOOD = json.dumps({"device_id": "doll", "text": "hello"}).encode()


async def reject(gateway: Harness, *values: bytes, **headers: bytes) -> None:
    """Have records rejected."""
    broker = gateway.gateway.broker
    assert isinstance(broker, MemoryBroker)
    before = len(broker.records(f"{RESULTS}.quarantine"))
    for value in values:
        await broker.append(RESULTS, b"doll", value, {f"cocoa.{name}": each for name, each in headers.items()})
    await eventually(lambda: len(broker.records(f"{RESULTS}.quarantine")) == before + len(values), 30)


async def requeue(gateway: Harness, offset: int, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    target = f"{BASE}/quarantine/0/{offset}/requeue"
    response = await send(gateway, "POST", target, admin_token("admin:write"), body)
    return response.status, json.loads(response.body)


async def listed(gateway: Harness, query: str = "", *scopes: str) -> list[dict[str, Any]]:
    status, body, _ = await ask(gateway, "GET", f"/quarantine{query}", token=admin_token(*scopes))
    assert (status, list(body)) == (200, ["records", "missing"])
    rows: list[dict[str, Any]] = body["records"]
    return rows


async def test_the_newest_record_comes_first_with_why_and_where_it_was_rejected(gateway: Harness) -> None:
    await reject(gateway, b"{", b"[]", b"")
    rows = await listed(gateway)
    assert [(row["offset"], row["reason"], row["value_bytes"]) for row in rows] == [
        (2, "empty", 0),
        (1, "not_object", 2),
        (0, "not_json", 1),
    ]
    first = rows[-1]
    assert (first["partition"], first["topic"], first["source_partition"], first["source_offset"]) == (0, RESULTS, 0, 0)
    assert (first["key"], first["value"], first["requeued"]) == ("doll", "{", False)
    assert [row["offset"] for row in await listed(gateway, "?limit=1")] == [2]


async def test_one_record_is_as_in_the_list_with_more_of_its_value(gateway: Harness) -> None:
    await reject(gateway, b"{", b"x" * (SHOWN_BYTES + 1))
    second, first = await listed(gateway)
    assert (await ask(gateway, "GET", "/quarantine/0/0"))[:2] == (200, first)
    assert (len(second["value"]), second["is_cut"]) == (SHOWN_BYTES, True)
    whole = second | {"value": "x" * (SHOWN_BYTES + 1), "is_cut": False}
    assert (await ask(gateway, "GET", "/quarantine/0/1"))[:2] == (200, whole)
    without = (await ask(gateway, "GET", "/quarantine/0/1", token=admin_token("admin:read"))).body
    assert (without["value"], without["value_bytes"], without["is_cut"]) == (None, SHOWN_BYTES + 1, False)
    await requeue(gateway, 0, GOOD)
    assert (await ask(gateway, "GET", "/quarantine/0/0")).body == first | {"requeued": True}


async def test_text_is_shown_with_its_scope_only(gateway: Harness) -> None:
    await reject(gateway, b"secret words", secret=b"whispered")
    [with_text], [without] = await listed(gateway), await listed(gateway, "", "admin:read")
    assert (with_text["value"], with_text["headers"]) == (
        "secret words",
        [{"name": "cocoa.secret", "value": "whispered"}],
    )
    assert (without["value"], without["value_bytes"], without["is_cut"]) == (None, 12, False)
    assert without["headers"] == [{"name": "cocoa.secret", "value": None}]
    assert "whispered" not in json.dumps(without)


async def test_a_corrected_record_reaches_its_device_once(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    await reject(gateway, b"{", ttl=b'"wrong"')
    status, body = await requeue(gateway, 0, GOOD)
    assert (status, body) == (202, {"id": f"{RESULTS}/0/1"})
    assert json.loads((await device.read_until(TEXT)).payload) == {
        "type": "transcription",
        "device_id": "doll",
        "text": "hello",
    }
    assert await requeue(gateway, 0, GOOD) == (409, {"message": "The record has been requeued already"})
    assert await requeue(gateway, 0) == (409, {"message": "The record has been requeued already"})
    assert [row["requeued"] for row in await listed(gateway)] == [True]


async def test_the_answer_names_the_id_that_the_record_has(gateway: Harness) -> None:
    await reject(gateway, b"{")
    assert await requeue(gateway, 0, b'{"device_id":"doll","id":"mine"}') == (202, {"id": "mine"})


async def test_a_record_that_is_still_invalid_may_be_tried_again(gateway: Harness) -> None:
    await reject(gateway, b"{")
    assert await requeue(gateway, 0) == (400, {"message": "The record is not JSON"})
    assert await requeue(gateway, 0, b'{"device_id":"doll","ttl":-1}') == (
        400,
        {"message": "The record has an invalid ttl"},
    )
    assert (await requeue(gateway, 0, GOOD))[0] == 202


async def test_without_a_correction_the_headers_of_the_record_are_judged_too(gateway: Harness) -> None:
    await reject(gateway, GOOD, ttl=b"-1")
    assert await requeue(gateway, 0) == (400, {"message": "The record has an invalid ttl"})
    assert (await requeue(gateway, 0, GOOD))[0] == 202


async def test_what_is_not_there_is_a_404_and_what_is_no_place_a_400(gateway: Harness) -> None:
    assert await requeue(gateway, 0) == (404, {"message": "No such record"})
    for path, name in (("x/0", "partition"), ("0/-1", "offset"), ("0/1e3", "offset"), ("0/" + "9" * 20, "offset")):
        answered = await ask(gateway, "POST", f"/quarantine/{path}/requeue")
        assert answered[:2] == (400, {"message": f"Invalid {name}"})
        answered = await ask(gateway, "GET", f"/quarantine/{path}")
        assert answered[:2] == (400, {"message": f"Invalid {name}"})
    for path in ("0/0", "0/5", "7/0"):
        assert (await ask(gateway, "GET", f"/quarantine/{path}"))[:2] == (404, {"message": "No such record"})
    assert (await ask(gateway, "POST", "/quarantine/7/0/requeue"))[0] == 404
    for limit in ("0", "1001", "x"):
        assert (await ask(gateway, "GET", f"/quarantine?limit={limit}"))[0] == 400


async def test_of_two_requests_at_the_same_time_one_requeues(gateway: Harness) -> None:
    await reject(gateway, b"{")
    found = await asyncio.gather(*(requeue(gateway, 0, GOOD) for _ in range(5)))
    assert sorted(status for status, _ in found) == [202, 409, 409, 409, 409]


@pytest.mark.parametrize(
    ("error", "status"), [(RecordTooLarge("too large"), 413), (BrokerError("away"), 503)], ids=["large", "away"]
)
async def test_what_the_broker_refuses_is_said(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    async def fail(*arguments: object) -> str:
        raise error

    monkeypatch.setattr(gateway.gateway.broker, "requeue", fail)
    assert (await requeue(gateway, 0, GOOD))[0] == status


@pytest.mark.parametrize(("method", "path"), [("quarantined", ""), ("quarantined_at", "/0/0")])
async def test_a_broker_that_is_away_is_a_503_for_the_list_and_for_one_record(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    async def fail(*arguments: object) -> list[Quarantined]:
        raise BrokerError("away")

    monkeypatch.setattr(gateway.gateway.broker, method, fail)
    status, _, headers = await ask(gateway, "GET", f"/quarantine{path}")
    assert status == 503
    assert "retry-after" in headers


def record(value: bytes = b"", **changes: Any) -> Quarantined:
    return Quarantined(0, 0, 0, b"doll", value, len(value), (), Origin())._replace(**changes)


def test_the_text_of_others_is_one_printable_line() -> None:
    hostile = b"\x1b[2J\n\xff\xe2\x80\xa8"
    [row] = rows_of(
        [record(key=hostile, headers=((hostile.decode("utf-8", "replace"), hostile),), origin=Origin("\x1b", "\n"))],
        with_text=True,
    )
    for text in (row.key, row.headers[0].name, row.headers[0].value, row.reason, row.topic):
        assert text is not None
        assert text.isprintable()


def test_an_answer_has_no_more_text_than_its_bound() -> None:
    rows = rows_of([record(b"x" * SHOWN_BYTES)] * 1000, with_text=True)
    assert sum(len(row.value or "") for row in rows) == SHOWN_TOTAL_BYTES
    assert [row.is_cut for row in rows] == [row.value is None for row in rows]


@pytest.mark.parametrize("timestamp_ms", [-1, 2**63 - 1])
def test_a_timestamp_that_is_none_is_null(timestamp_ms: int) -> None:
    assert rows_of([record(timestamp_ms=timestamp_ms)], with_text=False)[0].timestamp is None
