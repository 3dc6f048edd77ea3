"""Whether a stream's audio keeps up with the time that a worker gives it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.pace import BEHIND_S, Pace

REPORT_S = 0.25


def behind_after(pace: Pace, until: float, audio_per_s: float) -> float | None:
    """When a stream is found behind whose worker waits for it all the time but for the audio that comes."""
    for step in range(1, int(until / REPORT_S) + 1):
        now = step * REPORT_S
        pace.report(now, audio_per_s * now, now)
        at = pace.behind_at(is_waiting=False)
        if at is not None:
            return at
    return None


@pytest.mark.parametrize(
    ("audio_per_s", "at"), [(1.0, None), (1.5, None), (0.9, 20.0), (0.5, 4.0), (0.1, 2.25), (0.0, 2.0)]
)
def test_a_stream_is_behind_as_soon_as_it_lags_by_two_seconds(audio_per_s: float, at: float | None) -> None:
    found = behind_after(Pace(0.0), 60.0, audio_per_s)
    assert found == (None if at is None else pytest.approx(at, abs=REPORT_S))


def test_time_in_which_the_worker_has_enough_to_do_is_not_the_streams() -> None:
    pace = Pace(0.0)
    pace.report(50.0, 1.0, 0.5)
    assert pace.behind_at(is_waiting=False) is None
    assert pace.behind_at(is_waiting=True) == 50.0 + BEHIND_S


def test_audio_that_came_early_is_no_credit() -> None:
    pace = Pace(0.0)
    pace.report(1.0, 59.0, 0.0)
    assert pace.behind_at(is_waiting=True) == 1.0 + BEHIND_S


def test_a_pause_is_made_up_for_by_the_audio_behind_it() -> None:
    pace = Pace(0.0)
    pace.report(1.5, 0.0, 1.5)
    assert pace.behind_at(is_waiting=True) == 1.5 + 0.5
    pace.report(1.6, 1.6, 1.5)
    assert pace.behind_at(is_waiting=True) == 1.6 + BEHIND_S


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5), st.floats(0, 1)), max_size=40))
def test_no_stream_is_behind_whose_audio_covers_every_wait(reports: list[tuple[float, float, float]]) -> None:
    pace, now, audio_s, waited_s = Pace(0.0), 0.0, 0.0, 0.0
    for audio, busy, share in reports:
        audio_s += audio
        waited_s += audio * share
        now += audio + busy
        pace.report(now, audio_s, waited_s)
        assert pace.behind_at(is_waiting=False) is None
        at = pace.behind_at(is_waiting=True)
        assert at is not None
        assert at == pytest.approx(now + BEHIND_S)
