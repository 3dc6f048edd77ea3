"""Ctrl-C while a command is still being imported."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def dying_of_interrupts() -> Iterator[None]:
    """Within the context, SIGINT ends the process at once, without a message: there is nothing to clean up yet.

    KeyboardInterrupt in the middle of an import is a traceback, or is swallowed by the code that it interrupts. A
    handler of ``cocoa serve``, and SIGINT that the parent process ignores, stay.
    """
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if handler is not signal.default_int_handler or not is_main:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
