"""The shell around ``box_reader.py``, and acknowledgements that arrive before the gateway has looked at the box."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Sequence
from typing import Any

import pytest

from cocoa_tornado.connection.feed import BoxFeed
from cocoa_tornado.connection.mail import REFRESH_S, Mail, refresh_period_s
from cocoa_tornado.connection.making_room import OutboxLimits, Withdrawn
from cocoa_tornado.connection.outbox import Outbox
from cocoa_tornado.connection.transients import MOST_MESSAGES
from cocoa_tornado.counters import Counters
from cocoa_tornado.errors import MailboxClosed, MailboxError, Superseded
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Entry, LaneRead
from cocoa_tornado.rules.addressing import Options, Priority
from cocoa_tornado.rules.audiences import ALL
from cocoa_tornado.rules.box import NO_CURSOR_YET, Box, BoxLimits, LaneName, Numbers, Position
from cocoa_tornado.rules.claims import FencingToken
from cocoa_tornado.rules.cursors import make_cursor, read_cursor
from cocoa_tornado.rules.feed import Page
from cocoa_tornado.rules.retracted import RetractedRun
from cocoa_tornado.rules.terms import Later, Terms
from testing.waiting import eventually

from .wire import sent_frames

pytestmark = pytest.mark.gen_test

AUDIENCES = frozenset({ALL})
HIGH = Options("high")
LIMITS = BoxLimits()


class SlowMailbox(MemoryMailbox):
    """A mailbox that answers looks only on demand."""

    def __init__(self) -> None:
        super().__init__(BoxLimits())
        self.may_look = asyncio.Event()
        self.looks_waiting = 0
        self.failures = 0  # of looks, that are still to come
        self.unreadable, self.is_closed = "", False

    def look(self, device_id: str) -> asyncio.Future[Box]:
        return asyncio.ensure_future(self._look_later(device_id))

    async def _look_later(self, device_id: str) -> Box:
        self.looks_waiting += 1
        await self.may_look.wait()
        self.looks_waiting -= 1
        if self.is_closed:
            raise MailboxClosed("closed")
        if device_id == self.unreadable:
            raise MailboxError("unreadable")
        if self.failures:
            self.failures -= 1
            raise MailboxError("away")
        return await super().look(device_id)

    async def close(self, timeout_s: float) -> None:
        self.is_closed = True

    async def is_asked(self) -> None:
        """Wait until a feed that has joined looks into its box."""
        await eventually(lambda: self.looks_waiting > 0)


class Outlet:
    """A connection with an outbox. The socket takes a write as a whole."""

    def __init__(self, max_messages: int = 256) -> None:
        self.sent: list[bytes] = []
        self.limits = OutboxLimits(max_messages=max_messages)
        self.outbox = Outbox()
        self.feed: BoxFeed | None = None
        self.now = 1000.0
        self.is_superseded = False

    def send(self, frame: bytes, timestamp_ms: int, terms: Terms | None = None) -> None:
        self.offer(frame, timestamp_ms, terms)

    def offer(self, body: bytes, timestamp_ms: int, terms: Terms | None = None) -> bool:
        return self.outbox.push(body, timestamp_ms, self.limits, terms)

    def make_room(self, body: bytes, terms: Terms, least: int) -> Withdrawn:
        return self.outbox.withdraw(body, self.limits, terms, least)

    def collapse(self, key: str, below: Numbers | None = None) -> None:
        self.outbox.collapse(key, below)

    def joined(self) -> None: ...

    def superseded(self) -> None:
        self.is_superseded = True

    def has_nothing_to_write(self) -> bool:
        return not self.outbox.has_queued

    def has_no_high_to_write(self) -> bool:
        return not self.outbox.has_high

    def outbox_limits(self) -> OutboxLimits:
        return self.limits

    def who(self) -> dict[str, object]:
        return {"device_id": "doll"}

    # -- outbox.Taker

    def now_ms(self) -> float:
        return self.now * 1000

    def frame_of(self, payload: bytes, lane: LaneName, number: int) -> bytes | None:
        assert self.feed is not None
        return self.feed.frame_of(payload, lane, number)

    def note_expired(self, terms: Terms, body: bytes = b"", timestamp_ms: int = 0) -> None:
        assert self.feed is not None
        notice = self.feed.expired(terms)
        if notice is not None:
            assert self.outbox.push(b"", 0, self.limits, notice)

    async def write(self) -> list[object]:
        """The socket takes everything. Returns what it is: the numbers of messages, and of missed ones in brackets."""
        assert self.feed is not None
        written: list[object] = []
        for _ in range(20):
            self.feed.begin_write()
            data = self.outbox.take(self)
            _, numbered = self.outbox.given_all()
            self.feed.given(numbered)
            self.sent += [frame.payload for frame in sent_frames(data)]
            written += [_summary(json.loads(frame.payload)) for frame in sent_frames(data)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return written


def _summary(message: dict[str, object]) -> object:
    return [message["missed"]] if message["type"] == "gap" else message["n"]


def fed(mailbox: MemoryMailbox, outlet: Outlet, after: Position | None = None, **mail: Any) -> BoxFeed:
    counters = mail.get("counters", Counters())
    clock, refresh_s = mail.get("clock", lambda: 0.0), mail.get("refresh_s", REFRESH_S)
    feed = BoxFeed(Mail(mailbox, counters, clock, refresh_s), outlet, "doll", after)
    outlet.feed = feed
    return feed


async def keep(mailbox: MemoryMailbox, number: int, options: Options | None = None, expires_ms: int = 0) -> int:
    entry = Entry("doll", b'{"type":"t","n":%d}' % number, 1, "results/0", number, options, expires_ms)
    (stored,) = await mailbox.append([entry])
    assert stored is not None
    return stored


async def live(mailbox: MemoryMailbox, outlet: Outlet, after: Position | None = None) -> BoxFeed:
    feed = fed(mailbox, outlet, after)
    feed.open(AUDIENCES)
    await outlet.write()
    return feed


async def say(feed: BoxFeed, mailbox: MemoryMailbox, at: int, options: Options | None = None, ttl_ms: int = 0) -> None:
    """A message is stored while its device is connected."""
    number = await keep(mailbox, at, options, ttl_ms)
    feed.stored(number, b'{"type":"t","n":%d}' % at, 1, options, ttl_ms)


async def acknowledge_and_leave(mailbox: SlowMailbox, number: int) -> Counters:
    """A device sends an acknowledgement, and disconnects before the gateway has looked into its box."""
    await mailbox.start()
    entries = [Entry("doll", b'{"type":"t","n":%d}' % at, 1, "results/0", at) for at in range(3)]
    await mailbox.append(entries)
    assert mailbox.key is not None
    counters = Counters()
    feed = fed(mailbox, Outlet(), counters=counters)
    feed.open(AUDIENCES)
    await mailbox.is_asked()
    cursor = make_cursor(mailbox.key, "doll", Position(number))
    assert feed.take_ack(json.dumps({"type": "ack", "cursor": cursor}))
    feed.close()
    await eventually(lambda: mailbox.looks_waiting == 2)  # the feed's, which is of no use now
    mailbox.may_look.set()
    await eventually(lambda: mailbox.looks_waiting == 0)
    return counters


async def test_an_acknowledgement_counts_though_the_device_left_at_once() -> None:
    mailbox = SlowMailbox()
    await acknowledge_and_leave(mailbox, 2)
    await eventually(lambda: mailbox.counters.acknowledged == 2)
    assert mailbox.status().messages == 1


@pytest.mark.logs("cocoa.device", "acknowledgement of an unknown cursor")
async def test_one_beyond_the_end_of_the_box_still_counts_for_nothing() -> None:
    mailbox = SlowMailbox()
    counters = await acknowledge_and_leave(mailbox, 4)
    await eventually(lambda: counters.bad_acks == 1)
    assert mailbox.status().messages == 3


async def test_an_acknowledgement_counts_though_the_mailbox_was_away_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cocoa_tornado.connection.mail.RETRY_BASE_S", 0.01)
    mailbox = SlowMailbox()
    mailbox.failures = 3
    await acknowledge_and_leave(mailbox, 2)
    await eventually(lambda: mailbox.counters.acknowledged == 2)
    assert (mailbox.failures, mailbox.status().messages) == (0, 1)


@pytest.mark.logs("cocoa.device", "^acknowledgement dropped$")
async def test_acknowledgements_of_devices_that_left_are_bounded_while_the_mailbox_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One for each device. Nothing else is kept of their connections."""
    monkeypatch.setattr("cocoa_tornado.connection.mail.MAX_LATE_ACKS", 3)
    mailbox = SlowMailbox()
    await mailbox.start()
    names = [f"doll-{number}" for number in range(5)]
    numbers = await mailbox.append([Entry(name, b"{}", 1, "results/0", at) for at, name in enumerate(names * 2)])
    assert mailbox.key is not None
    counters = Counters()
    mail = Mail(mailbox, counters, lambda: 0.0)
    connections: list[weakref.ref[Outlet]] = []
    for name, number in zip(names + names[:3], numbers, strict=False):
        assert number is not None
        outlet = Outlet()
        feed = BoxFeed(mail, outlet, name, None)
        feed.open(AUDIENCES)
        cursor = make_cursor(mailbox.key, name, Position(number))
        assert feed.take_ack(json.dumps({"type": "ack", "cursor": cursor}))
        feed.close()
        connections.append(weakref.ref(outlet))
        del feed, outlet
    assert (len(mail.late_acks), counters.acks_dropped) == (3, 2)
    mailbox.may_look.set()
    await eventually(lambda: mailbox.counters.acknowledged == 6)
    assert len(mail.late_acks) == 0
    await eventually(lambda: mailbox.looks_waiting == 0)
    assert not any(connection() for connection in connections)


async def test_a_box_that_cannot_be_read_holds_up_no_other_devices_late_acknowledgement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cocoa_tornado.connection.mail.RETRY_BASE_S", 0.01)
    mailbox = SlowMailbox()
    await mailbox.start()
    await mailbox.append([Entry("doll", b"{}", 1, "results/0", 0)])
    mailbox.unreadable, mail = "bad", Mail(mailbox, Counters(), lambda: 0.0)
    mailbox.may_look.set()
    mail.late_acks.add("bad", Position(1), {})
    mail.late_acks.add("doll", Position(1), {})
    await eventually(lambda: mailbox.counters.acknowledged == 1)
    assert len(mail.late_acks) == 1
    await mailbox.close(1.0)
    # Otherwise a look would fail after the test, unnoticed.
    await eventually(lambda: len(mail.late_acks) == 0)


async def test_a_mailbox_that_is_closed_ends_the_wait_for_it() -> None:
    mailbox = SlowMailbox()
    await mailbox.start()
    mail = Mail(mailbox, Counters(), lambda: 0.0)
    mail.late_acks.add("doll", Position(1), {})
    await mailbox.close(1.0)
    mailbox.may_look.set()
    await eventually(lambda: len(mail.late_acks) == 0)


async def ready(limits: BoxLimits = LIMITS) -> MemoryMailbox:
    mailbox = MemoryMailbox(limits, lambda: 1000.0)
    await mailbox.start()
    return mailbox


async def test_what_the_outbox_has_no_room_for_is_read_from_the_box_once_there_is() -> None:
    mailbox, outlet = await ready(), Outlet(max_messages=3)
    feed = await live(mailbox, outlet)
    for at in range(9):
        await say(feed, mailbox, at)
    assert len(outlet.outbox) == 3
    assert await outlet.write() == list(range(9))
    assert (await mailbox.look("doll")).written == Numbers(9, 0)


async def test_high_messages_overtake_in_the_box_and_in_the_outbox() -> None:
    mailbox, outlet = await ready(), Outlet()
    for at in range(3):
        await keep(mailbox, at)
        await keep(mailbox, 10 + at, HIGH)
    feed = fed(mailbox, outlet)
    feed.open(AUDIENCES)
    assert await outlet.write() == [10, 11, 12, 0, 1, 2]
    await say(feed, mailbox, 3)
    await say(feed, mailbox, 13, HIGH)
    assert await outlet.write() == [13, 3]


async def test_eight_high_messages_go_before_a_normal_one_while_more_of_them_are_in_the_box() -> None:
    mailbox, outlet = await ready(), Outlet(max_messages=32)
    for at in range(40):
        await keep(mailbox, at, HIGH)
    for at in range(100, 105):
        await keep(mailbox, at)
    fed(mailbox, outlet).open(AUDIENCES)
    written = await outlet.write()
    assert sorted(map(str, written)) == sorted(map(str, [*range(40), *range(100, 105)]))
    assert written[:9] == [*range(8), 100]
    assert written.index(103) < written.index(39)


async def test_a_high_message_takes_the_room_of_the_newest_normal_ones_which_are_sent_later() -> None:
    mailbox, outlet = await ready(), Outlet(max_messages=3)
    feed = await live(mailbox, outlet)
    for at in range(3):
        await say(feed, mailbox, at)
    for at in (10, 11):
        await say(feed, mailbox, at, HIGH)
    assert len(outlet.outbox) == 3
    await say(feed, mailbox, 3)
    assert await outlet.write() == [10, 11, 0, 1, 2, 3]
    assert (await mailbox.look("doll")).written == Numbers(4, 2)


async def test_in_place_of_what_expires_in_the_outbox_the_device_gets_a_notice() -> None:
    mailbox, outlet = await ready(), Outlet()
    feed = await live(mailbox, outlet)
    for at in range(6):
        await say(feed, mailbox, at, ttl_ms=0 if at in (0, 3) else 1_000_500)
    outlet.now += 1
    assert await outlet.write() == [0, [2], 3, [2]]
    assert (await mailbox.look("doll")).written == Numbers(6, 0)


async def test_a_queued_message_gives_way_to_a_newer_one_with_its_collapse_key() -> None:
    mailbox, outlet = await ready(), Outlet()
    feed = await live(mailbox, outlet)
    await keep(mailbox, 0, Options(collapse_key="k"))
    feed.look_again()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(outlet.outbox) == 1  # out of the box
    await say(feed, mailbox, 1)
    await say(feed, mailbox, 2, Options("high", collapse_key="k"))
    assert await outlet.write() == [2, 1]
    assert (await mailbox.look("doll")).normal.retracted == (RetractedRun(1, 1, 1),)


async def from_the_box(feed: BoxFeed, mailbox: MemoryMailbox, at: int, options: Options) -> int:
    """A page brings a message before the router says that it is stored."""
    number = await keep(mailbox, at, options)
    feed.look_again()
    for _ in range(5):
        await asyncio.sleep(0)
    return number


@pytest.mark.parametrize("priority", ["normal", "high"])
async def test_a_message_that_a_page_brought_before_it_was_routed_does_not_replace_itself(priority: Priority) -> None:
    mailbox, outlet, keyed = await ready(), Outlet(), Options(priority, collapse_key="k")
    feed = await live(mailbox, outlet)
    number = await from_the_box(feed, mailbox, 1, keyed)
    assert len(outlet.outbox) == 1
    feed.stored(number, transient(1), 1, keyed)
    await say(feed, mailbox, 2)
    assert sorted(map(str, await outlet.write())) == ["1", "2"]


@pytest.mark.parametrize("priority", ["normal", "high"])
async def test_an_older_message_does_not_replace_a_newer_one_that_a_page_brought(priority: Priority) -> None:
    mailbox, outlet, keyed = await ready(), Outlet(), Options(collapse_key="k")
    feed = await live(mailbox, outlet)
    entry = Entry("doll", b"", 1, "results/0", 50, Options(ttl_s=0, collapse_key="k"))
    (after,) = await mailbox.append([entry])
    older = await keep(mailbox, 1, keyed)
    await from_the_box(feed, mailbox, 2, Options(priority, collapse_key="k"))
    feed.suggest(transient(0), 1, Terms(collapse_key="k"), after)
    feed.stored(older, transient(1), 1, keyed)
    assert 2 in await outlet.write()


async def test_what_a_page_brings_does_not_replace_what_was_routed_meanwhile_in_the_other_lane() -> None:
    mailbox, outlet = await ready(), Outlet()
    await keep(mailbox, 0, Options(collapse_key="k"))
    feed = fed(mailbox, outlet)
    feed.open(AUDIENCES)
    while feed._asked is None or not isinstance(feed._asked.result(), list):
        await asyncio.sleep(0)
    await say(feed, mailbox, 1, Options("high", collapse_key="k"))
    assert 1 in await outlet.write()


async def test_what_a_page_brings_replaces_what_is_queued_in_either_lane() -> None:
    mailbox, outlet = await ready(), Outlet()
    feed = await live(mailbox, outlet)
    await say(feed, mailbox, 0, Options(collapse_key="k"))
    await say(feed, mailbox, 1)
    await from_the_box(feed, mailbox, 2, Options("high", collapse_key="k"))
    assert await outlet.write() == [2, 1]


async def test_what_a_page_brings_that_was_replaced_meanwhile_is_not_sent() -> None:
    mailbox, outlet = await ready(), Outlet()
    await keep(mailbox, 0, Options(collapse_key="k"))
    await keep(mailbox, 1)
    feed = fed(mailbox, outlet)
    feed.open(AUDIENCES)
    while feed._asked is None or not isinstance(feed._asked.result(), list):
        await asyncio.sleep(0)
    await say(feed, mailbox, 2, Options(collapse_key="k"))  # the page was read before, and arrives afterwards
    assert await outlet.write() == [1, 2]


def transient(number: int) -> bytes:
    return b'{"type":"t","n":%d}' % number


async def test_a_transient_message_waits_for_the_box_in_its_place_and_an_interim_is_dropped() -> None:
    mailbox, counters, outlet = SlowMailbox(), Counters(), Outlet()
    await mailbox.start()
    for number in (0, 1):
        await keep(mailbox, number)
    feed = fed(mailbox, outlet, counters=counters)
    feed.open(AUDIENCES)
    feed.suggest(transient(2), 0, Terms("session"))
    feed.suggest(transient(3), 0, None)
    await say(feed, mailbox, 4)
    feed.suggest(transient(5), 0, None, 3)
    await mailbox.is_asked()
    assert await outlet.write() == []
    mailbox.may_look.set()
    await eventually(lambda: mailbox.looks_waiting == 0)
    assert await outlet.write() == [0, 1, 3, 4, 5]
    assert all(b"cursor" in message for message in outlet.sent)
    feed.suggest(transient(6), 0, None)
    feed.suggest(transient(7), 0, Terms("session"))
    assert await outlet.write() == [6, 7]
    assert counters.dropped == {"interim": 1}
    outlet.limits = OutboxLimits(max_messages=1)
    for _ in range(2):
        feed.suggest(transient(8), 0, None)
    assert counters.dropped == {"interim": 1, "overflow": 1}


async def test_nothing_is_searched_for_an_interim_that_is_dropped_in_any_case() -> None:
    mailbox, counters, outlet = await ready(), Counters(), Outlet()
    await keep(mailbox, 0)
    feed = fed(mailbox, outlet, counters=counters)
    feed.open(AUDIENCES)
    asked = list[LaneName]()
    feed.suggest(transient(1), 0, Terms("session"), None, asked.append)
    assert (asked, counters.dropped) == ([], {"interim": 1})


async def test_nothing_is_searched_for_a_device_whose_box_has_nothing_for_it() -> None:
    mailbox, outlet = await ready(), Outlet()
    for number in range(3):
        await keep(mailbox, number)
    mailbox.written("doll", Position(3))
    feed = await live(mailbox, outlet)
    asked = list[LaneName]()
    feed.suggest(transient(3), 0, Terms("session"), None, asked.append)
    feed.suggest(transient(4), 0, None, None, asked.append)
    assert (asked, await outlet.write()) == ([], [3, 4])


async def test_what_can_not_wait_while_the_box_is_read_is_dropped_and_counted() -> None:
    mailbox, counters, outlet = SlowMailbox(), Counters(), Outlet()
    await mailbox.start()
    await keep(mailbox, 0)
    feed = fed(mailbox, outlet, counters=counters)
    feed.open(AUDIENCES)
    for number in range(1, MOST_MESSAGES + 3):
        feed.suggest(transient(number), 0, None)
    assert counters.dropped == {"catching_up": 2}
    await mailbox.is_asked()
    mailbox.may_look.set()
    await eventually(lambda: mailbox.looks_waiting == 0)
    assert await outlet.write() == list(range(MOST_MESSAGES + 1))
    feed.look_again()  # what waits when the connection ends is lost
    feed.suggest(transient(100), 0, None)
    feed.close()
    feed.suggest(transient(101), 0, None)
    assert counters.dropped == {"catching_up": 4}
    assert await outlet.write() == []


async def test_a_transient_message_is_dropped_if_its_successor_was_read_from_the_box() -> None:
    mailbox, counters, outlet = await ready(), Counters(), Outlet()
    for number in range(3):
        await keep(mailbox, number)
    feed = fed(mailbox, outlet, counters=counters)
    feed.open(AUDIENCES)
    assert await outlet.write() == [0, 1, 2]
    feed.suggest(transient(3), 0, None, 2)
    feed.suggest(transient(4), 0, None, 3)
    feed.suggest(transient(5), 0, Terms(priority="high"), 0)
    assert await outlet.write() == [5, 4]
    assert counters.dropped == {"catching_up": 1}


async def test_what_was_read_from_the_box_ahead_of_the_router_is_not_followed_by_what_comes_before_it() -> None:
    mailbox, counters, outlet, asked = await ready(), Counters(), Outlet(), list[LaneName]()
    await keep(mailbox, 0)

    def later(*firsts: int | None) -> Later:
        found = iter(firsts)

        def first(lane: LaneName) -> int | None:
            asked.append(lane)
            return next(found)

        return first

    feed = fed(mailbox, outlet, counters=counters)
    feed.open(AUDIENCES)
    feed.suggest(transient(1), 0, None, None, later(None, None))  # asked again when the box has been looked at
    feed.suggest(transient(2), 0, None, None, later(None, 1))
    feed.suggest(transient(3), 0, None, None, later(None, 0))
    feed.suggest(transient(4), 0, None, None, later(1))
    assert await outlet.write() == [2, 4, 0, 1]
    assert (counters.dropped, len(asked)) == ({"catching_up": 1}, 7)
    feed.suggest(transient(5), 0, None, None, later(1))
    feed.suggest(transient(6), 0, None, None, later(0))
    feed.suggest(transient(7), 0, Terms("session"), None, later(1))
    assert await outlet.write() == []
    assert (counters.dropped, len(asked)) == ({"catching_up": 3, "interim": 1}, 10)
    feed.suggest(transient(8), 0, None, None, later(2))
    feed.suggest(transient(9), 0, None, None, later(None))
    feed.suggest(transient(10), 0, None, None, later())  # all that was read has been routed
    await say(feed, mailbox, 11)
    feed.suggest(transient(12), 0, Terms("session"), None, later())
    assert await outlet.write() == [8, 9, 10, 11, 12]
    assert len(asked) == 12


async def test_a_transient_message_behind_one_that_is_not_known_of_waits_for_it() -> None:
    mailbox, outlet = await ready(), Outlet()
    feed = await live(mailbox, outlet)
    await keep(mailbox, 0)  # whose number did not arrive here
    feed.suggest(transient(1), 0, None, 1)
    feed.look_again()
    feed.suggest(transient(2), 0, None)
    assert await outlet.write() == [0, 1, 2]


async def test_a_transient_message_does_not_overtake_what_there_was_no_room_for() -> None:
    mailbox, outlet = await ready(), Outlet()
    feed = await live(mailbox, outlet)
    outlet.limits = OutboxLimits(max_messages=2)
    for number in range(3):
        await say(feed, mailbox, number)
    feed.suggest(transient(3), 0, None)
    await say(feed, mailbox, 4)
    assert await outlet.write() == [0, 1, 2, 3, 4]


async def test_a_transient_message_does_not_overtake_what_was_taken_out_of_the_outbox() -> None:
    mailbox, counters, outlet = await ready(), Counters(), Outlet()
    feed = fed(mailbox, outlet, counters=counters)
    feed.open(AUDIENCES)
    await outlet.write()
    outlet.limits = OutboxLimits(max_messages=4)
    await say(feed, mailbox, 0)
    await say(feed, mailbox, 1)
    feed.suggest(transient(2), 0, None)
    feed.suggest(transient(3), 0, Terms("session"))
    await say(feed, mailbox, 4, HIGH)
    assert await outlet.write() == [4, 0, 1, 2]
    assert counters.dropped == {"interim": 1}


async def test_a_transient_message_replaces_what_is_queued_waits_or_is_under_way_and_is_itself_replaced() -> None:
    mailbox, counters, outlet = await ready(), Counters(), Outlet()
    keyed = Options(collapse_key="k")
    await keep(mailbox, 0, keyed)
    await keep(mailbox, 1)
    feed = fed(mailbox, outlet, counters=counters)
    feed.open(AUDIENCES)
    while feed._asked is None or not isinstance(feed._asked.result(), list):
        await asyncio.sleep(0)
    for number in (2, 3):  # the page was read before, and arrives afterwards
        entry = Entry("doll", b"", 1, "results/0", number, Options(ttl_s=0, collapse_key="k"))
        (after,) = await mailbox.append([entry])
        feed.suggest(transient(number), 0, Terms(collapse_key="k"), after)
    assert await outlet.write() == [1, 3]
    assert (mailbox.counters.collapsed, counters.collapsed) == (1, 1)
    await say(feed, mailbox, 4, keyed)
    feed.suggest(transient(5), 0, Terms(collapse_key="k"))
    await say(feed, mailbox, 6, keyed)
    assert await outlet.write() == [6]


async def test_a_transient_message_has_the_position_at_which_it_is_written() -> None:
    mailbox, outlet = await ready(), Outlet()
    feed = await live(mailbox, outlet)
    await say(feed, mailbox, 0)
    feed.suggest(b'{"type":"t","n":1}', 0, None)
    await say(feed, mailbox, 2)
    await say(feed, mailbox, 3, HIGH)
    assert await outlet.write() == [3, 0, 1, 2]
    cursors = [json.loads(message)["cursor"] for message in outlet.sent]
    key = mailbox.key
    assert key is not None
    positions = [read_cursor(key, "doll", cursor) for cursor in cursors]
    assert positions == [Position(0, 0, 1), Position(1, 0, 1), Position(1, 0, 1), Position(2, 0, 1)]


# -- members


class Joining(MemoryMailbox):
    """:ivar joined: the calls of join; :ivar refreshed: how often refresh was called"""

    def __init__(self) -> None:
        super().__init__(LIMITS)
        self.joined: list[tuple[str, frozenset[str]]] = []
        self.refreshed = 0
        self.may_join: asyncio.Future[None] | None = None

    def join(
        self, device_id: str, audiences: frozenset[str], fencing_token: FencingToken | None = None
    ) -> asyncio.Future[None]:
        self.joined.append((device_id, audiences))
        return self.may_join or super().join(device_id, audiences)

    def refresh(self, device_id: str, audiences: frozenset[str]) -> asyncio.Future[None]:
        self.refreshed += 1
        return super().refresh(device_id, audiences)


async def test_a_device_is_known_before_its_box_is_looked_at() -> None:
    mailbox, outlet = Joining(), Outlet()
    await mailbox.start()
    mailbox.may_join = asyncio.get_running_loop().create_future()
    await keep(mailbox, 0)
    feed = fed(mailbox, outlet)
    feed.open(AUDIENCES)
    feed.look_again()
    assert await outlet.write() == []
    mailbox.may_join.set_result(None)
    await asyncio.sleep(0)
    assert await outlet.write() == [0]
    assert mailbox.joined == [("doll", AUDIENCES)]


async def test_a_device_that_stays_is_refreshed_once_a_day_and_when_its_last_connection_ends() -> None:
    mailbox, now = Joining(), 0.0
    await mailbox.start()
    feed = fed(mailbox, Outlet(), clock=lambda: now)
    feed.open(AUDIENCES)
    now = REFRESH_S - 1
    assert not feed.is_refresh_due
    now = REFRESH_S
    assert feed.is_refresh_due
    feed.refresh(AUDIENCES)
    assert not feed.is_refresh_due
    assert mailbox.refreshed == 1
    feed.close(AUDIENCES)
    assert (mailbox.refreshed, len(mailbox.joined)) == (2, 1)


@pytest.mark.parametrize(("member_ttl_s", "period_s"), [(30 * 86_400, 86_400), (3_600, 1_800)])
async def test_a_device_that_stays_is_refreshed_before_it_is_forgotten(member_ttl_s: float, period_s: float) -> None:
    mailbox, now = Joining(), 0.0
    await mailbox.start()
    feed = fed(mailbox, Outlet(), clock=lambda: now, refresh_s=refresh_period_s(member_ttl_s))
    feed.open(AUDIENCES)
    now = period_s - 1
    assert not feed.is_refresh_due
    now = period_s
    assert feed.is_refresh_due


async def test_a_mailbox_that_is_closed_lets_a_connection_end() -> None:
    mailbox = await ready()
    feed = await live(mailbox, Outlet())
    await mailbox.close(1.0)
    feed.refresh(AUDIENCES)
    feed.close(AUDIENCES)


class Checking(MemoryMailbox):
    """A mailbox that several servers share, and which knows who holds the device."""

    holder: FencingToken | None = None

    def read(
        self, device_id: str, lanes: Sequence[LaneRead], fencing_token: FencingToken | None = None
    ) -> asyncio.Future[list[Page]]:
        if fencing_token == self.holder:
            return super().read(device_id, lanes, fencing_token)
        refused: asyncio.Future[list[Page]] = asyncio.get_running_loop().create_future()
        refused.set_exception(Superseded("another connection holds it"))
        return refused


async def test_what_was_marked_under_the_last_grant_is_marked_again_under_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mailbox, outlet = Checking(BoxLimits(), lambda: 1000.0), Outlet()
    marks: list[tuple[Position, FencingToken | None]] = []
    monkeypatch.setattr(mailbox, "written", lambda _, position, token=None: marks.append((position, token)))
    number = await keep(mailbox, 1)
    feed = fed(mailbox, outlet, NO_CURSOR_YET)
    first, second = FencingToken(1, "a:1:1"), FencingToken(2, "b:1:1")
    feed.fencing_token = mailbox.holder = first
    feed.open(frozenset())
    assert await outlet.write() == [1]
    assert marks == [(Position(number), first)]
    feed.regranted(second, frozenset())
    assert marks == [(Position(number), first), (Position(number), second)]
    feed.written()
    assert len(marks) == 2


async def test_a_superseded_connection_reads_nothing_and_ends() -> None:
    mailbox, outlet = Checking(BoxLimits(), lambda: 1000.0), Outlet()
    await keep(mailbox, 1)
    feed = fed(mailbox, outlet, NO_CURSOR_YET)
    feed.fencing_token = mailbox.holder = FencingToken(1, "a:1:1")
    feed.open(frozenset())
    assert await outlet.write() == [1]
    mailbox.holder = FencingToken(1, "b:1:2")
    await keep(mailbox, 2)
    feed.look_again()
    assert await outlet.write() == []
    assert outlet.is_superseded
