"""Reading a device's box, sending and marking its messages, across losses of the mailbox.

The two lanes on one connection, and overtaking, are in ``test_delivery_machine.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cocoa_tornado.connection.box_reader import BoxReader
from cocoa_tornado.connection.questions import LATER, LOOK, REFUSED, Ack, Question, latest
from cocoa_tornado.rules.box import (
    NO_CURSOR_YET,
    Box,
    Epochs,
    Lane,
    LaneName,
    Mark,
    PageLimits,
    Position,
    StoredMessage,
)
from cocoa_tornado.rules.feed import LaneRead, Page
from cocoa_tornado.rules.retracted import Retracted

from ..profiles import examples

KEY, OTHER_KEY = b"key", b"other"
LIMITS = PageLimits(16, 1600)
EMPTY, FIRST = Lane(), Epochs()


def box(last: int, *, high: Lane = EMPTY, acked: int | None = None, written: int = 0, epochs: Epochs = FIRST) -> Box:
    return Box(Lane(0, last, acked or 0, acked, written), high, epochs)


def after_a_loss(last: int, kept: int) -> Box:
    """In the next epoch, after all but the messages up to ``kept`` were lost."""
    return Box(Lane(last=last, cuts=((1, kept),)), epochs=Epochs(1))


def page(*numbers: int, last: int = 0, acked: int = 0, retracted: Retracted = ()) -> Page:
    return Page([StoredMessage(number, b"{}", 0) for number in numbers], last, 0, acked, retracted)


def opened(at: Box, after: Position | None = None) -> BoxReader:
    reader = BoxReader(after)
    assert ask(reader) is LOOK
    reader.looked(at, KEY)
    return reader


def ask(reader: BoxReader, has_room: bool = True, has_room_for_high: bool = True) -> Question | None:
    return reader.ask(has_room, has_room_for_high, LIMITS)


def reads(reader: BoxReader, has_room: bool = True, has_room_for_high: bool = True) -> list[tuple[str, int, int]]:
    """Which lanes are read, after which number, and how many messages at most."""
    question = ask(reader, has_room, has_room_for_high)
    assert question is not None
    return [(lane, after, limits.max_messages) for lane, after, limits in question.reads]


def push(reader: BoxReader, lane: LaneName, number: int) -> None:
    assert reader.feed(lane).stored(number)
    reader.pushed(lane, number)


def write(reader: BoxReader, *messages: tuple[LaneName, int]) -> list[tuple[int, Position]]:
    """The socket takes these at once. Returns what their gap notices name, and their cursors' positions."""
    reader.begin_write()
    gifts = [reader.give(lane, reader.ticket(number)) for lane, number in messages]
    reader.given(len(messages))
    return [(missed, position) for position, missed in gifts]


# -- questions


def test_a_message_begun_long_ago_does_not_take_the_next_connection_back() -> None:
    reader = opened(box(0))
    push(reader, "normal", 1)
    reader.begin_write()
    reader.give("normal", reader.ticket(1))
    assert reader.stand_by(1) == Position(1)
    reader.go_on(Position(5))  # another connection has written up to there, and this one is still busy with the first
    assert ask(reader) is LOOK
    reader.looked(box(5), KEY)
    assert reader.stand_by(1) == Position(5)


def test_a_reader_that_stands_by_names_no_messages_that_an_epoch_has_lost() -> None:
    reader = BoxReader(None)
    reader.stands_by = True
    assert ask(reader) is LOOK
    reader.looked(box(5), KEY)
    assert reader.follow(1, KEY)
    assert ask(reader) is LOOK
    assert reader.looked(after_a_loss(3, 3), KEY).missed == 0


def test_a_reader_that_is_to_go_on_reads_again_what_it_had_asked_for() -> None:
    reader = opened(box(3))
    assert reads(reader) == [("normal", 0, 16)]
    reader.go_on(None)  # what another connection had begun to write comes here, and the answer is not waited for
    assert reads(reader) == [("high", 0, 16), ("normal", 0, 16)]


def test_a_hand_over_leaves_nothing_behind() -> None:
    reader = opened(box(5))
    for _ in range(100):
        reader.stand_by(0)
        reader.go_on(Position(5))
        assert ask(reader) is LOOK
        reader.looked(box(5), KEY)
    assert reader.ticket(6) == 6
    assert reader._earlier == ()


def test_a_connection_remembers_a_few_epochs_and_skips_the_numbers_of_earlier_ones() -> None:
    reader = opened(box(9))
    tickets = [reader.ticket(9)]
    for epoch in range(1, 100):
        assert reader.follow(epoch, KEY)
        assert ask(reader) is LOOK
        reader.looked(Box(Lane(last=9), epochs=Epochs(epoch)), KEY)
        tickets.append(reader.ticket(9))
    assert len(reader._earlier) == 8
    reader.begin_write()
    assert [reader.give("normal", ticket)[0].normal for ticket in (tickets[0], tickets[-10], tickets[-9])] == [0, 0, 9]


def test_a_connection_looks_at_its_box_first_and_asks_nothing_else_meanwhile() -> None:
    reader = BoxReader(None)
    assert ask(reader) is LOOK
    assert not reader.may_ask
    assert ask(reader) is None
    reader.looked(box(3), KEY)
    assert reads(reader) == [("normal", 0, 16)]
    assert ask(reader) is None


def test_a_page_is_read_only_when_there_is_room_for_it() -> None:
    reader = opened(box(3))
    assert ask(reader, has_room=False) is None
    assert reader.may_ask
    assert reads(reader) == [("normal", 0, 16)]


def test_one_question_asks_for_both_lanes_high_first() -> None:
    assert reads(opened(box(30, high=Lane(last=3)))) == [("high", 0, 16), ("normal", 0, 16)]


def test_while_more_high_messages_wait_than_a_page_holds_normal_ones_get_an_eighth() -> None:
    assert reads(opened(box(30, high=Lane(last=16)))) == [("high", 0, 16), ("normal", 0, 16)]
    assert reads(opened(box(30, high=Lane(last=17)))) == [("high", 0, 16), ("normal", 0, 2)]


def test_the_lane_of_high_priority_is_read_while_normal_messages_are_queued() -> None:
    reader = opened(box(0))
    push(reader, "normal", 1)
    assert not reader.high.stored(2)
    assert ask(reader, has_room=False, has_room_for_high=False) is None
    assert reads(reader, has_room=False) == [("high", 0, 16)]


def test_a_question_without_an_answer_is_asked_again() -> None:
    reader = BoxReader(None)
    for _ in range(2):
        assert ask(reader) is LOOK
        reader.failed()
    ask(reader)
    reader.looked(box(2), KEY)
    for _ in range(2):
        assert reads(reader) == [("normal", 0, 16)]
        reader.failed()


def test_what_is_stored_unseen_is_found_by_another_look_however_many_say_so() -> None:
    reader = opened(box(0))
    assert ask(reader) is None
    reader.look_again()
    assert ask(reader) is LOOK
    reader.look_again()  # it may have been stored after the box was looked at
    reader.look_again()
    reader.looked(box(0), KEY)
    assert ask(reader) is LOOK
    reader.looked(box(0), KEY)
    assert ask(reader) is None


def test_a_page_of_both_lanes_finds_it_as_well() -> None:
    reader = opened(box(2))
    reader.look_again()
    assert reads(reader) == [("high", 0, 16), ("normal", 0, 16)]
    assert not reader.arrived([page(last=0), page(1, 2, last=2)]).high
    reader.delivered()
    assert ask(reader) is None


def test_what_is_stored_unseen_in_the_other_lane_is_found_though_a_lane_is_behind() -> None:
    reader = opened(box(2))
    reader.look_again()
    assert ask(reader, has_room=False) is LOOK
    reader.looked(box(2, high=Lane(last=1)), KEY)
    assert reads(reader, has_room=False) == [("high", 0, 16)]


def test_a_question_that_failed_leaves_nothing_unseen() -> None:
    reader = opened(box(2))
    reader.look_again()
    ask(reader)
    reader.failed()
    assert reads(reader) == [("high", 0, 16), ("normal", 0, 16)]


def test_nothing_is_asked_while_a_delivery_is_being_queued() -> None:
    reader = opened(box(5))
    ask(reader)
    reader.arrived([page(1, 2, last=5)])
    assert ask(reader) is None
    reader.delivered()
    assert reads(reader) == [("normal", 2, 16)]


def test_what_has_no_room_is_read_again() -> None:
    reader = opened(box(5))
    ask(reader)
    reader.arrived([page(1, 2, 3, last=5)])
    reader.no_room("normal", 2)
    reader.delivered()
    assert reads(reader) == [("normal", 1, 16)]


def test_where_a_connection_is_does_not_change_because_another_one_has_written_more() -> None:
    reader = opened(box(2))
    reader.look_again()
    ask(reader, has_room=False)
    reader.looked(box(5, written=4), KEY)
    assert reads(reader) == [("normal", 0, 16)]


# -- cursors


def test_a_cursor_says_what_was_given_in_both_lanes() -> None:
    reader = opened(box(0))
    for number in (1, 2):
        push(reader, "normal", number)
    push(reader, "high", 1)
    assert write(reader, ("high", 1), ("normal", 1)) == [(0, Position(0, 0, 1)), (0, Position(1, 0, 1))]
    assert write(reader, ("normal", 2)) == [(0, Position(2, 0, 1))]


def test_what_the_socket_has_not_begun_to_take_gets_another_cursor_if_something_overtakes_it() -> None:
    reader = opened(box(0))
    for number in (1, 2):
        push(reader, "normal", number)
    reader.begin_write()
    assert [reader.give("normal", number)[0] for number in (1, 2)] == [Position(1), Position(2)]
    reader.given(1)
    push(reader, "high", 1)
    assert write(reader, ("high", 1), ("normal", 2)) == [(0, Position(1, 0, 1)), (0, Position(2, 0, 1))]


def test_a_device_that_was_given_nothing_of_high_priority_gets_short_cursors() -> None:
    reader = opened(Box.new(40))
    push(reader, "normal", 41)
    push(reader, "high", 41)
    assert write(reader, ("normal", 41), ("high", 41)) == [(0, Position(41)), (0, Position(41, 0, 41))]


def test_the_position_is_unknown_before_the_box_was_looked_at_unless_a_cursor_names_it() -> None:
    assert BoxReader(None).here is None
    assert BoxReader(NO_CURSOR_YET).here is None
    assert BoxReader(Position(3, 0, 2)).here == Position(3, 0, 2)


# -- gaps


def test_one_notice_before_a_page_names_what_is_missed_in_both_lanes() -> None:
    reader = opened(box(9, high=Lane(last=5)))
    ask(reader)
    arrived = reader.arrived([page(3, last=5), page(4, 6, last=9)])
    assert ([m.number for m in arrived.high], [m.number for m in arrived.normal]) == ([3], [4, 6])
    # It stands before either lane, so the cursors include what it names.
    missed, position = write(reader, ("high", 3))[0]
    assert (missed, position) == (2 + 4, Position(3, 0, 3))
    assert write(reader, ("normal", 4)) == [(0, Position(4, 0, 3))]


def test_a_notice_that_was_not_written_is_repeated() -> None:
    reader = opened(box(3))
    ask(reader)
    reader.arrived([page(3, last=3)])
    for _ in range(2):
        reader.begin_write()
        assert reader.give("normal", 3)[1] == 2
    assert reader.given(1) == 1
    reader.begin_write()
    assert reader.give("normal", 4)[1] == 0


@pytest.mark.parametrize(("acked", "expected"), [(0, Position(4)), (None, None)])
def test_a_gap_with_nothing_behind_it_is_acknowledged_for_a_device_that_acknowledges(
    acked: int | None, expected: Position | None
) -> None:
    reader = opened(box(4, acked=acked))
    ask(reader)
    assert reader.arrived([page(last=4)]).notice == ("normal", 4)
    assert reader.take_gap() is None
    assert write(reader, ("normal", 4)) == [(4, Position(4))]
    assert reader.take_gap() == expected
    assert reader.take_gap() is None


def test_in_both_lanes_it_is_acknowledged_with_one_position() -> None:
    reader = opened(box(4, acked=0, high=Lane(last=2, acked=0)))
    ask(reader)
    assert reader.arrived([page(last=2), page(last=4)]).notice == ("high", 2)
    assert write(reader, ("high", 2)) == [(6, Position(4, 0, 2))]
    assert reader.take_gap() == Position(4, 0, 2)


def test_a_gap_is_not_acknowledged_before_the_messages_in_front_of_it_are() -> None:
    reader = opened(box(4, acked=0))
    ask(reader)
    reader.arrived([page(1, 2, last=4)])
    reader.delivered()
    write(reader, ("normal", 1), ("normal", 2))
    assert reads(reader) == [("normal", 2, 16)]
    reader.arrived([page(last=4)])
    write(reader, ("normal", 4))
    assert reader.take_gap() is None
    assert reader.acknowledge(Position(1)) == Ack(Position(1))
    assert reader.acknowledge(Position(2)) == Ack(Position(4))


def test_a_gap_before_messages_is_acknowledged_with_them() -> None:
    reader = opened(box(4, acked=0))
    ask(reader)
    assert reader.arrived([page(4, last=4)]).notice is None
    assert write(reader, ("normal", 4)) == [(3, Position(4))]
    assert reader.take_gap() is None


# -- messages that leave the outbox


def test_in_place_of_what_has_expired_in_the_outbox_the_device_is_notified() -> None:
    reader = opened(box(0))
    for number in range(1, 5):
        push(reader, "normal", number)
    assert [reader.expired("normal", number) for number in (2, 3)] == [4, 0]  # one empty message, behind the last
    reader.pushed("normal", 4)
    assert write(reader, ("normal", 1), ("normal", 4)) == [(0, Position(1)), (2, Position(4))]
    assert write(reader, ("normal", 4)) == [(0, Position(4))]  # the empty one, which is skipped


def test_it_is_notified_though_no_message_follows() -> None:
    reader = opened(box(0, acked=0))
    for number in range(1, 4):
        push(reader, "normal", number)
    write(reader, ("normal", 1))
    reader.acknowledge(Position(1))
    assert [reader.expired("normal", number) for number in (2, 3)] == [3, 0]
    assert write(reader, ("normal", 3)) == [(2, Position(3))]
    assert reader.take_gap() == Position(3)


def test_what_makes_room_for_high_messages_is_read_from_the_box_once_more() -> None:
    reader = opened(box(0))
    for number in range(1, 5):
        push(reader, "normal", number)
    reader.expired("normal", 4)
    reader.withdrawn(reader.ticket(3))
    assert reads(reader) == [("normal", 2, 16)]
    arrived = reader.arrived([page(3, last=4)])
    reader.delivered()
    assert [message.number for message in arrived.normal] == [3]
    assert write(reader, ("normal", 1), ("normal", 2), ("normal", 3))[-1] == (0, Position(3))
    assert reads(reader) == [("normal", 3, 16)]
    reader.arrived([page(last=4)])
    assert write(reader, ("normal", 4)) == [(1, Position(4))]


# -- epochs


def test_an_epoch_that_ends_voids_the_question_and_the_box_is_looked_at_again() -> None:
    reader = opened(box(5))
    ask(reader)
    assert not reader.follow(0, KEY)
    assert reader.follow(1, KEY)
    assert not reader.follow(1, KEY)
    assert ask(reader) is LOOK


def test_messages_lost_with_their_epoch_are_missed_if_they_had_not_been_sent() -> None:
    reader = opened(box(5))
    ask(reader)
    reader.arrived([page(1, 2, 3, last=5)])
    reader.delivered()
    reader.follow(1, KEY)
    ask(reader)
    assert reader.looked(after_a_loss(4, kept=4), KEY).missed == 1
    assert reads(reader) == [("normal", 3, 16)]


def test_what_is_still_queued_of_an_earlier_epoch_has_cursors_of_the_new_one() -> None:
    reader = opened(box(0))
    for number in range(1, 6):
        push(reader, "normal", number)
    write(reader, ("normal", 1))
    old = [reader.ticket(number) for number in range(2, 6)]
    reader.follow(1, KEY)
    reader.looked(after_a_loss(3, kept=3), KEY)
    push(reader, "normal", 4)
    reader.begin_write()
    # 4 and 5 of the earlier epoch were lost with it. Another message is number 4 now.
    tickets = [*old, reader.ticket(4)]
    positions = [reader.give("normal", ticket)[0] for ticket in tickets]
    assert positions == [Position(number, 1) for number in (2, 3, 3, 3, 4)]
    assert all(ticket < reader.least_ticket for ticket in old)


def test_another_mailbox_knows_nothing_of_the_old_ones_numbers() -> None:
    reader = opened(box(5))
    write(reader, ("normal", 5))
    reader.follow(1, OTHER_KEY)
    ask(reader)
    assert reader.looked(Box(Lane(last=2), epochs=Epochs(1)), OTHER_KEY).missed == 0
    assert reader.written() is None
    assert reads(reader) == [("normal", 0, 16)]


# -- marks


def test_what_the_socket_has_taken_is_marked_once() -> None:
    reader = opened(box(0))
    push(reader, "normal", 1)
    assert reader.written() is None
    write(reader, ("normal", 1))
    assert reader.written() == Position(1)
    assert reader.written() is None
    push(reader, "high", 1)
    write(reader, ("high", 1))
    assert reader.written() == Position(1, 0, 1)


def test_what_an_earlier_connection_has_marked_is_not_marked_again() -> None:
    reader = opened(box(3, written=2), Position(0))
    write(reader, ("normal", 2))
    assert reader.written() is None
    write(reader, ("normal", 3))
    assert reader.written() == Position(3)


def test_a_number_that_is_given_again_in_another_epoch_is_marked_again() -> None:
    reader = opened(box(5))
    write(reader, ("normal", 5))
    assert reader.written() == Position(5)
    reader.follow(1, KEY)
    ask(reader)
    reader.looked(after_a_loss(4, kept=4), KEY)
    assert reader.written() is None
    write(reader, ("normal", 5))
    assert reader.written() == Position(5, 1)


# -- acknowledgements


def test_an_acknowledgement_before_the_look_waits_for_it() -> None:
    reader = BoxReader(None)
    assert reader.acknowledge(Position(3)) is LATER
    ask(reader)
    assert reader.looked(box(5), KEY).ack == Ack(Position(3))
    assert reads(reader) == [("normal", 3, 16)]
    assert reader.early is None


def test_one_beyond_the_end_of_either_lane_is_refused_before_and_after() -> None:
    reader = BoxReader(None)
    reader.acknowledge(Position(6))
    ask(reader)
    assert reader.looked(box(5), KEY).ack is REFUSED
    assert reader.acknowledge(Position(6)) is REFUSED
    assert reader.acknowledge(Position(-1)) is REFUSED
    assert reader.acknowledge(Position(5, 0, 1)) is REFUSED


def test_of_two_acknowledgements_the_higher_numbers_count_and_of_two_epochs_the_newer() -> None:
    assert latest(None, Position(1)) == Position(1)
    assert latest(Position(3, 0, 1), Position(1, 0, 2)) == Position(3, 0, 2)
    assert latest(Position(1), Position(3)) == Position(3)
    assert latest(Position(3, 0), Position(1, 1)) == Position(1, 1)


def test_one_of_an_earlier_epoch_stands_for_what_is_left_of_it() -> None:
    reader = opened(box(5))
    reader.follow(1, KEY)
    ask(reader)
    reader.looked(after_a_loss(4, kept=4), KEY)
    assert reader.acknowledge(Position(5, 0)) == Ack(Position(4, 1))
    assert reader.acknowledge(Position(5, 7)) is REFUSED


# -- a device, its connections, and a mailbox that loses its latest data


class Sent(NamedTuple):
    """A frame: :ivar content: of a message, never given twice; None: a gap notice"""

    content: int | None
    position: Position
    missed: int = 0


class InOutbox(NamedTuple):
    """:ivar content: None: a gap notice alone"""

    content: int | None
    ticket: int


class Connection:
    """A shell like ``feed.py``, whose outbox has room for a few messages of the normal lane. The device has what the
    socket has taken."""

    def __init__(self, mailbox: Mailbox, after: Position | None) -> None:
        self.mailbox, self.reader = mailbox, BoxReader(after)
        self.question: Question | None = None
        self.outbox: list[InOutbox] = []
        self.in_flight: list[InOutbox] = []
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
            has_room = not self.outbox and not self.in_flight
            self.question = self.reader.ask(has_room, True, LIMITS)

    def offer(self, number: int, content: int | None) -> bool:
        if len(self.outbox) + len(self.in_flight) >= 2:
            return False
        self.outbox.append(InOutbox(content, self.reader.ticket(number)))
        self.reader.pushed("normal", number)
        return True

    def stored(self, number: int) -> None:
        self.follow()
        if not self.reader.normal.stored(number):
            self.ask()
        elif not self.offer(number, self.mailbox.contents[number]):
            self.reader.no_room("normal", number)

    def flush(self) -> None:
        if not self.in_flight:
            self.in_flight, self.outbox = self.outbox, []
            self.reader.begin_write()
            for content, ticket in self.in_flight:
                position, missed = self.reader.give("normal", ticket)
                if missed:
                    self.received.append(Sent(None, position, missed))
                if content is not None:
                    self.received.append(Sent(content, position))

    def written(self) -> None:
        self.reader.given(len(self.in_flight))
        self.in_flight = []
        position = self.reader.written()
        if position is not None:
            self.mailbox.mark(Mark(written=position.numbers, epoch=position.epoch))
        if (gap := self.reader.take_gap()) is not None:
            self.mailbox.mark(Mark(acked=gap.numbers, epoch=gap.epoch))
        self.ask()

    def acknowledge(self, position: Position) -> None:
        self.ask()
        before = self.reader.normal.position
        self.carry_out(self.reader.acknowledge(position))
        self.may_count &= self.reader.normal.position == before and self.reader.early is None

    def carry_out(self, ack: Ack) -> None:
        if ack.position is not None:
            self.mailbox.mark(Mark(acked=ack.position.numbers, epoch=ack.position.epoch))

    def answer(self, fails: bool) -> None:
        self.follow()
        question, self.question = self.question, None
        if question is not None and fails:
            self.reader.failed()
        elif question is LOOK:
            missed, ack = self.reader.looked(self.mailbox.box, KEY)
            if self.start is None:
                self.start = self.reader.normal.position
            if missed:
                self.received.append(Sent(None, Position(0), missed))
            if ack is not None:
                self.carry_out(ack)
        elif question is not None:
            self.deliver([self.mailbox.page(read) for read in question.reads])
            self.reader.delivered()
        self.ask()

    def deliver(self, found: Sequence[Page]) -> None:
        arrived = self.reader.arrived(found)
        for message in arrived.normal:
            if not self.offer(message.number, self.mailbox.contents[message.number]):
                self.reader.no_room("normal", message.number)
                return
        if arrived.notice is not None:
            self.offer(arrived.notice[1], None)

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

    @property
    def lane(self) -> Lane:
        return self.box.normal

    def append(self) -> int:
        self.box, self.given = self.box.with_lane("normal", self.lane.append(self.box.epochs)), self.given + 1
        self.contents = self.contents | {self.lane.last: self.given}
        self.saved.append((self.box, self.contents))
        return self.lane.last

    def mark(self, mark: Mark) -> None:
        self.box = mark.on(self.box)

    def expire(self, up_to: int) -> None:
        self.box = self.box.with_lane("normal", self.lane.lose(up_to))

    def page(self, read: LaneRead) -> Page:
        if read.lane == "high":
            return Page((), 0)
        lane = self.lane
        first = max(read.after, lane.gone) + 1
        numbers = range(first, min(first + 1, lane.last) + 1)
        messages = [StoredMessage(number, b"", 0) for number in numbers]
        return Page(messages, lane.last, lane.base, lane.acked or 0)

    def lose_latest(self, messages: int) -> None:
        box, self.contents = self.saved[max(-len(self.saved), -1 - messages)]
        lane = box.normal.lose(self.lane.gone)  # what has expired does not come back
        epoch = self.box.epoch + 1
        lane = lane._replace(cuts=(*lane.cuts, (epoch, lane.last)))
        high = box.high._replace(cuts=(*box.high.cuts, (epoch, 0)))
        self.box = Box(lane, high, Epochs(epoch))
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
        self.mailbox.expire(up_to)

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
        lane, has = self.mailbox.lane, {sent.content for sent in self.has}
        for number in range(lane.gone + 1, lane.last + 1):
            assert self.mailbox.contents[number] in has
        assert connection.reader.normal.is_live
        if connection.may_count and connection.start is not None:
            accounted = sum(sent.missed or 1 for sent in connection.received)
            assert connection.start + accounted == lane.last

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


# -- standing by


def test_a_connection_that_stands_by_looks_but_reads_nothing() -> None:
    reader = BoxReader(None)
    reader.stands_by = True
    assert ask(reader) is LOOK
    reader.looked(box(3), KEY)
    assert (ask(reader), reader.may_ask) == (None, False)


def test_it_goes_on_where_the_other_one_has_stopped() -> None:
    active, reader = opened(box(5)), BoxReader(Position(1))
    reader.stands_by = True
    ask(reader)
    reader.looked(box(5), KEY)
    ask(active)
    active.arrived([page(1, 2, 3, 4, 5, last=5)])
    active.delivered()
    write(active, ("normal", 1), ("normal", 2), ("normal", 3))
    reader.go_on(active.stand_by(0))
    assert ask(reader) is LOOK
    reader.looked(box(5), KEY)
    assert reads(reader) == [("normal", 3, 16)]


def test_a_page_that_is_under_way_is_asked_for_again_when_another_one_has_ended() -> None:
    reader = opened(box(3))
    ask(reader)
    reader.go_on(None)
    assert reads(reader)[-1] == ("normal", 0, 16)


def test_an_acknowledgement_to_a_connection_that_stands_by_waits_for_a_look() -> None:
    reader = opened(box(0))
    reader.stands_by = True
    assert reader.acknowledge(Position(2)) == LATER
    assert ask(reader) is LOOK
    assert reader.looked(box(3), KEY).ack == Ack(Position(2))
    assert reader.acknowledge(Position(9)) == LATER
    assert ask(reader) is LOOK
    assert reader.looked(box(3), KEY).ack == REFUSED
