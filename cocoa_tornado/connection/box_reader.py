"""How one connection reads its device's box: what to ask the mailbox, what to send, what to mark. Pure: ``feed.py``
carries it out.

Each lane of the box has a :class:`~cocoa_tornado.rules.feed.Feed`, the connection's position within one epoch of the
mailbox. This module combines the lanes, continues across epochs, and keeps track of the pending question to the
mailbox: at most one at a time.

=======  =======================================================  ======================================================
feed     means                                                    next question
=======  =======================================================  ======================================================
unknown  the box has not been looked at, or not in this epoch     a look
behind   the lane has messages that were not sent                 a page: of the normal lane once the socket has taken
                                                                  everything; of the high lane once no message of high
                                                                  priority is queued
live     everything stored was sent                               a look, if something may have been stored unseen
=======  =======================================================  ======================================================

A message that is stored while the feed of its lane is live is sent directly. If the outbox has no room for it, the feed
falls behind, and the message is read from the box later: a slow device delays only itself.

The socket takes messages in another order than that of the box: those of high priority overtake the others. So a cursor
is made when its message is given to the socket. It encodes what was given before, in both lanes: call
:meth:`BoxReader.give` for each message of a write, and :meth:`BoxReader.given` once the socket has taken them.

A gap notice (``gap_notices.py``) is written in front of the next message. Where none follows, an empty message is
queued, to be given as its notice alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from ..rules.box import LANES, NO_CURSOR_YET, Box, LaneName, Numbers, PageLimits, Position, StoredMessage
from ..rules.feed import Feed, LaneRead, Page
from .gap_notices import GapNotices, in_lane, of_lane
from .questions import LATER, LOOK, REFUSED, Ack, Arrived, Looked, Lost, Question, latest

NORMALS_FOR_HIGH: Final = 8
"""While more messages of high priority wait than a page holds, a page of the normal lane is this many times smaller:
contract section 9."""
_EPOCH_SHIFT: Final = 48
"""Numbers are lower than 2**48 (``rules/cursors.py``)."""
_ONE_EPOCH: Final = 1 << _EPOCH_SHIFT
_EARLIER_EPOCHS: Final = 8
"""How many epochs to remember. Messages that were queued before them, and are still queued, count as unknown to the
mailbox."""


_NEW: Final = tuple.__new__
"""Like Numbers(...), without the Python function that a NamedTuple has for it."""


class BoxReader:
    """See the module. All numbers belong to :attr:`epoch`, until :meth:`follow` returns that it is over.

    In the outbox a message has a *ticket*: its number and, above 48 bits, how many epochs of the mailbox the connection
    had seen when it was queued. Messages that were queued in an earlier epoch are sent as well.

    Without gaps, a message that is queued, given and marked as written costs no more than its two positions.

    :param after: the position of the cursor that the device named, if any
    :ivar normal: the position in the lane of normal and low priority, within this epoch
    :ivar high: the same in the lane of high priority
    :ivar key: the MAC key of the mailbox that gave the numbers; None until the box was looked at
    :ivar early: acknowledged before the box was looked at
    :ivar stands_by: another connection of the device gets its messages: nothing is read
    :ivar least_ticket: that of the beginning of the box. A message with a lower one was queued in an earlier epoch, and
        may not be withdrawn
    """

    __slots__ = (
        "_acked",
        "_after",
        "_asked",
        "_at",
        "_begun",
        "_earlier",
        "_given",
        "_has_acked",
        "_high_base",
        "_lost",
        "_marked",
        "_notices",
        "_pushed",
        "_wants_look",
        "_writing",
        "early",
        "epoch",
        "high",
        "key",
        "least_ticket",
        "normal",
        "stands_by",
    )

    def __init__(self, after: Position | None) -> None:
        self._after = after
        self.normal, self.high = Feed(), Feed()
        self.epoch = 0
        self.key: bytes | None = None
        self._begun: Box | None = None  # the box when it was first looked at in this epoch, unless this is the first
        self._earlier: tuple[tuple[int, bytes], ...] = ()  # the epochs before, each with its mailbox's key
        self.least_ticket = 0
        self._high_base = 0
        self._lost: Lost | None = None
        self._asked: Question | None = None
        self._wants_look = True
        # What the socket has taken, including the current write, and the position behind each of the write's messages.
        self._given = self._at = self._marked = Numbers()
        self._writing: list[Numbers] = []
        self._pushed = [0, 0]  # of the outbox's lanes: the last number
        self._notices: GapNotices | None = None  # while there never was a gap
        self._acked = Numbers()
        self._has_acked = False  # on this connection or an earlier one
        self.early: Position | None = None
        self.stands_by = False

    def __repr__(self) -> str:
        return f"<BoxReader {self.normal!r} high {self.high!r}>"

    @property
    def _is_open(self) -> bool:
        return self.normal.opened

    def feed(self, lane: LaneName) -> Feed:
        return self.high if lane == "high" else self.normal

    def is_caught_up(self, lane: LaneName) -> bool:
        """True if everything that was stored in a lane has been passed on, so what is not stored may be sent."""
        return self.feed(lane).is_live and self.knows_all

    @property
    def knows_all(self) -> bool:
        """False if something may have been stored that the feeds do not know of, or until an answer has arrived."""
        return self._is_open and not self._wants_look and self._asked is None

    @property
    def wants_look(self) -> bool:
        """True if something may have been stored that no question under way would show."""
        return self._wants_look

    # -- questions

    @property
    def may_ask(self) -> bool:
        """Whether :meth:`ask` would return a question, if there is room for a page."""
        normal, high = self.normal, self.high
        if normal.position >= normal.last and high.position >= high.last and not self._wants_look:  # nearly always
            return False
        is_behind = (normal.is_behind or high.is_behind) and not self.stands_by
        return self._asked is None and (self._wants_look or is_behind)

    def ask(self, has_room: bool, has_room_for_high: bool, limits: PageLimits) -> Question | None:
        """Return the next question; None if there is none, or an answer is awaited.

        :param has_room: nothing is queued
        :param has_room_for_high: nothing of high priority is queued
        :param limits: of a page
        """
        if self._asked is not None:
            return None
        lanes = [] if self.stands_by else self._lanes_to_read(has_room, has_room_for_high)
        if lanes:
            self._asked = Question(tuple(self._reads(lanes, limits)))
            # Pages also say which messages there are, so nothing that was stored before is unseen.
            self._wants_look = self._wants_look and len(lanes) < len(LANES)
        elif self._wants_look and (self.stands_by or not (self.normal.is_behind and self.high.is_behind)):
            self._asked, self._wants_look = LOOK, False
        return self._asked

    def _lanes_to_read(self, has_room: bool, has_room_for_high: bool) -> list[LaneName]:
        reads_high = self.high.is_behind and has_room_for_high
        reads_normal = self.normal.is_behind and has_room
        if self._wants_look and (reads_high or reads_normal):  # and not another question after this one
            reads_high, reads_normal = has_room_for_high, has_room
        return [*(("high",) if reads_high else ()), *(("normal",) if reads_normal else ())]

    def _reads(self, lanes: Sequence[LaneName], limits: PageLimits) -> Iterator[LaneRead]:
        for lane in lanes:
            within = limits
            if lane == "normal" and "high" in lanes and self.high.last - self.high.position > limits.max_messages:
                most, size = limits.max_messages // NORMALS_FOR_HIGH, limits.max_bytes // NORMALS_FOR_HIGH
                within = PageLimits(max(1, most), max(1, size))
            yield LaneRead(lane, self.feed(lane).read(), within)

    def failed(self) -> None:
        """The question had no answer. :meth:`ask` returns it again."""
        asked, self._asked = self._asked, None
        if asked is None:
            return
        for read in asked.reads:
            self.feed(read.lane).failed()
        # A lane that was read though it was not behind may have something unseen.
        self._wants_look |= asked is LOOK or not all(self.feed(read.lane).is_behind for read in asked.reads)

    def look_again(self) -> None:
        """Something may have been stored unseen. A look that is under way may have come before it."""
        self._wants_look = True

    def stand_by(self, begun: int) -> Position | None:
        """Another connection of the device takes over. Return the position at which it begins; None: it is unknown.

        :param begun: how many numbered messages this connection still finishes before it stops
        """
        self.stands_by = True
        if self._asked is not None:
            self.failed()
        if self._notices is not None:
            self._notices.clear()
        if not self._is_open:
            return self._after
        self._writing = self._writing[:begun]
        # The current write may date from before this connection last became a standby one.
        return self._position(self._given.joined(self._writing[-1]) if self._writing else self._given)

    def go_on(self, after: Position | None) -> None:
        """Take over from another connection: read the box from this position on. None: begin as if there had been no
        other."""
        self.stands_by = False
        if self._asked is not None:
            self.failed()
        if after is not None:
            self._after, self._lost = after, None
            self.normal, self.high = Feed(), Feed()
        self._wants_look = True

    def follow(self, epoch: int, key: bytes | None) -> bool:
        """Check whether the mailbox has begun another epoch. True: it has, and a pending answer is void."""
        if epoch == self.epoch or not self._is_open:
            return False
        self._end_epoch(key)
        self._asked, self._wants_look = None, True
        return True

    def _end_epoch(self, key: bytes | None) -> None:
        """The numbers have lost their meaning. The connection continues from its position."""
        normal, high = self.normal, self.high
        if key == self.key:
            self._after = Position(normal.position, self.epoch, high.position)
            self._lost = Lost(self._after.numbers, Position(normal.last, self.epoch, high.last))
        else:  # it is another mailbox, which knows no position of the old one
            self._after, self._lost = NO_CURSOR_YET, None
        self.normal, self.high = Feed(), Feed()

    # -- answers

    def looked(self, box: Box, key: bytes | None) -> Looked:
        """The box was looked at."""
        self._asked, missed = None, 0
        if box.epoch != self.epoch and self._is_open:
            self._end_epoch(key)
        if not self._is_open:
            start = box.start(self._after)
            self._begin_epoch(box, key, start)
            missed = self._missed_with_epoch(box)
            if self.stands_by:
                missed = 0  # the device is notified on the connection that gets its messages
        else:
            start = Numbers()  # where the connection is does not depend on others of its device
        self.normal.open(start.normal, box.normal.last)
        self.high.open(start.high, box.high.last)
        self._marked = self._marked.joined(box.written)
        self._note_acked(Numbers(*(lane.base if lane.acked is None else lane.acked for lane in (box.normal, box.high))))
        self._has_acked = self._has_acked or box.has_acked
        early, self.early = self.early, None
        return Looked(missed, None if early is None else self._judge(early))

    def _begin_epoch(self, box: Box, key: bytes | None, start: Numbers) -> None:
        if self.key is None:
            self._given = self._marked = start
        else:
            if (self.epoch, self.key) != (
                box.epoch,
                key,
            ):  # and not only another connection that has taken over meanwhile
                self._earlier = (*self._earlier, (self.epoch, self.key))[-_EARLIER_EPOCHS:]
                self.least_ticket += _ONE_EPOCH
            settle = partial(_settle, box if key == self.key else None, self.epoch)
            self._given, self._marked = settle(self._given), settle(self._marked)
            if self._lost is None:  # another connection has come this far; otherwise messages may still be queued
                self._given = self._given.joined(start)
            self._writing = [settle(position) for position in self._writing]
            if self._notices is not None:
                self._notices.renew(settle)
        self._acked, self._pushed = Numbers(), [0, 0]
        self._high_base = box.high.base
        self.epoch, self.key = box.epoch, key
        self._begun = box if box.epoch else None

    def _missed_with_epoch(self, box: Box) -> int:
        """How many messages for the device were lost with their epoch. If the device was offline when the whole mailbox
        was lost, the number is unknown and counts as one."""
        lost, self._lost = self._lost, None
        if lost is not None:
            return box.lost(*lost)
        return int(self._after is not None and box.may_have_lost(self._after))

    def arrived(self, pages: Sequence[Page]) -> Arrived:
        """The requested pages have arrived. Queue the messages that are returned, then call :meth:`delivered`; no
        question is asked before that."""
        assert self._asked is not None
        lanes = [read.lane for read in self._asked.reads]
        before = Numbers(self.normal.position, self.high.position)
        missed, messages, up_to = dict[LaneName, int](), dict[LaneName, Sequence[StoredMessage]](), [0, 0]
        for lane, page in zip(lanes, pages, strict=True):
            missed[lane], messages[lane] = self.feed(lane).page(page)
            found = messages[lane]
            up_to[lane == "high"] = found[0].number - 1 if found else self.feed(lane).position
            self._note_acked(in_lane(lane, max(page.acked, page.base)))
        arrived = Arrived(messages.get("high", ()), messages.get("normal", ()))
        if not any(missed.values()):
            return arrived
        notices = self._made_notices()
        notices.owe(Numbers(*up_to), sum(missed.values()))
        if arrived.high or arrived.normal:
            return arrived
        for lane, count in missed.items():
            if count:
                notices.note_trailing(lane, of_lane(before, lane), self.feed(lane).position)
        lane = "high" if missed.get("high") else "normal"
        return Arrived(notice=(lane, self.feed(lane).position))

    def delivered(self) -> None:
        """The messages of the pages are in the outbox, as far as it had room: see :meth:`no_room`."""
        self._asked = None

    # -- the outbox

    def ticket(self, number: int) -> int:
        """The ticket under which to queue a message now."""
        return self.least_ticket + number

    @staticmethod
    def number(ticket: int) -> int:
        """The number of a ticket of this epoch."""
        return ticket & (_ONE_EPOCH - 1)

    def pushed(self, lane: LaneName, number: int) -> None:
        """The message is in the outbox."""
        self._pushed[lane == "high"] = number

    def no_room(self, lane: LaneName, number: int) -> None:
        """The outbox had no room for this message and those behind it: they will be read from the box once more."""
        self.feed(lane).fall_behind(number - 1)

    def withdrawn(self, ticket: int) -> None:
        """The message with this ticket and all those behind it in the normal lane have been taken out of the outbox.
        They will be read from the box once more."""
        number = ticket - self.least_ticket
        self.no_room("normal", number)
        self._pushed[0] = number - 1
        if self._notices is not None:
            self._notices.withdrawn(number)

    def expired(self, lane: LaneName, ticket: int) -> int:
        """A queued message has expired: the device is notified in its place. Return the ticket of an empty message to
        queue behind all others of the lane, in case none of them follows; 0: one is queued already."""
        number, notices, pushed = self._located(lane, ticket), self._made_notices(), self._pushed[lane == "high"]
        notices.expired(lane, number)
        if ticket < self.least_ticket:
            return ticket
        if number == pushed:
            notices.expired_last(lane, number)
        return self.ticket(pushed) if notices.flush_behind(lane, pushed) else 0

    def _made_notices(self) -> GapNotices:
        if self._notices is None:
            self._notices = GapNotices()
        return self._notices

    # -- the socket

    def begin_write(self) -> None:
        """A write is about to be composed. Messages of an earlier write that the socket has not begun to take are
        chosen again."""
        self._at, self._writing = self._given, []
        if self._notices is not None:
            self._notices.begin_write()

    def give(self, lane: LaneName, ticket: int) -> tuple[Position, int]:
        """A message is part of the write, behind those for which this was called before. Return the position of its
        cursor, and how many messages a gap notice in front of it names; 0: there is none."""
        number, missed = ticket - self.least_ticket, 0
        if number < 0:
            number = self._located(lane, ticket)
        normal, high = self._at
        if lane == "high":
            high = max(high, number)
        elif number > normal:
            normal = number
        at = _NEW(Numbers, (normal, high))
        if self._notices is not None:
            at, missed = self._notices.name(at, len(self._writing))
        self._at = at
        self._writing.append(at)
        return self._position(at), missed

    @property
    def here(self) -> Position | None:
        """The position of what was given and is part of the write; None if it is unknown."""
        if self.key is None:
            return None if self._after is None or self._after.normal < 0 else self._after
        return self._position(self._at)

    def _position(self, at: Numbers) -> Position:
        normal, high = at
        # 0 stands for the beginning of the lane, and has a shorter cursor.
        return _NEW(Position, (normal, self.epoch, high if high > self._high_base else 0))

    def _located(self, lane: LaneName, ticket: int) -> int:
        """The number of a ticket in this epoch; 0: the mailbox does not know it."""
        if ticket >= self.least_ticket:
            return ticket - self.least_ticket
        ago = (self.least_ticket >> _EPOCH_SHIFT) - (ticket >> _EPOCH_SHIFT)
        epoch, key = self._earlier[-ago] if ago <= len(self._earlier) else (0, None)
        number = in_lane(lane, ticket & (_ONE_EPOCH - 1))
        return of_lane(_settle(self._begun if key == self.key else None, epoch, number), lane)

    def given(self, messages: int) -> int:
        """The socket has taken this many more messages of the write. Return how many gap notices were among them."""
        taken, self._writing = self._writing[:messages], self._writing[messages:]
        if not taken:
            return 0
        self._given = self._given.joined(taken[-1])
        return 0 if self._notices is None else self._notices.given(messages)

    def written(self) -> Position | None:
        """Return the position to mark as written, because the socket has taken messages; None: it is marked."""
        marked = self._marked.joined(self._given)
        if marked == self._marked:
            return None
        self._marked = marked
        normal, high = marked
        return _NEW(Position, (normal, self.epoch, high))

    def mark_again(self) -> None:
        """The last marks may have had no effect: :meth:`written` returns the position once more."""
        self._marked = Numbers()

    def take_gap(self) -> Position | None:
        """Return the position to acknowledge because the device was notified of a gap with no message behind it.

        That is so once it has acknowledged all messages before the gap. None if it never acknowledges anything.
        """
        if self._notices is None or not self._has_acked:
            return None
        acked = self._acked.joined(self._notices.acknowledged(self._acked, self._given))
        if acked == self._acked:
            return None
        self._acked = acked
        return Position(acked.normal, self.epoch, acked.high)

    def _note_acked(self, numbers: Numbers) -> None:
        self._acked = self._acked.joined(numbers)

    # -- the device

    def acknowledge(self, position: Position) -> Ack:
        """The device acknowledges everything up to a position that its cursor encodes."""
        if not self._is_open or self.stands_by:
            # A standby connection does not know what has been stored since.
            self.early, self._wants_look = latest(self.early, position), True
            return LATER
        return self._judge(position)

    def _judge(self, position: Position) -> Ack:
        numbers: Numbers | None = position.numbers
        if position.epoch != self.epoch:
            numbers = None if self._begun is None else self._begun.find(position)
        if numbers is None or not self._is_known(numbers):
            return REFUSED
        self._has_acked = True
        self._given = self._given.joined(numbers)
        self.normal.acknowledged(numbers.normal)
        self.high.acknowledged(numbers.high)
        self._note_acked(numbers)
        if self._notices is not None:
            numbers = numbers.joined(self._notices.acknowledged(self._acked, self._given))
        self._note_acked(numbers)
        return Ack(Position(numbers.normal, self.epoch, numbers.high))

    def _is_known(self, numbers: Numbers) -> bool:
        return 0 <= numbers.normal <= self.normal.last and 0 <= numbers.high <= self.high.last


def _settle(box: Box | None, epoch: int, numbers: Numbers) -> Numbers:
    """Return the numbers that positions of an earlier epoch mean now: see ``Box.settled``; 0 if the mailbox does not
    know them.

    :param box: in this epoch; None: it belongs to another mailbox
    """
    if box is None:
        return Numbers()
    settled = box.settled(Position(numbers.normal, epoch, numbers.high))
    return Numbers(max(0, settled.normal), max(0, settled.high))
