"""The router: batches to devices, in order, each batch done once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any
from unittest.mock import Mock

import pytest

from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.counters import Counters
from cocoa_tornado.errors import MailboxClosed
from cocoa_tornado.hub import Hub
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Doorbell, Entry, FanOut, LaneRead
from cocoa_tornado.mailboxes.store import FAN_OUT_STEP
from cocoa_tornado.presence.grants import SlotLimits
from cocoa_tornado.presence.local import LocalPresence
from cocoa_tornado.relay.memory import MemoryRelay
from cocoa_tornado.routing import portions as portions_module
from cocoa_tornado.routing import router as router_module
from cocoa_tornado.routing.address import Address, Devices, Everyone, Group, User
from cocoa_tornado.routing.portions import FAN_OUTS_TOGETHER
from cocoa_tornado.routing.round_trips import RoundTrips
from cocoa_tornado.routing.router import Router
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.audiences import audiences_of
from cocoa_tornado.rules.box import BoxLimits, PageLimits
from cocoa_tornado.rules.records import Record
from cocoa_tornado.rules.terms import Terms
from cocoa_tornado.rules.trace_memory import TraceMemory

from ..clients import FakeClient, connect

pytestmark = pytest.mark.gen_test(timeout=30)


class SlowMailbox(MemoryMailbox):
    """Stores entries on demand, in any order. Its futures have the same results as the real one's."""

    def __init__(self) -> None:
        super().__init__(BoxLimits())
        self.calls: list[tuple[Sequence[Entry | FanOut], asyncio.Future[list[int | None]]]] = []

    def append(
        self, entries: Sequence[Entry | FanOut], doorbell: Doorbell | None = None
    ) -> asyncio.Future[list[int | None]]:
        future: asyncio.Future[list[int | None]] = asyncio.get_running_loop().create_future()
        self.calls.append((entries, future))
        return future

    async def store(self, call: int = 0) -> None:
        entries, future = self.calls[call]
        future.set_result(await super().append(entries))
        await asyncio.sleep(0)

    async def fail(self, call: int = 0) -> None:
        self.calls[call][1].set_exception(MailboxClosed("the mailbox is closed"))
        await asyncio.sleep(0)


class Stand:
    """A router, its devices and what they were sent."""

    def __init__(self, mailbox: MemoryMailbox | None = None) -> None:
        self.hub = Hub()
        self.counters = Counters()
        self.round_trips = RoundTrips(lambda: 0.0)
        self.mailbox = mailbox
        relay = MemoryRelay()
        presence = LocalPresence(SlotLimits, relay, lambda: 0.0)
        presence.start(self.hub)
        self.now = 1_000.0
        self.router = Router(
            self.hub,
            self.counters,
            lambda: 0.0,
            presence,
            relay,
            mailbox=mailbox,
            wall_clock=lambda: self.now,
            round_trips=self.round_trips,
        )
        self.done: list[str] = []
        self.offset = 0

    async def open(self) -> Stand:
        if self.mailbox is not None:
            await self.mailbox.start()
        return self

    def connect(self, device_id: str = "doll", user_id: int | str = 99, groups: Sequence[str] = ()) -> FakeClient:
        """A device that has just connected; the mailbox, if there is one, knows it."""
        client = connect(self.hub, device_id, user_id, groups)
        self.join(client)
        return client

    def join(self, client: FakeClient) -> None:
        if self.mailbox is not None:
            self.mailbox.join(client.grant.device_id, audiences_of(client.identity))

    def batch(self, *records: tuple[Address, str] | Record, name: str = "") -> Batch:
        """Records of one partition, of which the router may say that they are done."""
        found = [item if isinstance(item, Record) else Record(item[0], item[1].encode(), 0) for item in records]
        offsets = list(range(self.offset, self.offset + len(found)))
        self.offset += len(found)
        return Batch(found, lambda: self.done.append(name), offsets, [("results/0", len(found))])


def texts(client: FakeClient) -> list[str]:
    """The messages that it was sent, without frames and cursors."""
    return [frame.partition(b"{")[2].partition(b",")[0].decode() for frame in client.sent]


def text(number: int, address: Address = "doll", interim_of: str = "") -> Record:
    """A record whose payload names it."""
    return Record(address, b"{%d,}" % number, 0, interim_of=interim_of)


async def test_a_batch_is_routed_in_order_and_done_once() -> None:
    stand = Stand()
    client = connect(stand.hub)
    stand.router(stand.batch(*(text(number) for number in range(5))))
    assert texts(client) == ["0", "1", "2", "3", "4"]
    assert (stand.done, stand.counters.routed) == ([""], 5)


async def test_a_record_for_several_devices_reaches_each_of_them_and_no_other() -> None:
    stand = Stand()
    one, two, three = [connect(stand.hub, name) for name in ("one", "two", "three")]
    stand.router(stand.batch(text(0, "one"), text(1, Devices(("two", "one", "two", "away"))), text(2, "two")))
    assert (texts(one), texts(two), texts(three)) == (["0", "1"], ["1", "2"], [])
    assert (stand.done, stand.counters.routed, stand.counters.unknown_device) == ([""], 4, 1)


async def test_unknown_devices_are_counted_each_and_logged_within_bounds(caplog: pytest.LogCaptureFixture) -> None:
    stand = Stand()
    client = connect(stand.hub)
    with caplog.at_level(logging.INFO, "cocoa.router"):
        stand.router(stand.batch(*(text(number, f"unknown-{number}") for number in range(1000)), text(1)))
    assert texts(client) == ["1"]
    assert (stand.counters.unknown_device, stand.counters.routed, stand.done) == (1000, 1, [""])
    assert len(caplog.records) == 50


async def test_a_device_that_leaves_within_a_batch_is_not_connected_for_the_rest_of_it() -> None:
    stand = Stand()
    client = connect(stand.hub)

    def overflow(*_: object) -> None:
        stand.hub.unregister(client)

    client.send = overflow  # type: ignore[assignment, method-assign]
    stand.router(stand.batch(text(0), text(1), text(2)))
    assert (stand.counters.routed, stand.counters.unknown_device, stand.done) == (1, 2, [""])


@pytest.mark.logs("cocoa.router", "routing failed")
async def test_an_error_costs_its_own_message_and_the_batch_is_still_done() -> None:
    stand = Stand()
    client = connect(stand.hub)
    # A payload that is no bytes stands for any mistake of ours.
    broken = Record("doll", None, 0)  # type: ignore[arg-type]  # on purpose
    stand.router(stand.batch(text(0), broken, text(1)))
    assert texts(client) == ["0", "1"]
    assert (stand.done, stand.counters.routed, stand.counters.dropped) == ([""], 2, {"fault": 1})


async def test_an_expected_record_has_come_back_once_it_is_routed_with_and_without_a_mailbox() -> None:
    for stand in (Stand(), await Stand(SlowMailbox()).open()):
        stand.round_trips.expect("doll", b"{1,}", lambda: None)
        stand.router(stand.batch(text(0), text(1)))
        if isinstance(stand.mailbox, SlowMailbox):
            assert len(stand.round_trips) == 1
            await stand.mailbox.store()
        assert len(stand.round_trips) == 0


async def test_with_a_mailbox_nothing_is_sent_before_it_is_stored() -> None:
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    client = connect(stand.hub)
    stand.router(stand.batch(text(0), text(1, interim_of="s")))
    await asyncio.sleep(0)
    assert (client.sent, stand.done) == ([], [])
    await mailbox.store()
    assert (texts(client), stand.done) == (["0", "1"], [""])


async def test_records_for_everyone_wait_as_they_are_once_many_messages_are_in_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the mailbox is unavailable, each would take a thousand times its own size."""
    monkeypatch.setattr(router_module, "MOST_MESSAGES", 100)
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    clients = [stand.connect(f"doll-{number}") for number in range(40)]
    for number in range(10):
        record = Record(Everyone(), b"{%d,}" % number, 0, options=Options(ttl_s=0))
        stand.router(stand.batch(record, text(100 + number, "doll-0"), name=str(number)))
    assert sum(len(flight.messages) for flight in stand.router._in_flight) == 3 * 41
    assert "10 batches" in repr(stand.router)
    for call in range(10):
        await mailbox.store(call)
    assert stand.done == [str(number) for number in range(10)]
    assert texts(clients[1]) == [str(number) for number in range(10)]
    assert texts(clients[0]) == [str(number) for two in range(10) for number in (two, 100 + two)]
    assert stand.router._messages == 0


async def test_a_batch_of_records_for_everyone_is_expanded_portion_by_portion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expanded as a whole, 500 records and 10,000 devices took 390 MiB."""
    monkeypatch.setattr(router_module, "MOST_MESSAGES", 100)
    monkeypatch.setattr(portions_module, "MESSAGES_TOGETHER", 50)
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    clients = [stand.connect(f"doll-{number}") for number in range(40)]
    now = [Record(Everyone(), b"{%d,}" % number, 0, options=Options(ttl_s=0)) for number in range(10)]
    stand.router(stand.batch(*now, name="0"))
    stand.router(stand.batch(text(10, "doll-0"), name="1"))
    assert [len(flight.messages) for flight in stand.router._in_flight] == [40, 40, 40]
    clients += [stand.connect(f"late-{number}") for number in range(80)]  # what waits is for them, too
    for call in range(11):
        assert stand.done == ["0"] * (call == 10)
        assert stand.router._messages <= 100 + 120
        await mailbox.store(call)
    assert stand.done == ["0", "1"]
    assert texts(clients[0]) == [str(number) for number in range(11)]
    assert texts(clients[-1]) == [str(number) for number in range(3, 10)]
    assert stand.router._messages == 0


async def test_a_batch_that_the_mailbox_rejects_with_a_fault_holds_up_no_other_and_is_not_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is read again after a restart."""
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    client = stand.connect()
    with monkeypatch.context() as patch:
        patch.setattr(mailbox, "append", Mock(side_effect=RuntimeError("a fault")))
        with pytest.raises(RuntimeError):
            stand.router(stand.batch(text(0), name="0"))
    stand.router(stand.batch(text(1), name="1"))
    await mailbox.store(0)
    assert (texts(client), stand.done, stand.router._messages) == (["1"], ["1"], 0)


@pytest.mark.logs("cocoa.router", "routing failed")
async def test_a_part_of_a_batch_that_the_mailbox_rejects_with_a_fault_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    append = Mock(side_effect=[RuntimeError("a fault"), asyncio.Future()])
    with monkeypatch.context() as patch:
        patch.setattr(mailbox, "append", append)
        stand.router(stand.batch(*(text(number, Group("all")) for number in range(FAN_OUTS_TOGETHER + 1))))
    assert (append.call_count, stand.done) == (2, [])


async def test_a_batch_that_was_stored_is_sent_in_spite_of_a_fault_of_what_is_remembered_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    client = stand.connect()
    memory = Mock(spec=TraceMemory, stored=Mock(side_effect=RuntimeError("a fault")))
    monkeypatch.setattr(stand.router, "_memory", memory)
    loop, faults = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda _, context: faults.append(context["exception"]))
    stand.router(stand.batch(text(0), name="0"))
    await mailbox.store(0)
    stand.router(stand.batch(text(1), name="1"))
    await mailbox.store(1)
    assert (texts(client), stand.done, len(faults)) == (["0", "1"], ["0", "1"], 2)


@pytest.mark.logs("cocoa.router", "routing failed")
async def test_a_fault_of_a_batch_that_has_waited_costs_no_other_and_it_is_not_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(router_module, "MOST_MESSAGES", 1)
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    client = stand.connect()
    for number in range(3):
        stand.router(stand.batch(text(number), name=str(number)))
    store = Router._store

    def fail_once(*arguments: Any) -> None:
        monkeypatch.setattr(Router, "_store", store)
        raise RuntimeError("a fault")

    monkeypatch.setattr(Router, "_store", fail_once)
    for call in range(2):
        await mailbox.store(call)
    assert (texts(client), stand.done) == (["0", "2"], ["0", "2"])


@pytest.mark.logs("cocoa.router", "routing failed")
async def test_a_batch_that_has_waited_and_is_in_flight_in_spite_of_a_fault_is_done_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand = Stand()
    with monkeypatch.context() as patch:
        patch.setattr(stand.router, "_has_to_hold", lambda: True)
        stand.router(stand.batch(text(0, "gone")))
    with monkeypatch.context() as patch:
        patch.setattr(stand.router._neighbors, "is_shared", lambda _: True)
        patch.setattr(stand.router, "_go_on", Mock(side_effect=RuntimeError("a fault")))
        stand.router._route_held()
    assert stand.done == []
    stand.router._go_on()
    assert stand.done == [""]


async def test_batches_are_sent_in_their_order_though_the_second_is_stored_first() -> None:
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    client = connect(stand.hub)
    stand.router(stand.batch(text(0), name="first"))
    stand.router(stand.batch(text(1), name="second"))
    await mailbox.store(1)
    assert (client.sent, stand.done) == ([], [])
    await mailbox.store(0)
    assert (texts(client), stand.done) == (["0", "1"], ["first", "second"])


async def test_a_device_that_comes_while_its_message_is_stored_is_sent_it() -> None:
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    gone = connect(stand.hub, "gone")
    stand.router(stand.batch(text(0), text(1, "gone")))
    client = connect(stand.hub)
    stand.hub.unregister(gone)
    await mailbox.store()
    assert (texts(client), texts(gone)) == (["0"], [])
    assert (stand.counters.routed, stand.counters.kept, stand.counters.unknown_device) == (1, 1, 0)


async def test_the_recipients_of_a_record_are_settled_when_it_is_read() -> None:
    """Messages stored for a group's devices are sent to these, even if the group changes meanwhile."""
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    one = connect(stand.hub, "one")
    stand.router(stand.batch(text(0, Devices(("one", "two")))))
    two, three = [connect(stand.hub, name) for name in ("two", "three")]
    await mailbox.store()
    assert (texts(one), texts(two), texts(three)) == (["0"], ["0"], [])
    assert [entry.device_id for entry in mailbox.calls[0][0] if isinstance(entry, Entry)] == ["one", "two"]
    assert {(entry.source, entry.offset) for entry in mailbox.calls[0][0]} == {("results/0", 0)}


async def test_a_batch_that_the_closed_mailbox_did_not_store_is_neither_sent_nor_done() -> None:
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    client = connect(stand.hub)
    stand.router(stand.batch(text(0), name="lost"))
    stand.router(stand.batch(text(1), name="stored"))
    await mailbox.store(1)
    await mailbox.fail(0)
    assert (texts(client), stand.done) == (["1"], ["stored"])


async def test_a_record_that_is_read_again_has_its_devices_look_into_their_boxes_once() -> None:
    mailbox = MemoryMailbox(BoxLimits())
    stand = await Stand(mailbox).open()
    client = connect(stand.hub)
    looks: list[int] = []
    client.look_again = lambda: looks.append(1)  # type: ignore[method-assign]
    batch = stand.batch(text(0), text(1), text(2, Devices(("doll", "away"))))
    for turn in (1, 2):
        stand.router(batch)
        await asyncio.sleep(0)
        assert stand.done == [""] * turn
    assert (texts(client), looks) == (["0", "1", "2"], [1])
    assert (stand.counters.kept, stand.counters.routed, mailbox.counters.duplicates) == (1, 3, 4)


async def test_an_interim_that_is_read_again_is_not_sent_again_once_its_message_is_stored() -> None:
    mailbox = MemoryMailbox(BoxLimits())
    stand = await Stand(mailbox).open()
    client = connect(stand.hub)
    batch = stand.batch(text(0, interim_of="s"), text(1), text(2, "away", interim_of="s"))
    for _ in range(2):
        stand.router(batch)
        await asyncio.sleep(0)
    assert texts(client) == ["0", "1"]
    assert (await mailbox.look("doll")).last == (1, 0)
    assert stand.counters.unknown_device == 2


@pytest.mark.logs("cocoa.router", "routing failed")
async def test_an_error_with_a_mailbox_only_delays_its_message() -> None:
    mailbox = MemoryMailbox(BoxLimits())
    stand = await Stand(mailbox).open()
    bear, doll = connect(stand.hub, "bear"), connect(stand.hub)

    def broken(*_: object) -> None:
        raise ValueError("a mistake of ours")

    bear.stored = broken  # type: ignore[assignment, method-assign]
    stand.router(stand.batch(text(0, "bear"), text(1)))
    await asyncio.sleep(0)
    assert (texts(doll), stand.done, stand.counters.dropped) == (["1"], [""], {"fault": 1})
    assert (await mailbox.look("bear")).last == (1, 0)


async def test_a_batch_for_a_mailbox_that_is_closed_is_left_to_the_broker() -> None:
    mailbox = MemoryMailbox(BoxLimits())
    stand = await Stand(mailbox).open()
    await mailbox.close(1.0)
    stand.router(stand.batch(text(0)))
    assert (stand.done, repr(stand.router)) == ([], "<Router 0 batches in flight>")


NOW_OR_NEVER = Options(ttl_s=0)


async def test_users_groups_and_everyone_are_reached_except_those_that_are_excluded() -> None:
    stand = Stand()
    one = connect(stand.hub, "one", 99, ["red"])
    two = connect(stand.hub, "two", "99", ["red", "blue"])
    three = connect(stand.hub, "three", 99)
    addresses: list[Address] = [
        User(99),
        User("99"),
        Group("red"),
        Group("red", frozenset({"two"})),
        Everyone(frozenset({"one"})),
    ]
    stand.router(stand.batch(*(text(number, address) for number, address in enumerate(addresses))))
    assert (texts(one), texts(two), texts(three)) == (["0", "2", "3"], ["1", "2", "4"], ["0", "4"])
    assert (stand.done, stand.counters.routed, stand.counters.unknown_device) == ([""], 8, 0)


async def test_each_connection_of_a_device_gets_a_record_for_its_group_once() -> None:
    stand = Stand()
    first, second = connect(stand.hub, "doll", groups=["red"]), connect(stand.hub, "doll", groups=["red"])
    stand.router(stand.batch(text(0, Group("red")), text(1, Devices(("doll", "doll")))))
    assert (texts(first), texts(second)) == (["0", "1"], ["0", "1"])


async def test_a_record_without_recipients_is_counted_as_not_connected_and_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for stand in (Stand(), await Stand(MemoryMailbox(BoxLimits())).open()):
        connect(stand.hub, "doll", 99, ["red"])
        with caplog.at_level(logging.INFO, "cocoa.router"):
            stand.router(stand.batch(text(0, User("99")), text(1, Group("red", frozenset({"doll"}))), text(2, "doll")))
            await asyncio.sleep(0)
        assert (stand.done, stand.counters.unknown_device, stand.counters.routed) == ([""], 2, 1)
        assert {vars(line)["reason"] for line in caplog.records} == {"no recipient"}
        caplog.clear()


async def test_without_a_mailbox_a_message_whose_ttl_has_passed_is_dropped_and_counted() -> None:
    """For one device and for many, which are sent in two ways."""
    stand = Stand()
    client = connect(stand.hub, "doll", groups=["red"])
    records = [
        Record(address, b"{%d,}" % number, timestamp_ms, options=Options(ttl_s=60))
        for number, (address, timestamp_ms) in enumerate(
            [("doll", 939_999), ("doll", 940_000), ("doll", 0), ("doll", 2_000_000), ("nowhere", 1)]
        )
    ]
    stand.router(stand.batch(*records))
    assert (texts(client), stand.counters.dropped) == (["1", "2", "3"], {"expired": 2})
    stand.router(stand.batch(*(record._replace(address=Group("red")) for record in records)))
    assert (texts(client), stand.counters.dropped) == (["1", "2", "3"] * 2, {"expired": 4})
    assert (stand.done, stand.counters.unknown_device) == (["", ""], 0)


async def test_without_a_mailbox_a_records_options_and_its_deadline_reach_its_connections() -> None:
    """For one device and for many, which are sent in two ways."""
    stand = Stand()
    client = connect(stand.hub, "doll", groups=["red"])
    options = Options("high", 60, "key", "id")
    records = [
        text(0),
        text(1)._replace(options=options),
        text(2, interim_of="s"),
        text(3, interim_of="s")._replace(options=options, timestamp_ms=990_000),
    ]
    expected = [
        None,
        Terms("", "high", 1_060_000, "key", "id"),
        Terms("s"),
        Terms("s", "high", 1_050_000, "key", "id"),
    ]
    stand.router(stand.batch(*records))
    assert client.terms == expected
    stand.router(stand.batch(*(record._replace(address=Group("red")) for record in records)))
    assert client.terms == expected * 2


async def test_a_message_for_now_or_never_reaches_who_is_connected_however_old_it_is() -> None:
    stand = Stand()
    client = connect(stand.hub)
    stand.router(stand.batch(Record("doll", b"{0,}", 1, options=NOW_OR_NEVER)))
    assert (texts(client), stand.counters.dropped) == (["0"], {})


async def test_a_message_for_now_or_never_is_not_stored_and_keeps_its_place_among_those_that_are() -> None:
    mailbox = MemoryMailbox(BoxLimits())
    stand = await Stand(mailbox).open()
    client = connect(stand.hub)
    now = text(1)._replace(options=NOW_OR_NEVER)
    stand.router(stand.batch(text(0), now, text(2), now._replace(address=Devices(("doll", "away")))))
    await asyncio.sleep(0)
    assert texts(client) == ["0", "1", "2", "1"]
    assert (stand.done, stand.counters.routed, stand.counters.unknown_device) == ([""], 4, 1)
    assert [(await mailbox.look(name)).last for name in ("doll", "away")] == [(2, 0), (2, 2)]


async def test_a_message_for_now_or_never_is_not_sent_again_with_a_batch_that_is_read_again() -> None:
    mailbox = MemoryMailbox(BoxLimits())
    stand = await Stand(mailbox).open()
    client = connect(stand.hub)
    batch = stand.batch(text(0)._replace(options=NOW_OR_NEVER), text(1))
    for _ in range(2):
        stand.router(batch)
        await asyncio.sleep(0)
    assert texts(client) == ["0", "1"]


async def test_a_message_for_now_or_never_replaces_what_is_in_the_box_and_says_what_it_comes_after() -> None:
    mailbox = MemoryMailbox(BoxLimits())
    stand = await Stand(mailbox).open()
    client, now = stand.connect(), Options(ttl_s=0, collapse_key="k")
    keyed = text(1)._replace(options=Options(collapse_key="k"))
    stand.router(
        stand.batch(text(0), keyed, text(2)._replace(options=now), text(3), text(4, "away")._replace(options=now))
    )
    await asyncio.sleep(0)
    assert (texts(client), client.numbers, client.places) == (["0", "1", "2", "3"], [1, 2, 3], [2])
    [page] = await mailbox.read("doll", [LaneRead("normal", 0, PageLimits())])
    assert [message.number for message in page.messages] == [1, 3]
    assert (stand.done, stand.counters.routed, stand.counters.kept, stand.counters.unknown_device) == ([""], 4, 0, 1)


async def test_a_message_for_now_or_never_is_dropped_because_of_its_id_like_any_other() -> None:
    mailbox = MemoryMailbox(BoxLimits())
    stand = await Stand(mailbox).open()
    client, named, now = stand.connect(), Options(id="x"), Options(ttl_s=0, id="x")
    stand.router(stand.batch(text(0)._replace(options=named), text(1)._replace(options=now)))
    other = stand.batch(text(2)._replace(options=Options(ttl_s=0, id="y")))
    for _ in range(2):  # the second time, no later message shows that it was sent
        stand.router(other)
    stand.router(stand.batch(text(3)._replace(options=Options(id="y")), text(4, "away")._replace(options=now)))
    for _ in range(4):
        await asyncio.sleep(0)
    assert (texts(client), stand.counters.routed, stand.counters.unknown_device) == (["0", "2"], 2, 1)
    assert mailbox.counters.duplicates == 3


async def test_a_message_for_now_or_never_is_no_concern_of_the_mailbox_without_a_key_and_an_id() -> None:
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    stand.connect()
    options = [NOW_OR_NEVER, Options(ttl_s=0, id="x"), Options(ttl_s=0, collapse_key="k")]
    interim = text(7, interim_of="s")._replace(options=Options(id="x", collapse_key="k"))
    stand.router(stand.batch(*(text(at)._replace(options=found) for at, found in enumerate(options)), interim))
    assert [entry.payload for entry in mailbox.calls[0][0]] == [b"{1,}", b"{2,}"]


async def test_a_message_for_now_or_never_knows_which_stored_one_of_its_device_comes_next() -> None:
    """In its own batch and in those behind it: one that is stored, but not routed, may have been read from the box."""
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    client, now, high = stand.connect(groups=["red"]), Options(ttl_s=0), Options("high")
    stand.connect("other")
    stand.router(stand.batch(text(0)._replace(options=now), text(1, "other"), text(2), text(3)._replace(options=now)))
    stand.router(stand.batch(text(4)._replace(options=high), text(5)._replace(options=now), text(6, Group("red"))))
    stand.router(stand.batch(text(7), text(8, "other")._replace(options=now)))
    await mailbox.store(1)
    assert client.sent == []
    await mailbox.store(0)
    await mailbox.store(2)
    # The numbers are given in the order of storing: 6 got 1, 2 got 2.
    assert texts(client) == ["0", "2", "3", "4", "5", "6", "7"]
    assert client.later == [2, 1, 1]
    stand.router(stand.batch(text(9)._replace(options=now)))
    stand.router(stand.batch(text(10)))
    await mailbox.store(3)
    assert client.later[3:] == [0]
    await mailbox.store(4)
    stand.router(stand.batch(text(11)._replace(options=now)))
    await mailbox.store(5)
    assert client.later[4:] == [None]


@pytest.mark.parametrize("is_busy", [False, True])
async def test_a_large_fan_out_that_waits_for_another_one_is_not_taken_for_one_that_is_read_again(
    is_busy: bool,
) -> None:
    stand = await Stand(MemoryMailbox(BoxLimits())).open()
    clients = [stand.connect(f"doll{number}", groups=["red"]) for number in range(FAN_OUT_STEP + 1)]
    if is_busy:
        stand.router(stand.batch(text(0, Group("red"))))
    now, last = Options(ttl_s=0), f"doll{FAN_OUT_STEP}"
    stand.router(stand.batch(text(1, last)._replace(options=now), text(2, last, "s"), text(3, Group("red"))))
    await asyncio.sleep(0)
    assert [each for each in texts(clients[-1]) if each in ("1", "2")] == ["1", "2"]
    assert stand.counters.dropped == {}
    assert all(client.looks == 0 for client in clients)


async def test_a_fan_out_comes_next_only_for_its_recipients() -> None:
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    client = stand.connect(groups=["red"])
    fan_outs = (User("somebody else"), Group("blue"), Group("red", frozenset({"doll"})), Everyone(frozenset({"doll"})))
    stand.router(stand.batch(text(0)._replace(options=Options(ttl_s=0)), *(text(1, address) for address in fan_outs)))
    stand.router(stand.batch(*(text(2, address) for address in fan_outs)))
    await mailbox.store(0)
    assert client.later == [None]


@pytest.mark.parametrize("address", [User(99), Group("red"), Everyone()])
async def test_a_fan_out_that_is_not_stored_yet_comes_next_for_each_of_its_recipients(address: Address) -> None:
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    client = stand.connect(groups=["red"])
    stand.router(stand.batch(text(0)._replace(options=Options(ttl_s=0)), text(1, "other")))
    stand.router(stand.batch(text(2, address)))
    await mailbox.store(0)
    assert client.later == [0]


async def test_each_batch_in_flight_is_searched_once_however_many_messages_ask_for_later_ones() -> None:
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    for number in range(20):
        stand.connect(f"doll{number}")
    asked = [text(number, f"doll{number}")._replace(options=Options(ttl_s=0)) for number in range(20)]
    stand.router(stand.batch(*asked, text(20, "other")))
    stand.router(stand.batch(text(21, "other")))
    seen = list[int]()

    class Searched(list[Record]):
        def __getitem__(self, at: object) -> Record:  # type: ignore[override]
            seen.append(1)
            return super().__getitem__(at)  # type: ignore[call-overload, no-any-return]

    flight = stand.router._in_flight[-1]
    flight.batch.records = Searched(flight.batch.records)
    await mailbox.store(0)
    assert len(seen) == 1
