"""The outbox: order, and both bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.outbox import Outbox, OutboxLimits

LIMITS = OutboxLimits(max_messages=3, max_bytes=10)


def test_frames_come_out_in_order_and_in_one_piece() -> None:
    outbox = Outbox()
    for stamp, frame in enumerate([b"a", b"b", b"c"]):
        assert outbox.push(frame, stamp, LIMITS)
    assert outbox.take() == (b"abc", [0, 1, 2])
    assert not outbox.has_queued


def test_one_message_too_many_does_not_fit() -> None:
    outbox = Outbox()
    assert all(outbox.push(b"x", 0, LIMITS) for _ in range(3))
    assert not outbox.push(b"x", 0, LIMITS)
    assert len(outbox) == 3


def test_one_byte_too_many_does_not_fit() -> None:
    outbox = Outbox()
    assert outbox.push(b"12345", 0, LIMITS)
    assert not outbox.push(b"123456", 0, LIMITS)
    assert outbox.push(b"12345", 0, LIMITS)


def test_what_the_socket_has_not_taken_still_counts() -> None:
    outbox = Outbox()
    outbox.push(b"1234567890", 0, LIMITS)
    outbox.take()
    assert not outbox.push(b"1", 0, LIMITS)
    outbox.written()
    assert outbox.push(b"1", 0, LIMITS)


def test_a_message_larger_than_the_bound_goes_out_alone() -> None:
    outbox = Outbox()
    assert outbox.push(b"x" * 100, 0, LIMITS)
    assert not outbox.push(b"x", 0, LIMITS)


def test_discard_tells_how_much_was_dropped() -> None:
    outbox = Outbox()
    outbox.push(b"a", 0, LIMITS)
    outbox.take()
    outbox.push(b"b", 0, LIMITS)
    assert outbox.discard() == 1
    assert len(outbox) == 1


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=6), st.sampled_from(["take", "written"])), max_size=60))
def test_the_bounds_hold_and_nothing_is_reordered_whatever_happens(steps: list[bytes | str]) -> None:
    outbox, accepted, taken = Outbox(), b"", b""
    for step in steps:
        if isinstance(step, bytes):
            if outbox.push(step, 0, LIMITS):
                accepted += step
        elif step == "written":
            outbox.written()
        elif outbox.has_queued:
            taken += outbox.take()[0]
        assert len(outbox) <= LIMITS.max_messages
        assert outbox.waiting_bytes <= LIMITS.max_bytes
    if outbox.has_queued:
        taken += outbox.take()[0]
    assert taken == accepted
