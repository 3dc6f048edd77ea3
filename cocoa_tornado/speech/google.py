"""Google Cloud Speech-to-Text v2, over its streaming gRPC call. Runs in a worker process.

The service has limits of its own, and they are kept here: a request holds at most 25 KB of audio, and a stream lasts at
most five minutes and ends by itself when no audio comes. So one utterance may take several calls, one after the other,
and its text is theirs, joined. A word that is spoken just when one call gives way to the next may suffer. A model for
single utterances (``short``) ends the stream after the first: what it has not heard by then is sent again in another.

Three threads meet in a :class:`_Call`: the worker's own, which brings audio; gRPC's, which asks for the next request;
and one that reads the answers. They share nothing but the call's fields, under its one condition.
"""

from __future__ import annotations

import contextlib
import ipaddress
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import google.auth
import google.auth.exceptions
import grpc
from google.api_core.client_options import ClientOptions
from google.cloud import speech_v2
from google.cloud.speech_v2.services.speech.transports import SpeechGrpcTransport

from ..errors import EngineFailed
from .engines import EngineUrl
from .recognizer import BYTES_PER_SECOND, SAMPLE_RATE_HZ, nothing

SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
# The service refuses more than 25,600 bytes, and its reference speaks of 15 KB: this is below both.
MOST_BYTES_PER_REQUEST: Final = 12_800
# Less than 0.1 s at a time is more requests than words; it waits for more, or for the end.
FEWEST_BYTES_PER_REQUEST: Final = 3_200
# What may wait for the network: about eight seconds of audio. Then accept() blocks.
BUFFER_BYTES: Final = 256 * 1024
# Only a service that ends every stream as soon as it begins needs more of them for one utterance.
MOST_CALLS: Final = 64

END_OF_SINGLE_UTTERANCE: Final = speech_v2.StreamingRecognizeResponse.SpeechEventType.END_OF_SINGLE_UTTERANCE


@dataclass(frozen=True, slots=True)
class GoogleLimits:
    """How long things may last. The defaults suit the service; tests have less patience.

    :ivar stream_s: a stream that has been open, or has carried audio, for so long is followed by another
    :ivar pause_s: a stream that gets no audio for so long is ended; another begins when audio comes again
    :ivar stall_s: so long may the service take no audio, or say nothing while it owes an answer
    """

    stream_s: float = 290.0
    pause_s: float = 5.0
    stall_s: float = 20.0


class GoogleRecognizer:
    """A :class:`~.recognizer.Recognizer`. One channel for its life; it connects with the first utterance.

    Options of the URL, none of them required:

    - ``project``: else the one of the credentials
    - ``location``: else ``global``; it decides the endpoint too
    - ``language``: a BCP 47 tag, or several with commas between; else the setting's; else en-US
    - ``model``: else ``long``
    - ``recognizer``: the id of one that exists in the project, whose own language and model then hold where none is
      said; else ``_``, the service's implicit one
    - ``endpoint``: host or host:port; else Google's own. A loopback address is spoken to without TLS or credentials

    :param language: used where the URL names none
    :raises EngineFailed: no credentials, or no project
    """

    detail: str

    def __init__(
        self,
        engine: EngineUrl,
        *,
        language: str = "",
        limits: GoogleLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._clock = limits or GoogleLimits(), clock
        self._transport, project = _connect(engine.options)
        location, recognizer = engine.options.get("location", "global"), engine.options.get("recognizer", "_")
        self._name = f"projects/{project}/locations/{location}/recognizers/{recognizer}"
        self._config = _config(engine.options, language)
        spoken = ",".join(self._config.language_codes) or "the recogniser's own language"
        self.detail = f"google, project {project}, {location}, {self._config.model or recognizer}, {spoken}"
        self._on_interim: Callable[[str], None] | None = None
        self._told = ""
        self._is_alive: Callable[[], None] = nothing
        self._calls: list[_Call] = []

    def begin(self, on_interim: Callable[[str], None] | None, alive: Callable[[], None] = nothing) -> None:
        self._cancel()
        self._on_interim, self._told, self._is_alive = on_interim, "", alive

    def accept(self, samples: bytes) -> None:
        """:raises EngineFailed: the service refused, failed, or takes nothing any more"""
        for call in self._calls:
            call.check()
        self._send(samples)
        self._tell()

    def finish(self) -> str:
        """:raises EngineFailed: the service refused, failed, or owes an answer for too long"""
        try:
            over = 0
            while over < len(self._calls):  # which may become more
                self._finish(self._calls[over])
                over += 1
            return self._text()
        finally:
            self._cancel()

    def close(self) -> None:
        """End the channel. Nothing may be recognised afterwards."""
        self._cancel()
        self._transport.close()

    def _send(self, audio: bytes) -> None:
        position = 0
        while position < len(audio):
            if self._calls and self._calls[-1].send(audio[position : position + MOST_BYTES_PER_REQUEST]):
                position += MOST_BYTES_PER_REQUEST
                continue
            if len(self._calls) == MOST_CALLS:
                raise EngineFailed("Google ends every stream before its time")
            rest = self._calls[-1].left_over() if self._calls else b""
            audio, position = rest + audio[position:], 0
            self._calls.append(self._open())

    def _finish(self, call: _Call) -> None:
        is_last = call is self._calls[-1]
        if is_last:
            call.end()
        while not call.wait():
            self._tell()
            self._is_alive()
        if is_last:
            self._send(call.left_over())

    def _open(self) -> _Call:
        features = speech_v2.StreamingRecognitionFeatures(interim_results=self._on_interim is not None)
        streaming = speech_v2.StreamingRecognitionConfig(config=self._config, streaming_features=features)
        first = speech_v2.StreamingRecognizeRequest(recognizer=self._name, streaming_config=streaming)
        return _Call(self._transport, first, self._limits, self._clock)

    def _text(self, *, with_interim: bool = False) -> str:
        # A blank where two results meet, also in scripts that write none: the service doesn't say which they are.
        return " ".join(" ".join(call.text(with_interim=with_interim) for call in self._calls).split())

    def _tell(self) -> None:
        if self._on_interim is None:
            return
        hypothesis = self._text(with_interim=True)
        if hypothesis and hypothesis != self._told:
            self._told = hypothesis
            self._on_interim(hypothesis)

    def _cancel(self) -> None:
        for call in self._calls:
            call.cancel()
        self._calls = []


class _Call:
    """One streaming call. All methods belong to the worker's thread, but those that say otherwise."""

    def __init__(self, transport: Any, first: Any, limits: GoogleLimits, clock: Callable[[], float]) -> None:
        self._limits, self._clock = limits, clock
        self._changed = threading.Condition()
        self._first = first
        self._audio = bytearray()  # not yet asked for by gRPC
        self._taken_bytes = self._settled_bytes = 0
        self._unsettled = bytearray()  # between the two; as long as the stream, at most: 9 MB
        self._ended = False  # no more audio will come
        self._told_so = False  # and the service knows
        self._one_only = False  # the service hears one utterance, and has heard it
        self._done = False  # no more answers will come
        self._failure: grpc.RpcError | None = None
        self._settled: list[str] = []
        self._interim = ""
        self._opened = self._alive = clock()
        # By its end the service has long closed the stream itself; this is for a connection that nobody ends.
        deadline_s = limits.stream_s + limits.stall_s + 10
        self._rpc: Any = transport.streaming_recognize(self._requests(), timeout=deadline_s)
        threading.Thread(target=self._read, name="google-answers", daemon=True).start()

    def send(self, piece: bytes) -> bool:
        """Take audio; block while too much of it waits. False: this call takes none any more, open another.

        :raises EngineFailed: the service has taken nothing for too long
        """
        with self._changed:
            self.check()
            limit_s, given_s = self._limits.stream_s, (self._taken_bytes + len(self._audio)) / BYTES_PER_SECOND
            if self._clock() - self._opened >= limit_s or given_s >= limit_s:
                self.end()
            while not self._ended and not self._done and len(self._audio) + len(piece) > BUFFER_BYTES:
                self._wait_for_life("Google takes no more audio")
            if self._ended or self._done:
                return False
            self._audio += piece
            self._changed.notify_all()
            return True

    def left_over(self) -> bytes:
        """What the service has not heard of a call that it ended itself; nothing where it heard all, or goes on."""
        with self._changed:
            if not self._done or (self._told_so and not self._one_only):
                return b""
            # A stream that ended without a word has heard silence: that needs no second hearing.
            rest = bytes((self._unsettled if self._settled or self._one_only else b"") + self._audio)
            self._unsettled.clear()
            self._audio.clear()
            return rest

    def end(self) -> None:
        """There is no more audio: the service is to say what it still owes."""
        with self._changed:
            if not self._ended:
                self._ended = True
                self._alive = self._clock()
                self._changed.notify_all()

    def wait(self) -> bool:
        """Wait for something to change, a second at most. True: the call is over, and all went well.

        :raises EngineFailed: it is over, and did not; or nothing has come for too long
        """
        with self._changed:
            if not self._done:
                self._wait_for_life("Google owes an answer")
            self.check()
            return self._done

    def check(self) -> None:
        """:raises EngineFailed: the call has failed"""
        if self._failure is not None:
            raise EngineFailed(_in_words(self._failure)) from self._failure

    def text(self, *, with_interim: bool) -> str:
        with self._changed:
            return " ".join([*self._settled, self._interim] if with_interim and not self._done else self._settled)

    def cancel(self) -> None:
        """Nobody wants the answer any more. Harmless once the call is over."""
        with self._changed:
            self._ended = self._done = True
            self._audio.clear()
            self._changed.notify_all()
        self._rpc.cancel()

    def _wait_for_life(self, complaint: str) -> None:
        """Wait for a notice, a second at most, and not for ever in all; the condition is held."""
        patience_s = self._alive + self._limits.stall_s - self._clock()
        if patience_s <= 0:
            self._rpc.cancel()
            raise EngineFailed(f"{complaint}: nothing for {self._limits.stall_s:g} s")
        self._changed.wait(min(patience_s, 1.0))

    def _requests(self) -> Iterator[Any]:
        """What the service is to be told. Runs in gRPC's thread, which ends with it."""
        yield self._first
        while piece := self._next_piece():
            yield speech_v2.StreamingRecognizeRequest(audio=piece)

    def _next_piece(self) -> bytes:
        """Audio for one request, once there is enough; b'': no more in this call. Runs in gRPC's thread."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or self._done or len(self._audio) >= FEWEST_BYTES_PER_REQUEST,
                self._limits.pause_s,
            )
            if self._done:
                return b""
            piece = bytes(self._audio[:MOST_BYTES_PER_REQUEST])
            del self._audio[:MOST_BYTES_PER_REQUEST]
            self._unsettled += piece
            self._taken_bytes += len(piece)
            if not piece:
                self._ended = self._told_so = True
            self._alive = self._clock()
            self._changed.notify_all()
            return piece

    def _read(self) -> None:
        """Take the answers as they come. Runs in a thread of its own, which ends with the call."""
        failure: grpc.RpcError | None = None
        try:
            for answer in self._rpc:
                self._take(answer)
        except grpc.RpcError as error:
            failure = error
        with self._changed:
            if not self._done:
                self._failure = failure
            self._done = True
            self._changed.notify_all()

    def _take(self, answer: Any) -> None:
        with self._changed:
            interim = []
            for result in answer.results:
                words = result.alternatives[0].transcript if result.alternatives else ""
                if result.is_final:
                    self._settled.append(words)
                    self._settle(result.result_end_offset.total_seconds())
                else:
                    interim.append(words)
            if answer.results:  # and not an event
                self._interim = " ".join(interim)
            if answer.speech_event_type == END_OF_SINGLE_UTTERANCE:
                self._one_only = True
                self._settle(answer.speech_event_offset.total_seconds())
            self._alive = self._clock()
            self._changed.notify_all()

    def _settle(self, end_s: float) -> None:
        """The stream is heard up to there; 0: the service doesn't say, and has heard all that it has taken."""
        end = 2 * round(end_s * SAMPLE_RATE_HZ) or self._taken_bytes
        del self._unsettled[: max(0, end - self._settled_bytes)]
        self._settled_bytes = self._taken_bytes - len(self._unsettled)


def _config(options: Mapping[str, str], language: str) -> Any:
    """What the service is told of the audio and of the language. A recogniser of one's own keeps what isn't said."""
    implicit = options.get("recognizer", "_") == "_"
    languages = [tag for tag in (part.strip() for part in options.get("language", language).split(",")) if tag]
    return speech_v2.RecognitionConfig(
        explicit_decoding_config=speech_v2.ExplicitDecodingConfig(
            encoding=speech_v2.ExplicitDecodingConfig.AudioEncoding.LINEAR16,
            sample_rate_hertz=SAMPLE_RATE_HZ,
            audio_channel_count=1,
        ),
        language_codes=languages or (["en-US"] if implicit else []),
        model=options.get("model") or ("long" if implicit else ""),
    )


def _connect(options: Mapping[str, str]) -> tuple[Any, str]:
    """The transport, and the project.

    The transport's own method is called, not the client's: that one gives its call away only with the first answer, and
    until then nobody could cancel it.
    """
    host, location = options.get("endpoint", ""), options.get("location", "global")
    if host and _is_loopback(host):
        return SpeechGrpcTransport(channel=grpc.insecure_channel(host)), options.get("project") or "local"
    if not host:
        host = "speech.googleapis.com" if location == "global" else f"{location}-speech.googleapis.com"
    try:
        credentials, own_project = google.auth.default(scopes=SCOPES)
        client = speech_v2.SpeechClient(credentials=credentials, client_options=ClientOptions(api_endpoint=host))
    except google.auth.exceptions.GoogleAuthError as error:
        # Its text may go on for lines, and quotes what it has read.
        raise EngineFailed(
            "no Google credentials: set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login"
        ) from error
    project = options.get("project") or own_project
    if not project:
        raise EngineFailed("the Google credentials name no project: say google://?project=...")
    return client.transport, project


def _is_loopback(endpoint: str) -> bool:
    host = endpoint.removeprefix("[").partition("]")[0] if endpoint.startswith("[") else endpoint.partition(":")[0]
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


_MEANING: Final = {
    grpc.StatusCode.UNAUTHENTICATED: "Google does not accept the credentials",
    grpc.StatusCode.PERMISSION_DENIED: "the Google credentials may not use speech recognition in this project",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "the quota of the Google project is used up",
    grpc.StatusCode.DEADLINE_EXCEEDED: "Google did not answer in time",
    grpc.StatusCode.UNAVAILABLE: "Google cannot be reached",
}


def _in_words(error: grpc.RpcError) -> str:
    """One line. The server's own words are added only where they cannot be about the credentials."""
    code = error.code()
    if "Getting metadata from plugin failed" in (error.details() or ""):
        return "the Google credentials cannot be refreshed"
    if code in _MEANING:
        return f"{_MEANING[code]} ({code.name})"
    details = " ".join((error.details() or "").split())[:200]
    return f"Google failed: {code.name}{': ' if details else ''}{details}"
