"""Transient messages that wait until what was stored before them has been passed on. Pure.

A connection that is still reading its box must not be sent a transient message ahead of what was stored before it. The
message waits here, in its place among the numbers of its lane.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from ..rules.box import LaneName
from ..rules.feed import Feed
from ..rules.terms import Later, Terms
from .box_reader import BoxReader

MOST_MESSAGES: Final = 64
MOST_BYTES: Final = 128 * 1024
"""A single message may be larger."""


class Transient(NamedTuple):
    """A message that waits.

    :ivar after: the number of the stored message that it comes after, in its lane; None: it is not known yet
    :ivar later: see ``hub.Client.suggest``; only while its place is not known
    """

    lane: LaneName
    after: int | None
    body: bytes
    timestamp_ms: int
    terms: Terms
    later: Later | None = None


class Transients:
    """The transient messages of a connection that wait, in the order in which they were added."""

    __slots__ = ("_bytes", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[Transient] = []
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<Transients {len(self)} messages, {self._bytes} bytes>"

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, message: Transient) -> bool:
        """Have a message wait. False: there is no room for it."""
        size = self._bytes + len(message.body)
        if self._waiting and (len(self) >= MOST_MESSAGES or size > MOST_BYTES):
            return False
        self._waiting.append(message)
        self._bytes = size
        return True

    def has(self, payload: bytes, timestamp_ms: int) -> bool:
        """Whether a message waits."""
        return any(each.timestamp_ms == timestamp_ms and each.body.endswith(payload) for each in self._waiting)

    def collapse(self, key: str) -> list[Transient]:
        """Remove and return the messages with this collapse key."""
        return self._take(lambda waiting: waiting.terms.collapse_key == key)

    def place(self, lane: LaneName, after: int) -> None:
        """Place the messages of a lane whose place is unknown behind this number."""
        for at, waiting in enumerate(self._waiting):
            if waiting.after is None and waiting.lane == lane:
                self._waiting[at] = waiting._replace(after=after, later=None)

    def place_up_to(self, lane: LaneName, last: int) -> list[Transient]:
        """An answer has shown everything up to this number: place the messages of a lane whose place is unknown behind
        it, unless a later message may be among those shown. Remove and return the messages whose place cannot be
        known."""
        removed = list[Transient]()
        for at, waiting in reversed([*enumerate(self._waiting)]):
            if waiting.after is not None or waiting.lane != lane:
                continue
            first = None if waiting.later is None else waiting.later(lane)
            if first == 0:
                self._bytes -= len(waiting.body)
                removed.append(self._waiting.pop(at))
            else:
                after = last if first is None else min(last, first - 1)
                self._waiting[at] = waiting._replace(after=after, later=None)
        return removed

    def forget_places(self) -> None:
        """The numbers have lost their meaning: forget all places."""
        self._waiting = [waiting._replace(after=None) for waiting in self._waiting]

    def take_before(self, lane: LaneName, number: int) -> list[Transient]:
        """Remove and return the messages that come before a number."""
        return self._take(lambda waiting: waiting.lane == lane and waiting.after is not None and waiting.after < number)

    def take_all(self, lane: LaneName | None = None) -> list[Transient]:
        """Remove and return all messages of a lane, or of both."""
        return self._take(lambda waiting: lane in (None, waiting.lane))

    def _take(self, wanted: Callable[[Transient], bool]) -> list[Transient]:
        taken = [waiting for waiting in self._waiting if wanted(waiting)]
        if taken:
            self._waiting = [waiting for waiting in self._waiting if not wanted(waiting)]
            self._bytes -= sum(len(waiting.body) for waiting in taken)
        return taken


class Place(NamedTuple):
    """Where a transient message belongs, and what becomes of it.

    :ivar fate: ``send`` it now; let it ``wait`` for what was stored before it; drop it as an ``interim``, or because it
        is ``late``: later ones may have been sent
    :ivar last: the number of the stored message before it, as far as that is known
    :ivar after: as in :class:`Transient`
    """

    fate: Literal["send", "wait", "interim", "late"]
    last: int
    after: int | None = None


def place(reader: BoxReader, lane: LaneName, terms: Terms, after: int | None, later: Later | None) -> Place:
    """Find the place of a message that was routed just now.

    :param after: see ``hub.Client.suggest``; :param later: likewise
    """
    feed = reader.feed(lane)
    is_settled = later is None or feed.settled >= feed.position
    if after is None and not (is_settled and feed.position >= feed.last and reader.knows_all):
        if terms.interim_of and not (reader.knows_all and feed.is_live):
            return Place("interim", feed.last)  # wherever its place is: that takes time to find
        if later is not None:
            after = _before(later(lane), feed)
    last = feed.last if after is None else after
    if feed.opened and last > feed.last:  # something was stored that the feed does not know of
        reader.look_again()
    knows_all = reader.knows_all
    if knows_all and feed.is_live and feed.position <= last:
        return Place("send", last)
    if terms.interim_of:
        return Place("interim", last)
    if last < 0 or (feed.opened and last < feed.position):  # later ones may have been read from the box
        return Place("late", last)
    return Place("wait", last, last if knows_all or after is not None else None)


def _before(first: int | None, feed: Feed) -> int | None:
    """The number before that of the first later message, which may have been read from the box already.

    :return: None: there is no later message; -1: what comes before it is unknown
    """
    if first is None:
        feed.settled = max(feed.settled, feed.position)
        return None
    return first - 1
