"""How far one connection has come with its device's box: what is sent at once, and what is read from the box. Pure.

What is stored while a connection is up goes to it at once, if it is the next in line. If it is not (the box is still
being read, or was not asked yet, or has lost messages), it waits its turn in the box, where it is safe. So a device
gets its messages in the order of their numbers, whatever comes from where.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .box import StoredMessage


class Page(NamedTuple):
    """A piece of a box.

    :ivar messages: in the order of their numbers, with none left out between them
    :ivar gone: no message up to this number is in the box any more
    :ivar last: the highest number that the box has given
    :ivar base: the number that its first message came after; what is below was in another box
    :ivar acked: acknowledged up to here, on whatever connection: gone, and not missed
    """

    messages: Sequence[StoredMessage]
    gone: int
    last: int
    base: int = 0
    acked: int = 0


class Turn(NamedTuple):
    """What is to be sent now.

    :ivar missed: messages lost before the first of these; 0: none
    """

    missed: int
    messages: Sequence[StoredMessage]


class Feed:
    """One connection's position in its device's box.

    :ivar position: the number of the last message that was handed to the connection's outbox, or that the device has
        otherwise done with
    :ivar last: the highest number known to be in the box, or to have been
    :ivar opened: whether the position is known
    :ivar reading: whether a page was asked for and has not come
    """

    __slots__ = ("_stored_since", "last", "opened", "position", "reading")

    def __init__(self) -> None:
        self.position = self.last = self._stored_since = 0
        self.opened = self.reading = False

    def __repr__(self) -> str:
        state = "not opened" if not self.opened else "live" if self.is_live else "behind"
        return f"<Feed {self.position} of {self.last}, {state}>"

    @property
    def is_live(self) -> bool:
        """True if the connection has been handed all that is stored."""
        return self.opened and not self.reading and self.position >= self.last

    @property
    def is_behind(self) -> bool:
        """True if a page is to be asked for, as soon as there is room for one."""
        return self.opened and not self.reading and self.position < self.last

    def open(self, position: int, last: int) -> None:
        """The box has been looked at."""
        self.opened = True
        self.position = max(self.position, position)
        self.last = max(self.last, last, self.position)
        self._stored_since = self.last  # a page that is under way may know less

    def stored(self, number: int) -> bool:
        """A message has been stored. True: send it now. False: it will come from the box."""
        in_line = self.is_live and number == self.position + 1
        self.last = max(self.last, number)
        self._stored_since = self.last
        if in_line:
            self.position = number
        return in_line

    def read(self) -> int:
        """A page is asked for; returns the number that it is to begin after."""
        self.reading, self._stored_since = True, 0
        return self.position

    def failed(self) -> None:
        """The page could not be had."""
        self.reading = False

    def page(self, page: Page) -> Turn:
        """The page has come. What the device has acknowledged meanwhile is not sent any more."""
        self.reading = False
        missed = max(0, page.gone - max(self.position, page.base, page.acked))
        messages = [message for message in page.messages if message.number > self.position]
        self.position = max(self.position, page.gone, messages[-1].number if messages else 0)
        # Not what was thought to be there before: a box that has lost its end would be read again for ever.
        self.last = max(page.last, self.position, self._stored_since)
        return Turn(missed, messages)

    def acknowledged(self, number: int) -> None:
        """The device has everything up to ``number``."""
        self.position = max(self.position, number)
        self.last = max(self.last, self.position)
