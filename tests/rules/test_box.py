"""The arithmetic of a device's box."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.box import (
    NO_CURSOR_YET,
    Box,
    BoxLimits,
    Mark,
    Marks,
    Position,
    marked,
    surplus,
    with_marks,
)

FIVE = Box(last=5)


def test_a_device_that_uses_no_cursors_begins_after_what_was_written() -> None:
    assert FIVE.start(None) == 0
    assert FIVE.write(3).start(None) == 3


def test_a_device_that_has_acknowledged_begins_there_though_more_was_written() -> None:
    assert FIVE.write(5).acknowledge(2).start(None) == 2


def test_a_device_that_names_a_cursor_begins_there_though_more_was_written() -> None:
    assert FIVE.write(5).start(3) == 3
    assert FIVE.start(0) == 0


def test_what_was_acknowledged_is_not_asked_for_again() -> None:
    assert FIVE.acknowledge(4).start(2) == 4


def test_a_cursor_of_a_box_that_was_removed_is_the_beginning_of_the_new_one() -> None:
    assert Box.new(40).start(3) == 40
    assert Box.new(40).find(Position(3)) == 3


def test_a_cursor_beyond_the_end_is_not_known() -> None:
    assert FIVE.find(Position(5)) == 5
    assert FIVE.find(Position(6)) is None
    assert FIVE.find(Position(-1)) is None


def test_a_place_of_an_earlier_epoch_stands_for_what_was_left_when_the_next_began() -> None:
    box = Box(last=90, epoch=3, cuts=((1, 40), (3, 60)))
    assert [box.find(Position(number)) for number in (30, 50, 80)] == [30, 40, 40]
    assert [box.find(Position(number, 1)) for number in (50, 80)] == [50, 60]
    assert [box.find(Position(number, 2)) for number in (50, 80)] == [50, 60]
    assert [box.find(Position(number, 3)) for number in (80, 90, 91)] == [80, 90, None]
    assert box.find(Position(1, 4)) is None


def test_the_list_defines_the_order_of_named_epochs() -> None:
    box = Box(last=90, epoch=3, cuts=((7, 40), (3, 60)), epochs=(0, 7, 5, 3))
    assert [box.find(Position(number)) for number in (30, 50, 80)] == [30, 40, 40]
    assert [box.find(Position(number, 7)) for number in (50, 80)] == [50, 60]
    assert [box.find(Position(number, 5)) for number in (50, 80)] == [50, 60]
    assert [box.find(Position(number, 3)) for number in (80, 90, 91)] == [80, 90, None]


def test_a_place_of_an_epoch_that_the_mailbox_does_not_know_is_the_beginning_and_deletes_nothing() -> None:
    box = Box(last=90, gone=10, written=50, epoch=3, cuts=((3, 60),), epochs=(7, 3))
    assert [box.find(Position(70, epoch)) for epoch in (0, 2, 9)] == [NO_CURSOR_YET.number] * 3
    assert box.start(box.find(Position(70, 9))) == 10
    assert Mark(acked=70, written=80, epoch=9).on(box) == box


def test_the_first_message_of_a_named_epoch_leaves_a_cut_and_no_other_does() -> None:
    box = Box.new(5, epoch=0, epochs=(0,)).append()
    assert box.cuts == ()
    later = replace(box, epoch=7, epochs=(0, 7)).append()
    assert (later.last, later.cuts) == (7, ((7, 6),))
    assert later.append().cuts == ((7, 6),)
    # Of epochs that are not known any more, and the oldest that is, no cut is needed.
    assert replace(later, epoch=9, epochs=(7, 8, 9)).append().cuts == ((9, 7),)


def test_what_has_not_survived_the_end_of_an_epoch_is_counted() -> None:
    box = Box(last=9, epoch=3, cuts=((3, 6),), epochs=(0, 3))
    assert [box.lost(position, Position(8)) for position in (4, 6, 7, 8)] == [2, 2, 1, 0]
    assert Box.new(20, 3, (0, 3)).lost(5, Position(8)) == 3
    assert Box(last=9, epoch=3).lost(5, Position(8, 2)) == 0


def test_a_place_of_before_all_was_lost_may_have_lost_messages_unless_it_is_the_highest() -> None:
    box = Box.new(20, 7, emptied=7)
    assert [box.may_have_lost(Position(number, 3)) for number in (-1, 0, 19, 20)] == [False, True, True, False]
    assert not box.append().may_have_lost(Position(21, 7))
    assert not Box.new(20, 7).may_have_lost(Position(3, 3))
    assert not box.append().acknowledge(21).may_have_lost(Position(3, 3))


def test_marks_of_one_epoch_are_joined_and_those_of_several_kept_in_their_order() -> None:
    marks: Marks = ()
    for mark in (Mark(acked=3), Mark(written=5), Mark(acked=2), Mark(acked=4, epoch=7)):
        marks = marked(marks, mark)
    assert marks == (Mark(3, 5), Mark(4, None, 7))
    assert with_marks(Box(last=9, epoch=7, epochs=(0, 7)), marks) == Box(0, 9, 4, 4, 5, 7)


def test_a_place_of_an_earlier_epoch_is_known_though_its_message_is_lost() -> None:
    assert Box(last=5, epoch=1).find(Position(9)) == 5


def test_without_a_cursor_yet_a_device_begins_with_what_is_kept_and_written_messages_are_not_missed() -> None:
    assert FIVE.write(5).start(NO_CURSOR_YET.number) == 0
    assert FIVE.write(4).lose(3).start(NO_CURSOR_YET.number) == 3
    assert FIVE.write(1).lose(3).start(NO_CURSOR_YET.number) == 1
    assert FIVE.acknowledge(4).start(NO_CURSOR_YET.number) == 4


def test_marks_of_an_earlier_epoch_delete_nothing_that_is_new() -> None:
    box = Box(last=90, epoch=1, cuts=((1, 40),))
    assert Mark(acked=80, written=85).on(box) == Box(0, 90, 40, 40, 40, 1, ((1, 40),))
    assert Mark(acked=80, written=85, epoch=1).on(box).gone == 80


def test_a_gap_is_owed_until_it_is_written_or_acknowledged() -> None:
    assert not FIVE.owes_a_gap
    assert FIVE.lose(3).owes_a_gap
    assert not FIVE.lose(3).write(3).owes_a_gap
    assert FIVE.acknowledge(1).lose(3).write(5).owes_a_gap
    assert not FIVE.lose(3).acknowledge(3).owes_a_gap


def test_what_is_acknowledged_is_gone_and_what_is_lost_is_not_acknowledged() -> None:
    assert FIVE.acknowledge(3) == Box(last=5, gone=3, acked=3)
    assert FIVE.lose(3) == Box(last=5, gone=3)
    assert len(FIVE.lose(3)) == 2


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


@given(st.lists(st.tuples(st.sampled_from("anwl"), st.integers(-3, 30)), max_size=30))
def test_numbers_never_go_back_nor_beyond_the_end(steps: list[tuple[str, int]]) -> None:
    box = Box.new(7)
    for step, number in steps:
        before = box
        box = {
            "a": lambda box, number: box.acknowledge(number),
            "n": lambda box, number: box.append(),
            "w": lambda box, number: box.write(number),
            "l": lambda box, number: box.lose(number),
        }[step](box, number)
        assert before.gone <= box.gone <= box.last
        assert before.written <= box.written <= box.last
        assert box.base <= (box.acked or box.base) <= box.gone
        assert before.last <= box.last
        assert box.base <= box.start(None) <= box.last
