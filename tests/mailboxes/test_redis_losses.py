"""A Redis that returns empty, evicts keys, or has other programs' keys in place of the mailbox's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Iterator

import pytest

from cocoa_tornado.errors import MailboxError
from cocoa_tornado.mailboxes.port import Mailbox, MailboxState
from cocoa_tornado.mailboxes.redis import RedisMailbox
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.box import FORGET_AFTER_S, NO_CURSOR_YET, BoxLimits, Position
from cocoa_tornado.rules.feed import Delivery, Feed
from testing.redis_server import RedisServer
from testing.waiting import eventually

from .stands import SOURCE, Clock, contents, entries, entry, missed, page_of, payloads, ready

pytestmark = [pytest.mark.redis, pytest.mark.gen_test(timeout=90)]

UNAVAILABLE = pytest.mark.logs("cocoa.mailbox", "mailbox unavailable")
MAY_LOSE = pytest.mark.logs("cocoa.mailbox", "mailbox may lose messages")
EMPTIED = pytest.mark.logs("cocoa.mailbox", "mailbox emptied")
FOREIGN = pytest.mark.logs("cocoa.mailbox", "unexpected key type")


@pytest.fixture
def shared(redis_server: RedisServer) -> Iterator[RedisServer]:
    """The session's Redis, for tests that leave it running."""
    yield redis_server
    redis_server.command("FLUSHALL")


@contextlib.asynccontextmanager
async def opened(url: str, clock: Clock | None = None) -> AsyncIterator[RedisMailbox]:
    mailbox = RedisMailbox(url, BoxLimits(ttl_s=1000), clock or Clock())
    await mailbox.start()
    try:
        await ready(mailbox)
        yield mailbox
    finally:
        await mailbox.close(2.0)


def key(name: str) -> str:
    return f"cocoa:{{box}}:{name}"


def logged(caplog: pytest.LogCaptureFixture, text: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == text]


async def heard(mailbox: Mailbox, device_id: str, after: Position | None) -> Delivery:
    """The first messages of the normal lane that a connecting device receives."""
    box = await mailbox.look(device_id)
    assert after is None or box.find(after) is not None
    feed = Feed()
    feed.open(box.start(after).normal, box.last.normal)
    return feed.page(await page_of(mailbox, device_id, feed.read())) if feed.is_behind else Delivery(0, ())


def payloads_of(delivery: Delivery) -> list[bytes]:
    return [message.payload for message in delivery.messages]


# -- it comes back empty


@EMPTIED
async def test_an_emptied_redis_is_used_again_in_another_epoch(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.start()
    async with opened(own_redis.url) as mailbox:
        before, cursors_key = mailbox.epoch, mailbox.key
        await mailbox.append(entries(0, 5))
        own_redis.command("FLUSHALL")
        (number,) = await mailbox.append(entries(5, 1))
        assert number is not None
        assert number > 5
        assert (mailbox.key, mailbox.status().state) == (cursors_key, MailboxState.READY)
        assert mailbox.epoch > before
        assert payloads_of(await heard(mailbox, "doll", Position(3, before))) == payloads([5])
        assert mailbox.status().messages == 1
        assert mailbox.counters.lost == {"emptied": 5}
        assert [vars(record)["lost"] for record in logged(caplog, "mailbox emptied")] == [5]
        mailbox.acknowledge("doll", Position(5, before))
        await mailbox.append(entries(6, 1))
        assert await contents(mailbox) == payloads([5, 6])


@EMPTIED
async def test_one_that_was_idle_finds_out_with_the_next_sweep(own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(own_redis.url) as mailbox:
        before = mailbox.epoch
        own_redis.command("FLUSHALL")
        with pytest.raises(MailboxError, match="emptied or replaced"):
            await mailbox.sweep()
        await eventually(lambda: mailbox.epoch > before)
        assert await mailbox.sweep() == 0
        assert mailbox.status().state is MailboxState.READY


@UNAVAILABLE
@MAY_LOSE
@EMPTIED
async def test_a_redis_that_was_restarted_without_its_data_is_used_again(own_redis: RedisServer) -> None:
    own_redis.start(appendonly="no")
    async with opened(own_redis.url) as mailbox:
        await mailbox.append(entries(0, 5))
        await asyncio.to_thread(own_redis.kill)
        pending = mailbox.append(entries(5, 2))
        await eventually(lambda: mailbox.status().state is MailboxState.OPENING)
        await asyncio.to_thread(own_redis.start)
        assert await pending == [6, 7]
        await ready(mailbox)
        assert await contents(mailbox) == payloads([5, 6])


@EMPTIED
async def test_two_gateways_go_on_together_with_the_cursors_that_they_had(own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(own_redis.url) as one, opened(own_redis.url) as two:
        await one.append(entries(0, 5))
        own_redis.command("FLUSHALL")
        numbers = await one.append(entries(5, 1)) + await two.append(entries(6, 1))
        assert None not in numbers
        assert (one.key, one.epoch) == (two.key, two.epoch)
        assert await contents(two) == payloads([5, 6])
        assert one.counters.lost == {"emptied": 5}
        assert two.counters.lost == {}


@pytest.mark.logs("cocoa.mailbox", "mailbox replaced")
async def test_another_mailbox_is_used_and_no_mark_of_the_one_before_reaches_it(own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(own_redis.url) as mailbox:
        before = mailbox.epoch
        await mailbox.append(entries(0, 5))
        own_redis.command("FLUSHALL")
        async with opened(own_redis.url) as another:  # a gateway that has known nothing
            assert await another.append(entries(10, 3)) == [1, 2, 3]
            mailbox.acknowledge("doll", Position(2, before))
            assert await mailbox.append(entries(20, 1)) == [4]
            assert mailbox.key == another.key
            assert mailbox.epoch > before
            assert await contents(mailbox) == payloads([10, 11, 12, 20])
            assert await another.append(entries(30, 1)) == [5]
            assert another.epoch == mailbox.epoch


@EMPTIED
async def test_where_only_its_description_is_gone_the_messages_are_there(own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(own_redis.url) as mailbox:
        await mailbox.append(entries(0, 5))
        own_redis.command("DEL", key("meta"))
        assert await mailbox.append(entries(5, 1)) == [6]
        assert await contents(mailbox) == payloads(range(6))
        assert mailbox.status().messages == 6
        assert mailbox.counters.lost == {}


# -- keys of a wrong type


@FOREIGN
async def test_a_foreign_key_for_a_box_costs_its_device_alone_and_is_named(
    shared: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(shared.url, clock := Clock()) as mailbox:
        await mailbox.append([entry(0, "other")])
        shared.command("SET", key("b:doll"), "mine")
        assert await mailbox.append([entry(1), entry(2, "other"), entry(3), entry(4, "third")]) == [None, 2, None, 5]
        assert mailbox.status().state is MailboxState.READY
        assert mailbox.counters.lost == {"foreign_key": 2}
        assert (mailbox.counters.stored, mailbox.status().messages) == (3, 3)
        with pytest.raises(MailboxError, match="b:doll has another type, or other fields"):
            await mailbox.look("doll")
        assert await contents(mailbox, "other") == payloads([0, 2])
        for device_id, number in (("doll", 1), ("other", 1), ("third", 5)):
            mailbox.acknowledge(device_id, Position(number, mailbox.epoch))
        await eventually(lambda: mailbox.counters.acknowledged == 2)
        clock.now += 2000
        assert await mailbox.sweep() == 1
        assert [vars(record)["key"] for record in logged(caplog, "unexpected key type")] == [key("b:doll")]
        assert mailbox.counters.failures == 0
        assert shared.command("GET", key("b:doll")) == b"mine"
        shared.command("DEL", key("b:doll"))
        assert await mailbox.append(entries(5, 1)) is not None
        assert await contents(mailbox) == payloads([5])


@FOREIGN
async def test_a_foreign_key_for_messages_is_a_gap_for_its_device_alone(
    shared: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(shared.url, clock := Clock()) as mailbox:
        await mailbox.append([*entries(0, 3), entry(3, "other")])
        shared.command("DEL", key("m:doll"))
        shared.command("LPUSH", key("m:doll"), "mine")
        assert await heard(mailbox, "doll", Position(1, mailbox.epoch)) == Delivery(2, [])
        mailbox.acknowledge("doll", Position(1, mailbox.epoch))
        mailbox.acknowledge("other", Position(4, mailbox.epoch))
        await eventually(lambda: mailbox.counters.acknowledged == 2)
        clock.now += 2000
        await mailbox.sweep()
        assert await mailbox.append(entries(4, 1)) == [4]
        assert await contents(mailbox) == payloads([4])
        assert mailbox.counters.failures == 0
        assert [vars(record)["key"] for record in logged(caplog, "unexpected key type")] == [key("m:doll")]


@FOREIGN
@pytest.mark.parametrize("field", ["base", "last", "gone", "acked", "written", "bytes"])
async def test_a_box_with_foreign_values_costs_its_device_alone_and_is_named(
    shared: RedisServer, caplog: pytest.LogCaptureFixture, field: str
) -> None:
    async with opened(shared.url, clock := Clock()) as mailbox:
        await mailbox.append([entry(0), entry(1, "other"), entry(2, "third")])
        shared.command("HSET", key("b:doll"), field, "mine")
        unreadable, readable = mailbox.look("doll"), mailbox.look("other")
        assert (await readable).last.normal == 2
        if field != "bytes":
            with pytest.raises(MailboxError, match="b:doll has another type, or other fields"):
                await unreadable
        mailbox.written("doll", Position(1, mailbox.epoch))
        mailbox.acknowledge("doll", Position(1, mailbox.epoch))
        mailbox.acknowledge("other", Position(2, mailbox.epoch))
        await eventually(lambda: mailbox.counters.acknowledged == 1)
        numbers = await mailbox.append([entry(3), entry(4, "other")])
        assert numbers == [None if field in ("last", "gone", "bytes") else 2, 3]
        assert shared.command("HGET", key("b:doll"), field) == b"mine" or field == "bytes"
        clock.now += 2000
        await mailbox.sweep()
        assert await contents(mailbox, "other") == await contents(mailbox, "third") == []
        assert mailbox.status().state is MailboxState.READY
        assert mailbox.counters.failures == 0
        assert [vars(record)["key"] for record in logged(caplog, "unexpected key type")] == [key("b:doll")]


async def test_a_foreign_entry_among_messages_keeps_no_sweep_from_its_work(shared: RedisServer) -> None:
    async with opened(shared.url, clock := Clock()) as mailbox:
        await mailbox.append([entry(0), entry(1, "other")])
        shared.command("DEL", key("m:doll"))
        shared.command("XADD", key("m:doll"), "1-0", "theirs", "mine")
        clock.now += 2000
        assert await mailbox.sweep() == 2
        assert await contents(mailbox) == []
        assert mailbox.counters.failures == 0


@pytest.mark.parametrize("name", [pytest.param(name, marks=FOREIGN) for name in ("due", f"seen:{SOURCE}")])
async def test_a_foreign_key_of_any_other_name_costs_no_device_anything(
    shared: RedisServer, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    async with opened(shared.url) as mailbox:
        await mailbox.append(entries(0, 2))
    shared.command("DEL", key(name))
    shared.command("SET", key(name), "mine")
    async with opened(shared.url) as mailbox:
        numbers = [await mailbox.append([entry(n, "new" if n % 2 else "doll")]) for n in range(2, 8)]
        assert [None] not in numbers
        assert await contents(mailbox) == payloads([0, 1, 2, 4, 6])
        mailbox.acknowledge("doll", Position(1, mailbox.epoch))
        await eventually(lambda: mailbox.counters.acknowledged == 1)
        await mailbox.sweep()
        assert mailbox.counters.failures == 0
        assert shared.command("GET", key(name)) == b"mine"
        assert [vars(record)["key"] for record in logged(caplog, "unexpected key type")] == [key(name)]


@pytest.mark.parametrize("name", ["m", "b", "seen", "due"])
async def test_a_foreign_key_where_a_start_tries_what_it_may_do_is_in_the_way_of_none(
    shared: RedisServer, name: str
) -> None:
    shared.command("SET", key(f"probe:{name}"), "mine")
    async with opened(shared.url) as mailbox:
        assert await mailbox.append(entries(0, 1)) == [1]


# -- keys that are gone


async def test_a_box_that_was_evicted_is_made_anew_of_its_messages(shared: RedisServer) -> None:
    async with opened(shared.url) as mailbox:
        await mailbox.append(entries(0, 5))
        mailbox.acknowledge("doll", Position(1, mailbox.epoch))
        await eventually(lambda: mailbox.counters.acknowledged == 1)
        shared.command("DEL", key("b:doll"))
        assert payloads_of(await heard(mailbox, "doll", None)) == payloads([1, 2, 3, 4])
        turn = await heard(mailbox, "doll", Position(3, mailbox.epoch))
        assert (turn.missed, payloads_of(turn)) == (0, payloads([3, 4]))
        assert await mailbox.append(entries(5, 1)) == [6]


@pytest.mark.parametrize("first", ["look", "append", "sweep"])
@pytest.mark.parametrize("after", [None, 3, -1])
async def test_a_box_that_was_evicted_with_its_messages_is_a_gap(
    shared: RedisServer, first: str, after: int | None
) -> None:
    async with opened(shared.url, clock := Clock()) as mailbox:
        await mailbox.append([*entries(0, 5), entry(5, "other")])
        shared.command("DEL", key("b:doll"), key("m:doll"))
        if first == "append":
            await mailbox.append(entries(6, 2))
        elif first == "sweep":
            clock.now += 1500
            await mailbox.sweep()
            clock.now += FORGET_AFTER_S + 1500
            await mailbox.sweep()
        box = await mailbox.look("doll")
        position = None if after is None else NO_CURSOR_YET if after < 0 else Position(after, mailbox.epoch)
        feed = Feed()
        feed.open(box.start(position).normal, box.last.normal)
        assert feed.is_behind
        turn = feed.page(await page_of(mailbox, after=feed.read()))
        assert turn.missed == 1
        assert payloads_of(turn) == (payloads([6, 7]) if first == "append" else [])
        # A gap is reported only once.
        mailbox.written("doll", Position(feed.position, mailbox.epoch))
        assert (await heard(mailbox, "doll", None)).missed == 0


@pytest.mark.parametrize("seed", range(8))
async def test_no_device_loses_a_message_without_a_gap_when_any_keys_are_evicted(
    shared: RedisServer, seed: int
) -> None:
    dice = random.Random(seed)
    devices = [f"d{n}" for n in range(6)]
    cursors: dict[str, Position] = {}
    sent: dict[str, list[int]] = {device_id: [] for device_id in devices}
    async with opened(shared.url) as mailbox:
        for n in range(60):
            device_id = dice.choice(devices)
            (number,) = await mailbox.append([entry(n, device_id)])
            assert number is not None
            sent[device_id].append(n)
            if dice.random() < 0.3:
                cursors[device_id] = Position(number, mailbox.epoch)
                sent[device_id].clear()
        for device_id in devices:
            for name in ("b", "m"):
                if dice.random() < 0.5:
                    shared.command("DEL", key(f"{name}:{device_id}"))
        for n in range(60, 70):
            device_id = dice.choice(devices)
            await mailbox.append([entry(n, device_id)])
            sent[device_id].append(n)
        for device_id in devices:
            turn = await heard(mailbox, device_id, cursors.get(device_id))
            missing = [item for item in payloads(sent[device_id]) if item not in payloads_of(turn)]
            assert not missing or turn.missed


@MAY_LOSE
async def test_what_redis_evicts_is_missed_and_not_lost_in_silence(own_redis: RedisServer) -> None:
    """With a maxmemory-policy that the log warns about."""
    own_redis.start(maxmemory_policy="volatile-ttl")
    async with opened(own_redis.url) as mailbox:
        await mailbox.append([entry(n, f"d{n}", b"x" * 2000) for n in range(200)])
        # Boxes do not expire by themselves: here they do, so that these and nothing else may be evicted.
        for n in range(200):
            own_redis.command("EXPIRE", key(f"m:d{n}"), 100_000 + n)
            own_redis.command("EXPIRE", key(f"b:d{n}"), 100_000 + n)
        used = int(own_redis.command("INFO", "memory")["used_memory"])
        own_redis.command("CONFIG", "SET", "maxmemory", used - 200_000)
        await eventually(lambda: int(own_redis.command("INFO", "stats")["evicted_keys"]) > 10)
        own_redis.command("CONFIG", "SET", "maxmemory", 0)
        gaps = 0
        for n in range(200):
            turn = await heard(mailbox, f"d{n}", None)
            assert turn.missed == 1 or payloads_of(turn) == [b"x" * 2000]
            gaps += turn.missed
        assert gaps > 0


@pytest.mark.parametrize("gone", ["b", "bm", "bh", "bmh"])
async def test_a_box_of_two_lanes_that_was_evicted_gives_no_number_twice(shared: RedisServer, gone: str) -> None:
    high = Options(priority="high", collapse_key="k")
    async with opened(shared.url) as mailbox:
        # The highest number of the high lane is unused, because the last message has replaced it.
        batch = [entry(0), entry(1, options=high), entry(2), entry(3, options=high)]
        batch.append(entry(4, options=Options(collapse_key="k")))
        assert await mailbox.append(batch) == [1, 1, 2, 2, 3]
        assert await mailbox.append([entry(5, options=Options(priority="high"))]) == [3]
        for name in gone:
            shared.command("DEL", key(f"{name}:doll"))
        box = await mailbox.look("doll")
        for position in (Position(3, mailbox.epoch, 3), Position(0, mailbox.epoch)):
            assert box.find(position) is not None
        assert await contents(mailbox) == ([] if "m" in gone else payloads([0, 2, 4]))
        assert await contents(mailbox, lane="high") == ([] if "h" in gone else payloads([5]))
        if "m" in gone:
            assert missed(await page_of(mailbox, after=1), 1) == 1
        numbers = await mailbox.append([entry(6), entry(7, options=Options(priority="high"))])
        assert all(number is not None and number > 3 for number in numbers)
        assert await contents(mailbox, after=box.last.normal) == payloads([6])
        assert await contents(mailbox, after=box.last.high, lane="high") == payloads([7])
