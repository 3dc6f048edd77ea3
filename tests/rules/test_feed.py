"""Which messages a connection is sent at once, and which from its device's box."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cocoa_tornado.rules.box import Epochs, Lane, StoredMessage
from cocoa_tornado.rules.feed import Feed, Page
from cocoa_tornado.rules.retracted import Retracted, retracted_of_text

from ..profiles import examples


def message(number: int) -> StoredMessage:
    return StoredMessage(number, b"{}", 0)


def page(*numbers: int, last: int = 0, base: int = 0, acked: int = 0, retracted: Retracted = ()) -> Page:
    return Page([message(number) for number in numbers], last, base, acked, retracted)


def opened(position: int, last: int) -> Feed:
    feed = Feed()
    feed.open(position, last)
    return feed


def test_what_is_stored_is_sent_at_once_if_it_is_the_next() -> None:
    feed = opened(5, 5)
    assert feed.is_live
    assert feed.stored(6)
    assert (feed.position, feed.last) == (6, 6)


def test_before_the_box_was_looked_at_nothing_is_sent() -> None:
    feed = Feed()
    assert not feed.stored(6)
    feed.open(4, 5)
    assert feed.is_behind
    assert feed.last == 6


def test_while_the_box_is_read_what_is_stored_waits_in_it() -> None:
    feed = opened(0, 2)
    assert feed.read() == 0
    assert not feed.stored(3)
    turn = feed.page(page(1, 2, last=2))
    assert [item.number for item in turn.messages] == [1, 2]
    assert feed.is_behind
    assert feed.read() == 2
    feed.page(page(3, last=3))
    assert feed.is_live


def test_what_is_not_the_next_is_read() -> None:
    feed = opened(5, 5)
    assert not feed.stored(7)
    assert feed.is_behind


def test_what_has_fallen_out_is_counted_once() -> None:
    feed = opened(2, 9)
    feed.read()
    assert feed.page(page(6, 7, last=9)).missed == 3
    feed.read()
    assert feed.page(page(8, 9, last=9)).missed == 0


def test_a_box_that_is_empty_ends_the_reading() -> None:
    feed = opened(2, 9)
    feed.read()
    assert feed.page(page(last=9)).missed == 7
    assert feed.is_live
    assert feed.stored(10)


def test_a_box_that_has_lost_its_end_is_not_read_again_and_again() -> None:
    feed = opened(2, 9)
    feed.read()
    feed.page(page(3, last=3))
    assert feed.is_live


def test_what_stood_in_a_box_before_this_one_is_not_missed() -> None:
    feed = opened(40, 40)
    assert not feed.stored(51)
    feed.read()
    turn = feed.page(page(51, last=51, base=50))
    assert (turn.missed, len(turn.messages)) == (0, 1)


def test_what_the_device_has_acknowledged_is_not_sent_again() -> None:
    feed = opened(0, 5)
    feed.read()
    feed.acknowledged(3)
    turn = feed.page(page(1, 2, 3, 4, last=5))
    assert (turn.missed, [item.number for item in turn.messages]) == (0, [4])


def test_a_page_that_could_not_be_had_is_asked_for_again() -> None:
    feed = opened(0, 5)
    feed.read()
    assert not feed.is_behind
    feed.failed()
    assert feed.is_behind
    assert feed.read() == 0


def test_what_was_acknowledged_on_another_connection_is_not_missed() -> None:
    feed = opened(0, 10)
    feed.read()
    assert feed.page(page(10, last=10, acked=7)).missed == 2


def test_a_second_look_counts_though_a_page_is_under_way() -> None:
    feed = opened(0, 2)
    feed.read()
    feed.open(0, 5)
    feed.page(page(1, 2, last=2))
    assert feed.is_behind


def test_numbers_between_messages_are_missed_unless_they_were_retracted() -> None:
    feed = opened(0, 9)
    feed.read()
    assert feed.page(page(2, 5, 8, last=9, retracted=retracted_of_text("3 6-7"))).missed == 2  # 1 and 4
    feed.read()
    assert feed.page(page(last=9, retracted=retracted_of_text("9"))).missed == 0
    assert feed.is_live


def test_messages_in_runs_that_were_joined_are_no_reason_to_miss_less() -> None:
    """Where runs were joined, they include messages that are in the box."""
    feed = opened(0, 5)
    feed.read()
    assert feed.page(page(2, 4, last=5, retracted=retracted_of_text("1-4"))).missed == 0
    feed.read()
    assert feed.page(page(last=5, retracted=retracted_of_text("1-4"))).missed == 1


def test_what_is_missed_counts_once_though_there_was_no_room_for_what_follows() -> None:
    feed = opened(0, 9)
    feed.read()
    assert feed.page(page(2, 5, 9, last=9)).missed == 6
    feed.fall_behind(2)
    assert feed.read() == 2
    assert feed.page(page(5, 9, last=9)).missed == 0
    feed.fall_behind(4)
    feed.read()
    assert feed.page(page(9, last=9)).missed == 1  # 5 has expired meanwhile
    feed.fall_behind(8)
    assert feed.stored(10) is False
    feed.read()
    assert feed.page(page(9, 10, last=10)).missed == 0
    assert feed.is_live


class OneDevice(RuleBasedStateMachine):
    """A lane, and a device that comes and goes, with a cursor or without: on each connection it gets every message
    once, in order, or is notified that it missed it; and none is between what it has and where its next connection
    begins."""

    def __init__(self) -> None:
        super().__init__()
        self.lane = Lane()
        self.kept: set[int] = set()
        self.feed: Feed | None = None
        self.after: int | None = None
        self.page_under_way: Page | None = None
        self.at = 0  # how far this connection has come
        self.has = 0  # how far the device has come
        self.retracted: set[int] = set()

    def _comes_to(self, number: int) -> None:
        self.at, self.has = number, max(self.has, number)
        self.lane = self.lane.write(number)

    def _lose(self, number: int) -> None:
        self.kept.discard(number)
        self.lane = self.lane.lose(min(self.kept, default=self.lane.last + 1) - 1)

    @rule()
    def store(self) -> None:
        self.lane = self.lane.append(Epochs())
        number = self.lane.last
        self.kept.add(number)
        if self.feed is not None and self.feed.stored(number):
            assert number == max(self.at, self.lane.acked or 0) + 1
            self._comes_to(number)

    @precondition(lambda self: self.kept)
    @rule(at=st.integers(0, 30))
    def expire(self, at: int) -> None:
        """Any of them: each may have a ``ttl`` of its own."""
        self._lose(sorted(self.kept)[at % len(self.kept)])

    @precondition(lambda self: self.kept)
    @rule(at=st.integers(0, 30))
    def replace(self, at: int) -> None:
        number = sorted(self.kept)[at % len(self.kept)]
        self.lane = self.lane.retract(number)
        self.retracted.add(number)
        self._lose(number)

    @rule(back=st.integers(0, 3), here=st.booleans())
    def acknowledge(self, back: int, here: bool) -> None:
        """On this connection, or on another one of the device."""
        number = max(0, self.has - back)
        if number == 0 or (self.feed is not None and not self.feed.opened):
            return
        self.lane = self.lane.acknowledge(number)
        self.kept = {kept for kept in self.kept if kept > number}
        if here and self.feed is not None:
            self.feed.acknowledged(number)

    @precondition(lambda self: self.feed is None)
    @rule(back=st.none() | st.integers(0, 3))
    def connect(self, back: int | None) -> None:
        self.feed = Feed()
        self.after = None if back is None else max(0, self.has - back)

    @precondition(lambda self: self.feed is not None)
    @rule()
    def look(self) -> None:
        """For the first time, or again."""
        assert self.feed is not None
        begins = self.lane.start(self.after)
        assert begins <= max(self.has, self.lane.acked or 0)
        if not self.feed.opened:
            self.at = begins
        self.feed.open(begins, self.lane.last)

    @precondition(lambda self: self.feed is not None and self.feed.is_behind)
    @rule(size=st.integers(1, 3), fails=st.booleans())
    def ask(self, size: int, fails: bool) -> None:
        assert self.feed is not None
        after, lane = self.feed.read(), self.lane
        if fails:
            self.feed.failed()
            return
        numbers = sorted(number for number in self.kept if number > after)[:size]
        self.page_under_way = page(*numbers, last=lane.last, acked=lane.acked or 0, retracted=lane.retracted)

    @precondition(lambda self: self.page_under_way is not None)
    @rule(room=st.integers(0, 3))
    def answer(self, room: int) -> None:
        """Some of it has no room."""
        assert self.feed is not None
        assert self.page_under_way is not None
        position, under_way = self.feed.position, self.page_under_way
        turn = self.feed.page(under_way)
        self.page_under_way = None
        # What was acknowledged since, here or elsewhere, is accounted for.
        before = max(position, under_way.acked)
        end = self.feed.position
        numbers = [item.number for item in turn.messages]
        assert numbers == sorted(set(numbers))
        assert all(before < number <= end for number in numbers)
        unused = set(range(before + 1, end + 1)) - set(numbers)
        assert not unused & self.kept
        assert turn.missed <= len(unused - self.retracted)
        if numbers[room:]:
            self.feed.fall_behind(numbers[room] - 1)
        self._comes_to(max(self.at, self.feed.position))

    @precondition(lambda self: self.feed is not None)
    @rule()
    def vanish(self) -> None:
        self.feed = self.page_under_way = None

    @invariant()
    def a_live_device_has_everything(self) -> None:
        if self.feed is not None and self.feed.is_live:
            assert max(self.at, self.feed.position) == self.lane.last
            assert max(self.has, self.lane.acked or 0) == self.lane.last


class Counting(RuleBasedStateMachine):
    """One connection, of which nothing is acknowledged: in the end every number was sent, missed or retracted, and none
    counts twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lane, self.feed = Lane(), opened(0, 0)
        self.kept: set[int] = set()
        self.retracted: set[int] = set()
        self.got: list[int] = []
        self.missed = 0

    @rule(is_seen=st.booleans())
    def store(self, is_seen: bool) -> None:
        self.lane = self.lane.append(Epochs())
        self.kept.add(self.lane.last)
        if is_seen and self.feed.stored(self.lane.last):
            self.got.append(self.lane.last)
        elif not is_seen:
            self.feed.open(0, self.lane.last)

    @precondition(lambda self: self.kept)
    @rule(at=st.integers(0, 30), is_replaced=st.booleans())
    def leave(self, at: int, is_replaced: bool) -> None:
        number = sorted(self.kept)[at % len(self.kept)]
        self.kept.discard(number)
        if is_replaced:
            self.lane = self.lane.retract(number)
            self.retracted.add(number)

    @precondition(lambda self: self.feed.is_behind)
    @rule(size=st.integers(1, 4), room=st.integers(0, 4))
    def read(self, size: int, room: int) -> None:
        after = self.feed.read()
        numbers = sorted(number for number in self.kept if number > after)[:size]
        turn = self.feed.page(page(*numbers, last=self.lane.last, retracted=self.lane.retracted))
        self.missed += turn.missed
        sent = [item.number for item in turn.messages]
        self.got += sent[:room]
        if sent[room:]:
            self.feed.fall_behind(sent[room] - 1)

    @invariant()
    def each_once_and_in_order(self) -> None:
        assert self.got == sorted(set(self.got))

    @invariant()
    def every_number_is_accounted_for(self) -> None:
        if not self.feed.is_live:
            return
        others = set(range(1, self.lane.last + 1)) - set(self.got)
        # One that was missed before it would have been replaced can't be both.
        assert len(others - self.retracted) <= self.missed <= len(others)


TestOneDevice = OneDevice.TestCase
TestOneDevice.settings = examples(150, steps=40)
TestCounting = Counting.TestCase
TestCounting.settings = examples(100, steps=30)
