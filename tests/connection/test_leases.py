"""Connections whose devices other servers may hold: what they do without a valid lease, and when their slot is free."""

from __future__ import annotations

import asyncio
import json
import math
from functools import partial

import pytest

from cocoa_tornado.connection.connection import DeviceConnection
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.presence.grants import Grant, Lease
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.rules.claims import Claim, FencingToken, Generation
from cocoa_tornado.rules.close_codes import GOING_AWAY, REPLACED
from testing.raw_device import CLOSE, PING, PONG, TEXT, RawDevice
from testing.waiting import eventually

from .conftest import MakeStand
from .stand import MESSAGES, Stand

pytestmark = pytest.mark.gen_test(timeout=60)

FOREVER = 1e12


async def connect(stand: Stand) -> tuple[DeviceConnection, RawDevice, Lease]:
    """A connection under a lease that a test can end, by the clock of the stand."""
    connection, device = await stand.connect()
    lease = connection.grant.lease = Lease(connection.grant.claim.server, FOREVER, is_shared=True)
    return connection, device, lease


async def test_without_a_valid_lease_messages_wait_and_pings_do_not(stand: Stand) -> None:
    _, device, lease = await connect(stand)
    lease.until = stand.now
    stand.send("doll", b"one")
    device.send(PING, b"are you there?")
    frame = await device.read_frame()
    assert (frame.opcode, frame.payload) == (PONG, b"are you there?")
    stand.pass_time(30.0)
    assert (await device.read_frame()).opcode == PING
    device.send(PONG)
    stand.send("doll", b"two")
    await stand.rest()
    lease.until = FOREVER
    stand.hub.resumed()
    assert [(await device.read_frame()).payload for _ in range(2)] == [b"one", b"two"]


async def test_an_outbox_that_fills_while_the_lease_is_not_valid_is_too_slow_as_ever(make_stand: MakeStand) -> None:
    stand = await make_stand()
    _, device, lease = await connect(stand)
    lease.until = stand.now
    for number in range(300):
        stand.send("doll", b"%d" % number)
    assert (await device.read_frame()).close_code == 1013
    assert stand.counters.dropped == {"overflow": 1, "slow_consumer": 256}


async def test_a_token_that_expires_while_the_lease_is_not_valid_sends_nothing_more(stand: Stand) -> None:
    connection, device, lease = await connect(stand)
    lease.until = stand.now
    stand.send("doll", b"not sent")
    connection.end(GOING_AWAY, keep_queued=True)
    assert (await device.read_frame()).close_code == 1001


async def test_a_connection_that_is_ending_when_its_lease_ends_writes_no_more_messages(make_stand: MakeStand) -> None:
    stand = await make_stand(write_wait_s=0.1)
    connection, device, lease = await connect(stand)
    stand.send("doll", b"not sent")
    connection.end(GOING_AWAY, keep_queued=True)
    lease.until = stand.now
    assert b"not sent" not in await device.read_to_end()


async def test_the_slot_is_free_when_the_socket_is_closed(stand: Stand) -> None:
    connection, device, _ = await connect(stand)
    stand.send("doll", b"last")
    connection.end(GOING_AWAY, keep_queued=True)
    assert (await device.read_frame()).payload == b"last"
    assert (await device.read_frame()).close_code == 1001
    assert not stand.is_connected()
    assert stand.presence.slots_taken == 1, "the socket is still open"
    device.send(CLOSE)
    assert await device.read_to_end() == b""
    await eventually(lambda: stand.presence.slots_taken == 0)


async def test_a_connection_that_is_about_to_end_is_cut_by_a_challenge(stand: Stand) -> None:
    connection, device, _ = await connect(stand)
    connection.end(GOING_AWAY)
    assert await stand.challenged("doll") == "", "the second connection is admitted at once"
    assert (await device.read_frame()).close_code == 1001
    assert await device.read_to_end() == b""


async def test_an_evicted_connection_is_closed_at_once(stand: Stand) -> None:
    connection, device, _ = await connect(stand)
    stand.hub.evict(connection.grant, REPLACED)
    assert not list(stand.context.sockets)
    assert (await device.read_frame()).close_code == 4409
    assert await device.read_to_end() == b""


async def test_a_lost_lease_closes_its_connections_at_once_even_those_that_are_ending(stand: Stand) -> None:
    connection, device, lease = await connect(stand)
    ending, other = await stand.connect("bear")
    ending.grant.lease = lease
    ending.end(GOING_AWAY)
    unrelated, third = await stand.connect("cat")
    stand.hub.lease_lost(lease)
    assert list(stand.context.sockets) == [unrelated]
    for closed in (device, other):
        assert (await closed.read_frame()).close_code == 1001
        assert await closed.read_to_end() == b""
    stand.send("cat", b"still here")
    assert (await third.read_frame()).payload == b"still here"
    assert connection.outcome


class Marking(MemoryMailbox):
    """A mailbox that stores marks when a test says so."""

    def __init__(self) -> None:
        super().__init__(BoxLimits(), lambda: 1000.0)
        self.stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def marked(self, device_id: str) -> asyncio.Future[None] | None:  # type: ignore[override]
        return self.stored


async def test_the_slot_is_free_when_the_mailbox_has_stored_what_was_written(make_stand: MakeStand) -> None:
    mailbox = Marking()
    stand = await make_stand(mailbox=mailbox)
    _, device, _ = await connect(stand)
    device.reset()
    await eventually(lambda: not list(stand.context.sockets))
    assert stand.presence.slots_taken == 1
    mailbox.stored.set_result(None)
    await eventually(lambda: stand.presence.slots_taken == 0)


async def test_a_slot_that_is_granted_anew_while_the_marks_wait_is_released_under_its_last_grant(
    make_stand: MakeStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailbox = Marking()
    stand = await make_stand(mailbox=mailbox)
    connection, device, _ = await connect(stand)
    device.reset()
    await eventually(lambda: not list(stand.context.sockets))
    old = connection.grant
    new = Grant("doll", Claim("b", 1), Generation(8, 1), Lease("b", FOREVER, is_shared=True))
    stand.hub.regranted(old, new)
    released: list[Grant] = []
    monkeypatch.setattr(stand.presence, "release", released.append)
    mailbox.stored.set_result(None)
    await eventually(lambda: released == [new])
    monkeypatch.undo()
    stand.presence.release(old)


async def test_a_new_grant_takes_the_place_of_the_old_one(stand: Stand) -> None:
    connection, device, lease = await connect(stand)
    old = connection.grant
    lease.until = stand.now
    stand.send("doll", b"waits")
    new = Grant("doll", Claim("b", 1), Generation(8, 1), Lease("b", FOREVER, is_shared=True))
    stand.hub.regranted(old, new)
    assert connection.grant is new
    assert (await device.read_frame()).payload == b"waits"
    stand.hub.lease_lost(lease)
    assert stand.is_connected()
    stand.hub.regranted(old, new)
    connection.grant = old  # which the presence of this stand knows


def headers(stand: Stand) -> list[tuple[object, dict[str, bytes]]]:
    records = stand.broker.records(MESSAGES)
    return [(json.loads(record.value or b"")["text"], dict(record.headers)) for record in records]


def said_last(stand: Stand, text: str) -> bool:
    return headers(stand)[-1][0] == text


async def test_what_a_device_publishes_has_the_generation_of_its_connection(stand: Stand) -> None:
    connection, device = await stand.connect()
    device.send(TEXT, b"this is the only server")
    await eventually(lambda: len(headers(stand)) == 1)
    old = connection.grant
    for term, number in ((7, 12), (8, 1)):
        connection.grant = Grant("doll", old.claim, Generation(term, number), Lease("a", math.inf, is_shared=True))
        device.send(TEXT, b"%d" % number)
        await eventually(partial(said_last, stand, f"{number}"))
    connection.grant = old
    assert headers(stand) == [
        ("this is the only server", {}),
        ("12", {"cocoa.generation": b"7.12"}),
        ("1", {"cocoa.generation": b"8.1"}),
    ]


def test_only_a_shared_lease_gives_fencing_tokens() -> None:
    claim, generation = Claim("a", 3), Generation(7, 12)
    assert Grant("doll", claim, generation, Lease("a")).fencing_token is None
    shared = Grant("doll", claim, generation, Lease("a", is_shared=True))
    assert shared.fencing_token == FencingToken(7, "a:3:12")
