"""A mailbox that may have lost its latest messages: restored from a backup, rolled back, or copied."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cocoa_tornado.mailboxes.port import Mailbox
from cocoa_tornado.rules.box import NO_CURSOR_YET, Box, Position

from .lives import Keeper, RedisKeeper, SqliteKeeper
from .stands import contents, entries, payloads

pytestmark = [
    pytest.mark.gen_test(timeout=120),
    pytest.mark.logs("cocoa.mailbox", "mailbox may lose messages", optional=True),  # Redis without a file of its own
]


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def keeper(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Keeper]:
    made: Keeper
    if request.param == "sqlite":
        made = SqliteKeeper(tmp_path / "box.db")
    else:
        made = RedisKeeper(request.getfixturevalue("own_redis"))
    yield made
    asyncio.run(made.clear())


@asynccontextmanager
async def opened(keeper: Keeper) -> AsyncIterator[Mailbox]:
    mailbox = await keeper.open()
    try:
        yield mailbox
    finally:
        await mailbox.close(5.0)


def found(box: Box, positions: Iterable[Position]) -> list[int]:
    """The number in the lane of normal priority that each position stands for."""
    numbers = [box.find(position) for position in positions]
    return [number.normal for number in numbers if number is not None]


async def test_a_backup_put_back_begins_another_epoch_and_a_newer_cursor_skips_nothing(keeper: Keeper) -> None:
    async with opened(keeper) as mailbox:
        before = mailbox.epoch
        assert await mailbox.append(entries(0, 5)) == [1, 2, 3, 4, 5]
        await keeper.back_up()
        assert await mailbox.append(entries(5, 5)) == [6, 7, 8, 9, 10]
    await keeper.put_back()
    async with opened(keeper) as mailbox:
        assert mailbox.epoch != before
        assert await mailbox.append(entries(10, 3)) == [6, 7, 8]
        box = await mailbox.look("doll")
        assert found(box, [Position(number, before) for number in (3, 5, 7, 10)]) == [3, 5, 5, 5]
        assert found(box, [Position(number, mailbox.epoch) for number in (7, 8)]) == [7, 8]
        assert box.find(Position(9, mailbox.epoch)) is None
        assert await contents(mailbox, after=5) == payloads([10, 11, 12])


async def test_an_acknowledgement_from_before_deletes_nothing_that_came_after(keeper: Keeper) -> None:
    async with opened(keeper) as mailbox:
        before = mailbox.epoch
        await mailbox.append(entries(0, 5))
        await keeper.back_up()
        await mailbox.append(entries(5, 5))
    await keeper.put_back()
    async with opened(keeper) as mailbox:
        await mailbox.append(entries(10, 3))
        mailbox.acknowledge("doll", Position(9, before))
        mailbox.written("doll", Position(9, before))
        box = await mailbox.look("doll")
        assert (box.normal.acked, box.normal.gone, box.normal.written) == (5, 5, 5)
        await mailbox.append(entries(13, 1))  # the marks are stored with it
        assert await contents(mailbox) == payloads([10, 11, 12, 13])
        mailbox.acknowledge("doll", Position(7, mailbox.epoch))
        assert (await mailbox.look("doll")).normal.acked == 7


async def test_a_cursor_of_a_life_that_the_backup_does_not_know_skips_nothing(keeper: Keeper) -> None:
    """A backup is restored twice. It lacks everything of the mailbox used in between, including its epoch."""
    async with opened(keeper) as mailbox:
        await mailbox.append(entries(0, 5))
        await keeper.back_up()
    await keeper.put_back()
    async with opened(keeper) as mailbox:
        lost = mailbox.epoch
        assert await mailbox.append(entries(5, 4)) == [6, 7, 8, 9]
    await keeper.put_back()
    keeper.clock.now += 10**8  # where epochs are numbered by the clock
    async with opened(keeper) as mailbox:
        assert mailbox.epoch != lost
        assert await mailbox.append(entries(10, 5)) == [6, 7, 8, 9, 10]
        box = await mailbox.look("doll")
        assert box.find(Position(8, lost)) is not None
        assert box.start(Position(8, lost)).normal <= 5
        mailbox.acknowledge("doll", Position(9, lost))
        await mailbox.append(entries(15, 1))
        assert (await contents(mailbox))[-6:] == payloads(range(10, 16))


async def test_a_box_that_the_backup_does_not_have_is_made_anew_and_an_old_cursor_skips_nothing(
    keeper: Keeper,
) -> None:
    async with opened(keeper) as mailbox:
        before = mailbox.epoch
        await mailbox.append(entries(0, 5, "other"))
        await keeper.back_up()
        await mailbox.append(entries(5, 4))
        cursor = Position((await mailbox.look("doll")).normal.last, before)
    await keeper.put_back()
    async with opened(keeper) as mailbox:
        (number,) = await mailbox.append(entries(9, 1))
        assert number is not None
        box = await mailbox.look("doll")
        assert box.find(cursor) is not None
        assert box.start(cursor).normal == number - 1


async def test_cursors_of_as_many_epochs_as_are_remembered_are_exact(keeper: Keeper) -> None:
    places = []
    for turn in range(keeper.known):
        async with opened(keeper) as mailbox:
            number = (await mailbox.append(entries(turn, 1)))[0]
            assert number == turn + 1
            places.append(Position(number, mailbox.epoch))
        await keeper.restart()
    async with opened(keeper) as mailbox:
        await mailbox.append(entries(keeper.known, 1))
        box = await mailbox.look("doll")
        assert found(box, places) == [place.normal for place in places]


async def test_cursors_of_more_epochs_than_are_remembered_skip_nothing(keeper: Keeper) -> None:
    places = []
    for turn in range(keeper.known + 4):
        async with opened(keeper) as mailbox:
            number = (await mailbox.append(entries(turn, 1)))[0]
            assert number is not None
            places.append(Position(number, mailbox.epoch))
        await keeper.restart()
    async with opened(keeper) as mailbox:
        await mailbox.append(entries(len(places), 1))
        box = await mailbox.look("doll")
        assert len(box.normal.cuts) <= keeper.known + 1
        numbers = found(box, places)
        assert all(number <= place.normal for number, place in zip(numbers, places, strict=True))
        assert numbers[-keeper.known :] == [place.normal for place in places[-keeper.known :]]


async def test_two_copies_that_go_on_do_not_take_each_others_cursors_for_their_own(tmp_path: Path) -> None:
    """A folder is copied to another machine, and devices switch between the two."""
    first = SqliteKeeper(tmp_path / "first" / "box.db")
    first.path.parent.mkdir()
    async with opened(first) as mailbox:
        await mailbox.append(entries(0, 5))
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    second = SqliteKeeper(tmp_path / "second" / "box.db")
    async with opened(first) as one, opened(second) as two:
        assert one.key == two.key
        assert one.epoch != two.epoch
        await one.append(entries(100, 4))
        await two.append(entries(200, 3))
        theirs = Position(8, two.epoch)
        box = await one.look("doll")
        assert box.find(theirs) == NO_CURSOR_YET.numbers
        assert box.start(theirs).normal == 0
        one.acknowledge("doll", theirs)
        await one.append(entries(104, 1))
        assert await contents(one) == payloads([*range(5), *range(100, 105)])
    async with opened(first) as one:  # and the one that has begun an epoch since knows it no better
        box = await one.look("doll")
        assert box.find(theirs) == NO_CURSOR_YET.numbers


async def test_an_empty_backup_put_back_begins_another_epoch(tmp_path: Path) -> None:
    keeper = SqliteKeeper(tmp_path / "box.db")
    async with opened(keeper) as mailbox:
        before = mailbox.epoch
        await keeper.back_up()
        await mailbox.append(entries(0, 5))
    await keeper.put_back()
    async with opened(keeper) as mailbox:
        assert mailbox.epoch != before
        await mailbox.append(entries(5, 3))
        box = await mailbox.look("doll")
        assert box.find(Position(5, before)) == (0, 0)
