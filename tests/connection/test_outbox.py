"""The outbox: order, and both bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.connection.outbox import Outbox, OutboxLimits

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
    outbox.in_flight(1, 10)
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
    outbox.in_flight(1, 1)
    outbox.push(b"b", 0, LIMITS)
    assert outbox.discard() == (1, 0)
    assert len(outbox) == 1


def test_an_outbox_that_has_nothing_queued_has_nothing_to_take() -> None:
    outbox = Outbox()
    assert outbox.take() == (b"", ())
    outbox.push(b"a", 0, LIMITS)
    outbox.take()
    assert outbox.take() == (b"", ())
    assert outbox.discard() == (0, 0)


def test_outboxes_do_not_mix() -> None:
    one, two = Outbox(), Outbox()
    one.push(b"one", 0, LIMITS)
    two.push(b"two", 0, LIMITS)
    assert (one.take(), two.take()) == ((b"one", [0]), (b"two", [0]))
    assert [one.has_queued, two.has_queued] == [False, False]


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=6), st.sampled_from(["take", "written"])), max_size=60))
def test_the_bounds_hold_and_nothing_is_reordered_whatever_happens(steps: list[bytes | str]) -> None:
    outbox, accepted, taken, in_flight = Outbox(), b"", b"", False
    for step in steps:
        if isinstance(step, bytes):
            if outbox.push(step, 0, LIMITS):
                accepted += step
        elif step == "written":
            outbox.written()
            in_flight = False
        elif not in_flight:
            data, stamps = outbox.take()
            taken, in_flight = taken + data, bool(data)
            outbox.in_flight(len(stamps), len(data))
        assert len(outbox) <= LIMITS.max_messages
        assert outbox.waiting_bytes <= LIMITS.max_bytes
    if outbox.has_queued:
        taken += outbox.take()[0]
    assert taken == accepted


SMALL = OutboxLimits(max_messages=3, max_bytes=1000)


def filled(*frames: tuple[bytes, str]) -> Outbox:
    outbox = Outbox()
    for frame, interim_of in frames:
        assert outbox.push(frame, 0, SMALL, interim_of)
    return outbox


def test_a_newer_interim_replaces_an_older_one_of_its_session() -> None:
    outbox = filled((b"a1", "a"), (b"b1", "b"), (b"x", ""))
    assert not outbox.push(b"b2", 0, SMALL, "b")
    assert outbox.squeeze_in(b"b2", 0, SMALL, "b") == (True, 1)
    assert outbox.take()[0] == b"a1xb2"


def test_an_interim_without_room_is_dropped_and_nothing_else_is() -> None:
    outbox = filled((b"x", ""), (b"y", ""), (b"z", ""))
    assert outbox.squeeze_in(b"a1", 0, SMALL, "a") == (False, 1)
    assert outbox.take()[0] == b"xyz"


def test_a_message_drops_interims_the_oldest_first_and_no_more_than_it_needs() -> None:
    outbox = filled((b"a1", "a"), (b"x", ""), (b"b1", "b"))
    assert outbox.squeeze_in(b"y", 0, SMALL) == (True, 1)
    assert outbox.squeeze_in(b"z", 0, SMALL) == (True, 1)
    assert outbox.squeeze_in(b"w", 0, SMALL) == (False, 0)
    assert outbox.take()[0] == b"xyz"


def test_bytes_are_made_room_for_as_well() -> None:
    outbox = filled((b"a" * 400, "a"), (b"b" * 400, "b"))
    assert outbox.squeeze_in(b"x" * 900, 0, SMALL) == (True, 2)
    assert outbox.waiting_bytes == 900


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "", "a", "b"]), st.integers(1, 400), st.sampled_from(["push", "push", "take"])),
        max_size=60,
    )
)
def test_finals_are_neither_lost_nor_overtaken_whatever_interims_come_between(
    steps: list[tuple[str, int, str]],
) -> None:
    outbox, accepted, left = Outbox(), list[int](), list[int]()
    for number, (session, size, what) in enumerate(steps):
        if what == "take":
            left += outbox.take()[1] if outbox.has_queued else []
            outbox.written()
            continue
        frame = bytes(size)
        queued = outbox.push(frame, number, SMALL, session) or outbox.squeeze_in(frame, number, SMALL, session).queued
        if queued and not session:
            accepted.append(number)
        assert len(outbox) <= SMALL.max_messages
        assert outbox.waiting_bytes <= SMALL.max_bytes
    left += outbox.take()[1] if outbox.has_queued else []
    assert left == sorted(left)
    assert [number for number in left if not steps[number][0]] == accepted
