"""The Redis mailbox beyond the port: faults of Redis, and gateways that share one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import Mock

import pytest

from cocoa_tornado.errors import MailboxClosed, MailboxError
from cocoa_tornado.mailboxes.port import Mailbox, MailboxState
from cocoa_tornado.mailboxes.redis import RedisMailbox
from cocoa_tornado.mailboxes.redis_faults import RedisStoreFault
from cocoa_tornado.redis_store.connection import RedisConnection
from cocoa_tornado.redis_store.scripts import Command
from cocoa_tornado.rules.box import BoxLimits, Position
from testing.redis_server import RedisServer

from .redis_proxy import Proxy
from .stands import SOURCE, Clock, contents, entries, entry, missed, numbers, page_of, payloads, ready, until

pytestmark = [pytest.mark.redis, pytest.mark.gen_test(timeout=90)]

UNAVAILABLE = pytest.mark.logs("cocoa.mailbox", "mailbox unavailable")


@pytest.fixture
def shared(redis_server: RedisServer) -> Iterator[RedisServer]:
    """The session's Redis, for tests that leave it running."""
    yield redis_server
    redis_server.command("FLUSHALL")


@asynccontextmanager
async def opened(url: str, limits: BoxLimits | None = None, clock: Clock | None = None) -> AsyncIterator[RedisMailbox]:
    """A READY mailbox."""
    async with started(url, limits, clock) as mailbox:
        await ready(mailbox)
        yield mailbox


@asynccontextmanager
async def started(url: str, limits: BoxLimits | None = None, clock: Clock | None = None) -> AsyncIterator[RedisMailbox]:
    mailbox = RedisMailbox(url, limits or BoxLimits(), clock or Clock())
    await mailbox.start()
    try:
        yield mailbox
    finally:
        await mailbox.close(2.0)


async def down(mailbox: Mailbox) -> str:
    """Wait until it is not READY; returns its detail."""
    await until(lambda: mailbox.status().state is MailboxState.OPENING)
    return mailbox.status().detail


def lines(caplog: pytest.LogCaptureFixture, text: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "cocoa.mailbox" and text in record.getMessage()]


# -- Redis goes away


@UNAVAILABLE
async def test_everything_is_there_after_a_restart(own_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cocoa.mailbox")
    own_redis.start()
    async with opened(own_redis.url) as mailbox:
        await mailbox.append(entries(0, 5))
        mailbox.acknowledge("doll", Position(1))
        await mailbox.append(entries(5, 1))
        own_redis.stop()
        pending = [mailbox.append(entries(6, 2)), mailbox.append(entries(8, 2))]
        mailbox.acknowledge("doll", Position(2))
        assert "no connection to Redis" in await down(mailbox)
        with pytest.raises(MailboxError, match="no connection"):
            await mailbox.look("doll")
        own_redis.start()
        assert await asyncio.gather(*pending) == [[7, 8], [9, 10]]
        await ready(mailbox)
        box = await mailbox.look("doll")
        assert (box.normal.acked, box.normal.gone, box.normal.last) == (2, 2, 10)
        assert await contents(mailbox) == payloads(range(2, 10))
        assert mailbox.counters.failures == 1
    assert len(lines(caplog, "mailbox unavailable")) == 1
    assert len(lines(caplog, "mailbox ready")) == 2


@pytest.mark.logs("cocoa.mailbox", "mailbox unavailable", optional=True)
async def test_nothing_is_lost_or_doubled_where_redis_is_killed_again_and_again(own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(own_redis.url, BoxLimits(max_messages=10_000)) as mailbox:
        calls = []
        for start in range(0, 3_000, 10):
            calls.append(mailbox.append([entry(n, f"d{n % 3}") for n in range(start, start + 10)]))
            if start % 50 == 0:
                await asyncio.sleep(0.005)
            if start in (700, 1_500, 2_200):
                own_redis.kill()
                own_redis.start()
        results = await asyncio.gather(*calls)
        assert None not in [number for result in results for number in result]
        for device in range(3):
            assert await contents(mailbox, f"d{device}") == payloads(range(device, 3_000, 3))
        assert mailbox.status().messages == mailbox.counters.stored == 3_000


@UNAVAILABLE
async def test_a_redis_that_stands_still_is_waited_for(own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(own_redis.url) as mailbox:
        await mailbox.append(entries(0, 2))
        own_redis.pause()
        pending = mailbox.append(entries(2, 2))
        async with asyncio.timeout(5.5):
            with pytest.raises(MailboxError, match="does not answer"):
                await page_of(mailbox)
        assert await down(mailbox) == "Redis does not answer"
        await asyncio.sleep(2)  # so that the group is sent a second time, by another connection
        own_redis.resume()
        assert await pending == [3, 4]
        await ready(mailbox)
        assert await contents(mailbox) == payloads(range(4))
        assert mailbox.counters.duplicates == 0


@UNAVAILABLE
async def test_it_may_start_before_redis(own_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async with started(own_redis.url) as mailbox:
        pending = mailbox.append(entries(0, 1))
        await until(lambda: bool(lines(caplog, "unavailable")))
        assert mailbox.key is None
        await asyncio.sleep(0.5)
        own_redis.start()
        assert await pending == [1]
        assert mailbox.status().state is MailboxState.READY
    assert len(lines(caplog, "unavailable")) == 1
    assert mailbox.counters.failures == 0


async def test_a_look_after_close_fails_for_good() -> None:
    """A caller that retries a failed look can stop at MailboxClosed, even if Redis never answered."""
    mailbox = RedisMailbox("redis://127.0.0.1:1/0", BoxLimits())
    with pytest.raises(MailboxError):
        await mailbox.look("doll")
    await mailbox.close(0)
    with pytest.raises(MailboxClosed):
        await mailbox.look("doll")


async def test_a_connection_that_was_closed_while_idle_is_no_failure(shared: RedisServer) -> None:
    async with opened(shared.url) as mailbox:
        await mailbox.append(entries(0, 1))
        shared.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await mailbox.append(entries(1, 1)) == [2]
        assert (await mailbox.look("doll")).last.normal == 2
        assert mailbox.counters.failures == 0


async def test_scripts_that_redis_has_forgotten_are_loaded_again(shared: RedisServer) -> None:
    async with opened(shared.url) as mailbox:
        await mailbox.append(entries(0, 2))
        shared.command("SCRIPT", "FLUSH")
        mailbox.acknowledge("doll", Position(1))
        assert await mailbox.append(entries(2, 1)) == [3]
        shared.command("SCRIPT", "FLUSH")
        assert await contents(mailbox) == payloads([1, 2])


@UNAVAILABLE
async def test_a_close_does_not_wait_for_an_unreachable_redis(own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(own_redis.url) as mailbox:
        own_redis.stop()
        pending = mailbox.append(entries(0, 1))
        await down(mailbox)
        async with asyncio.timeout(15.0):
            await mailbox.close(0.3)
        with pytest.raises(MailboxClosed):
            await pending
        with pytest.raises(MailboxError):
            await mailbox.look("doll")


@pytest.mark.logs("cocoa.mailbox", "mailbox unavailable", optional=True)
async def test_a_close_ends_though_the_client_library_turns_its_cancellation_into_an_error(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange, cancelled = RedisConnection.exchange, 0

    async def swallow(self: RedisConnection, commands: Sequence[Command]) -> list[Any]:
        nonlocal cancelled
        try:
            return await exchange(self, commands)
        except asyncio.CancelledError:
            cancelled += 1
            raise RedisStoreFault("interrupted") from None

    own_redis.start()
    async with opened(own_redis.url) as mailbox:
        monkeypatch.setattr(RedisConnection, "exchange", swallow)
        own_redis.pause()
        pending = mailbox.append(entries(0, 1))
        await asyncio.sleep(0.1)  # the exchange is under way
        async with asyncio.timeout(15.0):
            await mailbox.close(0.0)
        with pytest.raises(MailboxClosed):
            await pending
    assert cancelled == 1


async def test_a_close_waits_for_no_connection_longer_than_it_may(
    shared: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = RedisConnection.close

    async def hang(self: RedisConnection) -> None:
        await close(self)
        await asyncio.Event().wait()  # such as for the other side's end of a TLS connection

    async with opened(shared.url) as mailbox:
        await ready(mailbox)
        monkeypatch.setattr(RedisConnection, "close", hang)
        async with asyncio.timeout(15.0):
            await mailbox.close(0.1)


# -- replies that are lost


@pytest.mark.logs("cocoa.mailbox", "mailbox unavailable", optional=True)  # while it reconnects
async def test_a_group_whose_answer_was_lost_is_stored_once_and_gets_its_numbers(shared: RedisServer) -> None:
    clock = Clock()
    async with Proxy(shared) as proxy, opened(proxy.url, BoxLimits(max_messages=4), clock) as mailbox:
        await mailbox.append(entries(0, 3))
        proxy.losing = 1
        assert await mailbox.append([*entries(1, 4), entry(9, "other")]) == [None, None, 4, 5, 6]
        assert proxy.lost == 1
        assert await contents(mailbox) == payloads([1, 2, 3, 4])
        counters = mailbox.counters
        assert (counters.stored, counters.duplicates, counters.lost) == (6, 2, {"overflow": 1})
        assert [(name, row.times) for name, row in counters.full.most(9, clock(), least=1)] == [("doll", 1)]
        assert (counters.failures, mailbox.status().messages) == (0, 5)


@UNAVAILABLE
async def test_answers_may_be_lost_again_and_again(shared: RedisServer) -> None:
    async with Proxy(shared) as proxy, opened(proxy.url) as mailbox:
        await mailbox.append(entries(0, 1))
        proxy.losing, proxy.only = 5, b'{"n":1}'
        assert await mailbox.append(entries(1, 2)) == [2, 3]
        assert proxy.lost == 5
        await ready(mailbox)
        assert await contents(mailbox) == payloads([0, 1, 2])


async def test_a_mark_whose_answer_was_lost_is_kept_until_it_is_stored(shared: RedisServer) -> None:
    async with Proxy(shared) as proxy, opened(proxy.url) as mailbox:
        await mailbox.append(entries(0, 5))
        proxy.losing = 1
        mailbox.acknowledge("doll", Position(3))
        await until(lambda: proxy.lost == 1)
        mailbox.acknowledge("doll", Position(4))
        assert await contents(mailbox) == payloads([4])
    async with opened(shared.url) as mailbox:
        assert (await mailbox.look("doll")).normal.acked == 4
        assert mailbox.status().messages == 1


# -- Redis refuses


@UNAVAILABLE
async def test_a_redis_without_memory_stores_nothing_and_still_deletes(own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(own_redis.url, BoxLimits(ttl_s=100), clock := Clock()) as mailbox:
        await mailbox.append([entry(n, f"d{n % 20}", b"x" * 1000) for n in range(200)])
        own_redis.command("CONFIG", "SET", "maxmemory", "1")
        pending = mailbox.append(entries(500, 3))
        assert "no memory left" in await down(mailbox)
        assert len(await contents(mailbox, "d1")) == 10
        mailbox.acknowledge("d1", Position(1_000_000))
        await until(lambda: mailbox.counters.acknowledged == 10)
        clock.now += 101
        assert await mailbox.sweep() == 190
        assert not pending.done()
        assert own_redis.command("KEYS", "cocoa:{box}:m:*") == []
        own_redis.command("CONFIG", "SET", "maxmemory", "0")
        assert await pending == [201, 202, 203]
        await ready(mailbox)
        assert await contents(mailbox) == payloads(range(500, 503))
        assert mailbox.status().messages == 3


@pytest.mark.logs("cocoa.mailbox", "^mailbox upkeep refused$")
async def test_a_redis_that_refuses_marks_alone_is_ready_even_if_no_message_comes(own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(own_redis.url) as mailbox:
        await mailbox.append(entries(0, 3))
        refuse = Mock(side_effect=lambda marks: [[b"EVAL", b"return redis.error_reply('refused')", b"0"]] * len(marks))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mailbox._store, "_mark_commands", refuse)
            mailbox.written("doll", Position(2))
            await until(lambda: refuse.call_count >= 5)
            assert (mailbox.status().state, mailbox.counters.failures) == (MailboxState.READY, 0)
        await until(lambda: not mailbox._backlog.has_marks)


async def test_a_redis_without_memory_is_found_out_without_a_message(own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(own_redis.url) as mailbox:
        own_redis.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(RedisStoreFault, match="no memory left"):
            await mailbox._store.try_storing()


@UNAVAILABLE
async def test_a_replica_stores_nothing_and_may_be_read(own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(own_redis.url) as mailbox:
        await mailbox.append(entries(0, 2))
        own_redis.command("CONFIG", "SET", "replica-serve-stale-data", "yes")
        own_redis.command("REPLICAOF", "127.0.0.1", "1")
        pending = mailbox.append(entries(2, 1))
        assert "replica" in await down(mailbox)
        assert await contents(mailbox) == payloads([0, 1])
        own_redis.command("REPLICAOF", "NO", "ONE")
        assert await pending == [3]


@UNAVAILABLE
async def test_a_wrong_password_is_said_and_never_shown(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.start(requirepass="first-secret")
    url = f"redis://:second-secret@127.0.0.1:{own_redis.port}/0"
    async with started(url) as mailbox:
        await until(lambda: bool(lines(caplog, "unavailable")))
        assert mailbox.status().detail == "Redis rejects this user and password"
        own_redis.command("CONFIG", "SET", "requirepass", "second-secret")
        await ready(mailbox)
        assert await mailbox.append(entries(0, 1)) == [1]
        shown = [repr(mailbox), mailbox.status().detail, *(str(vars(record)) for record in caplog.records)]
        assert not any("secret" in text for text in shown)
        assert f"***@127.0.0.1:{own_redis.port}" in repr(mailbox)


@UNAVAILABLE
async def test_no_password_where_one_is_wanted(own_redis: RedisServer) -> None:
    own_redis.start(requirepass="secret")
    async with started(own_redis.url) as mailbox:
        await until(lambda: "requires a password" in mailbox.status().detail)


@UNAVAILABLE
async def test_what_a_user_may_not_do_is_said_before_anything_is_stored(own_redis: RedisServer) -> None:
    own_redis.start()
    own_redis.command("ACL", "SETUSER", "gate", "on", ">word", "~cocoa:*", "+@all", "-xtrim")
    async with started(f"redis://gate:word@127.0.0.1:{own_redis.port}/0") as mailbox:
        await until(lambda: "lacks a permission" in mailbox.status().detail)
        own_redis.command("ACL", "SETUSER", "gate", "+xtrim")
        await ready(mailbox)


@UNAVAILABLE
async def test_a_mailbox_of_another_version_is_left_alone(shared: RedisServer) -> None:
    shared.command("HSET", "cocoa:{box}:meta", "schema", 7, "key", "x" * 32)
    async with started(shared.url) as mailbox:
        await until(lambda: "version 7" in mailbox.status().detail)
    assert shared.command("HLEN", "cocoa:{box}:meta") == 2


@UNAVAILABLE
@pytest.mark.logs("cocoa.mailbox", "unexpected key type")
async def test_keys_that_are_something_else_are_left_alone(shared: RedisServer) -> None:
    shared.command("SET", "cocoa:{box}:meta", "mine")
    async with started(shared.url) as mailbox:
        await until(lambda: "cocoa:{box}:meta has another type" in mailbox.status().detail)
    assert shared.command("GET", "cocoa:{box}:meta") == b"mine"


# -- what it says


async def test_it_says_what_messages_survive(shared: RedisServer) -> None:
    async with opened(shared.url) as mailbox:
        assert (
            "messages survive the gateway and Redis, except for the last seconds before a power cut"
            in mailbox.status().detail
        )


@pytest.mark.logs("cocoa.mailbox", "mailbox may lose messages")
async def test_a_redis_that_loses_messages_is_cautioned_against(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.start(appendonly="no", maxmemory_policy="allkeys-lru")
    async with opened(own_redis.url) as mailbox:
        assert "survive the gateway, but not Redis" in mailbox.status().detail
        reasons = [vars(record)["reason"] for record in lines(caplog, "may lose messages")]
        assert len(reasons) == 2
        assert "maxmemory-policy is allkeys-lru" in reasons[0]
        assert "but not Redis" in reasons[1]


async def test_where_settings_may_not_be_asked_for_nothing_is_said(own_redis: RedisServer) -> None:
    own_redis.start(appendonly="no", maxmemory_policy="allkeys-lru")
    own_redis.command("ACL", "SETUSER", "gate", "on", ">word", "~cocoa:*", "+@all", "-config")
    async with opened(f"redis://gate:word@127.0.0.1:{own_redis.port}/0") as mailbox:
        assert "as far as it persists them" in mailbox.status().detail
        assert await mailbox.append(entries(0, 1)) == [1]


# -- several gateways, and other hands


async def test_two_gateways_share_a_partition(shared: RedisServer) -> None:
    async with opened(shared.url) as one, opened(shared.url) as two:
        assert one.key == two.key
        assert await one.append(entries(0, 4)) == [1, 2, 3, 4]
        assert await two.append(entries(2, 4)) == [None, None, 5, 6]
        assert await one.append(entries(4, 4)) == [None, None, 7, 8]
        two.acknowledge("doll", Position(2))
        assert await two.append(entries(6, 3)) == [None, None, 9]
        assert await contents(one) == payloads(range(2, 9))
        assert (await one.look("doll")).normal.acked == 2
        await asyncio.gather(*(box.append(entries(start, 3)) for start in range(9, 60, 3) for box in (one, two)))
        assert await contents(two) == payloads(range(2, 60))
        assert one.counters.stored + two.counters.stored == 60


async def test_what_redis_has_lost_is_stored_again(shared: RedisServer) -> None:
    """After a power cut Redis may lack the last second, so the gateway must not rely on its memory."""
    async with opened(shared.url) as mailbox:
        await mailbox.append(entries(0, 2))
        await mailbox.append(entries(2, 2))
        assert shared.command("RPOP", f"cocoa:{{box}}:seen:{SOURCE}") is not None
        assert await mailbox.append(entries(0, 5)) == [None, None, 5, 6, 7]


@pytest.mark.logs("cocoa.mailbox", "unexpected key type")
async def test_a_stream_that_somebody_has_deleted_is_missed_and_not_waited_for(shared: RedisServer) -> None:
    async with opened(shared.url) as mailbox:
        await mailbox.append(entries(0, 5))
        shared.command("DEL", "cocoa:{box}:m:doll")
        page = await page_of(mailbox, after=1)
        assert (numbers(page), missed(page, 1), page.last) == ([], 4, 5)
        shared.command("SET", "cocoa:{box}:m:doll", "something else")
        assert await mailbox.append(entries(5, 2)) == [6, 7]
        page = await page_of(mailbox, after=1)
        assert (numbers(page), missed(page, 1)) == ([6, 7], 4)
        assert mailbox.status().messages == 2


async def test_a_device_may_have_any_name(shared: RedisServer) -> None:
    async with opened(shared.url) as mailbox:
        for name in ("", "\ud800", "a\0b", "x" * 1000, "{b}:m:\r\n"):
            await mailbox.append([entry(0, name, source=repr(name))])
            assert await contents(mailbox, name) == payloads([0])


async def test_an_empty_box_costs_no_stream(shared: RedisServer) -> None:
    async with opened(shared.url) as mailbox:
        await mailbox.append(entries(0, 5))
        mailbox.acknowledge("doll", Position(5))
        await mailbox.append(entries(5, 1))
        mailbox.acknowledge("doll", Position(6))
        await until(lambda: mailbox.counters.acknowledged == 6)
        assert shared.command("EXISTS", "cocoa:{box}:m:doll") == 0
