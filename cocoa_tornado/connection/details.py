"""The parts of an outbox that exist only while it holds more than one plain queue. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from .queue import Queue, Queued

NO_QUEUE: Final = Queue()
"""Stands for a queue that is not there. It stays empty."""


class Taken(NamedTuple):
    """One message of a write.

    :ivar size: of its frame; 0: it is skipped
    :ivar waiting: the message as it was queued
    """

    is_high: bool
    size: int
    waiting: Queued

    @property
    def is_numbered(self) -> bool:
        """Whether the message is stored, and its number is reported."""
        terms = self.waiting[2]
        return terms is not None and bool(terms.number)


class Details:
    """What an outbox has only while it is needed.

    :ivar high: the lane of high priority
    :ivar high_in_a_row: high messages given since a normal one, while a normal one waited
    :ivar expires_ms: no queued message expires before this time; 0: none expires
    :ivar others: messages that wait, but not in the outbox's own lane
    :ivar taken_bytes: the size of the current write's messages
    :ivar taken: what the current write consists of, in its order, if both lanes have messages
    :ivar single: otherwise, how many messages of the lane that has any
    :ivar begun: the messages that the socket has begun to take, and not taken completely
    :ivar begun_bytes: the bytes that they count as
    """

    __slots__ = (
        "begun",
        "begun_bytes",
        "expires_ms",
        "high",
        "high_in_a_row",
        "others",
        "single",
        "taken",
        "taken_bytes",
    )

    def __init__(self) -> None:
        self.high = NO_QUEUE
        self.high_in_a_row = self.expires_ms = self.others = self.taken_bytes = self.single = self.begun_bytes = 0
        self.taken: Sequence[Taken] = ()
        self.begun: Sequence[Taken] = ()

    def end_write(self) -> None:
        self.taken, self.single, self.taken_bytes = (), 0, 0
