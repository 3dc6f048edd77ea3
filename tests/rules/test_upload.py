"""The clock of an upload, and its place when another one of its device comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.upload import IDLE, SILENT_S, SLOW, Room, UploadClock, make_room


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


def test_a_stream_yields_its_place_once_it_has_been_silent_for_two_seconds() -> None:
    assert make_room([], 1, 100.0, 5.0) == Room(())
    assert make_room([None], 1, 100.0, 5.0) == Room((), 5.0)
    assert make_room([99.5], 1, 100.0, 5.0) == Room((), 1.5)
    assert make_room([98.0], 1, 100.0, 5.0) == Room((0,))
    assert make_room([None, 99.0, 90.0], 3, 100.0, 5.0) == Room((2,))
    assert make_room([95.0], 2, 100.0, 5.0) == Room(())


@given(st.lists(st.none() | st.floats(0, 100), max_size=6), st.integers(1, 4), st.floats(100, 110))
def test_no_more_yield_than_must_and_only_silent_ones(silent_since: list[float | None], limit: int, now: float) -> None:
    room = make_room(silent_since, limit, now, 5.0)
    staying = [since for index, since in enumerate(silent_since) if index not in room.yielding]
    yielding = [silent_since[index] for index in room.yielding]
    assert all(since is not None and now - since >= SILENT_S for since in yielding)
    if room.retry_after_s is None:
        assert len(staying) < limit
        assert not yielding or len(staying) == limit - 1
        assert all(other is None or since is None or since <= other for since in yielding for other in staying)
    else:
        assert yielding == []
        assert len(staying) >= limit
        assert room.retry_after_s > 0
