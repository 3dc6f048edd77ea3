"""How often a consumer polls, and asks the brokers about its topic: less often while nothing happens. Pure."""

from __future__ import annotations

import enum
from math import inf
from typing import Final

QUIET_AFTER_S: Final = 2.0
"""Without a record and without work for so long, a consumer is quiet."""

QUIET_FACTOR: Final = 5
"""A question is asked so many times less often while nothing happens that its answer could be about."""


class QuestionPace:
    """When to ask a question again whose answer confirms what has happened: within ``busy_s`` of everything that
    happens, and otherwise every ``QUIET_FACTOR * busy_s``. So what is not confirmed yet is never older than ``busy_s``,
    and the time that an answer takes.
    """

    __slots__ = ("_busy_s", "_due_at")

    def __init__(self, busy_s: float) -> None:
        self._busy_s = busy_s
        self._due_at = -inf

    def is_due(self, now: float) -> bool:
        return now >= self._due_at

    def hurry(self) -> None:
        """Ask at once."""
        self._due_at = -inf

    def note_asked(self, now: float) -> None:
        """What happens from now on is not covered by the answer."""
        self._due_at = now + QUIET_FACTOR * self._busy_s

    def note_event(self, now: float) -> None:
        """Something has happened that an answer is to confirm."""
        self._due_at = min(self._due_at, now + self._busy_s)


class Quiet:
    """Whether a consumer has had nothing to do for some time."""

    __slots__ = ("_busy_at",)

    def __init__(self) -> None:
        self._busy_at = -inf

    def look(self, now: float, *, has_work: bool) -> bool:
        """True if there was no work within the last ``QUIET_AFTER_S``.

        :param has_work: there is some now, or an answer to wait for
        """
        if has_work:
            self._busy_at = now
        return now - self._busy_at >= QUIET_AFTER_S


class Probe(enum.Enum):
    NOT_DUE = enum.auto()
    ASK = "ask the brokers"
    TRUST = "take it that they are there: other answers of theirs have shown it"


class ProbePace:
    """When to ask the brokers whether they are there.

    A consumer that rests does not ask while the answers to its fetches and heartbeats show it. If those fail to come,
    it asks at once. After the rest it does not ask at once: a broker answers a question behind a fetch that waits for
    records, and meanwhile the records of another broker would wait.

    :param every_s: between two questions; longer than a fetch waits for records
    """

    __slots__ = ("_due_at", "_every_s", "_trusted")

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._due_at = -inf
        self._trusted = False

    def hurry(self) -> None:
        """Something has happened that an answer would explain: ask at once."""
        self._due_at = -inf

    def look(self, now: float, *, rests: bool = False, answered: bool = False) -> Probe:
        """
        :param rests: the consumer waits for records, and has nothing else to do
        :param answered: other answers of the brokers show that they are there
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
