"""Presence while Redis fails: what a server does, and the one log line for each change."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cocoa_tornado.presence.actions import Acquire
from cocoa_tornado.presence.grants import Grant, SlotLimits
from cocoa_tornado.presence.membership import Timing
from cocoa_tornado.presence.port import PresenceState, Refused
from cocoa_tornado.presence.redis import RedisPresence
from cocoa_tornado.redis_store.faults import RedisFault
from cocoa_tornado.relay.messages import WakeUp
from cocoa_tornado.relay.port import Fate
from cocoa_tornado.relay.redis import RedisRelay
from testing.redis_sentinel import MASTER, RedisSentinel
from testing.redis_server import RedisServer
from testing.waiting import eventually

from .redis_stand import settle
from .stands import Server

pytestmark = [pytest.mark.redis, pytest.mark.gen_test(timeout=90)]

TIMING = Timing(fence_s=4.0, freeze_s=1.5, beat_s=0.25)
UNAVAILABLE = pytest.mark.logs("cocoa.presence", "presence unavailable")
RELAY = pytest.mark.logs("cocoa.relay", "relay unavailable", optional=True)
FROZEN = pytest.mark.logs("cocoa.presence", "presence frozen")


@asynccontextmanager
async def serving(url: str, timing: Timing = TIMING) -> AsyncIterator[Server]:
    """A server, which may not have joined yet."""
    clock = time.monotonic
    presence = RedisPresence(url, SlotLimits, RedisRelay(url, clock), timing, clock=clock)
    server = Server(presence)
    try:
        yield server
    finally:
        await presence.close(1.0)
        await presence._relay.close(1.0)


def begin(redis: RedisServer) -> None:
    """Start it, in a term that is settled: a test does not wait for leases of nobody."""
    redis.start()
    settle(redis)


async def comes(server: Server, state: PresenceState) -> None:
    await eventually(lambda: server.presence.status().state is state)


@asynccontextmanager
async def ready(redis: RedisServer, timing: Timing = TIMING) -> AsyncIterator[Server]:
    """A server that has joined by this Redis, which it begins."""
    begin(redis)
    async with serving(redis.url, timing) as server:
        await comes(server, PresenceState.READY)
        yield server


async def is_refused(server: Server, device_id: str = "other") -> None:
    with pytest.raises(Refused) as refused:
        await server.presence.claim(device_id)
    assert refused.value.reason == "presence"


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "cocoa.presence"]


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cocoa.presence")


# -- at the start


@UNAVAILABLE
@RELAY
async def test_a_server_may_start_before_redis(own_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(own_redis.url) as server:
        await eventually(lambda: bool(events(caplog)))
        assert server.presence.status().state is PresenceState.JOINING
        assert "no connection to Redis" in server.presence.status().detail
        await is_refused(server)
        overview = server.presence.until_overview()
        assert overview is not None
        own_redis.start()
        await overview
        assert (server.presence.status().state, server.presence.until_overview()) == (PresenceState.READY, None)
        await server.connections.connect()
        assert events(caplog) == ["presence unavailable", "presence settling", "presence ready"]


@UNAVAILABLE
@RELAY
async def test_a_redis_that_requires_a_password_is_named(own_redis: RedisServer) -> None:
    own_redis.start(requirepass="word")
    async with serving(own_redis.url) as server:
        await eventually(lambda: "requires a password" in server.presence.status().detail)
        await is_refused(server)
        own_redis.command("CONFIG", "SET", "requirepass", "")
        await eventually(lambda: server.presence.lease.is_valid(server.presence.clock()))


@UNAVAILABLE
@RELAY
async def test_a_missing_permission_is_named(own_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    own_redis.start()
    own_redis.command("ACL", "SETUSER", "gate", "on", ">word", "~*", "+@all", "-info")
    async with serving(f"redis://gate:word@127.0.0.1:{own_redis.port}/0") as server:
        await eventually(lambda: "lacks a permission: INFO" in server.presence.status().detail)
        own_redis.command("ACL", "SETUSER", "gate", "+info", "-hsetnx")
        await eventually(lambda: "script" in server.presence.status().detail)
        own_redis.command("ACL", "SETUSER", "gate", "+hsetnx")
        await eventually(lambda: server.presence.lease.is_valid(server.presence.clock()))
        assert events(caplog).count("presence unavailable") == 1


# -- while it runs


@pytest.mark.logs("cocoa.presence", "server fenced")
async def test_it_is_foreseen_when_a_device_of_a_killed_server_is_admitted(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names that server."""
    async with ready(own_redis) as server:
        own_redis.command("HSET", "cocoa:{box}:p:info", "killed", '{"name":"gateway-2"}')
        assert server.presence.admits_in() is None
        own_redis.command("HSET", "cocoa:{box}:p:servers", "killed", 7)
        own_redis.command("HSET", "cocoa:{box}:p:h:14989", "doll", "killed:1:1")
        await eventually(lambda: server.presence.admits_in() is not None)
        left_s = server.presence.admits_in()
        assert left_s is not None
        assert left_s < TIMING.fence_s
        while True:
            try:
                await server.connections.connect("doll")
            except Refused:
                await asyncio.sleep(TIMING.beat_s)
            else:
                break
        fenced = [vars(record) for record in caplog.records if record.getMessage() == "server fenced"]
        assert [(each["server"], each["server_name"]) for each in fenced] == [("killed", "gateway-2")]
        assert server.presence.counters.declared_dead == 1


@pytest.mark.logs("cocoa.presence", "holders unreadable")
async def test_a_bucket_of_another_type_holds_up_no_other_device(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with ready(own_redis) as server:
        await server.connections.connect("bear")
        own_redis.command("SET", "cocoa:{box}:p:h:14989", "x")  # that of the doll
        for _ in range(2):
            of_doll, of_bear = server.presence.holders(["doll"]), server.presence.holders(["bear"])
            assert (await of_doll, list(await of_bear)) == ({}, ["bear"])
        doll, cat = (asyncio.ensure_future(server.connections.connect(name)) for name in ("doll", "cat"))
        with pytest.raises(Refused, match="presence"):
            await doll
        await cat
        assert events(caplog).count("holders unreadable") == 1


@UNAVAILABLE
@RELAY
@pytest.mark.logs("cocoa.presence", "lease lost")
@pytest.mark.logs("cocoa.presence", "presence frozen", optional=True)
async def test_a_server_goes_on_once_a_key_that_another_program_has_overwritten_is_gone(own_redis: RedisServer) -> None:
    async with ready(own_redis) as server:
        presence, servers = server.presence, "cocoa:{box}:p:servers"
        assert isinstance(presence, RedisPresence)
        epoch = presence.lease.server
        own_redis.command("HSET", servers, "theirs", "no beat")
        await eventually(lambda: "unreadable" in presence._member.fault)
        own_redis.command("HDEL", servers, "theirs")
        await eventually(lambda: not presence._member.fault)
        own_redis.command("SET", servers, "mine")
        await eventually(lambda: "another type" in presence._relay.status().detail)
        own_redis.command("DEL", servers)
        await eventually(lambda: presence.lease.server != epoch)
        await comes(server, PresenceState.READY)
        await server.connections.connect("doll")


@pytest.mark.logs("cocoa.presence", "admission failed")
async def test_a_verdict_that_is_not_taken_costs_that_connection_only(own_redis: RedisServer) -> None:
    def fail(verdict: object) -> None:
        raise OSError("a mistake of ours")

    async with ready(own_redis) as server:
        server.presence.begin_claim("doll", fail)
        await server.connections.connect("bear")
        await server.connections.connect("doll")


@pytest.mark.logs("cocoa.relay", "relay unavailable")
async def test_a_server_that_may_not_send_says_so(own_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async with ready(own_redis) as server:
        assert server.presence.status().reaches_others
        relay = server.presence._relay  # type: ignore[attr-defined]  # of RedisPresence
        inbox = f"cocoa:{{box}}:p:in:{relay.server}"
        own_redis.command("XADD", inbox, "0-1", "from", "another program")
        own_redis.command("ACL", "SETUSER", "default", "-xadd")
        sent = relay.send(relay.server, WakeUp(("doll",)))
        await eventually(lambda: not server.presence.status().reaches_others)
        assert "lacks a permission" in server.presence.status().detail
        assert own_redis.command("EXISTS", inbox) == 1  # it was not deleted for that
        own_redis.command("ACL", "SETUSER", "default", "+xadd")
        assert await sent is Fate.ACCEPTED
        await eventually(lambda: server.presence.status().reaches_others)
        lines = [record.getMessage() for record in caplog.records if record.name == "cocoa.relay"]
        assert lines[:1] == ["relay unavailable"]


async def test_scripts_that_redis_forgets_are_loaded_again(own_redis: RedisServer) -> None:
    async with ready(own_redis) as server:
        lease = server.presence.lease
        for number in range(3):
            own_redis.command("SCRIPT", "FLUSH")
            await server.connections.connect(f"doll-{number}")
        assert server.presence.lease is lease


@UNAVAILABLE
@FROZEN
@RELAY
async def test_a_redis_that_does_not_answer_freezes_the_server_which_resumes_with_it(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with ready(own_redis) as server:
        held, lease = await server.connections.connect(), server.presence.lease
        own_redis.pause()
        await comes(server, PresenceState.FROZEN)
        assert not held.lease.is_valid(server.presence.clock())
        until_lease = server.presence.until_lease()
        assert until_lease is not None
        await is_refused(server)
        looked_up = server.presence.holders(["doll", "other"])
        own_redis.resume()
        await comes(server, PresenceState.READY)
        assert held.lease.is_valid(server.presence.clock())
        await until_lease
        assert server.presence.until_lease() is None
        assert list(await looked_up) == ["doll"]
        assert (server.connections.open, server.connections.resumptions) == ([held], 1)
        assert server.presence.lease is lease
        await server.connections.connect("other")
        changes = events(caplog)[1:]
        assert changes == ["presence unavailable", "presence frozen", "presence ready"]


@pytest.mark.nightly
@UNAVAILABLE
@FROZEN
@RELAY
@pytest.mark.logs("cocoa.presence", "presence cut")
async def test_after_the_cut_no_connection_is_open(own_redis: RedisServer) -> None:
    async with ready(own_redis, replace(TIMING, cut_s=2.0)) as server:
        await server.connections.connect()
        own_redis.pause()
        await eventually(lambda: server.connections.open == [])
        own_redis.resume()
        await comes(server, PresenceState.READY)
        await server.connections.connect()


@UNAVAILABLE
@RELAY
async def test_a_redis_that_restarts_keeps_every_connection(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with ready(own_redis) as server:
        held = await server.connections.connect()
        own_redis.stop()
        own_redis.start()
        await eventually(lambda: bool(server.connections.regrants))
        [(before, after)] = server.connections.regrants
        assert before == held
        assert after.generation > held.generation
        await is_refused(server)  # until the leases of the last term have ended
        await comes(server, PresenceState.READY)
        assert server.connections.open == [after]
        await server.connections.connect("other")
        assert events(caplog)[1:] == ["presence unavailable", "presence settling", "presence ready"]


@UNAVAILABLE
@RELAY
async def test_a_connection_is_claimed_again_until_redis_accepts_that(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(own_redis) as server:
        await server.connections.connect()
        assert isinstance(server.presence, RedisPresence)
        take, rejected = server.presence._take_claim, list[Acquire]()

        def reject(acquire: Acquire, answer: object) -> None:
            """As if Redis had no memory, at first."""
            if len(rejected) < 2:
                rejected.append(acquire)
                answer = RedisFault("out of memory")
            take(acquire, answer)

        monkeypatch.setattr(server.presence, "_take_claim", reject)
        own_redis.stop()
        own_redis.start()
        await eventually(lambda: bool(server.connections.regrants))
        assert len(rejected) == 2
        await eventually(lambda: server.presence.until_lease() is None)


@UNAVAILABLE
@RELAY
async def test_what_a_redis_has_lost_with_its_tail_is_claimed_again(own_redis: RedisServer) -> None:
    begin(own_redis)
    files, copy = own_redis.folder / "appendonlydir", own_redis.folder / "copy"
    async with serving(own_redis.url) as a, serving(own_redis.url) as b:
        for server in (a, b):
            await comes(server, PresenceState.READY)
        shutil.copytree(files, copy)
        held = await a.connections.connect()
        own_redis.kill()
        shutil.rmtree(files)
        copy.rename(files)
        own_redis.start()
        await eventually(lambda: bool(a.connections.regrants))
        for server in (a, b):
            await comes(server, PresenceState.READY)
        [(_, again)] = a.connections.regrants
        assert again.generation > held.generation
        found = (await b.presence.holders(["doll"]))["doll"]
        assert [holder.generation for holder in found] == [again.generation]
        with pytest.raises(Refused, match="device"):
            await b.presence.claim("doll")


@pytest.mark.nightly
@UNAVAILABLE
@RELAY
@pytest.mark.logs("cocoa.presence", "presence frozen", optional=True)
@pytest.mark.logs("cocoa.presence", "two servers may hold a device")
async def test_after_a_failover_devices_are_held_at_the_new_master(own_redis: RedisServer, tmp_path: Path) -> None:
    begin(own_redis)
    replica = RedisServer(tmp_path / "replica", replicaof=f"127.0.0.1 {own_redis.port}")
    sentinel = RedisSentinel(tmp_path / "sentinel", own_redis)
    try:
        replica.start()
        sentinel.start()
        sentinel.await_replica()
        async with serving(f"redis+sentinel://127.0.0.1:{sentinel.port}/{MASTER}") as server:
            await comes(server, PresenceState.READY)
            held = await server.connections.connect()
            own_redis.kill()
            await eventually(lambda: bool(server.connections.regrants))
            await comes(server, PresenceState.READY)
            assert [grant.device_id for grant in server.connections.open] == [held.device_id]
            assert replica.command("HGET", "cocoa:{box}:p:meta", "settled") == b"1"
    finally:
        sentinel.close()
        replica.close()


# -- Redis refuses


def run_out_of_memory(redis: RedisServer) -> Callable[[], None]:
    redis.command("CONFIG", "SET", "maxmemory", "1")
    return lambda: redis.command("CONFIG", "SET", "maxmemory", "0")


def forbid_claims(redis: RedisServer) -> Callable[[], None]:
    redis.command("ACL", "SETUSER", "default", "-hset")
    return lambda: redis.command("ACL", "SETUSER", "default", "+hset")


@pytest.mark.logs("cocoa.presence", "claims rejected")
@pytest.mark.logs("cocoa.relay", "relay unavailable", optional=True)
async def test_a_redis_without_memory_admits_nobody_and_keeps_who_is_connected(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with ready(own_redis) as server:
        held = await server.connections.connect()
        relent = run_out_of_memory(own_redis)
        for _ in range(3):
            await is_refused(server)
        beaten_at = server.presence.lease.until
        await eventually(lambda: server.presence.lease.until > beaten_at)
        assert server.connections.open == [held]
        server.connections.end(held)  # released claims are removed nevertheless
        await eventually(lambda: own_redis.command("KEYS", "cocoa:{box}:p:h:*") == [])
        relent()
        await server.connections.connect("other")
        assert events(caplog)[1:] == ["claims rejected", "claims accepted"]


@pytest.mark.nightly
@UNAVAILABLE
@FROZEN
@RELAY
@pytest.mark.logs("cocoa.presence", "claims rejected")
async def test_a_redis_that_forbids_a_command_admits_nobody(own_redis: RedisServer) -> None:
    async with ready(own_redis) as server:
        held: Grant = await server.connections.connect()
        relent = forbid_claims(own_redis)
        await is_refused(server)
        await comes(server, PresenceState.FROZEN)
        assert "lacks a permission" in server.presence.status().detail
        relent()
        await comes(server, PresenceState.READY)
        assert server.connections.open == [held]
        await asyncio.wait_for(server.connections.connect("other"), 30)
