"""The samples of the benchmark, and their medians, ranges and ratios. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

FLOOR = "floor"


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    :ivar part: the part of the benchmark: broker, memory, ...
    :ivar case: the variant of the part, such as "500 devices, 1 at a time"
    :ivar contender: its name, or "floor"
    :ivar metric: a name in :data:`METRICS`
    :ivar value: the value in the metric's unit
    :ivar turn: the round, from 0
    """

    part: str
    case: str
    contender: str
    metric: str
    value: float
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """A contender did not finish."""

    part: str
    case: str
    contender: str
    why: str


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric.

    :ivar title: the title of its column, with the unit
    :ivar digits: the number of decimals
    :ivar is_total: add the values of all rounds, for events that should never happen
    """

    title: str
    digits: int = 1
    is_total: bool = False


METRICS = {
    "rate": Metric("messages/s", 0),
    "cpu_us": Metric("CPU us/message"),
    "per_cpu_s": Metric("messages/CPU s", 0),
    "user_kib": Metric("user KiB/device"),
    "own_kib": Metric("of it private"),
    "kernel_kib": Metric("kernel KiB/device"),
    "idle_ms": Metric("CPU ms/s", 2),
    "handshake_us": Metric("CPU us/handshake", 0),
    "handshakes_per_cpu_s": Metric("handshakes/CPU s", 0),
    "all_in_s": Metric("all in, s"),
    "refused": Metric("refused", 0),
    "failed": Metric("failed", 0),
    "calm_p99_ms": Metric("p99 ms before"),
    "p50_ms": Metric("p50 ms"),
    "p99_ms": Metric("p99 ms"),
    "p999_ms": Metric("p99.9 ms"),
    "max_ms": Metric("max ms"),
    "ack_max_ms": Metric("broker's ack max"),
    "pong_p99_ms": Metric("pong p99 ms"),
    "pongs_lost": Metric("pongs lost", 0, is_total=True),
    "lost": Metric("lost", 0, is_total=True),
    "wrong": Metric("wrong", 0, is_total=True),
    "closed": Metric("closed", 0, is_total=True),
}
# The key metric of each part. Lower is better in all of them.
KEY_METRIC = {
    "broker": "cpu_us",
    "growth": "cpu_us",
    "fan-out": "cpu_us",
    "memory": "user_kib",
    "idle": "idle_ms",
    "handshakes": "handshake_us",
    "storm": "all_in_s",
}


@dataclass(frozen=True, slots=True)
class Spread:
    """The median, minimum and maximum of the rounds' values."""

    median: float
    low: float
    high: float
    total: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        found = list(values)
        return Spread(statistics.median(found), min(found), max(found), sum(found))


@dataclass(frozen=True, slots=True)
class Row:
    """A contender in one case of one part.

    :ivar ratio: the ratio of its key metric to the first contender's; None if either is missing
    :ivar floors: the ratio of its key metric to the floor's; None likewise
    """

    contender: str
    spreads: dict[str, Spread]
    ratio: float | None
    floors: float | None


@dataclass(frozen=True, slots=True)
class Section:
    """A case of a part, with the contenders in the order of their first appearance."""

    part: str
    case: str
    rows: list[Row]

    @property
    def metrics(self) -> list[str]:
        """The metrics of all rows, in the order of :data:`METRICS`."""
        return [name for name in METRICS if any(name in row.spreads for row in self.rows)]


def sections(samples: Iterable[Sample], first: str) -> list[Section]:
    """Group the samples into sections.

    :param first: the contender that the others are compared with
    """
    cases: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for sample in samples:
        of_case = cases.setdefault((sample.part, sample.case), {})
        of_case.setdefault(sample.contender, {}).setdefault(sample.metric, []).append(sample.value)
    order = list(KEY_METRIC)
    ranked = sorted(cases.items(), key=lambda item: order.index(item[0][0]))
    return [_section(part, case, contenders, first) for (part, case), contenders in ranked]


def _section(part: str, case: str, contenders: dict[str, dict[str, list[float]]], first: str) -> Section:
    spreads = {
        name: {metric: Spread.of(values) for metric, values in metrics.items()} for name, metrics in contenders.items()
    }
    key = KEY_METRIC[part]

    def relative(name: str, to: str) -> float | None:
        """The ratio of the medians."""
        own, other = spreads[name].get(key), spreads.get(to, {}).get(key)
        return own.median / other.median if own and other and other.median else None

    rows = [Row(name, found, relative(name, first), relative(name, FLOOR)) for name, found in spreads.items()]
    return Section(part, case, rows)


def half_of_saturation(cpu_us: float, most: float) -> float:
    """The rate of messages per second at half of a contender's saturation, at most ``most``."""
    return min(0.5e6 / cpu_us, most)


def fitting(sizes: Iterable[int], most: int) -> tuple[list[int], list[str]]:
    """The sizes that this machine allows, and notes about the others.

    The first size that is too large is replaced by the largest fitting multiple of 100, unless that is already a size;
    the others are skipped.
    """
    found: list[int] = []
    notes: list[str] = []
    for size in sorted(sizes):
        if size <= most:
            found.append(size)
            continue
        instead = most // 100 * 100
        if not notes and instead > (found[-1] * 1.2 if found else 0):
            found.append(instead)
            notes.append(f"{size:,} devices exceed the limit of open files; {instead:,} instead")
        else:
            notes.append(f"{size:,} devices skipped: they exceed the limit of open files")
    return found, notes
