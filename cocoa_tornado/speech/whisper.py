"""Whisper, through faster-whisper, on the processor. Runs in a worker process.

Whisper hears windows of 30 seconds and not a stream. So audio is kept until the end and recognised then, except that a
long utterance is taken from its beginning at a pause whenever nearly a window has come together. Hypotheses on the way
are passes of their own over what is kept, and are made only while there is nothing better to do.

It also invents words where nobody speaks. A voice activity detector (Silero's, which comes with faster-whisper) leaves
it nothing but speech, and no speech is no words.
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

# As long as the pauses between sentences, and no longer: each is a chance to take a long utterance apart.
LEAST_PAUSE_MS: Final = 500
# A click is shorter, and a word isn't.
LEAST_SPEECH_MS: Final = 100
# Whisper's window is 30 s; looking for a pause begins before it is full.
NEARLY_A_WINDOW_S: Final = 24.0
INTERIM_EVERY_S: Final = 1.5
# A guess at the language is kept for the hypotheses of an utterance once it is this sure.
SURE: Final = 0.8
# Tries when the first result looks wrong (repeats itself, or is unlikely): each may take as long as the first.
TEMPERATURES: Final = (0.0, 0.4, 0.8)
MOST_BEAMS: Final = 10

Audio = NDArray[np.float32]


class Speech(NamedTuple):
    """A stretch in which somebody speaks, with a little silence around it; in samples."""

    start: int
    end: int


@dataclass(slots=True)
class InterimPace:
    """When a pass for a hypothesis may be made, so that it never holds up the result.

    Whoever brings audio had to wait for it, or not. While it must be waited for, at least half of the time, there is
    time for a pass; when it comes faster than speech, or has piled up, there isn't. So the result is held up by the one
    pass, at most, that was under way when the last audio came. ``now`` is in seconds, of any clock that goes on.
    """

    every_s: float = INTERIM_EVERY_S
    _since: float | None = None  # when the call before this one returned
    _heard_s: float = 0.0  # audio, since the last pass
    _waited_s: float = 0.0  # for audio, since the last pass

    def heard(self, audio_s: float, now: float) -> bool:
        """Audio has come; is it time for a pass? Then call :meth:`passed` after it."""
        if self._since is not None:
            self._waited_s += now - self._since
        self._since = now
        self._heard_s += audio_s
        return self._heard_s >= self.every_s and self._waited_s >= self._heard_s / 2

    def passed(self, now: float) -> None:
        """A pass, or any other work, is over."""
        self._since, self._heard_s, self._waited_s = now, 0.0, 0.0


def last_pause(speech: Sequence[Speech], heard: int) -> int | None:
    """Where to cut: the middle of the last pause, in samples; None: there is none.

    :param speech: in order; a pause lies wherever one ends
    :param heard: samples in all; silence behind the last of ``speech`` is a pause too, and belongs to what is cut off
    """
    if not speech or speech[-1].end < heard:
        return heard
    if len(speech) == 1:
        return None
    return (speech[-2].end + speech[-1].start) // 2


def threads_each(processors: int, workers: int) -> int:
    """Threads for one of ``workers`` processes that share a machine: together no more than it has processors."""
    return max(1, processors // max(1, workers))


class WhisperRecognizer:
    """A :class:`~.recognizer.Recognizer`. Holds the model: with ``base``, 0.25 GB idle and 0.5 GB at work.

    The URL's location is a folder with a converted model, or the name of one (``base``, ``small.en``, ``owner/name``),
    which faster-whisper then fetches and keeps as it always does. Its options: ``beam`` (1..10, else 5) for the result;
    ``compute_type`` as CTranslate2 names it, else ``int8``.

    :param language: a BCP 47 tag, of which the first part counts; '' finds it out for each utterance, and for each part
        of one that is longer than a window
    :param workers: processes that share this machine
    :raises EngineFailed: the model cannot be had, or doesn't know the language, or an option is wrong
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
        _speech_in(np.zeros(SAMPLE_RATE_HZ, np.float32))  # loads the detector's model
        spoken = self._language or "any language"
        self.detail = f"whisper, model {engine.location}, {compute_type}, {spoken}"
        self.begin(None)

    def begin(self, on_interim: Callable[[str], None] | None, alive: Callable[[], None] = nothing) -> None:
        self._on_interim, self._told, self._alive = on_interim, "", alive
        self._kept = bytearray()  # not yet recognised for good
        self._looked = 0  # bytes of it, when the last look for a pause was
        self._texts: list[str] = []  # of what was
        self._guess: str | None = None
        self._pace = InterimPace()

    def accept(self, samples: bytes) -> None:
        """:raises EngineFailed: the model failed"""
        self._kept += samples
        due = self._pace.heard(len(samples) / BYTES_PER_SECOND, self._clock())
        worked = self._settle_beginning()
        if due and self._on_interim is not None:
            self._tell(self._on_interim)
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
        """Recognise for good what lies before the last pause, once nearly a window is kept. False: nothing was done."""
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

    def _tell(self, on_interim: Callable[[str], None]) -> None:
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
        hypothesis = " ".join(filter(None, [*self._texts, text]))
        if hypothesis and hypothesis != self._told:
            self._told = hypothesis
            on_interim(hypothesis)

    def _transcribe(self, audio: Audio, speech: Sequence[Speech], **how: Any) -> tuple[str, str | None]:
        """The words in these stretches, and the language if that is beyond doubt."""
        if not speech:
            return "", None
        spoken = np.concatenate([audio[stretch.start : stretch.end] for stretch in speech])
        with _translated("whisper failed"):
            segments, info = self._model.transcribe(
                spoken,
                # What was said before is no hint worth its risk: whisper gets stuck in it, and repeats it.
                condition_on_previous_text=False,
                # Far more than anybody says in the time, in any language: where it makes words up, it goes on and on.
                max_new_tokens=min(400, 32 + 25 * len(spoken) // SAMPLE_RATE_HZ),
                **how,
            )
            texts = []
            for segment in segments:  # each of them is worked out when it is asked for
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
    if not text.isdecimal() or not 1 <= int(text) <= MOST_BEAMS:
        raise EngineFailed(f"whisper: beam is {text!r}; allowed: 1 to {MOST_BEAMS}")
    return int(text)


def _samples(data: bytes | bytearray) -> Audio:
    return np.frombuffer(bytes(data), "<i2").astype(np.float32) / 32768.0


def _speech_in(audio: Audio) -> list[Speech]:
    options = VadOptions(min_speech_duration_ms=LEAST_SPEECH_MS, min_silence_duration_ms=LEAST_PAUSE_MS)
    with _translated("whisper's voice activity detector failed"):
        return [Speech(found["start"], found["end"]) for found in get_speech_timestamps(audio, options)]


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Errors of the libraries leave as EngineFailed, in one line."""
    try:
        yield
    except EngineFailed:
        raise
    except Exception as error:  # they raise whatever comes to hand: RuntimeError, ValueError, those of the model hub
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise EngineFailed(f"{what}: {reason[:300]}") from error
