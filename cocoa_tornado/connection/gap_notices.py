"""The gaps in its box that a device is yet to be notified of, and the message of a write that names them. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..rules.box import LaneName, Numbers


class _Owed(NamedTuple):
    """A gap that the device was not notified of.

    :ivar up_to: the numbers up to which messages are missed
    :ivar is_due: no queued message comes before them. Otherwise the messages queued up to these numbers do
    """

    up_to: Numbers
    missed: int
    is_due: bool


class _Trailing(NamedTuple):
    """A gap of a lane with no message behind it: from ``after``, up to ``up_to``. Only the gateway can acknowledge it,
    because no cursor means this position."""

    after: int
    up_to: int


class _Named(NamedTuple):
    """A message of the current write names gaps. ``at``: how many of the write's messages come before it."""

    at: int
    gaps: list[_Owed]


class GapNotices:
    """The pending gap notices of one connection. Only a connection whose box has gaps has one.

    A notice has no place of its own in the outbox. It is written in front of the next message. All numbers belong to
    the reader's epoch.
    """

    __slots__ = ("_flushed", "_named", "_owed", "_trailing", "_unnamed")

    def __init__(self) -> None:
        self._owed: list[_Owed] = []
        # Of these, the ones that the current write does not name, and those that it does.
        self._unnamed: list[_Owed] = []
        self._named: list[_Named] = []
        self._trailing: dict[LaneName, _Trailing] = {}
        # Of each lane, the last number behind which an empty message is queued for a notice.
        self._flushed: dict[LaneName, int] = {}

    def __repr__(self) -> str:
        return f"<GapNotices {len(self._owed)}>"

    # -- what is missed

    def owe(self, up_to: Numbers, missed: int) -> None:
        """A page has gaps. Nothing that is queued comes before them."""
        self._owed.append(_Owed(up_to, missed, is_due=True))

    def note_trailing(self, lane: LaneName, after: int, up_to: int) -> None:
        """These numbers are a gap with no message behind it."""
        self._trailing[lane] = _Trailing(after, up_to)

    def expired(self, lane: LaneName, number: int) -> None:
        """A queued message has expired: the device is notified in its place, by the write that is being chosen, if one
        is."""
        owed = _Owed(in_lane(lane, number), 1, is_due=False)
        self._owed.append(owed)
        self._unnamed.append(owed)

    def expired_last(self, lane: LaneName, number: int) -> None:
        """The message that expired was the last one queued in its lane."""
        expired = {of_lane(owed.up_to, lane) for owed in self._owed if not owed.is_due}
        after, gap = number, self._trailing.get(lane)
        while after in expired:
            after -= 1
        self._trailing[lane] = _Trailing(gap.after if gap is not None and gap.up_to >= after else after, number)

    def flush_behind(self, lane: LaneName, number: int) -> bool:
        """Whether to queue an empty message behind the message with this number, the last one of its lane, so that a
        notice is written if nothing follows. False: one is queued already."""
        is_new = self._flushed.get(lane, 0) != number
        self._flushed[lane] = number
        return is_new

    def withdrawn(self, number: int) -> None:
        """This message and all those behind it in the normal lane have been taken out of the outbox."""
        self._flushed.pop("normal", None)
        self._trailing.pop("normal", None)
        self._owed = [owed for owed in self._owed if owed.is_due or owed.up_to.normal < number]

    def clear(self) -> None:
        """The device is notified on another connection."""
        self._owed, self._unnamed, self._named = [], [], []
        self._trailing.clear()

    def renew(self, settle: Callable[[Numbers], Numbers]) -> None:
        """A new epoch has begun: the device is notified first of the gaps that are still pending.

        :param settle: converts numbers of the old epoch to those of the new one
        """
        self._owed = [_Owed(settle(up_to), missed, is_due=True) for up_to, missed, _ in self._owed]
        self._named = [
            _Named(at, [_Owed(settle(up_to), missed, is_due=True) for up_to, missed, _ in gaps])
            for at, gaps in self._named
        ]
        self._trailing.clear()
        self._flushed.clear()

    # -- the socket

    def begin_write(self) -> None:
        """A write is about to be composed, possibly with messages of an earlier one."""
        self._unnamed, self._named = list(self._owed), []

    def name(self, position: Numbers, before: int) -> tuple[Numbers, int]:
        """A message is part of the write. Return the position behind it and the gaps that it names, and how many
        messages they miss.

        :param position: behind the message alone
        :param before: how many of the write's messages come before it
        """
        if not self._unnamed:
            return position, 0
        for owed in self._unnamed:
            if owed.is_due:
                position = position.joined(owed.up_to)
        named, unnamed = list[_Owed](), list[_Owed]()
        for owed in self._unnamed:
            (named if owed.is_due or owed.up_to.joined(position) == position else unnamed).append(owed)
        self._unnamed = unnamed
        if named:
            self._named.append(_Named(before, named))
        return position, sum(owed.missed for owed in named)

    def given(self, messages: int) -> int:
        """The socket has taken this many more messages of the write. Return how many notices were among them."""
        taken = [each for each in self._named if each.at < messages]
        self._named = [_Named(at - messages, gaps) for at, gaps in self._named if at >= messages]
        for _, gaps in taken:
            for owed in gaps:
                self._owed.remove(owed)
        return len(taken)

    # -- the device

    def acknowledged(self, acked: Numbers, given: Numbers) -> Numbers:
        """Return the position that an acknowledgement covers: gaps behind it are included if the device was notified of
        them.

        :param given: how far its socket has taken the box
        """
        for lane, (after, up_to) in list(self._trailing.items()):
            if of_lane(given, lane) >= up_to and of_lane(acked, lane) >= after:
                del self._trailing[lane]
                acked = acked.joined(in_lane(lane, up_to))
        return acked


def in_lane(lane: LaneName, number: int) -> Numbers:
    return Numbers(0, number) if lane == "high" else Numbers(number, 0)


def of_lane(numbers: Numbers, lane: LaneName) -> int:
    return numbers.high if lane == "high" else numbers.normal
