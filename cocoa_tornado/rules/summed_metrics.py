"""Adds up the metrics of several workers: Prometheus text in, Prometheus text out. Pure.

Counters and histograms add up, and so do gauges, except those in :data:`LARGEST` and :data:`SMALLEST`.

A sum of counters must not fall when a worker ends: Prometheus would take that for a restart of all workers and count
everything again. So the last known counts of an ended worker stay in the sum; what it counted after that is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

LARGEST: Final = re.compile(
    r".*(_lag|_lag_records|_age_seconds|_info)"
    # Of the mailbox that all workers share, each worker reports the same.
    r"|cocoa_mailbox_(messages|bytes|fan_outs)"
)
"""The gauges of which the sum is the maximum: ages and lags, and what all workers report alike."""

SMALLEST: Final = re.compile(r".*(_ready|_created)|process_start_time_seconds")
"""The gauges of which the sum is the minimum: ``ready`` is 1 only if all are. The start is that of the oldest."""

CUMULATIVE: Final = frozenset({"counter", "histogram"})


@dataclass(slots=True)
class Family:
    """A metric family.

    :ivar head: its lines HELP and TYPE
    :ivar samples: the values, by everything that stands before them: ``name{label="value"}``
    """

    head: list[str] = field(default_factory=list)
    kind: str = "untyped"
    samples: dict[str, float] = field(default_factory=dict)


Page = dict[str, Family]
"""The families of one worker by name, in their order."""


def parse(text: str) -> Page:
    """Read what prometheus-client writes: each sample after the TYPE of its family, without timestamps. A line that
    cannot be read is skipped."""
    page: Page = {}
    family = Family()
    # Not splitlines, which also splits at separators that a label may have.
    for line in text.split("\n"):
        if line.startswith("#"):
            _, _, rest = line.partition(" ")
            word, _, rest = rest.partition(" ")
            name, _, kind = rest.partition(" ")
            if word not in ("HELP", "TYPE") or not name:
                continue
            family = page.setdefault(name, Family())
            family.head.append(line)
            if word == "TYPE":
                family.kind = kind
            continue
        key, _, value = line.rpartition(" ")
        try:
            family.samples[key] = float(value)
        except ValueError:
            continue
    return page


def total(pages: Iterable[Page]) -> Page:
    """Add up the pages of several workers. Families and samples keep the order in which they first occur."""
    sums: Page = {}
    for page in pages:
        for name, family in page.items():
            known = sums.setdefault(name, Family(family.head, family.kind))
            for key, value in family.samples.items():
                known.samples[key] = (
                    _joined(name, family.kind, known.samples[key], value) if (key in known.samples) else value
                )
    return sums


def _joined(name: str, kind: str, one: float, other: float) -> float:
    if kind in CUMULATIVE:
        return one + other
    if LARGEST.fullmatch(name):
        return max(one, other)
    return min(one, other) if SMALLEST.fullmatch(name) else one + other


def cumulative(page: Page) -> Page:
    """The counters and histograms alone."""
    return {name: family for name, family in page.items() if family.kind in CUMULATIVE}


def text_of(page: Page) -> str:
    """Prometheus text of the families that have samples."""
    lines = []
    for family in page.values():
        lines += family.head
        lines += [f"{key} {_number(value)}" for key, value in family.samples.items()]
    return "".join(f"{line}\n" for line in lines)


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)


class SummedMetrics:
    """The sum over all workers, including those that have ended or do not answer.

    :param count: workers
    """

    def __init__(self) -> None:
        self._latest: dict[int, Page] = {}  # of the workers that run
        self._ended: Page = {}

    def on_exit(self, worker: int) -> None:
        """The process has ended; the next one of this number counts from 0."""
        latest = self._latest.pop(worker, None)
        if latest is not None:
            self._ended = total((self._ended, cumulative(latest)))

    def summed(self, answers: Mapping[int, str], extra: str = "") -> str:
        """The text for ``/metrics``.

        :param answers: the text of each worker that has answered. A worker that has not is counted with its latest
            counters, and has no gauges
        :param extra: the parent's own metrics, as text
        """
        fresh = {worker: parse(text) for worker, text in answers.items()}
        silent = [cumulative(page) for worker, page in self._latest.items() if worker not in fresh]
        self._latest |= fresh
        # Gauges first, as the order of the families is theirs.
        return text_of(total((*fresh.values(), *silent, self._ended, parse(extra))))
