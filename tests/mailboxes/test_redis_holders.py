"""Several servers share the mailbox: what a connection may do there after another one has superseded it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from cocoa_tornado.errors import MailboxError, Superseded
from cocoa_tornado.mailboxes.port import FanOut, LaneRead
from cocoa_tornado.mailboxes.redis import RedisMailbox
from cocoa_tornado.rules.box import Numbers, Position
from cocoa_tornado.rules.claims import FencingToken, bucket_of
from testing.redis_server import RedisServer

from .stands import ALL, SOURCE, entries, payloads, until
from .test_redis import opened

pytestmark = [pytest.mark.redis, pytest.mark.gen_test(timeout=60)]

TERM = 7
BEFORE, NOW, OTHER = (
    FencingToken(TERM, f"{epoch}:{number}:{number}") for epoch, number in (("a", 1), ("b", 2), ("c", 3))
)


class Holders:
    """What presence has stored in this Redis."""

    def __init__(self, redis: RedisServer) -> None:
        self._redis = redis

    def begin(self, run: str | None = None) -> None:
        facts = self._redis.command("INFO", "server") | self._redis.command("INFO", "replication")
        own = f"{facts['run_id']}.{facts['master_replid']}"
        self._redis.command("HSET", "cocoa:{box}:p:meta", "term", TERM, "run", run or own)

    def set(self, *holdings: FencingToken) -> None:
        key = f"cocoa:{{box}}:p:h:{bucket_of(b'doll')}"
        self._redis.command("HSET", key, "doll", " ".join(fencing_token.holder for fencing_token in holdings))


@pytest.fixture
def holders(redis_server: RedisServer) -> Iterator[Holders]:
    found = Holders(redis_server)
    found.begin()
    found.set(NOW)
    yield found
    redis_server.command("FLUSHALL")


async def read(mailbox: RedisMailbox, fencing_token: FencingToken | None) -> list[bytes]:
    [page] = await mailbox.read("doll", [LaneRead("normal", 0, ALL)], fencing_token)
    return [message.payload for message in page.messages]


async def written_up_to(mailbox: RedisMailbox) -> Numbers:
    box = await mailbox.look("doll")
    return Numbers(box.normal.written, box.high.written)


@pytest.mark.usefixtures("holders")
async def test_only_the_holder_reads_the_box(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as mailbox:
        await mailbox.append(entries(0, 2))
        assert await read(mailbox, NOW) == payloads(range(2))
        assert await read(mailbox, None) == payloads(range(2)), "with presence local:// nothing is checked"
        with pytest.raises(Superseded, match="another connection holds 'doll'"):
            await read(mailbox, BEFORE)


async def test_a_device_that_was_released_is_held_by_no_connection(redis_server: RedisServer, holders: Holders) -> None:
    redis_server.command("DEL", f"cocoa:{{box}}:p:h:{bucket_of(b'doll')}")
    async with opened(redis_server.url) as mailbox:
        await mailbox.append(entries(0, 1))
        with pytest.raises(Superseded):
            await read(mailbox, NOW)


async def test_each_of_several_holders_reads_the_box(redis_server: RedisServer, holders: Holders) -> None:
    holders.set(BEFORE, NOW)
    async with opened(redis_server.url) as mailbox:
        await mailbox.append(entries(0, 1))
        assert await read(mailbox, BEFORE) == await read(mailbox, NOW) == payloads([0])
        for almost in (FencingToken(TERM, "b:2"), FencingToken(TERM, "2:2"), OTHER):
            with pytest.raises(Superseded):
                await read(mailbox, almost)


async def test_what_is_asked_under_another_term_is_asked_again_and_supersedes_nobody(
    redis_server: RedisServer, holders: Holders
) -> None:
    async with opened(redis_server.url) as mailbox:
        await mailbox.append(entries(0, 1))
        with pytest.raises(MailboxError, match="another term") as refused:
            await read(mailbox, FencingToken(TERM - 1, NOW.holder))
        assert not isinstance(refused.value, Superseded)
        holders.begin(run="of a process that is gone")
        with pytest.raises(MailboxError, match="another term"):
            await read(mailbox, NOW)


@pytest.mark.usefixtures("holders")
async def test_what_a_superseded_connection_has_written_is_not_marked(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as mailbox:
        [first, second, third] = await mailbox.append(entries(0, 3))
        assert first is not None
        assert second is not None
        assert third is not None
        mailbox.written("doll", Position(second), BEFORE)
        mailbox.acknowledge("doll", Position(first))
        await asyncio.wait_for(marked(mailbox), 5)
        assert (await written_up_to(mailbox)).normal < first
        assert await read(mailbox, NOW) == payloads([1, 2]), "only the device can have acknowledged"
        assert mailbox.counters.superseded == 1
        mailbox.written("doll", Position(third), NOW)
        await asyncio.wait_for(marked(mailbox), 5)
        assert await written_up_to(mailbox) == Numbers(third, 0)


@pytest.mark.usefixtures("holders")
async def test_marks_of_two_connections_do_not_mix(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as mailbox:
        numbers = [number or 0 for number in await mailbox.append(entries(0, 3))]
        mailbox.written("doll", Position(numbers[2]), BEFORE)
        mailbox.written("doll", Position(numbers[0]), NOW)
        await asyncio.wait_for(marked(mailbox), 5)
        assert await written_up_to(mailbox) == Numbers(numbers[0], 0)


async def marked(mailbox: RedisMailbox) -> None:
    waiting = mailbox.marked("doll")
    assert waiting is not None
    await waiting


@pytest.mark.usefixtures("holders")
async def test_who_waits_for_marks_waits_for_those_until_then(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as mailbox:
        assert mailbox.marked("doll") is None
        [number] = await mailbox.append(entries(0, 1))
        mailbox.written("doll", Position(number or 0), NOW)
        waiting = mailbox.marked("doll")
        assert waiting is not None
        assert mailbox.marked("bear") is None
        await asyncio.wait_for(waiting, 5)
        assert mailbox.marked("doll") is None


@pytest.mark.usefixtures("holders")
async def test_who_waits_for_marks_waits_no_longer_than_for_the_mailbox(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as mailbox:
        mailbox.written("doll", Position(1), NOW)
        waiting = mailbox.marked("doll")
        await mailbox.close(2.0)
        assert waiting is not None
        await asyncio.wait_for(waiting, 1)
        assert mailbox.marked("doll") is None


async def test_a_superseded_connection_does_not_replace_the_audiences_of_the_next(
    redis_server: RedisServer, holders: Holders
) -> None:
    old, new = frozenset({"group:old"}), frozenset({"group:new"})
    async with opened(redis_server.url) as mailbox:
        await mailbox.join("doll", new, NOW)
        await mailbox.append([FanOut("group:new", frozenset(), b"{}", 1, SOURCE, 1)])
        await until(lambda: mailbox.status().messages == 1)
        await mailbox.join("doll", old, BEFORE)
        assert len(await read(mailbox, NOW)) == 1, "not withdrawn"
        holders.set(BEFORE)
        await mailbox.join("doll", old, BEFORE)
        assert await read(mailbox, BEFORE) == []
