"""Contract sections 3 and 4, through a whole gateway. What holds of a connection alone is in ``tests/connection``."""

from __future__ import annotations

import asyncio
import json

import pytest

from testing.raw_device import CLOSE, PING, TEXT, frame
from testing.waiting import eventually

from ..connection.stand import FullBroker
from ..harness import RESULTS, Harness
from .conftest import StartGateway
from .uploads import MIB

RECORD = (
    b'{"session_id":"a1b2c3d4e5f6g7h8","user_id":99,"device_id":"12312","text":"Hello",'
    b'"timestamp":"2024-01-15T10:30:00Z","success":true}'
)


@pytest.mark.gen_test
async def test_a_device_gets_the_exact_bytes_of_the_contract(gateway: Harness) -> None:
    device = await gateway.raw("12312")
    await gateway.gateway.broker.publish(RESULTS, "12312", RECORD)
    received = await device.read_frame()
    assert received.opcode == TEXT
    assert received.payload == b'{"type":"transcription",' + RECORD[1:]


@pytest.mark.gen_test
async def test_a_message_reaches_its_device_and_no_other_in_order(gateway: Harness) -> None:
    one, two = await gateway.connect("one"), await gateway.connect("two")
    for number in range(300):
        await gateway.publish("one" if number % 3 else "two", str(number))
    got_one = [json.loads(await one.recv())["text"] for _ in range(200)]
    got_two = [json.loads(await two.recv())["text"] for _ in range(100)]
    assert got_one == [str(n) for n in range(300) if n % 3]
    assert got_two == [str(n) for n in range(300) if not n % 3]
    for device in (one, two):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(device.recv(), 0.1)
        await device.close()


@pytest.mark.gen_test
async def test_the_value_decides_where_a_record_goes_whatever_its_key_says(gateway: Harness) -> None:
    one, two = await gateway.raw("one"), await gateway.raw("two")
    await gateway.gateway.broker.publish(RESULTS, "two", b'{"device_id":"one","text":"x"}')
    assert b'"device_id":"one"' in (await one.read_frame()).payload
    assert (await gateway.metrics())["cocoa_records_key_mismatch_total"] == 1
    two.close()


@pytest.mark.gen_test
async def test_a_record_reaches_the_users_groups_and_devices_that_its_value_and_headers_name(
    start_gateway: StartGateway,
) -> None:
    """With a mailbox and without."""
    for mailbox in ("none://", "memory://"):
        gateway = await start_gateway(mailbox=mailbox)
        tokens = [
            gateway.token("one", groups=["red", "blue"]),
            gateway.token("two", groups=["red"]),
            gateway.token("three", user_id="99"),
        ]
        devices = [await gateway.connect_with(token) for token in tokens]
        records: list[tuple[str, dict[str, bytes]]] = [
            ('"to":{"user":99}', {}),
            ('"device_id":"one"', {"cocoa.to": b'{"user":"99"}'}),
            ('"to":{"group":"red"},"except":{"devices":["one"]}', {"cocoa.ttl": b"0"}),
            ('"to":{"group":"nobody"}', {}),
            ('"to":{"devices":["one","three","one"]}', {"cocoa.id": b"i"}),
            ('"to":{"group":""}', {}),
            ('"to":{"all":true}', {}),
        ]
        for number, (members, headers) in enumerate(records):
            await gateway.broker.publish(RESULTS, "key", f'{{"n":{number},{members}}}'.encode(), headers)
        for device, expected in zip(devices, [[0, 4, 6], [0, 2, 6], [1, 4, 6]], strict=True):
            got = [json.loads(await device.recv()) for _ in expected]
            assert [message["n"] for message in got] == expected
            assert {name for message in got for name in message} <= {"type", "n", "device_id", "id", "cursor"}
        metrics = await gateway.metrics()
        assert metrics["cocoa_messages_unknown_device_total"] == 1
        assert metrics['cocoa_records_quarantined_total{reason="to"}'] == 1


@pytest.mark.gen_test
async def test_a_message_for_a_device_that_is_not_connected_is_dropped_and_counted(gateway: Harness) -> None:
    other = await gateway.raw("other")
    await gateway.publish("nobody", "x")
    await gateway.publish("other", "y")
    assert b'"text":"y"' in (await other.read_frame()).payload
    metrics = await gateway.metrics()
    assert metrics["cocoa_messages_unknown_device_total"] == 1
    assert metrics["cocoa_messages_routed_total"] == 1


@pytest.mark.gen_test
async def test_a_bad_record_is_set_aside_and_never_stops_the_stream(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    for value in (b"\xff\xfe", b"[]", b"{", b'{"device_id":7}', b"{}"):
        await gateway.gateway.broker.publish(RESULTS, "doll", value)
    await gateway.publish("doll", "good")
    assert b"good" in (await device.read_frame()).payload
    assert len(gateway.broker.records("transcription.results.quarantine")) == 5


@pytest.mark.gen_test
async def test_text_from_a_device_is_published_keyed_by_its_id(gateway: Harness) -> None:
    device = await gateway.connect("doll")
    await device.send('grüß "dich" /\n')
    await eventually(lambda: len(gateway.broker.records("device.messages")) == 1)
    (record,) = gateway.broker.records("device.messages")
    assert record.key == b"doll"
    assert record.value is not None
    assert record.value.startswith(
        '{"device_id":"doll","user_id":99,"text":"grüß \\"dich\\" /\\n","timestamp":"'.encode()
    )
    await device.close()


@pytest.mark.gen_test
async def test_an_ack_without_a_mailbox_is_an_ordinary_message(gateway: Harness) -> None:
    device = await gateway.connect("doll")
    await device.send('{"type":"ack","cursor":"x"}')
    await eventually(lambda: len(gateway.broker.records("device.messages")) == 1)
    await device.close()


@pytest.mark.gen_test
@pytest.mark.logs("cocoa.device", "^audio ignored")
async def test_audio_without_a_speech_engine_is_counted_and_harms_nothing(gateway: Harness) -> None:
    device = await gateway.connect("doll")
    await device.send(b"\0" * 640)
    await device.send("after")
    await eventually(lambda: len(gateway.broker.records("device.messages")) == 1)
    assert (await gateway.metrics())["cocoa_audio_messages_ignored_total"] == 1
    await device.close()


@pytest.mark.gen_test
async def test_a_device_that_answers_no_ping_is_closed_though_it_sends(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(ping_interval_s=0.3, ping_timeout_s=0.3)
    device = await gateway.raw("doll")
    await device.read_until(PING)
    device.send(TEXT, b"no pong of mine")
    closed = await device.read_until(CLOSE)
    assert closed.close_code == 1008
    assert not gateway.gateway.hub.is_device_connected("doll")


@pytest.mark.gen_test
async def test_a_device_that_sends_too_much_is_closed_with_1008(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(inbound_rate=10.0, inbound_burst=20)
    flood, quiet = await gateway.raw("flood"), await gateway.raw("quiet")
    flood.writer.write(b"".join(frame(TEXT, b"x") for _ in range(50)))
    assert (await flood.read_until(CLOSE)).close_code == 1008
    await gateway.publish("quiet", "undisturbed")
    assert b"undisturbed" in (await quiet.read_frame()).payload


@pytest.mark.gen_test
async def test_a_drain_waits_for_the_words_of_devices_that_have_left(start_gateway: StartGateway) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker)
    device = await gateway.raw("doll")
    broker.room.clear()
    for number in range(10):
        device.send(TEXT, str(number).encode())
    device.close()
    await eventually(lambda: len(gateway.gateway.hub) == 0)
    draining = asyncio.ensure_future(gateway.gateway.drain_and_stop())
    await eventually(lambda: gateway.gateway.presence.draining)
    broker.room.set()
    await draining
    assert len(broker.records("device.messages")) == 10


@pytest.mark.gen_test(timeout=60)
@pytest.mark.logs("cocoa.device", "^messages from the device dropped$", optional=True)  # their last words
async def test_a_drain_ends_devices_whose_words_wait_for_room_which_metrics_show(start_gateway: StartGateway) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker, buffer_bytes=32 * MIB, inbound_rate=0.0, drain_grace_s=5.0)
    intake = gateway.gateway.wiring.devices.intake
    devices = [await gateway.raw(f"doll-{number}") for number in range(12)]
    broker.room.clear()
    for device in devices:  # with a mask of zeros: to mask megabytes in Python takes seconds
        device.writer.write(b"\x81\xff" + (200_000).to_bytes(8, "big") + bytes(4) + b"x" * 200_000)
    await eventually(lambda: intake.is_full)
    assert (await gateway.metrics())['cocoa_buffer_bytes{part="uplink"}'] == intake.rule.total
    draining = asyncio.ensure_future(gateway.gateway.drain_and_stop())
    for device in devices:
        assert (await device.read_until(CLOSE)).close_code == 1001
        device.close()
    broker.room.set()
    await draining
