"""``POST /api/v1/transcriptions``: its cost and its answers."""

from __future__ import annotations

import json
import re

import pytest

from cocoa_tornado.rules import records
from cocoa_tornado.web import publish_handler
from testing.raw_device import Response

from ..harness import RESULTS, Harness
from .conftest import StartGateway

PATH = "/api/v1/transcriptions"


async def post(gateway: Harness, body: bytes, device_id: str = "doll") -> Response:
    return await gateway.http("POST", PATH, {"Authorization": f"Bearer {gateway.token(device_id)}"}, body)


def record(size: int, device_id: str = "doll") -> bytes:
    """A body of this many bytes."""
    body = json.dumps({"device_id": device_id, "text": ""}, separators=(",", ":")).encode()
    return body[:-2] + b"x" * (size - len(body)) + body[-2:]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The record is empty"),
        (b"\xff", "The record is not UTF-8"),
        (b'{"device_id":"doll","x":' + b"[" * 64 + b"]" * 64 + b"}", "The record is nested too deeply"),
        (b"{", "The record is not JSON"),
        (b"[]", "The record is not a JSON object"),
        (b'{"device_id":"doll","device_id":"doll"}', "The record names device_id twice"),
        (b"{}", "The record has no valid device_id"),
        (b'{"device_id":"doll","text":"\\ud800"}', "The record holds half a surrogate pair"),
        (b'{"device_id":"doll","priority":"HIGH"}', "The record has an invalid priority"),
        (b'{"device_id":"doll","to":null,"ttl":-1}', "The record has an invalid ttl"),
    ],
)
@pytest.mark.gen_test
async def test_a_bad_record_is_a_400_in_plain_words(gateway: Harness, body: bytes, message: str) -> None:
    response = await post(gateway, body)
    assert (response.status, json.loads(response.body)) == (400, {"message": message})


def test_every_reason_has_its_plain_words() -> None:
    assert set(publish_handler.PROBLEMS) == records.REASONS
    named = re.compile("device_id|collapse_key")
    assert not any("_" in named.sub("", text) for text in publish_handler.PROBLEMS.values())


@pytest.mark.gen_test
async def test_a_record_over_64_kib_is_a_413_and_is_not_decoded(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await post(gateway, record(64 * 1024))).status == 202
    decoded: list[object] = []
    monkeypatch.setattr(publish_handler, "decode", lambda *args: decoded.append(args))
    response = await post(gateway, record(64 * 1024 + 1))
    assert (response.status, list(json.loads(response.body))) == (413, ["message"])
    assert decoded == []


@pytest.mark.gen_test
async def test_records_count_in_the_devices_inbound_rate_and_in_no_other_devices(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(inbound_rate=1.0, inbound_burst=3)
    for _ in range(3):
        assert (await post(gateway, record(100))).status == 202
    response = await post(gateway, record(100))
    assert (response.status, response.body) == (429, b'{"message":"Too many messages"}')
    assert int(response.headers["retry-after"]) == 1
    assert (await post(gateway, record(100, "other"), "other")).status == 202


@pytest.mark.gen_test
async def test_a_record_counts_as_a_message_for_every_kib_begun(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(inbound_rate=0.01, inbound_burst=5)
    assert (await post(gateway, record(2048))).status == 202
    assert (await post(gateway, record(2049))).status == 202
    assert (await post(gateway, record(100))).status == 429


@pytest.mark.gen_test
async def test_a_record_of_more_than_a_burst_passes_alone_and_a_bad_one_counts(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(inbound_rate=0.01, inbound_burst=5)
    assert (await post(gateway, record(64 * 1024))).status == 202
    assert (await post(gateway, record(100))).status == 429
    assert (await post(gateway, b"{" * 6000, "other")).status == 400
    assert (await post(gateway, record(100, "other"), "other")).status == 429


@pytest.mark.gen_test
async def test_what_is_over_the_rate_is_neither_decoded_nor_published(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_gateway(inbound_rate=0.01, inbound_burst=1)
    assert (await post(gateway, record(100))).status == 202
    decoded: list[object] = []
    monkeypatch.setattr(publish_handler, "decode", lambda *args: decoded.append(args))
    for _ in range(20):
        assert (await post(gateway, record(100))).status == 429
    assert decoded == []
    assert len(gateway.broker.records(RESULTS)) == 1


@pytest.mark.gen_test
async def test_no_inbound_rate_is_none_here_either(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(inbound_rate=0.0)
    for _ in range(20):
        assert (await post(gateway, record(60_000))).status == 202
