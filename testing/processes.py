"""Server processes of a test."""

from __future__ import annotations

import signal
import subprocess

STOP_PATIENCE_S = 20.0


def end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Send a signal that ends the process, frozen or not, and wait; kill it if it does not end in time."""
    process.send_signal(how)
    process.send_signal(signal.SIGCONT)
    try:
        process.wait(STOP_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
