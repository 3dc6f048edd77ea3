"""The interface of a speech engine in a worker process, where it may block or crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

SAMPLE_RATE_HZ = 16_000
BYTES_PER_SECOND = 2 * SAMPLE_RATE_HZ


def nothing() -> None:
    """A callback that does nothing."""


class Recognizer(Protocol):
    """One engine with its model loaded, created once per process and used for one utterance after another.

    The order of calls is ``begin``, any number of ``accept``, ``finish``. ``begin`` may be called at any time, and
    drops the current utterance. Errors of the engine's library are raised as EngineFailed.

    :ivar detail: one line: the engine, its model and language
    """

    detail: str

    def begin(self, on_interim: Callable[[str], None] | None, alive: Callable[[], None] = nothing) -> None:
        """Begin an utterance.

        :param on_interim: call it with each interim that differs from the last one, from within the methods below
        :param alive: call it now and then in a long method, so that the worker does not count as stuck. It may raise a
            BaseException to end the utterance
        """

    def accept(self, samples: bytes) -> None:
        """Add audio: 16 kHz, mono, signed 16-bit little-endian, whole samples, any length."""

    def finish(self) -> str:
        """Return the text of the utterance, stripped; '' if there was no speech."""
