"""Signal handling of ``cocoa serve``, from the start of the process to its end.

This module is imported first and imports very little, because until the handlers are installed a signal kills the
process.
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
    """The handlers of the process's signals. They run in the main thread, between any two bytecodes.

    Before :meth:`calling`, SIGTERM and SIGINT end the process with status 0, as nothing is open yet, and SIGHUP is kept
    until then. Signals repeated within a second count as one (``rules/stopping.py``).
    """

    def __init__(self) -> None:
        self._first_at: float | None = None
        self._hung_up = False
        self._stop: Callable[[str], None] | None = None
        self._hang_up: Callable[[], None] | None = None
        self._leave: Callable[[str], None] | None = None

    def listen(self) -> None:
        """Install the handlers, for the rest of the process."""
        for number in NUMBERS:
            signal.signal(number, self._on_signal)
        # At its end, the interpreter restores the default handlers, which kill the process. Ignore signals before.
        atexit.register(_ignore_all)

    @contextmanager
    def calling(
        self, stop: Callable[[str], None], hang_up: Callable[[], None], leave: Callable[[str], None]
    ) -> Iterator[None]:
        """Call these functions on signals within the context. After it, a first SIGTERM or SIGINT has no effect; a
        second one still calls ``leave``.

        :param stop: called with the signal's name, between any two bytecodes
        :param hang_up: called on SIGHUP, likewise
        :param leave: called with the signal's name for a second SIGTERM or SIGINT; the process ends soon after
            it, and ignores further signals
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
            _ignore_all()  # a third signal must not interrupt it
            self._leave(name)


@contextmanager
def waking(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Within the context, a signal wakes the loop, whichever thread received it, so that Python runs the handler."""
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
    # Not with an exception: it would be raised in the middle of an import, where code may catch it.
    _ignore_all()
    flush_log = getattr(sys.modules.get("logging"), "shutdown", None)  # logging may be partly imported
    if flush_log is not None:
        flush_log()
    os._exit(0)


def _ignore_all() -> None:
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
