"""A device acknowledges before the gateway has looked into its box."""

from __future__ import annotations

import asyncio
import json

import pytest

from cocoa_tornado.connection.feed import BoxFeed, Mail
from cocoa_tornado.connection.outbox import OutboxLimits
from cocoa_tornado.counters import Counters
from cocoa_tornado.errors import MailboxError
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Entry
from cocoa_tornado.rules.box import Box, BoxLimits
from cocoa_tornado.rules.cursors import make_cursor
from testing.waiting import eventually

pytestmark = pytest.mark.gen_test


class SlowMailbox(MemoryMailbox):
    """Looks into a box only when told to."""

    def __init__(self) -> None:
        super().__init__(BoxLimits())
        self.may_look = asyncio.Event()
        self.looks_waiting = 0
        self.failures = 0  # of looks, that are still to come

    def look(self, device_id: str) -> asyncio.Future[Box]:
        return asyncio.ensure_future(self._look_later(device_id))

    async def _look_later(self, device_id: str) -> Box:
        self.looks_waiting += 1
        await self.may_look.wait()
        self.looks_waiting -= 1
        if self.failures:
            self.failures -= 1
            raise MailboxError("away")
        return await super().look(device_id)


class Outlet:
    """A connection that has nothing to write."""

    def send(self, frame: bytes, timestamp_ms: int, interim_of: str = "") -> None:
        pass

    def has_nothing_to_write(self) -> bool:
        return True

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
    await eventually(lambda: mailbox.looks_waiting == 1)
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
    monkeypatch.setattr("cocoa_tornado.connection.feed.RETRY_BASE_S", 0.01)
    mailbox = SlowMailbox()
    mailbox.failures = 2
    await acknowledge_and_leave(mailbox, 2)
    await eventually(lambda: mailbox.counters.acknowledged == 2)
    assert (mailbox.failures, mailbox.status().messages) == (0, 1)
