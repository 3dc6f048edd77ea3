"""``POST /api/v1/audio/stream``: audio in, words out, to the caller and, through the broker, to the device."""

from __future__ import annotations

import math
from typing import Any

from tornado.web import stream_request_body

from ..connection.sockets import has_been_reset
from ..counters import count
from ..errors import AudioNotDecodable, AudioTooLong, BrokerError, SpeechBusy, SpeechError
from ..rules.audio import AudioFormat, format_of
from ..rules.identity import DeviceIdentity
from ..rules.upload import IDLE, SILENT_S, UploadClock
from ..rules.upload_head import UploadHead
from ..transcriber import Utterance
from .answers import Answer
from .audio_context import AudioContext
from .early_answers import EarlyAnswers
from .handlers import flag

VANISHED = 499
LOOK_EVERY_S = 0.5


@stream_request_body
class AudioStreamHandler(EarlyAnswers):
    """One upload. The order of the answers, all given before a byte of the body is needed: 405, 501 (speech is off),
    503 (draining), 401, 400 (wrong type, wrong query), 413 (Content-Length), 429, 502 (no engine).

    While the body arrives, each immediately: 408, 413, 400 (not decodable), 429 (the device is silent, and has opened
    another upload), 502, 503 (cut off by a drain). After it: 200, 400, 413, 502, 503 (the broker is unavailable). If a
    client disconnects before the end of its body, everything is released and nothing is published. One that does not
    wait for the answer still gets its words over its WebSocket.

    :ivar device_id: for the access log, once the token is verified
    :ivar session_id: for the access log, once the audio is accepted
    """

    allows_any_host = True
    device_id = ""
    session_id = ""
    _utterance: Utterance | None = None
    _clock: UploadClock
    _head: UploadHead
    _received = 0

    async def prepare(self) -> None:  # type: ignore[override]  # Tornado awaits it; the base class has no need to
        super().prepare()
        audio = self.context.audio
        if audio is None:
            self.refuse(501, "Speech recognition is not available")
        elif self.context.devices.presence.draining:
            self.refuse(503, "Gateway is draining", self._retry_after())
        else:
            identity = await self.identify()
            if identity is not None:
                self.device_id = identity.device_id
                self._admit(audio, identity)

    def _admit(self, audio: AudioContext, identity: DeviceIdentity) -> None:
        headers = self.request.headers
        audio_format = format_of(headers.get("Content-Type"), audio.limits().raw)
        interim = flag(self.request.query_arguments.get("interim", ()))
        if audio_format is None:
            self.refuse(400, "Unsupported audio type")
        elif headers.get("Content-Encoding", "identity").lower() != "identity":
            self.refuse(400, "Unsupported content encoding")
        elif interim is None:
            self.refuse(400, "Invalid interim")
        elif (self.body_bytes or 0) > audio.limits().max_bytes:
            count(audio.transcriber.counters.streams, "too_large")
            self.refuse(413, "Audio too large")
        else:
            self._open(audio, identity, audio_format, interim)

    def _open(self, audio: AudioContext, identity: DeviceIdentity, audio_format: AudioFormat, interim: bool) -> None:
        try:
            utterance = audio.transcriber.open(
                identity.device_id,
                identity.user_id,
                audio_format,
                interim=interim,
                on_cut=self._cut_by_drain,
                on_yield=self._yield_to_another,
            )
        except SpeechBusy as error:
            self._refuse_busy(error.retry_after_s)
        except SpeechError as error:
            self._refuse_speech(error)
        else:
            limits = audio.limits()
            self._utterance, self.session_id = utterance, utterance.session_id
            self._head = UploadHead(
                audio_format,
                self.body_bytes,
                max_bytes=limits.max_bytes,
                max_audio_s=audio.transcriber.limits().max_audio_s,
            )
            if self.http_stream is not None:
                self.http_stream.has_upload = True
            self.begin_body()
            self._clock = UploadClock(self.now(), limits.idle_timeout_s, limits.upload_timeout_s)
            self._wait()

    async def receive(self, chunk: bytes) -> None:
        """Take a piece of the body. Nothing more is read from the client until this returns."""
        utterance, audio = self._utterance, self.context.audio
        if utterance is None or audio is None:
            return
        self.stop_timer()
        self._clock.received(self.now())
        self._received += len(chunk)
        if self._received > audio.limits().max_bytes:
            utterance.cancel("too_large")
            self.refuse(413, "Audio too large")
            return
        if not self._head.is_known and not self._is_fine(audio, utterance, chunk):
            return
        self._look_for_the_client()
        try:
            await utterance.feed(chunk)
        except SpeechError as error:
            if self.is_in_body:
                self._refuse_speech(error)
        if self.is_in_body and not self.is_answered:
            self._clock.waits(self.now())
            self._wait()

    def _is_fine(self, audio: AudioContext, utterance: Utterance, chunk: bytes) -> bool:
        """Check the beginning of the upload. An upload that it rules out has not reached a worker yet, unless it came
        in tiny pieces."""
        head = self._head
        try:
            head.add(chunk)
        except AudioTooLong as error:
            utterance.cancel("too_long")
            self._refuse_speech(error)
            return False
        except AudioNotDecodable as error:
            utterance.cancel("not_decodable")
            self._refuse_speech(error)
            return False
        if head.is_known and head.has_eight_bits and head.settled is not None:
            audio.transcriber.note_eight_bits(self.device_id, head.settled.rate_hz)
        return True

    async def post(self) -> None:
        """The whole body has been read."""
        if not self.end_body():
            return
        assert self._utterance is not None
        try:
            transcript = await self._utterance.finish()
        except SpeechError as error:
            self._refuse_speech(error)
            return
        except BrokerError:
            self.refuse(503, "Broker not available", self._retry_after())
            return
        if self.is_answered:
            return
        self.is_answered = True
        body = {"success": True, "message": "Audio processed successfully", "session_id": self.session_id}
        self.answer(200, {**body, "text": transcript.text})

    def log_fields(self) -> dict[str, object]:
        fields: dict[str, object] = {"device_id": self.device_id, "session_id": self.session_id}
        return {name: value for name, value in fields.items() if value}

    def on_connection_close(self) -> None:
        if self.is_in_body and not self.is_answered:
            self.is_in_body = False
            if self._utterance is not None:
                self._utterance.cancel()
            # For the access log only; nginx uses this status.
            self.set_status(VANISHED, "Client Closed Request")
            self.application.log_request(self)
        super().on_connection_close()

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if self._utterance is not None:
            self._utterance.cancel("failed")
        super().write_error(status_code, **kwargs)

    def _look_for_the_client(self) -> None:
        """While the device is held back, its socket is not read, so check here whether it has disconnected."""
        connection = self.request.connection
        if isinstance(connection, Answer) and (connection.stream.closed() or has_been_reset(connection.stream.socket)):
            self.on_connection_close()
        else:
            self.start_timer(self.now() + LOOK_EVERY_S, self._look_for_the_client)

    def _wait(self) -> None:
        self.start_timer(self._clock.deadline.at, self._too_late)

    def _too_late(self) -> None:
        assert self._utterance is not None
        self._utterance.cancel("timeout")
        is_idle = self._clock.deadline.reason == IDLE
        self.refuse(408, "Timed out waiting for audio" if is_idle else "Upload took too long")

    def _yield_to_another(self) -> None:
        assert self._utterance is not None
        self._utterance.cancel("replaced")
        self._refuse_busy(SILENT_S)

    def _refuse_busy(self, retry_after_s: float) -> None:
        self.refuse(429, "Too many audio streams", {"Retry-After": str(math.ceil(retry_after_s))})

    def _cut_by_drain(self) -> None:
        self.refuse(503, "Gateway is draining", self._retry_after())

    def _refuse_speech(self, error: SpeechError) -> None:
        if isinstance(error, AudioNotDecodable):
            self.refuse(400, f"Audio not decodable: {error}")
        elif isinstance(error, AudioTooLong):
            self.refuse(413, "Audio too long")
        elif isinstance(error, SpeechBusy):
            self._refuse_busy(error.retry_after_s)
        else:
            self.refuse(502, "Speech recognition failed")

    def _retry_after(self) -> dict[str, str]:
        return {"Retry-After": str(self.context.retry_after_s)}
