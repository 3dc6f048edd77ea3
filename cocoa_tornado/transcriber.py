"""From audio to records: turns each audio stream into an utterance, and publishes the result. IOLoop thread only.

The audio's origin (a POST, or binary WebSocket messages) does not matter here. Recognition is behind the speech port,
and the broker and the router deliver the result like any other record.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .brokers.port import Broker
from .counters import SpeechCounters, count
from .errors import AudioNotDecodable, AudioTooLong, BrokerError, EngineFailed, SpeechBusy, SpeechError
from .routing.round_trips import RoundTrips
from .rules import transcripts
from .rules.audio import AudioFormat
from .rules.once import Once
from .rules.transcripts import SpeechSession
from .rules.upload import make_room
from .speech.port import SpeechEngine, SpeechState, SpeechStatus, SpeechStream, Transcript

PUBLISH_WAIT_S: Final = 10.0
"""How long a transcript waits for an unavailable broker. After that the sender gets an error and may retry."""

ROUND_TRIP_WAIT_S: Final = 2.0
"""How long a drain waits for published transcripts to come back from the broker."""

RETRY_AFTER_S: Final = 5.0
"""Retry-After for a device that already has a stream, whose end is unknown."""

NOTED_DEVICES: Final = 10_000
"""Devices remembered as having had a log line about their samples."""

log = logging.getLogger("cocoa.transcriber")


@dataclass(frozen=True, slots=True)
class SpeechLimits:
    """:ivar streams_per_device: concurrent streams, POST and WebSocket together
    :ivar streams: concurrent streams in all; 0: as many as the engine takes
    :ivar max_audio_s: length of one utterance
    """

    streams_per_device: int = 1
    streams: int = 0
    max_audio_s: float = 60.0


class Transcriber:
    """Opens utterances, within limits, and knows those that are open.

    :ivar limits: returns the current ones, which a reload may change; open utterances keep theirs
    """

    def __init__(
        self,
        engine: SpeechEngine,
        broker: Broker,
        round_trips: RoundTrips,
        counters: SpeechCounters,
        limits: Callable[[], SpeechLimits],
        *,
        results_topic: str,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self.limits = limits
        self.counters = counters
        self.clock, self.wall_clock = clock, wall_clock
        self._engine, self._broker, self._round_trips, self._topic = engine, broker, round_trips, results_topic
        self._open: dict[str, set[Utterance]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._reports: set[asyncio.Future[None]] = set()
        self._eight_bit_devices = Once(NOTED_DEVICES)
        self._draining = False

    def __repr__(self) -> str:
        return f"<Transcriber {len(self)} open>"

    def __len__(self) -> int:
        """The number of open utterances."""
        return sum(map(len, self._open.values()))

    @property
    def is_draining(self) -> bool:
        return self._draining

    def status(self) -> SpeechStatus:
        """The engine's status."""
        return self._engine.status()

    def open(
        self,
        device_id: str,
        user_id: int | str,
        audio_format: AudioFormat,
        *,
        interim: bool = False,
        reports_errors: bool = False,
        on_cut: Callable[[], None] | None = None,
        on_yield: Callable[[], None] | None = None,
    ) -> Utterance:
        """Open an utterance, which must be ended with :meth:`Utterance.finish` or :meth:`Utterance.cancel`.

        If the device has as many as allowed, one that has been silent for two seconds yields to it.

        :param interim: also publish interims
        :param reports_errors: publish a record for every error that ends the utterance (for senders that get no HTTP
            status)
        :param on_cut: called if a drain cuts it off; pending calls then raise EngineFailed
        :param on_yield: called if this utterance, being silent, yields to a newer one of its device. It must then be
            ended at once, with or without a transcript. None: it never yields
        :raises SpeechBusy: the device has as many as allowed, all streams are taken, or the gateway is draining;
            nothing is published
        :raises EngineFailed: no worker can be started; a failure record is published
        """
        session = SpeechSession(secrets.token_hex(16), user_id, device_id)
        try:
            for silent in self._room_for(device_id):
                log.info("audio stream replaced", extra=silent.extra())
                silent.yield_place()
            utterance = Utterance(self, session, interim, reports_errors, on_cut, on_yield)
            on_interim = utterance.on_interim if interim else None
            utterance.stream = self._engine.open(audio_format, self.limits().max_audio_s, on_interim)
        except SpeechError as error:
            count(self.counters.streams, "busy" if isinstance(error, SpeechBusy) else "failed")
            if isinstance(error, EngineFailed):
                self.report(device_id, user_id, transcripts.RECOGNITION_FAILED)
            raise
        self._open.setdefault(device_id, set()).add(utterance)
        self._idle.clear()
        return utterance

    def _room_for(self, device_id: str) -> list[Utterance]:
        """Return the utterances that must yield to a new one of the device."""
        limits = self.limits()
        if self._draining:
            raise SpeechBusy("the gateway is draining")
        streams = [utterance for utterance in self._open.get(device_id, ()) if not utterance.has_yielded]
        since = [utterance.silent_since for utterance in streams]
        room = make_room(since, limits.streams_per_device, self.clock(), RETRY_AFTER_S)
        if room.retry_after_s is not None:
            raise SpeechBusy("the device has as many streams as it may have", room.retry_after_s)
        yielding = [streams[index] for index in room.yielding]
        if limits.streams and len(self) - len(yielding) >= limits.streams:
            raise SpeechBusy("there are as many streams as there may be")
        status = self._engine.status()
        if status.state is SpeechState.FAILED:
            raise EngineFailed(status.detail)
        return yielding

    def note_eight_bits(self, device_id: str, rate_hz: int) -> None:
        """Log, once for each device, that its samples were detected as unsigned 8-bit."""
        if self._eight_bit_devices.is_first(device_id):
            log.info("samples have 8 bits", extra={"device_id": device_id, "encoding": "u8", "rate_hz": rate_hz})

    def report(self, device_id: str, user_id: int | str, error: str) -> None:
        """Publish a failure record without waiting; drop it if the broker accepts no records now."""
        session = SpeechSession(secrets.token_hex(16), user_id, device_id)
        self.publish_soon(session, transcripts.failure_record(session, error, self.wall_clock()))

    def publish_soon(self, session: SpeechSession, record: bytes) -> None:
        """Publish a record without waiting. A drain waits for it, with a timeout."""
        future = self.offer(session, record)
        if future is not None:
            self._round_trips.expect(session.device_id, transcripts.message_of(record), lambda: None)
            self._reports.add(future)
            future.add_done_callback(self._reported)

    def _reported(self, future: asyncio.Future[None]) -> None:
        self._reports.discard(future)
        _retrieve(future)

    async def drain(self, timeout_s: float) -> None:
        """Accept no new utterances, let the open ones finish, and cut them off after ``timeout_s``. Then end the
        engine, and wait up to two seconds for the published transcripts to come back and be routed."""
        self._draining = True
        if not await self._all_ended(timeout_s):
            log.warning("audio streams cut off", extra={"streams": len(self)})
            for utterance in [utterance for of_device in self._open.values() for utterance in of_device]:
                utterance.cut()
            # Utterances that are being published already are not cut; wait for them.
            await self._all_ended(ROUND_TRIP_WAIT_S)
        await self._engine.close()
        await self._round_trips.settled(ROUND_TRIP_WAIT_S)

    async def _all_ended(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def publish(self, session: SpeechSession, record: bytes, on_routed: Callable[[], None] | None = None) -> None:
        """Publish a record and wait for the broker's acknowledgement.

        :param on_routed: called if this process reads the record back and has routed it
        :raises BrokerError: refused, or not acknowledged in time. In the latter case it may still be published later.
        """
        message = transcripts.message_of(record)
        if on_routed is not None:
            self._round_trips.expect(session.device_id, message, on_routed)
        try:
            async with asyncio.timeout(PUBLISH_WAIT_S):
                await self._broker.writable()
                await asyncio.shield(self._broker.publish(self._topic, session.device_id, record))
        except BaseException as error:
            self._round_trips.forget(session.device_id, message)
            if isinstance(error, TimeoutError):
                raise BrokerError(f"not acknowledged within {PUBLISH_WAIT_S:.0f} s") from error
            raise

    def offer(self, session: SpeechSession, record: bytes) -> asyncio.Future[None] | None:
        """Publish a record that may be lost; return None if the broker accepts no records now."""
        try:
            return self._broker.publish(self._topic, session.device_id, record) if self._broker.can_write() else None
        except BrokerError:
            return None

    def ended(self, utterance: Utterance) -> None:
        """Release the utterance's slot."""
        of_device = self._open.get(utterance.session.device_id, set())
        of_device.discard(utterance)
        if not of_device:
            self._open.pop(utterance.session.device_id, None)
        if not self._open:
            self._idle.set()


class Utterance:
    """One audio stream, until its record is published. Created by :meth:`Transcriber.open`.

    Call :meth:`feed` and :meth:`finish` from one coroutine at a time. After the first error, or :meth:`cancel`, nothing
    is left to do. If you cancel a coroutine that awaits one of them, also call :meth:`cancel`, which is harmless at any
    time.

    :ivar silent_since: when the device last sent audio, on the transcriber's clock; None while the gateway is not
        waiting for it, and for an utterance that never yields
    :ivar has_yielded: its slot has passed to another utterance
    """

    stream: SpeechStream

    def __init__(
        self,
        transcriber: Transcriber,
        session: SpeechSession,
        interim: bool,
        reports_errors: bool,
        on_cut: Callable[[], None] | None,
        on_yield: Callable[[], None] | None,
    ) -> None:
        self.session = session
        self._transcriber, self._counters = transcriber, transcriber.counters
        self._interim, self._reports_errors, self._on_cut = interim, reports_errors, on_cut
        self._on_yield = on_yield
        self._has_audio = self._ended = self._ending = self.has_yielded = False
        self.silent_since: float | None = None
        self._waits_for_the_device()
        self._in_flight: asyncio.Future[None] | None = None
        self._next: str | None = None
        self._has_interims = False

    def __repr__(self) -> str:
        return f"<Utterance {self.session_id} of {self.session.device_id!r}>"

    @property
    def session_id(self) -> str:
        """32 hexadecimal digits."""
        return self.session.session_id

    async def feed(self, data: bytes) -> None:
        """Add audio as received from the device. Suspends while the engine is behind.

        :raises AudioNotDecodable: it is not in the declared format
        :raises AudioTooLong: longer than an utterance may be
        :raises SpeechBusy: its audio has come too slowly, and another stream has taken its place
        :raises EngineFailed: the engine failed; a failure record was published
        """
        if not data:
            return
        self._has_audio, self.silent_since = True, None
        try:
            await self.stream.feed(data)
        except SpeechError as error:
            await self._fail(error)
            raise
        self._waits_for_the_device()

    def _waits_for_the_device(self) -> None:
        if self._on_yield is not None:
            self.silent_since = self._transcriber.clock()

    async def finish(self) -> Transcript:
        """End the audio, wait for the transcript, and wait until the broker has acknowledged its record.

        :raises BrokerError: the transcript is lost; see :meth:`Transcriber.publish`
        :raises SpeechError: as :meth:`feed`
        """
        end_of_audio, self.silent_since = self._transcriber.clock(), None
        try:
            transcript = await self._recognized()
            await self._publish(transcript, end_of_audio)
        except SpeechError as error:
            await self._fail(error)
            raise
        except BrokerError as error:
            self._end("unpublished")
            log.error("transcript not published", extra={**self.extra(), "error": str(error)})
            raise
        except BaseException:
            self.cancel()
            raise
        self._end("transcribed" if transcript.text else "no_speech")
        self._count(transcript)
        return transcript

    def cancel(self, outcome: str = "vanished") -> None:
        """Abandon the utterance: no transcript is published from now on. If interims were published, a failure record
        follows, so that the device expects no more. Never raises; harmless after the end.

        :param outcome: the reason, from a fixed set: a metric label
        """
        if not self._ended:
            self.stream.cancel()
            self._report_end(transcripts.DROPPED, self._has_interims)
            self._end(outcome)
            log.info("audio stream dropped", extra={**self.extra(), "outcome": outcome})

    def yield_place(self) -> None:
        """Give the slot to a newer utterance of the device; the feeding coroutine then ends this one."""
        on_yield, self.silent_since = self._on_yield, None
        if on_yield is not None:
            self.has_yielded = True
            on_yield()

    def cut(self) -> None:
        """Cut the utterance off, because the gateway stops. Has no effect while its record is being published."""
        if not self._ending:
            on_cut = self._on_cut
            self.stream.cancel()
            self._report_end(transcripts.DRAINING, self._reports_errors or self._has_interims)
            self._end("drained")
            if on_cut is not None:
                on_cut()

    def _report_end(self, error: str, wanted: bool) -> None:
        if wanted and not self._ending:
            now = self._transcriber.wall_clock()
            self._transcriber.publish_soon(
                self.session, transcripts.failure_record(self.session, error, now, final=self._final)
            )

    def on_interim(self, text: str) -> None:
        """Publish an interim. One is in flight to the broker at a time, and only the newest waits behind it."""
        if self._ending or self._ended:
            return
        if self._in_flight is not None:
            self._next = text
            return
        now = self._transcriber.wall_clock()
        record = transcripts.transcript_record(self.session, text, now, final=False)
        self._in_flight = self._transcriber.offer(self.session, record)
        if self._in_flight is not None:
            self._has_interims = True
            self._counters.interims += 1
            self._in_flight.add_done_callback(self._acknowledged)

    def _acknowledged(self, future: asyncio.Future[None]) -> None:
        self._in_flight = None
        _retrieve(future)
        text, self._next = self._next, None
        if text is not None:
            self.on_interim(text)

    async def _recognized(self) -> Transcript:
        if self._has_audio:
            return await self.stream.finish()
        # There is nothing to recognize, so don't wait for a worker.
        self.stream.cancel()
        return Transcript("", 0.0, 0.0, 0.0)

    async def _publish(self, transcript: Transcript, end_of_audio: float) -> None:
        clock, delivery = self._transcriber.clock, self._counters.delivery
        # No interim is published from here on; the one in flight precedes the record, in call order.
        self._ending = True
        record = transcripts.transcript_record(
            self.session, transcript.text, self._transcriber.wall_clock(), final=self._final
        )
        await self._transcriber.publish(self.session, record, lambda: delivery.observe(clock() - end_of_audio))

    @property
    def _final(self) -> bool | None:
        return True if self._interim else None

    async def _fail(self, error: SpeechError) -> None:
        """End the utterance, and publish a failure record if the device learns of it no other way, or has had
        interims."""
        if self._ended:
            return
        self._ending = True
        self.stream.cancel()
        outcome, text = _outcome_of(error)
        level = logging.ERROR if isinstance(error, EngineFailed) else logging.INFO
        log.log(level, "audio stream failed", extra={**self.extra(), "outcome": outcome, "error": str(error)})
        try:
            if isinstance(error, EngineFailed) or self._reports_errors or self._has_interims:
                now = self._transcriber.wall_clock()
                record = transcripts.failure_record(self.session, text, now, final=self._final)
                await self._transcriber.publish(self.session, record, lambda: None)
        except BrokerError as broker_error:
            log.error("transcript not published", extra={**self.extra(), "error": str(broker_error)})
        finally:
            self._end(outcome)

    def _end(self, outcome: str) -> None:
        if not self._ended:
            self._ended = self._ending = True
            self._next = None
            self._on_cut = self._on_yield = (
                None  # they may reference the owner of this utterance: break the reference cycle
            )
            count(self._counters.streams, outcome)
            self._transcriber.ended(self)

    def _count(self, transcript: Transcript) -> None:
        counters = self._counters
        counters.audio_s += transcript.audio_s
        counters.queue.observe(transcript.queue_s)
        if transcript.audio_s > 0:
            counters.real_time_factor.observe(transcript.busy_s / transcript.audio_s)
        log.info(
            "transcribed",
            extra={
                **self.extra(),
                "audio_s": round(transcript.audio_s, 2),
                "busy_s": round(transcript.busy_s, 2),
                "queue_s": round(transcript.queue_s, 2),
                "chars": len(transcript.text),
            },
        )

    def extra(self) -> dict[str, object]:
        """Log fields that identify the utterance."""
        return {"device_id": self.session.device_id, "session_id": self.session_id}


def _outcome_of(error: SpeechError) -> tuple[str, str]:
    """Return the metric label and the error text for the device."""
    if isinstance(error, AudioNotDecodable):
        return "not_decodable", transcripts.NOT_DECODABLE
    if isinstance(error, AudioTooLong):
        return "too_long", transcripts.TOO_LONG
    if isinstance(error, SpeechBusy):
        return "busy", transcripts.BUSY
    return "failed", transcripts.RECOGNITION_FAILED


def _retrieve(future: asyncio.Future[None]) -> None:
    """Retrieve the exception, so that asyncio does not log that it was never retrieved."""
    if not future.cancelled():
        future.exception()
