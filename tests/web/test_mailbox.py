"""Contract section 7 over real sockets: cursors, acknowledgements, gaps, and firmware that knows none of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Sequence
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.connection.connection import DeviceConnection
from cocoa_tornado.errors import MailboxError
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Doorbell, Entry, FanOut, LaneRead, MailboxState, MailboxStatus
from cocoa_tornado.rules.box import Box, BoxLimits, Numbers, Position
from cocoa_tornado.rules.claims import FencingToken
from cocoa_tornado.rules.cursors import make_cursor
from cocoa_tornado.rules.feed import Page
from cocoa_tornado.rules.records import Record
from testing.raw_device import TEXT
from testing.waiting import eventually

from ..harness import RESULTS, Harness
from .conftest import StartGateway

RECORD = b'{"session_id":"s","user_id":99,"device_id":"doll","text":"Hello"}'


async def start(start_gateway: StartGateway, **settings: Any) -> Harness:
    return await start_gateway(mailbox="memory://", **settings)


def box_of(gateway: Harness) -> MemoryMailbox:
    mailbox = gateway.gateway.mailbox
    assert isinstance(mailbox, MemoryMailbox)
    return mailbox


async def stored(gateway: Harness, count: int) -> None:
    await eventually(lambda: box_of(gateway).counters.stored >= count)


async def hear(device: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await asyncio.wait_for(device.recv(), 5))
    return message


async def hear_texts(device: ClientConnection, count: int) -> list[str]:
    return [(await hear(device))["text"] for _ in range(count)]


async def hears_nothing(device: ClientConnection) -> bool:
    """Messages come in order: if this one comes first, nothing came before it."""
    try:
        await asyncio.wait_for(device.recv(), 0.2)
    except TimeoutError:
        return True
    return False


async def connect_after(gateway: Harness, cursor: str, device_id: str = "doll") -> ClientConnection:
    return await gateway.connect_with(f"{gateway.token(device_id)}&after={cursor}")


async def leave(gateway: Harness, device: ClientConnection, device_id: str = "doll") -> None:
    await device.close()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected(device_id))


@pytest.mark.gen_test
async def test_every_message_carries_a_cursor_as_its_last_field(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    device = await gateway.raw("doll")
    await gateway.gateway.broker.publish(RESULTS, "doll", RECORD)
    payload = (await device.read_frame()).payload
    key = box_of(gateway).key
    assert key is not None
    cursor = make_cursor(key, "doll", Position(1)).encode()
    assert payload == b'{"type":"transcription",' + RECORD[1:-1] + b',"cursor":"' + cursor + b'"}'


@pytest.mark.gen_test
async def test_what_came_while_the_device_was_away_comes_first_and_in_order(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    for number in range(500):
        await gateway.publish("doll", str(number))
    await stored(gateway, 500)
    device = await gateway.connect("doll")
    for number in range(500, 700):
        await gateway.publish("doll", str(number))
    assert await hear_texts(device, 700) == [str(number) for number in range(700)]
    assert await hears_nothing(device)


@pytest.mark.gen_test
async def test_firmware_that_knows_no_cursors_is_sent_what_was_not_yet_written(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    device = await gateway.connect("doll")
    await gateway.publish("doll", "one")
    assert await hear_texts(device, 1) == ["one"]
    await leave(gateway, device)
    await gateway.publish("doll", "two")
    await stored(gateway, 2)
    device = await gateway.connect("doll")
    assert await hear_texts(device, 1) == ["two"]
    assert await hears_nothing(device)


@pytest.mark.gen_test
async def test_a_device_is_sent_what_comes_after_its_cursor_though_it_was_written(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    device = await gateway.connect("doll")
    for text in ("one", "two", "three"):
        await gateway.publish("doll", text)
    heard = [await hear(device) for _ in range(3)]
    await leave(gateway, device)
    device = await connect_after(gateway, heard[0]["cursor"])
    again = [await hear(device) for _ in range(2)]
    assert again == heard[1:]
    assert await hears_nothing(device)


@pytest.mark.gen_test
async def test_what_is_acknowledged_is_deleted_and_not_sent_again(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    device = await gateway.connect("doll")
    for text in ("one", "two", "three"):
        await gateway.publish("doll", text)
    heard = [await hear(device) for _ in range(3)]
    await device.send(json.dumps({"type": "ack", "cursor": heard[1]["cursor"]}))
    await eventually(lambda: box_of(gateway).counters.acknowledged == 2)
    await leave(gateway, device)
    # It uses acknowledgements, so what was written and not acknowledged comes again, with the same cursor.
    device = await gateway.connect("doll")
    assert await hear(device) == heard[2]
    await leave(gateway, device)
    device = await connect_after(gateway, heard[0]["cursor"])
    assert await hear(device) == heard[2]
    assert not gateway.broker.records("device.messages")


@pytest.mark.gen_test
async def test_a_text_that_is_no_acknowledgement_is_an_ordinary_message(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    device = await gateway.connect("doll")
    texts = ['{"type":"ack"}', '["ack"]', '{"type":"ack","cursor":5}', "ack"]
    for text in texts:
        await device.send(text)
    await eventually(lambda: len(gateway.broker.records("device.messages")) == len(texts))


@pytest.mark.gen_test
@pytest.mark.logs("cocoa.device", "acknowledgement of an unknown cursor")
async def test_an_acknowledgement_of_anothers_cursor_does_nothing(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    device, other = await gateway.connect("doll"), await gateway.connect("other")
    await gateway.publish("doll", "one")
    await gateway.publish("other", "x")
    mine = await hear(device)
    await other.send(json.dumps({"type": "ack", "cursor": mine["cursor"]}))
    await eventually(lambda: gateway.gateway.counters.bad_acks == 1)
    assert box_of(gateway).counters.acknowledged == 0
    assert gateway.gateway.hub.is_device_connected("other")


@pytest.mark.gen_test
async def test_an_unknown_or_foreign_cursor_is_400_before_the_upgrade(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    await gateway.publish("doll", "one")
    await gateway.publish("other", "one")
    await stored(gateway, 2)
    key = box_of(gateway).key
    assert key is not None
    foreign, future = make_cursor(key, "other", Position(1)), make_cursor(key, "doll", Position(99))
    stranger = make_cursor(bytes(32), "doll", Position(1))
    mine = make_cursor(key, "doll", Position(1))
    for query in (foreign, future, stranger, "", "x", "%FF", f"{mine}&after={mine}"):
        device = await gateway.upgrade(f"{gateway.token()}&after={query}")
        assert (device.response.status, device.response.body) == (400, b'{"message":"Unknown cursor"}'), query
    assert (await gateway.upgrade(f"{gateway.token()}&after={mine}")).response.status == 101


@pytest.mark.gen_test
async def test_what_fell_out_of_a_full_box_is_told_first(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway, mailbox_max_messages=3)
    for number in range(10):
        await gateway.publish("doll", str(number))
    await stored(gateway, 10)
    device = await gateway.raw("doll")
    assert (await device.read_frame()).payload == b'{"type":"gap","missed":7}'
    texts = [json.loads((await device.read_frame()).payload)["text"] for _ in range(3)]
    assert texts == ["7", "8", "9"]


@pytest.mark.gen_test
async def test_a_gap_is_told_once_to_firmware_that_knows_no_cursors(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway, mailbox_ttl_s=1.0)
    await gateway.publish("doll", "old")
    await stored(gateway, 1)
    box_of(gateway)._store._clock = lambda: 4e9
    device = await gateway.connect("doll")
    assert await hear(device) == {"type": "gap", "missed": 1}
    await leave(gateway, device)
    device = await gateway.connect("doll")
    assert await hears_nothing(device)


@pytest.mark.parametrize(("count", "size"), [(60, 100_000), (8, 700_000)])
@pytest.mark.gen_test
async def test_a_slow_device_stays_and_gets_from_its_box_what_its_outbox_has_no_room_for(
    start_gateway: StartGateway, count: int, size: int
) -> None:
    gateway = await start(start_gateway, outbox_max_messages=8, mailbox_max_bytes=10_000_000)
    device = await gateway.raw("doll", receive_buffer=4096)
    for number in range(count):
        await gateway.publish("doll", f"{number} {'x' * size}")
    await stored(gateway, count)
    seen = []
    for _ in range(count):
        received = await device.read_frame()
        assert received.opcode == TEXT
        seen.append(int(json.loads(received.payload)["text"].split()[0]))
    assert seen == list(range(count))
    await gateway.publish("doll", "live again")
    assert json.loads((await device.read_frame()).payload)["text"] == "live again"
    assert gateway.gateway.counters.outbox_overflows == 0
    assert gateway.gateway.counters.caught_up > 0


@pytest.mark.gen_test
async def test_a_device_that_leaves_half_way_goes_on_from_there(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    for number in range(1000):
        await gateway.publish("doll", str(number))
    await stored(gateway, 1000)
    cursor, seen = "", []
    for _ in range(5):
        device = await (connect_after(gateway, cursor) if cursor else gateway.connect("doll"))
        for _ in range(150):
            message = await hear(device)
            seen.append(message["text"])
            cursor = message["cursor"]
        device.transport.abort()
        await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    assert seen == [str(number) for number in range(750)]


@pytest.mark.gen_test
async def test_what_a_socket_has_taken_in_the_turn_in_which_it_is_cut_counts_as_written(
    start_gateway: StartGateway,
) -> None:
    gateway = await start(start_gateway)
    device = await gateway.raw("doll", receive_buffer=4096)
    (connection,) = gateway.gateway.hub
    assert isinstance(connection, DeviceConnection)
    count = 0
    while connection.protocol.write is None:
        await gateway.publish("doll", f"{count} {'x' * 20_000}")
        count += 1
        await stored(gateway, count)
        await asyncio.sleep(0.01)
    socket, ours = connection._socket, device.writer.get_extra_info("socket").fileno()
    deadline = time.monotonic() + 10
    # All within this turn of the loop, which is the gateway's.
    while connection.protocol.write is not None and time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 64 * 1024)
        socket._send_rest()
    assert connection.protocol.write is None
    connection.cut()
    await asyncio.sleep(0)
    device.close()
    again = await gateway.connect("doll")
    assert await hears_nothing(again)


@pytest.mark.gen_test
async def test_a_full_box_of_one_device_holds_up_no_other(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    big = "x" * 3_000
    for number in range(1000):
        await gateway.publish("slow", f"{number} {big}")
    await stored(gateway, 1000)
    slow = await gateway.raw("slow", receive_buffer=4096)
    quick = await gateway.connect("quick")
    await gateway.publish("quick", "now")
    assert await hear_texts(quick, 1) == ["now"]
    client = gateway.gateway.hub.get_client_by_device("slow")
    assert isinstance(client, DeviceConnection)
    # It is fed by what it reads, and no more is in memory for it than half of an outbox.
    outbox = client.protocol.outbox
    assert outbox.waiting_bytes <= 600 * 1024
    slow.close()


@pytest.mark.gen_test
async def test_a_hypothesis_is_not_kept_and_bears_the_cursor_of_the_message_before_it(
    start_gateway: StartGateway,
) -> None:
    gateway = await start(start_gateway)
    await gateway.publish("doll", "hel", final=False)
    await gateway.publish("doll", "hello", final=True)
    await stored(gateway, 1)
    device = await gateway.connect("doll")
    final = await hear(device)
    assert final["text"] == "hello"
    await gateway.publish("doll", "wor", final=False, session_id="s2")
    hypothesis = await hear(device)
    assert (hypothesis["text"], hypothesis["cursor"]) == ("wor", final["cursor"])
    assert list(hypothesis)[-1] == "cursor"
    assert box_of(gateway).status().messages == 1


@pytest.mark.gen_test
async def test_ready_and_the_log_name_the_mailbox(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "cocoa.service"):
        gateway = await start(start_gateway)
    (line,) = [record for record in caplog.records if record.message == "mailbox"]
    assert "survive" in line.promise  # type: ignore[attr-defined]  # an extra
    ready = json.loads((await gateway.http("GET", "/api/v1/ready")).body)
    assert ready["parts"]["mailbox"] == {"ok": True, "state": "ready"}


@pytest.mark.gen_test
async def test_the_metrics_tell_of_the_box(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway, mailbox_max_messages=2)
    for number in range(3):
        await gateway.publish("doll", str(number))
    await stored(gateway, 3)
    device = await gateway.connect("doll")
    assert (await hear(device))["type"] == "gap"
    last = (await hear_texts(device, 2))[-1]
    assert last == "2"
    metrics = await gateway.metrics()
    assert metrics["cocoa_mailbox_ready"] == 1
    assert metrics["cocoa_mailbox_messages"] == 2
    assert metrics["cocoa_mailbox_stored_total"] == 3
    assert metrics['cocoa_mailbox_lost_total{reason="overflow"}'] == 1
    assert metrics["cocoa_messages_kept_total"] == 3
    assert metrics["cocoa_messages_caught_up_total"] == 2
    assert metrics["cocoa_gaps_told_total"] == 1


@pytest.mark.gen_test
async def test_a_device_that_goes_by_cursors_and_has_none_yet_is_sent_all_that_is_kept(
    start_gateway: StartGateway,
) -> None:
    gateway = await start(start_gateway)
    device = await gateway.connect_with(f"{gateway.token()}&cursors=1")
    for text in ("one", "two"):
        await gateway.publish("doll", text)
    await eventually(
        lambda: box_of(gateway)._store._kept["doll"].box.written.normal == 2
    )  # to a socket, and no further
    device.transport.abort()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    device = await gateway.connect_with(f"{gateway.token()}&cursors=1")
    first, second = await hear(device), await hear(device)
    assert (first["text"], second["text"]) == ("one", "two")
    await leave(gateway, device)
    device = await gateway.connect_with(f"{gateway.token()}&cursors=1&after={first['cursor']}")
    assert await hear(device) == second
    assert await hears_nothing(device)


@pytest.mark.gen_test
async def test_whether_a_device_goes_by_cursors_is_yes_or_no(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    device = await gateway.upgrade(f"{gateway.token()}&cursors=maybe")
    assert (device.response.status, device.response.body) == (400, b'{"message":"Invalid cursors"}')


@pytest.mark.gen_test
async def test_a_gap_is_told_once_to_a_device_that_acknowledges_though_nothing_is_behind_it(
    start_gateway: StartGateway,
) -> None:
    gateway = await start(start_gateway, mailbox_ttl_s=1.0)
    device = await gateway.connect("doll")
    await gateway.publish("doll", "one")
    cursor = (await hear(device))["cursor"]
    await device.send(json.dumps({"type": "ack", "cursor": cursor}))
    await eventually(lambda: box_of(gateway).counters.acknowledged == 1)
    await leave(gateway, device)
    for text in ("two", "three"):
        await gateway.publish("doll", text)
    await stored(gateway, 3)
    box_of(gateway)._store._clock = lambda: 4e9
    device = await gateway.connect("doll")
    assert await hear(device) == {"type": "gap", "missed": 2}
    await leave(gateway, device)
    device = await gateway.connect_with(f"{gateway.token()}&after={cursor}")
    assert await hears_nothing(device), "the box is the device's, whichever connection was sent the gap"
    await gateway.publish("doll", "four")
    assert (await hear(device))["text"] == "four"


@pytest.mark.gen_test
async def test_what_an_outbox_leaves_in_the_box_is_not_counted_as_dropped(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway, outbox_max_messages=8, mailbox_max_bytes=10_000_000)
    device = await gateway.raw("doll", receive_buffer=4096)
    for number in range(60):
        await gateway.publish("doll", f"{number} {'x' * 100_000}")
    await stored(gateway, 60)
    device.reset()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    metrics = await gateway.metrics()
    assert metrics["cocoa_outbox_overflows_total"] == 0
    assert metrics["cocoa_messages_left_in_box_total"] >= 1
    assert not any(value for name, value in metrics.items() if name.startswith("cocoa_messages_dropped_total"))


@pytest.mark.gen_test
@pytest.mark.logs("cocoa.device", "message in the box skipped")
async def test_what_another_hand_has_put_into_a_box_costs_no_other_message(start_gateway: StartGateway) -> None:
    gateway = await start(start_gateway)
    entries = [Entry("doll", payload, 1, "results/0", at) for at, payload in enumerate(FOREIGN)]
    await box_of(gateway).append(entries)
    device = await gateway.connect("doll")
    assert await hear_texts(device, 2) == ["one", "two"]


FOREIGN = [b'{"type":"t","text":"one"}', b'{"cursor":"cursor":', b'{"type":"t","text":"two"}']


class Moody(MemoryMailbox):
    """A mailbox that answers on demand."""

    def __init__(self) -> None:
        super().__init__(BoxLimits())
        self.is_away = False
        self.waiting: list[tuple[Sequence[Entry | FanOut], asyncio.Future[list[int | None]]]] = []

    def status(self) -> MailboxStatus:
        return MailboxStatus(MailboxState.OPENING, "away") if self.is_away else super().status()

    def append(
        self, entries: Sequence[Entry | FanOut], doorbell: Doorbell | None = None
    ) -> asyncio.Future[list[int | None]]:
        if not self.is_away:
            return super().append(entries)
        future: asyncio.Future[list[int | None]] = asyncio.get_running_loop().create_future()
        self.waiting.append((entries, future))
        return future

    def look(self, device_id: str) -> asyncio.Future[Box]:
        return self._away() if self.is_away else super().look(device_id)

    def read(
        self, device_id: str, lanes: Sequence[LaneRead], fencing_token: FencingToken | None = None
    ) -> asyncio.Future[list[Page]]:
        return self._away() if self.is_away else super().read(device_id, lanes)

    def _away(self) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_exception(MailboxError("it is away"))
        return future

    def come_back(self) -> None:
        self.is_away = False
        waiting, self.waiting = self.waiting, []
        for entries, future in waiting:
            future.set_result(super().append(entries).result())


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> Moody:
    mailbox = Moody()
    monkeypatch.setattr("cocoa_tornado.service.parts.make_mailbox", lambda settings: mailbox)
    return mailbox


@pytest.mark.gen_test
async def test_while_the_mailbox_is_away_nothing_is_lost_and_nobody_is_cut_off(
    start_gateway: StartGateway, moody: Moody
) -> None:
    gateway = await start(start_gateway)
    device = await gateway.connect("doll")
    await gateway.publish("doll", "one")
    assert await hear_texts(device, 1) == ["one"]
    moody.is_away = True
    await gateway.publish("doll", "two")
    await eventually(lambda: bool(moody.waiting))
    ready = await gateway.http("GET", "/api/v1/ready")
    assert ready.status == 503
    assert json.loads(ready.body)["parts"]["mailbox"] == {"ok": False, "state": "opening"}
    newcomer = await gateway.connect("newcomer")
    await gateway.publish("newcomer", "three")
    refused = await gateway.upgrade(
        f"{gateway.token('third')}&after={make_cursor(moody.key or b'', 'third', Position(0))}"
    )
    assert (refused.response.status, refused.response.body) == (503, b'{"message":"Mailbox not available"}')
    assert "retry-after" in refused.response.headers
    moody.come_back()
    assert await hear_texts(device, 1) == ["two"]
    assert await hear_texts(newcomer, 1) == ["three"]
    assert (await gateway.http("GET", "/api/v1/ready")).status == 200


@pytest.mark.gen_test
async def test_a_batch_is_done_when_it_is_stored_and_not_before(start_gateway: StartGateway, moody: Moody) -> None:
    gateway = await start(start_gateway, high_water=10, low_water=5)
    moody.is_away = True
    for number in range(25):
        await gateway.publish("doll", str(number))
        await asyncio.sleep(0)
    await eventually(lambda: gateway.gateway.broker.counters.pauses == 1)
    moody.come_back()
    await stored(gateway, 25)
    device = await gateway.connect("doll")
    assert await hear_texts(device, 25) == [str(number) for number in range(25)]


@pytest.mark.gen_test
async def test_what_another_had_stored_and_not_told_reaches_the_device_when_it_is_read_again(
    start_gateway: StartGateway,
) -> None:
    gateway = await start(start_gateway)
    device = await gateway.connect("doll")
    await gateway.publish("doll", "first")
    assert await hear_texts(device, 1) == ["first"]
    payload = b'{"type":"transcription","device_id":"doll","text":"second"}'
    await box_of(gateway).append([Entry("doll", payload, 7, "results/0", 5)])
    done: list[bool] = []
    batch = Batch([Record("doll", payload, 7)], lambda: done.append(True), [5], [("results/0", 1)])
    gateway.gateway.wiring.router(batch)
    assert await hear_texts(device, 1) == ["second"]
    assert done == [True]
    assert await hears_nothing(device)


@pytest.mark.gen_test
async def test_what_a_drain_has_written_counts_as_written(start_gateway: StartGateway, moody: Moody) -> None:
    gateway = await start(start_gateway)
    device = await gateway.raw("doll")
    await gateway.publish("doll", "one")
    await gateway.gateway.drain_and_stop()
    assert b'"one"' in (await device.read_frame()).payload
    assert (await moody.look("doll")).written == Numbers(1, 0)
