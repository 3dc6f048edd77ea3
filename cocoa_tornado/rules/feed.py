"""How far a connection has read one lane of its box: what is sent directly, and what is read from the box. Pure.

A message that is stored while a connection is up is sent directly if it is the next in order. Otherwise (the box is
still being read, was not opened yet, or has lost messages) it stays in the box and is read from there. So a device
receives its messages in the order of their numbers, from either source.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from .box import LaneName, PageLimits, StoredMessage
from .retracted import Retracted, count_between
from .runs import Runs, above, without


class LaneRead(NamedTuple):
    """What to read of a box: the messages of one lane numbered above ``after``, within ``limits``."""

    lane: LaneName
    after: int
    limits: PageLimits


class Page(NamedTuple):
    """A part of one lane of a box: its first messages after a number.

    :ivar messages: in the order of their numbers; every number that is missing between them is unused. No message at
        all: there is none up to ``last``
    :ivar last: the highest number that the lane has given
    :ivar base: the lane's first number minus one; anything below belonged to another box
    :ivar acked: acknowledged up to this number, on any connection: gone, but not missed
    :ivar retracted: unused numbers that do not count as missed
    """

    messages: Sequence[StoredMessage]
    last: int
    base: int = 0
    acked: int = 0
    retracted: Retracted = ()


class Delivery(NamedTuple):
    """What to send now.

    :ivar missed: messages lost before or between these; 0: none
    """

    missed: int
    messages: Sequence[StoredMessage]


class Feed:
    """One connection's position in one lane of its device's box.

    :ivar position: the number of the last message that was passed to the connection's outbox, or was acknowledged or
        missed
    :ivar last: the highest number known to have been given
    :ivar opened: the position is known
    :ivar reading: a page was requested and has not arrived
    :ivar settled: all messages up to this number precede those that are routed from now on. A page may contain messages
        that are stored, but not routed yet
    """

    __slots__ = ("_counted", "_stored_since", "last", "opened", "position", "reading", "settled")

    def __init__(self) -> None:
        self.position = self.last = self._stored_since = self.settled = 0
        self.opened = self.reading = False
        self._counted: Runs = ()  # unused numbers that are accounted for, and may be read again after fall_behind

    def __repr__(self) -> str:
        state = "not opened" if not self.opened else "live" if self.is_live else "behind"
        return f"<Feed {self.position} of {self.last}, {state}>"

    @property
    def is_live(self) -> bool:
        """True if everything stored has been passed to the connection."""
        return self.opened and not self.reading and self.position >= self.last

    @property
    def is_behind(self) -> bool:
        """True if a page is to be requested once there is room for one."""
        return self.opened and not self.reading and self.position < self.last

    def open(self, position: int, last: int) -> None:
        """The box has been looked at."""
        self.opened = True
        self.position = max(self.position, position)
        self.last = max(self.last, last, self.position)
        self.settled = max(self.settled, self.position)  # no page of this connection has brought it
        self._stored_since = self.last  # a page already requested may be older than this

    def stored(self, number: int) -> bool:
        """A message was stored. True: send it now. False: it will be read from the box."""
        if number == self.position + 1 and self.position >= self.last and self.opened and not self.reading:
            self.position = self.last = self._stored_since = self.settled = number
            return True
        self.last = self._stored_since = max(self.last, number)
        self.settled = max(self.settled, number)
        return False

    def fall_behind(self, up_to: int) -> None:
        """Only the messages up to this number could be passed to the connection. The others will be read from the box
        once more."""
        self.position = up_to

    def read(self) -> int:
        """A page is requested; return the number after which it begins."""
        self.reading, self._stored_since = True, 0
        return self.position

    def failed(self) -> None:
        """The page could not be read."""
        self.reading = False

    def page(self, page: Page) -> Delivery:
        """The page has arrived. Messages acknowledged in the meantime are not sent again."""
        self.reading = False
        before = max(self.position, page.base, page.acked)
        messages = [message for message in page.messages if message.number > before]
        end = messages[-1].number if messages else page.last
        missed = 0 if end - before == len(messages) else self._missed(messages, before, end, page.retracted)
        self.position = max(before, end)
        # Not max(self.last, ...): a box that has lost its end would be read again indefinitely.
        self.last = max(page.last, self.position, self._stored_since)
        return Delivery(missed, messages)

    def _missed(self, messages: Sequence[StoredMessage], before: int, end: int, retracted: Retracted) -> int:
        counted = above(self._counted, before)
        unused = without(_between(before, [message.number for message in messages], end), counted)
        self._counted = tuple(sorted((*counted, *unused)))
        return sum(last - first + 1 - count_between(retracted, first - 1, last) for first, last in unused)

    def acknowledged(self, number: int) -> None:
        """The device has everything up to ``number``."""
        self.position = max(self.position, number)
        self.last = max(self.last, self.position)


def _between(before: int, numbers: Sequence[int], end: int) -> Runs:
    """The numbers above ``before``, up to ``end``, that are not among these."""
    edges = (before, *numbers, end + 1)
    return tuple((low + 1, high - 1) for low, high in pairwise(edges) if high - low > 1)
