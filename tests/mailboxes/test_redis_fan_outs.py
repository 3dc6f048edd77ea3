"""Fan-outs and options in the Redis mailbox beyond the port: lost replies, several gateways, faults of Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

import pytest

from cocoa_tornado.mailboxes.port import FanOut, FanOutStep, Mailbox, MailboxState
from cocoa_tornado.mailboxes.redis_scripts import FAN_OUT
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.audiences import ALL, of_group
from cocoa_tornado.rules.box import BoxLimits, LaneName, Position
from testing.redis_server import RedisServer

from .redis_proxy import Proxy
from .stands import SOURCE, Clock, contents, entries, entry, missed, numbers, page_of, payloads, until
from .test_redis import UNAVAILABLE, down, opened

pytestmark = [pytest.mark.redis, pytest.mark.gen_test(timeout=90)]

KITCHEN = of_group("kitchen")
FOREIGN = pytest.mark.logs("cocoa.mailbox", "unexpected key type")
MANY = [f"d{n}" for n in range(350)]  # more than one step


@pytest.fixture
def shared(redis_server: RedisServer) -> Iterator[RedisServer]:
    """The session's Redis, for tests that leave it running."""
    yield redis_server
    redis_server.command("FLUSHALL")


def key(name: str) -> str:
    return f"cocoa:{{box}}:{name}"


def fan_out(offset: int, payload: bytes | None = None, options: Options | None = None, excluded: str = "") -> FanOut:
    content = payload or b'{"n":%d}' % offset
    return FanOut(KITCHEN, frozenset(excluded.split()), content, 1_000 + offset, SOURCE, offset, options)


async def join(mailbox: Mailbox, device_ids: Iterable[str]) -> None:
    await asyncio.gather(*(mailbox.join(device_id, frozenset((ALL, KITCHEN))) for device_id in device_ids))


class Steps(list[FanOutStep]):
    """The steps that mailboxes have reported."""

    def __init__(self, *mailboxes: Mailbox) -> None:
        for mailbox in mailboxes:
            mailbox.watch_fan_outs(self.append)

    async def complete(self, count: int = 1) -> None:
        await until(lambda: sum(step.is_last for step in self) == count)

    @property
    def given(self) -> list[tuple[str, int]]:
        """Every device and its number, in no order."""
        return sorted(pair for step in self for pair in (step.numbers or {}).items())


async def the_one_message_of(mailbox: Mailbox, device_id: str) -> tuple[str, int]:
    [message] = (await page_of(mailbox, device_id)).messages
    return device_id, message.number


# -- replies that are lost


@pytest.mark.logs("cocoa.mailbox", "mailbox unavailable", optional=True)  # while it reconnects
@pytest.mark.parametrize("losing", [1, 3])
async def test_a_step_whose_reply_was_lost_is_stored_once_and_reported_with_its_numbers(
    shared: RedisServer, losing: int
) -> None:
    async with Proxy(shared) as proxy, opened(proxy.url) as mailbox:
        await join(mailbox, MANY)
        steps = Steps(mailbox)
        proxy.losing, proxy.only = losing, FAN_OUT.call()[1]
        await mailbox.append([fan_out(0, options=Options(id="x"), excluded="d7 d8")])
        await steps.complete()
        assert proxy.lost == losing
        members = sorted({*MANY} - {"d7", "d8"})
        assert steps.given == [await the_one_message_of(mailbox, device_id) for device_id in members]
        assert steps[-1].recipients == mailbox.counters.stored == mailbox.status().messages == len(members)
        assert {step.options for step in steps} == {Options(id="x")}


@pytest.mark.logs("cocoa.mailbox", "mailbox unavailable", optional=True)  # while it reconnects
async def test_a_group_whose_reply_was_lost_reports_the_steps_that_were_stored_with_it(shared: RedisServer) -> None:
    async with Proxy(shared) as proxy, opened(proxy.url) as mailbox:
        await join(mailbox, "ab")
        steps = Steps(mailbox)
        proxy.losing, proxy.only = 1, b'{"n":0}'
        assert await mailbox.append([fan_out(0), entry(1, "a", options=Options(priority="low"))]) == [0, 2]
        assert proxy.lost == 1
        await steps.complete()
        assert [device_id for device_id, _ in steps.given] == ["a", "b"]
        assert mailbox.counters.stored == mailbox.status().messages == 3


# -- several gateways


async def test_two_gateways_carry_out_one_fan_out_and_double_nothing(shared: RedisServer) -> None:
    async with opened(shared.url) as one, opened(shared.url) as two:
        await join(one, MANY)
        steps = Steps(one, two)
        await one.append([fan_out(0), entry(1, MANY[-1])])
        while not any(step.is_last for step in steps):
            await two.sweep()
        await two.append([entry(2, "other")])
        stored = [(device_id, (await page_of(one, device_id)).messages[0].number) for device_id in MANY]
        assert steps.given == sorted(stored)
        assert await contents(two, MANY[-1]) == payloads([0, 1])
        assert (await two.look("other")).normal.last > 0
        assert one.counters.stored + two.counters.stored == len(MANY) + 2


async def test_a_gateway_goes_on_with_the_fan_out_of_another_that_was_killed(shared: RedisServer) -> None:
    keyed = Options(priority="high", ttl_s=60, collapse_key="k", id="é")
    async with opened(shared.url) as one:
        await join(one, MANY)
        await one.append([fan_out(0, b"x" * 3000, keyed, excluded="d3")])
        await one.close(0.0)
    async with opened(shared.url) as two:
        steps = Steps(two)
        await steps.complete()
        step = steps[-1]
        about = (step.audience, step.excluded, step.payload, step.timestamp_ms, step.options, step.recipients)
        assert about == (KITCHEN, frozenset(["d3"]), b"x" * 3000, 1_000, keyed, len(MANY) - 1)
        assert await contents(two, "d349", lane="high") == [b"x" * 3000]
        assert two.status().messages == len(MANY) - 1


# -- where it is stored


async def test_a_large_payload_is_stored_once_and_counts_in_full_in_each_box(shared: RedisServer) -> None:
    async with opened(shared.url, BoxLimits(ttl_s=1000, max_bytes=5000)) as mailbox:
        await join(mailbox, MANY)
        steps = Steps(mailbox)
        await mailbox.append([fan_out(0, b"x" * 3000)])
        await steps.complete()
        [payload_key] = shared.command("KEYS", key("p:*"))
        assert 2_000_000 < shared.command("PTTL", payload_key) < 10**8
        assert shared.command("STRLEN", payload_key) == 3000
        assert mailbox.status().size_bytes == 3000 * len(MANY)
        assert shared.command("KEYS", key("[fd]:*")) == shared.command("LRANGE", key("fans"), 0, -1) == []
        # A gateway of the previous release reads what it finds in the stream, and must not send rubbish.
        [(_, fields)] = shared.command("XRANGE", key("m:d0"), "-", "+")
        assert fields[b"payload"] == b'{"type":"gap","missed":1}'
        await mailbox.append([entry(1, "d0", b"y" * 2500)])
        assert (await contents(mailbox, "d0"), missed(await page_of(mailbox, "d0"))) == ([b"y" * 2500], 1)
        mailbox.acknowledge("d1", Position((await mailbox.look("d1")).normal.last, mailbox.epoch))
        await until(lambda: mailbox.counters.acknowledged == 1)
        assert mailbox.status().size_bytes == 3000 * (len(MANY) - 2) + 2500
        shared.command("DEL", payload_key)
        page = await page_of(mailbox, "d2")
        assert (numbers(page), missed(page, page.base)) == ([], 1)


async def test_an_empty_box_has_no_streams_and_no_indexes(shared: RedisServer) -> None:
    async with opened(shared.url, clock=(clock := Clock())) as mailbox:
        for priority in ("normal", "low", "high"):
            options = Options(priority=priority, collapse_key=priority)
            soon = int(clock.now * 1000) + 60_000
            await mailbox.append([entry(len(priority), options=options, expires_ms=soon)])
        assert len(shared.command("KEYS", key("[mhxlk]:doll"))) == 5
        mailbox.acknowledge("doll", Position(2, mailbox.epoch, 1))
        await until(lambda: mailbox.counters.acknowledged == 3)
        assert shared.command("KEYS", key("[mhxlk]:doll")) == []
        assert shared.command("HGET", key("b:doll"), "bytes") == b"0"


async def test_the_index_of_boxes_that_are_due_comes_before_every_end_of_a_ttl(shared: RedisServer) -> None:
    async with opened(shared.url, BoxLimits(ttl_s=1000), clock := Clock()) as mailbox:
        now_ms = int(clock.now * 1000)
        ends = [now_ms + 50_000, now_ms + 20_000, now_ms + 90_000]
        await mailbox.append([entry(0), *(entry(n, expires_ms=end) for n, end in enumerate(ends, 1))])
        for end, left in zip(sorted(ends), (3, 2, 1), strict=True):
            clock.now = end / 1000
            assert await mailbox.sweep() == 0
            clock.now += 0.01
            assert await mailbox.sweep() == 1
            assert mailbox.status().messages == left
        clock.now = now_ms / 1000 + 1000
        assert await mailbox.sweep() == 1


# -- Redis refuses, or has something else


@UNAVAILABLE
async def test_without_memory_a_fan_out_and_a_join_are_stored_whole_or_not_at_all(own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(own_redis.url) as mailbox:
        await join(mailbox, MANY)
        steps = Steps(mailbox)
        own_redis.command("CONFIG", "SET", "maxmemory", "1")
        before = sorted(own_redis.command("KEYS", "*"))
        joined, appended = mailbox.join("late", frozenset((ALL, KITCHEN))), mailbox.append([fan_out(0)])
        assert "no memory left" in await down(mailbox)
        assert sorted(own_redis.command("KEYS", "*")) == before
        assert own_redis.command("ZSCORE", key(f"a:{KITCHEN}"), "late") is None
        own_redis.command("CONFIG", "SET", "maxmemory", "0")
        await asyncio.gather(joined, appended)
        await steps.complete()
        assert steps[-1].recipients == len(MANY) + 1


@FOREIGN
@pytest.mark.parametrize("name", ["h", "x", "l", "k", "i"])
async def test_a_foreign_key_beside_a_box_costs_its_device_alone(shared: RedisServer, name: str) -> None:
    options = (
        Options(priority="high", collapse_key="k", id="x")
        if name == "h"
        else Options(priority="low", collapse_key="k", id="x")
    )
    lane: LaneName = "high" if name == "h" else "normal"
    async with opened(shared.url, BoxLimits(max_messages=3, ttl_s=1000), clock := Clock()) as mailbox:
        soon = int(clock.now * 1000) + 5_000
        shared.command("SET", key(f"{name}:doll"), "mine")
        batch = [entry(0), entry(1, options=options, expires_ms=soon), entry(2, "other", options=options)]
        # A new box deletes what is in its place; so here it is put there afterwards.
        await mailbox.append(batch)
        shared.command("DEL", key(f"{name}:doll"))
        shared.command("SET", key(f"{name}:doll"), "mine")
        again = [
            entry(n, device_id, options=options._replace(id=f"{n}")) for n in (3, 4) for device_id in ("doll", "other")
        ]
        await mailbox.append([item._replace(offset=10 + at) for at, item in enumerate(again)])
        assert await contents(mailbox, "other", lane=lane) == payloads([4])
        assert (await mailbox.look("doll")).last is not None
        mailbox.acknowledge("doll", Position(1, mailbox.epoch))
        await until(lambda: mailbox.counters.acknowledged >= 1)
        clock.now += 2000
        for _ in range(3):
            await mailbox.sweep()
        assert await contents(mailbox, "other", lane=lane) == []
        assert (mailbox.status().state, mailbox.counters.failures) == (MailboxState.READY, 0)


@FOREIGN
@pytest.mark.parametrize("name", ["members", "known", "fans", f"a:{KITCHEN}"])
async def test_a_foreign_key_among_the_members_stops_nothing_else(shared: RedisServer, name: str) -> None:
    async with opened(shared.url, BoxLimits(ttl_s=1000, member_ttl_s=2000), clock := Clock()) as mailbox:
        shared.command("SET", key(name), "mine")
        await join(mailbox, MANY)
        steps = Steps(mailbox)
        await mailbox.append([entry(0, "d0"), fan_out(1), entry(2, "d0"), entry(3, "d1")])
        await steps.complete()
        if name != f"a:{KITCHEN}":
            assert steps[-1].recipients == len(MANY)
            assert await contents(mailbox, "d0") == payloads([0, 1, 2])
        else:
            assert await contents(mailbox, "d0") == payloads([0, 2])
        clock.now += 3000
        while await mailbox.sweep():
            pass
        assert mailbox.status().messages == 0
        assert shared.command("GET", key(name)) == b"mine"
        assert (mailbox.status().state, mailbox.counters.failures) == (MailboxState.READY, 0)


@pytest.mark.logs("cocoa.mailbox", "unexpected key type", optional=True)
@pytest.mark.parametrize("name", ["f", "d", "p"])
@pytest.mark.parametrize("is_foreign", [False, True])
async def test_a_fan_out_that_something_else_has_damaged_stops_no_other(
    shared: RedisServer, name: str, is_foreign: bool
) -> None:
    async with opened(shared.url) as mailbox:
        await join(mailbox, MANY)
        await mailbox.append([fan_out(0, b"x" * 2000, excluded="d349")])
        await mailbox.close(0.0)
    [found] = shared.command("KEYS", key(f"{name}:*"))
    shared.command("DEL", found)
    if is_foreign:
        shared.command("HSET" if name != "f" else "SET", found, *(("a", "b") if name != "f" else ("mine",)))
    async with opened(shared.url) as mailbox:
        steps = Steps(mailbox)
        await mailbox.append([FanOut(ALL, frozenset(), b"{}", 5, SOURCE, 5), entry(6, "d349")])
        await until(lambda: any(step.is_last and step.audience == ALL for step in steps))
        assert (await contents(mailbox, "d348"))[-1] == b"{}"
        # If Redis cannot remember what was pulled forward, that comes in its turn.
        last = (await contents(mailbox, "d349"))[-3:]
        assert [payload for payload in last if len(payload) < 2000] == [b"{}", *payloads([6])]
        assert mailbox.counters.failures == 0


@pytest.mark.logs("cocoa.mailbox", "mailbox emptied")
async def test_members_that_join_after_the_description_is_gone_get_what_is_sent_then(own_redis: RedisServer) -> None:
    own_redis.start()
    async with opened(own_redis.url) as mailbox:
        await join(mailbox, "ab")
        own_redis.command("DEL", key("meta"))
        await mailbox.append(entries(0, 1, "a"))
        await join(mailbox, "c")
        steps = Steps(mailbox)
        await mailbox.append([fan_out(1)])
        await steps.complete()
        assert [device_id for device_id, _ in steps.given] == ["a", "b", "c"]
