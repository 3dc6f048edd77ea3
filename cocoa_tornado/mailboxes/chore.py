"""Decides when a store's other work, marks and sweeps, is retried, and what its refusal means. Pure."""

from __future__ import annotations

import enum

from ..rules.backoff import Backoff


class _State(enum.Enum):
    DONE = "done"
    REFUSED = "refused"  # messages may be refused as well
    DOUBTED = "doubted"  # messages have been stored since
    REFUSED_ALONE = "refused alone"  # it was refused again after that


class Chore:
    """Marks, or sweeps. A store that refuses one of them may still store messages; then the mailbox is READY.

    :ivar name: for the log
    :ivar is_held: it was refused, and is not tried for ``hold_s`` seconds
    """

    def __init__(self, name: str, retry_s: tuple[float, float]) -> None:
        self.name = name
        self.is_held = False
        self.hold_s = 0.0
        self._state = _State.DONE
        self._backoff = Backoff(base_s=retry_s[0], cap_s=retry_s[1])

    def __repr__(self) -> str:
        return f"<Chore {self.name}: {self._state.value}>"

    @property
    def is_outage(self) -> bool:
        """True if nothing shows yet that the store still accepts messages."""
        return self._state is _State.REFUSED

    def refused(self) -> bool:
        """The store is there and has refused it. Returns True if it is now known to refuse nothing else."""
        self.is_held, self.hold_s = True, self._backoff.next_s()
        is_news = self._state is _State.DOUBTED
        if is_news:
            self._state = _State.REFUSED_ALONE
        elif self._state is _State.DONE:
            self._state = _State.REFUSED
        return is_news

    def messages_stored(self) -> None:
        if self._state is _State.REFUSED:
            self._state = _State.DOUBTED

    def done(self) -> bool:
        """Returns True if the store was known to refuse nothing else."""
        is_news = self._state is _State.REFUSED_ALONE
        self._state, self.is_held = _State.DONE, False
        self._backoff.reset()
        return is_news
