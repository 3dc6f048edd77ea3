"""Mailboxes of each kind for the tests of the port, and manual clocks."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import pytest

from cocoa_tornado.mailboxes.memory import MemoryMailbox
from cocoa_tornado.mailboxes.port import Entry, LaneRead, Mailbox, MailboxState
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.box import BoxLimits, LaneName, PageLimits
from cocoa_tornado.rules.feed import Feed, Page

SOURCE = "transcription.results/0"
ALL = PageLimits(10_000, 1 << 30)
START_S = 1_700_000_000.0


class Clock:
    """A manual clock, in Unix seconds."""

    def __init__(self) -> None:
        self.now = START_S

    def __call__(self) -> float:
        return self.now


class Stand(Protocol):
    """A place for one mailbox, which can be opened repeatedly.

    :ivar clock: the mailbox's clock
    :ivar survives: whether stored messages survive :meth:`crash` and another :meth:`open`
    """

    clock: Clock
    survives: bool

    async def open(self, limits: BoxLimits | None = None) -> Mailbox:
        """A READY mailbox on the stored data of the last one."""

    async def crash(self, mailbox: Mailbox) -> None:
        """End it like a killed process: pending messages are lost, stored ones are not."""

    async def clear(self) -> None:
        """Delete everything."""


class MemoryStand:
    survives = False

    def __init__(self) -> None:
        self.clock = Clock()

    async def open(self, limits: BoxLimits | None = None) -> Mailbox:
        mailbox = MemoryMailbox(limits or BoxLimits(), self.clock)
        await mailbox.start()
        return mailbox

    async def crash(self, mailbox: Mailbox) -> None:
        await mailbox.close(0.0)

    async def clear(self) -> None:
        pass


async def ready(mailbox: Mailbox, patience_s: float = 20.0) -> None:
    async with asyncio.timeout(patience_s):
        while mailbox.status().state is not MailboxState.READY:
            await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool], patience_s: float = 20.0) -> None:
    async with asyncio.timeout(patience_s):
        while not condition():
            await asyncio.sleep(0.01)


def entry(
    offset: int,
    device_id: str = "doll",
    payload: bytes | None = None,
    source: str = SOURCE,
    options: Options | None = None,
    expires_ms: int = 0,
) -> Entry:
    """A message with a unique payload, whose record has its offset as timestamp (ms)."""
    content = b'{"n":%d}' % offset if payload is None else payload
    return Entry(device_id, content, 1_000 + offset, source, offset, options, expires_ms)


def entries(first: int, count: int, device_id: str = "doll") -> list[Entry]:
    return [entry(offset, device_id) for offset in range(first, first + count)]


async def page_of(
    mailbox: Mailbox, device_id: str = "doll", after: int = 0, limits: PageLimits = ALL, lane: LaneName = "normal"
) -> Page:
    """One page of one lane."""
    [page] = await mailbox.read(device_id, [LaneRead(lane, after, limits)])
    return page


async def contents(mailbox: Mailbox, device_id: str = "doll", after: int = 0, lane: LaneName = "normal") -> list[bytes]:
    """The payloads of all messages after a number."""
    return [message.payload for message in (await page_of(mailbox, device_id, after, lane=lane)).messages]


def missed(page: Page, after: int = 0) -> int:
    """How many messages a device misses that reads this page after a number."""
    feed = Feed()
    feed.open(after, page.last)
    return feed.page(page).missed


def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fan-outs are stored in steps of one device, in every mailbox."""
    for name, module in list(sys.modules.items()):
        if name.startswith("cocoa_tornado.mailboxes."):
            for constant in ("FAN_OUT_STEP", "STEP"):
                if hasattr(module, constant):
                    monkeypatch.setattr(module, constant, 1)


def payloads(offsets: Sequence[int]) -> list[bytes]:
    return [b'{"n":%d}' % offset for offset in offsets]


def numbers(page: Page) -> list[int]:
    return [message.number for message in page.messages]
