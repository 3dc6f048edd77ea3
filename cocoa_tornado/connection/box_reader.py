"""How one connection reads its device's box: what to ask the mailbox, what to send, what to mark. Pure: ``feed.py``
carries it out.

Each lane of the box has a :class:`~cocoa_tornado.rules.feed.Feed`, the connection's position within one epoch of the
mailbox. What is here combines the lanes, goes across epochs, and knows which question to the mailbox is under way: at
most one at a time.

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
falls behind, and the message is read from the box later: a slow device costs nothing but its own time.

The socket takes messages in another order than that of the box: those of high priority overtake the others. So a cursor
is made when its message is given to the socket. It says what was given before, in both lanes: :meth:`BoxReader.give`
for what a write consists of, and :meth:`BoxReader.given` once the socket has taken that.

A gap notice has no place of its own in the outbox. It is written in front of the next message, :attr:`Gift.missed`.
Where none follows, an empty message is queued, to be given as its notice alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from ..rules.box import LANES, NO_CURSOR_YET, Box, LaneName, Numbers, PageLimits, Position, StoredMessage
from ..rules.feed import Feed, LaneRead, Page

NORMALS_FOR_HIGH: Final = 8
"""While more messages of high priority wait than a page holds, a page of the normal lane is so many times smaller:
contract section 9."""
_EPOCH_SHIFT: Final = 48
"""Numbers are lower than 2**48 (``rules/cursors.py``)."""
_NUMBER_MASK: Final = (1 << _EPOCH_SHIFT) - 1


class Question(NamedTuple):
    """A question to the mailbox.

    :ivar reads: the pages to read; empty: a look at the box
    """

    reads: Sequence[LaneRead]


LOOK: Final = Question(())


class Ack(NamedTuple):
    """What to do with an acknowledgement.

    :ivar position: to be passed to the mailbox; None: nothing is
    """

    position: Position | None
    is_refused: bool = False


REFUSED: Final = Ack(None, is_refused=True)
LATER: Final = Ack(None)
"""The box has to be looked at first."""


class Looked(NamedTuple):
    """What follows from a look at the box.

    :ivar missed: messages lost with their epoch; 0: none
    :ivar ack: of an acknowledgement that arrived before the look
    """

    missed: int
    ack: Ack | None


class Arrived(NamedTuple):
    """What to queue now: first :attr:`high`, then :attr:`normal`.

    :ivar notice: if there is neither: the lane and the number of an empty message to queue for a gap notice
    """

    high: Sequence[StoredMessage] = ()
    normal: Sequence[StoredMessage] = ()
    notice: tuple[LaneName, int] | None = None


class Gift(NamedTuple):
    """A message that is about to be given to the socket.

    :ivar missed: how many messages a gap notice in front of it names; 0: there is none
    :ivar position: that of its cursor
    """

    missed: int
    position: Position


class Lost(NamedTuple):
    """What an epoch has ended with: :ivar after: the feeds' positions :ivar last: the last numbers that they knew"""

    after: Numbers
    last: Position


class _Owed(NamedTuple):
    """A gap that the device was not notified of.

    :ivar up_to: the numbers up to which messages are missed
    :ivar is_due: nothing that is queued comes before them. Otherwise what is queued up to these numbers does
    """

    up_to: Numbers
    missed: int
    is_due: bool


class _Gap(NamedTuple):
    """A gap of a lane with no message behind it: from ``after``, up to ``up_to``. It can only be acknowledged here:
    there is no cursor that stands for it."""

    after: int
    up_to: int


class _Pick(NamedTuple):
    """A message of the current write: the position after it, and the gaps that it names."""

    position: Numbers
    named: Sequence[_Owed]


def latest(known: Position | None, new: Position) -> Position:
    """Of two acknowledgements, the one that counts. Numbers of two epochs can't be compared: the newer one counts."""
    if known is None or known.epoch != new.epoch:
        return new
    numbers = known.numbers.joined(new.numbers)
    return Position(numbers.normal, new.epoch, numbers.high)


class BoxReader:
    """See the module. All numbers belong to :attr:`epoch`, until :meth:`follow` says that it is over.

    In the outbox a message has a *ticket*: its number and, above 48 bits, how many epochs of the mailbox the connection
    had seen when it was queued. What was queued in an earlier epoch is sent as well.

    :param after: the position of the cursor that the device named, if any
    :ivar normal: the position in the lane of normal and low priority, within this epoch
    :ivar high: the same in the lane of high priority
    :ivar key: the MAC key of the mailbox that gave the numbers; None until the box was looked at
    :ivar early: acknowledged before the box was looked at
    :ivar stands_by: another connection of the device gets its messages: nothing is read
    """

    __slots__ = (
        "_acked",
        "_after",
        "_asked",
        "_at",
        "_begun",
        "_earlier",
        "_flushed",
        "_gaps",
        "_given",
        "_has_acked",
        "_high_base",
        "_lost",
        "_marked",
        "_owed",
        "_picks",
        "_pushed",
        "_unnamed",
        "_wants_look",
        "early",
        "epoch",
        "high",
        "key",
        "normal",
        "stands_by",
    )

    def __init__(self, after: Position | None) -> None:
        self._after = after
        self.normal, self.high = Feed(), Feed()
        self.epoch = 0
        self.key: bytes | None = None
        self._begun: Box | None = None  # the box when it was first looked at in this epoch, unless this is the first
        self._earlier: list[tuple[int, bytes | None]] = []  # the epochs before, each with its mailbox's key
        self._high_base = 0
        self._lost: Lost | None = None
        self._asked: Question | None = None
        self._wants_look = True
        # What the socket has taken, and what the current write contains in addition.
        self._given = self._at = self._marked = Numbers()
        self._picks: list[_Pick] = []
        self._pushed, self._flushed = [0, 0], [0, 0]  # of the outbox's lanes: the last number, also if it was empty
        self._owed: list[_Owed] = []
        self._unnamed: list[_Owed] = []  # of these, what the current write does not name
        self._gaps: dict[LaneName, _Gap] = {}
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

    # -- questions

    @property
    def may_ask(self) -> bool:
        """Whether :meth:`ask` would return a question, if there is room for a page."""
        is_behind = (self.normal.is_behind or self.high.is_behind) and not self.stands_by
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
        """Another connection of the device goes on. Return the position at which it does; None: it is unknown.

        :param begun: so many messages that have a number are written to the end before this connection stops
        """
        self.stands_by = True
        if self._asked is not None:
            self.failed()
        self._owed, self._gaps = [], {}
        if not self._is_open:
            return self._after
        self._picks = self._picks[:begun]
        # What is being written may come from before this connection stood by the last time.
        return self._position(self._given.joined(self._picks[-1].position) if self._picks else self._given)

    def go_on(self, after: Position | None) -> None:
        """Read the box from this position on, instead of another connection. None: as if that had never been."""
        self.stands_by = False
        if self._asked is not None:
            self.failed()
        if after is not None:
            self._after, self._lost = after, None
            self.normal, self.high = Feed(), Feed()
        self._wants_look = True

    def follow(self, epoch: int, key: bytes | None) -> bool:
        """The mailbox may have begun another epoch. True: it has, and an answer that is awaited is void."""
        if epoch == self.epoch or not self._is_open:
            return False
        self._end_epoch(key)
        self._asked, self._wants_look = None, True
        return True

    def _end_epoch(self, key: bytes | None) -> None:
        """The numbers mean nothing any more. The connection goes on from the position where it was."""
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
            self._earlier.append((self.epoch, self.key))
            known = _Settling(box, self.epoch) if key == self.key else None
            self._given, self._marked = _settle(self._given, known), _settle(self._marked, known)
            if self._lost is None:  # another connection has gone on up to there; otherwise messages may be queued still
                self._given = self._given.joined(start)
            self._picks = [_Pick(_settle(at, known), _renewed(named, known)) for at, named in self._picks]
            self._owed = _renewed(self._owed, known)
        self._gaps.clear()
        self._acked, self._pushed, self._flushed = Numbers(), [0, 0], [0, 0]
        self._high_base = box.high.base
        self.epoch, self.key = box.epoch, key
        self._begun = box if box.epoch else None

    def _missed_with_epoch(self, box: Box) -> int:
        """What was stored for the device and lost with its epoch. What a device missed that was offline when everything
        was lost is unknown, and counts as one message."""
        lost, self._lost = self._lost, None
        if lost is not None:
            return box.lost(*lost)
        return int(self._after is not None and box.may_have_lost(self._after))

    def arrived(self, pages: Sequence[Page]) -> Arrived:
        """The pages that were asked for were read. Queue what is returned, then call :meth:`delivered`; no question is
        asked before that."""
        assert self._asked is not None
        lanes = [read.lane for read in self._asked.reads]
        before = Numbers(self.normal.position, self.high.position)
        missed, messages, up_to = dict[LaneName, int](), dict[LaneName, Sequence[StoredMessage]](), [0, 0]
        for lane, page in zip(lanes, pages, strict=True):
            missed[lane], messages[lane] = self.feed(lane).page(page)
            found = messages[lane]
            up_to[lane == "high"] = found[0].number - 1 if found else self.feed(lane).position
            self._note_acked(_in_lane(lane, max(page.acked, page.base)))
        if any(missed.values()):
            self._owed.append(_Owed(Numbers(*up_to), sum(missed.values()), is_due=True))
        arrived = Arrived(messages.get("high", ()), messages.get("normal", ()))
        if arrived.high or arrived.normal or not any(missed.values()):
            return arrived
        for lane, count in missed.items():
            if count:
                self._gaps[lane] = _Gap(_of(before, lane), self.feed(lane).position)
        lane = "high" if missed.get("high") else "normal"
        return Arrived(notice=(lane, self.feed(lane).position))

    def delivered(self) -> None:
        """What has arrived is in the outbox, as far as it had room: see :meth:`no_room`."""
        self._asked = None

    # -- the outbox

    def ticket(self, number: int) -> int:
        """With which ticket to queue a message now."""
        return len(self._earlier) << _EPOCH_SHIFT | number

    def pushed(self, lane: LaneName, number: int) -> None:
        """The message is in the outbox."""
        self._pushed[lane == "high"] = number

    def no_room(self, lane: LaneName, number: int) -> None:
        """The outbox had no room for this message and those behind it: they will be read from the box once more."""
        self.feed(lane).fall_behind(number - 1)

    def withdrawn(self, ticket: int) -> None:
        """The message with this ticket and all those behind it in the normal lane have been taken out of the outbox.
        They will be read from the box once more."""
        number = ticket & _NUMBER_MASK
        self.no_room("normal", number)
        self._pushed[0], self._flushed[0] = number - 1, 0
        self._gaps.pop("normal", None)
        self._owed = [owed for owed in self._owed if owed.is_due or owed.up_to.normal < number]

    @property
    def least_ticket(self) -> int:
        """What has a lower ticket was queued in an earlier epoch, and may not be withdrawn."""
        return self.ticket(0)

    def expired(self, lane: LaneName, ticket: int) -> int:
        """A queued message has expired: the device is notified in its place. Return the ticket of an empty message to
        queue behind all others of the lane, in case none of them follows; 0: one is queued already."""
        number = _of(self._located(lane, ticket), lane)
        self._owed.append(_Owed(_in_lane(lane, number), 1, is_due=False))
        if ticket < self.least_ticket:
            return ticket
        is_high = lane == "high"
        if number == self._pushed[is_high]:
            self._gaps[lane] = self._gap_up_to(lane, number)
        if self._flushed[is_high] == self._pushed[is_high]:
            return 0
        self._flushed[is_high] = self._pushed[is_high]
        return self.ticket(self._pushed[is_high])

    def _gap_up_to(self, lane: LaneName, number: int) -> _Gap:
        expired = {_of(owed.up_to, lane) for owed in self._owed if not owed.is_due}
        after, gap = number, self._gaps.get(lane)
        while after in expired:
            after -= 1
        return _Gap(gap.after if gap is not None and gap.up_to >= after else after, number)

    # -- the socket

    def begin_write(self) -> None:
        """What to write is about to be chosen. What an earlier write contained and the socket has not begun to take is
        chosen again."""
        self._at = self._given
        if self._picks:
            self._picks = []
        self._unnamed = list(self._owed) if self._owed else self._owed

    def give(self, lane: LaneName, ticket: int) -> Gift:
        """A message is part of the write, behind those for which this was called before."""
        at = self._at.joined(self._located(lane, ticket))
        named: Sequence[_Owed] = ()
        missed = 0
        if self._unnamed:
            at, named = self._due(at)
            missed = sum(owed.missed for owed in named)
        self._at = at
        self._picks.append(_Pick(at, named))
        return Gift(missed, self._position(at))

    def _due(self, at: Numbers) -> tuple[Numbers, Sequence[_Owed]]:
        for owed in self._unnamed:
            if owed.is_due:
                at = at.joined(owed.up_to)
        named, unnamed = list[_Owed](), list[_Owed]()
        for owed in self._unnamed:
            (named if owed.is_due or owed.up_to.joined(at) == at else unnamed).append(owed)
        self._unnamed = unnamed
        return at, named

    @property
    def here(self) -> Position | None:
        """The position of what was given and is part of the write; None if it is unknown."""
        if self.key is None:
            return None if self._after is None or self._after.normal < 0 else self._after
        return self._position(self._at)

    def _position(self, at: Numbers) -> Position:
        # 0 stands for the beginning of the lane, and has a shorter cursor.
        return Position(at.normal, self.epoch, at.high if at.high > self._high_base else 0)

    def _located(self, lane: LaneName, ticket: int) -> Numbers:
        """The number of a ticket in this epoch."""
        epochs, number = ticket >> _EPOCH_SHIFT, ticket & _NUMBER_MASK
        if epochs == len(self._earlier):
            return _in_lane(lane, number)
        epoch, key = self._earlier[epochs]
        return _settle(_in_lane(lane, number), _Settling(self._begun, epoch) if key == self.key else None)

    def given(self, messages: int) -> int:
        """The socket has taken so many more messages of the write. Return how many gap notices were among them."""
        picks, self._picks = self._picks[:messages], self._picks[messages:]
        if not picks:
            return 0
        self._given = self._given.joined(picks[-1].position)
        if not self._owed:
            return 0
        groups = [pick.named for pick in picks if pick.named]
        for owed in (owed for group in groups for owed in group):
            self._owed.remove(owed)
        return len(groups)

    def written(self) -> Position | None:
        """Return the position to mark as written, because the socket has taken messages; None: it is marked."""
        marked = self._marked.joined(self._given)
        if marked == self._marked:
            return None
        self._marked = marked
        return Position(marked.normal, self.epoch, marked.high)

    def take_gap(self) -> Position | None:
        """Return the position to acknowledge because the device was notified of a gap with no message behind it.

        That is so once it has acknowledged all messages before the gap. None if it never acknowledges anything.
        """
        if not self._gaps or not self._has_acked:
            return None
        acked = self._acked.joined(self._with_gaps(self._acked))
        if acked == self._acked:
            return None
        self._acked = acked
        return Position(acked.normal, self.epoch, acked.high)

    def _with_gaps(self, acked: Numbers) -> Numbers:
        """What the device has acknowledged by acknowledging this, because gaps follow that it was notified of."""
        for lane, (after, up_to) in list(self._gaps.items()):
            if _of(self._given, lane) >= up_to and _of(acked, lane) >= after:
                del self._gaps[lane]
                acked = acked.joined(_in_lane(lane, up_to))
        return acked

    def _note_acked(self, numbers: Numbers) -> None:
        self._acked = self._acked.joined(numbers)

    # -- the device

    def acknowledge(self, position: Position) -> Ack:
        """The device acknowledges everything up to a position that its cursor encodes."""
        if not self._is_open or self.stands_by:
            # A connection that stands by does not know what has been stored since.
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
        numbers = numbers.joined(self._with_gaps(self._acked) if self._gaps else numbers)
        self._note_acked(numbers)
        return Ack(Position(numbers.normal, self.epoch, numbers.high))

    def _is_known(self, numbers: Numbers) -> bool:
        return 0 <= numbers.normal <= self.normal.last and 0 <= numbers.high <= self.high.last


class _Settling(NamedTuple):
    """What numbers of an earlier epoch stand for now: see ``Box.settled``. ``box`` is of this epoch."""

    box: Box | None
    epoch: int


def _settle(numbers: Numbers, known: _Settling | None) -> Numbers:
    """Return the numbers of this epoch; 0 for what the mailbox does not know."""
    if known is None or known.box is None:
        return Numbers()
    settled = known.box.settled(Position(numbers.normal, known.epoch, numbers.high))
    return Numbers(max(0, settled.normal), max(0, settled.high))


def _renewed(owed: Iterable[_Owed], known: _Settling | None) -> list[_Owed]:
    """In a new epoch the device is notified first of what it was not notified of before."""
    return [_Owed(_settle(up_to, known), missed, is_due=True) for up_to, missed, _ in owed]


def _in_lane(lane: LaneName, number: int) -> Numbers:
    return Numbers(0, number) if lane == "high" else Numbers(number, 0)


def _of(numbers: Numbers, lane: LaneName) -> int:
    return numbers.high if lane == "high" else numbers.normal
