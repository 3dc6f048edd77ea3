"""The mailbox in Redis, for the tests of the port."""

from __future__ import annotations

from cocoa_tornado.mailboxes.port import Mailbox
from cocoa_tornado.mailboxes.redis import RedisMailbox
from cocoa_tornado.rules.box import BoxLimits
from testing.redis_server import RedisServer

from .stands import Clock, ready


class RedisStand:
    survives = True

    def __init__(self, server: RedisServer) -> None:
        self.clock = Clock()
        self._server = server
        server.command("FLUSHALL")  # other tests use the same Redis

    async def open(self, limits: BoxLimits | None = None) -> Mailbox:
        mailbox = RedisMailbox(self._server.url, limits or BoxLimits(), self.clock)
        await mailbox.start()
        await ready(mailbox)
        return mailbox

    async def crash(self, mailbox: Mailbox) -> None:
        await mailbox.close(0.0)

    async def clear(self) -> None:
        self._server.command("FLUSHALL")
