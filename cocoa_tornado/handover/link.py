"""One connection between two workers: bytes to messages, and when to send. IOLoop thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, cast

from .wire import VERSION, BrokenLink, Hello, Message, MessageReader, encode

log = logging.getLogger("cocoa.handover")


class LinkUser(Protocol):
    """Receives a link's reports."""

    def linked(self, link: Link) -> None:
        """The sibling has introduced itself: ``link.sibling`` is its number."""

    def received(self, link: Link, message: Message) -> None: ...

    def read(self, link: Link) -> None:
        """All messages that had arrived together have been reported."""

    def writable(self, link: Link) -> None:
        """The sibling reads again."""

    def unlinked(self, link: Link) -> None:
        """The connection has ended, after :meth:`linked`."""


class Link(asyncio.Protocol):
    """:param number: of this worker
    :ivar sibling: number of the other one; 0 until it has introduced itself
    :ivar is_understood: False: it is of another release, or there is a bug
    :ivar is_writable: False while more waits for the socket than should
    :ivar acknowledged, returned, fences: to be sent with the next news, which are due if ``has_reply``
    :ivar server: the address of this worker in the relay that the latest news had
    """

    def __init__(self, number: int, user: LinkUser) -> None:
        self._number, self._user = number, user
        self._reader = MessageReader()
        self._transport: asyncio.Transport | None = None
        self.sibling = 0
        self.is_understood = True
        self.is_writable = True
        self.acknowledged = 0
        self.returned: dict[int, list[int]] = {}
        self.fences: list[int] = []
        self.has_reply = False
        self.server = ""
        self.flushed_at = float("-inf")
        self.timer: asyncio.TimerHandle | None = None
        self.ended = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<Link to {self.sibling or 'unknown'}>"

    def send(self, message: Message) -> None:
        if self._transport is not None:
            self._transport.write(encode(message))

    def schedule(self, delay_s: float, flush: Callable[[Link], None]) -> None:
        if self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(delay_s, flush, self)

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.send(Hello(VERSION, self._number))

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                self._on_message(message)
        except BrokenLink as error:
            self.is_understood = False
            log.error("sibling not understood", extra={"sibling": self.sibling, "error": str(error)})
            self.abort()
            return
        if self.sibling:
            self._user.read(self)

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Hello):
            if message.version != VERSION or message.number == self._number or self.sibling:
                raise BrokenLink(f"version {message.version} of worker {message.number}")
            self.sibling = message.number
            self._user.linked(self)
        elif self.sibling:
            self._user.received(self, message)
        else:
            raise BrokenLink("no introduction")

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        if self.sibling:
            self._user.writable(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.cancel()
        if not self.ended.done():
            self.ended.set_result(None)
        if self.sibling:
            self._user.unlinked(self)
