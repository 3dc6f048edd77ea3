"""Whether the SQLite mailbox can do its part: a status for programs, and one log line per change for people."""

from __future__ import annotations

import enum
import logging
import threading
from pathlib import Path
from typing import Final

from .port import MailboxCounters, MailboxState, MailboxStatus

HANGS_AFTER_S: Final = 5.0
"""A disk that has not answered for so long is taken for one that hangs."""

log = logging.getLogger("cocoa.mailbox")


class Part(enum.Enum):
    """What can fail by itself."""

    STORING = "storing"
    READING = "reading"


class Availability:
    """Any thread may call any method. READY is the mailbox that is open, while neither of its parts is down.

    :ivar messages: that are in the mailbox, and
    :ivar size_bytes: of their payloads; None until it was first open
    """

    def __init__(self, path: Path, counters: MailboxCounters) -> None:
        self._path, self._counters = path, counters
        self._lock = threading.Lock()
        self._now = (MailboxState.OPENING, f"{path}: not open yet")
        self._causes: dict[Part, str] = {}
        self._is_open = self._is_told = False
        self._totals: tuple[int, int] | None = None

    @property
    def state(self) -> MailboxState:
        return self._now[0]

    @property
    def detail(self) -> str:
        return self._now[1]

    def status(self) -> MailboxStatus:
        (state, detail), totals = self._now, self._totals
        if state is MailboxState.CLOSED or totals is None:
            return MailboxStatus(state, detail)
        return MailboxStatus(state, detail, *totals)

    def set_totals(self, messages: int, size_bytes: int) -> None:
        self._totals = (messages, size_bytes)

    def ready(self, part: Part = Part.STORING) -> None:
        """The part can do its work. The mailbox is open once anything can be stored."""
        with self._lock:
            self._causes.pop(part, None)
            self._is_open = self._is_open or part is Part.STORING
            if self.state is not MailboxState.OPENING or not self._is_open:
                return
            if self._causes:
                self._now = (MailboxState.OPENING, next(iter(self._causes.values())))
                return
            promise = "stored messages survive the end of the gateway, and the loss of power"
            self._now = (MailboxState.READY, f"SQLite in {self._path}: {promise}")
            self._is_told = False
        log.info("mailbox ready", extra={"mailbox": str(self._path)})

    def down(self, cause: str, part: Part = Part.STORING) -> None:
        """The part cannot do its work now. Logged when that is new; the detail is always the latest cause."""
        with self._lock:
            if self.state is MailboxState.CLOSED:
                return
            detail = self._causes[part] = cause if str(self._path) in cause else f"{self._path}: {cause}"
            if self.state is MailboxState.READY:
                self._counters.failures += 1
            self._now = (MailboxState.OPENING, detail)
            was_told, self._is_told = self._is_told, True
        if not was_told:
            log.warning("mailbox unavailable", extra={"mailbox": str(self._path), "cause": detail})

    def closed(self) -> None:
        with self._lock:
            self._now = (MailboxState.CLOSED, "closed")
