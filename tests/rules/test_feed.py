"""What a connection is sent at once, and what out of its device's box."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cocoa_tornado.rules.box import Box, StoredMessage
from cocoa_tornado.rules.feed import Feed, Page

from ..profiles import examples


def message(number: int) -> StoredMessage:
    return StoredMessage(number, b"{}", 0)


def page(*numbers: int, gone: int = 0, last: int = 0, base: int = 0) -> Page:
    return Page([message(number) for number in numbers], gone, last, base)


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
    assert feed.page(page(6, 7, gone=5, last=9)).missed == 3
    feed.read()
    assert feed.page(page(8, 9, gone=5, last=9)).missed == 0


def test_a_box_that_is_empty_ends_the_reading() -> None:
    feed = opened(2, 9)
    feed.read()
    assert feed.page(page(gone=9, last=9)).missed == 7
    assert feed.is_live
    assert feed.stored(10)


def test_a_box_that_has_lost_its_end_is_not_read_for_ever() -> None:
    feed = opened(2, 9)
    feed.read()
    feed.page(page(3, last=3))
    assert feed.is_live


def test_what_stood_in_a_box_before_this_one_is_not_missed() -> None:
    feed = opened(40, 40)
    assert not feed.stored(51)
    feed.read()
    turn = feed.page(page(51, gone=50, last=51, base=50))
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
    assert feed.page(Page([message(10)], gone=9, last=10, acked=7)).missed == 2


def test_a_second_look_counts_though_a_page_is_under_way() -> None:
    feed = opened(0, 2)
    feed.read()
    feed.open(0, 5)
    feed.page(page(1, 2, last=2))
    assert feed.is_behind


class OneDevice(RuleBasedStateMachine):
    """A box, and a device that comes and goes, with a cursor or without: on each connection it gets every message once,
    in order, or is notified that it missed it; and none is between what it has and where its next connection begins."""

    def __init__(self) -> None:
        super().__init__()
        self.box = Box()
        self.feed: Feed | None = None
        self.after: int | None = None
        self.page_under_way: Page | None = None
        self.at = 0  # how far this connection has come
        self.has = 0  # how far the device has come

    def _gets(self, number: int) -> None:
        assert number == max(self.at, self.box.acked or 0) + 1
        self._comes_to(number)

    def _misses(self, count: int) -> None:
        self._comes_to(max(self.at, self.box.acked or 0) + count)

    def _comes_to(self, number: int) -> None:
        self.at, self.has = number, max(self.has, number)
        self.box = self.box.write(number)

    @rule()
    def store(self) -> None:
        self.box = self.box.append()
        if self.feed is not None and self.feed.stored(self.box.last):
            self._gets(self.box.last)

    @rule(up_to=st.integers(0, 30))
    def lose(self, up_to: int) -> None:
        self.box = self.box.lose(up_to)

    @rule(back=st.integers(0, 3), here=st.booleans())
    def acknowledge(self, back: int, here: bool) -> None:
        """On this connection, or on another one of the device."""
        number = max(0, self.has - back)
        if number == 0 or (self.feed is not None and not self.feed.opened):
            return
        self.box = self.box.acknowledge(number)
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
        begins = self.box.start(self.after)
        assert begins <= max(self.has, self.box.acked or 0)
        if not self.feed.opened:
            self.at = begins
        self.feed.open(begins, self.box.last)

    @precondition(lambda self: self.feed is not None and self.feed.is_behind)
    @rule(size=st.integers(1, 3), fails=st.booleans())
    def ask(self, size: int, fails: bool) -> None:
        assert self.feed is not None
        after = max(self.feed.read(), self.box.gone)
        if fails:
            self.feed.failed()
            return
        messages = [message(number) for number in range(after + 1, min(after + size, self.box.last) + 1)]
        self.page_under_way = Page(messages, self.box.gone, self.box.last, 0, self.box.acked or 0)

    @precondition(lambda self: self.page_under_way is not None)
    @rule()
    def answer(self) -> None:
        assert self.feed is not None
        assert self.page_under_way is not None
        position, under_way = self.feed.position, self.page_under_way
        turn = self.feed.page(under_way)
        self.page_under_way = None
        # What was acknowledged since, here or elsewhere, is accounted for.
        self.at = max(self.at, position, under_way.acked)
        if turn.missed:
            self.at += turn.missed
            self._comes_to(self.at)
        for item in turn.messages:
            assert item.number == self.at + 1
            self._comes_to(item.number)

    @precondition(lambda self: self.feed is not None)
    @rule()
    def vanish(self) -> None:
        self.feed = self.page_under_way = None

    @invariant()
    def a_live_device_has_everything(self) -> None:
        if self.feed is not None and self.feed.is_live:
            assert max(self.at, self.feed.position) == self.box.last
            assert max(self.has, self.box.acked or 0) == self.box.last


TestOneDevice = OneDevice.TestCase
TestOneDevice.settings = examples(150, steps=40)
