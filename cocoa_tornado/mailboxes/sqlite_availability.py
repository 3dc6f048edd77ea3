"""Whether the SQLite mailbox can do its part: a status for programs, and one log line per change for people."""

from __future__ import annotations

import logging
from pathlib import Path

from .port import MailboxCounters, MailboxState, MailboxStatus

log = logging.getLogger("cocoa.mailbox")


class Availability:
    """Written by the writer's thread, and by the IOLoop's once that one is gone; read by any thread.

    :ivar messages: that are in the mailbox, and
    :ivar size_bytes: of their payloads; None until it was first open
    """

    def __init__(self, path: Path, counters: MailboxCounters) -> None:
        self._path, self._counters = path, counters
        self._now = (MailboxState.OPENING, f"{path}: not open yet")
        self._failing = False
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

    def ready(self) -> None:
        if self.state is not MailboxState.OPENING:
            return
        promise = "stored messages survive the end of the gateway, and the loss of power"
        self._now = (MailboxState.READY, f"SQLite in {self._path}: {promise}")
        self._failing = False
        log.info("mailbox ready", extra={"mailbox": str(self._path)})

    def down(self, cause: str) -> None:
        """It cannot do its part now. Logged when that is new; the detail is always the latest cause."""
        if self.state is MailboxState.CLOSED:
            return
        detail = cause if str(self._path) in cause else f"{self._path}: {cause}"
        if self.state is MailboxState.READY:
            self._counters.failures += 1
        self._now = (MailboxState.OPENING, detail)
        if not self._failing:
            self._failing = True
            log.warning("mailbox not available, retrying", extra={"error": detail})

    def closed(self) -> None:
        self._now = (MailboxState.CLOSED, "closed")
