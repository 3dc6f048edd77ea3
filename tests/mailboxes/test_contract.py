"""The promises of every mailbox (cocoa_tornado.mailboxes.port), tested with each of them."""

from __future__ import annotations

import asyncio

import pytest

from cocoa_tornado.errors import MailboxClosed
from cocoa_tornado.mailboxes.driver import Driver
from cocoa_tornado.mailboxes.port import NOT_STORED, Entry, MailboxState, NamedMessage, NamedPage
from cocoa_tornado.rules.addressing import Options, Priority
from cocoa_tornado.rules.box import FORGET_AFTER_S, FORGET_MISSED_AFTER_S, BoxLimits, Epochs, Lane, PageLimits, Position
from cocoa_tornado.rules.cursors import KEY_BYTES
from cocoa_tornado.rules.seen import WINDOW

from .stands import Stand, contents, entries, entry, missed, numbers, page_of, payloads

pytestmark = pytest.mark.gen_test(timeout=60)


async def test_messages_are_numbered_from_one_and_read_in_their_order(stand: Stand) -> None:
    mailbox = await stand.open()
    assert await mailbox.append(entries(0, 3)) == [1, 2, 3]
    assert await mailbox.append(entries(3, 2)) == [4, 5]
    page = await page_of(mailbox)
    assert numbers(page) == [1, 2, 3, 4, 5]
    assert [message.payload for message in page.messages] == payloads(range(5))
    assert [message.timestamp_ms for message in page.messages] == [1000, 1001, 1002, 1003, 1004]
    assert (missed(page), page.last) == (0, 5)
    await mailbox.close(1.0)


async def test_each_device_has_a_box_of_its_own(stand: Stand) -> None:
    mailbox = await stand.open()
    mixed = [entry(0, "a"), entry(1, "b"), entry(2, "a"), entry(3, "é/\u4e2d*[x] {}")]
    first = await mailbox.append(mixed)
    await mailbox.append([entry(4, "a")])
    assert await contents(mailbox, "a") == payloads([0, 2, 4])
    assert await contents(mailbox, "b") == payloads([1])
    assert await contents(mailbox, "é/\u4e2d*[x] {}") == payloads([3])
    assert await contents(mailbox, "c") == []
    assert all(number is not None for number in first)
    await mailbox.close(1.0)


async def test_a_page_is_no_longer_than_asked_for_and_never_empty(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append([entry(n, payload=b"x" * 100) for n in range(10)])
    assert numbers(await page_of(mailbox, "doll", 2, PageLimits(3, 10_000))) == [3, 4, 5]
    assert numbers(await page_of(mailbox, "doll", 2, PageLimits(100, 250))) == [3, 4]
    assert numbers(await page_of(mailbox, "doll", 2, PageLimits(100, 10))) == [3]
    page = await page_of(mailbox, after=10)
    assert (numbers(page), missed(page, 10), page.last, page.base) == ([], 0, 10, 0)
    await mailbox.close(1.0)


async def test_a_payload_of_any_bytes_comes_back_as_it_was(stand: Stand) -> None:
    mailbox = await stand.open()
    payload = bytes(range(256)) + "grüß dich 中".encode() + b"x" * 600_000
    await mailbox.append([entry(0, payload=payload)])
    assert await contents(mailbox) == [payload]
    await mailbox.close(1.0)


async def test_calls_to_append_are_carried_out_in_their_order(stand: Stand) -> None:
    mailbox = await stand.open()
    futures = [mailbox.append(entries(start, 7, f"d{start % 3}")) for start in range(0, 700, 7)]
    results = await asyncio.gather(*futures)
    for device in range(3):
        of_device = [result for start, result in zip(range(0, 700, 7), results, strict=True) if start % 3 == device]
        given = [number or 0 for result in of_device for number in result]
        assert given == list(range(given[0], given[0] + len(given)))
    await mailbox.close(1.0)


async def test_a_try_to_store_stores_nothing_and_takes_no_number(stand: Stand) -> None:
    mailbox = await stand.open()
    if not isinstance(mailbox, Driver):
        pytest.skip("its store cannot fail")
    assert await mailbox.append(entries(0, 2)) == [1, 2]
    await mailbox._store.try_storing()
    assert await mailbox.append(entries(0, 3)) == [None, None, 3]
    assert mailbox.status().messages == mailbox.counters.stored == 3
    await mailbox.close(1.0)


async def test_an_empty_call_is_done(stand: Stand) -> None:
    mailbox = await stand.open()
    assert await mailbox.append([]) == []
    await mailbox.close(1.0)


async def test_a_record_is_stored_once(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append(entries(10, 3))
    assert await mailbox.append(entries(11, 3)) == [None, None, 4]
    assert await contents(mailbox) == payloads([10, 11, 12, 13])
    assert mailbox.counters.duplicates == 2
    await mailbox.close(1.0)


async def test_a_record_is_stored_once_though_its_message_is_gone(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append(entries(0, 3))
    mailbox.acknowledge("doll", Position(3))
    assert await mailbox.append(entries(0, 3)) == [None, None, None]
    assert await contents(mailbox) == []
    await mailbox.close(1.0)


async def test_offsets_of_different_partitions_are_different_records(stand: Stand) -> None:
    mailbox = await stand.open()
    first = entry(5, source="transcription.results/0")
    assert await mailbox.append([first, first._replace(source="transcription.results/1"), first]) == [1, 2, None]
    await mailbox.close(1.0)


def for_each(offset: int, *device_ids: str) -> list[Entry]:
    """One record for several devices."""
    return [entry(offset, device_id) for device_id in device_ids]


async def test_a_record_for_two_devices_is_stored_for_each_and_never_again(stand: Stand) -> None:
    mailbox = await stand.open()
    record = for_each(0, "a", "b")
    first = await mailbox.append(record)
    assert first == [(await mailbox.look(device_id)).normal.last for device_id in ("a", "b")]
    assert await mailbox.append(record) == [None, None]
    assert (mailbox.counters.stored, mailbox.counters.duplicates) == (2, 2)
    if stand.survives:
        await stand.crash(mailbox)
        mailbox = await stand.open()
        assert await mailbox.append(record) == [None, None]
    assert [await contents(mailbox, device_id) for device_id in ("a", "b")] == [payloads([0])] * 2
    await mailbox.close(1.0)


async def test_a_device_that_a_record_names_twice_gets_it_once(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append([*for_each(0, "a", "b", "a", "c", "b"), *for_each(1, "a")])
    assert [await contents(mailbox, device_id) for device_id in "abc"] == [payloads([0, 1]), *[payloads([0])] * 2]
    await mailbox.close(1.0)


async def test_records_for_several_devices_keep_the_order_of_each_device(stand: Stand) -> None:
    mailbox = await stand.open()
    batch = [*for_each(0, "a", "b"), *for_each(1, "b"), *for_each(2, "c", "a", "b"), *for_each(3, "a")]
    stored = mailbox.append(batch), mailbox.append([*batch, *for_each(4, "b", "c")])
    assert None not in await stored[0]
    again = await stored[1]
    assert (again[:-2], None in again[-2:]) == ([None] * len(batch), False)
    assert await contents(mailbox, "a") == payloads([0, 2, 3])
    assert await contents(mailbox, "b") == payloads([0, 1, 2, 4])
    assert await contents(mailbox, "c") == payloads([2, 4])
    await mailbox.close(1.0)


async def test_a_record_that_is_read_again_is_not_stored_for_a_new_recipient(stand: Stand) -> None:
    """The record was stored as a whole, so its entries cannot be a remainder."""
    mailbox = await stand.open()
    stored = mailbox.append(for_each(0, "a")), mailbox.append(for_each(0, "a", "late"))
    assert [await future for future in stored] == [[1], [None, None]]
    assert await contents(mailbox, "late") == []
    await mailbox.close(1.0)


async def test_a_record_of_a_topic_made_anew_is_stored_for_each_of_its_devices(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append([*for_each(0, "a", "b"), *for_each(1, "a", "b")])
    anew = [item._replace(timestamp_ms=item.timestamp_ms + 77_000) for item in for_each(0, "a", "b")]
    assert None not in await mailbox.append(anew)
    assert await mailbox.append(anew) == [None, None]
    assert await contents(mailbox, "b") == payloads([0, 1, 0])
    await mailbox.close(1.0)


async def test_a_record_that_was_no_message_before_is_stored_and_nothing_behind_it_again(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append([*entries(0, 3), *entries(4, 2)])
    assert await mailbox.append(entries(2, 4)) == [None, 6, None, None]
    if stand.survives:
        await stand.crash(mailbox)
        mailbox = await stand.open()
    assert await mailbox.append(entries(0, 7)) == [None] * 6 + [7]
    await mailbox.close(1.0)


async def test_many_small_calls_are_remembered_like_a_large_one(stand: Stand) -> None:
    mailbox = await stand.open()
    for offset in range(700):
        await mailbox.append(entries(offset, 1))
    if stand.survives:
        await stand.crash(mailbox)
        mailbox = await stand.open()
    assert await mailbox.append(entries(0, 701)) == [None] * 700 + [701]
    await mailbox.close(1.0)


async def test_a_topic_that_was_made_anew_is_stored(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append(entries(0, 5))
    anew = [item._replace(timestamp_ms=item.timestamp_ms + 77_000) for item in entries(0, 3)]
    assert await mailbox.append(anew) == [6, 7, 8]
    assert await mailbox.append([*anew, *entries(3, 1)]) == [None, None, None, 9]
    await mailbox.close(1.0)


async def test_what_was_stored_survives_the_end_of_the_process(stand: Stand) -> None:
    if not stand.survives:
        pytest.skip("this mailbox is lost with its process, and says so")
    mailbox = await stand.open()
    key = mailbox.key
    await mailbox.append(entries(0, 5))
    await stand.crash(mailbox)
    mailbox = await stand.open()
    assert mailbox.key == key
    assert await mailbox.append(entries(3, 4)) == [None, None, 6, 7]
    assert await contents(mailbox) == payloads(range(7))
    status = mailbox.status()
    assert (status.messages, status.size_bytes) == (7, 7 * len(payloads([0])[0]))
    await mailbox.close(1.0)


async def test_marks_survive_a_close(stand: Stand) -> None:
    if not stand.survives:
        pytest.skip("this mailbox is lost with its process, and says so")
    mailbox = await stand.open()
    await mailbox.append(entries(0, 5))
    mailbox.acknowledge("doll", Position(2))
    mailbox.written("doll", Position(4))
    await mailbox.close(5.0)
    mailbox = await stand.open()
    box = await mailbox.look("doll")
    assert (box.normal, box.epoch) == (Lane(base=0, last=5, gone=2, acked=2, written=4), mailbox.epoch)
    assert await contents(mailbox) == payloads([2, 3, 4])
    await mailbox.close(1.0)


async def test_a_mark_counts_at_once(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append(entries(0, 5))
    assert (await mailbox.look("doll")).normal == Lane(base=0, last=5, gone=0, acked=None, written=0)
    mailbox.written("doll", Position(3))
    assert (await mailbox.look("doll")).normal.written == 3
    mailbox.acknowledge("doll", Position(2))
    lane = (await mailbox.look("doll")).normal
    assert (lane.acked, lane.gone, lane.written) == (2, 2, 3)
    assert numbers(await page_of(mailbox, after=2)) == [3, 4, 5]
    await mailbox.close(1.0)


async def test_a_mark_never_goes_back_nor_beyond_what_there_is(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append(entries(0, 5))
    for number in (4, 1, 99, 3):
        mailbox.acknowledge("doll", Position(number))
        mailbox.written("doll", Position(number))
    lane = (await mailbox.look("doll")).normal
    assert (lane.acked, lane.written, lane.gone) == (5, 5, 5)
    assert await mailbox.append(entries(5, 1)) == [6]
    assert await contents(mailbox) == payloads([5])
    await mailbox.close(1.0)


async def test_what_is_acknowledged_is_deleted(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append(entries(0, 5))
    mailbox.acknowledge("doll", Position(4))
    await mailbox.append(entries(5, 1))  # whose commit carries the mark along, if nothing has before
    await mailbox.look("doll")
    assert (mailbox.status().messages, mailbox.counters.acknowledged) == (2, 4)
    await mailbox.close(1.0)


async def test_marks_of_a_device_without_a_box_are_nothing(stand: Stand) -> None:
    mailbox = await stand.open()
    mailbox.acknowledge("nobody", Position(3))
    mailbox.written("nobody", Position(3))
    assert (await mailbox.look("nobody")).last == (0, 0)
    assert await mailbox.append([entry(0, "nobody")]) == [1]
    await mailbox.close(1.0)


async def test_a_box_holds_so_many_messages_and_the_oldest_go_first(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(max_messages=3))
    assert await mailbox.append(entries(0, 5)) == [1, 2, 3, 4, 5]
    page = await page_of(mailbox)
    assert (numbers(page), missed(page), page.last) == ([3, 4, 5], 2, 5)
    await mailbox.append(entries(5, 1))
    page = await page_of(mailbox)
    assert (numbers(page), missed(page)) == ([4, 5, 6], 3)
    assert mailbox.counters.lost == {"overflow": 3}
    ((device_id, row),) = mailbox.counters.full.most(9, stand.clock(), least=1)
    assert (device_id, row.times, row.last) == ("doll", 3, stand.clock())
    assert mailbox.status().messages == 3
    await mailbox.append([entry(9, "roomy")])
    assert len(mailbox.counters.full) == 1
    await mailbox.close(1.0)


async def test_a_box_holds_so_many_bytes_and_always_its_newest_message(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(max_bytes=1000))
    await mailbox.append([entry(n, payload=b"x" * 300) for n in range(4)])
    assert numbers(await page_of(mailbox)) == [2, 3, 4]
    await mailbox.append([entry(9, payload=b"x" * 5000)])
    page = await page_of(mailbox)
    assert (numbers(page), missed(page)) == ([5], 4)
    assert mailbox.status().size_bytes == 5000
    await mailbox.close(1.0)


async def test_what_has_expired_is_not_handed_out_and_is_missed(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(ttl_s=100))
    await mailbox.append(entries(0, 2))
    stand.clock.now += 60
    await mailbox.append(entries(2, 1))
    stand.clock.now += 50
    page = await page_of(mailbox)
    assert (numbers(page), missed(page), page.last) == ([3], 2, 3)
    stand.clock.now += 100
    page = await page_of(mailbox)
    assert (numbers(page), missed(page), page.last) == ([], 3, 3)
    assert await mailbox.append(entries(3, 1)) == [4]
    await mailbox.close(1.0)


async def test_sweeping_removes_what_has_expired_in_small_steps(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(ttl_s=100))
    await mailbox.append([entry(n, f"d{n % 500}") for n in range(1500)])
    stand.clock.now += 101
    await mailbox.append([entry(1500, "d0")])
    removed = []
    for _ in range(100):
        removed.append(await mailbox.sweep())
        if mailbox.status().messages == 1:
            break
    assert mailbox.status().messages == 1
    assert sum(removed) == mailbox.counters.lost["expired"] == 1500
    assert max(removed) <= 1000
    assert await contents(mailbox, "d0") == payloads([1500])
    await mailbox.close(1.0)


@pytest.mark.parametrize("lane", ["normal", "high", "low"])
async def test_what_a_device_without_cursors_was_written_is_not_lost(stand: Stand, lane: Priority) -> None:
    """Its box keeps it, because a later firmware may ask for it, but the device does not miss it."""

    def of(offset: int) -> Entry:
        return entry(offset, options=Options(priority=lane))

    mailbox = await stand.open(BoxLimits(max_messages=3, ttl_s=100))
    await mailbox.append([of(n) for n in range(3)])
    mailbox.written("doll", Position(2, mailbox.epoch, 2))
    await mailbox.append([of(3)])
    assert (mailbox.counters.lost, mailbox.counters.retired, len(mailbox.counters.full)) == ({}, 1, 0)
    await mailbox.append([of(4), of(5)])
    assert (mailbox.counters.lost, mailbox.counters.retired) == ({"overflow": 1}, 2)
    ((device_id, row),) = mailbox.counters.full.most(9, stand.clock(), least=1)
    assert (device_id, row.times) == ("doll", 1)
    mailbox.written("doll", Position(4, mailbox.epoch, 4))
    stand.clock.now += 101
    await mailbox.append([entry(90, "other")])  # whose commit carries the mark along
    assert [await mailbox.sweep() for _ in range(2)].count(3) == 1
    assert (mailbox.counters.lost, mailbox.counters.retired) == ({"overflow": 1, "expired": 2}, 3)
    await mailbox.close(1.0)


async def test_what_a_plain_box_has_written_is_not_lost(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(max_messages=3, ttl_s=100))
    await mailbox.append(entries(0, 3))
    mailbox.written("doll", Position(2, mailbox.epoch))
    await mailbox.append(entries(3, 3))
    assert (mailbox.counters.lost, mailbox.counters.retired) == ({"overflow": 1}, 2)
    mailbox.written("doll", Position(5, mailbox.epoch))
    stand.clock.now += 101
    await mailbox.append([entry(90, "other")])  # whose commit carries the mark along
    assert [await mailbox.sweep() for _ in range(2)].count(3) == 1
    assert (mailbox.counters.lost, mailbox.counters.retired) == ({"overflow": 1, "expired": 1}, 4)
    await mailbox.close(1.0)


async def test_a_device_with_cursors_has_only_what_it_has_acknowledged(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(max_messages=3, ttl_s=100))
    await mailbox.append(entries(0, 3))
    mailbox.written("doll", Position(3, mailbox.epoch))
    mailbox.acknowledge("doll", Position(1, mailbox.epoch))
    await mailbox.append(entries(3, 2))
    assert (mailbox.counters.lost, mailbox.counters.retired, mailbox.counters.acknowledged) == ({"overflow": 1}, 0, 1)
    stand.clock.now += 101
    assert [await mailbox.sweep() for _ in range(2)].count(3) == 1
    assert (mailbox.counters.lost, mailbox.counters.retired) == ({"overflow": 1, "expired": 3}, 0)
    await mailbox.close(1.0)


async def test_a_clock_that_is_set_back_loses_nothing(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(ttl_s=5000))
    await mailbox.append(entries(0, 2))
    stand.clock.now -= 3600
    assert await mailbox.append(entries(2, 2)) == [3, 4]
    await mailbox.sweep()
    assert await contents(mailbox) == payloads(range(4))
    await mailbox.close(1.0)


async def test_a_box_is_not_removed_while_it_has_a_gap_to_report(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(ttl_s=100))
    await mailbox.append(entries(0, 3))
    mailbox.acknowledge("doll", Position(1))
    await mailbox.append(entries(3, 2, "other"))
    mailbox.written("other", Position((await mailbox.look("other")).normal.last))
    await mailbox.append(entries(5, 1, "third"))  # the marks before it are stored with it
    for _ in range(10):
        stand.clock.now += FORGET_AFTER_S / 9
        await mailbox.sweep()
    lane = (await mailbox.look("doll")).normal
    assert (lane.acked, lane.gone, lane.last) == (1, 3, 3)
    assert (await mailbox.look("other")).normal.base == 6  # its device had received everything, and the box was removed
    stand.clock.now += FORGET_MISSED_AFTER_S
    for _ in range(4):
        await mailbox.sweep()
    assert (await mailbox.look("doll")).normal.base == 6
    await mailbox.close(1.0)


async def test_a_box_that_is_forgotten_and_made_anew_gives_only_new_numbers(stand: Stand) -> None:
    mailbox = await stand.open()
    await mailbox.append(entries(0, 5))
    mailbox.acknowledge("doll", Position(5))
    await mailbox.append([entry(5, "other")])
    stand.clock.now += FORGET_AFTER_S + 100
    for _ in range(5):
        await mailbox.sweep()
    given = (await mailbox.append(entries(6, 1)))[0]
    assert given is not None
    box = await mailbox.look("doll")
    assert given > 5
    assert box.normal == Lane.new(box.normal.base).append(Epochs())
    assert box.start(Position(3, box.epoch)).normal == given - 1
    assert box.high == Lane.new(box.normal.base)
    await mailbox.close(1.0)


async def test_what_lies_further_back_than_is_remembered_is_stored_again(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(max_messages=10))
    await mailbox.append(entries(0, 3))
    for first in range(10, WINDOW + 10, 16_384):
        await mailbox.append(entries(first, 16_384, "other"))
    assert (await mailbox.append(entries(WINDOW, 3, "other"))) == [None] * 3
    assert (await mailbox.append(entries(0, 1))) == [4]
    await mailbox.close(1.0)


async def test_ready_says_what_it_promises(stand: Stand) -> None:
    mailbox = await stand.open()
    status = mailbox.status()
    assert status.state is MailboxState.READY
    assert (status.messages, status.size_bytes) == (0, 0)
    assert "survive" in status.detail
    assert mailbox.key is not None
    assert len(mailbox.key) == KEY_BYTES
    await mailbox.close(1.0)


async def test_a_closed_mailbox_stores_nothing_more(stand: Stand) -> None:
    mailbox = await stand.open()
    pending = mailbox.append(entries(0, 1))
    await mailbox.close(5.0)
    assert await pending == [1]
    assert mailbox.status().state is MailboxState.CLOSED
    with pytest.raises(MailboxClosed):
        await mailbox.append(entries(1, 1))
    await mailbox.close(1.0)


async def test_a_call_stores_all_of_its_entries_or_waits(stand: Stand) -> None:
    """The same call again, as after a crash, stores the missing messages: here none."""
    mailbox = await stand.open()
    batch: list[Entry] = [entry(n, f"d{n % 7}") for n in range(1000)]
    first = await mailbox.append(batch)
    assert None not in first
    assert await mailbox.append(batch) == [None] * 1000
    assert mailbox.status().messages == 1000
    await mailbox.close(1.0)


async def test_members_are_listed_by_the_bytes_of_their_ids_and_in_pages(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocoa_tornado.mailboxes.redis.MEMBERS_AT_ONCE", 2)
    mailbox = await stand.open()
    for device_id in ("ö", "b", "\U0001f600", "a", "~", "c"):
        await mailbox.join(device_id, frozenset({"all", "group:kitchen"}))
    await mailbox.join("c", frozenset({"all"}))
    assert await mailbox.members("group:kitchen", "", 100) == ["a", "b", "~", "ö", "\U0001f600"]
    assert await mailbox.members("group:kitchen", "a", 2) == ["b", "~"]
    assert await mailbox.members("group:kitchen", "\U0001f600", 2) == []
    assert await mailbox.members("all", "b", 1) == ["c"]
    assert await mailbox.members("group:nobody", "", 100) == []
    await mailbox.close(1.0)


async def test_a_message_is_found_by_its_id_in_whichever_box_it_is_or_was(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocoa_tornado.mailboxes.redis.BOXES_AT_ONCE", 2)
    monkeypatch.setattr("cocoa_tornado.mailboxes.sqlite_pages.BOXES_AT_ONCE", 2)
    mailbox = await stand.open()
    await mailbox.append([entry(offset, f"doll-{offset}") for offset in range(5)])
    first, second, _, _ = await mailbox.append(
        [
            entry(7, "doll-0", options=Options(id="m")),
            entry(8, "doll-3", options=Options("high", id="m")),
            entry(9, "doll-4", options=Options(ttl_s=0, id="m")),
            entry(9, "doll-5", options=Options(id="other")),
        ]
    )
    assert first is not None
    assert second is not None
    mailbox.acknowledge("doll-3", Position(0, mailbox.epoch, second))

    found, cursor = list[NamedMessage](), -1
    while cursor != 0:
        page = await mailbox.find_id("m", max(cursor, 0))
        found += page.found
        cursor = page.cursor
    now = stand.clock.now
    assert sorted(found) == [
        NamedMessage("doll-0", "normal", first, now),
        NamedMessage("doll-3", "high", second, now),
        NamedMessage("doll-4", "normal", NOT_STORED, now),
    ]
    assert [each.device_id for each in (await mailbox.find_id("m", 0, "doll-3")).found] == ["doll-3"]
    assert await mailbox.find_id("m", 0, "doll-1") == NamedPage([], 0)
    assert await mailbox.find_id("m", 0, "nobody") == NamedPage([], 0)
    await mailbox.close(1.0)
