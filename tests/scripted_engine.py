"""A scripted speech engine: its audio is the text, and a test controls it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cocoa_tornado.errors import EngineFailed, SpeechBusy, SpeechError
from cocoa_tornado.rules.audio import AudioFormat
from cocoa_tornado.speech.port import SpeechState, SpeechStatus, Transcript


class ScriptedStream:
    """:ivar fed: all audio so far
    :ivar error: to be raised by whatever is asked next, or is being waited for
    :ivar cancelled: whether nobody waits for it any more
    """

    def __init__(
        self,
        engine: ScriptedEngine,
        audio_format: AudioFormat,
        max_audio_s: float,
        on_interim: Callable[[str], None] | None,
    ) -> None:
        self.engine, self.format, self.max_audio_s, self.on_interim = engine, audio_format, max_audio_s, on_interim
        self.fed = b""
        self.error: SpeechError | None = None
        self.cancelled = self.finished = False

    async def feed(self, data: bytes) -> None:
        self.fed += data
        await self._permission(self.engine.takes)
        if self.on_interim is not None and self.engine.guesses:
            self.on_interim(self.fed.decode())

    async def finish(self) -> Transcript:
        await self._permission(self.engine.answers)
        self.finished = True
        return Transcript(self.fed.decode(errors="replace").strip(), len(self.fed) / 10, 0.25, len(self.fed) / 100)

    def cancel(self) -> None:
        self.cancelled = True

    def fail(self, error: SpeechError) -> None:
        """End the stream with an error; pending calls raise it now."""
        self.error = error
        self.engine.changed.set()

    async def _permission(self, gate: asyncio.Event) -> None:
        while self.error is None and not gate.is_set():
            self.engine.changed.clear()
            waits = [asyncio.ensure_future(event.wait()) for event in (gate, self.engine.changed)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        if self.error is not None:
            raise self.error


class ScriptedEngine:
    """:ivar streams: all that were ever opened
    :ivar takes: while it is clear, ``feed`` suspends; :ivar answers: likewise ``finish``
    :ivar guesses: whether everything fed makes a hypothesis
    :ivar fail_with: every new stream begins with this error
    """

    def __init__(self) -> None:
        self.streams: list[ScriptedStream] = []
        self.takes, self.answers, self.changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.takes.set()
        self.answers.set()
        self.guesses = True
        self.is_busy = False
        self.fail_with: SpeechError | None = None
        self.state = SpeechState.READY
        self.has_started = False

    @property
    def stream(self) -> ScriptedStream:
        """The newest."""
        return self.streams[-1]

    def start(self) -> None:
        self.has_started = True

    def status(self) -> SpeechStatus:
        counts = {"parked": 3, "kept_bytes": 1000, "taken_back": 5}
        return SpeechStatus(self.state, "scripted", workers=4, busy=1, queued=2, **counts)

    def open(
        self, audio_format: AudioFormat, max_audio_s: float, on_interim: Callable[[str], None] | None = None
    ) -> ScriptedStream:
        if self.is_busy:
            raise SpeechBusy("it was told to be busy", 7.2)
        stream = self.make_stream(audio_format, max_audio_s, on_interim)
        stream.error = self.fail_with
        self.streams.append(stream)
        return stream

    def make_stream(
        self, audio_format: AudioFormat, max_audio_s: float, on_interim: Callable[[str], None] | None
    ) -> ScriptedStream:
        """For engines that hear otherwise."""
        return ScriptedStream(self, audio_format, max_audio_s, on_interim)

    async def close(self) -> None:
        self.state = SpeechState.CLOSED
        for stream in self.streams:
            stream.fail(EngineFailed("closed"))
