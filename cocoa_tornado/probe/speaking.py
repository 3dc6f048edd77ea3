"""Streams speech to a gateway in real time, and collects the messages meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from .device import ConnectionLostError, Link
from .judge_speech import Received
from .recording import Recording
from .target import Target
from .wire import NotHttpError, Response, open_connection, read_response, request_bytes

AUDIO_ROUTE = "/api/v1/audio/stream"
LAST_CHUNK = b"0\r\n\r\n"
_MAX_UNSENT_BYTES = 256 * 1024

OnProgress = Callable[[float], None]
"""Called with the seconds of the recording sent so far."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """An answered upload. Times are monotonic seconds.

    :ivar complete: whether the whole recording was sent before the response
    """

    response: Response
    began_at: float
    last_byte_at: float
    answered_at: float
    complete: bool


async def post_speech(
    target: Target, token: str, recording: Recording, on_progress: OnProgress, *, interim: bool = True
) -> Spoken:
    """Stream a recording to ``POST /api/v1/audio/stream``, chunked, at the pace of a microphone.

    An early response ends the upload. The response is unchecked.

    :raises OSError: no connection
    :raises NotHttpError: the connection ended without an answer
    """
    reader, writer = await open_connection(target)
    answering = asyncio.create_task(read_response(reader))
    try:
        headers = [
            ("Authorization", f"Bearer {token}"),
            ("Content-Type", "audio/wav"),
            ("Transfer-Encoding", "chunked"),
        ]
        route = AUDIO_ROUTE + ("?interim=true" if interim else "")
        writer.write(request_bytes("POST", target.path(route), target, [("Connection", "close"), *headers]))
        began_at = time.monotonic()
        complete = True
        async for piece in paced(recording, on_progress, began_at):
            if answering.done():
                complete = False
                break
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await _held_back(writer, answering)
        if complete:
            writer.write(LAST_CHUNK)
        last_byte_at = time.monotonic()
        response = await answering
        return Spoken(response, began_at, last_byte_at, time.monotonic(), complete)
    except ConnectionError as error:
        raise NotHttpError("the other side cut the connection without an answer") from error
    finally:
        await _ended(answering)
        writer.transport.abort()


async def paced(recording: Recording, on_progress: OnProgress, began_at: float) -> AsyncIterator[bytes]:
    """Yield the pieces of a recording at the times at which a microphone would deliver them."""
    for piece, due_s in recording.pieces():
        await asyncio.sleep(max(0.0, began_at + due_s - time.monotonic()))
        yield piece
        on_progress(due_s)


async def _held_back(writer: asyncio.StreamWriter, answering: asyncio.Task[Response]) -> None:
    """Wait while the peer applies backpressure, unless it has answered."""
    if writer.transport.get_write_buffer_size() <= _MAX_UNSENT_BYTES:
        return
    draining = asyncio.create_task(writer.drain())
    try:
        await asyncio.wait([draining, answering], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _ended(draining)


async def _ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task and retrieve its exception, as asyncio logs unretrieved ones."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


@dataclass(slots=True)
class Collector:
    """The messages of one connection, created by :func:`collecting`.

    :ivar received: the messages in order
    :ivar lost: how the connection ended, if it did
    """

    received: list[Received] = field(default_factory=list)
    lost: ConnectionLostError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition()`` is true or the connection ends. It is evaluated after every message."""
        while not condition() and self.lost is None:
            self.changed.clear()
            await self.changed.wait()


@contextlib.asynccontextmanager
async def collecting(link: Link) -> AsyncIterator[Collector]:
    """Collect all messages from now on; queued ones are discarded."""
    link.received()
    collector = Collector()
    task = asyncio.create_task(_collect(link, collector))
    try:
        yield collector
    finally:
        await _ended(task)


async def _collect(link: Link, collector: Collector) -> None:
    while collector.lost is None:
        try:
            message = await link.receive()
            collector.received.append(Received(time.monotonic(), message))
        except ConnectionLostError as lost:
            collector.lost = lost
        collector.changed.set()
