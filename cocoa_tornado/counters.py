"""The gateway's counters, as plain integers. Counting needs no library; ``metrics.py`` exports them to Prometheus.

No label contains a device id, a user or any part of a token. IOLoop thread only.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

LATENCY_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
SPEECH_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
REAL_TIME_BOUNDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0)


class Histogram:
    """Counts observations by upper bound (seconds). An observation costs a bisection and two additions."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds_s: tuple[float, ...] = LATENCY_BOUNDS_S) -> None:
        self._bounds = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += times
        self._sum += seconds * times

    @property
    def total(self) -> float:
        """The sum of all observations."""
        return self._sum

    @property
    def count(self) -> int:
        """The number of observations."""
        return sum(self._counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """Pairs of upper bound (as text) and number of observations up to it; the last bound is ``+Inf``."""
        total, found = 0, []
        for bound, observed in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += observed
            found.append((bound, float(total)))
        return found


@dataclass(slots=True)
class SpeechCounters:
    """Counters of the transcriber."""

    streams: dict[str, int] = field(default_factory=dict)  # by outcome
    interims: int = 0  # published
    audio_s: float = 0.0  # recognized
    real_time_factor: Histogram = field(default_factory=lambda: Histogram(REAL_TIME_BOUNDS))
    queue: Histogram = field(default_factory=lambda: Histogram(SPEECH_BOUNDS_S))
    delivery: Histogram = field(default_factory=lambda: Histogram(SPEECH_BOUNDS_S))


@dataclass(slots=True)
class CanaryCounters:
    """Counters of this server's canaries (``rules/canaries.py``)."""

    sent: int = 0
    lost: int = 0  # of those, not arrived within the deadline
    late: int = 0  # of the lost ones, arrived since
    leaked: int = 0  # arrivals at a canary that the message was not for
    routed: int = 0  # messages that the router has given to a canary; they are in Counters.routed, too
    seconds: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class Counters:
    """Counters of the web layer and the router."""

    handshakes: dict[str, int] = field(default_factory=dict)  # by outcome
    closed: dict[str, int] = field(default_factory=dict)  # by close code; "lost" if none was exchanged
    routed: int = 0
    unknown_device: int = 0
    handed_over: int = 0  # records, to other workers of this machine
    handed_back: int = 0  # those of them that were returned
    taken_over: int = 0  # records that other workers have handed over
    dropped: dict[str, int] = field(default_factory=dict)  # messages to devices, by reason
    collapsed: int = 0  # replaced by newer ones while they were queued, and in no box
    kept: int = 0  # stored for a device that was not connected
    caught_up: int = 0  # sent from a box
    left_in_box: int = 0  # queued for a connection that ended, and still in the box
    gaps: int = 0  # gap notices sent
    bad_acks: int = 0
    acks_dropped: int = 0  # of devices that left while the mailbox was unavailable
    outbox_overflows: int = 0
    device_messages: int = 0
    device_messages_dropped: int = 0
    audio_ignored: int = 0
    token_requests: dict[str, int] = field(default_factory=dict)  # to the token endpoint, by outcome
    accept_pauses: dict[str, int] = field(default_factory=dict)  # by obstacle (rules/accepting.py)
    bodies_refused: dict[str, int] = field(default_factory=dict)  # request bodies, by reason
    hosts_refused: int = 0  # requests by a name that is not allowed (rules/hosts.py)
    http_connections_shed: dict[str, int] = field(default_factory=dict)  # in favor of others (rules/crowd.py)
    admin_events_lost: int = 0  # that operators watch, and were too slow for
    latency: Histogram = field(default_factory=Histogram)
    loop_lag: Histogram = field(default_factory=Histogram)
    speech: SpeechCounters = field(default_factory=SpeechCounters)
    canary: CanaryCounters = field(default_factory=CanaryCounters)


def count(counter: dict[str, int], label: str, amount: int = 1) -> None:
    """Increment a labelled counter. Labels come from a fixed set (``rules/labels.py``), so counters can't grow
    unbounded."""
    counter[label] = counter.get(label, 0) + amount
