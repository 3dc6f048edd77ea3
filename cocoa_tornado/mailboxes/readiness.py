"""Decides whether a mailbox is READY, and which changes of state are logged. Pure."""

from __future__ import annotations

import enum

from .port import MailboxState


class Operation(enum.Enum):
    """The operations that fail independently."""

    STORING = "stored"
    READING = "read"


class MailboxReadiness:
    """A mailbox is READY once it was opened, while neither operation is down.

    :ivar detail: one line for operators: the mailbox's promise, or the latest cause
    """

    def __init__(self) -> None:
        self.state = MailboxState.OPENING
        self.detail = "not open yet"
        self._causes: dict[Operation, str] = {}
        self._promise: str | None = None
        self._is_logged = False

    def __repr__(self) -> str:
        return f"<MailboxReadiness {self.state.value}: {self.detail}>"

    def ready(self, promise: str) -> bool:
        """The store accepts messages. Returns True if the mailbox has just become READY."""
        self._promise = promise
        return self.recovered(Operation.STORING)

    def recovered(self, operation: Operation) -> bool:
        """The operation works again. Returns True if the mailbox has just become READY."""
        self._causes.pop(operation, None)
        if self.state is not MailboxState.OPENING or self._promise is None:
            return False
        if self._causes:
            self.detail = next(iter(self._causes.values()))
            return False
        self.state, self.detail, self._is_logged = MailboxState.READY, self._promise, False
        return True

    def down(self, operation: Operation, cause: str) -> bool:
        """The operation has failed. Returns True if this is the first failure to log since the mailbox was READY."""
        if self.state is MailboxState.CLOSED:
            return False
        self.state, self.detail = MailboxState.OPENING, cause
        self._causes[operation] = cause
        was_logged, self._is_logged = self._is_logged, True
        return not was_logged

    def closed(self) -> None:
        self.state, self.detail = MailboxState.CLOSED, "closed"
