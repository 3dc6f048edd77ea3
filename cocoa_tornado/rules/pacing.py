"""How often a consumer polls, and sends requests about its topic: less often while nothing happens. Pure."""

from __future__ import annotations

import enum
from math import inf
from typing import Final

QUIET_AFTER_S: Final = 2.0
"""A consumer is quiet after this long without a record and without work."""

QUIET_FACTOR: Final = 5
"""How many times less often a request is repeated while nothing happens that its answer could be about."""


class QuestionPace:
    """When to repeat a request whose answer confirms what has happened: within ``busy_s`` of every event, and otherwise
    every ``QUIET_FACTOR * busy_s``. So nothing unconfirmed is ever older than ``busy_s`` plus the time that an answer
    takes.
    """

    __slots__ = ("_busy_s", "_due_at")

    def __init__(self, busy_s: float) -> None:
        self._busy_s = busy_s
        self._due_at = -inf

    def is_due(self, now: float) -> bool:
        return now >= self._due_at

    def hurry(self) -> None:
        """Request at once."""
        self._due_at = -inf

    def note_asked(self, now: float) -> None:
        """Note a request: its answer does not cover later events."""
        self._due_at = now + QUIET_FACTOR * self._busy_s

    def note_event(self, now: float) -> None:
        """Note an event that an answer is to confirm."""
        self._due_at = min(self._due_at, now + self._busy_s)


class Quiet:
    """Whether a consumer has been idle for some time."""

    __slots__ = ("_busy_at",)

    def __init__(self) -> None:
        self._busy_at = -inf

    def look(self, now: float, *, has_work: bool) -> bool:
        """Return True if there was no work within the last ``QUIET_AFTER_S``.

        :param has_work: there is work now, or a pending answer
        """
        if has_work:
            self._busy_at = now
        return now - self._busy_at >= QUIET_AFTER_S


class Probe(enum.Enum):
    NOT_DUE = enum.auto()
    ASK = "ask the brokers"
    TRUST = "take it that they are there: other answers of theirs have shown it"


class ProbePace:
    """When to ask the brokers whether they answer.

    A resting consumer does not ask while the answers to its fetches and heartbeats show that. If they fail to come, it
    asks at once. It does not ask at once after the rest: a broker answers only after a fetch that waits for records,
    which would delay the records of other brokers.

    :param every_s: between two requests; longer than a fetch waits for records
    """

    __slots__ = ("_due_at", "_every_s", "_trusted")

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._due_at = -inf
        self._trusted = False

    def hurry(self) -> None:
        """An event has happened that an answer would explain: ask at once."""
        self._due_at = -inf

    def look(self, now: float, *, rests: bool = False, answered: bool = False) -> Probe:
        """
        :param rests: the consumer waits for records, and has nothing else to do
        :param answered: other answers show that the brokers are there
        """
        is_hurried = self._due_at == -inf
        trusted, self._trusted = self._trusted, rests and answered and not is_hurried
        if trusted and not rests and not is_hurried:
            self._due_at = now + self._every_s
        has_gone_silent = trusted and rests and not answered
        if now < self._due_at and not has_gone_silent:
            return Probe.NOT_DUE
        self._due_at = now + self._every_s
        return Probe.TRUST if self._trusted else Probe.ASK
