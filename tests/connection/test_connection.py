"""Contract sections 3 and 4, as far as a socket, the kernel or the event loop is involved.

The decisions of a connection are in ``test_protocol.py``.
"""

from __future__ import annotations

import asyncio
import json
import struct

import pytest

from cocoa_tornado.connection.connection import DeviceConnection
from cocoa_tornado.connection.device_socket import DeviceSocket
from cocoa_tornado.connection.flusher import Flusher
from cocoa_tornado.connection.making_room import OutboxLimits
from cocoa_tornado.counters import Histogram
from cocoa_tornado.errors import BrokerError, RecordTooLarge
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Entry
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.rules.close_codes import GOING_AWAY
from cocoa_tornado.rules.rate import RateLimit
from cocoa_tornado.rules.terms import Terms
from testing.raw_device import BINARY, CLOSE, PING, PONG, TEXT, RawDevice, frame
from testing.waiting import eventually

from .conftest import MakeStand
from .stand import PING_INTERVAL_S, FullBroker, RefusingBroker, Stand

pytestmark = pytest.mark.gen_test(timeout=30)

GOODBYE = struct.pack("!H", 1000)
ROOMY = OutboxLimits(max_messages=10_000, max_bytes=64 * 1024 * 1024)
NO_RATE = RateLimit(per_s=0.0, burst=1)
HIGH, LOW = Terms(priority="high"), Terms(priority="low")


def texts(stand: Stand) -> list[str]:
    return [json.loads(record)["text"] for record in stand.published]


# -- the life of a connection


async def test_a_device_that_says_nothing_holds_no_task(stand: Stand) -> None:
    before = asyncio.all_tasks()
    devices = [await stand.raw(f"doll-{number}") for number in range(5)]
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    for number, device in enumerate(devices):
        stand.send(f"doll-{number}", b"x")
        assert (await device.read_frame()).payload == b"x"
    assert asyncio.all_tasks() == before


async def test_a_connection_that_cannot_be_opened_is_left_nowhere(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where epoll takes no more descriptors."""

    def fail(self: DeviceSocket, callback: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(DeviceSocket, "start_reading", fail)
        with pytest.raises(OSError, match="no space"):
            await stand.connect()
    assert not stand.is_connected()
    assert not list(stand.context.sockets)
    assert stand.presence.slots_taken == 0
    assert "0 entries" in repr(stand.context.wheel)
    await stand.raw()


async def test_messages_reach_their_device_in_order_and_no_other(stand: Stand) -> None:
    one, two = await stand.raw("one"), await stand.raw("two")
    for number in range(300):
        stand.send("one" if number % 3 else "two", b"%d" % number)
    assert [(await one.read_frame()).payload for _ in range(200)] == [b"%d" % n for n in range(300) if n % 3]
    assert [(await two.read_frame()).payload for _ in range(100)] == [b"%d" % n for n in range(300) if not n % 3]


async def test_what_devices_say_is_published_and_their_pings_are_answered(stand: Stand) -> None:
    device = await stand.raw()
    device.send(TEXT, b"one")
    device.send(PING, b"payload")
    device.send(TEXT, "größer".encode())
    received = await device.read_frame()
    assert (received.opcode, received.payload) == (PONG, b"payload")
    await eventually(lambda: texts(stand) == ["one", "größer"])


@pytest.mark.parametrize("vanish", ["close", "reset", "hang up"])
async def test_a_device_that_has_left_has_left_everything_at_once(stand: Stand, vanish: str) -> None:
    for _ in range(2):
        device = await stand.raw()
        assert stand.presence.slots_taken == 1
        if vanish == "reset":
            device.reset()
        elif vanish == "hang up":
            device.close()
        else:
            device.send(CLOSE, GOODBYE)
            assert (await device.read_frame()).close_code == 1000
            assert await device.read_to_end() == b""
        await eventually(lambda: not stand.is_connected())
        assert stand.presence.slots_taken == 0
        assert "0 entries" in repr(stand.context.wheel)
    closed = stand.counters.closed
    assert closed == ({"1000": 2} if vanish == "close" else {"lost": 2})


async def test_an_end_from_this_side_is_a_whole_handshake(stand: Stand) -> None:
    connection, device = await stand.connect()
    stand.send("doll", b"last")
    connection.end(GOING_AWAY, keep_queued=True)
    connection.end(GOING_AWAY)
    assert not stand.is_connected()
    assert (await device.read_frame()).payload == b"last"
    assert (await device.read_frame()).close_code == 1001
    assert list(stand.context.sockets) == [connection]
    device.send(CLOSE, struct.pack("!H", 1001))
    assert await device.read_to_end() == b""
    await eventually(lambda: not list(stand.context.sockets))


async def test_the_notice_of_an_end_comes_between_what_is_queued_and_the_close_frame(stand: Stand) -> None:
    connection, device = await stand.connect(receive_buffer=4096)
    for text in (b"x" * 900_000, b"last"):
        stand.send("doll", text)
    connection.end(GOING_AWAY, keep_queued=True, notice=b'{"type":"reconnect","after_ms":0}')
    assert len((await device.read_frame()).payload) == 900_000
    assert [(await device.read_frame()).payload for _ in range(2)] == [b"last", b'{"type":"reconnect","after_ms":0}']
    assert (await device.read_frame()).close_code == 1001


async def test_a_client_that_never_answers_our_close_is_cut_off(make_stand: MakeStand) -> None:
    stand = await make_stand(write_wait_s=0.05)
    connection, device = await stand.connect()
    connection.end(GOING_AWAY)
    assert (await device.read_frame()).close_code == 1001
    assert await device.read_to_end() == b""


async def test_an_invalid_frame_ends_the_connection_behind_what_came_before(stand: Stand) -> None:
    device = await stand.raw()
    device.writer.write(frame(TEXT, b"before") + frame(TEXT, b"x", rsv=4) + frame(TEXT, b"after"))
    assert (await device.read_frame()).close_code == 1002
    assert not stand.is_connected()
    assert texts(stand) == ["before"]
    # Its own close ends the lingering at once.
    device.close()
    await eventually(lambda: not list(stand.context.sockets))


async def test_a_device_whose_message_is_too_big_hears_it_though_it_goes_on_sending(stand: Stand) -> None:
    device = await stand.raw()
    device.writer.write(b"\x82\xff" + (5_000_000).to_bytes(8, "big") + bytes(4) + bytes(5_000_000))
    await device.writer.drain()
    assert (await device.read_frame()).close_code == 1009
    assert await device.read_to_end() == b""


@pytest.mark.parametrize("fault", [frame(TEXT, b"x", rsv=4), frame(PONG) * 300], ids=["invalid frame", "flood"])
async def test_a_client_that_goes_on_sending_after_the_end_is_cut_off(stand: Stand, fault: bytes) -> None:
    device = await stand.raw()
    device.writer.write(fault)
    await device.read_until(CLOSE)

    async def go_on() -> None:
        for _ in range(100):
            device.writer.write(bytes(1024 * 1024))
            await device.writer.drain()

    with pytest.raises(ConnectionError):
        await go_on()


async def test_a_flood_of_binary_frames_does_not_starve_the_others(make_stand: MakeStand) -> None:
    stand = await make_stand(inbound=NO_RATE)
    stand.counters.audio_ignored = 1  # it has been logged
    flood, quiet = await stand.raw("flood"), await stand.raw("quiet")
    chunk = frame(BINARY, b"\0" * 100) * 2000
    sending = True

    async def send() -> None:
        while sending:
            flood.writer.write(chunk)
            await flood.writer.drain()

    sender = asyncio.ensure_future(send())
    for number in range(20):
        stand.send("quiet", b"%d" % number)
        assert (await quiet.read_frame()).payload == b"%d" % number
    sending = False
    await sender


# -- pings


async def test_a_device_that_answers_pings_stays_and_one_that_does_not_is_closed(stand: Stand) -> None:
    answers, silent = await stand.raw("answers"), await stand.raw("silent")
    stand.pass_time(PING_INTERVAL_S)
    await answers.read_until(PING)
    answers.send(PONG)
    await eventually(lambda: stand.hub.clients_of("answers")[0].health.round_trip_s is not None)
    await silent.read_until(PING)
    silent.send(TEXT, b"no pong of mine")
    await eventually(lambda: texts(stand) == ["no pong of mine"])
    stand.pass_time(PING_INTERVAL_S)
    assert stand.is_connected("answers")
    assert not stand.is_connected("silent")
    assert (await silent.read_until(CLOSE)).close_code == 1008


async def test_a_pong_that_lies_in_the_socket_when_its_time_is_over_has_come_in_time(stand: Stand) -> None:
    device = await stand.raw()
    stand.pass_time(PING_INTERVAL_S)
    await device.read_until(PING)
    # In one turn of the loop, so that the pong is there and not read.
    device.writer.get_extra_info("socket")._sock.send(frame(PONG))
    stand.pass_time(2 * PING_INTERVAL_S)
    assert stand.is_connected()


# -- a device that reads slowly


async def fill(stand: Stand, device_id: str, size: int = 100_000, most: int = 400) -> None:
    """Send messages until the outbox has overflowed."""
    for _ in range(most):
        stand.send(device_id, b"x" * size)
        await asyncio.sleep(0)
        if stand.counters.outbox_overflows:
            return
    pytest.fail("it has not overflowed")


async def test_a_slow_consumer_is_closed_with_1013_and_costs_nobody_else_anything(stand: Stand) -> None:
    slow, quick = await stand.raw("slow", receive_buffer=4096), await stand.raw("quick")
    await fill(stand, "slow")
    assert not stand.is_connected("slow")
    stand.send("quick", b"undisturbed")
    assert (await quick.read_frame()).payload == b"undisturbed"
    # What was under way is finished, and the reason follows it.
    assert (await slow.read_until(CLOSE)).close_code == 1013
    assert stand.counters.closed == {"1013": 1}
    assert stand.counters.dropped["overflow"] == 1


async def test_a_batch_larger_than_the_outbox_costs_a_device_that_reads_nothing(stand: Stand) -> None:
    device = await stand.raw()
    for number in range(1000):
        stand.send("doll", b"%d" % number)
    assert [(await device.read_frame()).payload for _ in range(1000)] == [b"%d" % number for number in range(1000)]


async def test_large_messages_to_a_slow_device_arrive_whole_and_in_order(make_stand: MakeStand) -> None:
    stand = await make_stand(outbox=ROOMY)
    device = await stand.raw(receive_buffer=4096)
    messages = [b"%d " % number + b"x" * 100_000 * (number % 3) for number in range(40)]
    for message in messages:
        stand.send("doll", message)
        await asyncio.sleep(0)
    assert [(await device.read_frame()).payload for _ in messages] == messages


async def test_a_high_message_overtakes_what_the_kernel_has_not_begun_to_take_and_so_does_a_ping(
    make_stand: MakeStand,
) -> None:
    stand = await make_stand(outbox=ROOMY)
    connection, device = await stand.connect(receive_buffer=4096)
    while connection.protocol.write is None:
        stand.send("doll", b"normal" + b"x" * 1000)
        await asyncio.sleep(0)
    for _ in range(1000):
        stand.send("doll", b"later" + b"x" * 1000)
    stand.send("doll", b"high", HIGH)
    connection.ping()
    await asyncio.sleep(0)
    kinds = list[tuple[int, bytes]]()
    while len(kinds) < 3:
        received = await device.read_frame()
        if received.payload[:6] != b"normal":
            kinds.append((received.opcode, received.payload[:5]))
    assert kinds == [(PING, b""), (TEXT, b"high"), (TEXT, b"later")]


async def test_low_ones_are_dropped_first_and_a_full_outbox_closes_only_if_that_is_not_enough(
    make_stand: MakeStand,
) -> None:
    stand = await make_stand(outbox=OutboxLimits(max_messages=10))
    connection, device = await stand.connect(receive_buffer=4096)
    while connection.protocol.write is None:
        stand.send("doll", b"x" * 10_000)
        await asyncio.sleep(0)
    room = 10 - len(connection.protocol.outbox)
    for number in range(room + 2):
        stand.send("doll", b"low %d" % number, LOW)
    assert stand.counters.dropped == {"overflow": 2}
    for number in range(room):
        stand.send("doll", b"final %d" % number)
    assert stand.counters.dropped == {"overflow": 2 + room}
    stand.send("doll", b"low", LOW)
    assert (stand.is_connected(), stand.counters.dropped) == (True, {"overflow": 3 + room})
    stand.send("doll", b"one too many")
    assert not stand.is_connected()
    assert stand.counters.outbox_overflows == 1
    assert (await device.read_until(CLOSE)).close_code == 1013


async def test_what_has_expired_makes_room_before_anything_else_is_dropped(make_stand: MakeStand) -> None:
    stand = await make_stand(outbox=OutboxLimits(max_messages=10))
    connection, _ = await stand.connect(receive_buffer=4096)
    while connection.protocol.write is None:
        stand.send("doll", b"x" * 10_000)
        await asyncio.sleep(0)
    stand.send("doll", b"low", LOW)
    while len(connection.protocol.outbox) < 10:
        stand.send("doll", b"expires", Terms(expires_ms=round(stand.now * 1000)))
    stand.now += 1.0
    stand.send("doll", b"final")
    assert stand.is_connected()
    assert set(stand.counters.dropped) == {"expired"}


async def test_the_latency_of_a_message_is_observed_once_when_the_socket_has_taken_it(make_stand: MakeStand) -> None:
    stand = await make_stand(outbox=ROOMY)
    latency = Histogram()
    stand.context.flusher = stand.flusher = Flusher(asyncio.get_running_loop(), lambda: 1.0, latency)
    connection, device = await stand.connect(receive_buffer=4096)
    sent = 0
    while connection.protocol.write is None or sent < 1000:
        stand.hub.send_to_device("doll", b"x" * 1000, 1)
        sent += 1
        if sent % 100 == 0:
            await asyncio.sleep(0)
    assert latency.cumulative()[-1][1] < sent
    for _ in range(sent):
        await device.read_frame()
    await eventually(lambda: latency.cumulative()[-1][1] == sent)


async def test_more_than_fits_in_one_write_follows_in_the_next(
    make_stand: MakeStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = await make_stand(outbox=ROOMY)
    await stand.connect()
    writes = list[int]()

    def write(self: DeviceSocket, data: bytes, on_sent: object) -> bool:
        writes.append(len(data))
        return True

    monkeypatch.setattr(DeviceSocket, "write", write)
    for _ in range(300):
        stand.send("doll", b"x" * 996)
    await eventually(lambda: sum(writes) == 300_000)
    assert writes == [132_000, 132_000, 36_000]


async def test_a_newer_message_replaces_the_older_one_that_waits_and_one_that_expires_is_not_sent(
    make_stand: MakeStand,
) -> None:
    stand = await make_stand(outbox=ROOMY)
    connection, device = await stand.connect(receive_buffer=4096)
    while connection.protocol.write is None:
        stand.send("doll", b"x" * 10_000)
        await asyncio.sleep(0)
    for number in range(5):
        stand.send("doll", b"state %d" % number, Terms(collapse_key="state"))
        stand.send("doll", b"expires", Terms(expires_ms=round(stand.now * 1000) + 500))
    stand.pass_time(1.0)
    stand.send("doll", b"last")
    found = list[bytes]()
    while not found or found[-1] != b"last":
        found.append((await device.read_frame()).payload)
    assert [text for text in found if text[:1] != b"x"] == [b"state 4", b"last"]
    assert stand.counters.collapsed == 4
    assert stand.counters.dropped == {"expired": 5}


async def test_a_socket_that_takes_no_byte_for_the_write_wait_is_closed(make_stand: MakeStand) -> None:
    stand = await make_stand(outbox=ROOMY)
    await stand.raw("stuck", receive_buffer=4096)
    for _ in range(100):
        stand.send("stuck", b"x" * 100_000)
    await asyncio.sleep(0)
    stand.pass_time(9.5)
    assert stand.is_connected("stuck")
    stand.pass_time(1.0)
    assert not stand.is_connected("stuck")
    assert stand.counters.closed == {"lost": 1}


async def test_a_socket_that_takes_a_little_again_and_again_is_not_closed(make_stand: MakeStand) -> None:
    stand = await make_stand(outbox=ROOMY)
    connection, slow = await stand.connect("slow", receive_buffer=4096)
    for _ in range(20):
        stand.send("slow", b"x" * 900_000)
    await asyncio.sleep(0)
    for _ in range(5):
        before = connection.protocol.heartbeat.heard_at
        while connection.protocol.heartbeat.heard_at == before:
            await slow.reader.read(40_000)
            stand.pass_time(0.001, 0.001)
        stand.pass_time(8.0)
    assert stand.is_connected("slow")


async def test_a_slow_reader_that_is_challenged_keeps_its_place(stand: Stand) -> None:
    slow = await stand.raw("slow", receive_buffer=4096)
    stand.send("slow", b"x" * 900_000)
    await asyncio.sleep(0)

    async def read_slowly() -> None:
        while True:
            await slow.reader.read(2_000)
            stand.pass_time(0.001, 0.001)

    reading = asyncio.ensure_future(read_slowly())
    assert await stand.challenged("slow") == "device"
    reading.cancel()


# -- a device whose words wait for room


async def pause(stand: Stand, broker: FullBroker, device: RawDevice, device_id: str = "doll") -> None:
    """The device says more than may be held while the broker takes nothing."""
    broker.room.clear()
    for number in range(20):
        device.send(TEXT, b"%d" % number)
    await eventually(lambda: stand.is_paused(device_id))


async def test_a_broker_that_is_away_holds_the_device_back_and_loses_nothing(make_stand: MakeStand) -> None:
    broker = FullBroker()
    stand = await make_stand(broker)
    device = await stand.raw()
    await pause(stand, broker, device)
    # Our own doing: it is not closed for silence.
    stand.pass_time(5 * PING_INTERVAL_S)
    assert stand.is_connected()
    broker.room.set()
    await eventually(lambda: texts(stand) == [str(number) for number in range(20)])
    assert not stand.is_paused()
    # From now on it could answer, and does not.
    stand.pass_time(3 * PING_INTERVAL_S)
    assert not stand.is_connected()


@pytest.mark.parametrize("has_vanished", [False, True])
async def test_a_device_that_is_held_back_stays_as_long_as_its_kernel_acknowledges_pings(
    make_stand: MakeStand, monkeypatch: pytest.MonkeyPatch, has_vanished: bool
) -> None:
    broker = FullBroker()
    stand = await make_stand(broker)
    connection, device = await stand.connect()
    await pause(stand, broker, device)
    device.send(TEXT, b"not read yet")
    if has_vanished:
        monkeypatch.setattr("cocoa_tornado.connection.device_socket.unacknowledged_bytes", lambda sock: 2)
    for _ in range(6):
        stand.pass_time(PING_INTERVAL_S)
        await stand.rest()
        await eventually(lambda: has_vanished or connection._socket.all_is_acknowledged)
    assert stand.is_connected() is not has_vanished
    broker.room.set()


async def test_a_device_that_is_held_back_answers_a_challenge_by_its_kernel(make_stand: MakeStand) -> None:
    broker = FullBroker()
    stand = await make_stand(broker)
    device = await stand.raw()
    await pause(stand, broker, device)
    for number in range(20, 150):
        device.send(TEXT, b"%d" % number)
    claim = asyncio.ensure_future(stand.challenged("doll"))
    while not claim.done():
        await asyncio.sleep(0.01)
        stand.pass_time(0.01, 0.01)
    assert await claim == "device"
    broker.room.set()
    await eventually(lambda: len(stand.published) == 150)


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_what_a_device_said_before_it_left_is_still_published(make_stand: MakeStand, how: str) -> None:
    broker = FullBroker()
    stand = await make_stand(broker)
    connection, device = await stand.connect()
    broker.room.clear()
    device.send(TEXT, b"last words")
    await eventually(lambda: connection._inbound is not None)
    getattr(device, how)()
    await eventually(lambda: not stand.is_connected())
    broker.room.set()
    await eventually(lambda: texts(stand) == ["last words"])


async def test_a_device_that_is_held_back_and_leaves_is_gone_at_once_and_its_words_are_kept(
    make_stand: MakeStand,
) -> None:
    broker = FullBroker()
    stand = await make_stand(broker)
    device = await stand.raw()
    broker.room.clear()
    for number in range(40):
        device.send(TEXT, f"{number} {'x' * 1000}".encode())
    device.send(CLOSE, GOODBYE)
    device.close()
    await eventually(stand.is_paused)
    while stand.is_connected():  # its end is seen by looking
        stand.pass_time(0.5)
        await asyncio.sleep(0.01)
    broker.room.set()
    await eventually(lambda: len(stand.published) == 40)


async def test_a_close_behind_a_few_words_is_seen_though_the_broker_is_away(make_stand: MakeStand) -> None:
    broker = FullBroker()
    stand = await make_stand(broker)
    device = await stand.raw()
    broker.room.clear()
    for number in range(10):
        device.send(TEXT, str(number).encode())
    device.send(CLOSE, GOODBYE)
    assert (await device.read_until(CLOSE)).close_code == 1000
    broker.room.set()
    await eventually(lambda: len(stand.published) == 10)


async def test_what_was_said_during_an_outage_is_not_taken_for_a_flood(make_stand: MakeStand) -> None:
    broker = FullBroker()
    stand = await make_stand(broker, inbound=RateLimit(per_s=10.0, burst=20))
    device = await stand.raw()
    await pause(stand, broker, device)
    for number in range(20, 150):
        device.send(TEXT, b"%d" % number)
    stand.pass_time(20.0)
    broker.room.set()
    await eventually(lambda: len(stand.published) == 150)
    assert stand.is_connected()


@pytest.mark.logs("cocoa.device", "^messages from the device dropped$")
async def test_words_beyond_the_budget_of_devices_that_left_are_dropped_and_counted(make_stand: MakeStand) -> None:
    broker = FullBroker()
    stand = await make_stand(broker, inbound=NO_RATE)
    broker.room.clear()
    for number in range(12):
        device = await stand.raw(f"doll-{number}")
        device.writer.write(frame(TEXT, b"x") * 100)
        device.close()
    while len(stand.hub):
        stand.pass_time(0.5)
        await asyncio.sleep(0.01)
    await eventually(lambda: stand.counters.device_messages_dropped == 200)
    broker.room.set()
    await eventually(lambda: len(stand.published) == 1000)


# -- a broker that refuses


@pytest.mark.logs("cocoa.device", "^message from the device not published$")
async def test_a_message_too_big_for_the_topic_closes_with_1009(make_stand: MakeStand) -> None:
    stand = await make_stand(RefusingBroker(RecordTooLarge("over 1 MiB")))
    device = await stand.raw()
    device.send(TEXT, b"too much")
    assert (await device.read_until(CLOSE)).close_code == 1009


@pytest.mark.logs("cocoa.device", "^message from the device not published$")
async def test_a_broker_that_refuses_everything_does_not_flood_the_log(
    make_stand: MakeStand, caplog: pytest.LogCaptureFixture
) -> None:
    broker = RefusingBroker(BrokerError("not authorised"))
    stand = await make_stand(broker)
    device = await stand.raw()
    for _ in range(150):
        device.send(TEXT, b"x")
    await eventually(lambda: broker.refused == 150)
    await asyncio.sleep(0)  # the turn in which the last refusals are heard
    lines = [record for record in caplog.records if record.getMessage() == "message from the device not published"]
    assert len(lines) == 10
    assert stand.is_connected()


# -- the log


LARGE = b"x" * 100_000


async def blocked(stand: Stand, *terms: Terms | None) -> DeviceConnection:
    """A connection whose socket has taken a part of a message, and behind it messages with these terms."""
    connection, _ = await stand.connect(receive_buffer=4096)
    while connection.protocol.write is None:
        stand.send("doll", LARGE)
        await asyncio.sleep(0)
    for each in terms:
        stand.send("doll", LARGE, each)
    await asyncio.sleep(0)
    return connection


async def test_a_message_that_is_half_written_when_its_connection_is_lost_counts_as_dropped(
    make_stand: MakeStand,
) -> None:
    stand = await make_stand(outbox=ROOMY)
    connection = await blocked(stand, None, Terms("session"))
    waiting = len(connection.protocol.outbox)
    connection.cut()
    connection.cut()
    assert stand.counters.dropped == {"lost": waiting - 1, "interim": 1}


async def test_a_half_written_interim_counts_as_one(make_stand: MakeStand) -> None:
    stand = await make_stand(outbox=ROOMY)
    connection, _ = await stand.connect(receive_buffer=4096)
    while connection.protocol.write is None:
        stand.send("doll", LARGE, Terms("session"))
        await asyncio.sleep(0)
    waiting = len(connection.protocol.outbox)
    connection.cut()
    assert stand.counters.dropped == {"interim": waiting}


@pytest.mark.parametrize("keep_queued", [False, True])
async def test_what_a_closing_connection_could_not_write_counts_once_its_socket_is_lost(
    make_stand: MakeStand, keep_queued: bool
) -> None:
    stand = await make_stand(outbox=ROOMY)
    connection = await blocked(stand, None, None)
    waiting = len(connection.protocol.outbox)
    connection.end(GOING_AWAY, keep_queued=keep_queued)
    assert sum(stand.counters.dropped.values()) == (0 if keep_queued else 2)
    connection.cut()
    assert stand.counters.dropped == {"drain": waiting}


async def test_with_a_mailbox_only_what_is_not_stored_is_lost_with_its_connection(make_stand: MakeStand) -> None:
    mailbox = MemoryMailbox(BoxLimits())
    await mailbox.start()
    stand = await make_stand(outbox=ROOMY, mailbox=mailbox)
    connection, _ = await stand.connect(receive_buffer=4096)
    await stand.rest()
    payload = b'{"a":"%b"}' % LARGE
    numbers = mailbox.append([Entry("doll", payload, 0, "results/0", at) for at in range(30)]).result()
    for number in numbers:
        assert number is not None
        connection.stored(number, payload, 0)
        await asyncio.sleep(0)
    assert connection.protocol.write is not None
    connection.suggest(b'{"a":1}', 0, None)
    connection.suggest(b'{"a":2}', 0, Terms("session"))
    waiting = len(connection.protocol.outbox)
    connection.cut()
    assert stand.counters.dropped == {"lost": 1, "interim": 1}
    assert stand.counters.left_in_box == waiting - 2
    assert mailbox._store.look("doll").written.normal == 30 - stand.counters.left_in_box


async def test_a_line_says_how_a_connection_ended(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "cocoa.device")
    connection, _ = await stand.connect()
    stand.send("doll", b"dropped")
    connection.end(GOING_AWAY)
    (line,) = (record for record in caplog.records if record.getMessage() == "device disconnected")
    said = {name: vars(line)[name] for name in ("device_id", "conn", "outcome", "code", "dropped")}
    assert said == {"device_id": "doll", "conn": 1, "outcome": "drain", "code": "1001", "dropped": 1}
    assert "drain" in repr(connection)
