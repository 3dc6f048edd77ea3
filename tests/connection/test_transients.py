"""Transient messages that wait until the messages stored before them have been passed on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.connection.box_reader import BoxReader
from cocoa_tornado.connection.transients import MOST_BYTES, MOST_MESSAGES, Place, Transient, Transients, place
from cocoa_tornado.rules.box import Box, Lane, PageLimits
from cocoa_tornado.rules.terms import Terms


def message(body: bytes = b"{}", after: int | None = None, lane: str = "normal", key: str | None = None) -> Transient:
    return Transient(lane, after, body, 0, Terms(collapse_key=key, number=0))  # type: ignore[arg-type]  # one of the two


def test_messages_leave_in_their_order_once_what_they_come_after_has_gone() -> None:
    waiting = Transients()
    first, second, unknown, high = message(after=3), message(after=5), message(), message(after=1, lane="high")
    assert all([waiting.add(each) for each in (first, second, unknown, high)])
    assert waiting.take_before("normal", 3) == []
    assert waiting.take_before("normal", 6) == [first, second]
    waiting.place("high", 9)
    waiting.place("normal", 9)
    assert waiting.take_all("normal") == [message(after=9)]
    assert (waiting.take_all(), repr(waiting)) == ([high], "<Transients 0 messages, 0 bytes>")


def test_a_place_that_is_known_is_not_changed_until_the_numbers_mean_nothing_any_more() -> None:
    waiting = Transients()
    waiting.add(message(after=3))
    waiting.place("normal", 9)
    assert waiting.take_before("normal", 9) == [message(after=3)]
    waiting.add(message(after=3))
    waiting.forget_places()
    assert waiting.take_before("normal", 100) == []
    waiting.place("normal", 9)
    assert waiting.take_before("normal", 10) == [message(after=9)]


def test_a_newer_message_replaces_those_of_its_key() -> None:
    waiting = Transients()
    for key in ("a", "b", "a"):
        waiting.add(message(b"12", key=key))
    assert [len(waiting.collapse("a")) for _ in range(2)] == [2, 0]
    assert repr(waiting) == "<Transients 1 messages, 2 bytes>"


@given(st.lists(st.sampled_from([0, 10, MOST_BYTES // 2, MOST_BYTES, 2 * MOST_BYTES]), max_size=200))
def test_no_more_wait_than_there_is_room_for_unless_it_is_a_single_one(sizes: list[int]) -> None:
    waiting, kept = Transients(), list[int]()
    for size in sizes:
        if waiting.add(message(bytes(size))):
            kept.append(size)
    assert len(kept) <= MOST_MESSAGES
    assert sum(kept) <= MOST_BYTES or len(kept) == 1
    assert [len(each.body) for each in waiting.take_all()] == kept


def test_what_an_answer_has_shown_comes_before_a_message_unless_it_is_known_to_be_later() -> None:
    waiting = Transients()
    for body, first in ((b"1", None), (b"2", 5), (b"3", 0), (b"4", 9)):
        waiting.add(message(body)._replace(later=lambda lane, first=first: first))  # type: ignore[misc]  # the default
    waiting.add(message(b"5", after=2))
    assert (waiting.place_up_to("high", 7), len(waiting.place_up_to("normal", 7))) == ([], 1)
    places = [(each.body, each.after, each.later) for each in waiting.take_all()]
    assert places == [(b"1", 7, None), (b"2", 4, None), (b"4", 7, None), (b"5", 2, None)]


# -- where a message belongs

PLAIN, INTERIM = Terms(number=0), Terms(interim_of="s", number=0)


def reader(last: int, acked: int = 0) -> BoxReader:
    """Of a connection that has looked into its box."""
    made = BoxReader(None)
    made.ask(True, True, PageLimits(16, 1600))
    made.looked(Box(Lane(0, last, acked, acked, acked)), b"key")
    return made


def test_before_the_box_is_known_a_message_waits_and_an_interim_is_dropped() -> None:
    assert place(BoxReader(None), "normal", PLAIN, None, None) == Place("wait", 0, None)
    assert place(BoxReader(None), "normal", INTERIM, None, None).fate == "interim"


def test_a_message_is_sent_once_everything_stored_before_it_was() -> None:
    assert place(reader(3, acked=3), "normal", PLAIN, None, None) == Place("send", 3)
    assert place(reader(3, acked=3), "normal", PLAIN, 3, None) == Place("send", 3)


def test_behind_what_is_still_in_the_box_a_message_waits_and_an_interim_is_dropped() -> None:
    assert place(reader(3, acked=1), "normal", PLAIN, None, None) == Place("wait", 3, 3)
    assert place(reader(3, acked=1), "normal", PLAIN, 2, None) == Place("wait", 2, 2)
    assert place(reader(3, acked=1), "normal", INTERIM, 2, None).fate == "interim"


def test_a_message_that_comes_before_what_was_sent_is_late() -> None:
    assert place(reader(3, acked=3), "normal", PLAIN, 2, None).fate == "late"
    assert place(reader(3, acked=3), "normal", PLAIN, -1, None).fate == "late"


def test_a_message_behind_one_that_the_connection_does_not_know_of_waits_for_a_look() -> None:
    behind = reader(3, acked=3)
    assert place(behind, "normal", PLAIN, 4, None) == Place("wait", 4, 4)
    assert behind.wants_look


def test_a_later_message_that_was_read_from_the_box_already_makes_it_late() -> None:
    ahead = reader(3, acked=3)
    ahead.normal.settled = 0
    assert place(ahead, "normal", PLAIN, None, lambda lane: 3).fate == "late"
    assert place(ahead, "normal", PLAIN, None, lambda lane: None) == Place("send", 3)
    assert ahead.normal.settled == 3
