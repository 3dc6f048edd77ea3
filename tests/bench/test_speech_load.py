"""The bench of messages beside speech: that it would see what it is there to see, and a short run of it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.speech_load import PING_INTERVAL_S, Phase, percentile, table, violations

ROOT = Path(__file__).parents[2]


def good() -> Phase:
    return Phase("speech", 2, [0.001, 0.003], [PING_INTERVAL_S], {"200": 3}, 9.0, 3.0)


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([5, 1, 3], 0.5) == 3
    assert percentile([5, 1, 3], 0.99) == 5
    assert percentile([5], 0.5) == 5
    assert math.isnan(percentile([], 0.5))


@given(st.lists(st.floats(0, 9), min_size=1), st.floats(0.01, 1))
def test_at_least_its_share_of_all_values_is_not_above_a_percentile(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


def test_a_run_in_which_all_went_well_has_no_violations() -> None:
    assert violations([good()], 0) == []


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"published": 5}, "3 records did not arrive"),
        ({"ping_gaps_s": [PING_INTERVAL_S + 1.5]}, "a ping came"),
        ({"ping_gaps_s": []}, "nothing was measured"),
        ({"published": 0, "latencies_s": []}, "nothing was measured"),
        ({"answers": {"200": 3, "502": 1}}, "not recognised"),
        ({"answers": {"429": 3}}, "not recognised"),
    ],
)
def test_what_does_not_hold_is_named(fields: dict[str, object], problem: str) -> None:
    phase = good()
    for name, value in fields.items():
        setattr(phase, name, value)

    [found] = violations([phase], 0)
    assert problem in found


def test_a_connection_that_the_gateway_ended_is_a_violation() -> None:
    assert violations([good()], 2) == ["connections that the gateway ended: 2"]


def test_the_table_is_in_milliseconds_and_its_columns_are_aligned() -> None:
    head, line = table([good()])

    assert line.split() == ["speech", "1.0", "3.0", "3.0", "2", "1", "3.00", "3", "3.00"]
    assert len(head) == len(line)


@pytest.mark.nightly
def test_a_short_run_measures_every_phase() -> None:
    command = [sys.executable, "-m", "bench.speech_load", "--devices", "20", "--streams", "2", "--workers", "2"]
    finished = subprocess.run(
        [*command, "--seconds", "10", "--rate", "50"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )

    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.splitlines()[-1] == "verdict: nothing lost, no device cut off, pings on time"
    assert "2 streams, flat out" in finished.stdout
