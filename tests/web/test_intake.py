"""What devices say while the broker takes nothing, or while they do not come to its end: bounded, and not lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cocoa_tornado.connection.connection import DeviceConnection
from cocoa_tornado.connection.intake import IntakeGate
from cocoa_tornado.connection.protocol import PAUSED
from cocoa_tornado.rules.intake import LEAST_PIECE, TURNS
from testing.raw_device import BINARY, CLOSE, PING, PONG, TEXT, RawDevice
from testing.waiting import eventually

from ..harness import Harness
from .conftest import StartGateway
from .test_connection import FullBroker
from .uploads import MIB

pytestmark = pytest.mark.gen_test(timeout=60)

SMALL: dict[str, Any] = {"buffer_bytes": 32 * MIB, "inbound_rate": 0.0}
LARGE = 400_000
BOUND = 2 * MIB  # of each amount: a half of a sixteenth of that, twice


def intake_of(gateway: Harness) -> IntakeGate:
    assert gateway.gateway._devices is not None
    return gateway.gateway._devices.intake


def unmasked(opcode: int, payload: bytes) -> bytes:
    """A frame whose mask is all zeros: to mask megabytes in Python takes seconds."""
    size = len(payload)
    length = b"\xff" + size.to_bytes(8, "big") if size >= 0x10000 else b"\xfe" + size.to_bytes(2, "big")
    return bytes((0x80 | opcode,)) + length + bytes(4) + payload


def is_paused(gateway: Harness, device_id: str) -> bool:
    client = gateway.gateway.hub.get_client_by_device(device_id)
    assert isinstance(client, DeviceConnection)
    return client.protocol.reading is PAUSED


def text(number: int, size: int = LARGE) -> bytes:
    return b"%d " % number + b"x" * size


async def test_messages_wait_in_the_sockets_of_their_devices_while_the_broker_takes_none(
    start_gateway: StartGateway,
) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker, **SMALL)
    intake, count = intake_of(gateway), 40
    devices = [await gateway.raw(f"doll-{number}") for number in range(count)]
    broker.room.clear()
    for number, device in enumerate(devices):
        device.writer.write(unmasked(TEXT, text(number)))
    await eventually(lambda: all(is_paused(gateway, f"doll-{number}") for number in range(count)))
    assert intake.rule.total <= 2 * BOUND + TURNS * LARGE + count * 16 * 1024
    assert intake.rule.total < count * LARGE / 2
    assert (await gateway.metrics())['cocoa_buffer_bytes{part="uplink"}'] == intake.rule.total
    broker.room.set()
    await eventually(lambda: len(broker.records("device.messages")) == count)
    assert sorted(record.key or b"" for record in broker.records("device.messages")) == sorted(
        b"doll-%d" % number for number in range(count)
    )
    await eventually(lambda: intake.rule.total == 0)
    assert repr(intake.rule) == "<Intake 0 under way, 0 held, 0 waiting>"


async def test_a_devices_messages_keep_their_order_through_the_wait(start_gateway: StartGateway) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker, **SMALL)
    devices = [await gateway.raw(f"doll-{number}") for number in range(15)]
    broker.room.clear()
    for number in range(6):
        for device in devices:
            device.writer.write(unmasked(TEXT, text(number, 200_000)))
    await eventually(lambda: intake_of(gateway).is_full)
    broker.room.set()
    await eventually(lambda: len(broker.records("device.messages")) == 90)
    heard: dict[bytes, list[bytes]] = {}
    for record in broker.records("device.messages"):
        assert record.key is not None
        assert record.value is not None
        heard.setdefault(record.key, []).append(record.value.partition(b'"text":"')[2][:1])
    assert [b"".join(numbers) for numbers in heard.values()] == [b"012345"] * 15


async def test_a_device_that_only_listens_is_heard_while_others_wait(start_gateway: StartGateway) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker, **SMALL)
    listener = await gateway.raw("listener")
    devices = [await gateway.raw(f"doll-{number}") for number in range(12)]
    broker.room.clear()
    for number, device in enumerate(devices):
        device.writer.write(unmasked(TEXT, text(number)))
    await eventually(lambda: intake_of(gateway).is_full)
    listener.send(PING, b"still there?")
    assert (await listener.read_until(PONG)).payload == b"still there?"
    listener.send(CLOSE, b"\x03\xe8")
    assert (await listener.read_until(CLOSE)).close_code == 1000
    broker.room.set()


async def begin_and_stop(gateway: Harness, count: int) -> list[RawDevice]:
    """Devices that send all but the end of a message."""
    devices = []
    for number in range(count):
        device = await gateway.raw(f"stalled-{number}")
        device.writer.write(unmasked(BINARY, bytes(LARGE))[:-1])
        devices.append(device)
    return devices


async def test_messages_that_do_not_end_are_bounded_and_hold_up_no_short_one(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(**SMALL)
    intake = intake_of(gateway)
    await begin_and_stop(gateway, 60)
    most = BOUND + TURNS * LARGE + 60 * 16 * 1024
    await eventually(lambda: len(intake.rule._turns) == TURNS and len(intake._rooms) > 0)
    assert BOUND <= intake.rule.under_way <= most
    device = await gateway.raw("doll")
    for number in range(50):
        device.send(TEXT, text(number, LEAST_PIECE // 2))
    await eventually(lambda: len(gateway.broker.records("device.messages")) == 50)
    assert intake.rule.under_way <= most


@pytest.mark.logs("cocoa.device", "audio ignored", optional=True)
async def test_a_message_under_way_can_always_end(start_gateway: StartGateway) -> None:
    """Among 60 devices that have filled the bound with parts of messages, each ends its own one after the other."""
    gateway = await start_gateway(**SMALL)
    intake = intake_of(gateway)
    devices = await begin_and_stop(gateway, 60)
    await eventually(lambda: len(intake._rooms) > 0)
    for device in devices:
        device.writer.write(b"\0")
    await eventually(lambda: gateway.gateway.counters.audio_ignored == 60)
    await eventually(lambda: intake.rule.total == 0)
    assert len(gateway.gateway.hub) == 60


async def test_a_device_that_does_not_end_its_message_in_its_turn_is_closed_with_1013(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocoa_tornado.rules.intake.TURN_S", 0.2)
    gateway = await start_gateway(**SMALL)
    devices = await begin_and_stop(gateway, 30)
    await eventually(lambda: gateway.gateway.counters.closed.get("1013", 0) >= TURNS)
    # Those that are left fit the bound, and nobody waits for them.
    await eventually(lambda: not intake_of(gateway)._rooms)
    assert intake_of(gateway).rule.under_way <= BOUND + TURNS * LARGE
    closed = next(device for device in devices if device.reader.at_eof() or device.reader._buffer)  # type: ignore[attr-defined]
    assert (await closed.read_until(CLOSE)).close_code == 1013


@pytest.mark.logs("cocoa.device", "^messages from the device dropped$")
async def test_the_last_words_of_devices_that_left_are_kept_within_the_bound(start_gateway: StartGateway) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker, **SMALL)
    intake = intake_of(gateway)
    devices = [await gateway.raw(f"doll-{number}") for number in range(40)]
    broker.room.clear()
    for number, device in enumerate(devices):
        for _ in range(3):  # no more than the kernel holds, or the end of the connection could not be seen
            device.writer.write(unmasked(TEXT, text(number, 40_000)))
    await eventually(lambda: intake.is_full)
    for device in devices:
        device.close()
    await eventually(lambda: len(gateway.gateway.hub) == 0)
    counters = gateway.gateway.counters
    assert intake.rule.held <= BOUND
    assert counters.device_messages == 120
    assert counters.device_messages_dropped > 60
    kept = counters.device_messages - counters.device_messages_dropped
    broker.room.set()
    await eventually(lambda: len(broker.records("device.messages")) == kept)
    assert intake.rule.total == 0


@pytest.mark.logs("cocoa.device", "^messages from the device dropped$", optional=True)  # their last words
async def test_a_drain_ends_devices_that_wait_for_room(start_gateway: StartGateway) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker, **SMALL, drain_grace_s=5.0)
    devices = [await gateway.raw(f"doll-{number}") for number in range(12)]
    broker.room.clear()
    for number, device in enumerate(devices):
        device.writer.write(unmasked(TEXT, text(number, 200_000)))
    await eventually(lambda: intake_of(gateway).is_full)
    draining = asyncio.ensure_future(gateway.gateway.drain_and_stop())
    for device in devices:
        assert (await device.read_until(CLOSE)).close_code == 1001
        device.close()
    broker.room.set()
    await draining
