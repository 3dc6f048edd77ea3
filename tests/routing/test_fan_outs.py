"""Records for users, groups and everyone with a mailbox: stored as fan-outs, and sent step by step."""

from __future__ import annotations

import asyncio
import logging

import pytest

from cocoa_tornado.mailboxes.fan_out_bound import FAN_OUTS_UNDER_WAY
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Entry, FanOut, FanOutStep
from cocoa_tornado.mailboxes.store import FAN_OUT_STEP
from cocoa_tornado.routing import router as router_module
from cocoa_tornado.routing.address import Devices, Everyone, Group, User
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.audiences import ALL, of_group, of_user
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.rules.records import Record
from testing.waiting import eventually

from ..clients import FakeClient, connect
from .test_router import NOW_OR_NEVER, SlowMailbox, Stand, text, texts

pytestmark = pytest.mark.gen_test(timeout=30)


async def stand_with_mailbox() -> Stand:
    return await Stand(MemoryMailbox(BoxLimits())).open()


def step(numbers: dict[str, int] | None, audience: str = of_group("red"), excluded: tuple[str, ...] = ()) -> FanOutStep:
    """The last step of a fan-out that another life of this gateway has begun."""
    return FanOutStep(audience, frozenset(excluded), b"{7,}", 0, None, 0, numbers, True, len(numbers or "?"))


async def test_a_record_for_a_group_is_sent_to_its_connected_devices_and_kept_for_the_others() -> None:
    stand = await stand_with_mailbox()
    one, two, blue = stand.connect("one", groups=["red"]), stand.connect("two", groups=["red"]), stand.connect("blue")
    stand.hub.unregister(two)
    stand.router(stand.batch(text(0, Group("red")), text(1, User(99)), text(2, Everyone(frozenset({"one"})))))
    await asyncio.sleep(0)
    assert (texts(one), texts(two), texts(blue)) == (["0", "1"], [], ["1", "2"])
    assert (stand.done, stand.counters.routed, stand.counters.kept, stand.counters.unknown_device) == ([""], 4, 3, 0)
    assert stand.mailbox is not None
    assert (await stand.mailbox.look("two")).last.normal == (await stand.mailbox.look("one")).last.normal + 1 == 3


async def test_a_device_gets_fan_outs_and_its_own_messages_in_the_order_of_the_records() -> None:
    stand = await stand_with_mailbox()
    client = stand.connect(groups=["red"])
    interim = text(2, interim_of="s")
    stand.router(stand.batch(text(0), text(1, Group("red")), interim, text(3, User(99)), text(4)))
    assert client.sent == []
    await asyncio.sleep(0)
    assert (texts(client), client.numbers) == (["0", "1", "2", "3", "4"], [1, 2, 3, 4])


async def test_a_transient_record_for_a_group_goes_to_the_connected_devices_and_is_not_stored() -> None:
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    client, away = stand.connect(groups=["red"]), stand.connect("away", groups=["red"])
    stand.hub.unregister(away)
    now = text(0, Group("red"))._replace(options=NOW_OR_NEVER)
    stand.router(stand.batch(now, text(1, Everyone(), interim_of="s")))
    await mailbox.store()
    assert (texts(client), texts(away), mailbox.calls[0][0]) == (["0", "1"], [], [])


async def test_a_transient_record_for_a_group_replaces_what_is_in_every_box_and_goes_to_the_connected_devices() -> None:
    stand = await stand_with_mailbox()
    client, away = stand.connect(groups=["red"]), stand.connect("away", groups=["red"])
    stand.hub.unregister(away)
    keyed = text(0, Group("red"))._replace(options=Options(collapse_key="k"))
    now = text(1, Group("red"))._replace(options=Options(ttl_s=0, collapse_key="k", id="x"))
    batch = stand.batch(keyed, now, text(2))
    for _ in range(2):
        stand.router(batch)
        await asyncio.sleep(0)
    assert (texts(client), client.places) == (["0", "1", "2"], [1])
    stand.router(stand.batch(text(3, Group("red"))._replace(options=Options(ttl_s=0, id="x"))))
    await asyncio.sleep(0)
    assert stand.mailbox is not None
    assert (texts(client), stand.mailbox.counters.collapsed, stand.mailbox.status().messages) == (["0", "1", "2"], 2, 1)
    # The devices of the last one have had its id, and still count as recipients.
    assert (stand.counters.routed, stand.counters.kept, stand.counters.unknown_device) == (3, 1, 0)


async def test_a_transient_step_whose_numbers_are_unknown_is_not_sent() -> None:
    stand = await stand_with_mailbox()
    client, looks = stand.connect(groups=["red"]), list[int]()
    client.look_again = lambda: looks.append(1)  # type: ignore[method-assign]
    stand.router.on_step(step(None)._replace(options=Options(ttl_s=0, id="x")))
    assert (client.sent, looks) == ([], [])


async def test_messages_and_fan_outs_are_stored_with_their_options_and_one_deadline() -> None:
    """It counts from the record's timestamp, or from reading if that is absent or in the future."""
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    options = Options("high", ttl_s=60, collapse_key="k", id="i")
    stand.router(
        stand.batch(
            Record("doll", b"0", 900_000, options=options),
            Record(Group("red", frozenset({"doll"})), b"1", 0, options=options),
            Record(Devices(("one", "two")), b"2", 2_000_000, options=options),
            Record(User("99"), b"3", 5),
        )
    )
    assert mailbox.calls[0][0] == [
        Entry("doll", b"0", 900_000, "results/0", 0, options, 960_000),
        FanOut(of_group("red"), frozenset({"doll"}), b"1", 0, "results/0", 1, options, 1_060_000),
        Entry("one", b"2", 2_000_000, "results/0", 2, options, 1_060_000),
        Entry("two", b"2", 2_000_000, "results/0", 2, options, 1_060_000),
        FanOut(of_user("99"), frozenset(), b"3", 5, "results/0", 3),
    ]


async def test_a_batch_is_done_before_its_large_fan_out_is_complete() -> None:
    stand = await stand_with_mailbox()
    clients = [stand.connect(str(number), groups=["red"]) for number in range(FAN_OUT_STEP + 3)]
    stand.router(stand.batch(text(0, Group("red")), text(1, "0")))
    await asyncio.sleep(0)
    assert (stand.done, texts(clients[0])) == ([""], ["0", "1"])
    assert texts(clients[-1]) == []
    await eventually(lambda: clients[-1].sent != [])
    assert (stand.done, sum(len(client.sent) for client in clients)) == ([""], FAN_OUT_STEP + 4)
    assert texts(clients[0]) == ["0", "1"]
    assert all(texts(client) == ["0"] for client in clients[1:])
    assert stand.counters.routed == FAN_OUT_STEP + 4


async def test_a_fan_out_without_recipients_is_counted_once_as_not_connected(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stand = await stand_with_mailbox()
    stand.connect()
    with caplog.at_level(logging.INFO, "cocoa.router"):
        stand.router(stand.batch(text(0, Group("red")), text(1, Everyone(frozenset({"doll"})))))
        await asyncio.sleep(0)
    assert (stand.done, stand.counters.unknown_device, stand.counters.routed) == ([""], 2, 0)
    assert [vars(line)["reason"] for line in caplog.records] == ["no recipient"] * 2


async def test_a_step_that_belongs_to_no_batch_is_sent_as_well() -> None:
    """A fan-out continues after a restart."""
    stand = await stand_with_mailbox()
    client = stand.connect(groups=["red"])
    stand.router.on_step(step({"doll": 1, "away": 4}))
    assert (texts(client), client.numbers) == (["7"], [1])
    assert (stand.counters.routed, stand.counters.kept, stand.counters.unknown_device) == (1, 1, 0)


async def test_a_step_whose_numbers_are_unknown_has_the_audience_look_into_its_boxes() -> None:
    stand = await stand_with_mailbox()
    looks: list[str] = []
    for name, groups in (("one", ["red"]), ("two", ["red"]), ("blue", ["blue"])):
        client = stand.connect(name, groups=groups)
        client.look_again = lambda name=name: looks.append(name)  # type: ignore[method-assign, misc]
    stand.router.on_step(step(None, excluded=("two",)))
    assert looks == ["one"]
    stand.router.on_step(step(None, ALL))
    assert sorted(looks) == ["blue", "one", "one", "two"]


async def waiting(record: Record, monkeypatch: pytest.MonkeyPatch) -> tuple[Stand, SlowMailbox, FakeClient]:
    """A fan-out that is recorded, and may keep three devices' numbers, behind a batch that is not stored yet."""
    monkeypatch.setattr(router_module, "MOST_MESSAGES", 3)
    mailbox = SlowMailbox()
    stand = await Stand(mailbox).open()
    client = connect(stand.hub, groups=["red"])
    stand.router(stand.batch(text(0)))
    stand.router(stand.batch(record))
    await mailbox.store(1)
    return stand, mailbox, client


async def test_the_steps_that_wait_for_earlier_batches_are_bounded_beyond_that_their_audience_looks_into_its_boxes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand, mailbox, client = await waiting(text(7, Group("red")), monkeypatch)
    kept = []
    for numbers in ({"doll": 2, "a": 1}, {"b": 1, "c": 1}, {"d": 1}):
        stand.router.on_step(step(numbers))
        kept.append([flight.kept for flight in stand.router._in_flight])
    assert kept == [[0, 2], [0, 0], [0, 0]]
    [steps] = stand.router._in_flight[1].steps.values()
    assert len(steps) == 1
    assert client.looks == 0
    await mailbox.store(0)
    assert (texts(client), client.looks, stand.counters.dropped) == (["0"], 1, {})


async def test_transient_steps_that_wait_beyond_that_bound_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = text(7, Group("red"))._replace(options=Options(ttl_s=0, id="x"))
    stand, mailbox, client = await waiting(now, monkeypatch)
    for numbers in ({"doll": 1, "a": 1}, {"b": 1, "c": 1}, {"d": 1}):
        stand.router.on_step(step(numbers)._replace(options=now.options))
    assert [flight.kept for flight in stand.router._in_flight] == [0, 3]
    await mailbox.store(0)
    assert (texts(client), client.looks, stand.counters.dropped) == (["0", "7"], 0, {"overflow": 2})


async def test_a_fan_out_that_is_read_again_has_its_devices_look_and_no_transient_message_is_repeated() -> None:
    stand = await stand_with_mailbox()
    client = stand.connect(groups=["red"])
    looks: list[int] = []
    client.look_again = lambda: looks.append(1)  # type: ignore[method-assign]
    batch = stand.batch(text(0, interim_of="s"), text(1, Group("red")), text(2, interim_of="s"))
    stand.router(batch)
    await asyncio.sleep(0)
    assert (texts(client), looks) == (["0", "1", "2"], [])
    stand.router(batch)
    await asyncio.sleep(0)
    assert (texts(client), looks) == (["0", "1", "2", "2"], [1])
    assert (stand.counters.routed, stand.counters.unknown_device) == (1, 0)


async def test_the_steps_of_a_running_fan_out_do_not_wait_for_a_batch_that_reads_it_again() -> None:
    stand = await Stand(MemoryMailbox(BoxLimits())).open()
    clients = [stand.connect(f"doll{number}", groups=["red"]) for number in range(2 * FAN_OUT_STEP + 1)]
    begun = stand.offset
    for number in range(FAN_OUTS_UNDER_WAY):
        stand.router(stand.batch(text(number, Group("red"))))
    stand.offset = begun
    again = stand.batch(text(0, Group("red")), text(1, Group("red")), name="again")
    stand.router(again)
    while not clients[-1].sent:
        await asyncio.sleep(0)
    assert texts(clients[-1]) == ["0"]
    assert "again" not in stand.done
    await eventually(lambda: len(clients[-1].sent) == FAN_OUTS_UNDER_WAY and "again" in stand.done)
    assert texts(clients[-1]) == [str(number) for number in range(FAN_OUTS_UNDER_WAY)]


async def test_a_message_that_its_id_has_dropped_is_not_sent() -> None:
    stand = await stand_with_mailbox()
    client = stand.connect(groups=["red"])
    first = text(0)._replace(options=Options(id="x"))
    stand.router(stand.batch(first, text(1, Group("red"))._replace(options=Options(id="x")), text(2)))
    await asyncio.sleep(0)
    assert (texts(client), client.numbers, stand.counters.routed) == (["0", "2"], [1, 2], 2)


async def test_the_same_record_twice_in_a_batch_is_sent_twice_in_its_place() -> None:
    stand = await stand_with_mailbox()
    client = stand.connect(groups=["red"])
    stand.router(stand.batch(text(0, Group("red")), text(1), text(0, Group("red"))))
    await asyncio.sleep(0)
    assert (texts(client), client.numbers) == (["0", "1", "0"], [1, 2, 3])


@pytest.mark.logs("cocoa.router", "routing failed")
async def test_an_error_with_one_device_of_a_step_does_not_affect_the_others() -> None:
    stand = await stand_with_mailbox()
    broken, client = stand.connect("broken"), stand.connect("client")

    def fail(*_: object) -> None:
        raise ValueError("a mistake of ours")

    broken.stored = fail  # type: ignore[assignment, method-assign]
    stand.router(stand.batch(text(0, User(99))))
    await asyncio.sleep(0)
    assert (texts(client), stand.done, stand.counters.dropped) == (["0"], [""], {"fault": 1})
    assert stand.counters.routed == 1
