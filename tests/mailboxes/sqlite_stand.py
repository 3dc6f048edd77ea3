"""A file for a mailbox, which tests open repeatedly."""

from __future__ import annotations

from pathlib import Path

from cocoa_tornado.mailboxes.port import Mailbox
from cocoa_tornado.mailboxes.sqlite import SqliteMailbox
from cocoa_tornado.rules.box import BoxLimits

from .stands import Clock, ready


class SqliteStand:
    survives = True

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.path = path
        self._opened: list[SqliteMailbox] = []

    async def open(self, limits: BoxLimits | None = None) -> Mailbox:
        return await self.open_file(limits)

    async def open_file(self, limits: BoxLimits | None = None) -> SqliteMailbox:
        mailbox = SqliteMailbox(self.path, limits or BoxLimits(), self.clock)
        self._opened.append(mailbox)
        await mailbox.start()
        await ready(mailbox)
        return mailbox

    async def crash(self, mailbox: Mailbox) -> None:
        assert isinstance(mailbox, SqliteMailbox)
        mailbox.abandon()

    async def clear(self) -> None:
        for mailbox in self._opened:
            mailbox.abandon()
