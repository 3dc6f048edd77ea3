"""Decides whether a mailbox is READY, and which changes of state are logged. Pure."""

from __future__ import annotations

import enum

from .port import MailboxState


class Part(enum.Enum):
    """The operations that fail independently."""

    STORING = "stored"
    READING = "read"


class Readiness:
    """A mailbox is READY once it was opened, while neither part is down.

    :ivar detail: one line for operators: the mailbox's promise, or the latest cause
    """

    def __init__(self) -> None:
        self.state = MailboxState.OPENING
        self.detail = "not open yet"
        self._causes: dict[Part, str] = {}
        self._promise: str | None = None
        self._is_logged = False

    def __repr__(self) -> str:
        return f"<Readiness {self.state.value}: {self.detail}>"

    def ready(self, promise: str) -> bool:
        """The store accepts messages. Returns True if the mailbox has just become READY."""
        self._promise = promise
        return self.recovered(Part.STORING)

    def recovered(self, part: Part) -> bool:
        """The part works again. Returns True if the mailbox has just become READY."""
        self._causes.pop(part, None)
        if self.state is not MailboxState.OPENING or self._promise is None:
            return False
        if self._causes:
            self.detail = next(iter(self._causes.values()))
            return False
        self.state, self.detail, self._is_logged = MailboxState.READY, self._promise, False
        return True

    def down(self, part: Part, cause: str) -> bool:
        """The part has failed. Returns True if this is the first failure to log since the mailbox was READY."""
        if self.state is MailboxState.CLOSED:
            return False
        self.state, self.detail = MailboxState.OPENING, cause
        self._causes[part] = cause
        was_logged, self._is_logged = self._is_logged, True
        return not was_logged

    def closed(self) -> None:
        self.state, self.detail = MailboxState.CLOSED, "closed"
