"""The outbox: order, both bounds, priorities, what is dropped, and what a socket that is full leaves queued."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.connection.making_room import OutboxLimits
from cocoa_tornado.connection.outbox import MOST_HIGH_IN_A_ROW, MOST_PER_TAKE, Outbox
from cocoa_tornado.connection.queue import CURSOR_BYTES
from cocoa_tornado.rules.addressing import Priority
from cocoa_tornado.rules.box import LaneName, Numbers
from cocoa_tornado.rules.terms import Terms

from .takers import TAKER, FakeTaker

LIMITS = OutboxLimits(max_messages=3, max_bytes=10)
SMALL = OutboxLimits(max_messages=3, max_bytes=1000)
ROOMY = OutboxLimits(max_messages=10_000, max_bytes=1 << 30)
A, B, HIGH, LOW = Terms("a"), Terms("b"), Terms(priority="high"), Terms(priority="low")


def filled(*messages: bytes | tuple[bytes, Terms | None], limits: OutboxLimits = SMALL) -> Outbox:
    """An outbox with these messages, whose timestamps are their positions."""
    outbox = Outbox()
    for stamp, message in enumerate(messages):
        body, terms = (message, None) if isinstance(message, bytes) else message
        assert outbox.push(body, stamp, limits, terms)
    return outbox


def emptied(outbox: Outbox, taker: FakeTaker = TAKER) -> bytes:
    """All that comes out, by as many writes as it takes."""
    data = b""
    while outbox.has_queued:
        data += outbox.take(taker)
        outbox.given_all()
    assert (len(outbox), outbox.waiting_bytes) == (0, 0)
    return data


def held_lists(outbox: Outbox) -> list[object]:
    """What an outbox holds beside numbers, and what all empty ones share."""
    empty = Outbox()
    names = (name for kind in type(outbox).__mro__ for name in getattr(kind, "__slots__", ()))
    return [getattr(outbox, name) for name in names if getattr(outbox, name) is not getattr(empty, name)]


# -- order and bounds


def test_frames_come_out_in_order_and_in_one_piece() -> None:
    outbox = filled(b"a", b"b", b"c")
    assert outbox.take(TAKER) == b"abc"
    assert outbox.given_all() == ([0, 1, 2], 0)
    assert not outbox.has_queued


def test_one_message_too_many_does_not_fit() -> None:
    outbox = filled(b"x", b"x", b"x", limits=LIMITS)
    assert not outbox.push(b"x", 0, LIMITS)
    assert not outbox.push(b"x", 0, LIMITS, HIGH)
    assert len(outbox) == 3


def test_one_byte_too_many_does_not_fit() -> None:
    outbox = filled(b"12345", limits=LIMITS)
    assert not outbox.push(b"123456", 0, LIMITS)
    assert not outbox.push(b"123456", 0, LIMITS, HIGH)
    assert outbox.push(b"12345", 0, LIMITS, HIGH)
    assert not outbox.push(b"1", 0, LIMITS)


def test_a_message_larger_than_the_bound_goes_out_alone() -> None:
    outbox = filled(b"x" * 100, limits=LIMITS)
    assert not outbox.push(b"x", 0, LIMITS)


def test_discard_returns_what_was_dropped_high_messages_first() -> None:
    outbox = filled((b"b", None), (b"c", A), (b"d", HIGH))
    assert [body for body, _, _ in outbox.discard()] == [b"d", b"b", b"c"]
    assert held_lists(outbox) == []


def test_an_outbox_that_has_nothing_queued_has_nothing_to_take() -> None:
    outbox = Outbox()
    assert (outbox.take(TAKER), *outbox.given_all()) == (b"", [], 0)
    assert emptied(filled(b"a")) == b"a"
    assert outbox.take(TAKER) == b""
    assert outbox.discard() == []


def test_outboxes_do_not_mix() -> None:
    one, two = filled(b"one"), filled(b"two")
    assert (one.take(TAKER), two.take(TAKER)) == (b"one", b"two")
    assert (one.given_all(), two.given_all()) == (([0], 0), ([0], 0))


def test_an_empty_outbox_holds_nothing_whatever_was_in_it() -> None:
    messages = ((b"a", None), (b"b", HIGH), (b"c", LOW), (b"d", Terms(expires_ms=9, number=1)), (b"e", A))
    outbox = filled(*messages, limits=ROOMY)
    emptied(outbox)
    assert held_lists(outbox) == []
    outbox = filled(*messages, limits=ROOMY)
    size = len(outbox.take(TAKER))
    assert outbox.given(1, size)[0] == size
    outbox.written()
    assert held_lists(outbox) == []


def test_one_write_takes_no_further_frame_than_the_kernel_keeps() -> None:
    outbox = filled(*[b"x" * 50_000] * 5, limits=ROOMY)
    assert len(outbox.take(TAKER)) == 150_000 >= MOST_PER_TAKE
    assert not outbox.has_taken_all
    assert outbox.given_all() == ([0, 1, 2], 0)
    assert (len(outbox), outbox.waiting_bytes) == (2, 100_000)
    assert len(outbox.take(TAKER)) == 100_000
    assert outbox.has_taken_all


# -- a socket that does not take everything


def test_frames_that_the_socket_has_not_begun_to_take_stay_queued() -> None:
    outbox = filled(b"one", b"two", b"three", limits=ROOMY)
    assert outbox.take(TAKER) == b"onetwothree"
    assert outbox.given(4, 4) == (6, ([0], 0))
    assert (len(outbox), outbox.waiting_bytes) == (2, 8)
    outbox.push(b"four", 3, ROOMY)
    assert outbox.written() == ([1], 0)
    assert outbox.take(TAKER) == b"threefour"
    assert outbox.given_all() == ([2, 3], 0)


def test_a_socket_that_takes_nothing_leaves_everything_queued() -> None:
    outbox = filled(b"one", b"two", limits=ROOMY)
    outbox.take(TAKER)
    assert outbox.given(0, 0) == (0, ([], 0))
    assert outbox.written() == ([], 0)
    assert outbox.take(TAKER) == b"onetwo"


def test_a_frame_that_ends_where_the_socket_stopped_is_complete_and_the_next_has_not_begun() -> None:
    outbox = filled(b"one", b"two", limits=ROOMY)
    outbox.take(TAKER)
    assert outbox.given(3, 3) == (3, ([0], 0))
    assert outbox.written() == ([], 0)
    assert outbox.take(TAKER) == b"two"


def test_what_must_not_change_has_begun() -> None:
    """TLS: a piece that is encrypted must be sent, whichever frames are in it."""
    outbox = filled(b"one", b"two", b"three", b"four", limits=ROOMY)
    outbox.take(TAKER)
    assert outbox.given(1, 7) == (11, ([], 0))
    assert outbox.written() == ([0, 1, 2], 0)
    assert outbox.take(TAKER) == b"four"


def test_what_the_socket_has_begun_to_take_counts_as_waiting_and_the_rest_too() -> None:
    outbox = filled(b"12345", b"12345", limits=LIMITS)
    outbox.take(TAKER)
    outbox.given(1, 1)
    assert (len(outbox), outbox.waiting_bytes) == (2, 10)
    assert not outbox.push(b"1", 0, LIMITS)
    outbox.written()
    assert outbox.push(b"1", 0, LIMITS)


def test_discard_leaves_what_the_socket_has_begun_to_take() -> None:
    outbox = filled(b"one", b"two", (b"three", A), limits=ROOMY)
    outbox.take(TAKER)
    outbox.given(4, 4)
    assert len(outbox.discard()) == 1
    assert (len(outbox), outbox.waiting_bytes, outbox.has_queued) == (1, 3, False)
    assert outbox.written() == ([1], 0)
    assert held_lists(outbox) == []


# -- priority


def test_high_overtakes_everything_that_waits() -> None:
    outbox = filled(b"n1", (b"l1", LOW), (b"h1", HIGH), b"n2", (b"h2", HIGH), limits=ROOMY)
    assert outbox.take(TAKER) == b"h1h2n1l1n2"
    assert outbox.given_all() == ([2, 4, 0, 1, 3], 0)


def test_a_high_message_while_a_thousand_normal_ones_wait_is_the_next_frame_given_to_the_socket() -> None:
    frame = b"x" * 500
    outbox = filled(*[frame] * 1000, limits=ROOMY)
    outbox.take(TAKER)
    kept, _ = outbox.given(700, 700)
    assert kept == 1000
    outbox.push(b"high", 0, ROOMY, HIGH)
    outbox.written()
    assert outbox.take(TAKER).startswith(b"high" + frame)


def test_after_eight_high_ones_a_normal_one_that_waits_goes_first() -> None:
    outbox = filled(b"N", b"N", *[(b"h", HIGH)] * 20, limits=ROOMY)
    assert MOST_HIGH_IN_A_ROW == 8
    assert outbox.take(TAKER) == b"hhhhhhhhNhhhhhhhhNhhhh"


def test_the_eight_are_counted_over_several_writes() -> None:
    outbox = filled(b"N", *[(b"h", HIGH)] * 5, limits=ROOMY)
    assert outbox.take(TAKER) == b"hhhhhN"
    outbox.given(5, 5)
    outbox.written()
    for _ in range(5):
        outbox.push(b"h", 0, ROOMY, HIGH)
    assert outbox.take(TAKER) == b"hhhNhh"
    outbox.given(2, 2)  # those that stay queued do not count
    outbox.written()
    assert outbox.take(TAKER) == b"hNhh"


def test_a_normal_one_ends_the_eight_though_no_high_one_is_left_then() -> None:
    outbox = filled(b"N", b"N", *[(b"h", HIGH)] * 8, limits=ROOMY)
    assert outbox.take(TAKER) == b"hhhhhhhhNN"
    outbox.given(8, 8)
    outbox.written()
    assert outbox.take(TAKER) == b"NN"
    outbox.given(1, 1)
    outbox.written()
    for _ in range(9):
        outbox.push(b"h", 0, ROOMY, HIGH)
    assert outbox.take(TAKER) == b"hhhhhhhhNh"


def test_a_normal_one_ends_the_eight_also_if_it_fills_a_write_by_itself() -> None:
    large = b"N" * MOST_PER_TAKE
    outbox = filled(large, large, *[(b"h", HIGH)] * 8, limits=ROOMY)
    outbox.take(TAKER)
    outbox.given(8, 8)
    outbox.written()
    assert outbox.take(TAKER) == large
    assert outbox.given_all() == ([0], 0)
    for _ in range(9):
        outbox.push(b"h", 0, ROOMY, HIGH)
    assert outbox.take(TAKER) == b"hhhhhhhh" + large
    assert not outbox.has_taken_all
    outbox.given_all()
    assert outbox.take(TAKER) == b"h"
    assert outbox.has_taken_all


def test_high_ones_that_went_while_no_normal_one_waited_do_not_count() -> None:
    outbox = filled(*[(b"h", HIGH)] * 12, limits=ROOMY)
    assert outbox.take(TAKER) == b"h" * 12
    outbox.given(6, 6)
    outbox.written()
    outbox.push(b"N", 0, ROOMY)
    for _ in range(3):
        outbox.push(b"h", 0, ROOMY, HIGH)
    assert outbox.take(TAKER) == b"hhhhhhhhNh"


# -- making room


def test_a_newer_interim_replaces_an_older_one_of_its_session() -> None:
    outbox = filled((b"a1", A), (b"b1", B), b"x")
    assert not outbox.push(b"b2", 0, SMALL, B)
    assert outbox.squeeze_in(b"b2", 0, SMALL, B, may_drop_low=True)[:3] == (True, 1, 0)
    assert emptied(outbox) == b"a1xb2"


def test_an_interim_without_room_is_dropped_and_nothing_else_is() -> None:
    outbox = filled(b"x", (b"y", LOW), b"z")
    assert outbox.squeeze_in(b"a1", 0, SMALL, A, may_drop_low=True)[:3] == (False, 1, 0)
    assert emptied(outbox) == b"xyz"


def test_a_message_drops_interims_the_oldest_first_and_no_more_than_it_needs() -> None:
    outbox = filled((b"a1", A), b"x", (b"b1", Terms("b", "high")))
    assert outbox.squeeze_in(b"y", 0, SMALL, may_drop_low=True)[:3] == (True, 1, 0)
    assert outbox.squeeze_in(b"z", 0, SMALL, may_drop_low=True)[:3] == (True, 1, 0)
    assert outbox.squeeze_in(b"w", 0, SMALL, may_drop_low=True)[:3] == (False, 0, 0)
    assert emptied(outbox) == b"xyz"


def test_bytes_are_made_room_for_as_well() -> None:
    outbox = filled((b"a" * 400, A), (b"b" * 400, LOW))
    assert outbox.squeeze_in(b"x" * 900, 0, SMALL, may_drop_low=True)[:3] == (True, 1, 1)
    assert outbox.waiting_bytes == 900


def test_low_ones_are_dropped_after_interims_the_oldest_first_and_no_more_than_needed() -> None:
    outbox = filled((b"l1", LOW), (b"l2", LOW), (b"a1", A))
    assert outbox.squeeze_in(b"x", 0, SMALL, may_drop_low=True)[:3] == (True, 1, 0)
    assert outbox.squeeze_in(b"h", 0, SMALL, HIGH, may_drop_low=True)[:3] == (True, 0, 1)
    assert emptied(outbox) == b"hl2x"


def test_a_low_one_drops_older_ones_of_its_kind_and_is_dropped_where_all_others_are_not() -> None:
    outbox = filled((b"l1", LOW), b"x", b"y")
    assert outbox.squeeze_in(b"l2", 0, SMALL, LOW, may_drop_low=True)[:3] == (True, 0, 1)
    assert emptied(outbox) == b"xyl2"
    outbox = filled(b"x", b"y", (b"h", HIGH))
    assert outbox.squeeze_in(b"l2", 0, SMALL, LOW, may_drop_low=True)[:3] == (False, 0, 1)
    assert emptied(outbox) == b"hxy"


def test_nothing_is_dropped_for_a_message_that_does_not_fit_even_so() -> None:
    outbox = filled(b"x" * 500, (b"l" * 100, LOW), (b"a" * 100, A))
    assert outbox.squeeze_in(b"y" * 600, 0, SMALL, may_drop_low=True)[:3] == (False, 0, 0)
    assert outbox.squeeze_in(b"l" * 600, 0, SMALL, LOW, may_drop_low=True)[:3] == (False, 0, 1)
    assert outbox.squeeze_in(b"a" * 600, 0, SMALL, A, may_drop_low=True)[:3] == (False, 1, 0)
    assert len(outbox) == 3


def test_low_ones_stay_where_a_mailbox_keeps_what_does_not_fit() -> None:
    outbox = filled((b"l1", LOW), (b"l2", LOW), (b"a1", A))
    assert outbox.squeeze_in(b"x", 0, SMALL, may_drop_low=False)[:3] == (True, 1, 0)
    assert outbox.squeeze_in(b"y", 0, SMALL, LOW, may_drop_low=False)[:3] == (False, 0, 0)
    assert emptied(outbox) == b"l1l2x"


# -- ttl and collapse_key


def test_what_has_expired_while_it_was_queued_is_not_sent() -> None:
    taker, soon, later = FakeTaker(1000.0), Terms(expires_ms=1000), Terms(priority="high", expires_ms=1001)
    outbox = filled(b"x", (b"soon", soon), (b"later", later), limits=ROOMY)
    assert outbox.take(taker) == b"laterxsoon"
    outbox.given(0, 0)
    outbox.written()
    taker.now = 1000.5
    assert outbox.take(taker) == b"laterx"
    outbox.given(0, 0)
    outbox.written()
    taker.now = 1001.5
    assert outbox.take(taker) == b"x"
    assert taker.expired == [soon, later]
    outbox.given_all()
    assert held_lists(outbox) == []


def test_whichever_expires_first_is_not_sent_then_in_whatever_order_they_were_queued() -> None:
    for order in ((1, 5, 10), (10, 5, 1), (5, 1, 10)):
        taker = FakeTaker(0.0)
        outbox = filled(*[(b"%d " % ms, Terms(expires_ms=ms)) for ms in order], limits=ROOMY)
        for now_ms, left in ((0.0, {1, 5, 10}), (2.0, {5, 10}), (7.0, {10})):
            taker.now = now_ms
            assert {int(each) for each in outbox.take(taker).split()} == left
            outbox.given(0, 0)
            outbox.written()


def test_an_outbox_whose_messages_have_all_expired_has_nothing_to_take() -> None:
    outbox = filled((b"x", Terms(expires_ms=5)), (b"h", Terms(priority="high", expires_ms=5)))
    assert outbox.take(FakeTaker(6.0)) == b""
    assert held_lists(outbox) == []


def test_a_newer_message_replaces_the_older_ones_with_its_key_whatever_their_priority() -> None:
    def keyed(priority: str, key: str = "k") -> Terms:
        return Terms(priority=priority, collapse_key=key)  # type: ignore[arg-type]  # one of the three

    older = ((b"1", keyed("normal")), (b"2", keyed("high")), (b"3", keyed("low")))
    outbox = filled(*older, (b"4", keyed("low", "other")), limits=ROOMY)
    assert len(outbox.collapse("k")) == 3
    assert len(outbox.collapse("k")) == 0
    outbox.push(b"5", 0, SMALL, keyed("normal"))
    assert emptied(outbox) == b"45"


def test_stored_messages_that_are_not_older_are_not_replaced_and_those_of_earlier_epochs_are() -> None:
    def keyed(number: int, priority: Priority = "normal") -> Terms:
        return Terms(priority=priority, collapse_key="k", number=number)

    outbox = filled(
        (b"4", keyed(4)), (b"5", keyed(5)), (b"2", keyed(2, "high")), (b"3", keyed(3, "high")), limits=ROOMY
    )
    outbox.push(b"transient", 0, ROOMY, keyed(0))
    assert len(outbox.collapse("k", Numbers(5, 3))) == 1
    assert [body for body, _, _ in outbox.discard()] == [b"3", b"5"]


def test_what_the_socket_has_begun_to_take_is_not_replaced() -> None:
    outbox = filled((b"one", Terms(collapse_key="k")))
    outbox.take(TAKER)
    outbox.given(1, 1)
    assert len(outbox.collapse("k")) == 0


# -- messages whose frames are made when they are taken


def numbered(number: int, high: bool = False) -> Terms:
    return Terms(priority="high" if high else "normal", number=number)


def with_number(payload: bytes, lane: LaneName, number: int) -> bytes | None:
    return None if payload == b"skip" else b"%s:%s%d " % (payload, lane[:1].encode(), number)


def test_the_frame_of_a_numbered_message_is_made_when_it_is_taken_and_once_more_if_it_stays_queued() -> None:
    taker = FakeTaker(make=with_number)
    outbox = filled((b"a", numbered(1)), (b"b", numbered(2)), (b"h", numbered(7, True)), b"x", limits=ROOMY)
    assert outbox.take(taker) == b"h:h7 a:n1 b:n2 x"
    assert outbox.given(6, 6) == (10, ([2], 1))
    assert outbox.written() == ([0], 1)
    taker.framed.clear()
    assert outbox.take(taker) == b"b:n2 x"
    assert taker.framed == [("normal", 2)]
    assert outbox.given_all() == ([1, 3], 1)


def test_a_numbered_message_counts_for_its_payload_and_its_cursor() -> None:
    outbox = filled((b"1234", numbered(1)), limits=ROOMY)
    assert outbox.waiting_bytes == 4 + CURSOR_BYTES
    outbox.take(FakeTaker(make=with_number))
    outbox.given(1, 1)
    assert outbox.waiting_bytes == 4 + CURSOR_BYTES
    outbox.written()
    assert outbox.waiting_bytes == 0


def test_a_message_that_is_not_stored_has_no_number_to_report() -> None:
    outbox = filled((b"a", numbered(0)))
    assert outbox.take(FakeTaker(make=with_number)) == b"a:n0 "
    assert outbox.given_all() == ([0], 0)


def test_a_message_that_is_skipped_is_reported_in_its_turn_and_is_not_in_the_write() -> None:
    taker = FakeTaker(make=with_number)
    outbox = filled((b"skip", numbered(1)), (b"a", numbered(2)), (b"skip", numbered(3)), limits=ROOMY)
    assert outbox.take(taker) == b"a:n2 "
    assert outbox.given(2, 2) == (5, ([], 1))
    assert outbox.written() == ([1], 1)
    assert (outbox.take(taker), outbox.has_queued) == (b"", True)  # there is nothing else
    assert outbox.given_all() == ([], 1)
    assert held_lists(outbox) == []


def test_a_message_that_is_not_stored_does_not_count_among_those_with_a_number_while_it_is_half_written() -> None:
    outbox = filled((b"a", numbered(0)), (b"b", numbered(1)), limits=ROOMY)
    assert outbox.take(FakeTaker(make=with_number)) == b"a:n0 b:n1 "
    outbox.given(1, 1)
    assert (outbox.begun, outbox.begun_numbered) == (1, 0)


# -- any sequence of events


@given(
    st.lists(
        st.tuples(st.sampled_from([None, None, A, B]), st.integers(1, 400), st.sampled_from(["push", "push", "take"])),
        max_size=60,
    )
)
def test_finals_are_neither_lost_nor_overtaken_whatever_interims_come_between(
    steps: list[tuple[Terms | None, int, str]],
) -> None:
    outbox, accepted, left = Outbox(), list[int](), list[int]()
    for number, (terms, size, what) in enumerate(steps):
        if what == "take":
            outbox.take(TAKER)
            left += outbox.given_all()[0]
            continue
        queued = outbox.squeeze_in(bytes(size), number, SMALL, terms, may_drop_low=True).queued
        if queued and terms is None:
            accepted.append(number)
        assert len(outbox) <= SMALL.max_messages
        assert outbox.waiting_bytes <= SMALL.max_bytes
    outbox.take(TAKER)
    left += outbox.given_all()[0]
    assert left == sorted(left)
    assert [number for number in left if steps[number][0] is None] == accepted


@pytest.mark.parametrize(
    "messages",
    [
        (b"a", b"b"),
        ((b"a", HIGH), (b"b", HIGH)),
        (b"a", (b"h", HIGH), (b"l", LOW)),
        ((b"a", numbered(1)), (b"skip", numbered(2)), (b"c", numbered(3))),
        ((b"a", numbered(1)), (b"skip", numbered(2)), (b"h", numbered(1, True)), (b"e", Terms(expires_ms=9))),
    ],
    ids=["one lane", "high", "both lanes", "numbered", "all"],
)
def test_what_was_taken_is_known_until_it_is_given(messages: tuple[bytes | tuple[bytes, Terms | None], ...]) -> None:
    """In the order of writing, without what was skipped; and as many of them as a socket has begun to take."""
    taker = FakeTaker(make=with_number)
    outbox = filled(*messages, limits=ROOMY)
    assert outbox.take(taker)
    taken = outbox.taken()
    sizes = [each.size for each in taken]
    bodies = [each.waiting[0] for each in taken]
    _, (stamps, _) = outbox.given(sizes[0] + 1, sizes[0] + 1)
    assert len(stamps) + outbox.begun == 2
    outbox.written()
    rest = outbox.take(taker)
    assert [each.waiting[0] for each in outbox.taken()] == bodies[2:]
    assert sum(each.size for each in outbox.taken()) == len(rest)
    if rest:
        outbox.given_all()
    assert outbox.taken() == []
