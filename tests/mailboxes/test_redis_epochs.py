"""A Redis that returns without its latest writes: killed after a SAVE, or failed over to a lagging replica."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from cocoa_tornado.mailboxes.redis import RedisMailbox
from cocoa_tornado.rules.box import Box, BoxLimits, Position
from testing.redis_server import RedisServer
from testing.waiting import eventually

from .stands import Clock, contents, entries, payloads, ready

pytestmark = [
    pytest.mark.redis,
    pytest.mark.gen_test(timeout=90),
]

MAY_LOSE = pytest.mark.logs("cocoa.mailbox", "mailbox may lose messages")
UNAVAILABLE = pytest.mark.logs("cocoa.mailbox", "mailbox unavailable")


@pytest.fixture
def forgetful(own_redis: RedisServer) -> RedisServer:
    """A Redis that persists only on SAVE."""
    own_redis.start(appendonly="no")
    return own_redis


async def lose_the_end(redis: RedisServer) -> None:
    """Kill it, and start it with the data of the last SAVE."""
    await asyncio.to_thread(redis.kill)
    await asyncio.to_thread(redis.start)


def found(box: Box, position: Position) -> int | None:
    """The number in the normal lane that a position stands for now."""
    numbers = box.find(position)
    return None if numbers is None else numbers.normal


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[RedisMailbox]:
    mailbox = RedisMailbox(url, BoxLimits(), Clock())
    await mailbox.start()
    try:
        await ready(mailbox)
        yield mailbox
    finally:
        await mailbox.close(2.0)


@UNAVAILABLE
@MAY_LOSE
async def test_numbers_that_are_given_again_belong_to_another_epoch(forgetful: RedisServer) -> None:
    async with opened(forgetful.url) as mailbox:
        before = mailbox.epoch
        assert await mailbox.append(entries(0, 5)) == [1, 2, 3, 4, 5]
        forgetful.command("SAVE")
        assert await mailbox.append(entries(5, 5)) == [6, 7, 8, 9, 10]
        await lose_the_end(forgetful)
        assert await mailbox.append(entries(10, 3)) == [6, 7, 8]
        await ready(mailbox)
        assert mailbox.epoch > before
        box = await mailbox.look("doll")
        assert [found(box, Position(number, before)) for number in (3, 5, 7, 10)] == [3, 5, 5, 5]
        assert [found(box, Position(number, mailbox.epoch)) for number in (7, 8, 9)] == [7, 8, None]
        assert await contents(mailbox) == payloads([0, 1, 2, 3, 4, 10, 11, 12])


@UNAVAILABLE
@MAY_LOSE
async def test_what_was_acknowledged_before_deletes_nothing_that_came_after(forgetful: RedisServer) -> None:
    async with opened(forgetful.url) as mailbox:
        before = mailbox.epoch
        await mailbox.append(entries(0, 5))
        forgetful.command("SAVE")
        await mailbox.append(entries(5, 5))
        forgetful.kill()
        mailbox.acknowledge("doll", Position(9, before))
        mailbox.written("doll", Position(10, before))
        stored = mailbox.append(entries(10, 3))
        await asyncio.to_thread(forgetful.start)
        assert await stored == [6, 7, 8]
        await ready(mailbox)
        mailbox.acknowledge("doll", Position(8, before))  # a device that has only now come to it
        mailbox.acknowledge("doll", Position(6, mailbox.epoch))
        assert (await mailbox.look("doll")).normal.acked == 6
        await mailbox.append(entries(13, 1))
        await eventually(lambda: not mailbox._backlog.has_marks)
        box = await mailbox.look("doll")
        assert (box.normal.acked, box.written.normal, box.last.normal) == (6, 5, 9)
        assert await contents(mailbox) == payloads([11, 12, 13])


@MAY_LOSE
async def test_a_gateway_that_was_restarted_with_it_begins_an_epoch_too(forgetful: RedisServer) -> None:
    async with opened(forgetful.url) as mailbox:
        before = mailbox.epoch
        await mailbox.append(entries(0, 5))
        forgetful.command("SAVE")
        await mailbox.append(entries(5, 5))
    await lose_the_end(forgetful)
    async with opened(forgetful.url) as mailbox:
        await mailbox.append(entries(10, 9))
        box = await mailbox.look("doll")
        assert (box.last.normal, found(box, Position(10, before))) == (14, 5)


@UNAVAILABLE
@MAY_LOSE
async def test_one_that_was_idle_meanwhile_finds_out_before_it_stores_or_reads(forgetful: RedisServer) -> None:
    async with opened(forgetful.url) as reader, opened(forgetful.url) as writer:
        before = reader.epoch
        await writer.append(entries(0, 5))
        await reader.look("doll")
        forgetful.command("SAVE")
        await writer.append(entries(5, 5))
        await lose_the_end(forgetful)
        await asyncio.sleep(0.2)  # the end of the connections is known
        assert await writer.append(entries(10, 1)) == [6]
        assert writer.epoch > before
        while reader.epoch == before:
            with contextlib.suppress(Exception):
                await reader.look("doll")
            await asyncio.sleep(0.05)
        await ready(reader)
        assert found(await reader.look("doll"), Position(10, before)) == 5


@UNAVAILABLE
@MAY_LOSE
async def test_what_is_lost_twice_has_an_epoch_of_its_own_each_time(forgetful: RedisServer) -> None:
    async with opened(forgetful.url) as mailbox:
        first = mailbox.epoch
        await mailbox.append(entries(0, 5))
        forgetful.command("SAVE")
        await mailbox.append(entries(5, 5))
        await lose_the_end(forgetful)
        assert await mailbox.append(entries(10, 3)) == [6, 7, 8]
        second = mailbox.epoch
        await lose_the_end(forgetful)  # and with it, that there was a second epoch
        assert await mailbox.append(entries(13, 4)) == [6, 7, 8, 9]
        await ready(mailbox)
        assert first < second < mailbox.epoch
        box = await mailbox.look("doll")
        assert [found(box, Position(8, epoch)) for epoch in (first, second, mailbox.epoch)] == [5, 5, 8]


@UNAVAILABLE
@MAY_LOSE
async def test_one_follows_into_an_epoch_that_another_has_begun(forgetful: RedisServer) -> None:
    async with opened(forgetful.url) as one, opened(forgetful.url) as two:
        await one.append(entries(0, 5))
        forgetful.command("SAVE")
        await two.append(entries(5, 5))  # which one does not know of
        await lose_the_end(forgetful)
        await one.append(entries(10, 1))
        await two.append(entries(11, 1))
        (number,) = await one.append(entries(12, 1))
        assert number is not None
        assert one.epoch == two.epoch
        one.acknowledge("doll", Position(number, one.epoch))
        await eventually(lambda: not one._backlog.has_marks)
        assert (await two.look("doll")).normal.acked == number


@UNAVAILABLE
@MAY_LOSE
async def test_a_box_that_is_lost_as_a_whole_is_made_anew_above_all_that_was_given(forgetful: RedisServer) -> None:
    async with opened(forgetful.url) as mailbox:
        before = mailbox.epoch
        await mailbox.append(entries(0, 5, "other"))
        forgetful.command("SAVE")
        await mailbox.append(entries(5, 4))
        await lose_the_end(forgetful)
        (number,) = await mailbox.append(entries(9, 1))
        box = await mailbox.look("doll")
        assert number == 10
        assert box.start(Position(9, before)).normal == 9


@UNAVAILABLE
async def test_an_epoch_begins_with_every_restart_and_old_places_stay_good(own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(own_redis.url) as mailbox:
        places = []
        for turn in range(12):
            number = (await mailbox.append(entries(turn, 1)))[0]
            assert number is not None
            places.append(Position(number, mailbox.epoch))
            await asyncio.to_thread(own_redis.stop)
            await asyncio.to_thread(own_redis.start)
        await mailbox.append(entries(12, 1))
        box = await mailbox.look("doll")
        assert len(box.normal.cuts) == 8
        assert box.epoch >= places[0].epoch + 12
        # The latest are exact; of long ago they are never beyond what they were.
        assert [found(box, place) for place in places[-7:]] == [place.normal for place in places[-7:]]
        assert all((found(box, place) or 0) <= place.normal for place in places)
