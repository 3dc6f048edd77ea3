"""What every relay promises (cocoa_tornado.relay.port), held against each of them."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle

import msgspec
import pytest

from cocoa_tornado.relay.messages import (
    Answer,
    Challenge,
    Eviction,
    Forward,
    Query,
    RelayMessage,
    Reply,
    WakeUp,
    WakeUpMembers,
)
from cocoa_tornado.relay.port import Fate, RelayLimits, RelayState
from cocoa_tornado.routing.address import Everyone, Group, User
from cocoa_tornado.rules.claims import Claim, Generation
from cocoa_tornado.rules.close_codes import REPLACED
from cocoa_tornado.rules.terms import Terms
from testing.waiting import eventually

from .stands import Inbox, RelayStand, forward

pytestmark = pytest.mark.gen_test(timeout=60)

LOSSES = pytest.mark.logs("cocoa.relay", "relay messages lost", optional=True)
A, B = Claim("a", 1), Claim("b", 7)
ONE_OF_EACH: list[RelayMessage] = [
    forward(1, 2, payload='{"text":"grüß dich"}'.encode()),
    WakeUp(("doll", "müller")),
    WakeUpMembers(User("99", frozenset({"doll"}))),
    Forward((msgspec.structs.replace(forward(3).messages[0], address=Group("red"), terms=Terms(priority="high")),)),
    Challenge("doll", A, B),
    Answer("doll", A, B, "alive"),
    Eviction("doll", Generation(3, 4), REPLACED),
    Query(5, "devices", b"{}"),
    Reply(5, b"{}"),
]


async def test_every_kind_arrives_as_it_was_sent_with_the_name_of_its_sender(stand: RelayStand) -> None:
    a, b = await stand.open(2)
    a.join("a")
    b.join("b")
    arrived: list[tuple[str, RelayMessage]] = []
    kinds: tuple[type[RelayMessage], ...] = (Forward, WakeUp, WakeUpMembers, Challenge, Answer, Eviction, Query, Reply)
    for kind in kinds:
        b.handle(kind, lambda sender, message: arrived.append((sender, message)))
    for message in ONE_OF_EACH:
        assert await a.send("b", message) is Fate.ACCEPTED
    await eventually(lambda: len(arrived) == len(ONE_OF_EACH))
    assert arrived == [("a", message) for message in ONE_OF_EACH]
    assert a.counters.accepted == {
        "forward": 3,
        "wake_up": 3,
        "challenge": 1,
        "answer": 1,
        "eviction": 1,
        "query": 1,
        "reply": 1,
    }
    assert b.counters.received == a.counters.accepted


async def test_messages_between_two_servers_keep_their_order(stand: RelayStand) -> None:
    a, b = await stand.open(2)
    a.join("a")
    b.join("b")
    inbox = Inbox(b)
    sent = [forward(n) if n % 3 else WakeUp((str(n),)) for n in range(500)]
    for at, message in enumerate(sent):
        a.send("b", message)
        if at % 50 == 0:
            await asyncio.sleep(0)
    await eventually(lambda: len(inbox.arrived) == 500)
    assert inbox.messages == sent


async def test_a_server_reaches_several_others_and_itself(stand: RelayStand) -> None:
    relays = await stand.open(3)
    inboxes = [Inbox(relay) for relay in relays]
    for name, relay in zip("abc", relays, strict=True):
        relay.join(name)
    for to in "abc":
        assert await relays[0].send(to, WakeUp((to,))) is Fate.ACCEPTED
    await eventually(lambda: all(inbox.arrived for inbox in inboxes))
    assert [inbox.arrived for inbox in inboxes] == [[("a", WakeUp((to,)))] for to in "abc"]


async def test_nothing_is_handed_over_within_a_call_of_send(stand: RelayStand) -> None:
    a, b = await stand.open(2)
    a.join("a")
    b.join("b")
    inbox = Inbox(b)
    a.send("b", forward(1))
    a.send("b", forward(2))
    assert inbox.arrived == []
    await eventually(lambda: len(inbox.arrived) == 2)


async def test_an_unknown_server_is_reported_and_counted(stand: RelayStand) -> None:
    (a,) = await stand.open(1)
    a.join("a")
    assert await a.send("unknown", forward(1, 2)) is Fate.NO_SERVER
    assert (a.counters.refused, a.counters.accepted) == ({"no_server": 2}, {})


async def test_a_server_that_has_ended_is_reported_and_its_inbox_ends_with_it(stand: RelayStand) -> None:
    a, b = await stand.open(2)
    a.join("a")
    b.join("b")
    inbox = Inbox(b)
    sent = a.send("b", forward(1))
    await b.close(5.0)
    await b.close(5.0)
    assert b.status().state is RelayState.CLOSED
    assert await sent is Fate.ACCEPTED
    assert await a.send("b", forward(2)) is Fate.NO_SERVER
    assert inbox.arrived == []
    assert await b.send("a", forward(3)) is Fate.CLOSED


async def test_a_server_that_joins_again_under_another_epoch_is_not_reached_under_the_old_one(
    stand: RelayStand,
) -> None:
    a, b = await stand.open(2)
    a.join("a")
    b.join("b1")
    inbox = Inbox(b)
    a.send("b1", forward(1))  # for the old epoch: not for what this server is now
    b.join("b2")
    assert (b.server, b.status().state) == ("b2", RelayState.READY)
    assert await a.send("b1", forward(2)) is Fate.NO_SERVER
    assert await a.send("b2", forward(3)) is Fate.ACCEPTED
    await eventually(lambda: bool(inbox.arrived))
    assert inbox.messages == [forward(3)]


async def test_nothing_is_sent_before_the_first_join(stand: RelayStand) -> None:
    a, b = await stand.open(2)
    b.join("b")
    assert a.status().state is RelayState.CONNECTING
    assert await a.send("b", forward(1)) is Fate.CLOSED


@LOSSES
async def test_an_inbox_is_bounded_in_number_and_what_waits_in_it_is_kept(stand: RelayStand) -> None:
    a, b = await stand.open(2, RelayLimits(max_messages=5))
    a.join("a")
    b.join("b")
    inbox = Inbox(b)
    fates = [a.send("b", forward(n, n + 1)) for n in (1, 3, 5)]
    assert [await fate for fate in fates] == [Fate.ACCEPTED, Fate.ACCEPTED, Fate.OVERFLOW]
    assert a.counters.refused == {"overflow": 2}
    await eventually(lambda: len(inbox.arrived) == 2)
    assert inbox.messages == [forward(1, 2), forward(3, 4)]
    assert await a.send("b", forward(5, 6)) is Fate.ACCEPTED, "once it has been read there is room again"


@LOSSES
async def test_a_server_whose_inbox_was_full_is_notified_of_the_loss(stand: RelayStand) -> None:
    a, b = await stand.open(2, RelayLimits(max_messages=3))
    a.join("a")
    b.join("b")
    inbox = Inbox(b)
    fates = [a.send("b", forward(n, n + 1)) for n in (1, 3)]
    assert [await fate for fate in fates] == [Fate.ACCEPTED, Fate.OVERFLOW]
    await eventually(lambda: inbox.losses == 1)
    assert b.counters.losses == 1
    assert await a.send("b", forward(5)) is Fate.ACCEPTED
    await eventually(lambda: len(inbox.arrived) == 2)
    assert inbox.losses == 1, "each loss is reported once"


async def test_a_server_that_joins_again_may_have_lost_messages(stand: RelayStand) -> None:
    (a,) = await stand.open(1)
    inbox = Inbox(a)
    a.join("a1")
    await asyncio.sleep(0)
    assert inbox.losses == 0
    a.join("a2")
    await eventually(lambda: inbox.losses == 1)


@LOSSES
async def test_an_inbox_is_bounded_in_bytes(stand: RelayStand) -> None:
    a, b = await stand.open(2, RelayLimits(max_bytes=10_000))
    a.join("a")
    b.join("b")
    fates = [a.send("b", forward(n, payload=b"x" * 4_000)) for n in range(3)]
    assert [await fate for fate in fates] == [Fate.ACCEPTED, Fate.ACCEPTED, Fate.OVERFLOW]


@LOSSES
async def test_an_inbox_counts_every_string_of_a_message(stand: RelayStand) -> None:
    """The session of a hypothesis may be as long as a record."""
    a, b = await stand.open(2, RelayLimits(max_bytes=10_000))
    a.join("a")
    b.join("b")
    long, plain = "s" * 10_000, forward(0).messages[0]
    for message in (
        msgspec.structs.replace(plain, address=long),
        msgspec.structs.replace(plain, address=Group(long)),
        msgspec.structs.replace(plain, address=User(long)),
        msgspec.structs.replace(plain, address=Everyone(frozenset({long}))),
        msgspec.structs.replace(plain, source=long),
        msgspec.structs.replace(plain, terms=Terms(interim_of=long)),
        msgspec.structs.replace(plain, terms=Terms(collapse_key=long)),
        msgspec.structs.replace(plain, terms=Terms(id=long)),
    ):
        assert await a.send("b", Forward((message,))) is Fate.OVERFLOW


@pytest.mark.logs("cocoa.relay", "relay message failed")
async def test_a_failing_handler_does_not_affect_the_others(stand: RelayStand) -> None:
    a, b = await stand.open(2)
    a.join("a")
    b.join("b")
    inbox = Inbox(b)

    def fail(sender: str, message: WakeUp) -> None:
        raise RuntimeError("boom")

    b.handle(WakeUp, fail)
    for message in (forward(1), WakeUp(("doll",)), forward(2)):
        a.send("b", message)
    await eventually(lambda: len(inbox.arrived) == 2)


async def test_a_message_without_a_handler_is_dropped(stand: RelayStand) -> None:
    a, b = await stand.open(2)
    a.join("a")
    b.join("b")
    inbox = Inbox(b)
    a.send("b", Answer("doll", A, B, "gone"))
    a.send("b", forward(1))
    await eventually(lambda: bool(inbox.arrived))
    assert b.counters.received == {"answer": 1, "forward": 1}


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda message: message.kind)
def test_a_message_is_a_frozen_value_of_plain_parts(message: RelayMessage) -> None:
    assert pickle.loads(pickle.dumps(message)) == message
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.__setattr__(dataclasses.fields(message)[0].name, "other")
