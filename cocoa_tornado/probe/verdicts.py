"""What a check comes to. Frozen values; nothing here does anything."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import CocoaError


class ProbeError(CocoaError):
    """The probe cannot go on at all: wrong URL, nobody listens, TLS fails. ``str()`` is one line for a terminal."""


class Status(enum.Enum):
    """How a check ended. SKIPPED is not PASSED: it could not be made, or was not asked for."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says.

    :ivar detail: for people: why it failed or was skipped, or what was measured; may quote the other side
    """

    status: Status
    detail: str = ""


def passed(detail: str = "") -> Verdict:
    return Verdict(Status.PASSED, detail)


def failed(detail: str) -> Verdict:
    return Verdict(Status.FAILED, detail)


def skipped(reason: str) -> Verdict:
    return Verdict(Status.SKIPPED, reason)


def judged(problem: str | None, detail: str = "") -> Verdict:
    """The verdict for what a judge found: ``problem``, or None if all is well."""
    return passed(detail) if problem is None else failed(problem)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check that was run, or not.

    :ivar name: stable and short, for scripts
    :ivar title: the promise that was checked, as a sentence
    :ivar duration_s: how long it took, seconds
    """

    name: str
    title: str
    status: Status
    detail: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run.

    :ivar target: the WebSocket URL, without any token
    :ivar started_at: Unix seconds
    """

    target: str
    started_at: float
    duration_s: float
    outcomes: Sequence[Outcome]

    def count(self, status: Status) -> int:
        """How many checks ended so."""
        return sum(outcome.status is status for outcome in self.outcomes)

    @property
    def ok(self) -> bool:
        """True if no check failed."""
        return self.count(Status.FAILED) == 0
