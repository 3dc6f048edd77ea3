"""How one connection reads its device's box: what to ask the mailbox, what to send, what to mark. Pure: ``feed.py``
carries it out.

:class:`~cocoa_tornado.rules.feed.Feed` is the connection's position within one epoch of the mailbox. What is here goes
across epochs, and knows which question to the mailbox is under way: at most one at a time.

=======  =======================================================  ======================================================
feed     means                                                    next question
=======  =======================================================  ======================================================
unknown  the box has not been looked at, or not in this epoch     a look
behind   the box has messages that were not sent                  a page, once the socket has taken everything
live     everything stored was sent                               a look, if something may have been stored unseen
=======  =======================================================  ======================================================

A message that is stored while the feed is live is sent directly. If the outbox has no room for it, the feed falls
behind, and the message is read from the box later: a slow device costs nothing but its own time.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ..rules.box import NO_CURSOR_YET, Box, Position
from ..rules.feed import Delivery, Feed, Page


class Question(NamedTuple):
    """A question to the mailbox.

    :ivar after: the messages after this number; None: a look at the box
    """

    after: int | None


LOOK: Final = Question(None)


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


class Lost(NamedTuple):
    """What an epoch has ended with: :ivar after: the feed's position :ivar last: the last number that it knew"""

    after: int
    last: Position


def latest(known: Position | None, new: Position) -> Position:
    """Of two acknowledgements, the one that counts. Numbers of two epochs can't be compared: the newer one counts."""
    if known is None or known.epoch != new.epoch or known.number < new.number:
        return new
    return known


class BoxReader:
    """See the module. All numbers belong to :attr:`epoch`, until :meth:`follow` says that it is over.

    :param after: the position of the cursor that the device named, if any
    :ivar feed: the position within this epoch
    :ivar early: acknowledged before the box was looked at
    :ivar pushed: everything up to this number is in the connection's outbox, or was
    :ivar taken: of this, what the current write contains or an earlier one contained
    :ivar gap: the device was sent a gap notice up to this number, with no message behind it; 0: it was not
    """

    __slots__ = (
        "_after",
        "_asked",
        "_begun",
        "_has_acked",
        "_key",
        "_lost",
        "_marked",
        "_wants_look",
        "early",
        "epoch",
        "feed",
        "gap",
        "pushed",
        "taken",
    )

    def __init__(self, after: Position | None) -> None:
        self._after = after
        self.feed = Feed()
        self.epoch = 0
        self._key: bytes | None = None  # of the mailbox that gave the numbers
        self._begun: Box | None = None  # the box when it was first looked at in this epoch, unless this is the first
        self._lost: Lost | None = None
        self._asked: Question | None = None
        self._wants_look = True
        self.pushed = self.taken = self._marked = self.gap = 0
        self._has_acked = False  # on this connection or an earlier one
        self.early: Position | None = None

    def __repr__(self) -> str:
        return f"<BoxReader {self.feed!r}>"

    # -- questions

    @property
    def may_ask(self) -> bool:
        """Whether :meth:`ask` would return a question, if a page may be read."""
        return self._asked is None and (self._wants_look or self.feed.is_behind)

    def ask(self, may_read: bool) -> Question | None:
        """Return the next question; None if there is none, or an answer is awaited.

        :param may_read: the connection has room for a page
        """
        if self._asked is not None or (self.feed.is_behind and not may_read):
            return None
        if self.feed.is_behind:
            # It also says which messages there are, so nothing that was stored before is unseen.
            self._asked = Question(self.feed.read())
        elif self._wants_look:
            self._asked = LOOK
        self._wants_look = False
        return self._asked

    def failed(self) -> None:
        """The question had no answer. :meth:`ask` returns it again."""
        if self._asked is LOOK:
            self._wants_look = True
        else:
            self.feed.failed()
        self._asked = None

    def look_again(self) -> None:
        """Something may have been stored unseen. A look that is under way may have come before it."""
        self._wants_look = True

    def follow(self, epoch: int, key: bytes | None) -> bool:
        """The mailbox may have begun another epoch. True: it has, and an answer that is awaited is void."""
        if epoch == self.epoch or not self.feed.opened:
            return False
        self._end_epoch(key)
        self._asked, self._wants_look = None, True
        return True

    def _end_epoch(self, key: bytes | None) -> None:
        """The numbers mean nothing any more. The connection goes on from the position where it was."""
        if key == self._key:
            self._after = Position(self.feed.position, self.epoch)
            self._lost = Lost(self.feed.position, Position(self.feed.last, self.epoch))
        else:  # it is another mailbox, which knows no position of the old one
            self._after, self._lost = NO_CURSOR_YET, None
        self.feed = Feed()

    # -- answers

    def looked(self, box: Box, key: bytes | None) -> Looked:
        """The box was looked at."""
        self._asked, missed = None, 0
        if box.epoch != self.epoch and self.feed.opened:
            self._end_epoch(key)
        if not self.feed.opened:
            self._begin_epoch(box, key)
            missed = self._missed_with_epoch(box)
        self.feed.open(box.start(None if self._after is None else box.settled(self._after)), box.last)
        self._marked = max(self._marked, box.written)
        self._has_acked = self._has_acked or box.acked is not None
        early, self.early = self.early, None
        return Looked(missed, None if early is None else self.acknowledge(early))

    def _begin_epoch(self, box: Box, key: bytes | None) -> None:
        self.pushed, self.taken, self._marked, self.gap = (
            max(0, box.settled(Position(number, self.epoch))) if key == self._key else 0
            for number in (self.pushed, self.taken, self._marked, self.gap)
        )
        self.epoch, self._key = box.epoch, key
        self._begun = box if box.epoch else None

    def _missed_with_epoch(self, box: Box) -> int:
        """What was stored for the device and lost with its epoch. What a device missed that was offline when everything
        was lost is unknown, and counts as one message."""
        lost, self._lost = self._lost, None
        if lost is not None:
            return box.lost(*lost)
        return int(self._after is not None and box.may_have_lost(self._after))

    def arrived(self, page: Page) -> Delivery:
        """A page was read. Queue what is returned, then call :meth:`delivered`; no question is asked before that."""
        return self.feed.page(page)

    def push_gap(self, delivery: Delivery) -> None:
        """The gap notice of a delivery is in the outbox."""
        if delivery.messages:
            self.pushed, self.gap = delivery.messages[0].number - 1, 0
        else:
            self.pushed = self.gap = self.feed.position

    def delivered(self, up_to: int | None = None) -> None:
        """A delivery is in the outbox: all of it, or the messages up to this number, because there was no more room."""
        self._asked = None
        if up_to is not None:
            self.feed.fall_behind(up_to)

    # -- the device

    def written(self) -> Position | None:
        """The socket has taken the current write. Return the position to mark as written; None: it is marked."""
        if self.taken <= self._marked:
            return None
        self._marked = self.taken
        return Position(self.taken, self.epoch)

    def take_gap(self) -> Position | None:
        """Return the position to acknowledge because the device was notified of :attr:`gap`, if the socket has taken
        the notice: it has no cursor that the device could acknowledge."""
        if self.gap > self.taken:
            return None
        gap, self.gap = self.gap, 0
        return Position(gap, self.epoch) if gap and self._has_acked else None

    def acknowledge(self, position: Position) -> Ack:
        """The device acknowledges everything up to a position that its cursor encodes."""
        if not self.feed.opened:
            self.early = latest(self.early, position)
            return LATER
        number: int | None = position.number
        if position.epoch != self.epoch:
            number = None if self._begun is None else self._begun.find(position)
        if number is None or not 0 <= number <= self.feed.last:
            return REFUSED
        self._has_acked = True
        self.feed.acknowledged(number)
        return Ack(Position(number, self.epoch))
