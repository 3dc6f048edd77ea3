"""Whisper, through faster-whisper, on the CPU. Runs in a worker process.

Whisper processes windows of 30 seconds, not a stream. So audio is kept and recognized at the end, except that the
beginning of a long utterance is recognized whenever nearly a window has accumulated, up to a pause. Interims are extra
passes over the kept audio, made only when there is time.

Whisper also invents words in silence. A voice activity detector (Silero's, which comes with faster-whisper) removes
everything but speech, so without speech there are no words.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import faster_whisper
import numpy as np
from faster_whisper.vad import VadOptions, get_speech_timestamps
from numpy.typing import NDArray

from ..errors import EngineFailed
from .engines import EngineUrl
from .machine import this_machine
from .recognizer import BYTES_PER_SECOND, SAMPLE_RATE_HZ, nothing

# As long as the pauses between sentences: each is an opportunity to split a long utterance.
MIN_PAUSE_MS: Final = 500
# A click is shorter, and a word longer.
MIN_SPEECH_MS: Final = 100
# Whisper's window is 30 s; start looking for a pause before it is full.
NEARLY_A_WINDOW_S: Final = 24.0
INTERIM_EVERY_S: Final = 1.5
# A detected language with at least this probability is kept for the interims of an utterance.
SURE: Final = 0.8
# Retries when the first result looks wrong (repetitive or improbable): each may take as long as the first.
TEMPERATURES: Final = (0.0, 0.4, 0.8)
MAX_BEAMS: Final = 10

Audio = NDArray[np.float32]


class Speech(NamedTuple):
    """A stretch of speech, with a little silence around it; in samples."""

    start: int
    end: int


@dataclass(slots=True)
class InterimPace:
    """When to make a pass for an interim, so that it does not delay the result.

    There is time for a pass while at least half of the time is spent waiting for audio. There is none if audio arrives
    faster than speech, or has accumulated. So the result is delayed by at most the one pass that was running when the
    last audio came. ``now`` is in seconds, of any monotonic clock.
    """

    every_s: float = INTERIM_EVERY_S
    _since: float | None = None  # when the previous call returned
    _audio_s: float = 0.0  # audio received since the last pass
    _waited_s: float = 0.0  # time waited for audio since the last pass

    def received(self, audio_s: float, now: float) -> bool:
        """Audio has arrived; return True if it is time for a pass. Call :meth:`passed` after it."""
        if self._since is not None:
            self._waited_s += now - self._since
        self._since = now
        self._audio_s += audio_s
        return self._audio_s >= self.every_s and self._waited_s >= self._audio_s / 2

    def passed(self, now: float) -> None:
        """A pass, or other work, is finished."""
        self._since, self._audio_s, self._waited_s = now, 0.0, 0.0


def last_pause(speech: Sequence[Speech], length: int) -> int | None:
    """Where to split: the middle of the last pause, in samples; None: there is no pause.

    :param speech: in order; each is followed by a pause
    :param length: of the audio in samples; silence after the last of ``speech`` is also a pause, and is cut off with it
    """
    if not speech or speech[-1].end < length:
        return length
    if len(speech) == 1:
        return None
    return (speech[-2].end + speech[-1].start) // 2


def threads_each(processors: int, workers: int) -> int:
    """Threads for each of ``workers`` processes on a machine: together no more than it has CPUs."""
    return max(1, processors // max(1, workers))


class WhisperRecognizer:
    """A :class:`~.recognizer.Recognizer`. Holds the model: with ``base``, 0.25 GB idle and 0.5 GB busy.

    The URL's location is a folder with a converted model, or a name (``base``, ``small.en``, ``owner/name``), which
    faster-whisper downloads to its usual cache. The options: ``beam`` (1..10, default 5) for the result;
    ``compute_type`` as in CTranslate2, default ``int8``.

    :param language: a BCP 47 tag, of which the first part is used; '' detects the language of each utterance, and of
        each part of a long one
    :param workers: processes that share this machine
    :raises EngineFailed: the model is unavailable or lacks the language, or an option is invalid
    """

    detail: str

    def __init__(
        self,
        engine: EngineUrl,
        *,
        language: str = "",
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._beam = _beam(engine.options.get("beam", "5"))
        compute_type = engine.options.get("compute_type", "int8")
        self._model = _load(engine.location, compute_type, threads_each(this_machine().processors, workers))
        self._language = language.partition("-")[0].lower()
        if self._language and self._language not in self._model.supported_languages:
            raise EngineFailed(f"whisper model {engine.location} does not know the language {language!r}")
        _speech_in(np.zeros(SAMPLE_RATE_HZ, np.float32))  # load the detector's model
        spoken = self._language or "any language"
        self.detail = f"whisper, model {engine.location}, {compute_type}, {spoken}"
        self.begin(None)

    def begin(self, on_interim: Callable[[str], None] | None, alive: Callable[[], None] = nothing) -> None:
        self._on_interim, self._reported, self._alive = on_interim, "", alive
        self._kept = bytearray()  # no final result yet
        self._looked = 0  # length of _kept at the last search for a pause
        self._texts: list[str] = []  # final results
        self._guess: str | None = None
        self._pace = InterimPace()

    def accept(self, samples: bytes) -> None:
        """:raises EngineFailed: the model failed"""
        self._kept += samples
        due = self._pace.received(len(samples) / BYTES_PER_SECOND, self._clock())
        worked = self._settle_beginning()
        if due and self._on_interim is not None:
            self._report_interim(self._on_interim)
            worked = True
        if worked:
            self._pace.passed(self._clock())

    def finish(self) -> str:
        """:raises EngineFailed: the model failed"""
        audio = _samples(self._kept)
        self._settle(audio, _speech_in(audio))
        text = " ".join(filter(None, self._texts))
        self.begin(None)
        return text

    def _settle_beginning(self) -> bool:
        """Recognize everything before the last pause, once nearly a window is kept. False: nothing was done."""
        if len(self._kept) < max(NEARLY_A_WINDOW_S * BYTES_PER_SECOND, self._looked + BYTES_PER_SECOND):
            return False
        self._looked = len(self._kept)
        audio = _samples(self._kept)
        speech = _speech_in(audio)
        cut = last_pause(speech, len(audio))
        if cut is None:
            return False
        self._settle(audio, [stretch for stretch in speech if stretch.end <= cut])
        del self._kept[: 2 * cut]
        self._looked = 0
        return True

    def _settle(self, audio: Audio, speech: Sequence[Speech]) -> None:
        text, _ = self._transcribe(
            audio,
            speech,
            language=self._language or None,
            beam_size=self._beam,
            temperature=TEMPERATURES,
        )
        self._texts.append(text)

    def _report_interim(self, on_interim: Callable[[str], None]) -> None:
        audio = _samples(self._kept)
        text, sure_of = self._transcribe(
            audio,
            _speech_in(audio),
            language=self._language or self._guess,
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
        )
        self._guess = self._guess or sure_of
        interim = " ".join(filter(None, [*self._texts, text]))
        if interim and interim != self._reported:
            self._reported = interim
            on_interim(interim)

    def _transcribe(self, audio: Audio, speech: Sequence[Speech], **how: Any) -> tuple[str, str | None]:
        """Return the text of these stretches, and the language if it is certain."""
        if not speech:
            return "", None
        spoken = np.concatenate([audio[stretch.start : stretch.end] for stretch in speech])
        with _translated("whisper failed"):
            segments, info = self._model.transcribe(
                spoken,
                # Don't condition on earlier text: whisper gets stuck in it and repeats it.
                condition_on_previous_text=False,
                # Far more than anyone can say in that time, in any language: a hallucination goes on and on.
                max_new_tokens=min(400, 32 + 25 * len(spoken) // SAMPLE_RATE_HZ),
                **how,
            )
            texts = []
            for segment in segments:  # a generator: each segment is computed on demand
                texts.append(segment.text.strip())
                self._alive()
            text = " ".join(texts).strip()
        return text, info.language if info.language_probability >= SURE else None


def _load(location: str, compute_type: str, threads: int) -> Any:
    folder = Path(location)
    if (folder.is_absolute() or location.startswith(".")) and not folder.is_dir():
        raise EngineFailed(f"whisper: there is no folder {location}")
    if folder.is_dir() and not (folder / "model.bin").is_file():
        raise EngineFailed(f"whisper: the folder {location} holds no model.bin")
    source = "the model in the folder" if folder.is_dir() else "no folder here, and the model"
    with _translated(f"whisper: {source} {location} cannot be loaded"):
        return faster_whisper.WhisperModel(location, device="cpu", compute_type=compute_type, cpu_threads=threads)


def _beam(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_BEAMS:
        raise EngineFailed(f"whisper: beam is {text!r}; allowed: 1 to {MAX_BEAMS}")
    return int(text)


def _samples(data: bytes | bytearray) -> Audio:
    return np.frombuffer(bytes(data), "<i2").astype(np.float32) / 32768.0


def _speech_in(audio: Audio) -> list[Speech]:
    options = VadOptions(min_speech_duration_ms=MIN_SPEECH_MS, min_silence_duration_ms=MIN_PAUSE_MS)
    with _translated("whisper's voice activity detector failed"):
        return [Speech(found["start"], found["end"]) for found in get_speech_timestamps(audio, options)]


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Translate the libraries' errors to EngineFailed, in one line."""
    try:
        yield
    except EngineFailed:
        raise
    except Exception as error:  # they raise all kinds: RuntimeError, ValueError, the model hub's own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise EngineFailed(f"{what}: {reason[:300]}") from error
