"""How far a server has read its inbox in Redis, and whether something is missing. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from .redis_lua import UNKNOWN_TOTALS, Entry, Inbox


class InboxPosition:
    """The last entry that was taken. Entries are numbered without gaps, so one that is missing is noticed.

    :ivar sequence: its number
    :ivar totals: of it, for DONE; empty while they are unknown, since the entry is lost
    """

    __slots__ = ("_is_missing", "_lost", "sequence", "totals")

    def __init__(self) -> None:
        self.sequence, self.totals = 0, (b"0", b"0")
        self._is_missing = False
        self._lost = 0

    def take(self, entries: Sequence[Entry]) -> None:
        """These are the entries after the last one."""
        for entry in entries:
            self._is_missing = self._is_missing or entry.sequence != self.sequence + 1
            self.sequence, self.totals = entry.sequence, entry.totals

    def check(self, inbox: Inbox) -> list[str]:
        """Return the losses since the last call, as reasons for the log; nearly always none.

        Cases: an entry was missing; the inbox is empty although later entries were sent, or is not the one that was
        read; a sender has found no room.
        """
        reasons = []
        is_another = not inbox.left and inbox.sequence != self.sequence
        if self._is_missing or is_another:
            reasons.append("the inbox was trimmed or deleted")
        if inbox.lost != self._lost:
            reasons.append("the inbox was full")
        if is_another:
            # DONE has counted the inbox as empty: with the totals from before it would fill up again.
            self.sequence, self.totals = max(self.sequence, inbox.sequence), UNKNOWN_TOTALS
        self._is_missing, self._lost = False, inbox.lost
        return reasons
