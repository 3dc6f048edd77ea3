"""The context that audio uploads share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..rules.upload import AudioLimits
from ..transcriber import Transcriber


@dataclass(frozen=True, slots=True)
class AudioContext:
    """What an upload needs beyond what every handler has.

    :ivar limits: returns the current ones, which a reload may change
    """

    transcriber: Transcriber
    limits: Callable[[], AudioLimits]
