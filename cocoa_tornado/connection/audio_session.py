"""The audio that a device sends over its WebSocket: one utterance after another, each recognized separately."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from ..errors import AudioNotDecodable, BrokerError, SpeechBusy, SpeechError
from ..rules import transcripts
from ..rules.audio import AudioFormat
from ..rules.endpointing import End, Segment
from ..rules.identity import DeviceIdentity
from ..rules.strict_json import read_json
from ..rules.upload import AudioLimits, UploadClock
from ..transcriber import Transcriber, Utterance

HELD_BYTES = 256 * 1024
HELD_WHILE_CHALLENGED_BYTES = 320 * 1024
ENTRY_BYTES = 64  # the least that a message counts as
SLICE_BYTES = 16 * 1024  # of a message, converted and judged in one turn of the loop

log = logging.getLogger("cocoa.speech")


class Segmenter(Protocol):
    """Cuts one stream into utterances; ``speech/segmenter.py`` has it."""

    max_utterance_s: float

    @property
    def has_eight_bits(self) -> bool:
        """Whether the samples clearly have 8 bits, although no header says so."""

    @property
    def out_format(self) -> AudioFormat:
        """The format of the samples of a ``Speech``; known once there is one."""

    def feed(self, data: bytes) -> Iterator[Segment]:
        """Return the utterances' parts in these bytes. Raises AudioNotDecodable, after which nothing more is read."""

    def end(self) -> Iterator[Segment]:
        """Return the rest of the stream. Raises AudioNotDecodable."""


@dataclass(frozen=True, slots=True)
class AudioIntake:
    """What the connections need if speech is on.

    :ivar raw: the format of binary messages that do not begin with a WAV header
    :ivar make_segmenter: called with a format and the longest utterance in seconds
    :ivar limits: returns the current ones, which a reload may change; they apply to each utterance
    """

    transcriber: Transcriber
    raw: AudioFormat
    make_segmenter: Callable[[AudioFormat, float], Segmenter]
    limits: Callable[[], AudioLimits]


def is_audio_end(text: str) -> bool:
    """Whether a text message is the object that ends an utterance."""
    if len(text) > 1000 or "audio_end" not in text:
        return False
    try:
        message = read_json(text)
    except ValueError:
        return False
    return isinstance(message, dict) and message.get("type") == "audio_end"


class AudioSession:
    """One connection's audio. Created with its first binary message; IOLoop thread only.

    Audio that the engine has not accepted yet waits here, within a bound. At the bound :meth:`has_room` turns False,
    the connection stops reading, and TCP applies backpressure to the device. An idle session holds no task. An
    utterance in progress occupies a worker and counts toward ``audio_streams_per_device``; a timer ends it if the
    device falls silent.
    """

    __slots__ = (
        "_clock",
        "_closed",
        "_device",
        "_held",
        "_intake",
        "_interim",
        "_is_broken",
        "_is_refused",
        "_pump",
        "_room",
        "_segmenter",
        "_timer",
        "_utterance",
        "_waiting",
    )

    def __init__(self, device: DeviceIdentity, intake: AudioIntake, interim: bool) -> None:
        self._device, self._intake, self._interim = device, intake, interim
        self._waiting: deque[bytes | None] = deque()  # None: the device has ended the utterance
        self._held = 0
        self._room = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._segmenter: Segmenter | None = None
        self._utterance: Utterance | None = None
        self._clock: UploadClock | None = None  # of the utterance
        self._timer: asyncio.TimerHandle | None = None
        self._is_refused = False  # the current utterance has failed; the rest of it is skipped
        self._is_broken = False  # the audio can't be decoded; skipped until the device ends the utterance
        self._closed = False

    def offer(self, audio: bytes | None) -> None:
        """Add the next binary message, in order; None: the end of the utterance."""
        if self._closed:
            return
        self._waiting.append(audio)
        self._held += len(audio or b"") + ENTRY_BYTES
        if self._pump is None:
            self._pump = asyncio.get_running_loop().create_task(self._run())

    def has_room(self, challenged: bool) -> bool:
        """Whether the connection may read on. A challenged one reads further, to find the pong behind the audio."""
        return self._held < (HELD_WHILE_CHALLENGED_BYTES if challenged else HELD_BYTES)

    async def wait_for_room(self) -> None:
        """Return when something has changed: room was made, or :meth:`wake` was called."""
        self._room.clear()
        await self._room.wait()

    def wake(self) -> None:
        self._room.set()

    def close(self) -> None:
        """The connection has ended. Finished utterances are still recognized: the device may reconnect, and other
        consumers may use the words. An unfinished one is dropped. Idempotent."""
        self._closed = True
        self._stop_timer()
        if self._pump is None:
            self._drop()
        self.wake()

    def _drop(self, outcome: str = "vanished") -> None:
        if self._utterance is not None:
            self._utterance.cancel(outcome)
            self._utterance = None

    async def _run(self) -> None:
        self._stop_timer()
        if self._clock is not None:
            self._clock.received(self._now())
        try:
            while self._waiting:
                audio = self._waiting.popleft()
                try:
                    await self._take(audio)
                except Exception:
                    # An error in the gateway must not disable speech for the rest of the connection.
                    log.exception("audio failed", extra={"device_id": self._device.device_id})
                    self._drop("failed")
                    self._segmenter, self._is_refused = None, False
                self._held -= len(audio or b"") + ENTRY_BYTES
                self.wake()
        finally:
            self._pump = None
            if self._closed:
                self._drop()
            else:
                self._wait()

    def _wait(self) -> None:
        """Wait for more audio. An unfinished utterance waits for a limited time only."""
        if self._utterance is None or self._clock is None:
            return
        self._clock.waits(self._now())
        self._timer = asyncio.get_running_loop().call_at(self._clock.deadline.at, self._end_early)

    def _end_early(self) -> None:
        """The device is silent: end the utterance with the audio received so far."""
        self.offer(None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _take(self, audio: bytes | None) -> None:
        if audio is None:
            segmenter, self._segmenter = self._segmenter, None
            was_broken, self._is_broken = self._is_broken, False
            if segmenter is not None and not was_broken:
                await self._hear(segmenter, segmenter.end())
        elif not self._is_broken:
            max_s = self._intake.transcriber.limits().max_audio_s
            if self._segmenter is None:
                self._segmenter = self._intake.make_segmenter(self._intake.raw, max_s)
            for start in range(0, len(audio), SLICE_BYTES):
                if self._utterance is None:
                    self._segmenter.max_utterance_s = max_s
                await self._hear(self._segmenter, self._segmenter.feed(audio[start : start + SLICE_BYTES]))
                if self._is_broken:
                    return
                # Converting and classifying samples takes time: let the loop serve others.
                await asyncio.sleep(0)

    async def _hear(self, segmenter: Segmenter, segments: Iterator[Segment]) -> None:
        while True:
            try:
                segment = next(segments, None)
            except AudioNotDecodable as error:
                log.info("audio not decodable", extra={"device_id": self._device.device_id, "error": str(error)})
                self._report(transcripts.NOT_DECODABLE)
                self._is_broken = self._segmenter is not None
                return
            if segment is None:
                return
            try:
                if isinstance(segment, End):
                    await self._finish()
                elif not self._is_refused:
                    await self._feed(segmenter, segment.samples)
            except (SpeechError, BrokerError):
                # The transcriber has notified the device, or logged it.
                self._utterance = None
                self._is_refused = not isinstance(segment, End)

    async def _feed(self, segmenter: Segmenter, samples: bytes) -> None:
        if self._utterance is None:
            self._utterance = self._begin(segmenter.out_format)
            if segmenter.has_eight_bits:
                self._intake.transcriber.note_eight_bits(self._device.device_id, segmenter.out_format.rate_hz)
            limits = self._intake.limits()
            self._clock = UploadClock(self._now(), limits.idle_timeout_s, limits.upload_timeout_s)
        await self._utterance.feed(samples)

    def _begin(self, audio_format: AudioFormat) -> Utterance:
        device, transcriber = self._device, self._intake.transcriber
        try:
            return transcriber.open(
                device.device_id,
                device.user_id,
                audio_format,
                interim=self._interim,
                reports_errors=True,
                on_yield=self._end_early,
            )
        except SpeechBusy:
            self._report(transcripts.DRAINING if transcriber.is_draining else transcripts.BUSY)
            raise

    async def _finish(self) -> None:
        self._is_refused = False
        if self._utterance is not None:
            try:
                await self._utterance.finish()
            finally:
                self._utterance = None

    def _report(self, error: str) -> None:
        self._intake.transcriber.report(self._device.device_id, self._device.user_id, error)
