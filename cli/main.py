"""The console script ``cocoa``: what must happen before the slow imports."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command in ``sys.argv``, and exit."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        # Without a traceback out of an import. See interrupts.py.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .signals import ProcessSignals

    signals = ProcessSignals()
    is_serve = sys.argv[1:2] == ["serve"]
    if is_serve:
        signals.listen()
    from .streams import guard_standard_streams

    guard_standard_streams()
    from .commands import cocoa

    if not is_serve:
        signal.signal(signal.SIGINT, handler)
    cocoa(obj=signals)
