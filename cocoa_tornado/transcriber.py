"""From audio to records: makes one utterance of each stream, and publishes what comes of it. IOLoop thread only.

Where the audio comes from (a POST, or binary WebSocket messages) is of no interest here; what recognises it is behind
the speech port, and who gets the words is the broker's and the router's affair, as for any other record.
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
from .routing.arrivals import Arrivals
from .rules import transcripts
from .rules.audio import AudioFormat
from .rules.once import Once
from .rules.transcripts import SpeechSession
from .rules.upload import make_room
from .speech.port import SpeechEngine, SpeechState, SpeechStatus, SpeechStream, Transcript

PUBLISH_WAIT_S: Final = 10.0
"""How long the words wait for a broker that is away. Then whoever sent the audio is told, and may send it again."""

ARRIVAL_WAIT_S: Final = 2.0
"""How long a drain waits for published words to come back from the broker."""

RETRY_AFTER_S: Final = 5.0
"""When a device that speaks already may try again; nobody knows when it ends."""

NOTED_DEVICES: Final = 10_000
"""Devices of which is remembered that a line about their samples has been logged."""

log = logging.getLogger("cocoa.transcriber")


@dataclass(frozen=True, slots=True)
class SpeechLimits:
    """:ivar streams_per_device: at a time, POST and WebSocket together
    :ivar streams: at a time, in all; 0: as many as the engine takes
    :ivar max_audio_s: of one utterance
    """

    streams_per_device: int = 1
    streams: int = 0
    max_audio_s: float = 60.0


class Transcriber:
    """Opens utterances, within limits, and knows those that are open.

    :ivar limits: returns those in force, which a reload may change; open utterances keep theirs
    """

    def __init__(
        self,
        engine: SpeechEngine,
        broker: Broker,
        arrivals: Arrivals,
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
        self._engine, self._broker, self._arrivals, self._topic = engine, broker, arrivals, results_topic
        self._open: dict[str, set[Utterance]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._reports: set[asyncio.Future[None]] = set()
        self._eight_bit_devices = Once(NOTED_DEVICES)
        self._draining = False

    def __repr__(self) -> str:
        return f"<Transcriber {len(self)} open>"

    def __len__(self) -> int:
        """Utterances that are open, in all."""
        return sum(map(len, self._open.values()))

    @property
    def is_draining(self) -> bool:
        return self._draining

    def status(self) -> SpeechStatus:
        """Of the engine."""
        return self._engine.status()

    def open(
        self,
        device_id: str,
        user_id: int | str,
        audio_format: AudioFormat,
        *,
        interim: bool = False,
        tells_errors: bool = False,
        on_cut: Callable[[], None] | None = None,
        on_yield: Callable[[], None] | None = None,
    ) -> Utterance:
        """A new utterance, which must be ended with :meth:`Utterance.finish` or :meth:`Utterance.cancel`.

        Where the device has as many as it may have, one that has been silent for two seconds yields to it.

        :param interim: publish growing hypotheses too
        :param tells_errors: publish a record for every error that ends the utterance (for whom no HTTP status tells)
        :param on_cut: called if a drain ends it before its time; what awaits it then sees EngineFailed
        :param on_yield: called if this one, being silent, yields to a newer one of its device: its place is gone, and
            it must be ended now, with the words it has or without; None: it never does
        :raises SpeechBusy: the device has its share already, all streams are taken, or the gateway is draining;
            nothing is published
        :raises EngineFailed: no worker can be started; the device is told so by a record
        """
        session = SpeechSession(secrets.token_hex(16), user_id, device_id)
        try:
            for silent in self._room_for(device_id):
                log.info("audio stream yields", extra=silent.extra())
                silent.yield_place()
            utterance = Utterance(self, session, interim, tells_errors, on_cut, on_yield)
            on_interim = utterance.on_hypothesis if interim else None
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
        """Those that must yield to a new one of the device's, whose place is theirs."""
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
        """Log, once for each device, that its samples are taken for unsigned ones of 8 bits, by what they look like."""
        if self._eight_bit_devices.is_first(device_id):
            log.info("samples have 8 bits", extra={"device_id": device_id, "encoding": "u8", "rate_hz": rate_hz})

    def report(self, device_id: str, user_id: int | str, error: str) -> None:
        """Publish that an utterance came to nothing, and don't wait for it; dropped if the broker takes nothing now."""
        session = SpeechSession(secrets.token_hex(16), user_id, device_id)
        self.tell(session, transcripts.failure_record(session, error, self.wall_clock()))

    def tell(self, session: SpeechSession, record: bytes) -> None:
        """Publish a record and don't wait for it. A drain does, for a while."""
        future = self.offer(session, record)
        if future is not None:
            self._arrivals.expect(session.device_id, transcripts.message_of(record), lambda: None)
            self._reports.add(future)
            future.add_done_callback(self._reported)

    def _reported(self, future: asyncio.Future[None]) -> None:
        self._reports.discard(future)
        _retrieve(future)

    async def drain(self, timeout_s: float) -> None:
        """Take no new utterance, and let those that are open come to their end; after ``timeout_s`` cut them off. Then
        end the engine, and wait, for at most two seconds, for the words to come back and be routed."""
        self._draining = True
        if not await self._all_ended(timeout_s):
            log.warning("audio streams cut off", extra={"streams": len(self)})
            for utterance in [utterance for of_device in self._open.values() for utterance in of_device]:
                utterance.cut()
            # The others have their words already, and publish them.
            await self._all_ended(ARRIVAL_WAIT_S)
        await self._engine.close()
        await self._arrivals.settled(ARRIVAL_WAIT_S)

    async def _all_ended(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def publish(
        self, session: SpeechSession, record: bytes, on_arrival: Callable[[], None] | None = None
    ) -> None:
        """Publish a record; return when the broker has acknowledged it.

        :param on_arrival: called if this process gets it back and has routed it
        :raises BrokerError: it refused, or did not acknowledge in time. In the latter case the record may still be
            published later.
        """
        message = transcripts.message_of(record)
        if on_arrival is not None:
            self._arrivals.expect(session.device_id, message, on_arrival)
        try:
            async with asyncio.timeout(PUBLISH_WAIT_S):
                await self._broker.writable()
                await asyncio.shield(self._broker.publish(self._topic, session.device_id, record))
        except BaseException as error:
            self._arrivals.forget(session.device_id, message)
            if isinstance(error, TimeoutError):
                raise BrokerError(f"not acknowledged within {PUBLISH_WAIT_S:.0f} s") from error
            raise

    def offer(self, session: SpeechSession, record: bytes) -> asyncio.Future[None] | None:
        """Publish a record that may as well be lost; None if the broker takes nothing now."""
        try:
            return self._broker.publish(self._topic, session.device_id, record) if self._broker.can_write() else None
        except BrokerError:
            return None

    def ended(self, utterance: Utterance) -> None:
        """The utterance's place is free again."""
        of_device = self._open.get(utterance.session.device_id, set())
        of_device.discard(utterance)
        if not of_device:
            self._open.pop(utterance.session.device_id, None)
        if not self._open:
            self._idle.set()


class Utterance:
    """One stream of audio on its way to being a record. Made by :meth:`Transcriber.open`.

    One coroutine at a time calls :meth:`feed` and :meth:`finish`; after the first error, or :meth:`cancel`, there is
    nothing more to do. Whoever cancels a coroutine that awaits one of them calls :meth:`cancel` too; it is harmless at
    any time.

    :ivar silent_since: since when the device has sent nothing, on the transcriber's clock; None while it is not waited
        for, and for one that never yields
    :ivar has_yielded: its place belongs to another one
    """

    stream: SpeechStream

    def __init__(
        self,
        transcriber: Transcriber,
        session: SpeechSession,
        interim: bool,
        tells_errors: bool,
        on_cut: Callable[[], None] | None,
        on_yield: Callable[[], None] | None,
    ) -> None:
        self.session = session
        self._transcriber, self._counters = transcriber, transcriber.counters
        self._interim, self._tells_errors, self._on_cut = interim, tells_errors, on_cut
        self._on_yield = on_yield
        self._has_audio = self._ended = self._ending = self.has_yielded = False
        self.silent_since: float | None = None
        self._waits_for_the_device()
        self._in_flight: asyncio.Future[None] | None = None
        self._next: str | None = None
        self._has_hypotheses = False

    def __repr__(self) -> str:
        return f"<Utterance {self.session_id} of {self.session.device_id!r}>"

    @property
    def session_id(self) -> str:
        """32 hexadecimal digits."""
        return self.session.session_id

    async def feed(self, data: bytes) -> None:
        """Audio as it came from the device. Suspends while the engine is behind.

        :raises AudioNotDecodable: it is not what it was said to be
        :raises AudioTooLong: more than an utterance may have
        :raises EngineFailed: the engine failed; the device has been told by a record
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
        """There is no more audio: wait for the words, and until the broker has acknowledged their record.

        :raises BrokerError: the words are in nobody's hands; see :meth:`Transcriber.publish`
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
        """Nobody waits for the words any more: none are published from now on. A device that has had hypotheses is told
        that there is no more to come. Never raises; harmless after the end.

        :param outcome: why, in one word of a fixed set: a metric label
        """
        if not self._ended:
            self.stream.cancel()
            self._tell_the_end(transcripts.DROPPED, self._has_hypotheses)
            self._end(outcome)
            log.info("audio stream dropped", extra={**self.extra(), "outcome": outcome})

    def yield_place(self) -> None:
        """A newer one of the device's has the place; whoever feeds this one ends it."""
        on_yield, self.silent_since = self._on_yield, None
        if on_yield is not None:
            self.has_yielded = True
            on_yield()

    def cut(self) -> None:
        """The gateway goes away. An utterance whose record is being published goes on all the same."""
        if not self._ending:
            on_cut = self._on_cut
            self.stream.cancel()
            self._tell_the_end(transcripts.DRAINING, self._tells_errors or self._has_hypotheses)
            self._end("drained")
            if on_cut is not None:
                on_cut()

    def _tell_the_end(self, error: str, wanted: bool) -> None:
        if wanted and not self._ending:
            now = self._transcriber.wall_clock()
            self._transcriber.tell(
                self.session, transcripts.failure_record(self.session, error, now, final=self._final)
            )

    def on_hypothesis(self, text: str) -> None:
        """A hypothesis of the engine. One is on its way to the broker at a time, and one waits, the newest."""
        if self._ending or self._ended:
            return
        if self._in_flight is not None:
            self._next = text
            return
        now = self._transcriber.wall_clock()
        record = transcripts.transcript_record(self.session, text, now, final=False)
        self._in_flight = self._transcriber.offer(self.session, record)
        if self._in_flight is not None:
            self._has_hypotheses = True
            self._counters.hypotheses += 1
            self._in_flight.add_done_callback(self._acknowledged)

    def _acknowledged(self, future: asyncio.Future[None]) -> None:
        self._in_flight = None
        _retrieve(future)
        text, self._next = self._next, None
        if text is not None:
            self.on_hypothesis(text)

    async def _recognized(self) -> Transcript:
        if self._has_audio:
            return await self.stream.finish()
        # There is nothing to recognise, and no reason to wait for a worker.
        self.stream.cancel()
        return Transcript("", 0.0, 0.0, 0.0)

    async def _publish(self, transcript: Transcript, end_of_audio: float) -> None:
        clock, delivery = self._transcriber.clock, self._counters.delivery
        # From here on no hypothesis is published: the one in flight comes before, in the order of the calls.
        self._ending = True
        record = transcripts.transcript_record(
            self.session, transcript.text, self._transcriber.wall_clock(), final=self._final
        )
        await self._transcriber.publish(self.session, record, lambda: delivery.observe(clock() - end_of_audio))

    @property
    def _final(self) -> bool | None:
        return True if self._interim else None

    async def _fail(self, error: SpeechError) -> None:
        """End it, and tell the device where nothing else does, or where it waits for the end of hypotheses."""
        if self._ended:
            return
        self._ending = True
        self.stream.cancel()
        outcome, text = _told(error)
        level = logging.ERROR if isinstance(error, EngineFailed) else logging.INFO
        log.log(level, "audio stream failed", extra={**self.extra(), "outcome": outcome, "error": str(error)})
        try:
            if isinstance(error, EngineFailed) or self._tells_errors or self._has_hypotheses:
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
                None  # which may know of whoever has this one: no circle is left for the collector
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
        """Fields of a log line about it."""
        return {"device_id": self.session.device_id, "session_id": self.session_id}


def _told(error: SpeechError) -> tuple[str, str]:
    """What is counted, and what the device is told."""
    if isinstance(error, AudioNotDecodable):
        return "not_decodable", transcripts.NOT_DECODABLE
    if isinstance(error, AudioTooLong):
        return "too_long", transcripts.TOO_LONG
    return "failed", transcripts.RECOGNITION_FAILED


def _retrieve(future: asyncio.Future[None]) -> None:
    """Or asyncio would complain that nobody has asked how it went."""
    if not future.cancelled():
        future.exception()
