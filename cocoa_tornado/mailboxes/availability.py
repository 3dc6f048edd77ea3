"""Whether a mailbox can do its part, and when the log has to say so. Pure."""

from __future__ import annotations

import enum

from .port import MailboxState


class Part(enum.Enum):
    """What can fail by itself."""

    STORING = "stored"
    READING = "read"


class Availability:
    """READY is a mailbox that was opened, while neither of its parts is down.

    :ivar detail: one line for people: what it promises, or the latest cause
    """

    def __init__(self) -> None:
        self.state = MailboxState.OPENING
        self.detail = "not open yet"
        self._causes: dict[Part, str] = {}
        self._promise: str | None = None
        self._is_logged = False

    def __repr__(self) -> str:
        return f"<Availability {self.state.value}: {self.detail}>"

    def ready(self, promise: str) -> bool:
        """Something was stored, or could be. True: the mailbox is READY since now."""
        self._promise = promise
        return self.recovered(Part.STORING)

    def recovered(self, part: Part) -> bool:
        """The part can do its work. True: the mailbox is READY since now."""
        self._causes.pop(part, None)
        if self.state is not MailboxState.OPENING or self._promise is None:
            return False
        if self._causes:
            self.detail = next(iter(self._causes.values()))
            return False
        self.state, self.detail, self._is_logged = MailboxState.READY, self._promise, False
        return True

    def down(self, part: Part, cause: str) -> bool:
        """The part cannot do its work now. True: the log has not said so since the mailbox was READY last."""
        if self.state is MailboxState.CLOSED:
            return False
        self.state, self.detail = MailboxState.OPENING, cause
        self._causes[part] = cause
        was_logged, self._is_logged = self._is_logged, True
        return not was_logged

    def closed(self) -> None:
        self.state, self.detail = MailboxState.CLOSED, "closed"
