"""Google Cloud Speech-to-Text v2, over its streaming gRPC call. Runs in a worker process.

The service's limits are handled here: a request has at most 25 KB of audio, and a stream lasts at most five minutes and
ends if no audio arrives. So one utterance may take several consecutive calls, whose texts are joined. A word spoken at
the transition between two calls may suffer. A model for single utterances (``short``) ends the stream after the first
one; audio that it has not processed by then is sent again in another call.

Three threads share a :class:`_Call`: the worker's, which adds audio; gRPC's, which requests data to send; and one that
reads the answers. They share only the call's fields, under its condition.
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
# The service refuses more than 25,600 bytes, and its reference mentions 15 KB: this is below both.
MAX_BYTES_PER_REQUEST: Final = 12_800
# At less than 0.1 s per request there would be more requests than words, so wait for more, or for the end.
MIN_BYTES_PER_REQUEST: Final = 3_200
# Audio that may wait for the network: about eight seconds. Then accept() blocks.
BUFFER_BYTES: Final = 256 * 1024
# More calls for one utterance are needed only if the service ends every stream right after it begins.
MAX_CALLS: Final = 64

END_OF_SINGLE_UTTERANCE: Final = speech_v2.StreamingRecognizeResponse.SpeechEventType.END_OF_SINGLE_UTTERANCE


@dataclass(frozen=True, slots=True)
class GoogleLimits:
    """Time limits. The defaults suit the service; tests use shorter ones.

    :ivar stream_s: a stream that was open, or carried audio, for this long is followed by another
    :ivar pause_s: a stream without audio for this long is ended; another begins with the next audio
    :ivar stall_s: how long the service may take no audio, or owe an answer
    """

    stream_s: float = 290.0
    pause_s: float = 5.0
    stall_s: float = 20.0


class GoogleRecognizer:
    """A :class:`~.recognizer.Recognizer` with one channel, connected with the first utterance.

    Options of the URL, all optional:

    - ``project``: defaults to the credentials' project
    - ``location``: defaults to ``global``; also determines the endpoint
    - ``language``: a BCP 47 tag, or several separated by commas; defaults to the setting, or else en-US
    - ``model``: defaults to ``long``
    - ``recognizer``: the id of an existing one in the project, whose language and model then are the defaults; defaults
      to ``_``, the service's implicit recognizer
    - ``endpoint``: host or host:port; defaults to Google's. A loopback address is used without TLS and credentials

    :param language: used if the URL has none
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
        self._reported = ""
        self._is_alive: Callable[[], None] = nothing
        self._calls: list[_Call] = []

    def begin(self, on_interim: Callable[[str], None] | None, alive: Callable[[], None] = nothing) -> None:
        self._cancel()
        self._on_interim, self._reported, self._is_alive = on_interim, "", alive

    def accept(self, samples: bytes) -> None:
        """:raises EngineFailed: the service refused, failed, or takes no audio any more"""
        for call in self._calls:
            call.check()
        self._send(samples)
        self._report_interim()

    def finish(self) -> str:
        """:raises EngineFailed: the service refused, failed, or owed an answer for too long"""
        try:
            over = 0
            while over < len(self._calls):  # calls may be added meanwhile
                self._finish(self._calls[over])
                over += 1
            return self._text()
        finally:
            self._cancel()

    def close(self) -> None:
        """Close the channel. Nothing can be recognized afterwards."""
        self._cancel()
        self._transport.close()

    def _send(self, audio: bytes) -> None:
        position = 0
        while position < len(audio):
            if self._calls and self._calls[-1].send(audio[position : position + MAX_BYTES_PER_REQUEST]):
                position += MAX_BYTES_PER_REQUEST
                continue
            if len(self._calls) == MAX_CALLS:
                raise EngineFailed("Google ends every stream before its time")
            rest = self._calls[-1].left_over() if self._calls else b""
            audio, position = rest + audio[position:], 0
            self._calls.append(self._open())

    def _finish(self, call: _Call) -> None:
        is_last = call is self._calls[-1]
        if is_last:
            call.end()
        while not call.wait():
            self._report_interim()
            self._is_alive()
        if is_last:
            self._send(call.left_over())

    def _open(self) -> _Call:
        features = speech_v2.StreamingRecognitionFeatures(interim_results=self._on_interim is not None)
        streaming = speech_v2.StreamingRecognitionConfig(config=self._config, streaming_features=features)
        first = speech_v2.StreamingRecognizeRequest(recognizer=self._name, streaming_config=streaming)
        return _Call(self._transport, first, self._limits, self._clock)

    def _text(self, *, with_interim: bool = False) -> str:
        # Join results with a blank, even in scripts that use none: the service does not name the script.
        return " ".join(" ".join(call.text(with_interim=with_interim) for call in self._calls).split())

    def _report_interim(self) -> None:
        if self._on_interim is None:
            return
        text = self._text(with_interim=True)
        if text and text != self._reported:
            self._reported = text
            self._on_interim(text)

    def _cancel(self) -> None:
        for call in self._calls:
            call.cancel()
        self._calls = []


class _Call:
    """One streaming call. Methods run in the worker's thread unless they say otherwise."""

    def __init__(self, transport: Any, first: Any, limits: GoogleLimits, clock: Callable[[], float]) -> None:
        self._limits, self._clock = limits, clock
        self._changed = threading.Condition()
        self._first = first
        self._audio = bytearray()  # not yet requested by gRPC
        self._taken_bytes = self._settled_bytes = 0
        self._unsettled = bytearray()  # between the two; at most as long as the stream: 9 MB
        self._ended = False  # no more audio will come
        self._end_sent = False  # and the service was notified
        self._one_only = False  # the service recognizes one utterance, which is over
        self._done = False  # no more answers will come
        self._failure: grpc.RpcError | None = None
        self._settled: list[str] = []
        self._interim = ""
        self._opened = self._alive = clock()
        # The service closes a stream long before this; it is for a connection that never ends.
        deadline_s = limits.stream_s + limits.stall_s + 10
        self._rpc: Any = transport.streaming_recognize(self._requests(), timeout=deadline_s)
        threading.Thread(target=self._read, name="google-answers", daemon=True).start()

    def send(self, piece: bytes) -> bool:
        """Add audio; block while too much of it waits. Return False if the call takes no more: open another.

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
        """Return the audio that the service did not process before ending the call; nothing if it processed all."""
        with self._changed:
            if not self._done or (self._end_sent and not self._one_only):
                return b""
            # A stream that ended without a word contained silence, which need not be sent again.
            rest = bytes((self._unsettled if self._settled or self._one_only else b"") + self._audio)
            self._unsettled.clear()
            self._audio.clear()
            return rest

    def end(self) -> None:
        """End the audio; the service then returns what it still owes."""
        with self._changed:
            if not self._ended:
                self._ended = True
                self._alive = self._clock()
                self._changed.notify_all()

    def wait(self) -> bool:
        """Wait for a change, for a second at most. Return True if the call has ended successfully.

        :raises EngineFailed: it has failed, or nothing was received for too long
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
        """Cancel the call: the answer is not needed. Harmless once the call is over."""
        with self._changed:
            self._ended = self._done = True
            self._audio.clear()
            self._changed.notify_all()
        self._rpc.cancel()

    def _wait_for_life(self, complaint: str) -> None:
        """Wait for a notification, a second at most, and ``stall_s`` in all. Call with the condition held."""
        patience_s = self._alive + self._limits.stall_s - self._clock()
        if patience_s <= 0:
            self._rpc.cancel()
            raise EngineFailed(f"{complaint}: nothing for {self._limits.stall_s:g} s")
        self._changed.wait(min(patience_s, 1.0))

    def _requests(self) -> Iterator[Any]:
        """Generate the requests. Runs in gRPC's thread, which ends with it."""
        yield self._first
        while piece := self._next_piece():
            yield speech_v2.StreamingRecognizeRequest(audio=piece)

    def _next_piece(self) -> bytes:
        """Return audio for one request, once there is enough; b'': the call's audio has ended. Runs in gRPC's
        thread."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or self._done or len(self._audio) >= MIN_BYTES_PER_REQUEST,
                self._limits.pause_s,
            )
            if self._done:
                return b""
            piece = bytes(self._audio[:MAX_BYTES_PER_REQUEST])
            del self._audio[:MAX_BYTES_PER_REQUEST]
            self._unsettled += piece
            self._taken_bytes += len(piece)
            if not piece:
                self._ended = self._end_sent = True
            self._alive = self._clock()
            self._changed.notify_all()
            return piece

    def _read(self) -> None:
        """Receive the answers. Runs in its own thread, which ends with the call."""
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
            if answer.results:  # not an event
                self._interim = " ".join(interim)
            if answer.speech_event_type == END_OF_SINGLE_UTTERANCE:
                self._one_only = True
                self._settle(answer.speech_event_offset.total_seconds())
            self._alive = self._clock()
            self._changed.notify_all()

    def _settle(self, end_s: float) -> None:
        """The stream is processed up to ``end_s``; 0: unknown, and all the audio taken so far is processed."""
        end = 2 * round(end_s * SAMPLE_RATE_HZ) or self._taken_bytes
        del self._unsettled[: max(0, end - self._settled_bytes)]
        self._settled_bytes = self._taken_bytes - len(self._unsettled)


def _config(options: Mapping[str, str], language: str) -> Any:
    """Build the configuration. With an existing recognizer, only what the URL sets is overridden."""
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
    """Return the transport and the project.

    Call the transport's method instead of the client's: the latter returns the call only with the first answer, and
    until then it could not be cancelled.
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
        # The text may have several lines and quote the credentials file.
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
    """One line. The server's text is included only if it cannot be about the credentials."""
    code = error.code()
    if "Getting metadata from plugin failed" in (error.details() or ""):
        return "the Google credentials cannot be refreshed"
    if code in _MEANING:
        return f"{_MEANING[code]} ({code.name})"
    details = " ".join((error.details() or "").split())[:200]
    return f"Google failed: {code.name}{': ' if details else ''}{details}"
