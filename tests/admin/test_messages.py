"""Sending messages as an operator, and tokens of devices for trying things out."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cocoa_tornado.brokers.port import Broker
from cocoa_tornado.errors import BrokerError, RecordTooLarge
from testing.raw_device import TEXT

from ..harness import RESULTS, Harness
from ..identity.material import public_pem
from .conftest import BASE, StartAdmin, admin_token, ask, send

pytestmark = pytest.mark.gen_test(timeout=60)
RECORD = {"to": {"device": "doll"}, "text": "hello"}


async def post(gateway: Harness, body: bytes) -> tuple[int, dict[str, Any]]:
    response = await send(gateway, "POST", f"{BASE}/messages", admin_token("admin:write"), body)
    return response.status, json.loads(response.body)


async def test_a_message_reaches_its_device_and_has_an_id(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    status, body = await post(gateway, json.dumps(RECORD).encode())
    assert (status, list(body)) == (202, ["id"])
    assert json.loads((await device.read_until(TEXT)).payload) == {
        "type": "transcription",
        "text": "hello",
        "id": body["id"],
    }


async def test_a_message_keeps_the_id_that_it_has(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    assert await post(gateway, json.dumps(RECORD | {"id": "mine"}).encode()) == (202, {"id": "mine"})
    assert json.loads((await device.read_until(TEXT)).payload)["id"] == "mine"


@pytest.mark.parametrize(
    "to", [{"user": 99}, {"group": "kitchen"}, {"all": True}, {"devices": ["doll", "bear"]}], ids=json.dumps
)
async def test_a_message_may_be_for_many(gateway: Harness, to: object) -> None:
    devices = [await gateway.upgrade(gateway.token(each, groups=["kitchen"])) for each in ("doll", "bear")]
    assert (await post(gateway, json.dumps({"to": to, "text": "hello"}).encode()))[0] == 202
    for device in devices:
        assert b"hello" in (await device.read_until(TEXT)).payload


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The record is empty"),
        (b"{", "The record is not JSON"),
        (b"[]", "The record is not a JSON object"),
        (b'{"text":"x"}', "The record has no valid device_id"),
        (b'{"to":{"device":""}}', "The record has an invalid to"),
        (b'{"device_id":"d","ttl":-1}', "The record has an invalid ttl"),
        (b'{"device_id":"d","priority":"urgent"}', "The record has an invalid priority"),
        (b'{"device_id":"d","collapse_key":""}', "The record has an invalid collapse_key"),
        (b'{"to":{"all":true},"except":{}}', "The record has an invalid except"),
    ],
)
async def test_an_invalid_record_is_a_400_with_the_field_and_is_not_published(
    gateway: Harness, body: bytes, message: str
) -> None:
    assert await post(gateway, body) == (400, {"message": message})
    assert RESULTS not in gateway.gateway.broker.counters.published


async def test_a_record_that_is_too_large_is_a_413(gateway: Harness) -> None:
    assert (await post(gateway, b"x" * (64 * 1024 + 1)))[0] == 413


@pytest.mark.parametrize(
    ("error", "status"), [(RecordTooLarge("too large"), 413), (BrokerError("away"), 503)], ids=["large", "away"]
)
async def test_what_the_broker_refuses_is_said(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def publish(*arguments: object) -> asyncio.Future[None]:
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        failed.set_exception(error)
        return failed

    broker: Broker = gateway.gateway.broker
    monkeypatch.setattr(broker, "publish", publish)
    assert (await post(gateway, json.dumps(RECORD).encode()))[0] == status


async def test_the_answer_waits_for_the_acknowledgement(gateway: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    published = asyncio.Event()

    def publish(*arguments: object) -> asyncio.Future[None]:
        published.set()
        return acknowledged

    broker: Broker = gateway.gateway.broker
    monkeypatch.setattr(broker, "publish", publish)
    posting = asyncio.ensure_future(post(gateway, json.dumps(RECORD).encode()))
    await published.wait()
    assert not posting.done()
    acknowledged.set_result(None)
    assert (await posting)[0] == 202


# -- device tokens


async def test_a_device_token_connects_as_the_device_that_was_asked_for(gateway: Harness) -> None:
    asked = {"device_id": "doll", "user_id": "ann", "groups": ["kitchen"], "device_version": "9"}
    status, body, headers = await ask(gateway, "POST", "/device-token", asked)
    assert (status, body["type"], body["expires_in"], headers["cache-control"]) == (200, "Bearer", 600, "no-store")
    assert (await gateway.upgrade(body["token"])).response.status == 101
    identity = gateway.gateway.hub.identity_of("doll")
    assert identity is not None
    assert (identity.user_id, identity.groups, identity.device_version) == ("ann", ("kitchen",), "9")


async def test_a_device_token_is_no_admin_token(gateway: Harness) -> None:
    _, body, _ = await ask(gateway, "POST", "/device-token", {"device_id": "doll", "aud": "cocoa-admin"})
    assert (await ask(gateway, "GET", "/devices", token=body["token"]))[0] == 403


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "Invalid device_id"),
        ({"device_id": ""}, "Invalid device_id"),
        ({"device_id": "cocoa-canary-1"}, "Invalid device_id"),
        ({"device_id": "doll", "user_id": 1.5}, "Invalid user_id"),
        ({"device_id": "doll", "groups": [""]}, "Invalid groups"),
        ([], "Invalid body: it is not a JSON object"),
    ],
)
async def test_what_no_token_may_say_is_a_400(gateway: Harness, asked: object, message: str) -> None:
    assert (await ask(gateway, "POST", "/device-token", asked))[:2] == (400, {"message": message})


async def test_with_public_keys_only_there_is_no_device_token(start_admin: StartAdmin, tmp_path: Any) -> None:
    path = tmp_path / "public.pem"
    path.write_bytes(public_pem("EC"))
    gateway = await start_admin(jwt_secret="", jwt_key=(str(path),))
    assert (await ask(gateway, "POST", "/device-token", {"device_id": "doll"}))[0] == 404
