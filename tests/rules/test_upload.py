"""The clock of an upload."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.upload import IDLE, SLOW, UploadClock


def test_an_upload_without_a_byte_is_idle() -> None:
    assert UploadClock(100.0, 30.0, 150.0).deadline == (130.0, IDLE)


def test_every_byte_puts_off_the_end_of_patience() -> None:
    clock = UploadClock(100.0, 30.0, 150.0)
    clock.received(110.0)
    clock.waits(110.0)
    assert clock.deadline == (140.0, IDLE)


def test_a_drip_is_slow_in_the_end() -> None:
    clock = UploadClock(100.0, 30.0, 50.0)
    for now in (110.0, 125.0, 140.0):
        clock.received(now)
        clock.waits(now)
    assert clock.deadline == (150.0, SLOW)


def test_the_time_in_which_the_gateway_holds_the_device_back_does_not_count() -> None:
    clock = UploadClock(100.0, 30.0, 50.0)
    clock.received(110.0)
    clock.waits(1110.0)
    assert clock.deadline == (1140.0, IDLE)
    clock.received(1139.0)
    clock.waits(1139.0)
    assert clock.deadline == (1150.0, SLOW)


@given(
    st.lists(st.tuples(st.floats(0.001, 10), st.floats(0, 1000)), max_size=30), st.floats(0.1, 60), st.floats(0.1, 200)
)
def test_a_deadline_is_never_later_than_either_patience_allows(
    pieces: list[tuple[float, float]], idle_s: float, total_s: float
) -> None:
    now, waited = 0.0, 0.0
    clock = UploadClock(now, idle_s, total_s)
    for wait_s, held_s in pieces:
        now += wait_s
        waited += wait_s
        clock.received(now)
        now += held_s
        clock.waits(now)
    left = min(idle_s, total_s - waited)
    assert abs(clock.deadline.at - now - left) < 1e-6
