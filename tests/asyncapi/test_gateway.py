"""The examples of the AsyncAPI document on a running gateway: what goes in comes out as documented."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable

import pytest
from websockets.asyncio.client import ClientConnection

from cocoa_tornado.settings import Settings
from testing.waiting import eventually

from ..harness import RESULTS, Harness
from ..scripted_engine import ScriptedEngine
from ..web.conftest import StartGateway, start_gateway
from .document import DOCUMENT, MESSAGES, RECORDS, example_of, examples_of, json_headers, rejection_of

__all__ = ["start_gateway"]  # the fixture

QUARANTINE = Settings().kafka_quarantine_topic
IN_BOX = 30
CURSOR = re.compile(r',"cursor":"([A-Za-z0-9_-]+)"\}')


async def connected(gateway: Harness, device_id: str, query: str = "") -> ClientConnection:
    return await gateway.connect_with(gateway.token(device_id, groups=["kitchen"]) + query)


async def hear(device: ClientConnection) -> str:
    message = await asyncio.wait_for(device.recv(), 30)
    assert isinstance(message, str)
    return message


async def produce_examples(gateway: Harness, devices: dict[str, ClientConnection]) -> list[str]:
    """Produce each record and await its messages, one after another. Return the messages beyond the documented ones."""
    rest = []
    for example in examples_of(*RECORDS):
        await gateway.broker.append(RESULTS, None, example.text.encode(), json_headers(example))
        expected = example_of("transcription", example.name).text
        for device_id in MESSAGES[example.message]["x-recipients"][example.name]:
            message = await hear(devices[device_id])
            assert message.startswith(expected[:-1]), example.name
            rest.append(message[len(expected) - 1 :])
    return rest


async def assert_nothing_else(gateway: Harness, devices: Iterable[ClientConnection]) -> None:
    """Messages come in order: nothing came before the one of a record that is produced now."""
    await gateway.broker.append(RESULTS, None, b'{"to":{"all":true},"text":"the last"}')
    for device in devices:
        assert '"the last"' in await hear(device)


@pytest.mark.gen_test
async def test_each_record_reaches_the_documented_devices_as_the_documented_message(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    devices = {device_id: await connected(gateway, device_id) for device_id in ("doll-1", "doll-2")}
    assert set(await produce_examples(gateway, devices)) == {"}"}
    await assert_nothing_else(gateway, devices.values())


@pytest.mark.gen_test
async def test_each_rejected_record_is_copied_with_the_documented_headers(start_gateway: StartGateway) -> None:
    gateway, rejected = await start_gateway(), examples_of("rejectedRecord")
    device = await connected(gateway, "doll-1")
    for example in rejected:
        record = rejection_of(example)
        await gateway.broker.append(RESULTS, b"a key", record.value, record.headers)
    await assert_nothing_else(gateway, [device])
    copies = gateway.broker.records(QUARANTINE)
    assert len(copies) == len(rejected)
    for example, copy in zip(rejected, copies, strict=True):
        record = rejection_of(example)
        assert (copy.key, copy.value) == (b"a key", record.value), example.name
        headers = copy.headers | {"cocoa.offset": record.added["cocoa.offset"]}
        assert headers == record.headers | record.added, example.name


@pytest.mark.gen_test
async def test_with_a_mailbox_the_documented_cursors_gaps_and_acknowledgements_work(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(mailbox="memory://", mailbox_max_messages=IN_BOX)
    devices = {device_id: await connected(gateway, device_id, "&cursors=1") for device_id in ("doll-1", "doll-2")}
    rest = await produce_examples(gateway, devices)
    assert [text for text in rest if not CURSOR.fullmatch(text)] == []
    documented = example_of("transcription", "with-a-cursor").text
    assert documented.startswith(example_of("transcription", "plain").text[:-1] + ',"cursor":')

    gap = example_of("gap", "three")
    for number in range(IN_BOX + gap.payload["missed"]):
        await gateway.publish("doll-3", str(number))
    away = await connected(gateway, "doll-3", "&cursors=1")
    assert await hear(away) == gap.text

    await gateway.publish("doll-1", "to be acknowledged")
    cursor = CURSOR.search(await hear(devices["doll-1"]))
    assert cursor is not None
    await devices["doll-1"].send(example_of("ack", "one").text.replace("AAAAAAAAAAeYure9PRtfD2Qx", cursor[1]))
    await devices["doll-1"].close()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll-1"))
    again = await connected(gateway, "doll-1", "&cursors=1&interim=true")
    await assert_nothing_else(gateway, [again])
    await again.close()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll-1"))
    await assert_nothing_else(gateway, [await connected(gateway, "doll-1", f"&after={cursor[1]}")])
    assert not gateway.broker.records("device.messages")


@pytest.mark.gen_test
async def test_text_and_audio_of_a_device_are_accepted_as_documented(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(engine=ScriptedEngine())
    device = await gateway.connect_with(gateway.token("doll-1"))
    await device.send(example_of("audio", "four-samples").payload.encode("latin-1"))
    await device.send(example_of("audioEnd", "end").text)
    await device.send(example_of("text", "good-night").payload)
    await eventually(lambda: bool(gateway.broker.records("device.messages")))
    [record] = gateway.broker.records("device.messages")
    expected = example_of("deviceMessage", "good-night").payload
    assert record.key == b"doll-1"
    assert record.value is not None
    published = json.loads(record.value)
    assert published == expected | {"timestamp": published["timestamp"]}
    assert list(published) == list(expected)
    assert len(published["timestamp"]) == len(expected["timestamp"])


@pytest.mark.gen_test
async def test_the_documented_ways_to_send_a_token_work(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    ways = DOCUMENT["components"]["securitySchemes"]
    assert [(ways[name]["type"], ways[name].get("name")) for name in sorted(ways)] == [
        ("httpApiKey", "Sec-WebSocket-Protocol"),
        ("http", None),
        ("httpApiKey", "token"),
    ]
    token = gateway.token("doll-1")
    for headers in ({"Authorization": f"Bearer {token}"}, {"Sec-WebSocket-Protocol": f"bearer, {token}"}):
        device = await gateway.upgrade(None, headers)
        assert device.response.status == 101
        await device.end()
        await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll-1"))
