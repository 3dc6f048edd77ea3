"""A connection's questions to the mailbox, and the results of the answers: the values of ``box_reader.py``. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from ..rules.box import LaneName, Numbers, Position, StoredMessage
from ..rules.feed import LaneRead


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
    """The result of a look at the box.

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


class Lost(NamedTuple):
    """What an epoch has ended with: :ivar after: the feeds' positions :ivar last: the last numbers that they knew"""

    after: Numbers
    last: Position


def latest(known: Position | None, new: Position) -> Position:
    """Of two acknowledgements, the one that counts. Numbers of two epochs can't be compared: the newer one counts."""
    if known is None or known.epoch != new.epoch:
        return new
    numbers = known.numbers.joined(new.numbers)
    return Position(numbers.normal, new.epoch, numbers.high)
