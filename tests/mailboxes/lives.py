"""Mailboxes that return to an earlier state: from a backup, a snapshot, or the disk of a Redis."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Protocol

from cocoa_tornado.mailboxes.port import Mailbox
from cocoa_tornado.mailboxes.redis import RedisMailbox
from cocoa_tornado.mailboxes.sqlite import SqliteMailbox
from cocoa_tornado.rules.box import BoxLimits
from testing.redis_server import RedisServer

from .stands import Clock, ready


class Keeper(Protocol):
    """A place for one mailbox, which can be opened repeatedly.

    :ivar clock: the mailbox's clock
    :ivar known: how many epochs it remembers exactly
    :ivar can_be_copied: whether a copy may be used concurrently
    """

    clock: Clock
    known: int
    can_be_copied: bool

    async def open(self) -> Mailbox:
        """A READY mailbox on the stored data of the last one."""

    async def back_up(self) -> None:
        """Keep a copy of what is stored now. A mailbox may be open."""

    async def put_back(self) -> None:
        """Restore the last backup. No mailbox is open."""

    async def exchange(self) -> None:
        """Swap the stored data and the last backup. No mailbox is open."""

    async def restart(self) -> None:
        """Begin another epoch, with nothing lost. No mailbox is open."""

    async def clear(self) -> None:
        """Delete everything."""


class SqliteKeeper:
    known = 32
    can_be_copied = True

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.path = path
        self._opened: list[SqliteMailbox] = []

    async def open(self) -> SqliteMailbox:
        mailbox = SqliteMailbox(self.path, BoxLimits(), self.clock)
        self._opened.append(mailbox)
        await mailbox.start()
        await ready(mailbox)
        return mailbox

    async def back_up(self) -> None:
        with (
            contextlib.closing(sqlite3.connect(self.path)) as database,
            contextlib.closing(sqlite3.connect(f"{self.path}.copy")) as copy,
        ):
            database.backup(copy)

    async def put_back(self) -> None:
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        shutil.copy(f"{self.path}.copy", self.path)

    async def exchange(self) -> None:
        aside = Path(f"{self.path}.aside")
        self.path.rename(aside)
        Path(f"{self.path}.copy").rename(self.path)
        aside.rename(f"{self.path}.copy")

    async def restart(self) -> None:
        pass  # each start begins one

    async def clear(self) -> None:
        for mailbox in self._opened:
            mailbox.abandon()


class RedisKeeper:
    known = 7
    can_be_copied = False

    def __init__(self, server: RedisServer) -> None:
        self.clock = Clock()
        self._server = server
        self._dump, self._copy = server.folder / "dump.rdb", server.folder / "copy.rdb"
        server.start(appendonly="no")

    async def open(self) -> RedisMailbox:
        mailbox = RedisMailbox(self._server.url, BoxLimits(), self.clock)
        await mailbox.start()
        await ready(mailbox)
        return mailbox

    async def back_up(self) -> None:
        await asyncio.to_thread(self._server.command, "SAVE")
        shutil.copy(self._dump, self._copy)

    async def put_back(self) -> None:
        await asyncio.to_thread(self._server.kill)
        shutil.copy(self._copy, self._dump)
        await asyncio.to_thread(self._server.start)

    async def exchange(self) -> None:
        raise NotImplementedError

    async def restart(self) -> None:
        await asyncio.to_thread(self._server.command, "SAVE")
        await asyncio.to_thread(self._server.kill)
        await asyncio.to_thread(self._server.start)

    async def clear(self) -> None:
        await asyncio.to_thread(self._server.command, "FLUSHALL")
