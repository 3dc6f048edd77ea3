"""A worker's end of the channel to its parent: beats, orders, and answers that cover all workers."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final, cast

import msgspec

from ..rules.readiness_report import Readiness, workers_part
from ..rules.supervision import BEAT_S
from .gathering import PATIENCE_S
from .messages import (
    MAX_MESSAGE_BYTES,
    Answer,
    Ask,
    Beat,
    BrokenChannel,
    FromParent,
    FromWorker,
    Gathered,
    Leaving,
    MessageReader,
    Question,
    Reload,
    Reloaded,
    Report,
    Topic,
    Up,
    encode,
)
from .own_metrics import parents_metrics

PARENT_PATIENCE_S: Final = PATIENCE_S + 0.5
"""How long to wait for what the parent gathers."""

PARENT: Final = "parent"
"""In place of a worker's name, where the parent does not answer."""

log = logging.getLogger("cocoa.workers")


class Channel(asyncio.Protocol):
    """IOLoop thread. Implements ``Siblings``.

    :param count: workers of the parent
    :param on_reload: the parent has received SIGHUP; answer with :meth:`reloaded`
    :param on_lost: the parent has ended, without having said so: drain
    """

    def __init__(self, count: int, on_reload: Callable[[], None], on_lost: Callable[[], None]) -> None:
        self._count, self._on_reload, self._on_lost = count, on_reload, on_lost
        self._reader = MessageReader[FromParent](cast(type[FromParent], FromParent))
        self._transport: asyncio.Transport | None = None
        self._own_metrics: Callable[[], str] | None = None
        self._own_ready: Callable[[], Readiness] | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._last = 0
        self._rounds: dict[Topic, _Rounds] = {topic: _Rounds(self, topic) for topic in ("metrics", "ready")}

    async def open(self, sock: socket.socket) -> None:
        """:param sock: one end of a socket pair, not blocking"""
        await asyncio.get_running_loop().connect_accepted_socket(lambda: self, sock)

    def up(self, own_metrics: Callable[[], str], own_ready: Callable[[], Readiness]) -> None:
        """The worker serves. Report it, beat from now on, and answer with these functions."""
        self._own_metrics, self._own_ready = own_metrics, own_ready
        self._send(Up())
        self._send_beats()

    def reloaded(self) -> None:
        self._send(Reloaded())

    def leave(self) -> None:
        """The worker has drained. The end of the parent no longer matters."""
        if self._beat is not None:
            self._beat.cancel()
        self._on_lost = self._on_reload = lambda: None
        self._own_metrics = self._own_ready = None
        self._send(Leaving())
        if self._transport is not None:
            self._transport.close()

    async def metrics(self, own: str) -> str:
        text = await self._rounds["metrics"].next_answer()
        return own + parents_metrics(self._count, self._count - 1) if text is None else text

    async def ready(self, own: Readiness) -> Readiness:
        text = await self._rounds["ready"].next_answer()
        if text is None:
            return Readiness(own.draining, {**own.parts, "workers": workers_part([PARENT])})
        report = msgspec.json.decode(text, type=Report)
        return Readiness(report.draining, report.parts)

    async def ask(self, topic: Topic) -> str | None:
        """Return the answer that the parent gathers from all workers; None if it does not answer."""
        if self._transport is None or self._transport.is_closing():
            return None
        self._last += 1
        number, answer = self._last, asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._send(Ask(number, topic))
        try:
            async with asyncio.timeout(PARENT_PATIENCE_S):
                return cast(str, await answer)
        except TimeoutError:
            return None
        finally:
            del self._asked[number]

    def _send_beats(self) -> None:
        # From a timer of the loop, so that a loop that hangs does not beat.
        self._send(Beat())
        self._beat = asyncio.get_running_loop().call_later(BEAT_S, self._send_beats)

    def _send(self, message: FromWorker) -> None:
        transport = self._transport
        # A parent that reads nothing has stopped.
        if transport is not None and transport.get_write_buffer_size() < 2 * MAX_MESSAGE_BYTES:
            transport.write(encode(message))

    # called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                self._on_message(message)
        except BrokenChannel as error:
            log.error("channel broken", extra={"error": str(error)})
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._beat is not None:
            self._beat.cancel()
        self._on_lost()

    def _on_message(self, message: FromParent) -> None:
        match message:
            case Question():
                self._on_question(message)
            case Gathered():
                answer = self._asked.get(message.number)
                if answer is not None and not answer.done():
                    answer.set_result(message.text)
            case Reload():
                self._on_reload()

    def _on_question(self, question: Question) -> None:
        if self._own_metrics is None or self._own_ready is None:
            return
        if question.topic == "metrics":
            text = self._own_metrics()
        else:
            ready = self._own_ready()
            parts = {name: dict(part) for name, part in ready.parts.items()}
            text = msgspec.json.encode(Report(ready.draining, parts)).decode()
        self._send(Answer(question.number, text))


class _Rounds:
    """Questions about one topic, one at a time. Callers that ask while one is pending share the answer to the next one,
    which is thus never older than their call. So for any number of callers the parent has at most one question of this
    worker."""

    def __init__(self, channel: Channel, topic: Topic) -> None:
        self._channel, self._topic = channel, topic
        self._current: asyncio.Task[str | None] | None = None
        self._next: asyncio.Task[str | None] | None = None

    async def next_answer(self) -> str | None:
        if self._next is None:
            self._next = asyncio.create_task(self._round(self._current))
        # One of them may be cancelled, because its client has left.
        return await asyncio.shield(self._next)

    async def _round(self, before: asyncio.Task[str | None] | None) -> str | None:
        if before is not None:
            await asyncio.wait({before})
        self._current, self._next = self._next, None
        return await self._channel.ask(self._topic)
