"""Evaluates the servers' logs of a rolling restart: when each has answered handshakes, and what it warned of."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Self


class Handshakes:
    """:param answers: for each server or worker, when it has answered one, in seconds since 1970 and in order, and the
    outcome; ``accepted``: it was 101
    """

    def __init__(self, answers: dict[str, list[tuple[float, str]]]) -> None:
        self._answers = {name: sorted(found) for name, found in answers.items()}

    @classmethod
    def read(cls, logs: Iterable[Path]) -> Self:
        """From access logs in JSON."""
        answers: dict[str, list[tuple[float, str]]] = {}
        for path in logs:
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                if '"path":"/ws"' in line:
                    entry = json.loads(line)
                    at = datetime.fromisoformat(entry["timestamp"]).timestamp()
                    outcome = "accepted" if entry["status"] == 101 else f"{entry['status']} {entry.get('outcome', '')}"
                    answers.setdefault(entry.get("worker", path.parent.name), []).append((at, outcome))
        return cls(answers)

    def busiest(self, since: float, until: float, window_s: float) -> int:
        """The most that one server has answered in any window between these times."""
        times = ([at for at, _ in found if since <= at < until] for found in self._answers.values())
        return max((most(found, window_s) for found in times), default=0)

    def refusals(self, since: float, until: float) -> dict[str, int]:
        """How many were not accepted between these times, by outcome."""
        found = [outcome for answers in self._answers.values() for at, outcome in answers if since <= at < until]
        return dict(Counter(outcome for outcome in found if outcome != "accepted"))


def most(times: Sequence[float], window_s: float) -> int:
    """The most of these ordered times that lie in any window."""
    return max((bisect_left(times, at + window_s) - index for index, at in enumerate(times)), default=0)


def warnings(logs: Iterable[Path]) -> Counter[str]:
    """How often each event was logged as a warning."""
    found: Counter[str] = Counter()
    for path in logs:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if '"level":"warning"' in line:
                found[json.loads(line)["event"]] += 1
    return found
