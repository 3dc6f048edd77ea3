"""Devices of a gateway whose Redis has come back without the end of what it had."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.asyncio.client import ClientConnection

from cocoa_tornado.mailboxes.port import MailboxState
from testing.redis_server import RedisServer
from testing.waiting import eventually

from ..harness import Harness
from .conftest import StartGateway

pytestmark = [
    pytest.mark.redis,
    pytest.mark.gen_test(timeout=90),
    pytest.mark.logs("cocoa.mailbox", "mailbox unavailable", optional=True),
    pytest.mark.logs("cocoa.mailbox", "mailbox may lose messages"),
]


@pytest.fixture
def forgetful(own_redis: RedisServer) -> RedisServer:
    """A Redis that keeps what it is told to SAVE, and nothing else.

    To be named before the gateway, which then ends first: one that ends without its Redis waits for it.
    """
    own_redis.start(appendonly="no")
    return own_redis


def is_ready(gateway: Harness) -> bool:
    mailbox = gateway.gateway.mailbox
    return mailbox is not None and mailbox.status().state is MailboxState.READY


async def start(start_gateway: StartGateway, redis: RedisServer) -> Harness:
    gateway = await start_gateway(mailbox=redis.url)
    await eventually(lambda: is_ready(gateway))
    return gateway


async def lose_the_end(redis: RedisServer) -> None:
    await asyncio.to_thread(redis.kill)
    await asyncio.to_thread(redis.start)


async def say(gateway: Harness, texts: str) -> None:
    for text in texts:
        await gateway.publish("doll", text)


async def hear(device: ClientConnection, count: int) -> list[dict[str, str]]:
    return [json.loads(await asyncio.wait_for(device.recv(), 20)) for _ in range(count)]


def texts(heard: list[dict[str, str]]) -> str:
    return "".join(message["text"] for message in heard)


async def test_a_connected_device_is_told_what_has_numbers_that_it_has_had(
    forgetful: RedisServer, start_gateway: StartGateway
) -> None:
    gateway = await start(start_gateway, forgetful)
    device = await gateway.connect("doll")
    await say(gateway, "abc")
    assert texts(await hear(device, 3)) == "abc"
    await asyncio.to_thread(forgetful.command, "SAVE")
    await say(gateway, "defgh")
    heard = await hear(device, 5)
    await lose_the_end(forgetful)
    await say(gateway, "ij")
    later = await hear(device, 2)
    assert texts(later) == "ij"
    # What it acknowledges of before is not taken for what has those numbers now.
    await device.send(json.dumps({"type": "ack", "cursor": heard[4]["cursor"]}))
    await say(gateway, "k")
    later += await hear(device, 1)
    assert texts(later) == "ijk"
    await device.close()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    device = await gateway.connect_with(f"{gateway.token()}&after={later[0]['cursor']}")
    assert texts(await hear(device, 2)) == "jk"


async def test_a_cursor_of_what_was_lost_skips_nothing_that_came_after(
    forgetful: RedisServer, start_gateway: StartGateway
) -> None:
    gateway = await start(start_gateway, forgetful)
    device = await gateway.connect("doll")
    await say(gateway, "abc")
    await hear(device, 3)
    await asyncio.to_thread(forgetful.command, "SAVE")
    await say(gateway, "defgh")
    cursor = (await hear(device, 5))[-1]["cursor"]
    await device.close()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    await lose_the_end(forgetful)
    stored = gateway.gateway.mailbox.counters  # type: ignore[union-attr]
    before = stored.stored
    await say(gateway, "ijklmn")
    await eventually(lambda: stored.stored == before + 6)
    await eventually(lambda: is_ready(gateway))
    device = await gateway.connect_with(f"{gateway.token()}&after={cursor}")
    assert texts(await hear(device, 6)) == "ijklmn"


@pytest.mark.logs("cocoa.mailbox", "mailbox emptied")
async def test_what_was_waiting_for_a_device_when_redis_was_emptied_is_a_gap(
    forgetful: RedisServer, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway(mailbox=forgetful.url, mailbox_max_bytes=1 << 28)
    await eventually(lambda: is_ready(gateway))
    counters = gateway.gateway.mailbox.counters  # type: ignore[union-attr]
    for number in range(200):
        await gateway.publish("doll", f"{number} {'x' * 100_000}")
    await eventually(lambda: counters.stored == 200)
    device = await gateway.connect("doll", max_queue=1)  # it takes no more than its socket does until it is read
    heard = await hear(device, 1)
    await asyncio.to_thread(forgetful.command, "FLUSHALL")
    await gateway.publish("doll", "end")
    await eventually(lambda: counters.stored == 201)
    while heard[-1].get("text") != "end":
        heard += await hear(device, 1)
    *received, gap, end = heard
    assert [message["text"].split()[0] for message in received] == [str(number) for number in range(len(received))]
    assert gap == {"type": "gap", "missed": 200 - len(received)}
    assert end["text"] == "end"
    await device.send(json.dumps({"type": "ack", "cursor": end["cursor"]}))
    await device.close()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    device = await gateway.connect_with(f"{gateway.token()}&after={received[-1]['cursor']}")
    await say(gateway, "z")
    assert texts(await hear(device, 1)) == "z"


@pytest.mark.logs("cocoa.mailbox", "mailbox emptied")
async def test_a_device_that_was_away_when_redis_was_emptied_is_sent_a_gap_if_anything_was_lost(
    forgetful: RedisServer, start_gateway: StartGateway
) -> None:
    gateway = await start(start_gateway, forgetful)
    device = await gateway.connect("doll")
    await say(gateway, "a")
    (first,) = await hear(device, 1)
    await device.send(json.dumps({"type": "ack", "cursor": first["cursor"]}))
    await device.close()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    mailbox = gateway.gateway.mailbox
    assert mailbox is not None
    await eventually(lambda: mailbox.status().messages == 0)
    await asyncio.to_thread(forgetful.command, "FLUSHALL")
    await say(gateway, "b")  # nothing was lost
    await eventually(lambda: mailbox.counters.stored == 2)
    device = await gateway.connect_with(f"{gateway.token()}&after={first['cursor']}")
    (second,) = await hear(device, 1)
    assert second["text"] == "b"
    await device.close()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    await say(gateway, "cd")
    await eventually(lambda: mailbox.counters.stored == 4)
    await asyncio.to_thread(forgetful.command, "FLUSHALL")
    await say(gateway, "e")
    await eventually(lambda: mailbox.counters.stored == 5)
    device = await gateway.connect_with(f"{gateway.token()}&after={second['cursor']}")
    gap, last = await hear(device, 2)
    assert gap == {"type": "gap", "missed": 1}
    await device.close()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    device = await gateway.connect_with(f"{gateway.token()}&after={last['cursor']}")
    await say(gateway, "f")
    assert texts([last, *await hear(device, 1)]) == "ef"


@pytest.mark.parametrize("uses_cursors", [True, False])
async def test_a_device_whose_box_was_evicted_is_sent_a_gap_first(
    forgetful: RedisServer, start_gateway: StartGateway, uses_cursors: bool
) -> None:
    gateway = await start(start_gateway, forgetful)
    device = await gateway.connect("doll")
    await say(gateway, "a")
    (first,) = await hear(device, 1)
    await device.close()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    counters = gateway.gateway.mailbox.counters  # type: ignore[union-attr]
    await say(gateway, "bcd")
    await eventually(lambda: counters.stored == 4)
    await asyncio.to_thread(forgetful.command, "DEL", "cocoa:{box}:b:doll", "cocoa:{box}:m:doll")
    token = gateway.token() + (f"&after={first['cursor']}" if uses_cursors else "")
    device = await gateway.connect_with(token)
    assert await hear(device, 1) == [{"type": "gap", "missed": 1}]
    await say(gateway, "e")
    assert texts(await hear(device, 1)) == "e"
