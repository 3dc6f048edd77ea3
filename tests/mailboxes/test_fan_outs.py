"""Members of users and groups, and messages for all of them, tested with each mailbox."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from cocoa_tornado.mailboxes import fan_out_bound
from cocoa_tornado.mailboxes.port import FanOut, FanOutStep, Mailbox
from cocoa_tornado.mailboxes.store import FAN_OUT_STEP
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.audiences import ALL, of_group, of_user
from cocoa_tornado.rules.box import FORGET_AFTER_S, BoxLimits, Position

from .stands import SOURCE, Stand, contents, entry, missed, numbers, page_of, payloads, small_steps, until

pytestmark = pytest.mark.gen_test(timeout=120)

KITCHEN, HALL = of_group("kitchen"), of_group("hall")


def fan_out(
    offset: int,
    audience: str = KITCHEN,
    excluded: Iterable[str] = (),
    options: Options | None = None,
    payload: bytes | None = None,
    expires_ms: int = 0,
) -> FanOut:
    content = payload or b'{"n":%d}' % offset
    return FanOut(audience, frozenset(excluded), content, 1_000 + offset, SOURCE, offset, options, expires_ms)


def watch(mailbox: Mailbox) -> list[FanOutStep]:
    steps: list[FanOutStep] = []
    mailbox.watch_fan_outs(steps.append)
    return steps


async def join(mailbox: Mailbox, *device_ids: str, audiences: Iterable[str] = (KITCHEN,)) -> None:
    for device_id in device_ids:
        await mailbox.join(device_id, frozenset((ALL, *audiences)))


async def complete(steps: list[FanOutStep], count: int = 1) -> None:
    """This many fan-outs are complete."""
    await until(lambda: sum(step.is_last for step in steps) >= count)


async def test_a_fan_out_is_stored_for_each_member(stand: Stand) -> None:
    mailbox = await stand.open()
    steps = watch(mailbox)
    await join(mailbox, "a", "b", "é/\u4e2d*[x] {}")
    await join(mailbox, "other", audiences=(HALL,))
    assert await mailbox.append([entry(0, "a"), fan_out(1), entry(2, "b")]) == [1, 0, 2]
    await complete(steps)
    assert await contents(mailbox, "a") == payloads([0, 1])
    assert await contents(mailbox, "b") == payloads([1, 2])
    assert await contents(mailbox, "é/\u4e2d*[x] {}") == payloads([1])
    assert await contents(mailbox, "other") == []
    [step] = steps
    assert step.numbers is not None
    assert set(step.numbers) == {"a", "b", "é/\u4e2d*[x] {}"}
    assert step.numbers["a"] == (await page_of(mailbox, "a")).messages[1].number
    assert (step.is_last, step.recipients, step.payload, step.audience) == (True, 3, payloads([1])[0], KITCHEN)
    assert mailbox.status().messages == 5
    await mailbox.close(1.0)


async def test_users_are_told_apart_by_type_and_everyone_is_every_member(stand: Stand) -> None:
    mailbox = await stand.open()
    steps = watch(mailbox)
    await join(mailbox, "number", audiences=(of_user(99),))
    await join(mailbox, "text", audiences=(of_user("99"),))
    await mailbox.append([entry(0, "unknown")])
    await mailbox.append([fan_out(1, of_user(99)), fan_out(2, of_user("99")), fan_out(3, ALL, excluded=["text"])])
    await complete(steps, 3)
    assert await contents(mailbox, "number") == payloads([1, 3])
    assert await contents(mailbox, "text") == payloads([2])
    assert await contents(mailbox, "unknown") == payloads([0])
    await mailbox.close(1.0)


async def test_a_fan_out_without_members_is_one_step(stand: Stand) -> None:
    mailbox = await stand.open()
    steps = watch(mailbox)
    assert await mailbox.append([fan_out(0), fan_out(1, ALL, excluded=["a"])]) == [0, 0]
    await complete(steps, 2)
    assert [(step.numbers, step.recipients) for step in steps] == [({}, 0), ({}, 0)]
    await mailbox.close(1.0)


async def test_a_fan_out_is_stored_once(stand: Stand) -> None:
    mailbox = await stand.open()
    steps = watch(mailbox)
    await join(mailbox, "a")
    assert await mailbox.append([fan_out(0), entry(1, "a")]) == [0, 2]
    assert await mailbox.append([fan_out(0), entry(1, "a"), entry(2, "a")]) == [None, None, 3]
    await complete(steps)
    if stand.survives:
        await stand.crash(mailbox)
        mailbox = await stand.open()
        await mailbox.append([fan_out(0), entry(1, "a"), entry(2, "a")])
    assert await contents(mailbox, "a") == payloads([0, 1, 2])
    await mailbox.close(1.0)


async def test_the_newest_token_decides_where_a_device_belongs(stand: Stand) -> None:
    mailbox = await stand.open()
    steps = watch(mailbox)
    await join(mailbox, "a")
    await join(mailbox, "a", audiences=(HALL,))
    await mailbox.append([fan_out(0), fan_out(1, HALL)])
    await complete(steps, 2)
    assert await contents(mailbox, "a") == payloads([1])
    await mailbox.close(1.0)


async def test_a_device_that_is_connected_still_stays_in_the_audiences_of_its_newest_token(stand: Stand) -> None:
    mailbox = await stand.open()
    steps = watch(mailbox)
    await join(mailbox, "a")
    await mailbox.append([fan_out(0)])
    refreshed = mailbox.refresh("a", frozenset((ALL, HALL)))  # by a server that has accepted an older token
    await mailbox.refresh("b", frozenset((ALL, HALL)))
    await refreshed
    await mailbox.append([fan_out(1), fan_out(2, HALL)])
    await complete(steps, 3)
    assert await contents(mailbox, "a") == payloads([0, 1])
    assert await contents(mailbox, "b") == payloads([2])
    assert mailbox.counters.withdrawn == 0
    await mailbox.close(1.0)


async def test_messages_for_a_group_that_the_device_has_left_are_withdrawn_and_not_missed(stand: Stand) -> None:
    mailbox = await stand.open()
    steps = watch(mailbox)
    await join(mailbox, "a", audiences=(KITCHEN, HALL, of_user(1)))
    await mailbox.append([entry(0, "a"), fan_out(1), fan_out(2, HALL), fan_out(3, ALL), fan_out(4, of_user(1))])
    await mailbox.append([fan_out(5, options=Options(priority="high"))])
    await complete(steps, 5)
    await join(mailbox, "a", audiences=(HALL, of_user(1)))
    page = await page_of(mailbox, "a")
    first = page.base
    assert ([number - first for number in numbers(page)], missed(page)) == ([1, 3, 4, 5], 0)
    assert (await contents(mailbox, "a", lane="high"), missed(await page_of(mailbox, "a", lane="high"))) == ([], 0)
    assert (mailbox.counters.withdrawn, mailbox.counters.lost, mailbox.status().messages) == (2, {}, 4)
    await mailbox.close(1.0)


async def test_members_survive_the_end_of_the_process(stand: Stand) -> None:
    if not stand.survives:
        pytest.skip("this mailbox is lost with its process, and says so")
    mailbox = await stand.open()
    await join(mailbox, "a")
    await stand.crash(mailbox)
    mailbox = await stand.open()
    steps = watch(mailbox)
    await mailbox.append([fan_out(0)])
    await complete(steps)
    assert await contents(mailbox, "a") == payloads([0])
    await mailbox.close(1.0)


async def test_a_device_is_forgotten_some_time_after_its_last_join_whatever_it_is_sent(stand: Stand) -> None:
    limits = BoxLimits(ttl_s=100, member_ttl_s=1000)
    mailbox = await stand.open(limits)
    steps = watch(mailbox)
    await join(mailbox, "a", "b")
    for offset in range(5):
        stand.clock.now += 300
        await mailbox.append([fan_out(offset)])
        await join(mailbox, "b")
        for _ in range(3):
            await mailbox.sweep()
    await complete(steps, 5)
    assert [step.recipients for step in steps] == [2, 2, 2, 2, 1]
    stand.clock.now += FORGET_AFTER_S + 2000
    for _ in range(6):
        await mailbox.sweep()
    await mailbox.append([fan_out(9, ALL)])
    await complete(steps, 6)
    assert steps[-1].recipients == 0
    await mailbox.close(1.0)


async def test_an_empty_box_stays_as_long_as_its_device_is_known(stand: Stand) -> None:
    mailbox = await stand.open(BoxLimits(member_ttl_s=10 * FORGET_AFTER_S))
    await join(mailbox, "a")
    await mailbox.append([entry(0, "a"), entry(1, "b")])
    base = (await mailbox.look("a")).normal.base
    mailbox.acknowledge("a", Position(base + 1, mailbox.epoch))
    mailbox.acknowledge("b", Position((await mailbox.look("b")).normal.last, mailbox.epoch))
    await mailbox.append([entry(2, "c")])
    stand.clock.now += 2 * FORGET_AFTER_S
    for _ in range(6):
        await mailbox.sweep()
    assert (await mailbox.look("a")).normal.base == base
    assert (await mailbox.look("b")).normal.base == 3
    await mailbox.close(1.0)


async def test_a_large_fan_out_is_stored_in_steps_each_member_once_and_in_its_order(stand: Stand) -> None:
    mailbox = await stand.open()
    steps = watch(mailbox)
    devices = [f"d{n}" for n in range(2 * FAN_OUT_STEP + 100)]
    await join(mailbox, *devices)
    first = mailbox.append([entry(0, devices[-1]), fan_out(1, excluded=["d7"], payload=b"x" * 2000)])
    later = mailbox.append([entry(2, devices[-1]), entry(3, devices[-2]), fan_out(4, of_group("nobody"))])
    await first
    await later
    await complete(steps, 2)
    assert await contents(mailbox, devices[-1]) == [payloads([0])[0], b"x" * 2000, payloads([2])[0]]
    assert await contents(mailbox, devices[-2]) == [b"x" * 2000, payloads([3])[0]]
    assert await contents(mailbox, "d7") == []
    assert await contents(mailbox, "d0") == [b"x" * 2000]
    large = [step for step in steps if step.audience == KITCHEN]
    told = [device_id for step in large for device_id in step.numbers or ()]
    assert sorted(told) == sorted(set(devices) - {"d7"})
    assert max(len(step.numbers or ()) for step in large) <= FAN_OUT_STEP
    assert (large[-1].recipients, [step.is_last for step in large].count(True)) == (len(devices) - 1, 1)
    assert mailbox.status().messages == len(devices) - 1 + 3
    await mailbox.close(1.0)


async def test_a_small_fan_out_does_not_wait_for_a_large_one_nor_overtake_it(stand: Stand) -> None:
    mailbox = await stand.open()
    steps = watch(mailbox)
    devices = [f"d{n}" for n in range(3 * FAN_OUT_STEP)]
    await join(mailbox, *devices)
    await join(mailbox, devices[-1], audiences=(KITCHEN, HALL))
    await mailbox.append([fan_out(0), fan_out(1, HALL)])
    await asyncio.sleep(0)
    assert any(step.audience == HALL and step.is_last for step in steps)
    assert await contents(mailbox, devices[-1]) == payloads([0, 1])
    await complete(steps, 2)
    assert await contents(mailbox, devices[-1]) == payloads([0, 1])
    await mailbox.close(1.0)


async def test_a_device_that_leaves_the_audience_during_a_fan_out_gets_it_neither_then_nor_when_it_joins_again(
    stand: Stand,
) -> None:
    """Leaving withdraws a fan-out's message, before and after it is stored."""
    mailbox = await stand.open()
    steps = watch(mailbox)
    devices = [f"d{n}" for n in range(2 * FAN_OUT_STEP)]
    await join(mailbox, *devices)
    await mailbox.append([fan_out(0)])
    await join(mailbox, devices[0], devices[-2], devices[-1], audiences=(HALL,))
    await join(mailbox, devices[0], devices[-2])
    await mailbox.append([entry(1, devices[0]), entry(2, devices[-2]), fan_out(3)])
    await complete(steps, 2)
    assert await contents(mailbox, devices[0]) == payloads([1, 3])
    assert await contents(mailbox, devices[-2]) == payloads([2, 3])
    assert await contents(mailbox, devices[-1]) == []
    assert await contents(mailbox, devices[-3]) == payloads([0, 3])
    await mailbox.close(1.0)


async def test_devices_that_have_had_the_id_are_recipients_all_the_same(stand: Stand) -> None:
    mailbox = await stand.open()
    steps = watch(mailbox)
    await join(mailbox, "a", "b")
    named = Options(id="x")
    await mailbox.append([entry(0, "a", options=named), entry(1, "b", options=named), fan_out(2, options=named)])
    await complete(steps)
    assert (steps[-1].numbers, steps[-1].recipients, mailbox.counters.duplicates) == ({}, 2, 2)
    assert await contents(mailbox, "a") == payloads([0])
    await mailbox.close(1.0)


async def test_a_fan_out_goes_on_after_a_crash(stand: Stand) -> None:
    if not stand.survives:
        pytest.skip("this mailbox is lost with its process, and says so")
    mailbox = await stand.open()
    devices = [f"d{n}" for n in range(3 * FAN_OUT_STEP)]
    await join(mailbox, *devices)
    await mailbox.append([fan_out(0), entry(1, devices[-1])])
    await stand.crash(mailbox)
    mailbox = await stand.open()
    steps = watch(mailbox)
    await join(mailbox, "late")
    await mailbox.append([fan_out(0), entry(1, devices[-1]), fan_out(2, ALL)])
    await complete(steps)
    await until(lambda: any(step.payload == payloads([2])[0] and step.is_last for step in steps))
    assert await contents(mailbox, "late") == payloads([2])
    for device_id in (*devices[:3], *devices[-4:-1], devices[FAN_OUT_STEP], devices[2 * FAN_OUT_STEP]):
        assert await contents(mailbox, device_id) == payloads([0, 2])
    assert await contents(mailbox, devices[-1]) == payloads([0, 1, 2])
    assert mailbox.status().messages == 2 * len(devices) + 2
    await mailbox.close(1.0)


async def test_a_fan_out_waits_while_so_many_are_under_way_and_so_does_what_comes_after_it(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_steps(monkeypatch)
    monkeypatch.setattr(fan_out_bound, "FAN_OUTS_UNDER_WAY", 3)
    mailbox = await stand.open()
    steps: list[FanOutStep] = []
    under_way: list[int] = []

    def on_step(step: FanOutStep) -> None:
        steps.append(step)
        under_way.append(mailbox.status().fan_outs or 0)

    mailbox.watch_fan_outs(on_step)
    devices = ["a", "b", "c", "d"]
    await join(mailbox, *devices)
    await join(mailbox, "alone", audiences=(HALL,))
    complete_by_then: list[int] = []
    stored = []
    for offset in range(0, 20, 2):
        stored.append(mailbox.append([fan_out(offset), entry(offset + 1, "alone")]))
        stored[-1].add_done_callback(lambda _: complete_by_then.append(sum(step.is_last for step in steps)))
    await asyncio.gather(*stored)
    await complete(steps, 10)
    assert max(under_way) <= 3
    assert all(complete >= at - 2 for at, complete in enumerate(complete_by_then))
    assert mailbox.counters.fan_out_waits > 0
    assert mailbox.status().fan_outs == 0
    assert await contents(mailbox, "alone") == payloads(range(1, 20, 2))
    for device_id in devices:
        assert await contents(mailbox, device_id) == payloads(range(0, 20, 2))
    await mailbox.close(1.0)


async def test_fan_outs_that_wait_are_stored_when_the_mailbox_closes(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_steps(monkeypatch)
    monkeypatch.setattr(fan_out_bound, "FAN_OUTS_UNDER_WAY", 1)
    mailbox = await stand.open()
    await join(mailbox, "a", "b", "c")
    stored = [mailbox.append([fan_out(offset)]) for offset in range(5)]
    await mailbox.close(5.0)
    assert await asyncio.gather(*stored) == [[0]] * 5
    if stand.survives:
        mailbox = await stand.open()
        await until(lambda: mailbox.status().fan_outs == 0)
        assert await contents(mailbox, "c") == payloads(range(5))
        await mailbox.close(1.0)


async def test_the_options_hold_for_each_member(stand: Stand) -> None:
    limits = BoxLimits(max_messages=2, ttl_s=1000)
    mailbox = await stand.open(limits)
    steps = watch(mailbox)
    await join(mailbox, "a", "b")
    soon = int(stand.clock.now * 1000) + 1_000
    keyed = Options(priority="high", collapse_key="k", id="x")
    await mailbox.append([fan_out(0, options=keyed), entry(1, "a"), entry(2, "a", options=Options(priority="low"))])
    await mailbox.append([fan_out(3, options=keyed._replace(id="y")), fan_out(4, options=keyed)])
    await mailbox.append([fan_out(5, expires_ms=soon)])
    await complete(steps, 4)
    assert await contents(mailbox, "a", lane="high") == payloads([3])
    assert await contents(mailbox, "a") == payloads([5])
    assert (await contents(mailbox, "b", lane="high"), await contents(mailbox, "b")) == (payloads([3]), payloads([5]))
    stand.clock.now += 2
    assert await contents(mailbox, "b") == []
    assert missed(await page_of(mailbox, "b")) == 1
    await mailbox.close(1.0)
