"""The results of checks and runs, as frozen values."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import CocoaError


class ProbeError(CocoaError):
    """The probe cannot run: wrong URL, connection refused, TLS error. ``str()`` is one line for a terminal."""


class Status(enum.Enum):
    """How a check ended. SKIPPED means that it was impossible or not requested."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check.

    :ivar detail: the reason of a failure or a skip, or the measurement, for people; may quote received data
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
    """The verdict for a judge's problem; None means passed."""
    return passed(detail) if problem is None else failed(problem)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one check.

    :ivar name: a stable, short id, for scripts
    :ivar title: the checked promise, as a sentence
    :ivar duration_s: the duration in seconds
    """

    name: str
    title: str
    status: Status
    detail: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """The outcomes of a run.

    :ivar target: the WebSocket URL, without any token
    :ivar started_at: Unix seconds
    :ivar also: the URLs of the other servers
    """

    target: str
    started_at: float
    duration_s: float
    outcomes: Sequence[Outcome]
    also: Sequence[str] = ()

    def count(self, status: Status) -> int:
        """The number of checks with this status."""
        return sum(outcome.status is status for outcome in self.outcomes)

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return self.count(Status.FAILED) == 0
