"""Plain counters and histograms."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.counters import LATENCY_BOUNDS_S, Counters, Histogram, count


def test_a_label_is_counted_from_nothing() -> None:
    counters = Counters()
    count(counters.dropped, "fault")
    count(counters.dropped, "overflow", 3)
    count(counters.dropped, "fault")
    assert counters.dropped == {"fault": 2, "overflow": 3}


@given(st.lists(st.floats(min_value=0, max_value=1000)))
def test_a_histogram_counts_every_observation_in_every_bucket_that_it_fits(seconds: list[float]) -> None:
    histogram = Histogram()
    for value in seconds:
        histogram.observe(value)
    buckets = dict(histogram.cumulative())
    for bound in LATENCY_BOUNDS_S:
        assert buckets[str(bound)] == sum(value <= bound for value in seconds)
    assert buckets["+Inf"] == len(seconds)
    assert math.isclose(histogram.total, math.fsum(seconds), abs_tol=1e-6)
