"""Plots the results of the benchmark as SVG, with one panel of bars per case."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .report import TITLES, Findings
from .samples import FLOOR, KEY_METRIC, METRICS, Section

WIDTH = 900
LABELS = 190
BARS = 520
ROW = 22
HEAD = 46
GAP = 18
COLOURS = {"first": "#2266aa", "other": "#99a7b5", "floor": "#d9a441"}


def svg(findings: Findings) -> str:
    """Bars are medians of the key metric, thin lines the range of the rounds. Shorter is better."""
    panels, top = [], GAP
    for section in findings.sections():
        panels.append(_panel(section, findings.first, top))
        top += HEAD + ROW * len(section.rows) + GAP
    style = "text{font:12px sans-serif;fill:#222}.t{font-weight:bold;font-size:14px}.s{fill:#666}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}">',
            f"<style>{style}</style>",
            f'<rect width="{WIDTH}" height="{top}" fill="white"/>',
            *panels,
            "</svg>\n",
        ]
    )


def _panel(section: Section, first: str, top: float) -> str:
    key = KEY_METRIC[section.part]
    spreads = [row.spreads.get(key) for row in section.rows]
    widest = max((spread.high for spread in spreads if spread), default=0.0) or 1.0
    metric = METRICS[key]
    lines = [
        f'<text class="t" x="{GAP}" y="{top + 16}">{escape(TITLES[section.part])}: {escape(section.case)}</text>',
        f'<text class="s" x="{GAP}" y="{top + 34}">{escape(metric.title)}, median and range; shorter is better</text>',
    ]
    for number, (row, spread) in enumerate(zip(section.rows, spreads, strict=True)):
        y = top + HEAD + number * ROW
        lines.append(f'<text x="{LABELS - 8}" y="{y + 14}" text-anchor="end">{escape(row.contender)}</text>')
        if spread is None:
            lines.append(f'<text class="s" x="{LABELS}" y="{y + 14}">not measured</text>')
            continue
        kind = "first" if row.contender == first else "floor" if row.contender == FLOOR else "other"
        length, low, high = (BARS * max(value, 0.0) / widest for value in (spread.median, spread.low, spread.high))
        lines += _bar(y, length, low, high, COLOURS[kind])
        value = f"{spread.median:,.{metric.digits}f}" + (f"  ({row.ratio:.2f} x)" if row.ratio is not None else "")
        lines.append(f'<text x="{LABELS + max(length, high) + 8:.1f}" y="{y + 14}">{value}</text>')
    return "\n".join(lines)


def _bar(y: float, length: float, low: float, high: float, colour: str) -> Sequence[str]:
    middle = y + ROW / 2 - 1
    return (
        f'<rect x="{LABELS}" y="{y + 3}" width="{length:.1f}" height="{ROW - 8}" fill="{colour}"/>',
        f'<line x1="{LABELS + low:.1f}" x2="{LABELS + high:.1f}" y1="{middle}" y2="{middle}" stroke="#222"/>',
    )
