"""The metrics about the workers themselves, as Prometheus text. Pure."""

from __future__ import annotations

from collections.abc import Mapping


def parents_metrics(count: int, missing: int, restarts: Mapping[str, int] | None = None) -> str:
    """How many workers there are, and how many have not answered.

    :param restarts: by reason, how often workers were started again; None if the parent has not answered
    """
    silent = "Workers that have not answered; only their latest counters are in the sums"
    text = _family("cocoa_workers", "gauge", "Workers under the parent", {"": count})
    text += _family("cocoa_workers_missing", "gauge", silent, {"": missing})
    if restarts is not None:
        by_reason = {f'{{reason="{reason}"}}': count for reason, count in sorted(restarts.items())}
        name = "cocoa_worker_restarts"
        text += _family(f"{name}_total", "counter", "Workers that have ended and were started again", by_reason)
    return text


def _family(name: str, kind: str, about: str, samples: Mapping[str, int]) -> str:
    lines = [f"{name}{labels} {float(value)}" for labels, value in samples.items()]
    return "\n".join([f"# HELP {name} {about}", f"# TYPE {name} {kind}", *lines, ""])
