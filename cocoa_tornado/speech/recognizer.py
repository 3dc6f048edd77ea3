"""What a worker process asks of a speech engine. Everything here runs in the worker: it may block, and it may crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

SAMPLE_RATE_HZ = 16_000
BYTES_PER_SECOND = 2 * SAMPLE_RATE_HZ


def nothing() -> None:
    """For whom nobody waits."""


class Recognizer(Protocol):
    """One engine with its model loaded; made once per process and used for one utterance after another.

    Calls come in the order ``begin``, any number of ``accept``, ``finish``; or ``begin`` again at any time, which drops
    what was under way. Errors of the engine's library leave as EngineFailed.

    :ivar detail: one line: the engine, its model and language
    """

    detail: str

    def begin(self, on_interim: Callable[[str], None] | None, alive: Callable[[], None] = nothing) -> None:
        """A new utterance.

        :param on_interim: to be called with each hypothesis that differs from the last one, from within the calls below
        :param alive: to be called now and then where one of them takes its time, so that it is not taken for stuck. It
            may raise what is no Exception, to end the utterance there
        """

    def accept(self, samples: bytes) -> None:
        """Audio, 16 kHz, mono, signed 16-bit little-endian, whole samples, of any length, as it becomes known."""

    def finish(self) -> str:
        """The words of the utterance, without blanks around them; '' where there was no speech."""
