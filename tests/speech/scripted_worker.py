"""A worker process for tests, whose recognizer is controlled by words in the audio."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from cocoa_tornado.errors import EngineFailed
from cocoa_tornado.speech.recognizer import nothing
from cocoa_tornado.speech.worker import run


class Obedient:
    detail = "obedient"

    def __init__(self) -> None:
        self._eaten: list[bytearray] = []

    def begin(self, on_interim: Callable[[str], None] | None, alive: Callable[[], None] = nothing) -> None:
        self._audio, self._on_interim, self._alive = b"", on_interim, alive

    def accept(self, samples: bytes) -> None:
        self._audio += samples
        while b"hungry" in self._audio:
            self._eaten.append(bytearray(b"x") * (16 << 20))
        if b"busy" in samples:
            time.sleep(1.0)  # and doesn't say so
        if b"crash" in self._audio:
            os._exit(3)
        if b"fail" in self._audio:
            raise EngineFailed("failed on purpose")
        if b"fault" in self._audio:
            raise ZeroDivisionError("crashed on purpose")
        if self._on_interim is not None:
            self._on_interim(self._audio.decode())

    def finish(self) -> str:
        for _ in range(25 if b"slow" in self._audio else 600 if b"endless" in self._audio else 0):
            time.sleep(0.1)
            self._alive()
        return self._audio.decode().strip()


if __name__ == "__main__":
    sys.exit(run(Obedient))
