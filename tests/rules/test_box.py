"""The arithmetic of a device's box."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.box import (
    LANES,
    NO_CURSOR_YET,
    Box,
    BoxLimits,
    Epochs,
    Lane,
    LaneName,
    Mark,
    Marks,
    Numbers,
    Position,
    marked,
    surplus,
    with_marks,
)
from cocoa_tornado.rules.retracted import RetractedRun

FIVE = Lane(last=5)
NUMBERED = Epochs(current=3)
NAMED = Epochs(current=3, names=(0, 7, 5, 3))
FIRST = Epochs()


def both(lane: Lane, epochs: Epochs = FIRST) -> Box:
    """A box with two equal lanes."""
    return Box(lane, lane, epochs)


def found(lane: Lane, epochs: Epochs, number: int, epoch: int) -> int | None:
    """What a number stands for, which both lanes agree on."""
    numbers = both(lane, epochs).find(Position(number, epoch, number))
    assert numbers is None or numbers.normal == numbers.high
    return None if numbers is None else numbers.normal


# -- where a connection begins


def test_a_device_that_uses_no_cursors_begins_after_what_was_written() -> None:
    assert FIVE.start(None) == 0
    assert FIVE.write(3).start(None) == 3
    assert Box(FIVE.write(3), FIVE.write(1)).start(None) == Numbers(3, 1)


def test_a_device_that_has_acknowledged_begins_there_though_more_was_written() -> None:
    assert FIVE.write(5).acknowledge(2).start(None) == 2


def test_a_device_that_names_a_cursor_begins_there_though_more_was_written() -> None:
    assert FIVE.write(5).start(3) == 3
    assert FIVE.start(0) == 0
    assert both(FIVE.write(5)).start(Position(3, 0, 4)) == Numbers(3, 4)


def test_a_cursor_of_before_there_were_lanes_is_the_beginning_of_the_lane_of_high_priority() -> None:
    assert both(FIVE.write(5)).start(Position(3)) == Numbers(3, 0)
    assert Box.new(40).start(Position(3)) == Numbers(40, 40)


def test_what_was_acknowledged_is_not_requested_again() -> None:
    assert FIVE.acknowledge(4).start(2) == 4
    box = both(FIVE).acknowledge(Numbers(4, 2))
    assert box.start(Position(2)) == Numbers(4, 2)
    assert box.has_acked
    assert not both(FIVE).has_acked


def test_an_acknowledgement_in_one_lane_makes_the_device_one_that_acknowledges_in_both() -> None:
    box = both(FIVE).write(Numbers(4, 4)).acknowledge(Numbers(2, 0))
    assert box.start(None) == Numbers(2, 0)


def test_without_a_cursor_yet_a_device_begins_with_what_is_kept_and_written_messages_are_not_missed() -> None:
    assert FIVE.write(5).start(-1) == 0
    assert FIVE.write(4).lose(3).start(-1) == 3
    assert FIVE.write(1).lose(3).start(-1) == 1
    assert FIVE.acknowledge(4).start(-1) == 4
    assert Box(FIVE.write(4).lose(3), FIVE.write(5)).start(NO_CURSOR_YET) == Numbers(3, 0)


def test_a_cursor_of_a_box_that_was_removed_is_the_beginning_of_the_new_one() -> None:
    assert Lane.new(40).start(3) == 40
    assert Box.new(40).find(Position(3)) == Numbers(3, 0)


# -- what a position stands for


def test_a_cursor_beyond_the_end_of_either_lane_is_not_known() -> None:
    box = Box(FIVE, Lane(last=2))
    assert box.find(Position(5, 0, 2)) == Numbers(5, 2)
    assert box.find(Position(6, 0, 2)) is None
    assert box.find(Position(5, 0, 3)) is None
    assert box.find(Position(-1)) is None
    assert box.find(NO_CURSOR_YET) is None


def test_a_position_of_an_earlier_epoch_stands_for_what_was_left_when_the_next_began() -> None:
    lane = Lane(last=90, cuts=((1, 40), (3, 60)))
    assert [found(lane, NUMBERED, number, 0) for number in (30, 50, 80)] == [30, 40, 40]
    assert [found(lane, NUMBERED, number, 1) for number in (50, 80)] == [50, 60]
    assert [found(lane, NUMBERED, number, 2) for number in (50, 80)] == [50, 60]
    assert [found(lane, NUMBERED, number, 3) for number in (80, 90, 91)] == [80, 90, None]
    assert found(lane, NUMBERED, 1, 4) is None


def test_each_lane_has_its_own_cuts() -> None:
    box = Box(Lane(last=9, cuts=((3, 6),)), Lane(last=9, cuts=((3, 2),)), NUMBERED)
    assert box.find(Position(8, 1, 8)) == Numbers(6, 2)
    assert box.find(Position(5, 1, 1)) == Numbers(5, 1)


def test_the_list_defines_the_order_of_named_epochs() -> None:
    lane = Lane(last=90, cuts=((7, 40), (3, 60)))
    assert [found(lane, NAMED, number, 0) for number in (30, 50, 80)] == [30, 40, 40]
    assert [found(lane, NAMED, number, 7) for number in (50, 80)] == [50, 60]
    assert [found(lane, NAMED, number, 5) for number in (50, 80)] == [50, 60]
    assert [found(lane, NAMED, number, 3) for number in (80, 90, 91)] == [80, 90, None]


def test_a_position_of_an_epoch_that_the_mailbox_does_not_know_is_the_beginning_and_deletes_nothing() -> None:
    box = both(Lane(last=90, gone=10, written=50, cuts=((3, 60),)), Epochs(3, (7, 3)))
    for epoch in (0, 2, 9):
        numbers = box.find(Position(70, epoch, 70))
        assert numbers == NO_CURSOR_YET.numbers
        assert box.start(Position(70, epoch, 70)) == Numbers(10, 10)
    assert Mark(acked=Numbers(70, 70), written=Numbers(80, 80), epoch=9).on(box) == box


def test_a_position_of_an_earlier_epoch_is_known_though_its_message_is_lost() -> None:
    assert both(FIVE, Epochs(1)).find(Position(9, 0, 7)) == Numbers(5, 5)


def test_the_first_message_of_a_named_epoch_leaves_a_cut_and_no_other_does() -> None:
    lane = Lane.new(5).append(Epochs(0, (0,)))
    assert lane.cuts == ()
    later = lane.append(Epochs(7, (0, 7)))
    assert (later.last, later.cuts) == (7, ((7, 6),))
    assert later.append(Epochs(7, (0, 7))).cuts == ((7, 6),)
    # Epochs that are no longer known, and the oldest known one, need no cut.
    assert later.append(Epochs(9, (7, 8, 9))).cuts == ((9, 7),)


# -- what was lost with an epoch


def test_what_has_not_survived_the_end_of_an_epoch_is_counted_in_both_lanes() -> None:
    epochs = Epochs(3, (0, 3))
    box = both(Lane(last=9, cuts=((3, 6),)), epochs)
    assert [box.lost(Numbers(n, 0), Position(8)) for n in (4, 6, 7, 8)] == [2, 2, 1, 0]
    assert [box.lost(Numbers(8, n), Position(8, 0, 8)) for n in (4, 6, 7, 8)] == [2, 2, 1, 0]
    assert box.lost(Numbers(7, 5), Position(8, 0, 8)) == 3
    assert Box.new(20, epochs).lost(Numbers(5, 6), Position(8, 0, 8)) == 5
    assert both(Lane(last=9), Epochs(3)).lost(Numbers(5, 5), Position(8, 2, 9)) == 0


def test_a_position_from_before_everything_was_lost_may_have_lost_messages_unless_it_is_the_highest() -> None:
    emptied = Epochs(7, emptied=7)
    box = Box.new(20, emptied)
    assert [box.may_have_lost(Position(number, 3)) for number in (-1, 0, 19, 20)] == [False, True, True, False]
    assert not Box.new(20, Epochs(7)).may_have_lost(Position(3, 3))
    assert not Box.new(20, emptied).with_lane("normal", Lane.new(20).append(emptied)).may_have_lost(Position(21, 7))


def test_the_highest_number_may_be_one_of_the_lane_of_high_priority() -> None:
    box = Box.new(20, Epochs(7, emptied=7))
    assert [box.may_have_lost(Position(0, 3, number)) for number in (19, 20)] == [True, False]


@pytest.mark.parametrize("lane", LANES)
def test_a_device_that_has_acknowledged_something_since_has_lost_nothing(lane: LaneName) -> None:
    box = Box.new(20, Epochs(7, emptied=7))
    box = box.with_lane(lane, box.lane(lane).append(box.epochs))
    assert box.may_have_lost(Position(3, 3))
    assert not box.acknowledge(box.last).may_have_lost(Position(3, 3))


# -- marks


def test_marks_of_one_epoch_are_joined_and_those_of_several_kept_in_their_order() -> None:
    marks: Marks = ()
    for mark in (
        Mark(acked=Numbers(3, 1)),
        Mark(written=Numbers(5, 0)),
        Mark(acked=Numbers(2, 2)),
        Mark(acked=Numbers(4, 1), epoch=7),
    ):
        marks = marked(marks, mark)
    assert marks == (Mark(Numbers(3, 2), Numbers(5, 0)), Mark(Numbers(4, 1), None, 7))
    epochs = Epochs(7, (0, 7))
    box = with_marks(both(Lane(last=9), epochs), marks)
    assert box == Box(Lane(0, 9, 4, 4, 5), Lane(0, 9, 2, 2, 0), epochs)


def test_marks_of_an_earlier_epoch_delete_nothing_that_is_new() -> None:
    cuts = ((1, 40),)
    box = both(Lane(last=90, cuts=cuts), Epochs(1))
    settled = Lane(0, 90, 40, 40, 40, cuts)
    assert Mark(acked=Numbers(80, 80), written=Numbers(85, 85)).on(box) == both(settled, Epochs(1))
    assert Mark(acked=Numbers(80, 30), written=Numbers(85, 0), epoch=1).on(box).normal.gone == 80


# -- what a device has missed


def test_a_gap_is_owed_until_it_is_written_or_acknowledged() -> None:
    gap = FIVE.lose(3)
    for lost, lane in ((True, gap), (False, FIVE), (False, gap.write(3)), (False, gap.acknowledge(3))):
        assert Box(lane, FIVE).owes_a_gap == lost
        assert Box(FIVE, lane).owes_a_gap == lost
    assert Box(FIVE.acknowledge(1).lose(3).write(5)).owes_a_gap


def test_unused_numbers_are_missed_unless_they_were_retracted() -> None:
    lane = FIVE.retract(2).retract(3)
    assert lane.missed(0, 5) == 3
    assert lane.missed(2, 4) == 1
    assert lane.missed(5, 3) == 0
    assert not Box(lane.lose(3).write(1)).owes_a_gap


def test_what_was_retracted_is_forgotten_once_it_is_acknowledged() -> None:
    lane = FIVE.retract(2).retract(4)
    assert lane.acknowledge(3).retracted == (RetractedRun(4, 4, 1),)
    assert lane.acknowledge(3).retract(2) == lane.acknowledge(3)


def test_what_is_acknowledged_is_gone_and_what_is_lost_is_not_acknowledged() -> None:
    assert FIVE.acknowledge(3) == Lane(last=5, gone=3, acked=3)
    assert FIVE.lose(3) == Lane(last=5, gone=3)


# -- the bound


def test_the_oldest_go_until_both_bounds_hold_and_the_newest_stays() -> None:
    limits = BoxLimits(max_messages=3, max_bytes=100)
    assert surplus([], limits) == 0
    assert surplus([10, 10, 10], limits) == 0
    assert surplus([10, 10, 10, 10], limits) == 1
    assert surplus([50, 50, 10], limits) == 1
    assert surplus([10, 10, 500], limits) == 2
    assert surplus([500], limits) == 0


@given(st.lists(st.integers(0, 60), max_size=20), st.integers(1, 6), st.integers(1, 200))
def test_no_more_go_than_must(sizes: list[int], max_messages: int, max_bytes: int) -> None:
    limits = BoxLimits(max_messages, max_bytes)

    def fits(kept: list[int]) -> bool:
        return len(kept) <= 1 or (len(kept) <= max_messages and sum(kept) <= max_bytes)

    gone = surplus(sizes, limits)
    assert fits(sizes[gone:])
    assert gone == 0 or not fits(sizes[gone - 1 :])


STEPS: dict[str, Callable[[Lane, int], Lane]] = {
    "acknowledge": Lane.acknowledge,
    "append": lambda lane, number: lane.append(Epochs()),
    "write": Lane.write,
    "lose": Lane.lose,
    "retract": lambda lane, number: lane.retract(number) if lane.base < number <= lane.last else lane,
}


@given(st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(-3, 30)), max_size=30))
def test_numbers_never_go_back_nor_beyond_the_end(steps: list[tuple[str, int]]) -> None:
    lane = Lane.new(7)
    for step, number in steps:
        before, lane = lane, STEPS[step](lane, number)
        assert before.gone <= lane.gone <= lane.last
        assert before.written <= lane.written <= lane.last
        assert lane.base <= (lane.base if lane.acked is None else lane.acked) <= lane.gone
        assert before.last <= lane.last
        assert lane.base <= lane.start(None) <= lane.last
        assert 0 <= lane.missed(lane.base, lane.last) <= lane.last - lane.base
        assert all(first > lane.confirmed or lane.acked is None for first, _, _ in lane.retracted)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=8))
def test_the_order_of_marks_makes_no_difference(pairs: list[tuple[int, int]]) -> None:
    box = Box(Lane(last=7), Lane(last=4))
    marks = [Mark(acked=Numbers(*pair)) if sum(pair) % 2 else Mark(written=Numbers(*pair)) for pair in pairs]
    assert with_marks(box, marks) == with_marks(box, reversed(marks))
    joined: Marks = ()
    for mark in marks:
        joined = marked(joined, mark)
    assert with_marks(box, joined) == with_marks(box, marks)


def test_a_lane_is_replaced_by_name() -> None:
    box = both(FIVE, NUMBERED)
    other = FIVE._replace(written=1)
    assert box.with_lane("high", other) == Box(FIVE, other, NUMBERED)
    assert box.with_lane("normal", other) == Box(other, FIVE, NUMBERED)
    assert box.written == Numbers(0, 0)
