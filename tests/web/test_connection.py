"""Contract sections 3 and 4: a connection from its registration to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from collections.abc import Mapping

import pytest
import websockets

from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.connection.connection import DeviceConnection
from cocoa_tornado.connection.protocol import PAUSED
from cocoa_tornado.errors import BrokerError, RecordTooLarge
from testing.raw_device import BINARY, CLOSE, PING, PONG, TEXT, frame
from testing.waiting import eventually

from ..harness import RESULTS, Harness
from .conftest import StartGateway

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
async def test_a_device_that_says_nothing_holds_no_task(gateway: Harness) -> None:
    before = asyncio.all_tasks()
    devices = [await gateway.raw(f"doll-{number}") for number in range(5)]
    await eventually(lambda: asyncio.all_tasks() == before)
    for number, device in enumerate(devices):
        await gateway.publish(f"doll-{number}", "x")
        assert (await device.read_frame()).opcode == TEXT
    await eventually(lambda: asyncio.all_tasks() == before)


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
async def test_the_server_pings_and_a_device_that_answers_stays(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(ping_interval_s=0.3, ping_timeout_s=0.3)
    device = await gateway.raw("doll")
    for _ in range(4):
        device.send(PONG, (await device.read_until(PING)).payload)
    assert gateway.gateway.hub.is_device_connected("doll")


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
async def test_a_pong_that_lies_in_the_socket_when_its_time_is_over_has_come_in_time(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(ping_interval_s=0.3, ping_timeout_s=0.3)
    device = await gateway.raw("doll")
    for _ in range(3):
        await device.read_until(PING)
        device.send(PONG)
        time.sleep(0.5)  # something holds the event loop
    await device.read_until(PING)
    assert gateway.gateway.hub.is_device_connected("doll")


@pytest.mark.gen_test
async def test_a_ping_is_answered_with_its_payload(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    device.send(PING, b"payload")
    received = await device.read_frame()
    assert (received.opcode, received.payload) == (PONG, b"payload")


@pytest.mark.gen_test
async def test_a_close_is_echoed_and_the_server_ends_the_connection(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    device.send(CLOSE, struct.pack("!H", 1000) + b"bye")
    assert (await device.read_frame()).close_code == 1000
    assert await device.read_to_end() == b""
    assert not gateway.gateway.hub.is_device_connected("doll")


@pytest.mark.gen_test
async def test_a_device_can_connect_again_at_once_after_a_close_and_after_a_reset(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(duplicate_challenge_s=60.0)
    for vanish in ("close", "reset"):
        device = await gateway.raw("doll")
        if vanish == "reset":
            device.reset()
        else:
            device.send(CLOSE, struct.pack("!H", 1000))
            await device.read_until(CLOSE)
        started = time.monotonic()
        again = await gateway.raw("doll")
        assert time.monotonic() - started < 30.0
        again.send(CLOSE, struct.pack("!H", 1000))
        await again.read_to_end()
    await eventually(lambda: gateway.gateway.presence.slots_taken == 0)


@pytest.mark.parametrize("size", [512 * 1024 + 1, 5_000_000])
@pytest.mark.gen_test
async def test_a_message_that_is_too_big_is_closed_with_1009_and_the_device_hears_it(
    gateway: Harness, size: int
) -> None:
    device = await gateway.connect("doll")
    with contextlib.suppress(websockets.ConnectionClosed):
        await device.send(b"\0" * size)
    with pytest.raises(websockets.ConnectionClosed) as closed:
        await device.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


@pytest.mark.gen_test
async def test_the_largest_message_passes_also_in_fragments(gateway: Harness) -> None:
    device = await gateway.connect("doll")
    await device.send("x" * 512 * 1024)
    await device.send(["y" * 1000] * 500)
    await eventually(lambda: len(gateway.broker.records("device.messages")) == 2)
    await device.close()


INVALID = {
    "unmasked": (frame(TEXT, b"x", masked=False), 1002),
    "reserved bit": (frame(TEXT, b"x", rsv=4), 1002),
    "reserved opcode": (frame(0x3, b"x"), 1002),
    "fragmented control frame": (frame(PING, b"x", fin=False), 1002),
    "long control frame": (frame(PING, b"x" * 126), 1002),
    "continuation of nothing": (frame(0x0, b"x"), 1002),
    "new message within a message": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
    "close of one byte": (frame(CLOSE, b"x"), 1002),
    "close code out of range": (frame(CLOSE, struct.pack("!H", 1005)), 1002),
    "text that is not UTF-8": (frame(TEXT, b"\xff"), 1007),
    "reason that is not UTF-8": (frame(CLOSE, struct.pack("!H", 1000) + b"\xff"), 1007),
}


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.gen_test
async def test_an_invalid_frame_ends_the_connection_with_its_code(gateway: Harness, name: str) -> None:
    data, code = INVALID[name]
    device = await gateway.raw("doll")
    device.writer.write(frame(TEXT, b"before") + data + frame(TEXT, b"after"))
    assert (await device.read_frame()).close_code == code
    assert not gateway.gateway.hub.is_device_connected("doll")
    await eventually(lambda: len(gateway.broker.records("device.messages")) == 1)
    device.close()


@pytest.mark.gen_test
async def test_a_device_that_sends_too_much_is_closed_with_1008(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(inbound_rate=10.0, inbound_burst=20)
    flood, quiet = await gateway.raw("flood"), await gateway.raw("quiet")
    flood.writer.write(b"".join(frame(TEXT, b"x") for _ in range(50)))
    assert (await flood.read_until(CLOSE)).close_code == 1008
    await gateway.publish("quiet", "undisturbed")
    assert b"undisturbed" in (await quiet.read_frame()).payload


async def fill(gateway: Harness, device_id: str, until: str, size: int = 100_000, most: int = 400) -> None:
    """Publish large messages until a counter moves."""
    counters = gateway.gateway.counters
    for _ in range(most):
        await gateway.publish(device_id, "x" * size)
        await asyncio.sleep(0)
        if getattr(counters, until):
            return
    pytest.fail(f"{until} did not happen")


@pytest.mark.gen_test
async def test_a_slow_consumer_is_closed_with_1013_and_costs_nobody_else_anything(gateway: Harness) -> None:
    slow = await gateway.raw("slow", receive_buffer=4096)
    quick = await gateway.connect("quick")
    await fill(gateway, "slow", "outbox_overflows")
    assert not gateway.gateway.hub.is_device_connected("slow")
    await gateway.publish("quick", "undisturbed")
    assert "undisturbed" in await quick.recv()
    # What was under way is finished, and the reason follows it.
    assert (await slow.read_until(CLOSE)).close_code == 1013
    metrics = await gateway.metrics()
    assert metrics["cocoa_outbox_overflows_total"] == 1
    assert metrics['cocoa_connections_closed_total{code="1013"}'] == 1
    await quick.close()


@pytest.mark.gen_test
async def test_a_batch_larger_than_the_outbox_costs_a_device_that_reads_nothing(gateway: Harness) -> None:
    device = await gateway.connect("doll")
    await asyncio.gather(*(gateway.publish("doll", str(number)) for number in range(1000)))
    texts = [json.loads(await device.recv())["text"] for _ in range(1000)]
    assert texts == [str(number) for number in range(1000)]


@pytest.mark.gen_test
async def test_a_device_that_floods_with_pongs_is_closed_with_1008(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    device.writer.write(frame(PONG) * 1000)
    assert (await device.read_until(CLOSE)).close_code == 1008


@pytest.mark.gen_test
async def test_a_socket_that_takes_no_byte_for_the_write_wait_is_closed(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(write_wait_s=0.5, outbox_max_bytes=64 * 1024 * 1024, outbox_max_messages=10_000)
    stuck = await gateway.raw("stuck", receive_buffer=4096)
    await asyncio.gather(*(gateway.publish("stuck", "x" * 100_000) for _ in range(100)))
    hub = gateway.gateway.hub
    await eventually(lambda: not hub.is_device_connected("stuck"))
    assert (await gateway.metrics())['cocoa_connections_closed_total{code="lost"}'] == 1
    stuck.reset()


@pytest.mark.gen_test(timeout=20)
async def test_a_socket_that_takes_a_little_again_and_again_is_not_closed(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(write_wait_s=1.0, outbox_max_bytes=64 * 1024 * 1024)
    slow = await gateway.raw("slow", receive_buffer=4096)
    for _ in range(10):
        await gateway.publish("slow", "x" * 900_000)
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        await slow.reader.read(40_000)
        await asyncio.sleep(0.01)
    assert gateway.gateway.hub.is_device_connected("slow")
    slow.reset()


@pytest.mark.gen_test(timeout=20)
async def test_a_slow_reader_that_is_challenged_keeps_its_place(gateway: Harness) -> None:
    slow = await gateway.raw("slow", receive_buffer=4096)
    await gateway.publish("slow", "x" * 900_000)

    async def read_slowly() -> None:
        while True:
            await slow.reader.read(2_000)
            await asyncio.sleep(0.01)

    reading = asyncio.ensure_future(read_slowly())
    newcomer = await gateway.upgrade(gateway.token("slow"))
    reading.cancel()
    assert newcomer.response.status == 409


class FullBroker(MemoryBroker):
    """The embedded broker, with a publish queue that the test closes and opens."""

    def __init__(self) -> None:
        super().__init__()
        self.room = asyncio.Event()
        self.room.set()

    def can_write(self) -> bool:
        return self.room.is_set() and super().can_write()

    async def writable(self) -> None:
        await self.room.wait()
        await super().writable()


@pytest.mark.gen_test
async def test_a_broker_that_is_away_holds_the_device_back_and_loses_nothing(start_gateway: StartGateway) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker, ping_interval_s=0.2, ping_timeout_s=0.2)
    device = await gateway.connect("doll")
    broker.room.clear()
    for number in range(20):
        await device.send(str(number))
    # Held back for several ping intervals: our own doing, so it is not closed for silence.
    await asyncio.sleep(1.0)
    assert gateway.gateway.hub.is_device_connected("doll")
    broker.room.set()
    await eventually(lambda: len(broker.records("device.messages")) == 20)
    texts = [json.loads(record.value or b"")["text"] for record in broker.records("device.messages")]
    assert texts == [str(number) for number in range(20)]
    await device.close()


@pytest.mark.gen_test
async def test_a_device_that_is_held_back_still_answers_a_challenge(start_gateway: StartGateway) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker)
    device = await gateway.connect("doll")
    broker.room.clear()
    for number in range(5):
        await device.send(str(number))
    await asyncio.sleep(0.1)
    newcomer = await gateway.upgrade(gateway.token("doll"))
    assert newcomer.response.status == 409
    broker.room.set()
    await eventually(lambda: len(broker.records("device.messages")) == 5)
    await device.close()


@pytest.mark.gen_test
async def test_what_a_device_said_before_it_left_is_still_published(start_gateway: StartGateway) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker)
    device = await gateway.raw("doll")
    broker.room.clear()
    device.send(TEXT, b"last words")
    await asyncio.sleep(0.1)
    device.reset()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    broker.room.set()
    await eventually(lambda: len(broker.records("device.messages")) == 1)


@pytest.mark.gen_test
@pytest.mark.logs("cocoa.device", "^audio ignored")
async def test_a_flood_of_binary_frames_does_not_starve_the_others(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(inbound_rate=0.0)
    flood, quiet = await gateway.raw("flood"), await gateway.raw("quiet")
    chunk = b"".join(frame(BINARY, b"\0" * 100) for _ in range(2000))
    sending = True

    async def send() -> None:
        while sending:
            flood.writer.write(chunk)
            await flood.writer.drain()

    sender = asyncio.ensure_future(send())
    for number in range(20):
        await gateway.publish("quiet", str(number))
        assert str(number).encode() in (await quiet.read_frame()).payload
    sending = False
    await sender
    flood.reset()


@pytest.mark.gen_test
async def test_a_device_that_floods_with_empty_fragments_is_closed_with_1008(gateway: Harness) -> None:
    device = await gateway.raw("doll")
    device.writer.write(frame(TEXT, b"x", fin=False) + frame(0x0, fin=False) * 1000)
    assert (await device.read_until(CLOSE)).close_code == 1008


@pytest.mark.gen_test
async def test_a_message_in_fragments_of_a_usual_size_counts_once(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(inbound_rate=1.0, inbound_burst=2)
    device = await gateway.connect("doll")
    await device.send(["y" * 1000] * 200)
    await eventually(lambda: len(gateway.broker.records("device.messages")) == 1)
    await device.close()


@pytest.mark.parametrize("fault", [frame(TEXT, b"x", rsv=4), frame(PONG) * 300], ids=["invalid frame", "flood"])
@pytest.mark.gen_test
async def test_a_client_that_goes_on_sending_after_the_end_is_cut_off(gateway: Harness, fault: bytes) -> None:
    device = await gateway.raw("doll")
    device.writer.write(fault)
    await device.read_until(CLOSE)

    async def go_on() -> None:
        for _ in range(2000):
            device.writer.write(frame(0x0, fin=False) * 10_000)
            await device.writer.drain()

    with pytest.raises(ConnectionError):
        await go_on()


@pytest.mark.gen_test(timeout=20)
async def test_the_time_for_a_pong_begins_when_the_ping_has_left(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(ping_interval_s=0.5, ping_timeout_s=0.5, outbox_max_bytes=64 * 1024 * 1024)
    slow = await gateway.raw("slow", receive_buffer=4096)
    for _ in range(8):
        await gateway.publish("slow", "x" * 900_000)
    hub, end = gateway.gateway.hub, time.monotonic() + 2.5
    while time.monotonic() < end:
        await slow.reader.read(20_000)
        await asyncio.sleep(0.01)
        assert hub.is_device_connected("slow")

    async def read() -> None:
        while await slow.reader.read(1_000_000):
            pass

    reading = asyncio.ensure_future(read())
    # It reads all, the ping among it, and still does not answer: now it is too late.
    await eventually(lambda: not hub.is_device_connected("slow"))
    await reading


@pytest.mark.gen_test
async def test_a_device_that_is_held_back_and_leaves_is_gone_at_once_and_its_words_are_kept(
    start_gateway: StartGateway,
) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker, duplicate_policy="reject")
    device = await gateway.raw("doll")
    broker.room.clear()
    for number in range(40):
        device.send(TEXT, f"{number} {'x' * 1000}".encode())
    device.send(CLOSE, struct.pack("!H", 1000))
    device.close()
    hub = gateway.gateway.hub
    await eventually(lambda: not hub.is_device_connected("doll"))
    again = await gateway.raw("doll")
    broker.room.set()
    await eventually(lambda: len(broker.records("device.messages")) == 40)
    again.close()


@pytest.mark.gen_test
async def test_a_close_behind_a_few_words_is_seen_though_the_broker_is_away(start_gateway: StartGateway) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker)
    device = await gateway.raw("doll")
    broker.room.clear()
    for number in range(10):
        device.send(TEXT, str(number).encode())
    device.send(CLOSE, struct.pack("!H", 1000))
    assert (await device.read_until(CLOSE)).close_code == 1000
    assert not gateway.gateway.hub.is_device_connected("doll")
    broker.room.set()
    await eventually(lambda: len(broker.records("device.messages")) == 10)


@pytest.mark.gen_test
@pytest.mark.logs("cocoa.device", "^messages from the device dropped$")
async def test_words_beyond_the_budget_of_devices_that_left_are_dropped_and_counted(
    start_gateway: StartGateway,
) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker, inbound_rate=0.0)
    broker.room.clear()
    for number in range(12):
        device = await gateway.raw(f"doll-{number}")
        for _ in range(100):
            device.send(TEXT, b"x")
        device.close()
    await eventually(lambda: len(gateway.gateway.hub) == 0)
    await eventually(lambda: gateway.gateway.counters.device_messages_dropped == 200)
    broker.room.set()
    await eventually(lambda: len(broker.records("device.messages")) == 1000)


class RefusingBroker(MemoryBroker):
    """The embedded broker, with a topic that takes no record from a device."""

    def __init__(self, error: BrokerError) -> None:
        super().__init__()
        self.error, self.refused = error, 0

    def publish(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes] | None = None
    ) -> asyncio.Future[None]:
        if topic != "device.messages":
            return super().publish(topic, key, value, headers)
        self.refused += 1
        refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        refused.set_exception(self.error)
        return refused


@pytest.mark.gen_test
@pytest.mark.logs("cocoa.device", "^message from the device not published$")
async def test_a_message_too_big_for_the_topic_is_told_to_the_device_with_1009(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(RefusingBroker(RecordTooLarge("over 1 MiB")))
    device = await gateway.raw("doll")
    device.send(TEXT, b"too much")
    assert (await device.read_until(CLOSE)).close_code == 1009


@pytest.mark.gen_test
@pytest.mark.logs("cocoa.device", "^message from the device not published$")
async def test_a_broker_that_refuses_everything_does_not_flood_the_log(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    broker = RefusingBroker(BrokerError("not authorised"))
    gateway = await start_gateway(broker)
    device = await gateway.raw("doll")
    for _ in range(150):
        device.send(TEXT, b"x")
    await eventually(lambda: broker.refused == 150)
    await asyncio.sleep(0)  # the turn in which the last refusals are heard
    lines = [record for record in caplog.records if record.getMessage() == "message from the device not published"]
    assert 10 <= len(lines) <= 12
    assert gateway.gateway.hub.is_device_connected("doll")


@pytest.mark.gen_test
async def test_a_connection_that_is_closed_leaves_the_ping_wheel_at_once(gateway: Harness) -> None:
    devices = [await gateway.raw(f"doll-{number}") for number in range(5)]
    context = gateway.gateway._devices
    assert context is not None
    assert "5 entries" in repr(context.wheel)
    for device in devices:
        device.reset()
    await eventually(lambda: "0 entries" in repr(context.wheel))


@pytest.mark.gen_test
async def test_what_was_said_during_an_outage_is_not_taken_for_a_flood(start_gateway: StartGateway) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker, inbound_rate=500.0, inbound_burst=20)
    device = await gateway.raw("doll")
    broker.room.clear()
    for number in range(150):
        device.send(TEXT, f"{number} {'x' * 10_000}".encode())
        await asyncio.sleep(0.004)
    broker.room.set()
    await eventually(lambda: len(broker.records("device.messages")) == 150)
    assert gateway.gateway.hub.is_device_connected("doll")


@pytest.mark.gen_test
async def test_a_delay_of_this_side_counts_no_longer_after_a_pong(start_gateway: StartGateway) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker)
    device = await gateway.raw("doll")
    client = gateway.gateway.hub.get_client_by_device("doll")
    assert isinstance(client, DeviceConnection)
    broker.room.clear()
    for number in range(20):
        device.send(TEXT, str(number).encode())
    await eventually(lambda: client.protocol.reading is PAUSED)
    broker.room.set()
    await eventually(lambda: client.protocol.reading is not PAUSED)
    client.awaiting_pong = True
    device.send(PONG)
    await eventually(lambda: not client.awaiting_pong)
    assert not client.pong_may_be_late()


@pytest.mark.gen_test
async def test_a_device_that_has_said_more_than_is_held_keeps_its_place_when_challenged(
    start_gateway: StartGateway,
) -> None:
    broker = FullBroker()
    gateway = await start_gateway(broker)
    device = await gateway.connect("doll")
    broker.room.clear()
    for number in range(150):
        await device.send(str(number))
    newcomer = await gateway.upgrade(gateway.token("doll"))
    assert newcomer.response.status == 409
    broker.room.set()
    await eventually(lambda: len(broker.records("device.messages")) == 150)
    await device.close()


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
