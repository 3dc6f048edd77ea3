"""The console script ``cocoa``: what must happen before the slow imports."""

from __future__ import annotations

import sys

from .signals import ProcessSignals


def main() -> None:
    """Run the command in ``sys.argv``, and exit."""
    signals = ProcessSignals()
    if sys.argv[1:2] == ["serve"]:
        signals.listen()
    from .streams import guard_standard_streams

    guard_standard_streams()
    from .commands import cocoa

    cocoa(obj=signals)
