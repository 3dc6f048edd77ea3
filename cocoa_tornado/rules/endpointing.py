"""Where an utterance begins and ends, judged from frames that are speech or are not. Pure."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import Final, TypeAlias

LEAD_FRAMES: Final = 10
"""Frames before the beginning that belong to it: the judgement comes late, and first sounds are soft."""

BEGIN_FRAMES: Final = 5
"""So many speech frames among the last ``LEAD_FRAMES`` are a beginning; a click is fewer."""

END_FRAMES: Final = 27
"""So many frames in a row without speech are an end: 0.8 s of 30 ms frames, more than a pause between two words."""


@dataclass(frozen=True, slots=True)
class Speech:
    """More of an utterance: of a new one, if none is under way.

    :ivar samples: raw, signed 16-bit, little-endian, mono
    """

    samples: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The utterance is over."""


Segment: TypeAlias = Speech | End


class Turn(enum.Enum):
    """What a frame means."""

    NOTHING = "nothing"  # nobody speaks; the frame is kept as lead-in
    BEGIN = "begin"  # somebody speaks: take the lead-in, which this frame is the last of
    SPEECH = "speech"  # it goes on
    END = "end"  # this frame was the last one


class Endpointer:
    """Follows one stream, frame by frame.

    :ivar speaking: inside of an utterance
    """

    def __init__(self) -> None:
        self.speaking = False
        self._lead: deque[bytes] = deque(maxlen=LEAD_FRAMES)
        self._heard: deque[bool] = deque(maxlen=LEAD_FRAMES)
        self._silent = 0

    def turn(self, frame: bytes, is_speech: bool) -> Turn:
        """Judge the next frame."""
        if self.speaking:
            self._silent = 0 if is_speech else self._silent + 1
            if self._silent < END_FRAMES:
                return Turn.SPEECH
            self.stop()
            return Turn.END
        self._lead.append(frame)
        self._heard.append(is_speech)
        if sum(self._heard) < BEGIN_FRAMES:
            return Turn.NOTHING
        self.speaking, self._silent = True, 0
        return Turn.BEGIN

    def take_lead(self) -> bytes:
        """The frames before the beginning, and the one that began it."""
        lead = b"".join(self._lead)
        self._lead.clear()
        self._heard.clear()
        return lead

    def stop(self) -> None:
        """End the utterance here, if there is one."""
        self.speaking = False
        self._lead.clear()
        self._heard.clear()
