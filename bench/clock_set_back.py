"""``cocoa`` with a wall clock that can be set while it runs: ``python -m bench.clock_set_back FILE serve ...``.

FILE contains the offset of the clock in seconds, and is read twice a second. As after a correction by NTP, only the
wall clock changes; the monotonic clock continues.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

REFRESH_S = 0.5

_right_time = time.time


class WrongClock:
    """Unix seconds plus the offset in the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset_s = 0.0
        self._read_at = float("-inf")

    def __call__(self) -> float:
        now = time.monotonic()
        if now - self._read_at > REFRESH_S:
            self._read_at = now
            self._offset_s = float(self._path.read_text() or 0)
        return _right_time() + self._offset_s


def run() -> None:
    # Before anything that keeps the function is imported.
    time.time = WrongClock(Path(sys.argv.pop(1)))
    importlib.import_module("cocoa_tornado_cli.main").main()


if __name__ == "__main__":
    run()
