"""Connections to a real Redis, and to the master that real Sentinels name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cocoa_tornado.redis_store.connection import RedisConnection
from cocoa_tornado.redis_store.faults import RedisFault
from cocoa_tornado.redis_store.scripts import PREFIX, Command, Script
from testing.redis_sentinel import MASTER, RedisSentinel
from testing.redis_server import RedisServer

pytestmark = [pytest.mark.redis, pytest.mark.gen_test(timeout=60)]

ECHO = Script("return ARGV[1]", key=PREFIX + b"none")
PING: Sequence[Command] = [[b"PING"]]


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[RedisConnection]:
    connection = RedisConnection(url, [ECHO])
    try:
        yield connection
    finally:
        await connection.close()


async def accepted(connection: RedisConnection, commands: Sequence[Command]) -> list[object]:
    """The replies, once Redis accepts the commands."""
    async with asyncio.timeout(30):
        while True:
            try:
                replies = await connection.exchange(commands)
            except RedisFault:
                pass
            else:
                if not any(isinstance(reply, RedisFault) for reply in replies):
                    return replies
            await asyncio.sleep(0.05)


async def test_a_script_that_redis_has_forgotten_is_loaded_again(redis_server: RedisServer) -> None:
    async with connected(redis_server.url) as connection:
        for _ in range(2):
            redis_server.command("SCRIPT", "FLUSH")
            assert await connection.exchange([ECHO.call(b"a"), ECHO.call(b"b")]) == [b"a", b"b"]


async def test_without_the_private_parts_of_redis_py_it_sends_and_reads_itself(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(redis_server.url) as fast, connected(redis_server.url) as slow:
        commands: Sequence[Command] = [ECHO.call(b"a"), [b"GET"], [b"PING"]]
        *_, pong = replies = await fast.exchange(commands)
        with monkeypatch.context() as without:
            without.setattr("cocoa_tornado.redis_store.connection.pipeline_of", lambda *_: None)
            assert [str(reply) for reply in await slow.exchange(commands)] == [*map(str, replies)]
        assert pong == b"PONG"


def sent_now(connection: RedisConnection, commands: Sequence[Command]) -> asyncio.Future[object] | None:
    """The outcome; None if the commands were not sent."""
    outcome: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    is_sent = connection.exchange_now(commands, connection.process or b"", outcome.set_result)
    return outcome if is_sent else None


async def test_an_exchange_without_a_task_has_the_same_replies(redis_server: RedisServer) -> None:
    async with connected(redis_server.url) as connection:
        assert sent_now(connection, PING) is None  # there is no connection yet
        commands: Sequence[Command] = [ECHO.call(b"a"), [b"GET"], [b"PING"]]
        expected = await connection.exchange(commands)
        assert not connection.exchange_now(commands, b"another process", lambda _: pytest.fail("it was sent"))
        first, second = sent_now(connection, commands), sent_now(connection, PING)
        assert first is not None
        assert second is not None
        replies = await first
        assert isinstance(replies, list)
        assert [str(reply) for reply in replies] == [*map(str, expected)]
        assert isinstance(replies[1], RedisFault)
        assert await second == await connection.exchange(PING) == [b"PONG"]


async def test_an_exchange_without_a_task_says_when_it_has_to_be_repeated(own_redis: RedisServer) -> None:
    """After any of these, exchange() does what is necessary."""
    own_redis.start()
    async with connected(own_redis.url) as connection:
        await connection.exchange(PING)
        own_redis.command("SCRIPT", "FLUSH")
        forgotten = sent_now(connection, [ECHO.call(b"a")])
        assert forgotten is not None
        assert await forgotten is None
        own_redis.pause()
        outstanding = sent_now(connection, PING)
        own_redis.kill()
        assert outstanding is not None
        assert await outstanding is None
        assert sent_now(connection, PING) is None
        own_redis.start()
        await connection.begin_anew()
        assert await connection.exchange([ECHO.call(b"a")]) == [b"a"]


async def test_an_exchange_without_a_task_fails_when_redis_does_not_answer(own_redis: RedisServer) -> None:
    own_redis.start()
    connection = RedisConnection(own_redis.url, reply_s=0.1)
    await accepted(connection, PING)
    own_redis.pause()
    outcomes = [sent_now(connection, PING), sent_now(connection, PING)]
    for outcome in outcomes:
        assert outcome is not None
        assert str(await outcome) == "Redis does not answer"
    own_redis.resume()
    assert await accepted(connection, PING) == [b"PONG"]
    await connection.close()


async def test_what_is_no_reply_ends_the_connection(redis_server: RedisServer) -> None:
    """And the next exchange opens another one."""
    async with connected(redis_server.url) as connection:
        await connection.exchange(PING)
        assert connection._pipeline is not None
        for nonsense in (b"nonsense\r\n", b"+a reply to no command\r\n"):
            pipeline = connection._pipeline
            pipeline.data_received(nonsense)
            assert not pipeline.is_open
            assert await connection.exchange(PING) == [b"PONG"]
            assert connection._pipeline is not pipeline


async def test_nothing_is_sent_to_another_process_than_the_commands_are_for(own_redis: RedisServer) -> None:
    own_redis.start()
    async with connected(own_redis.url) as one, connected(own_redis.url) as two:
        await one.exchange(PING)
        process = one.process
        assert process
        await two.exchange([[b"SET", b"a", b"1"]], process)
        own_redis.stop()
        own_redis.start()
        for connection in (one, two):
            for _ in range(2):
                with pytest.raises(RedisFault, match="restarted or replaced") as raised:
                    await connection.exchange([[b"SET", b"a", b"2"]], process)
                assert raised.value.is_another_process
        assert own_redis.command("GET", "a") == b"1"
        assert one.process == two.process != process
        await one.exchange([[b"SET", b"a", b"3"]], two.process)
        assert own_redis.command("GET", "a") == b"3"


async def test_other_data_in_the_same_process_are_another_process(own_redis: RedisServer) -> None:
    """A master that was a replica meanwhile has the data of another server."""
    own_redis.start(enable_debug_command="yes")
    async with connected(own_redis.url) as one, connected(own_redis.url) as two:
        await one.exchange(PING)
        own_redis.command("DEBUG", "CHANGE-REPL-ID")
        await two.exchange(PING)
        assert one.run == two.run
        with pytest.raises(RedisFault, match="restarted or replaced"):
            await two.exchange(PING, one.process)
        await one.exchange(PING, two.process)


async def test_a_hidden_process_is_empty(own_redis: RedisServer) -> None:
    own_redis.start()
    own_redis.command("ACL", "SETUSER", "gate", "on", ">word", "~*", "+@all", "-info")
    async with connected(f"redis://gate:word@127.0.0.1:{own_redis.port}/0") as connection:
        await connection.exchange(PING)
        assert (connection.run, connection.process) == (b"", b"")


@pytest.mark.parametrize("password", ["word", pytest.param("", marks=pytest.mark.nightly)])
async def test_a_failover_leads_to_the_new_master(own_redis: RedisServer, tmp_path: Path, password: str) -> None:
    secrets = {"requirepass": password, "masterauth": password} if password else {}
    own_redis.start(**secrets)
    replica = RedisServer(tmp_path / "replica", replicaof=f"127.0.0.1 {own_redis.port}", **secrets)
    sentinel = RedisSentinel(tmp_path / "sentinel", own_redis, password)
    try:
        replica.start()
        sentinel.start()
        sentinel.await_replica()
        user_info = f":{password}@" if password else ""
        url = f"redis+sentinel://{user_info}127.0.0.1:1,127.0.0.1:{sentinel.port}/{MASTER}/0"
        async with connected(url) as connection:
            await connection.exchange([[b"SET", b"a", b"1"]])
            assert own_redis.command("GET", "a") == b"1"
            own_redis.command("WAIT", 1, 5000)
            before = connection.process
            own_redis.kill()
            with pytest.raises(RedisFault):
                await connection.exchange(PING)
            await connection.begin_anew()
            assert await accepted(connection, [[b"SET", b"b", b"2"], [b"GET", b"a"]]) == [b"OK", b"1"]
            assert connection.process != before
            assert replica.command("GET", "b") == b"2"
    finally:
        sentinel.close()
        replica.close()


async def test_a_master_that_became_a_replica_is_left(own_redis: RedisServer, tmp_path: Path) -> None:
    """Its connections stay open: only a rejected write shows it."""
    own_redis.start()
    sentinel = RedisSentinel(tmp_path / "sentinel", own_redis)
    try:
        sentinel.start()
        async with connected(f"redis+sentinel://127.0.0.1:{sentinel.port}/{MASTER}") as connection:
            await connection.exchange(PING)
            sentinel.command("SENTINEL", "REMOVE", MASTER)  # else it would make it a master again
            own_redis.command("REPLICAOF", "127.0.0.1", "1")
            [refusal] = await connection.exchange([[b"SET", b"a", b"1"]])
            assert refusal.is_replica
            with pytest.raises(RedisFault, match="does not know this master"):
                await connection.exchange(PING)
    finally:
        sentinel.close()
