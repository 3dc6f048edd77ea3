"""The signals of ``cocoa serve``, from the first moment to the last.

Imported before anything else, and imports next to nothing: until a process has its handlers a signal kills it.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from cocoa_tornado.rules.stopping import meaning_of_signal

if TYPE_CHECKING:
    import asyncio

STOPPING = (signal.SIGTERM, signal.SIGINT)
NUMBERS = (*STOPPING, signal.SIGHUP)


class ProcessSignals:
    """Signals to the process. Everything here runs in the main thread, between two steps of anything.

    Before :meth:`calling`, an order to stop ends the process with status 0, for nothing is open that would have to be
    closed; a SIGHUP is kept until then. An order repeated at once is one order (``rules/stopping.py``).
    """

    def __init__(self) -> None:
        self._first_at: float | None = None
        self._hung_up = False
        self._stop: Callable[[str], None] | None = None
        self._hang_up: Callable[[], None] | None = None
        self._leave: Callable[[str], None] | None = None

    def listen(self) -> None:
        """Take the signals over, for the rest of the process's life."""
        for number in NUMBERS:
            signal.signal(number, self._on_signal)
        # The interpreter's very end gives signals back their default, which is death: by then an order that came twice
        # must change nothing any more.
        atexit.register(_ignore_all)

    @contextmanager
    def calling(
        self, stop: Callable[[str], None], hang_up: Callable[[], None], leave: Callable[[str], None]
    ) -> Iterator[None]:
        """What to call meanwhile. Afterwards only a second order counts; the first one has come too late.

        They are called between two steps of anything, with the signal's name.

        :param leave: a second order to stop; does not return
        """
        self._stop, self._hang_up, self._leave = stop, hang_up, leave
        if self._hung_up:
            hang_up()
        try:
            yield
        finally:
            self._stop, self._hang_up = lambda name: None, lambda: None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._hung_up = True
            if self._hang_up is not None:
                self._hang_up()
            return
        if self._stop is None or self._leave is None:
            _end_before_the_start()
            return
        now, name = time.monotonic(), signal.Signals(number).name
        meaning = meaning_of_signal(self._first_at, now)
        if meaning == "stop":
            self._first_at = now
            self._stop(name)
        elif meaning == "leave":
            _ignore_all()  # or a third one would come in between, and begin anew
            self._leave(name)


@contextmanager
def waking(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Meanwhile a signal ends the loop's wait, whichever thread the system gave it to, and Python runs its handler."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    loop.add_reader(reader, os.read, reader, 4096)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        loop.remove_reader(reader)
        os.close(reader)
        os.close(writer)


def _end_before_the_start() -> None:
    # Not by an exception: it would come up in the middle of an import, where somebody may catch it.
    _ignore_all()
    flush_log = getattr(sys.modules.get("logging"), "shutdown", None)  # it may be half imported
    if flush_log is not None:
        flush_log()
    os._exit(0)


def _ignore_all() -> None:
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
