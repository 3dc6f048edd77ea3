"""The Redis mailbox wakes the servers that hold devices as it stores messages for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from cocoa_tornado.mailboxes.port import Doorbell, Entry
from cocoa_tornado.mailboxes.redis import RedisMailbox
from cocoa_tornado.redis_store.inboxes import MAX_BYTES, MAX_MESSAGES
from cocoa_tornado.redis_store.scripts import Command
from cocoa_tornado.relay import wire
from cocoa_tornado.relay.messages import WakeUp
from cocoa_tornado.relay.port import RelayLimits
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.rules.claims import bucket_of
from testing.redis_server import RedisServer

from .stands import ready

pytestmark = [pytest.mark.gen_test(timeout=60), pytest.mark.redis]

PREFIX = "cocoa:{box}:p:"


class Stand:
    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.mailbox = RedisMailbox(server.url, BoxLimits(), rings=True)
        self._offset = 0

    async def start(self) -> None:
        await self.mailbox.start()
        await ready(self.mailbox)

    def hold(self, device_id: str, holders: str) -> None:
        self.server.command("HSET", f"{PREFIX}h:{bucket_of(device_id.encode())}", device_id, holders)

    async def append(self, *device_ids: str, away: Sequence[str] = ()) -> set[str]:
        """Store a message for each. Returns the devices whose servers were woken."""
        doorbell = Doorbell(away)
        self._offset += 1
        await self.mailbox.append([Entry(to, b"{}", 1, "results/0", self._offset) for to in device_ids], doorbell)
        return doorbell.held

    def inbox(self, server: str) -> list[Any]:
        with self.server.client() as client:
            return [wire.decode(fields[b"m"]).message for _, fields in client.xrange(f"{PREFIX}in:{server}")]


@pytest.fixture
def stand(redis_server: RedisServer, io_loop: IOLoop) -> Iterator[Stand]:
    made = Stand(redis_server)
    for server in ("b", "c"):
        redis_server.command("HSET", f"{PREFIX}servers", server, 1)
    io_loop.run_sync(made.start)
    yield made
    io_loop.run_sync(lambda: made.mailbox.close(1.0))
    redis_server.command("FLUSHALL")


async def test_the_servers_of_held_devices_are_woken_once_and_no_others(stand: Stand) -> None:
    stand.hold("doll", "b:1:5")
    stand.hold("müller", "b:2:6 c:9:7")
    stand.hold("ghost", "gone:1:2")
    devices = ["doll", "doll", "müller", "ghost", "away", "here"]
    assert await stand.append(*devices, away=["doll", "müller", "ghost", "away"]) == {"doll", "müller"}
    ((b,), (c,)) = stand.inbox("b"), stand.inbox("c")
    assert (set(b.device_ids), c) == ({"doll", "müller"}, WakeUp(("müller",)))
    assert stand.server.command("EXISTS", f"{PREFIX}in:gone") == 0
    assert stand.server.command("HMGET", f"{PREFIX}q:b", "sequence", "messages") == [b"1", b"2"]


async def test_devices_that_are_here_wake_nobody(stand: Stand) -> None:
    stand.hold("doll", "b:1:5")
    assert await stand.append("doll") == set()
    assert stand.inbox("b") == []


async def test_a_group_whose_reply_was_lost_wakes_once_and_still_says_whom(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.hold("doll", "b:1:5")
    exchange = stand.mailbox._store._storing.exchange  # type: ignore[attr-defined]

    async def twice(commands: Sequence[Command]) -> Any:
        await exchange(commands)
        return await exchange(commands)

    monkeypatch.setattr(stand.mailbox._store._storing, "exchange", twice)  # type: ignore[attr-defined]
    assert await stand.append("doll", away=["doll"]) == {"doll"}
    assert stand.inbox("b") == [WakeUp(("doll",))]


async def test_a_message_that_was_stored_earlier_wakes_as_well(stand: Stand) -> None:
    """The server that stored it may have ended before it could wake another."""
    stand.hold("doll", "b:1:5")
    entry = Entry("doll", b"{}", 1, "results/0", 7)
    assert await stand.mailbox.append([entry]) == [1]
    doorbell = Doorbell(["doll"])
    assert await stand.mailbox.append([entry], doorbell) == [None]
    assert (doorbell.held, stand.inbox("b")) == ({"doll"}, [WakeUp(("doll",))])


@pytest.mark.logs("cocoa.mailbox", "unexpected key type")
async def test_keys_of_a_wrong_type_wake_nobody_and_lose_nothing(stand: Stand) -> None:
    stand.server.command("SET", f"{PREFIX}h:{bucket_of(b'doll')}", "mine")
    assert await stand.append("doll", away=["doll"]) == set()
    stand.hold("bear", "b:1:5")
    stand.server.command("SET", f"{PREFIX}q:b", "mine")
    assert await stand.append("bear", away=["bear"]) == {"bear"}
    assert stand.inbox("b") == [WakeUp(("bear",))]


def test_an_inbox_has_the_same_bounds_for_the_mailbox_and_the_relay() -> None:
    assert RelayLimits() == RelayLimits(MAX_MESSAGES, MAX_BYTES)
