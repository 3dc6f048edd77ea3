"""Detects where an utterance begins and ends, from frames classified as speech or not. Pure."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import Final, TypeAlias

LEAD_FRAMES: Final = 10
"""Frames before the detected beginning that belong to the utterance: detection lags, and first sounds are soft."""

BEGIN_FRAMES: Final = 5
"""This many speech frames among the last ``LEAD_FRAMES`` begin an utterance; a click has fewer."""

END_FRAMES: Final = 27
"""This many consecutive frames without speech end it: 0.8 s of 30 ms frames, longer than a pause between words."""


@dataclass(frozen=True, slots=True)
class Speech:
    """More audio of an utterance; the first after an :class:`End` begins a new one.

    :ivar samples: raw, signed 16-bit, little-endian, mono
    """

    samples: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The utterance has ended."""


Segment: TypeAlias = Speech | End


class FrameVerdict(enum.Enum):
    """What a frame means."""

    NOTHING = "nothing"  # no utterance; the frame is kept as lead-in
    BEGIN = "begin"  # an utterance begins: take the lead-in, which ends with this frame
    SPEECH = "speech"  # the utterance continues
    END = "end"  # this was its last frame


class Endpointer:
    """Follows one stream, frame by frame.

    :ivar speaking: inside an utterance
    """

    def __init__(self) -> None:
        self.speaking = False
        self._lead: deque[bytes] = deque(maxlen=LEAD_FRAMES)
        self._is_speech: deque[bool] = deque(maxlen=LEAD_FRAMES)
        self._silent = 0

    def judge(self, frame: bytes, is_speech: bool) -> FrameVerdict:
        """Classify the next frame."""
        if self.speaking:
            self._silent = 0 if is_speech else self._silent + 1
            if self._silent < END_FRAMES:
                return FrameVerdict.SPEECH
            self.stop()
            return FrameVerdict.END
        self._lead.append(frame)
        self._is_speech.append(is_speech)
        if sum(self._is_speech) < BEGIN_FRAMES:
            return FrameVerdict.NOTHING
        self.speaking, self._silent = True, 0
        return FrameVerdict.BEGIN

    def take_lead(self) -> bytes:
        """Return the frames before the beginning, and the one that began the utterance."""
        lead = b"".join(self._lead)
        self._lead.clear()
        self._is_speech.clear()
        return lead

    def stop(self) -> None:
        """End the utterance here, if there is one."""
        self.speaking = False
        self._lead.clear()
        self._is_speech.clear()
