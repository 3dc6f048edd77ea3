"""What devices say while the broker takes nothing, or while they do not come to its end: bounded, and not lost."""

from __future__ import annotations

import pytest

from cocoa_tornado.rules.intake import MIN_PIECE, TURN_S, TURNS
from cocoa_tornado.rules.rate import RateLimit
from testing.raw_device import BINARY, CLOSE, PING, PONG, TEXT, RawDevice
from testing.waiting import eventually

from .conftest import MakeStand
from .stand import MIB, FullBroker, Stand

pytestmark = pytest.mark.gen_test(timeout=60)

LARGE = 400_000
BOUND = 2 * MIB  # of each amount
TOTAL = 2 * BOUND
NO_RATE = RateLimit(per_s=0.0, burst=1)


def unmasked(opcode: int, payload: bytes) -> bytes:
    """A frame whose mask is all zeros: to mask megabytes in Python takes seconds."""
    size = len(payload)
    length = b"\xff" + size.to_bytes(8, "big") if size >= 0x10000 else b"\xfe" + size.to_bytes(2, "big")
    return bytes((0x80 | opcode,)) + length + bytes(4) + payload


def text(number: int, size: int = LARGE) -> bytes:
    return b"%d " % number + b"x" * size


async def small(make_stand: MakeStand, broker: FullBroker | None = None) -> Stand:
    stand = await make_stand(broker, intake_bytes=TOTAL, inbound=NO_RATE)
    stand.counters.audio_ignored = 1  # it has been logged
    return stand


async def test_messages_wait_in_the_sockets_of_their_devices_while_the_broker_takes_none(
    make_stand: MakeStand,
) -> None:
    broker = FullBroker()
    stand, count = await small(make_stand, broker), 40
    rule = stand.context.intake.rule
    devices = [await stand.raw(f"doll-{number}") for number in range(count)]
    broker.room.clear()
    for number, device in enumerate(devices):
        device.writer.write(unmasked(TEXT, text(number)))
    await eventually(lambda: all(stand.is_paused(f"doll-{number}") for number in range(count)))
    assert rule.total <= 2 * BOUND + TURNS * LARGE + count * 16 * 1024
    assert rule.total < count * LARGE / 2
    broker.room.set()
    await eventually(lambda: len(stand.published) == count)
    assert sorted(record.key or b"" for record in broker.records("device.messages")) == sorted(
        b"doll-%d" % number for number in range(count)
    )
    await eventually(lambda: rule.total == 0)
    assert repr(rule) == "<Intake 0 under way, 0 held, 0 waiting>"


async def test_a_devices_messages_keep_their_order_through_the_wait(make_stand: MakeStand) -> None:
    broker = FullBroker()
    stand = await small(make_stand, broker)
    devices = [await stand.raw(f"doll-{number}") for number in range(15)]
    broker.room.clear()
    for number in range(6):
        for device in devices:
            device.writer.write(unmasked(TEXT, text(number, 200_000)))
    await eventually(lambda: stand.context.intake.is_full)
    broker.room.set()
    await eventually(lambda: len(stand.published) == 90)
    heard: dict[bytes, list[bytes]] = {}
    for record in broker.records("device.messages"):
        assert record.key is not None
        assert record.value is not None
        heard.setdefault(record.key, []).append(record.value.partition(b'"text":"')[2][:1])
    assert [b"".join(numbers) for numbers in heard.values()] == [b"012345"] * 15


async def test_a_device_that_only_listens_is_heard_while_others_wait(make_stand: MakeStand) -> None:
    broker = FullBroker()
    stand = await small(make_stand, broker)
    listener = await stand.raw("listener")
    devices = [await stand.raw(f"doll-{number}") for number in range(12)]
    broker.room.clear()
    for number, device in enumerate(devices):
        device.writer.write(unmasked(TEXT, text(number)))
    await eventually(lambda: stand.context.intake.is_full)
    listener.send(PING, b"still there?")
    assert (await listener.read_until(PONG)).payload == b"still there?"
    listener.send(CLOSE, b"\x03\xe8")
    assert (await listener.read_until(CLOSE)).close_code == 1000
    broker.room.set()


async def begin_and_stop(stand: Stand, count: int) -> list[RawDevice]:
    """Devices that send all but the end of a message."""
    devices = []
    for number in range(count):
        device = await stand.raw(f"stalled-{number}")
        device.writer.write(unmasked(BINARY, bytes(LARGE))[:-1])
        devices.append(device)
    return devices


async def test_messages_that_do_not_end_are_bounded_and_hold_up_no_short_one(make_stand: MakeStand) -> None:
    stand = await small(make_stand)
    intake = stand.context.intake
    await begin_and_stop(stand, 60)
    most = BOUND + TURNS * LARGE + 60 * 16 * 1024
    await eventually(lambda: len(intake.rule._turns) == TURNS and len(intake._rooms) > 0)
    assert BOUND <= intake.rule.under_way <= most
    device = await stand.raw()
    for number in range(50):
        device.send(TEXT, text(number, MIN_PIECE // 2))
    await eventually(lambda: len(stand.published) == 50)
    assert intake.rule.under_way <= most


async def test_a_message_under_way_can_always_end(make_stand: MakeStand) -> None:
    """Among 60 devices that have filled the bound with parts of messages, each ends its own one after the other."""
    stand = await small(make_stand)
    intake = stand.context.intake
    devices = await begin_and_stop(stand, 60)
    await eventually(lambda: len(intake._rooms) > 0)
    for device in devices:
        device.writer.write(b"\0")
    await eventually(lambda: stand.counters.audio_ignored == 61)
    await eventually(lambda: intake.rule.total == 0)
    assert len(stand.hub) == 60


async def test_a_device_that_does_not_end_its_message_in_its_turn_is_closed_with_1013(make_stand: MakeStand) -> None:
    stand = await small(make_stand)
    intake = stand.context.intake
    devices = await begin_and_stop(stand, 30)
    await eventually(lambda: len(intake.rule._turns) == TURNS and len(intake._rooms) > 0)
    stand.now += TURN_S
    intake.end_late_turns()
    assert stand.counters.closed == {"1013": TURNS}
    # The remaining ones fit the bound in the end, and none waits.
    while intake._rooms:
        await stand.rest()
        stand.now += TURN_S
        intake.end_late_turns()
    assert intake.rule.under_way <= BOUND + TURNS * LARGE
    closed = next(device for device in devices if device.reader._buffer)  # type: ignore[attr-defined]
    assert (await closed.read_until(CLOSE)).close_code == 1013


async def test_a_ping_inside_a_message_does_not_end_its_turn(stand: Stand) -> None:
    connection, device = await stand.connect()
    turns = stand.context.intake.rule._turns
    device.send(TEXT, b"x" * 1000, fin=False)
    await eventually(lambda: stand.context.intake.rule.under_way == 1000)
    assert connection._inbound is not None
    turns[connection._inbound] = stand.now + TURN_S
    device.send(PING, b"still here")
    await device.read_until(PONG)
    assert len(turns) == 1
    device.send(0x0, b"the end")
    await eventually(lambda: len(stand.published) == 1)
    assert not turns


@pytest.mark.logs("cocoa.device", "^messages from the device dropped$")
async def test_the_last_words_of_devices_that_left_are_kept_within_the_bound(make_stand: MakeStand) -> None:
    broker = FullBroker()
    stand = await small(make_stand, broker)
    intake, counters = stand.context.intake, stand.counters
    devices = [await stand.raw(f"doll-{number}") for number in range(40)]
    broker.room.clear()
    for number, device in enumerate(devices):
        for _ in range(3):  # no more than the kernel holds, or the end of the connection could not be seen
            device.writer.write(unmasked(TEXT, text(number, 40_000)))
    await eventually(lambda: intake.is_full)
    for device in devices:
        device.close()
    while len(stand.hub):
        stand.pass_time(0.5)
        await stand.rest()
    assert intake.rule.held <= BOUND
    assert counters.device_messages == 120
    assert counters.device_messages_dropped > 60
    kept = counters.device_messages - counters.device_messages_dropped
    broker.room.set()
    await eventually(lambda: len(stand.published) == kept)
    assert intake.rule.total == 0
