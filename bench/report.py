"""Formats the results of the benchmark as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .samples import FLOOR, KEY_METRIC, METRICS, Failure, Sample, Section, Spread, sections

TITLES = {
    "broker": "Broker to device",
    "growth": "Growth: cost of a message",
    "fan-out": "Fan-out: a group's message",
    "memory": "Memory of an idle device",
    "idle": "Idle cost",
    "handshakes": "Handshakes with a JWT",
    "storm": "Reconnect storm",
}


@dataclass(slots=True)
class Findings:
    """The results of one run.

    :ivar machine: properties of the machine, by name
    :ivar descriptions: the descriptions of the contenders, by name; the others are compared with the first
    :ivar evidence: the load on generator and machine: readings of each measured flow, by name
    :ivar notes: remarks for the reader
    """

    machine: dict[str, str] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    evidence: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def first(self) -> str:
        return next(iter(self.descriptions), FLOOR)

    def sections(self) -> list[Section]:
        return sections(self.samples, self.first)

    def note(self, text: str) -> None:
        """Add a note, without duplicates."""
        if text not in self.notes:
            self.notes.append(text)


def spelled(metric: str, spread: Spread | None) -> str:
    """``12.3 (11.9-13.0)``; ``12.3`` if all rounds agree; ``-`` without a value."""
    if spread is None:
        return "-"
    shape = METRICS[metric]
    if shape.is_total:
        return f"{spread.total:,.0f}"
    middle, low, high = (f"{value:,.{shape.digits}f}" for value in (spread.median, spread.low, spread.high))
    return middle if low == high else f"{middle} ({low}-{high})"


def table(section: Section, first: str) -> list[str]:
    """Medians with the range of the rounds, and their ratios to the first contender and to the floor."""
    metrics = section.metrics
    with_floor = any(row.floors is not None for row in section.rows)
    header = ["", *(METRICS[name].title for name in metrics), f"x {first}", *(["x floor"] if with_floor else [])]
    lines = [header]
    for row in section.rows:
        relations = [row.ratio, *([row.floors] if with_floor else [])]
        lines.append(
            [
                row.contender,
                *(spelled(name, row.spreads.get(name)) for name in metrics),
                *("-" if value is None else f"{value:.2f}" for value in relations),
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    found = [f"{TITLES[section.part]}: {section.case}"]
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        found.append("  " + "  ".join(cells).rstrip())
    return found


def footer(findings: Findings) -> list[str]:
    """Whether the generator or the machine was the bottleneck, failed contenders, and the notes."""
    lines = []
    for name, text in EVIDENCE.items():
        if values := findings.evidence.get(name):
            spread = Spread.of(values)
            lines.append(text.format(spread=spread, count=len(values)))
    lines += [
        f"did not finish: {failure.contender}, {TITLES[failure.part].lower()}, {failure.case}: {failure.why}"
        for failure in findings.failures
    ]
    return lines + findings.notes


EVIDENCE = {
    "generator_us": "generator: {spread.median:.1f} us of CPU for each message written and received "
    "({spread.low:.1f}-{spread.high:.1f}, {count} flows)",
    "load_own": "generator's core, busy with it, the broker and the harness: {spread.median:.0%} of the time, "
    "at worst {spread.high:.0%}",
    "load_foreign": "generator's core, busy with anything else on this machine: {spread.median:.0%} of the time, "
    "at worst {spread.high:.0%}",
    "generator_per_s": "generator alone, on a flood from the floor: {spread.median:,.0f} messages a CPU second",
    "generator_lag_ms": "publisher behind its plan, at worst: {spread.median:.1f} ms in most flows, "
    "{spread.high:.1f} ms in one",
    "foreign": "server's core, busy with anything but the server: {spread.median:.0%} of the time, "
    "at worst {spread.high:.0%}",
}


def text(findings: Findings) -> list[str]:
    """The whole report, for a terminal."""
    lines = [", ".join(f"{name} {value}" for name, value in findings.machine.items())]
    lines += [f"  {name}: {description}" for name, description in findings.descriptions.items()]
    for section in findings.sections():
        lines += ["", *table(section, findings.first)]
    return [*lines, "", *footer(findings)]


def document(findings: Findings) -> dict[str, Any]:
    """The report as data: every sample, and the summary."""
    return {
        "machine": findings.machine,
        "contenders": findings.descriptions,
        "compared_with": findings.first,
        "metrics": {name: asdict(metric) for name, metric in METRICS.items()},
        "summary": [_summary(section) for section in findings.sections()],
        "failures": [asdict(failure) for failure in findings.failures],
        "evidence": {name: asdict(Spread.of(values)) for name, values in findings.evidence.items() if values},
        "notes": findings.notes,
        "samples": [asdict(sample) for sample in findings.samples],
    }


def _summary(section: Section) -> dict[str, Any]:
    rows: Sequence[dict[str, Any]] = [
        {
            "contender": row.contender,
            "ratio": row.ratio,
            "floors": row.floors,
            "metrics": {name: asdict(spread) for name, spread in row.spreads.items()},
        }
        for row in section.rows
    ]
    return {"part": section.part, "case": section.case, "compared_by": KEY_METRIC[section.part], "rows": rows}
