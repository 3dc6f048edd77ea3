"""What uploads of audio share."""

from __future__ import annotations

from dataclasses import dataclass

from ..rules.audio import AudioFormat
from ..transcriber import Transcriber


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """:ivar raw: what samples are where the Content-Type leaves it open
    :ivar max_bytes: of a body
    :ivar idle_timeout_s: without a byte
    :ivar upload_timeout_s: in all, not counting the time in which the device is held back
    """

    raw: AudioFormat
    max_bytes: int
    idle_timeout_s: float
    upload_timeout_s: float


@dataclass(slots=True)
class AudioContext:
    """What an upload needs beyond what every handler has. A reload replaces ``limits``."""

    transcriber: Transcriber
    limits: AudioLimits
