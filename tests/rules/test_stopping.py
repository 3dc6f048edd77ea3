"""One order to stop, and a second one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.stopping import REPEAT_S, meaning_of_signal


@given(st.floats(0, 1e9))
def test_the_first_signal_stops(now: float) -> None:
    assert meaning_of_signal(None, now) == "stop"


@given(st.floats(0, 1e6), st.floats(0, 0.999))
def test_signals_within_a_second_of_the_first_are_the_same_order(first: float, after: float) -> None:
    assert meaning_of_signal(first, first + after * REPEAT_S) == "repeat"


@given(st.floats(0, 1e6), st.floats(1.001, 1e6))
def test_a_later_signal_leaves_at_once(first: float, after: float) -> None:
    assert meaning_of_signal(first, first + after * REPEAT_S) == "leave"
