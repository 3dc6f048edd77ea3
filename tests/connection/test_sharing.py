"""Several connections of one device: ``connection_delivery`` all and one, on real sockets."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest

from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.connection.connection import DeviceConnection
from cocoa_tornado.connection.making_room import OutboxLimits
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Entry
from cocoa_tornado.presence.grants import ConnectionDelivery
from cocoa_tornado.routing.local import LocalDelivery
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.rules.close_codes import TOKEN_EXPIRED
from cocoa_tornado.rules.records import Record
from cocoa_tornado.rules.terms import Terms
from testing.raw_device import CLOSE, PING, PONG, TEXT, RawDevice
from testing.waiting import eventually

from .stand import PING_INTERVAL_S, Stand

pytestmark = pytest.mark.gen_test(timeout=60)

PAYLOAD = "x" * 20_000
"""A few of them fill a socket."""


class Sharing:
    """A device with two connections.

    :ivar active: the one that has connected first
    """

    stand: Stand
    active: DeviceConnection
    standby: DeviceConnection
    first: RawDevice
    second: RawDevice

    def __init__(self, stand: Stand, mailbox: MemoryMailbox | None) -> None:
        self.stand, self.mailbox = stand, mailbox
        self.local = LocalDelivery(stand.hub, stand.counters, lambda: stand.now, mailbox, lambda: stand.now)
        self.offset = 0

    async def connect(self) -> None:
        self.active, self.first = await self.stand.connect(receive_buffer=4096)
        self.standby, self.second = await self.stand.connect()
        await self.stand.rest()

    async def send(self, count: int, options: Options | None = None) -> None:
        """Route this many messages, numbered from 0, one in each turn of the loop."""
        for _ in range(count):
            await self.send_at_once(1, options)

    async def send_at_once(self, count: int, options: Options | None = None) -> None:
        """Route this many messages in one turn of the loop."""
        records = [self._next_record(options) for _ in range(count)]
        if self.mailbox is None:
            self.local.send_each(Batch(records))
        else:
            first = self.offset - count
            entries = [
                Entry("doll", each.payload, 0, "topic/0", first + at, options) for at, each in enumerate(records)
            ]
            for record, number in zip(records, self.mailbox.append(entries).result(), strict=True):
                self.local.send_stored("doll", record, number, 0)
        await self.stand.rest()

    def _next_record(self, options: Options | None) -> Record:
        payload = json.dumps({"n": self.offset, "pad": PAYLOAD}, separators=(",", ":")).encode()
        self.offset += 1
        return Record("doll", payload, 0, True, "", options)


async def numbers(device: RawDevice, up_to: int) -> list[int]:
    """The messages that a device gets until a certain one."""
    found: list[int] = []
    while not found or found[-1] != up_to:
        message = json.loads((await device.read_until(TEXT)).payload)
        assert "missed" not in message
        found.append(message["n"])
    return found


Scene = Callable[[Sharing], Awaitable[None]]
Play = Callable[..., Awaitable[None]]


@pytest.fixture(params=["none", "memory"])
def play(request: pytest.FixtureRequest) -> Play:
    """Plays a scene with and without a mailbox."""

    async def played(scene: Scene, delivery: ConnectionDelivery = "one") -> None:
        mailbox = None if request.param == "none" else MemoryMailbox(BoxLimits())
        if mailbox is not None:
            await mailbox.start()
        limits = OutboxLimits(max_messages=20, max_bytes=10_000_000)
        stand = Stand(delivery=delivery, per_device=2, mailbox=mailbox, outbox=limits)
        await stand.start()
        sharing = Sharing(stand, mailbox)
        await sharing.connect()
        await scene(sharing)
        await stand.stop()

    return played


async def test_all_connections_get_each_message(play: Play) -> None:
    async def scene(sharing: Sharing) -> None:
        await sharing.send(3)
        assert await numbers(sharing.first, 2) == [0, 1, 2]
        assert await numbers(sharing.second, 2) == [0, 1, 2]

    await play(scene, "all")


async def test_one_connection_gets_each_message_and_the_other_stands_by(play: Play) -> None:
    async def scene(sharing: Sharing) -> None:
        await sharing.send(3)
        assert await numbers(sharing.first, 2) == [0, 1, 2]
        assert sharing.stand.hub.is_receiving(sharing.active)
        sharing.active.cut()
        await sharing.send(2)
        assert await numbers(sharing.second, 4) == [3, 4]

    await play(scene)


async def test_what_an_ended_connection_had_not_written_moves_to_another_in_order_once(play: Play) -> None:
    async def scene(sharing: Sharing) -> None:
        await sharing.send(8)  # the socket takes some of them, and one in part
        assert sharing.active.protocol.write is not None
        sharing.active.cut()
        await sharing.send(2)
        there = await numbers(sharing.second, 9)
        assert there == list(range(there[0], 10))
        here = await _rest_of(sharing.first)
        assert sorted([*here, *there]) == list(range(10))
        assert not sharing.stand.counters.dropped

    await play(scene)


async def test_a_slow_connection_is_relieved_once_its_queue_is_over_half_its_bound(play: Play) -> None:
    async def scene(sharing: Sharing) -> None:
        await sharing.send(40)
        assert sharing.stand.hub.is_receiving(sharing.standby)
        assert sharing.active.is_open
        there = await numbers(sharing.second, 39)
        assert there == list(range(there[0], 40))
        here = await numbers(sharing.first, there[0] - 1)
        assert here == list(range(there[0]))
        assert not sharing.stand.counters.dropped

    await play(scene)


async def test_what_a_relieved_connection_had_begun_to_write_moves_if_it_ends(play: Play) -> None:
    async def scene(sharing: Sharing) -> None:
        await sharing.send(40)
        sharing.active.cut()
        await sharing.send(1)
        there = await numbers(sharing.second, 40)
        here = await _rest_of(sharing.first)
        assert sorted([*here, *there]) == list(range(41))
        assert not sharing.stand.counters.dropped

    await play(scene)


async def test_a_relieved_connection_is_active_again_when_the_other_ends(play: Play) -> None:
    async def scene(sharing: Sharing) -> None:
        await sharing.send(40)
        there = await numbers(sharing.second, 39)
        sharing.standby.cut()
        await sharing.send(2)
        here = await numbers(sharing.first, 41)
        assert sorted([*here, *there]) == list(range(42))

    await play(scene)


async def test_a_connection_that_misses_a_pong_is_relieved(play: Play) -> None:
    async def scene(sharing: Sharing) -> None:
        sharing.stand.pass_time(PING_INTERVAL_S + 1)
        ping = await sharing.second.read_until(PING)
        sharing.second.send(PONG, ping.payload)
        await eventually(lambda: not sharing.standby.awaiting_pong)
        sharing.active.pong_may_be_late()
        assert sharing.stand.hub.is_receiving(sharing.standby)
        await sharing.send(2)
        assert await numbers(sharing.second, 1) == [0, 1]

    await play(scene)


async def test_a_connection_that_is_alone_is_not_relieved(play: Play) -> None:
    async def scene(sharing: Sharing) -> None:
        sharing.standby.cut()
        await sharing.send(15)
        assert sharing.stand.hub.is_receiving(sharing.active)
        assert await numbers(sharing.first, 14) == list(range(15))

    await play(scene)


async def test_an_acknowledgement_on_any_connection_counts_for_all() -> None:
    mailbox = MemoryMailbox(BoxLimits())
    await mailbox.start()
    stand = Stand(delivery="one", per_device=2, mailbox=mailbox)
    await stand.start()
    sharing = Sharing(stand, mailbox)
    await sharing.connect()
    await sharing.send(3)
    texts = [json.loads((await sharing.first.read_until(TEXT)).payload) for _ in range(3)]
    ack = json.dumps({"type": "ack", "cursor": texts[1]["cursor"]}).encode()
    sharing.second.send(TEXT, ack)
    await eventually(lambda: mailbox.counters.acknowledged == 2)
    sharing.active.cut()
    await sharing.send(1)
    assert await numbers(sharing.second, 3) == [3]
    await stand.stop()


async def test_a_connection_that_stands_by_leaves_what_its_feed_still_offers_to_the_other_one() -> None:
    mailbox = MemoryMailbox(BoxLimits())
    await mailbox.start()
    stand = Stand(delivery="one", per_device=2, mailbox=mailbox)
    await stand.start()
    sharing = Sharing(stand, mailbox)
    await sharing.connect()
    other = sharing.standby
    assert other.offer(b'{"n":0}', 0, Terms(number=0))
    assert not other.offer(b'{"n":1}', 0, Terms(number=1))
    assert not other.protocol.outbox.has_queued
    assert await numbers(sharing.first, 0) == [0]
    await stand.stop()


async def test_a_batch_that_makes_a_connection_slow_is_continued_by_another_in_order_once(play: Play) -> None:
    async def scene(sharing: Sharing) -> None:
        await sharing.send_at_once(40)
        assert sharing.stand.hub.is_receiving(sharing.standby)
        there = await numbers(sharing.second, 39)
        here = await numbers(sharing.first, there[0] - 1)
        sharing.active.cut()
        assert [*here, *await _rest_of(sharing.first), *there] == list(range(40))
        assert not sharing.stand.counters.dropped

    await play(scene)


async def test_transient_messages_that_make_a_connection_slow_go_on_on_another_one(play: Play) -> None:
    """With a mailbox some do not fit: they wait there until it has looked at the box."""

    async def scene(sharing: Sharing) -> None:
        await sharing.send_at_once(40, Options(ttl_s=0))
        assert sharing.stand.hub.is_receiving(sharing.standby)
        await sharing.send(1)
        there = await numbers(sharing.second, 40)
        sharing.active.end(TOKEN_EXPIRED)
        got = [*await _rest_of(sharing.first), *there]
        assert got == sorted(set(got))
        missing = 41 - len(got)
        assert sharing.stand.counters.dropped == ({"catching_up": missing} if missing else {})
        assert not missing or sharing.mailbox is not None

    await play(scene)


async def test_what_a_connection_writes_while_it_closes_does_not_move(play: Play) -> None:
    async def scene(sharing: Sharing) -> None:
        await sharing.send(10)
        assert sharing.active.protocol.write is not None
        sharing.active.end(TOKEN_EXPIRED, keep_queued=True)
        await sharing.send(1)
        there = await numbers(sharing.second, 10)
        assert [*await _rest_of(sharing.first), *there] == list(range(11))

    await play(scene)


async def test_what_a_closing_connection_had_begun_to_write_moves_if_its_socket_is_lost(play: Play) -> None:
    async def scene(sharing: Sharing) -> None:
        await sharing.send(10)
        sharing.active.end(TOKEN_EXPIRED)
        there = await numbers(sharing.second, 9)
        sharing.active.cut()
        there += await numbers(sharing.second, there[0] - 1)
        assert sorted([*await _rest_of(sharing.first), *there]) == list(range(10))

    await play(scene)


@pytest.mark.parametrize("play", ["none"], indirect=True)
async def test_two_slow_connections_end_one_after_the_other(play: Play) -> None:
    async def scene(sharing: Sharing) -> None:
        sharing.standby.cut()
        sharing.standby, sharing.second = await sharing.stand.connect(receive_buffer=4096)
        await sharing.send(100)
        assert sharing.active.outcome == sharing.standby.outcome == "slow_consumer"
        assert sharing.stand.counters.outbox_overflows == 2
        assert "fault" not in sharing.stand.counters.dropped
        here, there = await _rest_of(sharing.first), await _rest_of(sharing.second)
        assert [*here, *there] == list(range(len(here) + len(there)))

    await play(scene)


async def _rest_of(device: RawDevice) -> list[int]:
    """The complete messages in what a device has been sent before its connection was closed or cut."""
    found: list[int] = []
    try:
        while (frame := await device.read_frame()).opcode != CLOSE:
            found.append(json.loads(frame.payload)["n"])
    except (OSError, EOFError):
        pass
    return found
