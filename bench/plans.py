"""The plans of the benchmark: a few minutes, or in full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes and durations of the benchmark.

    :ivar rounds: the rounds of each part; other parts are skipped
    :ivar broker_devices: the numbers of devices in the part broker; growth_devices and rest_devices likewise, the
        latter for memory and idle
    :ivar fan_out_devices: the sizes of the group in the part fan-out
    :ivar handshakes: the number of measured handshakes, after a warm-up
    :ivar storm_devices: the number of devices that reconnect at once
    :ivar rate: messages per second for measuring the cost of one
    :ivar growth_rate: likewise, in the part growth
    :ivar most_rate: the maximum rate for half of a contender's saturation
    :ivar backlog: messages written as fast as possible, to saturate a server
    :ivar seconds: the duration of each flow
    :ivar rest_s: the duration of the idle phase; servers ping every 30 s
    """

    rounds: Mapping[str, int]
    broker_devices: tuple[int, ...]
    growth_devices: tuple[int, ...]
    rest_devices: tuple[int, ...]
    fan_out_devices: tuple[int, ...]
    handshakes: int
    storm_devices: int
    rate: float = 4_000.0
    growth_rate: float = 2_000.0
    most_rate: float = 20_000.0
    backlog: int = 40_000
    seconds: float = 3.0
    rest_s: float = 31.0


QUICK = Plan(
    rounds={"broker": 2, "handshakes": 2, "memory": 1},
    broker_devices=(500,),
    growth_devices=(100, 500, 1_000),
    rest_devices=(1_000,),
    fan_out_devices=(1_000,),
    handshakes=1_000,
    storm_devices=1_000,
    rest_s=5.0,
)
FULL = Plan(
    rounds={"broker": 3, "growth": 2, "fan-out": 3, "memory": 1, "idle": 1, "handshakes": 3, "storm": 2},
    broker_devices=(500, 10_000),
    growth_devices=(100, 1_000, 10_000, 50_000),
    rest_devices=(1_000, 20_000),
    fan_out_devices=(1_000, 10_000),
    handshakes=3_000,
    storm_devices=10_000,
)
