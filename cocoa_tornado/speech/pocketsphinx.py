"""PocketSphinx, embedded: a recognizer with a bundled model. Runs in a worker process.

Only speech is decoded, stretch by stretch: the detector that comes with the library classifies frames of 30 ms, and a
stretch begins and ends when enough of them agree. So silence costs almost nothing and yields no words, and early words
are final long before the last one is spoken.
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from pocketsphinx import Decoder, Vad

from ..errors import EngineFailed
from .engines import EngineUrl
from .recognizer import BYTES_PER_SECOND, SAMPLE_RATE_HZ, nothing

FRAME_S: Final = 0.03
FRAME_BYTES: Final = int(FRAME_S * BYTES_PER_SECOND)

WINDOW_FRAMES: Final = 10
"""A stretch begins when :data:`BEGIN_FRAMES` of this many frames are speech."""
BEGIN_FRAMES: Final = 6
LEAD_FRAMES: Final = 20
"""Frames before the detected beginning that are decoded too: words often begin softly."""
END_FRAMES: Final = 15
"""This many frames without speech end a stretch. Pauses within a sentence are shorter."""

INTERIM_FRAMES: Final = 10
"""How often the decoder is asked for an interim, in frames."""

MAX_WORD_FRAMES: Final = 150
STEADY_PER_FRAME: Final = -0.6
"""Acoustic score of steady noise, as the decimal logarithm per frame of 10 ms; spoken words have about -1.2."""


class PocketsphinxRecognizer:
    """English by default; other languages need another model.

    :ivar detail: one line: the engine, its model and language
    """

    def __init__(self, engine: EngineUrl, *, language: str = "") -> None:
        """Load the model: half a second, 100 MB.

        :raises EngineFailed: a file of the model is missing or damaged, or the model is for another language
        """
        if not engine.location and language and language.lower().split("-")[0] != "en":
            raise EngineFailed(f"the model that comes with pocketsphinx knows English, not {language!r}")
        self._decoder = _load(engine)
        self.detail = f"pocketsphinx, {engine.location or 'its own model, en-US'}"
        self._on_interim: Callable[[str], None] | None = None
        self._forget()

    def begin(self, on_interim: Callable[[str], None] | None, alive: Callable[[], None] = nothing) -> None:
        if self._speaking:
            self._decoder.end_utt()
        self._forget()
        # Reset the adaptation to the previous speaker's voice, room and microphone.
        self._decoder.reinit_feat()
        self._on_interim = on_interim

    def accept(self, samples: bytes) -> None:
        self._unread += samples
        # Use the same frame boundaries however the audio arrives: the result depends on them a little.
        whole = len(self._unread) - len(self._unread) % FRAME_BYTES
        for start in range(0, whole, FRAME_BYTES):
            self._frame(bytes(self._unread[start : start + FRAME_BYTES]))
        del self._unread[:whole]

    def finish(self) -> str:
        if self._unread:
            self._frame(bytes(self._unread).ljust(FRAME_BYTES, b"\0"))
        if self._speaking:
            self._end_stretch()
        text = self._text()
        self._forget()
        return text

    def _forget(self) -> None:
        self._detector = Vad(Vad.MEDIUM_STRICT, SAMPLE_RATE_HZ, FRAME_S)
        self._unread = bytearray()
        self._recent: deque[bytes] = deque(maxlen=LEAD_FRAMES)
        self._is_speech: deque[bool] = deque(maxlen=WINDOW_FRAMES)
        self._speaking = False
        self._silent_frames = self._frames_unasked = 0
        self._settled: list[str] = []
        self._reported = ""

    def _frame(self, frame: bytes) -> None:
        is_speech = self._detector.is_speech(frame)
        if self._speaking:
            self._silent_frames = 0 if is_speech else self._silent_frames + 1
            self._decode(frame)
            if self._silent_frames >= END_FRAMES:
                self._end_stretch()
            return
        self._recent.append(frame)
        self._is_speech.append(is_speech)
        if sum(self._is_speech) >= BEGIN_FRAMES:
            self._begin_stretch()

    def _begin_stretch(self) -> None:
        self._decoder.start_utt()
        self._speaking, self._silent_frames = True, 0
        for frame in self._recent:
            self._decode(frame)
        self._recent.clear()
        self._is_speech.clear()

    def _decode(self, frame: bytes) -> None:
        try:
            self._decoder.process_raw(frame)
        except RuntimeError as error:
            raise EngineFailed(f"pocketsphinx: {error}") from error
        self._frames_unasked += 1
        if self._on_interim is not None and self._frames_unasked >= INTERIM_FRAMES:
            self._frames_unasked = 0
            self._report_interim(self._text(self._hypothesis()))

    def _end_stretch(self) -> None:
        try:
            self._decoder.end_utt()
        except RuntimeError as error:
            raise EngineFailed(f"pocketsphinx: {error}") from error
        self._speaking = False
        words = self._hypothesis(settled=True)
        if words:
            self._settled.append(words)

    def _hypothesis(self, *, settled: bool = False) -> str:
        words = [segment for segment in self._decoder.seg() or () if _is_word(segment)]
        if settled and words and _is_steady(words):
            return ""
        return " ".join(segment.word.partition("(")[0] for segment in words)

    def _text(self, unsettled: str = "") -> str:
        return " ".join(filter(None, [*self._settled, unsettled]))

    def _report_interim(self, text: str) -> None:
        if self._on_interim is not None and text and text != self._reported:
            self._reported = text
            self._on_interim(text)


def _is_word(segment: Any) -> bool:
    """True unless it is a filler such as ``<sil>`` or ``[NOISE]``, or lasts longer than any word."""
    return segment.word[0] not in "<[+" and _frames(segment) <= MAX_WORD_FRAMES


def _is_steady(words: Sequence[Any]) -> bool:
    """True for noise: a fan, an engine, a tap.

    In speech, sounds change, and no sound of the model fits all frames of a word. Steady noise is fitted too well by
    one stretched sound. Known only at the end of a stretch.
    """
    fits = [math.log10(max(segment.ascore, sys.float_info.min)) for segment in words]
    return sum(fits) > STEADY_PER_FRAME * sum(map(_frames, words))


def _frames(segment: Any) -> int:
    return int(segment.end_frame - segment.start_frame + 1)


def _load(engine: EngineUrl) -> Decoder:
    files = dict(engine.options)
    if engine.location:
        files["hmm"] = engine.location
    for path in files.values():
        if not os.path.exists(path):
            raise EngineFailed(f"pocketsphinx: there is no {path}")
    try:
        # No second pass at the end of a stretch: the last words come sooner, and on recordings with known words it
        # improved nothing. The best-path search then weighs the language as the first pass does.
        return Decoder(samprate=float(SAMPLE_RATE_HZ), loglevel="FATAL", fwdflat=False, bestpathlw=6.5, **files)
    except (RuntimeError, ValueError) as error:
        raise EngineFailed(f"pocketsphinx cannot use the model: {error}") from error
