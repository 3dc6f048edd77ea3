"""What a connection reads from its device's box, and what it sends and marks, across losses of the mailbox."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cocoa_tornado.connection.box_reader import LATER, LOOK, REFUSED, Ack, BoxReader, Question, latest
from cocoa_tornado.rules.box import NO_CURSOR_YET, Box, Mark, Position, StoredMessage
from cocoa_tornado.rules.feed import Page

from ..profiles import examples

KEY, OTHER_KEY = b"key", b"other"


def box(last: int, *, gone: int = 0, acked: int | None = None, written: int = 0, epoch: int = 0) -> Box:
    return Box(0, last, gone, acked, written, epoch)


def page(*numbers: int, gone: int = 0, last: int = 0) -> Page:
    return Page([StoredMessage(number, b"{}", 0) for number in numbers], gone, last)


def opened(at: Box, after: Position | None = None) -> BoxReader:
    reader = BoxReader(after)
    assert reader.ask(may_read=True) is LOOK
    reader.looked(at, KEY)
    return reader


# -- questions


def test_a_connection_looks_at_its_box_first_and_asks_nothing_else_meanwhile() -> None:
    reader = BoxReader(None)
    assert reader.ask(may_read=True) is LOOK
    assert not reader.may_ask
    assert reader.ask(may_read=True) is None
    reader.looked(box(3), KEY)
    assert reader.ask(may_read=True) == Question(0)
    assert reader.ask(may_read=True) is None


def test_a_page_is_read_only_when_there_is_room_for_it() -> None:
    reader = opened(box(3))
    assert reader.ask(may_read=False) is None
    assert reader.may_ask
    assert reader.ask(may_read=True) == Question(0)


def test_a_question_without_an_answer_is_asked_again() -> None:
    reader = BoxReader(None)
    for _ in range(2):
        assert reader.ask(may_read=True) is LOOK
        reader.failed()
    reader.ask(may_read=True)
    reader.looked(box(2), KEY)
    for _ in range(2):
        assert reader.ask(may_read=True) == Question(0)
        reader.failed()


def test_what_is_stored_unseen_is_found_by_another_look_however_many_say_so() -> None:
    reader = opened(box(0))
    assert reader.ask(may_read=True) is None
    reader.look_again()
    assert reader.ask(may_read=True) is LOOK
    reader.look_again()  # it may have been stored after the box was looked at
    reader.look_again()
    reader.looked(box(0), KEY)
    assert reader.ask(may_read=True) is LOOK
    reader.looked(box(0), KEY)
    assert reader.ask(may_read=True) is None


def test_a_page_finds_it_as_well_so_that_a_feed_that_is_behind_reads_on() -> None:
    reader = opened(box(2))
    reader.look_again()
    assert reader.ask(may_read=True) == Question(0)
    reader.arrived(page(1, 2, last=2))
    reader.delivered()
    assert reader.ask(may_read=True) is None


def test_nothing_is_asked_while_a_delivery_is_being_queued() -> None:
    reader = opened(box(5))
    reader.ask(may_read=True)
    reader.arrived(page(1, 2, last=5))
    assert reader.ask(may_read=True) is None
    reader.delivered()
    assert reader.ask(may_read=True) == Question(2)


def test_what_has_no_room_is_read_again() -> None:
    reader = opened(box(5))
    reader.ask(may_read=True)
    reader.arrived(page(1, 2, 3, last=5))
    reader.delivered(up_to=1)
    assert reader.ask(may_read=True) == Question(1)


# -- epochs


def test_an_epoch_that_ends_voids_the_question_and_the_box_is_looked_at_again() -> None:
    reader = opened(box(5))
    reader.ask(may_read=True)
    assert not reader.follow(0, KEY)
    assert reader.follow(1, KEY)
    assert not reader.follow(1, KEY)
    assert reader.ask(may_read=True) is LOOK


def test_messages_lost_with_their_epoch_are_missed_if_they_had_not_been_sent() -> None:
    reader = opened(box(5))
    reader.ask(may_read=True)
    reader.arrived(page(1, 2, 3, last=5))
    reader.delivered()
    reader.follow(1, KEY)
    assert reader.looked(Box(0, 4, epoch=1, cuts=((1, 4),)), KEY).missed == 1
    assert reader.ask(may_read=True) == Question(3)


def test_another_mailbox_knows_nothing_of_the_old_ones_numbers() -> None:
    reader = opened(box(5))
    reader.pushed = reader.taken = 5
    reader.follow(1, OTHER_KEY)
    assert reader.looked(Box(0, 2, epoch=1), OTHER_KEY).missed == 0
    assert (reader.pushed, reader.written()) == (0, None)
    assert reader.ask(may_read=True) == Question(0)


# -- marks


def test_what_the_socket_has_taken_is_marked_once() -> None:
    reader = opened(box(0))
    assert reader.feed.stored(1)
    reader.pushed = 1
    assert reader.written() is None
    reader.taken = reader.pushed
    assert reader.written() == Position(1)
    assert reader.written() is None
    reader.pushed = reader.taken = 2
    assert reader.written() == Position(2)


def test_what_an_earlier_connection_has_marked_is_not_marked_again() -> None:
    reader = opened(box(3, written=2), Position(0))
    reader.pushed = reader.taken = 2
    assert reader.written() is None
    reader.pushed = reader.taken = 3
    assert reader.written() == Position(3)


def test_a_number_that_is_given_again_in_another_epoch_is_marked_again() -> None:
    reader = opened(box(5))
    reader.pushed = reader.taken = 5
    assert reader.written() == Position(5)
    reader.follow(1, KEY)
    reader.ask(may_read=True)
    reader.looked(Box(0, 4, epoch=1, cuts=((1, 4),)), KEY)
    assert reader.written() is None
    reader.pushed = reader.taken = 5
    assert reader.written() == Position(5, 1)


def test_a_gap_with_nothing_behind_it_is_acknowledged_for_a_device_that_acknowledges() -> None:
    for acked, expected in ((0, Position(4)), (None, None)):
        reader = opened(box(4, acked=acked))
        reader.ask(may_read=True)
        delivery = reader.arrived(page(gone=4, last=4))
        assert delivery.missed == 4
        reader.push_gap(delivery)
        reader.delivered()
        assert reader.take_gap() is None
        assert reader.gap == 4
        reader.taken = reader.pushed
        assert reader.take_gap() == expected
        assert reader.gap == 0


def test_a_gap_before_messages_is_not() -> None:
    reader = opened(box(4, acked=0))
    reader.ask(may_read=True)
    reader.push_gap(reader.arrived(page(4, gone=3, last=4)))
    assert (reader.pushed, reader.gap) == (3, 0)


# -- acknowledgements


def test_an_acknowledgement_before_the_look_waits_for_it() -> None:
    reader = BoxReader(None)
    assert reader.acknowledge(Position(3)) is LATER
    reader.ask(may_read=True)
    assert reader.looked(box(5), KEY).ack == Ack(Position(3))
    assert reader.ask(may_read=True) == Question(3)
    assert reader.early is None


def test_one_beyond_the_end_is_refused_before_and_after() -> None:
    reader = BoxReader(None)
    reader.acknowledge(Position(6))
    reader.ask(may_read=True)
    assert reader.looked(box(5), KEY).ack is REFUSED
    assert reader.acknowledge(Position(6)) is REFUSED
    assert reader.acknowledge(Position(-1)) is REFUSED


def test_of_two_acknowledgements_the_higher_counts_and_of_two_epochs_the_newer() -> None:
    assert latest(None, Position(1)) == Position(1)
    assert latest(Position(3), Position(1)) == Position(3)
    assert latest(Position(1), Position(3)) == Position(3)
    assert latest(Position(3, 0), Position(1, 1)) == Position(1, 1)


def test_one_of_an_earlier_epoch_stands_for_what_is_left_of_it() -> None:
    reader = opened(box(5))
    reader.follow(1, KEY)
    reader.ask(may_read=True)
    reader.looked(Box(0, 4, epoch=1, cuts=((1, 4),)), KEY)
    assert reader.acknowledge(Position(5, 0)) == Ack(Position(4, 1))
    assert reader.acknowledge(Position(5, 7)) is REFUSED


# -- a device, its connections, and a mailbox that loses its latest data


class Sent(NamedTuple):
    """A frame: :ivar content: of a message, never given twice; None: a gap notice"""

    content: int | None
    position: Position
    missed: int = 0


class Connection:
    """A shell like ``feed.py``, whose outbox has room for a few frames. The device has what the socket has taken."""

    def __init__(self, mailbox: Mailbox, after: Position | None) -> None:
        self.mailbox, self.reader = mailbox, BoxReader(after)
        self.question: Question | None = None
        self.outbox: list[Sent] = []
        self.in_flight: list[Sent] = []
        self.received: list[Sent] = []
        self.start: int | None = None
        self.may_count = True  # no number has been skipped or given twice
        self.has_unseen = False
        self.ask()

    def follow(self) -> None:
        if self.reader.follow(self.mailbox.box.epoch, KEY):
            self.question, self.may_count = None, False

    def ask(self) -> None:
        self.follow()
        if self.question is None:
            self.question = self.reader.ask(may_read=not self.outbox and not self.in_flight)

    def offer(self, sent: Sent) -> bool:
        if len(self.outbox) + len(self.in_flight) >= 2:
            return False
        self.outbox.append(sent)
        return True

    def stored(self, number: int) -> None:
        self.follow()
        if not self.reader.feed.stored(number):
            self.ask()
        elif self.offer(self.mailbox.sent(number)):
            self.reader.pushed = number
        else:
            self.reader.feed.fall_behind(number - 1)

    def flush(self) -> None:
        if not self.in_flight:
            self.reader.taken = self.reader.pushed
            self.in_flight, self.outbox = self.outbox, []

    def written(self) -> None:
        self.received += self.in_flight
        self.in_flight = []
        position = self.reader.written()
        if position is not None:
            self.mailbox.mark(Mark(written=position.number, epoch=position.epoch))
        if self.reader.gap and (gap := self.reader.take_gap()) is not None:
            self.mailbox.mark(Mark(acked=gap.number, epoch=gap.epoch))
        self.ask()

    def acknowledge(self, position: Position) -> None:
        self.ask()
        before = self.reader.feed.position
        self.carry_out(self.reader.acknowledge(position))
        self.may_count &= self.reader.feed.position == before and self.reader.early is None

    def carry_out(self, ack: Ack) -> None:
        if ack.position is not None:
            self.mailbox.mark(Mark(acked=ack.position.number, epoch=ack.position.epoch))

    def answer(self, fails: bool) -> None:
        self.follow()
        question, self.question = self.question, None
        if question is not None and fails:
            self.reader.failed()
        elif question is LOOK:
            missed, ack = self.reader.looked(self.mailbox.box, KEY)
            if self.start is None:
                self.start = self.reader.feed.position
            if missed:
                self.outbox.append(Sent(None, Position(0), missed))
            if ack is not None:
                self.carry_out(ack)
        elif question is not None and question.after is not None:
            before = self.reader.feed.position
            self.reader.delivered(self.deliver(self.mailbox.page(question.after), before))
        self.ask()

    def deliver(self, found: Page, before: int) -> int | None:
        delivery = self.reader.arrived(found)
        if delivery.missed:
            if not self.offer(Sent(None, Position(0), delivery.missed)):
                return before
            self.reader.push_gap(delivery)
        for message in delivery.messages:
            if not self.offer(self.mailbox.sent(message.number)):
                return message.number - 1
            self.reader.pushed = message.number
        return None

    def settle(self) -> None:
        """Until nothing happens any more."""
        if self.has_unseen:
            self.reader.look_again()
            self.has_unseen = False
        self.ask()
        while self.question is not None or self.outbox or self.in_flight:
            self.answer(fails=False)
            self.flush()
            self.written()


class Mailbox:
    """One box, whose epochs are numbered. The latest data can be lost."""

    def __init__(self) -> None:
        self.box, self.contents = Box(), dict[int, int]()
        self.given = 0
        self.saved = [(self.box, self.contents)]

    def sent(self, number: int) -> Sent:
        return Sent(self.contents[number], Position(number, self.box.epoch))

    def append(self) -> int:
        self.box, self.given = self.box.append(), self.given + 1
        self.contents = self.contents | {self.box.last: self.given}
        self.saved.append((self.box, self.contents))
        return self.box.last

    def mark(self, mark: Mark) -> None:
        self.box = mark.on(self.box)

    def page(self, after: int) -> Page:
        first = max(after, self.box.gone) + 1
        numbers = range(first, min(first + 1, self.box.last) + 1)
        messages = [StoredMessage(number, b"", 0) for number in numbers]
        return Page(messages, self.box.gone, self.box.last, self.box.base, self.box.acked or 0)

    def lose_latest(self, messages: int) -> None:
        box, self.contents = self.saved[max(-len(self.saved), -1 - messages)]
        box = box.lose(self.box.gone)  # what has expired does not come back
        epoch = self.box.epoch + 1
        self.box = replace(box, epoch=epoch, cuts=(*box.cuts, (epoch, box.last)))
        self.saved = [(self.box, self.contents)]


class Delivering(RuleBasedStateMachine):
    """On each connection a device gets each message at most once and in order, and in the end everything that the box
    has and that it does not have yet. Without a loss of the mailbox, what it does not get is counted as missed."""

    def __init__(self) -> None:
        super().__init__()
        self.mailbox = Mailbox()
        self.connection = Connection(self.mailbox, None)
        self.has: list[Sent] = []

    @rule(count=st.integers(1, 4), is_seen=st.booleans())
    def store(self, count: int, is_seen: bool) -> None:
        for _ in range(count):
            number = self.mailbox.append()
            if is_seen:
                self.connection.stored(number)
            else:
                self.connection.has_unseen = True

    @rule(messages=st.integers(0, 5))
    def lose_latest(self, messages: int) -> None:
        self.mailbox.lose_latest(messages)

    @rule(up_to=st.integers(1, 20))
    def expire(self, up_to: int) -> None:
        self.mailbox.box = self.mailbox.box.lose(up_to)

    @rule(back=st.none() | st.integers(0, 3))
    def reconnect(self, back: int | None) -> None:
        """Without a cursor, or with one of the latest."""
        after = None
        if back is not None:
            after = self.has[-1 - back].position if back < len(self.has) else NO_CURSOR_YET
            if self.mailbox.box.find(after) is None:
                after = NO_CURSOR_YET
        self.connection = Connection(self.mailbox, after)

    @rule(fails=st.booleans())
    def answer(self, fails: bool) -> None:
        self.connection.answer(fails)

    @rule()
    def look_again(self) -> None:
        self.connection.reader.look_again()
        self.connection.ask()

    @rule(is_taken=st.booleans())
    def write(self, is_taken: bool) -> None:
        connection = self.connection
        connection.flush()
        if is_taken:
            connection.written()
            self._note()

    @precondition(lambda self: self.has)
    @rule(back=st.integers(0, 3))
    def acknowledge(self, back: int) -> None:
        self.connection.acknowledge(self.has[max(-len(self.has), -1 - back)].position)

    @rule()
    def settle(self) -> None:
        connection = self.connection
        connection.settle()
        self._note()
        box, has = self.mailbox.box, {sent.content for sent in self.has}
        for number in range(box.gone + 1, box.last + 1):
            assert self.mailbox.contents[number] in has
        assert connection.reader.feed.is_live
        if connection.may_count and connection.start is not None:
            accounted = sum(sent.missed or 1 for sent in connection.received)
            assert connection.start + accounted == box.last

    def teardown(self) -> None:
        self.settle()

    def _note(self) -> None:
        known = {sent.content for sent in self.has}
        self.has += [sent for sent in self.connection.received if sent.content not in known | {None}]

    @invariant()
    def each_once_and_in_order(self) -> None:
        contents = [sent.content for sent in self.connection.received if sent.content is not None]
        assert contents == sorted(set(contents))


TestDelivering = Delivering.TestCase
TestDelivering.settings = examples(80, steps=30)
