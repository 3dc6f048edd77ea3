from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.backoff import Backoff


def highest(low: float, high: float) -> float:
    return high


def test_the_ceiling_doubles_up_to_the_cap() -> None:
    backoff = Backoff(base_s=0.5, cap_s=4.0, uniform=highest)
    assert [backoff.next_s() for _ in range(5)] == [0.5, 1.0, 2.0, 4.0, 4.0]


def test_a_success_starts_over() -> None:
    backoff = Backoff(base_s=0.5, cap_s=4.0, uniform=highest)
    backoff.next_s()
    backoff.next_s()
    backoff.reset()
    assert (backoff.attempt, backoff.next_s()) == (0, 0.5)


@given(attempts=st.integers(0, 5_000), base_s=st.floats(0.001, 1.0), factor=st.floats(1.0, 1_000.0))
def test_every_delay_lies_between_nothing_and_the_cap(attempts: int, base_s: float, factor: float) -> None:
    backoff = Backoff(base_s=base_s, cap_s=base_s * factor)
    backoff.attempt = attempts
    assert 0 <= backoff.next_s() <= base_s * factor


@pytest.mark.parametrize(("base_s", "cap_s"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0)])
def test_bounds_that_make_no_sense_are_refused(base_s: float, cap_s: float) -> None:
    with pytest.raises(ValueError, match="base_s"):
        Backoff(base_s=base_s, cap_s=cap_s)
