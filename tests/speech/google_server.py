"""A small Speech-to-Text service on loopback: the real proto over real gRPC, the words from a script.

It is as strict as the service: the first request configures and holds no audio, the others hold audio and nothing else,
at most 25,600 bytes; a stream that carries too much audio is ended with an error.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import grpc
from google.cloud import speech_v2

SERVICE = "google.cloud.speech.v2.Speech"
MOST_BYTES = 25_600
BYTES_PER_SECOND = 32_000
END_OF_SINGLE_UTTERANCE = speech_v2.StreamingRecognizeResponse.SpeechEventType.END_OF_SINGLE_UTTERANCE


@dataclass(slots=True)
class ReceivedCall:
    """One streaming call, as the service saw it.

    :ivar over: set when the call has ended, by either side
    :ivar finished: the service sent all of its answers
    """

    first: Any = None
    audio: bytearray = field(default_factory=bytearray)
    sizes: list[int] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    finished: bool = False


class SpeechService:
    """Recognizes ``recordings``: words by their samples (16 kHz, mono, signed 16-bit, little-endian).

    Audio that is a prefix of a recording is answered with that part of its words; anything else is no speech. All
    attributes may be set at any time, for the calls that come then.

    :ivar calls: every call so far
    :ivar limit_s: a call that carries more audio ends with OUT_OF_RANGE
    :ivar refusal: a status that every call ends with at once, and its text
    :ivar unresponsive: take the first request, then read and send nothing until the client goes away
    :ivar silent: read everything, and never answer
    :ivar hasty: take this many requests with audio, answer, and end the call, as after one utterance
    """

    def __init__(self, recordings: Mapping[str, bytes] | None = None) -> None:
        self.recordings = dict(recordings or {})
        self.calls: list[ReceivedCall] = []
        self._called = threading.Condition()
        self.limit_s = 305.0
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.unresponsive = self.silent = False
        self.hasty: int | None = None
        self._server = grpc.server(ThreadPoolExecutor(max_workers=16, thread_name_prefix="speech-service"))
        handler = grpc.stream_stream_rpc_method_handler(
            self._recognize,
            request_deserializer=speech_v2.StreamingRecognizeRequest.deserialize,
            response_serializer=speech_v2.StreamingRecognizeResponse.serialize,
        )
        methods = grpc.method_handlers_generic_handler(SERVICE, {"StreamingRecognize": handler})
        self._server.add_generic_rpc_handlers((methods,))
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    @property
    def url(self) -> str:
        return f"google://?project=test&endpoint={self.endpoint}"

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop(grace=None).wait(10)

    def last_call(self, patience_s: float) -> ReceivedCall:
        """The latest call; waits for the first."""
        with self._called:
            assert self._called.wait_for(lambda: self.calls, patience_s), "no call"
            return self.calls[-1]

    def __enter__(self) -> SpeechService:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _recognize(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        call = ReceivedCall()
        with self._called:
            self.calls.append(call)
            self._called.notify_all()
        context.add_callback(call.over.set)
        if self.refusal is not None:
            context.abort(*self.refusal)
        yield from self._answers(requests, context, call)
        call.finished = True

    def _answers(self, requests: Iterator[Any], context: Any, call: ReceivedCall) -> Iterator[Any]:
        call.first = next(requests)
        if not call.first.recognizer or not call.first.streaming_config or call.first.audio:
            _invalid(context, "The first request must configure, and hold no audio.")
        if self.unresponsive:
            _wait_for_the_end(context)
            return
        if self.hasty == 0:
            return
        interim = call.first.streaming_config.streaming_features.interim_results
        sent = ""
        for request in requests:
            self._check(request, context, call)
            call.sizes.append(len(request.audio))
            call.audio += request.audio
            words = self._words(bytes(call.audio))
            if interim and words != sent and not self.silent:
                sent = words
                yield _answer(words, is_final=False)
            if len(call.sizes) == self.hasty:
                yield speech_v2.StreamingRecognizeResponse(
                    speech_event_type=END_OF_SINGLE_UTTERANCE, speech_event_offset=_length(call.audio)
                )
                break
        if self.silent:
            _wait_for_the_end(context)
        elif words := self._words(bytes(call.audio)):
            yield _answer(words, is_final=True, end=_length(call.audio))

    def _check(self, request: Any, context: Any, call: ReceivedCall) -> None:
        if not request.audio or request.streaming_config:
            _invalid(context, "Requests after the first must hold audio only.")
        if len(request.audio) > MOST_BYTES:
            _invalid(context, f"Audio chunk can be of a maximum of {MOST_BYTES} bytes.")
        if len(call.audio) + len(request.audio) > self.limit_s * BYTES_PER_SECOND:
            context.abort(grpc.StatusCode.OUT_OF_RANGE, "Exceeded maximum allowed stream duration of 305 seconds.")

    def _words(self, audio: bytes) -> str:
        """Of the recording that this is the beginning of; a call may begin in its midst, too."""
        for text, recording in self.recordings.items():
            where = recording.find(audio)
            if audio and where >= 0:
                words = text.split()
                first = len(words) * where / len(recording)
                last = len(words) * (where + len(audio)) / len(recording)
                return " ".join(words[round(first) : round(last)])
        return ""


def _wait_for_the_end(context: Any) -> None:
    """Run until the client disconnects, or the service stops."""
    gone = threading.Event()
    if context.add_callback(gone.set):
        gone.wait()


def _length(audio: bytes | bytearray) -> timedelta:
    return timedelta(seconds=len(audio) / BYTES_PER_SECOND)


def _answer(words: str, *, is_final: bool, end: timedelta | None = None) -> Any:
    """Two results where they are not final, as the service splits them: a stable one and one that may change."""
    stable, _, rest = words.rpartition(" ")
    parts = [words] if is_final else [part for part in (stable, rest) if part]
    results = [
        speech_v2.StreamingRecognitionResult(
            alternatives=[speech_v2.SpeechRecognitionAlternative(transcript=part)],
            is_final=is_final,
            result_end_offset=end,
        )
        for part in parts
    ]
    return speech_v2.StreamingRecognizeResponse(results=results)


def _invalid(context: Any, text: str) -> NoReturn:
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
    raise AssertionError("abort() raises")
