"""The shell around ``box_reader.py``, and acknowledgements that arrive before the gateway has looked at the box."""

from __future__ import annotations

import asyncio
import json
import weakref

import pytest

from cocoa_tornado.connection.feed import BoxFeed
from cocoa_tornado.connection.mail import Mail
from cocoa_tornado.connection.outbox import OutboxLimits
from cocoa_tornado.counters import Counters
from cocoa_tornado.errors import MailboxClosed, MailboxError
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Entry
from cocoa_tornado.rules.box import Box, BoxLimits, Position
from cocoa_tornado.rules.cursors import make_cursor
from cocoa_tornado.rules.frames import text_frame
from cocoa_tornado.rules.terms import Terms
from testing.waiting import eventually

pytestmark = pytest.mark.gen_test


class SlowMailbox(MemoryMailbox):
    """Looks into a box only when told to."""

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


class Outlet:
    """A connection that has room for so many frames."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.room = 100

    def send(self, frame: bytes, timestamp_ms: int, terms: Terms | None = None) -> None:
        self.sent.append(frame)

    def offer(self, body: bytes, timestamp_ms: int, terms: Terms | None = None) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.sent.append(body)
        return True

    def has_nothing_to_write(self) -> bool:
        return bool(self.room)

    def outbox_limits(self) -> OutboxLimits:
        return OutboxLimits()

    def who(self) -> dict[str, object]:
        return {"device_id": "doll"}


async def acknowledge_and_leave(mailbox: SlowMailbox, number: int) -> Counters:
    """A device sends an acknowledgement, and is gone before the gateway has looked into its box."""
    await mailbox.start()
    entries = [Entry("doll", b'{"type":"t","n":%d}' % at, 1, "results/0", at) for at in range(3)]
    await mailbox.append(entries)
    assert mailbox.key is not None
    counters = Counters()
    feed = BoxFeed(Mail(mailbox, counters, lambda: 0.0), Outlet(), "doll", None)
    feed.open()
    assert feed.take_ack(json.dumps({"type": "ack", "cursor": make_cursor(mailbox.key, "doll", number)}))
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
        feed.open()
        assert feed.take_ack(json.dumps({"type": "ack", "cursor": make_cursor(mailbox.key, name, number)}))
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


async def test_a_mailbox_that_is_closed_ends_the_wait_for_it() -> None:
    mailbox = SlowMailbox()
    await mailbox.start()
    mail = Mail(mailbox, Counters(), lambda: 0.0)
    mail.late_acks.add("doll", Position(1), {})
    await mailbox.close(1.0)
    mailbox.may_look.set()
    await eventually(lambda: len(mail.late_acks) == 0)


async def test_what_the_outbox_has_no_room_for_is_read_from_the_box_once_there_is() -> None:
    mailbox, outlet = MemoryMailbox(BoxLimits()), Outlet()
    await mailbox.start()
    feed = BoxFeed(Mail(mailbox, Counters(), lambda: 0.0), outlet, "doll", None)
    feed.open()
    await asyncio.sleep(0)
    for at in range(6):
        outlet.room = 2 if at < 3 else 0
        (number,) = await mailbox.append([Entry("doll", b'{"n":%d}' % at, 1, "results/0", at)])
        assert number is not None
        feed.stored(number, text_frame(b"%d" % at), 1)
    assert outlet.sent == [text_frame(b"%d" % at) for at in range(3)]
    for _ in range(3):  # a page in two pieces, for there is room for two frames
        outlet.room = 2
        feed.taken()
        feed.written()
        await asyncio.sleep(0)
    assert [b'"n":%d' % at in frame for at, frame in enumerate(outlet.sent[3:], 3)] == [True, True, True]
    assert (await mailbox.look("doll")).written == 6


async def test_a_transient_message_is_dropped_and_counted_while_the_box_is_being_read() -> None:
    mailbox = SlowMailbox()
    await mailbox.start()
    counters, outlet = Counters(), Outlet()
    feed = BoxFeed(Mail(mailbox, counters, lambda: 0.0), outlet, "doll", None)
    feed.open()
    feed.suggest(b'{"type":"t"}', 0, Terms("session"))
    feed.suggest(b'{"type":"t"}', 0, None)
    assert (counters.dropped, outlet.sent) == ({"interim": 1, "catching_up": 1}, [])
    await eventually(lambda: mailbox.looks_waiting == 1)
    mailbox.may_look.set()
    await eventually(lambda: mailbox.looks_waiting == 0)
    feed.suggest(b'{"type":"t"}', 0, None)
    outlet.room = 0
    feed.suggest(b'{"type":"t"}', 0, None)
    assert (len(outlet.sent), counters.dropped["overflow"]) == (1, 1)
    feed.close()
