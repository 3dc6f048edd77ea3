"""The servers' answers about a message, and merging them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import msgspec

from ..plain_text import one_line
from ..rules.trace_memory import Outcome
from .servers import Topic

MAX_DEVICES: Final = 1_000
MAX_NOTES: Final = 20
"""Devices that have a note."""
NAMED: Final = 3
"""Devices of the summary that did not get the message, if there are several."""
MAX_SUMMARY: Final = 600
OTHERS: Final = "others"
"""In ``counts``: devices beyond the first 1,000 of a server."""
STEPS: Final = ("produced", "read", "addressed", "stored", "forwarded", "written", "acknowledged")
ARRIVED: Final = frozenset({"written", "acknowledged"})

_RANK: Final[Mapping[Outcome | None, int]] = {
    None: 0,
    "not_connected": 1,
    "superseded": 1,
    "waiting": 3,
    "written": 4,
    "acknowledged": 5,
}
"""Where servers know different things of a device. All other outcomes are between the first and ``waiting``."""


class TraceQuestion(msgspec.Struct, frozen=True):
    """:ivar with_text: the asker may see the message"""

    id: str
    with_text: bool = False


class TraceStep(msgspec.Struct, frozen=True):
    """:ivar at: Unix seconds; None: the time is not known
    :ivar server: None: the step was outside of the servers, or its server is unknown
    """

    at: float | None
    server: str | None
    step: str


class TraceDevice(msgspec.Struct, frozen=True):
    """:ivar outcome: None: not known yet, or no longer
    :ivar note: an explanation of the outcome, for people
    """

    device_id: str
    outcome: Outcome | None
    note: str = ""


class TraceAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of one server's memory, or the result of a search.

    :ivar records: how many records it has found; 0: none
    :ivar others: how many devices are not in :attr:`devices`
    :ivar length: of the message, in bytes
    :ivar text: the message, if the operator may see it
    :ivar notes: about the record, for people
    :ivar whole: the outcome, if there are no devices; None: it is ``not_connected``, unless :attr:`is_partial`
    :ivar is_partial: there are devices that this server does not know
    """

    records: int = 0
    steps: tuple[TraceStep, ...] = ()
    devices: tuple[TraceDevice, ...] = ()
    others: int = 0
    length: int = 0
    text: str | None = None
    notes: tuple[str, ...] = ()
    whole: Outcome | None = None
    is_partial: bool = False


TRACE: Final = Topic("trace", TraceQuestion, TraceAnswer)


@dataclass(slots=True)
class Trace:
    """The merged answer of all servers.

    :ivar notes: by device; :ivar about: notes on the record
    :ivar whole: the outcome, if there are no devices
    """

    id: str
    missing: Sequence[str]
    steps: list[TraceStep] = field(default_factory=list)
    outcomes: dict[str, Outcome | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    about: list[str] = field(default_factory=list)
    others: int = 0
    length: int = 0
    text: str | None = None
    whole: Outcome | None = None

    @property
    def counts(self) -> dict[str, int]:
        """The number of devices by outcome. Devices without a known outcome are not counted."""
        counts = Counter(outcome for outcome in self.outcomes.values() if outcome is not None)
        shown: dict[str, int] = dict(sorted(counts.items()))
        if self.others:
            shown[OTHERS] = self.others
        if not self.outcomes and self.whole is not None:
            shown[self.whole] = 1
        return shown

    def body(self) -> dict[str, object]:
        """The JSON of contract section 10, with ``summary``, ``notes``, ``length`` and perhaps ``text``."""
        named = sorted(self.outcomes)[:MAX_DEVICES]
        body: dict[str, object] = {
            "id": self.id,
            "summary": self.summary(),
            "steps": [{"at": _shown(step.at), "server": step.server, "step": step.step} for step in self.steps],
            "devices": [{"device_id": device_id, "outcome": self.outcomes[device_id]} for device_id in named],
            "counts": self.counts,
            "missing": self.missing,
            "notes": {name: self.notes[name] for name in sorted(self.notes)[:MAX_NOTES]},
            "length": self.length,
        }
        return body if self.text is None else body | {"text": self.text}

    def summary(self) -> str:
        """One line for people."""
        parts = [self._outcomes(), *self.about]
        if self.missing:
            parts.append(f"no answer from {', '.join(self.missing)}")
        return one_line("; ".join(parts), MAX_SUMMARY)

    def _outcomes(self) -> str:
        if len(self.outcomes) == 1 and not self.others:
            ((device_id, outcome),) = self.outcomes.items()
            return self._of(device_id, outcome)
        if not self.outcomes:
            return self.whole or "unknown"
        counts = self.counts | ({"unknown": unknown} if (unknown := [*self.outcomes.values()].count(None)) else {})
        lost = [name for name, outcome in sorted(self.outcomes.items()) if outcome not in ARRIVED]
        text = ", ".join(f"{number} {name}" for name, number in counts.items())
        return "; ".join([text, *(self._of(name, self.outcomes[name]) for name in lost[:NAMED])])

    def _of(self, device_id: str, outcome: Outcome | None) -> str:
        note = self.notes.get(device_id)
        return f"{device_id}: {outcome or 'unknown'}" + (f" ({note})" if note else "")


def better(one: Outcome | None, other: Outcome | None) -> Outcome | None:
    """Return the more specific of two outcomes."""
    return one if _RANK.get(one, 2) > _RANK.get(other, 2) else other


def merge_traces(message_id: str, answers: Iterable[TraceAnswer], missing: Sequence[str]) -> Trace | None:
    """Merge the answers of all servers; None if none of them remembers the message."""
    answers = [answer for answer in answers if answer.records]
    if not answers:
        return None
    trace = Trace(message_id, missing, length=answers[0].length)
    for device in (device for answer in answers for device in answer.devices):
        known = trace.outcomes.get(device.device_id)
        outcome = better(known, device.outcome)
        if device.note and (outcome == device.outcome or device.device_id not in trace.outcomes):
            trace.notes[device.device_id] = device.note
        elif outcome != known:
            trace.notes.pop(device.device_id, None)
        trace.outcomes[device.device_id] = outcome
    trace.steps = sorted({step for answer in answers for step in answer.steps}, key=_order)
    trace.others = sum(answer.others for answer in answers)
    trace.text = next((answer.text for answer in answers if answer.text is not None), None)
    trace.whole = next((answer.whole for answer in answers if answer.whole is not None), None)
    if trace.whole is None and not any(answer.is_partial for answer in answers):
        trace.whole = "not_connected"  # it addresses no device
    trace.about = [*dict.fromkeys(note for answer in answers for note in answer.notes), *_repeated(trace.steps)]
    return trace


def _repeated(steps: Iterable[TraceStep]) -> Iterable[str]:
    readers = [step.server or "?" for step in steps if step.step == "read"]
    if len(readers) > 1:
        yield f"read {len(readers)} times, by {', '.join(readers[:5])}{', ...' if len(readers) > 5 else ''}"


def _order(step: TraceStep) -> tuple[bool, float, int, str]:
    place = STEPS.index(step.step) if step.step in STEPS else len(STEPS)
    return step.at is None, step.at or 0.0, place, step.server or ""


def _shown(unix_s: float | None) -> str | None:
    """RFC 3339 in UTC, with milliseconds. None for a time outside the calendar: producers set timestamps."""
    if unix_s is None:
        return None
    try:
        time = datetime.fromtimestamp(unix_s, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
