"""The promises of the relay in Redis beyond its port: losses in Redis, its outages, and both at once."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

from cocoa_tornado.relay import redis, wire
from cocoa_tornado.relay.messages import Forward, ForwardedMessage, WakeUp
from cocoa_tornado.relay.port import Fate, Relay, RelayLimits, RelayState, RelayStatus
from cocoa_tornado.relay.redis import RedisRelay
from cocoa_tornado.relay.redis_lua import SEND, Posted, send_command
from cocoa_tornado.rules.claims import bucket_of
from testing.redis_server import RedisServer
from testing.waiting import eventually

from .stands import SERVERS, Inbox, RedisStand, forward

pytestmark = [pytest.mark.gen_test(timeout=60), pytest.mark.redis]

PREFIX = "cocoa:{box}:p:"
LOST = "relay messages lost"


@pytest.fixture
def stand(redis_server: RedisServer, io_loop: IOLoop) -> Iterator[RedisStand]:
    made = RedisStand(redis_server)
    yield made
    io_loop.run_sync(made.close)


async def two(stand: RedisStand) -> tuple[Relay, Relay, Inbox]:
    a, b = await stand.open(2)
    a.join("a")
    b.join("b")
    inbox = Inbox(b)
    assert await a.send("b", forward(1)) is Fate.ACCEPTED
    await eventually(lambda: len(inbox.arrived) == 1)
    return a, b, inbox


@pytest.mark.logs("cocoa.relay", LOST)
async def test_a_deleted_inbox_is_noticed_although_nothing_else_is_sent(
    stand: RedisStand, redis_server: RedisServer
) -> None:
    _, b, inbox = await two(stand)
    redis_server.command("HINCRBY", f"{PREFIX}q:b", "sequence", 1)  # as if an entry had been sent, and deleted
    await eventually(lambda: inbox.losses == 1)
    assert b.counters.losses == 1


@pytest.mark.logs("cocoa.relay", LOST)
@pytest.mark.parametrize("keys", [("q:b",), ("in:b", "q:b")], ids=["counts", "all"])
async def test_an_inbox_whose_keys_were_evicted_works_again_after_the_loss(
    stand: RedisStand, redis_server: RedisServer, keys: tuple[str, ...]
) -> None:
    a, _, inbox = await two(stand)
    redis_server.command("DEL", *(PREFIX + key for key in keys))
    await eventually(lambda: inbox.losses >= 1)
    assert await a.send("b", forward(2)) is Fate.ACCEPTED
    await eventually(lambda: len(inbox.arrived) == 2)


@pytest.mark.logs("cocoa.relay", LOST, optional=True)
async def test_an_inbox_that_another_program_has_overwritten_is_replaced(
    stand: RedisStand, redis_server: RedisServer
) -> None:
    a, _, inbox = await two(stand)
    for key in ("in:b", "q:b", "q:a"):
        redis_server.command("SET", PREFIX + key, "mine")
    await eventually(lambda: inbox.losses >= 1)
    assert await a.send("b", forward(2)) is Fate.ACCEPTED
    await eventually(lambda: len(inbox.arrived) == 2)


@pytest.mark.logs("cocoa.relay", LOST)
async def test_an_inbox_whose_entries_were_removed_has_room_again(
    stand: RedisStand, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "BLOCK_MS", 10)
    a, b = await stand.open(2, RelayLimits(max_messages=3))
    a.join("a")
    b.join("b")
    inbox = Inbox(b)
    assert await a.send("b", forward(1)) is Fate.ACCEPTED
    await eventually(lambda: len(inbox.arrived) == 1)
    counts = ("sequence", "messages", "bytes")
    redis_server.command("HSET", f"{PREFIX}q:b", *(word for name in counts for word in (name, 3)))  # two more were sent
    await eventually(lambda: inbox.losses == 1)
    noticed_at = b.last_read_at
    await eventually(lambda: b.last_read_at > noticed_at)  # it has said once more what it has taken
    assert await a.send("b", forward(2)) is Fate.ACCEPTED
    await eventually(lambda: len(inbox.arrived) == 2)


@pytest.mark.logs("cocoa.relay", "relay unavailable")
async def test_reading_goes_on_once_a_key_of_presence_has_its_type_again(
    stand: RedisStand, redis_server: RedisServer
) -> None:
    a, b, inbox = await two(stand)
    redis_server.command("RENAME", SERVERS, "kept")
    redis_server.command("SET", SERVERS, "mine")
    await eventually(lambda: b.status() == RelayStatus(RelayState.CONNECTING, "a key has another type"))
    redis_server.command("RENAME", "kept", SERVERS)
    await eventually(lambda: b.status().state is RelayState.READY)
    assert await a.send("b", forward(2)) is Fate.ACCEPTED
    await eventually(lambda: len(inbox.arrived) == 2)


@pytest.mark.logs("cocoa.relay", "relay messages dropped")
async def test_an_error_in_handing_over_does_not_end_the_reading(
    stand: RedisStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _, inbox = await two(stand)

    failed: list[bytes] = []

    def fail(data: bytes) -> None:
        monkeypatch.undo()
        failed.append(data)
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(wire, "decode", fail)
    assert await a.send("b", forward(2)) is Fate.ACCEPTED
    await eventually(lambda: bool(failed))
    assert await a.send("b", forward(3)) is Fate.ACCEPTED
    await eventually(lambda: inbox.messages == [forward(1), forward(3)])


@pytest.mark.logs("cocoa.relay", "relay failed")
async def test_an_error_in_sending_costs_what_was_being_sent_and_is_noticed(
    stand: RedisStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _, inbox = await two(stand)
    monkeypatch.setattr(redis, "SEND_MOST", 1)

    def fail(*arguments: object) -> None:
        monkeypatch.undo()
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(redis, "send_command", fail)
    sent = [a.send("b", forward(2)), a.send("b", forward(3))]
    assert [await fate for fate in sent] == [Fate.LOST, Fate.ACCEPTED]
    assert a.status().state is RelayState.READY
    await eventually(lambda: inbox.messages == [forward(1), forward(3)])


@pytest.mark.logs("cocoa.relay", LOST)
async def test_a_repeated_send_has_no_effect_and_the_same_answer(stand: RedisStand, redis_server: RedisServer) -> None:
    _, _, inbox = await two(stand)
    redis_server.command("HSET", f"{PREFIX}servers", "c", 0)
    messages = [Posted("b", 1, 100, b"not a message"), Posted("gone", 1, 1, b""), Posted("b", 99_999, 1, b"")]
    command = send_command("c", 7, RelayLimits(), messages)
    first = redis_server.command("EVAL", SEND.text, *command[2:])
    assert first == [b"sent", b"ano"]
    assert redis_server.command("EVAL", SEND.text, *command[2:]) == first
    await eventually(lambda: inbox.losses == 1)
    assert redis_server.command("HGET", f"{PREFIX}q:b", "sequence") == b"2"


async def test_an_unreadable_message_is_skipped_and_counted(stand: RedisStand, redis_server: RedisServer) -> None:
    a, b, inbox = await two(stand)
    redis_server.command("XADD", f"{PREFIX}in:b", "2-0", "s", "a", "t", "2 200", "m", "from a later release")
    redis_server.command("HSET", f"{PREFIX}q:b", "sequence", 2, "messages", 2, "bytes", 200)
    assert await a.send("b", forward(2)) is Fate.ACCEPTED
    await eventually(lambda: len(inbox.arrived) == 2)
    assert (b.counters.skipped, b.counters.losses) == (1, 0)


async def test_an_epoch_that_has_ended_in_redis_neither_sends_nor_receives(
    stand: RedisStand, redis_server: RedisServer
) -> None:
    a, b, inbox = await two(stand)
    redis_server.command("HDEL", f"{PREFIX}servers", "b")
    assert await a.send("b", forward(2)) is Fate.NO_SERVER
    assert await b.send("a", forward(3)) is Fate.CLOSED
    b.join("b2")
    assert await a.send("b2", forward(4)) is Fate.ACCEPTED
    await eventually(lambda: len(inbox.arrived) == 2)
    assert inbox.messages == [forward(1), forward(4)]


async def test_an_idle_inbox_leaves_nothing_in_redis(stand: RedisStand, redis_server: RedisServer) -> None:
    await two(stand)
    assert redis_server.command("XLEN", f"{PREFIX}in:b") == 0


async def test_when_the_inbox_was_last_read_is_known(stand: RedisStand) -> None:
    (a,) = await stand.open(1)
    a.join("a")
    joined_at = a.last_read_at
    await eventually(lambda: a.last_read_at > joined_at)


async def test_no_inbox_waits_to_be_read_when_the_epoch_is_over(stand: RedisStand, redis_server: RedisServer) -> None:
    """Otherwise a server that was cut off between two commands of its reading, and fenced, would never beat again."""
    (a,) = await stand.open(1)
    a.join("a")
    redis_server.command("HDEL", f"{PREFIX}servers", "a")
    await eventually(lambda: a.last_read_at == math.inf)
    redis_server.command("HSET", f"{PREFIX}servers", "b", 0)
    a.join("b")
    await eventually(lambda: a.last_read_at < math.inf)


@pytest.mark.logs("cocoa.relay", "relay unavailable")
async def test_messages_that_are_sent_while_redis_is_away_are_sent_once_when_it_is_back(
    stand: RedisStand, redis_server: RedisServer
) -> None:
    a, _, inbox = await two(stand)
    redis_server.pause()
    try:
        sent = [a.send("b", forward(n)) for n in (2, 3)] + [a.send("b", WakeUp(("doll",)))]
        await eventually(lambda: a.status().state is RelayState.CONNECTING)
    finally:
        redis_server.resume()
    assert [await fate for fate in sent] == [Fate.ACCEPTED] * 3
    await eventually(lambda: len(inbox.arrived) == 4)
    await eventually(lambda: a.status().state is RelayState.READY)
    await asyncio.sleep(0)
    assert inbox.messages == [forward(1), forward(2), forward(3), WakeUp(("doll",))]


async def test_no_more_waits_for_a_server_than_its_inbox_may_hold(stand: RedisStand) -> None:
    (a,) = await stand.open(1, RelayLimits(max_messages=3))
    a.join("a")
    sent = [a.send(server, forward(1, 2)) for server in ("x", "x", "y")]
    assert sent[1].result() is Fate.OVERFLOW
    assert [await fate for fate in sent] == [Fate.NO_SERVER, Fate.OVERFLOW, Fate.NO_SERVER]


async def test_messages_for_holders_wait_however_many_they_are(stand: RedisStand, redis_server: RedisServer) -> None:
    (a,) = await stand.open(1, RelayLimits(max_messages=3))
    a.join("a")
    redis_server.command("HSET", f"{PREFIX}meta", "term", "7", "run", "run")
    sent = [a.send_to_holders("7:run", forward(*range(4)).messages) for _ in range(2)]
    assert [await fates for fates in sent] == [[Fate.NO_SERVER] * 4] * 2


async def test_messages_find_the_servers_that_hold_their_devices(stand: RedisStand, redis_server: RedisServer) -> None:
    """In order with those that name their server; each device that has several holders at all of their servers."""
    a, b, c = await stand.open(3)
    inboxes = []
    for relay, name in ((a, "a"), (b, "b"), (c, "c")):
        relay.join(name)
        inboxes.append(Inbox(relay))
    redis_server.command("HSET", f"{PREFIX}meta", "term", "7", "run", "run")
    holders = {
        "at b": "b:1:1",
        "at both": "c:1:2 gone:1:3 b:2:4",
        "here": "a:1:5",
        "dead": "gone:1:6",
        "twice": "c:1:1 c:2:2",
    }
    for device_id, held in holders.items():
        redis_server.command("HSET", f"{PREFIX}h:{bucket_of(device_id.encode())}", device_id, held)
    redis_server.command("SET", f"{PREFIX}h:{bucket_of(b'foreign')}", "mine")
    devices = ["at b", "at both", "here", "nobody", "dead", "foreign", "twice", *["at b"] * 20]
    messages = [ForwardedMessage(name, b"{%d}" % at, 1, "results/0", at) for at, name in enumerate(devices)]
    sent = a.send_to_holders("7:run", messages)
    assert await a.send("b", forward(99)) is Fate.ACCEPTED
    accepted = (0, 1, 6, *range(7, 27))
    expected = [Fate.ACCEPTED if at in accepted else Fate.NO_SERVER for at in range(len(devices))]
    expected[2] = Fate.HERE
    assert await sent == expected
    await eventually(lambda: len(inboxes[1].arrived) == 2 and len(inboxes[2].arrived) == 1)
    assert inboxes[1].messages == [Forward(tuple(messages[at] for at in (0, 1, *range(7, 27)))), forward(99)]
    assert inboxes[2].messages == [Forward((messages[1], messages[6]))]
    assert await a.send_to_holders("8:run", messages) == [Fate.TERM_OVER] * len(messages)
    assert a.counters.accepted == {"forward": 24}


async def test_of_many_messages_for_holders_each_has_its_fate(stand: RedisStand, redis_server: RedisServer) -> None:
    a, b = await stand.open(2)
    for relay, name in ((a, "a"), (b, "b")):
        relay.join(name)
    inbox = Inbox(b)
    redis_server.command("HSET", f"{PREFIX}meta", "term", "7", "run", "run")
    redis_server.command("HSET", f"{PREFIX}h:{bucket_of(b'doll')}", "doll", "b:1:1")
    messages = forward(*range(500)).messages
    assert await a.send_to_holders("7:run", messages) == [Fate.ACCEPTED] * 500
    await eventually(lambda: inbox.messages == [Forward(messages[n : n + 200]) for n in (0, 200, 400)])
    late = [*messages, ForwardedMessage("nobody", b"{}", 1, "results/0", 1)]
    assert await a.send_to_holders("7:run", late) == [Fate.ACCEPTED] * 500 + [Fate.NO_SERVER]
    await a.close(1.0)
    assert await a.send_to_holders("7:run", messages[:2]) == [Fate.CLOSED] * 2


class Stubborn(RedisRelay):
    """Its reading loses the first cancellation, as ``asyncio.wait_for`` of Python 3.11 may."""

    async def _read(self, epoch: str) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        await super()._read(epoch)


async def test_a_relay_that_is_closed_leaves_no_task_though_an_earlier_one_has_lost_its_cancellation(
    redis_server: RedisServer,
) -> None:
    """It would open its connection again, and nothing would close it."""
    before = asyncio.all_tasks()
    relay = Stubborn(redis_server.url, time.monotonic)
    for server in ("a", "b"):
        relay.join(server)
        await asyncio.sleep(0)
    await relay.close(0.1)
    assert asyncio.all_tasks() == before
    assert not any(link._connection.is_connected for link in relay._links.values())
