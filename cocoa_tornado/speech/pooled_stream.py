"""One stream of a pool: the audio that it holds, and its result. IOLoop thread only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from ..errors import EngineFailed, SpeechBusy, SpeechError
from ..rules.byte_budget import ByteBudget
from ..rules.kept_audio import KeptAudio
from . import wire
from .port import Transcript

log = logging.getLogger("cocoa.speech")


class StreamPool(Protocol):
    """What a stream needs of its pool.

    :ivar kept: the budget of the audio of all streams
    """

    kept: ByteBudget

    def pump(self, stream: PooledStream) -> None:
        """Send what the stream holds, as far as its worker keeps up; queue it for a worker if it has enough."""

    def dismiss(self, stream: PooledStream) -> None:
        """The stream was cancelled."""


class PooledStream:
    """One stream; created by ``WorkerPool.open``.

    :ivar worker: the number of its worker; None while it waits, and when it is over
    """

    def __init__(
        self, pool: StreamPool, number: int, begin: wire.Begin, on_interim: Callable[[str], None] | None, now: float
    ) -> None:
        self.number, self.begin = number, begin
        self.worker: int | None = None
        self.kept = KeptAudio(pool.kept)
        self.finishing = self.end_sent = False
        self.queued_at, self.queue_s = now, 0.0
        self._pool, self._on_interim = pool, on_interim
        self._result: Transcript | SpeechError | None = None
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        where = "over" if self.over else "waiting" if self.worker is None else f"worker={self.worker}"
        return f"<PooledStream #{self.number} {where}>"

    @property
    def over(self) -> bool:
        return self._result is not None

    async def feed(self, data: bytes) -> None:
        view = memoryview(data)
        while len(view):
            self._raise_if_lost()
            if self.finishing:
                raise EngineFailed("audio after the end of its stream")
            view = view[self.kept.add(view) :]
            self._pool.pump(self)
            if self.kept.is_full:
                await self._change()
        self._raise_if_lost()

    async def finish(self) -> Transcript:
        self.finishing = True
        self.kept.stop_keeping()
        if not self.over:
            self._pool.pump(self)
        while self._result is None:
            await self._change()
        self._raise_if_lost()
        assert isinstance(self._result, Transcript)
        return self._result

    def cancel(self) -> None:
        if not self.over:
            self.settle(EngineFailed("the stream was cancelled"))
            self._pool.dismiss(self)

    def settle(self, result: Transcript | SpeechError) -> None:
        """End the stream. The first result counts."""
        if self._result is None:
            self._result = result
            self.kept.clear()
            self.wake()

    def interim(self, text: str) -> None:
        if self._on_interim is None or self.over:
            return
        try:
            self._on_interim(text)
        except Exception:
            # An error in the gateway must not lose the worker's other frames.
            log.exception("interim callback failed")

    def wake(self) -> None:
        """Wake the coroutines that wait for a change."""
        self._changed.set()
        self._changed.clear()

    async def _change(self) -> None:
        await self._changed.wait()

    def _raise_if_lost(self) -> None:
        if isinstance(self._result, SpeechError):
            # Raise a new exception each time, because each raise extends the traceback.
            if isinstance(self._result, SpeechBusy):
                raise SpeechBusy(str(self._result), self._result.retry_after_s)
            raise type(self._result)(str(self._result))
