"""A device acknowledges before the gateway has looked into its box."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from tornado.ioloop import IOLoop

from cocoa_tornado.errors import MailboxError
from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Entry
from cocoa_tornado.rules.box import Box, BoxLimits
from cocoa_tornado.rules.cursors import make_cursor
from cocoa_tornado.service import Gateway
from cocoa_tornado.settings import Settings
from testing.waiting import eventually

from ..harness import SECRET, Harness


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


@pytest.fixture
def mailbox() -> SlowMailbox:
    return SlowMailbox()


@pytest.fixture
def gateway(io_loop: IOLoop, mailbox: SlowMailbox) -> Iterator[Harness]:
    settings = Settings(port=0, jwt_secret=SECRET, speech="none://", drain_grace_s=5.0)
    harness = Harness(Gateway(settings, mailbox=mailbox))
    io_loop.run_sync(harness.gateway.start)
    yield harness
    io_loop.run_sync(harness.stop)


async def acknowledge_and_leave(gateway: Harness, mailbox: SlowMailbox, number: int) -> None:
    """A device sends an acknowledgement, and is gone before the gateway has looked into its box."""
    entries = [Entry("doll", b'{"type":"t","n":%d}' % at, 1, "results/0", at) for at in range(3)]
    await mailbox.append(entries)
    assert mailbox.key is not None
    device = await gateway.connect("doll")
    await device.send(json.dumps({"type": "ack", "cursor": make_cursor(mailbox.key, "doll", number)}))
    await device.close()
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("doll"))
    assert mailbox.looks_waiting == 1
    mailbox.may_look.set()
    await eventually(lambda: mailbox.looks_waiting == 0)


@pytest.mark.gen_test
async def test_an_acknowledgement_counts_though_the_device_left_at_once(gateway: Harness, mailbox: SlowMailbox) -> None:
    await acknowledge_and_leave(gateway, mailbox, 2)
    await eventually(lambda: mailbox.counters.acknowledged == 2)
    assert mailbox.status().messages == 1


@pytest.mark.gen_test
@pytest.mark.logs("cocoa.device", "acknowledgement of an unknown cursor")
async def test_one_beyond_the_end_of_the_box_still_counts_for_nothing(gateway: Harness, mailbox: SlowMailbox) -> None:
    await acknowledge_and_leave(gateway, mailbox, 4)
    await eventually(lambda: gateway.gateway.counters.bad_acks == 1)
    assert mailbox.status().messages == 3


@pytest.mark.gen_test
async def test_an_acknowledgement_counts_though_the_mailbox_was_away_as_well(
    gateway: Harness, mailbox: SlowMailbox
) -> None:
    mailbox.failures = 2
    await acknowledge_and_leave(gateway, mailbox, 2)
    await eventually(lambda: mailbox.counters.acknowledged == 2)
    assert (mailbox.failures, mailbox.status().messages) == (0, 1)
