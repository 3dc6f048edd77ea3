"""Two gateways of one process that share presence: one connection per device, and every message, whichever of them
the device comes to and whichever reads the record."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest
from websockets.asyncio.client import ClientConnection

from cocoa_tornado.brokers.port import Batch
from cocoa_tornado.connection import device_socket
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Entry, MailboxState
from cocoa_tornado.presence.base import PresenceBase
from cocoa_tornado.presence.grants import Grant, Lease
from cocoa_tornado.presence.port import PresenceState
from cocoa_tornado.relay.messages import Forward, RelayMessage
from cocoa_tornado.relay.port import Fate
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.audiences import Audience
from cocoa_tornado.rules.box import BoxLimits
from cocoa_tornado.rules.records import Record
from testing.raw_device import CLOSE, PING, PONG, TEXT
from testing.waiting import eventually

from .harness import Harness, Neighbors

pytestmark = pytest.mark.gen_test(timeout=60)

Two = tuple[Harness, Harness]
IN_MEMORY = pytest.mark.parametrize("neighbors", ["memory"], indirect=True)
"""With Redis, a gateway does not hear at once that it was fenced, and shares no mailbox in memory."""


def shorten_challenges(*harnesses: Harness) -> None:
    """For tests in which a client stays silent."""
    for harness in harnesses:
        live = harness.gateway.parts.live
        live.now = dataclasses.replace(live.now, slots=dataclasses.replace(live.now.slots, challenge_s=0.3))


async def test_a_duplicate_at_the_other_gateway_is_refused_while_the_device_answers(two_gateways: Two) -> None:
    a, b = two_gateways
    await a.connect("doll")  # its library answers pings
    refused = await b.upgrade(b.token("doll"))
    assert (refused.response.status, refused.response.body) == (409, b'{"message":"Device already connected"}')
    assert "retry-after" in refused.response.headers
    assert (len(a.gateway.hub), len(b.gateway.hub)) == (1, 0)
    assert a.gateway.presence.counters.challenges == 1
    await a.publish("doll", "still here")


async def test_a_silent_device_is_evicted_from_one_gateway_and_admitted_by_the_other_in_one_request(
    two_gateways: Two,
) -> None:
    a, b = two_gateways
    shorten_challenges(a, b)
    silent = await a.raw("doll")
    newcomer = await b.raw("doll")
    assert newcomer.response.status == 101
    assert (await silent.read_until(CLOSE)).close_code == 4409
    assert (len(a.gateway.hub), len(b.gateway.hub)) == (0, 1)
    assert (a.gateway.presence.counters.evictions, a.gateway.presence.slots_taken) == (1, 0)
    await b.publish("doll", "for the newcomer")
    assert b"for the newcomer" in (await newcomer.read_until(TEXT)).payload


async def test_a_device_that_leaves_one_gateway_is_admitted_by_the_other_at_once(two_gateways: Two) -> None:
    a, b = two_gateways
    first = await a.raw("doll")
    first.reset()
    await eventually(lambda: not a.gateway.hub.is_device_connected("doll"))
    assert (await b.raw("doll")).response.status == 101
    assert a.gateway.presence.counters.challenges == 0


async def test_a_device_that_leaves_in_the_challenge_lets_the_newcomer_in(two_gateways: Two) -> None:
    a, b = two_gateways
    first = await a.raw("doll")
    newcomer = b.upgrade(b.token("doll"))

    async def leave() -> None:
        await first.read_until(PING)
        first.reset()

    leaving = asyncio.ensure_future(leave())
    assert (await newcomer).response.status == 101
    await leaving
    assert a.gateway.presence.counters.evictions == 0


async def test_a_pong_at_one_gateway_keeps_the_place_against_newcomers_of_both(two_gateways: Two) -> None:
    a, b = two_gateways
    incumbent = await a.raw("doll")
    here, there = a.upgrade(a.token("doll")), b.upgrade(b.token("doll"))
    newcomers = asyncio.gather(here, there)

    async def answer_pings() -> None:
        while True:
            ping = await incumbent.read_until(PING)
            incumbent.send(PONG, ping.payload)

    answering = asyncio.ensure_future(answer_pings())
    assert [device.response.status for device in await newcomers] == [409, 409]
    answering.cancel()


async def test_a_plain_get_says_that_the_device_is_connected_elsewhere_and_challenges_nobody(
    two_gateways: Two,
) -> None:
    a, b = two_gateways
    await a.raw("doll")
    response = await b.http("GET", f"/ws?token={b.token('doll')}")
    assert response.status == 409
    assert a.gateway.presence.counters.challenges == 0


async def test_where_the_other_gateway_does_not_answer_the_newcomer_gets_503(
    two_gateways: Two, neighbors: Neighbors
) -> None:
    a, b = two_gateways
    shorten_challenges(a, b)
    await a.raw("doll")
    neighbors.cut(a.gateway)
    refused = await b.upgrade(b.token("doll"))
    assert (refused.response.status, refused.response.body) == (503, b'{"message":"Presence not available"}')
    assert "retry-after" in refused.response.headers
    assert b.gateway.counters.handshakes == {"presence": 1}


@pytest.mark.logs("cocoa.presence", "lease lost")
async def test_a_gateway_that_loses_its_lease_ends_its_connections_and_admits_again(
    two_gateways: Two, neighbors: Neighbors
) -> None:
    a, b = two_gateways
    before = await a.raw("doll")
    neighbors.fence(a.gateway)
    assert (await before.read_until(CLOSE)).close_code == 1001
    assert (await b.raw("doll")).response.status == 101
    await eventually(lambda: a.gateway.presence.status().state is PresenceState.READY)
    assert (await a.raw("other")).response.status == 101
    assert (a.gateway.presence.slots_taken, b.gateway.presence.slots_taken) == (1, 1)


@IN_MEMORY
@pytest.mark.logs("cocoa.presence", "lease lost")
async def test_a_newcomer_whose_grant_has_lost_its_lease_before_the_upgrade_gets_503(
    two_gateways: Two, neighbors: Neighbors, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = two_gateways
    claim = a.gateway.presence.claim

    async def claim_and_be_fenced(device_id: str) -> Grant:
        grant = await claim(device_id)
        neighbors.fence(a.gateway)
        return grant

    monkeypatch.setattr(a.gateway.presence, "try_claim", lambda device_id: None)
    monkeypatch.setattr(a.gateway.presence, "claim", claim_and_be_fenced)
    refused = await a.upgrade(a.token("doll"))
    assert (refused.response.status, refused.response.body) == (503, b'{"message":"Presence not available"}')
    assert (len(a.gateway.hub), a.gateway.presence.slots_taken) == (0, 0)


@IN_MEMORY
async def test_a_newcomer_whose_slot_has_ended_with_the_term_before_the_upgrade_gets_503(
    two_gateways: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease of its grant is valid still."""
    a, _ = two_gateways
    presence = a.gateway.presence
    assert isinstance(presence, PresenceBase)
    claim = presence.claim

    async def claim_and_begin_a_term(device_id: str) -> Grant:
        grant = await claim(device_id)
        presence._slots.rejoin(Lease("later"), 5.0, 8.5, 0.0)
        assert grant.lease.is_valid(presence.clock())
        return grant

    monkeypatch.setattr(presence, "try_claim", lambda device_id: None)
    monkeypatch.setattr(presence, "claim", claim_and_begin_a_term)
    refused = await a.upgrade(a.token("doll"))
    assert (refused.response.status, refused.response.body) == (503, b'{"message":"Presence not available"}')
    assert (len(a.gateway.hub), presence.slots_taken) == (0, 0)


async def test_a_gateway_that_stops_leaves_its_devices_to_the_other(two_gateways: Two) -> None:
    a, b = two_gateways
    device = await a.connect("doll")
    await a.gateway.drain_and_stop()
    await device.wait_closed()
    assert (await b.raw("doll")).response.status == 101


async def test_what_one_gateway_reads_reaches_a_device_at_the_other_in_order_and_no_other_device(
    two_gateways: Two,
) -> None:
    a, b = two_gateways
    doll, bear = await b.connect("doll"), await b.connect("bear")
    for number in range(100):
        await a.publish("doll", str(number))
    await b.publish("bear", "for the bear")
    texts = [json.loads(await doll.recv())["text"] for _ in range(100)]
    assert texts == [str(number) for number in range(100)]
    assert json.loads(await bear.recv())["text"] == "for the bear"
    assert (a.gateway.counters.routed, a.gateway.counters.unknown_device) == (0, 0)
    assert (b.gateway.counters.routed, b.gateway.counters.unknown_device) == (101, 0)


async def texts_of(device: ClientConnection, count: int) -> list[str]:
    """The texts of the next messages. A gap notice counts as one."""
    messages = [json.loads(await device.recv()) for _ in range(count)]
    return [message["text"] if "text" in message else f"missed {message['missed']}" for message in messages]


async def test_users_groups_and_everyone_are_reached_at_both_gateways(two_gateways: Two) -> None:
    a, b = two_gateways
    here = await a.connect_with(a.token("here", groups=["red"]))
    there, blue = await b.connect_with(b.token("there", groups=["red"])), await b.connect_with(b.token("blue"))
    await a.publish("", "all", to={"all": True})
    await a.publish("", "user", to={"user": 99}, **{"except": {"devices": ["here"]}})
    await a.publish("", "nobody", to={"user": "99"})
    await a.publish("", "late", to={"group": "red"}, ttl=0)
    await b.publish("", "group", to={"group": "red"})
    assert sorted(await texts_of(here, 3)) == ["all", "group", "late"]
    assert sorted(await texts_of(there, 4)) == ["all", "group", "late", "user"]
    assert await texts_of(blue, 2) == ["all", "user"]


async def shared(neighbors: Neighbors) -> tuple[Harness, Harness, MemoryMailbox]:
    mailbox = MemoryMailbox(BoxLimits())
    a, b = [await Harness.start(neighbors=neighbors, shared_mailbox=mailbox) for _ in range(2)]
    return a, b, mailbox


async def leave(device: ClientConnection, harness: Harness, device_id: str) -> None:
    await device.close()
    await eventually(lambda: not harness.gateway.hub.is_device_connected(device_id))


@IN_MEMORY
async def test_with_a_mailbox_members_are_reached_at_both_gateways_and_in_their_boxes(neighbors: Neighbors) -> None:
    a, b, mailbox = await shared(neighbors)
    here = await a.connect_with(a.token("here", groups=["red"]))
    there, away = [await b.connect_with(b.token(name, groups=["red"])) for name in ("there", "away")]
    await leave(away, b, "away")
    await a.publish("", "red", to={"group": "red"}, **{"except": {"devices": ["other"]}})
    await b.publish("", "all", to={"all": True})
    for device in (here, there):
        assert sorted(await texts_of(device, 2)) == ["all", "red"]
    assert a.gateway.counters.kept + b.gateway.counters.kept == 2
    away = await a.connect_with(a.token("away", groups=["blue"]))  # it has left the group
    assert await texts_of(away, 1) == ["all"]
    assert mailbox.counters.withdrawn == 1
    await b.publish("", "once more", to={"group": "red"})
    await b.publish("away", "for itself")
    assert await texts_of(away, 1) == ["for itself"]
    await a.stop()
    await b.stop()


@IN_MEMORY
async def test_with_a_mailbox_a_device_gets_its_101_once_the_other_gateway_can_see_that_it_is_a_member(
    neighbors: Neighbors, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, mailbox = await shared(neighbors)
    b.gateway.presence.lease.is_shared = True  # as it is in Redis
    monkeypatch.setattr(device_socket, "HOLD_S", 60.0)
    join, held = mailbox.join, asyncio.get_running_loop().create_future()
    joining: list[tuple[str, frozenset[Audience]]] = []

    def join_late(device_id: str, audiences: frozenset[Audience], token: object = None) -> asyncio.Future[None]:
        joining.append((device_id, audiences))
        return held

    monkeypatch.setattr(mailbox, "join", join_late)
    connecting = asyncio.ensure_future(b.connect_with(b.token("doll", groups=["red"])))
    await eventually(lambda: bool(joining))
    assert (await b.http("GET", "/api/v1/health")).status == 200
    assert not connecting.done()
    await join(*joining[0])
    held.set_result(None)
    doll = await connecting
    await a.publish("", "red", to={"group": "red"})
    assert await texts_of(doll, 1) == ["red"]
    await a.stop()
    await b.stop()


@IN_MEMORY
async def test_a_mailbox_that_is_not_ready_keeps_no_device_without_its_101(
    neighbors: Neighbors, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, mailbox = await shared(neighbors)
    b.gateway.presence.lease.is_shared = True
    monkeypatch.setattr(device_socket, "HOLD_S", 60.0)
    opening = dataclasses.replace(mailbox.status(), state=MailboxState.OPENING)
    monkeypatch.setattr(mailbox, "status", lambda: opening)
    monkeypatch.setattr(mailbox, "join", lambda *_: asyncio.get_running_loop().create_future())
    await b.connect("doll")
    monkeypatch.undo()
    await a.stop()
    await b.stop()


@IN_MEMORY
async def test_with_a_mailbox_options_hold_whichever_gateway_reads_and_serves(neighbors: Neighbors) -> None:
    a, b, mailbox = await shared(neighbors)
    await leave(await b.connect("doll"), b, "doll")
    long_ago_ms = 1_000
    await a.publish("doll", "normal", id="x")
    await a.publish("doll", "old state", collapse_key="state")
    await a.publish("", "high", to={"user": 99}, priority="high")
    await a.publish("", "new state", to={"user": 99}, collapse_key="state")
    await a.publish("doll", "normal again", id="x")
    await a.publish("doll", "for those who are here", ttl=0)
    mailbox.append([Entry("doll", b'{"text":"expired"}', long_ago_ms, "elsewhere/0", 0, Options(ttl_s=1), 2_000)])
    doll = await b.connect("doll")
    assert sorted(await texts_of(doll, 4)) == ["high", "missed 1", "new state", "normal"]
    counters = mailbox.counters
    assert (counters.collapsed, counters.duplicates, counters.stored) == (1, 1, 5)
    await a.publish("doll", "now", ttl=0)
    await a.publish("doll", "later", ttl=60, priority="low")
    assert sorted(await texts_of(doll, 2)) == ["later", "now"]
    await a.stop()
    await b.stop()


@IN_MEMORY
async def test_with_a_mailbox_a_message_that_is_forwarded_does_not_arrive_after_one_that_was_stored_later(
    neighbors: Neighbors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are read in one batch. The device has the later one from its box before the forwarded one arrives."""
    a, b, _ = await shared(neighbors)
    doll = await b.connect("doll")
    send, held = a.gateway.relay.send, list[Forward]()

    def send_late(server: str, message: RelayMessage) -> asyncio.Future[Fate]:
        if not isinstance(message, Forward):
            return send(server, message)
        held.append(message)
        sent: asyncio.Future[Fate] = asyncio.get_running_loop().create_future()
        sent.set_result(Fate.ACCEPTED)
        return sent

    monkeypatch.setattr(a.gateway.relay, "send", send_late)
    record = b'{"type":"transcription","text":"%b"}'
    now = Options(ttl_s=0)
    batch = [
        Record("doll", record % b"partial", 0, interim_of="s"),
        Record("doll", record % b"now", 0, options=now),
        Record("doll", record % b"later", 0),
    ]
    a.gateway.wiring.router(Batch(batch, lambda: None, [0, 1, 2], [("results/0", 3)]))
    assert await texts_of(doll, 1) == ["later"]
    await eventually(lambda: bool(held))
    send(b.gateway.presence.lease.server, held[0])
    await eventually(lambda: b.gateway.counters.dropped == {"interim": 1, "catching_up": 1})
    await b.publish("doll", "last")
    assert await texts_of(doll, 1) == ["last"]
    await a.stop()
    await b.stop()


@IN_MEMORY
async def test_with_a_mailbox_what_one_gateway_stores_the_other_sends_at_once(neighbors: Neighbors) -> None:
    a, b, _ = await shared(neighbors)
    doll = await b.connect("doll")
    await a.publish("doll", "here")
    assert json.loads(await doll.recv())["text"] == "here"
    await doll.close()
    await eventually(lambda: not b.gateway.hub.is_device_connected("doll"))
    await a.publish("doll", "while it was away")
    await eventually(lambda: a.gateway.counters.kept == 1)
    doll = await a.connect("doll")
    assert json.loads(await doll.recv())["text"] == "while it was away"
    await a.stop()
    await b.stop()
