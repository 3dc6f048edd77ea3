"""Notifications to systemd: the protocol of sd_notify(3).

Without ``NOTIFY_SOCKET`` in the environment, as outside systemd, all of it has no effect.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


PATIENCE_S: Final = 0.5
"""How long a notification may wait for room in systemd's queue. A lost sign of life is followed by the next one, but a
state is sent once."""


class Notifier:
    """Notifies the service manager of this process's state. Never fails, and blocks for ``PATIENCE_S`` at most.

    :param environ: the variables are removed from it, so that no child process reports in this one's place
    :ivar watchdog_s: the interval in which to call :meth:`alive`: a third of the time after which systemd kills the
        process; None without a watchdog
    """

    def __init__(
        self,
        environ: MutableMapping[str, str],
        pid: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        given = {name: environ.pop(name, "") for name in VARIABLES}
        self._clock = clock
        self._socket = _connected(given["NOTIFY_SOCKET"])
        self.watchdog_s = _watchdog_s(given, os.getpid() if pid is None else pid)

    def ready(self, status: str = "") -> None:
        """The service has started, or has completed a reload."""
        self._send("READY=1", status)

    def reloading(self) -> None:
        """A reload begins; :meth:`ready` ends it."""
        self._send("RELOADING=1", extra=f"MONOTONIC_USEC={int(self._clock() * 1e6)}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, status: str) -> None:
        """A line for ``systemctl status``."""
        self._send("", status)

    def alive(self) -> None:
        """For the watchdog. Never blocks."""
        self._send("WATCHDOG=1", patience_s=0.0)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, state: str, status: str = "", extra: str = "", patience_s: float = PATIENCE_S) -> None:
        lines = [line for line in (state, extra, f"STATUS={status}" if status else "") if line]
        if self._socket is not None:
            # systemd is busy, or gone.
            with contextlib.suppress(OSError):
                self._socket.settimeout(patience_s)
                self._socket.send("\n".join(lines).encode())


def _connected(address: str) -> socket.socket | None:
    """:param address: a path, or ``@`` and a name of Linux' abstract namespace"""
    if not address.startswith(("/", "@")):
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.connect(f"\0{address[1:]}" if address.startswith("@") else address)
    except OSError:
        sock.close()
        return None
    return sock


def _watchdog_s(given: MutableMapping[str, str], pid: int) -> float | None:
    """None if there is no watchdog, or if it is for another process."""
    usec = given["WATCHDOG_USEC"]
    if not usec.isdecimal() or int(usec) == 0 or given["WATCHDOG_PID"] not in ("", str(pid)):
        return None
    return int(usec) / 3_000_000
