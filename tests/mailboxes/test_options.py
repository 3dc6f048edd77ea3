"""Priority, ``ttl``, ``collapse_key`` and ``id`` in the box of a device, tested with each mailbox."""

from __future__ import annotations

import pytest

from cocoa_tornado.mailboxes.port import Entry, FanOut, FanOutStep, LaneRead, Mailbox
from cocoa_tornado.rules.addressing import Options, Priority
from cocoa_tornado.rules.audiences import of_group
from cocoa_tornado.rules.box import BoxLimits, Numbers, PageLimits, Position

from .stands import ALL, SOURCE, Stand, contents, entry, missed, numbers, page_of, payloads, small_steps, until

pytestmark = pytest.mark.gen_test(timeout=60)

LOW, HIGH = Options(priority="low"), Options(priority="high")


def of(priority: Priority, offset: int, payload: bytes | None = None) -> Entry:
    return entry(offset, payload=payload, options=Options(priority=priority))


def keyed(offset: int, key: str, priority: Priority = "normal", device_id: str = "doll") -> Entry:
    return entry(offset, device_id, options=Options(priority=priority, collapse_key=key))


def named(offset: int, id_: str, device_id: str = "doll") -> Entry:
    return entry(offset, device_id, options=Options(id=id_))


def transient(
    offset: int, key: str | None = None, id_: str | None = None, priority: Priority = "normal", device_id: str = "doll"
) -> Entry:
    return entry(offset, device_id, options=Options(priority, 0, key, id_))


async def reopened(stand: Stand, mailbox: Mailbox, limits: BoxLimits | None = None) -> Mailbox:
    """The mailbox after a crash, if its messages survive one."""
    if not stand.survives:
        return mailbox
    await stand.crash(mailbox)
    return await stand.open(limits)


# -- priority


async def test_high_messages_have_a_lane_of_their_own(stand: Stand) -> None:
    mailbox = await stand.open()
    batch = [of("normal", 0), of("high", 1), of("low", 2), of("high", 3)]
    assert await mailbox.append(batch) == [1, 1, 2, 2]
    assert await contents(mailbox) == payloads([0, 2])
    assert await contents(mailbox, lane="high") == payloads([1, 3])
    mailbox = await reopened(stand, mailbox)
    high, normal = await mailbox.read("doll", [LaneRead("high", 1, ALL), LaneRead("normal", 0, PageLimits(1, 1000))])
    assert (numbers(high), numbers(normal)) == ([2], [1])
    assert (await mailbox.look("doll")).last == Numbers(2, 2)
    await mailbox.close(1.0)


async def test_a_mark_names_a_number_of_each_lane(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append([of("normal", 0), of("normal", 1), of("high", 2), of("high", 3)])
    mailbox.written("doll", Position(2, mailbox.epoch, 1))
    mailbox.acknowledge("doll", Position(0, mailbox.epoch, 1))
    box = await mailbox.look("doll")
    assert (box.written, box.normal.acked, box.high.acked) == (Numbers(2, 1), 0, 1)
    assert await contents(mailbox) == payloads([0, 1])
    await mailbox.append([of("high", 4)])  # whose commit carries the marks along
    assert await contents(mailbox, lane="high") == payloads([3, 4])
    assert mailbox.status().messages == 4
    await mailbox.close(5.0)


async def test_low_messages_are_the_first_to_be_dropped_from_a_full_box(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(max_messages=4))
    await mailbox.append([of("normal", 0), of("low", 1), of("high", 2), of("low", 3)])
    await mailbox.append([of("normal", 4)])
    assert (await contents(mailbox), await contents(mailbox, lane="high")) == (payloads([0, 3, 4]), payloads([2]))
    page = await page_of(mailbox)
    assert (numbers(page), missed(page)) == ([1, 3, 4], 1)
    assert [message.is_low for message in page.messages] == [False, True, False]
    await mailbox.append([of("high", 5), of("normal", 6)])
    assert (await contents(mailbox), await contents(mailbox, lane="high")) == (payloads([4, 6]), payloads([2, 5]))
    assert missed(await page_of(mailbox)) == 3
    assert mailbox.counters.lost == {"overflow": 3}
    assert [row.times for _, row in mailbox.counters.full.most(9, stand.clock(), least=1)] == [3]
    assert mailbox.status().messages == 4
    await mailbox.close(1.0)


async def test_a_low_message_is_dropped_itself_if_the_box_is_full_of_others(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(max_messages=2))
    await mailbox.append([of("normal", 0), of("high", 1)])
    assert await mailbox.append([of("low", 2)]) == [2]
    page = await page_of(mailbox)
    assert (numbers(page), page.last) == ([1], 2)
    assert missed(await page_of(mailbox, after=1), 1) == 1
    await mailbox.close(1.0)


async def test_the_newest_message_stays_whatever_its_size_and_priority(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(max_bytes=1000))
    await mailbox.append([of("high", 0, b"x" * 900), of("normal", 1, b"x" * 5000)])
    assert (numbers(await page_of(mailbox)), numbers(await page_of(mailbox, lane="high"))) == ([1], [])
    assert missed(await page_of(mailbox, lane="high")) == 1
    await mailbox.append([of("high", 2, b"x" * 3000)])
    assert (numbers(await page_of(mailbox)), numbers(await page_of(mailbox, lane="high"))) == ([], [2])
    await mailbox.append([entry(3, "other", b"x" * 5000, options=LOW)])
    assert numbers(await page_of(mailbox, "other"))
    assert mailbox.status().size_bytes == 8000
    await mailbox.close(1.0)


async def test_high_messages_are_the_last_to_be_dropped(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(max_messages=3))
    await mailbox.append([of("high", n) for n in range(3)])
    await mailbox.append([of("normal", 3)])
    assert (await contents(mailbox, lane="high"), await contents(mailbox)) == (payloads([1, 2]), payloads([3]))
    assert missed(await page_of(mailbox, lane="high")) == 1
    await mailbox.close(1.0)


# -- ttl


async def test_a_message_whose_own_ttl_has_ended_is_missed(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(ttl_s=1000))
    soon = int(stand.clock.now * 1000) + 5_000
    await mailbox.append([entry(0), entry(1, expires_ms=soon), entry(2), entry(3, options=HIGH, expires_ms=soon)])
    page = await page_of(mailbox)
    assert [message.expires_ms for message in page.messages] == [0, soon, 0]
    mailbox = await reopened(stand, mailbox, BoxLimits(ttl_s=1000))
    stand.clock.now += 6
    page = await page_of(mailbox)
    assert (numbers(page), missed(page)) == ([1, 3], 1)
    page = await page_of(mailbox, lane="high")
    assert (numbers(page), page.last, missed(page)) == ([], 1, 1)
    removed = sum([await mailbox.sweep() for _ in range(4)])
    assert (removed, mailbox.status().messages, mailbox.counters.lost) == (2, 2, {"expired": 2})
    assert missed(await page_of(mailbox)) == 1
    await mailbox.close(1.0)


async def test_a_message_that_comes_too_late_takes_a_number_and_is_missed(stand: Stand) -> None:
    mailbox = await stand.open()
    past = int(stand.clock.now * 1000) - 1
    assert await mailbox.append([entry(0), entry(1, expires_ms=past), entry(2)]) == [1, 2, 3]
    page = await page_of(mailbox)
    assert (numbers(page), missed(page)) == ([1, 3], 1)
    await mailbox.close(1.0)


async def test_a_ttl_never_exceeds_that_of_the_mailbox(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(ttl_s=100))
    await mailbox.append([entry(0, expires_ms=int(stand.clock.now + 5000) * 1000)])
    stand.clock.now += 101
    assert await contents(mailbox) == []
    assert sum([await mailbox.sweep() for _ in range(3)]) == 1
    await mailbox.close(1.0)


# -- collapse_key


async def test_a_newer_message_replaces_the_older_one_of_its_key(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append([keyed(0, "volume"), entry(1), keyed(2, "other"), keyed(3, "volume")])
    page = await page_of(mailbox)
    assert (numbers(page), missed(page)) == ([2, 3, 4], 0)
    mailbox = await reopened(stand, mailbox)
    await mailbox.append([keyed(4, "volume", device_id="another"), keyed(5, "volume")])
    page = await page_of(mailbox)
    assert (numbers(page), missed(page)) == ([2, 3, 5], 0)
    assert await contents(mailbox) == payloads([1, 2, 5])
    assert mailbox.status().messages == 4
    await mailbox.close(1.0)


async def test_a_page_says_which_key_a_message_has(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append([keyed(0, "volume \u00e9"), entry(1), keyed(2, "k", "high")])
    assert [message.collapse_key for message in (await page_of(mailbox)).messages] == ["volume \u00e9", None]
    assert [message.collapse_key for message in (await page_of(mailbox, lane="high")).messages] == ["k"]
    await mailbox.close(1.0)


async def test_a_message_replaces_one_of_another_priority(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append([keyed(0, "k", "high"), entry(1), keyed(2, "k", "low")])
    assert (await contents(mailbox), await contents(mailbox, lane="high")) == (payloads([1, 2]), [])
    assert missed(await page_of(mailbox, lane="high")) == 0
    await mailbox.append([keyed(3, "k", "high")])
    assert (await contents(mailbox), await contents(mailbox, lane="high")) == (payloads([1]), payloads([3]))
    assert missed(await page_of(mailbox)) == 0
    assert mailbox.counters.collapsed == 2
    await mailbox.close(1.0)


async def test_an_acknowledged_message_is_not_replaced_but_a_written_one_is(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append([keyed(0, "a"), keyed(1, "b"), entry(2)])
    mailbox.written("doll", Position(3, mailbox.epoch))
    mailbox.acknowledge("doll", Position(1, mailbox.epoch))
    await mailbox.append([keyed(3, "a"), keyed(4, "b")])
    page = await page_of(mailbox, after=1)
    assert (numbers(page), missed(page, 1)) == ([3, 4, 5], 0)
    assert mailbox.counters.collapsed == 1
    await mailbox.close(1.0)


async def test_replaced_messages_do_not_count_as_missed_when_the_others_expire(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(ttl_s=100))
    await mailbox.append([entry(0), keyed(1, "k"), entry(2), keyed(3, "k"), keyed(4, "k"), entry(5)])
    mailbox = await reopened(stand, mailbox, BoxLimits(ttl_s=100))
    stand.clock.now += 200
    for _ in range(3):
        await mailbox.sweep()
    page = await page_of(mailbox)
    assert (numbers(page), page.last, missed(page), missed(page, 3)) == ([], 6, 4, 2)
    await mailbox.close(1.0)


@pytest.mark.parametrize("pairs", [200, 600])
async def test_what_is_missed_is_right_however_often_it_alternates_with_what_was_replaced(
    stand: Stand, pairs: int
) -> None:
    mailbox = await stand.open(BoxLimits(max_messages=2))
    await mailbox.append([keyed(n, "k") if n % 2 else entry(n) for n in range(2 * pairs)])
    mailbox = await reopened(stand, mailbox, BoxLimits(max_messages=2))
    await mailbox.append([of("low", 5_000)])  # the box is full: it is missed itself
    page = await page_of(mailbox)
    assert (numbers(page), missed(page)) == ([2 * pairs - 1, 2 * pairs], pairs - 1)
    assert missed(await page_of(mailbox, after=2 * pairs), 2 * pairs) == 1
    mailbox.acknowledge("doll", Position(2 * pairs, mailbox.epoch))
    assert (await mailbox.look("doll")).normal.retracted == ()
    assert missed(await page_of(mailbox)) == 1
    await mailbox.close(1.0)


# -- id


async def test_a_second_message_of_the_same_id_is_dropped(stand: Stand) -> None:
    mailbox = await stand.open()
    assert await mailbox.append([named(0, "a"), named(1, "a"), named(2, "b")]) == [1, None, 2]
    assert await mailbox.append([named(3, "a", "other")]) != [None]
    mailbox = await reopened(stand, mailbox)
    assert await mailbox.append([named(4, "a"), named(5, "c")]) == [None, 3]
    assert await contents(mailbox) == payloads([0, 2, 5])
    await mailbox.close(1.0)


async def test_an_id_is_known_for_ten_minutes_and_as_long_as_its_message_is_kept(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append([named(0, "gone"), named(1, "kept")])
    mailbox.acknowledge("doll", Position(1, mailbox.epoch))
    stand.clock.now += 599
    assert await mailbox.append([named(2, "gone"), named(3, "kept")]) == [None, None]
    stand.clock.now += 2
    assert await mailbox.append([named(4, "gone"), named(5, "kept")]) == [3, None]
    await mailbox.close(1.0)


async def test_the_last_thousand_ids_of_a_device_are_known(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(max_messages=10))
    await mailbox.append([named(n, f"n{n}") for n in range(1001)])
    assert await mailbox.append([named(2000, "n1"), named(2001, "n1000")]) == [None, None]
    assert (await mailbox.append([named(2002, "n0")]))[0] is not None
    await mailbox.close(1.0)


async def test_an_id_that_is_named_again_takes_one_place_of_the_thousand(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(max_messages=10))
    await mailbox.append([entry(0, options=Options("high", id="first"))])  # it stays in the box
    for again in (1, 2, 3):
        stand.clock.now += 601
        [number] = await mailbox.append([named(again, "again")])
        assert number == again
        mailbox.acknowledge("doll", Position(again, mailbox.epoch))
    await mailbox.append([named(100 + n, f"n{n}") for n in range(998)])
    assert await mailbox.append([named(2000, "first"), named(2001, "again"), named(2002, "n0")]) == [None] * 3
    await mailbox.append([named(2003, "one more")])
    assert await mailbox.append([named(2004, "again"), named(2005, "n0")]) == [None] * 2
    assert await mailbox.append([named(2006, "first")]) != [None]
    await mailbox.close(1.0)


# -- a ttl of 0


async def test_a_transient_message_replaces_the_older_one_of_its_key_and_is_not_stored(stand: Stand) -> None:
    mailbox = await stand.open()
    batch = [entry(0), keyed(1, "k"), transient(2, "k"), keyed(3, "k", "high"), transient(4, "k", None, "high")]
    assert await mailbox.append(batch) == [1, 2, 2, 1, 1]
    mailbox = await reopened(stand, mailbox)
    assert (await contents(mailbox), await contents(mailbox, lane="high")) == (payloads([0]), [])
    assert (missed(await page_of(mailbox)), missed(await page_of(mailbox, lane="high"))) == (0, 0)
    assert mailbox.status().messages == 1
    assert await mailbox.append([entry(5), transient(6, "k"), keyed(7, "k")]) == [3, 3, 4]
    assert (numbers(await page_of(mailbox)), missed(await page_of(mailbox))) == ([1, 3, 4], 0)
    await mailbox.close(1.0)


async def test_the_id_of_a_transient_message_is_known_for_ten_minutes(stand: Stand) -> None:
    mailbox = await stand.open()
    assert await mailbox.append([named(0, "a"), transient(1, id_="a"), transient(2, id_="b")]) == [1, None, 1]
    mailbox = await reopened(stand, mailbox)
    stand.clock.now += 599
    assert await mailbox.append([named(3, "b"), transient(4, id_="b"), named(5, "c")]) == [None, None, 2]
    stand.clock.now += 2
    assert await mailbox.append([transient(6, id_="b"), named(7, "b"), transient(8, id_="a")]) == [2, None, None]
    assert await contents(mailbox) == payloads([0, 5])
    await mailbox.close(1.0)


async def test_a_transient_message_that_is_dropped_replaces_nothing(stand: Stand) -> None:
    mailbox = await stand.open()
    assert await mailbox.append([keyed(0, "k"), named(1, "a"), transient(2, "k", "a")]) == [1, 2, None]
    assert await contents(mailbox) == payloads([0, 1])
    assert (mailbox.counters.collapsed, mailbox.counters.duplicates, mailbox.counters.stored) == (0, 1, 2)
    await mailbox.close(1.0)


async def test_a_transient_message_that_is_read_again_is_dropped(stand: Stand) -> None:
    mailbox = await stand.open()
    batch = [keyed(0, "k"), transient(1, "k", "a"), transient(2, "k")]
    assert await mailbox.append(batch) == [1, 1, 1]
    mailbox = await reopened(stand, mailbox)
    assert await mailbox.append([*batch, keyed(3, "k")]) == [None, None, None, 2]
    assert await mailbox.append(batch) == [None, None, None]
    assert await contents(mailbox) == payloads([3])
    await mailbox.close(1.0)


async def test_a_transient_message_for_an_unknown_device_stores_no_message(stand: Stand) -> None:
    mailbox = await stand.open()
    [first] = await mailbox.append([transient(0, "k", device_id="new")])
    assert await mailbox.append([transient(1, "k", "a", device_id="new"), transient(2, "k", "a", device_id="new")]) == [
        first,
        None,
    ]
    assert (mailbox.status().messages, mailbox.counters.stored) == (0, 0)
    [number] = await mailbox.append([entry(3, "new")])
    assert first is not None
    assert number is not None
    assert first < number
    assert await contents(mailbox, "new") == payloads([3])
    await mailbox.close(1.0)


async def test_a_transient_fan_out_is_not_stored_either_without_a_key_and_an_id(stand: Stand) -> None:
    mailbox, steps = await stand.open(), list[FanOutStep]()
    mailbox.watch_fan_outs(steps.append)
    red = of_group("red")
    await mailbox.join("doll", frozenset((red,)))
    [last] = await mailbox.append([entry(0)])
    await mailbox.append([FanOut(red, frozenset(), b"{}", 9, SOURCE, 1, Options(ttl_s=0))])
    await until(lambda: any(step.is_last for step in steps))
    assert [step.numbers for step in steps] == [{"doll": last}]
    assert await contents(mailbox) == payloads([0])
    assert (mailbox.status().messages, mailbox.counters.stored) == (1, 1)
    await mailbox.close(1.0)


@pytest.mark.parametrize("in_steps", [False, True])
async def test_a_transient_fan_out_replaces_and_is_dropped_for_each_device_by_itself(
    stand: Stand, in_steps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_steps:
        small_steps(monkeypatch)
    mailbox, steps = await stand.open(), list[FanOutStep]()
    mailbox.watch_fan_outs(steps.append)
    red = of_group("red")
    for name in ("one", "two", "three", "four"):
        await mailbox.join(name, frozenset((red,)))
    await mailbox.append([keyed(0, "k", device_id="one"), entry(1, "two"), keyed(2, "x", device_id="two")])
    await mailbox.append([named(3, "a", "three")])
    bases = {name: (await mailbox.look(name)).normal.base for name in ("one", "two", "three", "four")}
    options = Options(ttl_s=0, collapse_key="k", id="a")
    fan_out = FanOut(red, frozenset(["four"]), b"x" * 2_000, 9, SOURCE, 4, options)
    assert await mailbox.append([fan_out, entry(5, "two")]) == [0, bases["two"] + 3]
    await until(lambda: any(step.is_last for step in steps))
    found = {name: number for step in steps for name, number in (step.numbers or {}).items()}
    assert found == {"one": bases["one"] + 1, "two": bases["two"] + 2}
    assert all(step.is_transient and step.options == options for step in steps)
    assert await contents(mailbox, "one") == []
    assert await contents(mailbox, "two") == payloads([1, 2, 5])
    assert (mailbox.status().messages, mailbox.counters.collapsed) == (4, 1)
    steps.clear()
    await mailbox.append([fan_out, transient(6, None, "a", device_id="one")])
    assert (steps, await mailbox.append([transient(7, None, "a", device_id="one")])) == ([], [None])
    await mailbox.close(1.0)
