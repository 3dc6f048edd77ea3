"""The arithmetic of one device's box: numbers, positions, which messages are missed and which are evicted. Pure.

Messages in a box are numbered consecutively in the order of storage. They leave it only at the old end: acknowledged,
expired, or evicted from a full box. So two numbers describe the contents, and everything between a device's position
and the oldest message left has been missed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

FORGET_AFTER_S: Final = 30 * 86_400.0
"""An empty box is removed after this long without any change."""

FORGET_MISSED_AFTER_S: Final = 365 * 86_400.0
"""The same for a box whose device has yet to receive a gap notice."""


@dataclass(frozen=True, slots=True)
class BoxLimits:
    """The newest message stays, whatever its size.

    :ivar max_messages: messages that a box may hold
    :ivar max_bytes: their total size
    :ivar ttl_s: how long a message is kept
    """

    max_messages: int = 1_000
    max_bytes: int = 4 * 1024 * 1024
    ttl_s: float = 86_400.0


@dataclass(frozen=True, slots=True)
class PageLimits:
    """How much of a box one read returns; at least one message, whatever its size."""

    max_messages: int = 64
    max_bytes: int = 256 * 1024


class StoredMessage(NamedTuple):
    """:ivar number: in its device's box, counted from 1
    :ivar timestamp_ms: the record's timestamp, Unix milliseconds; 0 if it has none
    """

    number: int
    payload: bytes
    timestamp_ms: int


class Position(NamedTuple):
    """A position in a device's box, right after the message with this number. A cursor encodes one.

    :ivar epoch: the mailbox's epoch when it gave the number, see :class:`Box`
    """

    number: int
    epoch: int = 0


NO_CURSOR_YET: Final = Position(-1)
"""The position of a device that uses cursors and has none yet: it receives everything that is kept."""

KNOWN_EPOCHS: Final = 33
"""Epochs that a mailbox with random epoch names remembers: the current one and the 32 before it."""


@dataclass(frozen=True, slots=True)
class Box:
    """The state of a box, without its messages.

    A mailbox that can lose its last writes (a Redis that was killed, a file restored from a backup) may give a number
    twice. It therefore has epochs, and begins a new one whenever that may have happened. In the new epoch, a position
    of an earlier one stands for no more than what the box held when the new epoch began.

    Epochs are numbered in order, or have random names. Names are for files, which can be copied: two copies may begin
    epochs at the same time without knowing of each other. Such a mailbox lists its past epochs. A position of any
    unlisted epoch stands for the beginning of the box, because its number may come from another copy.

    :ivar base: the first message's number is at least ``base + 1``. A box that is recreated after its removal begins
        above all numbers of the old one, so an old cursor never matches a position in the new box.
    :ivar last: the highest number given; ``base`` if none was
    :ivar gone: no message up to this number is in the box any more
    :ivar acked: acknowledged up to this number; None if this device has never acknowledged anything
    :ivar written: written to a socket of the device up to this number
    :ivar epoch: the mailbox's current epoch
    :ivar cuts: ``(epoch, last)`` for each epoch but the first in which something was stored here, with ``last`` as it
        was when that epoch began
    :ivar epochs: the mailbox's epochs if they have random names, oldest first, ending with the current one; empty if
        they are numbered
    :ivar emptied: the epoch that began when the mailbox lost all of its messages; 0: it never did
    """

    base: int = 0
    last: int = 0
    gone: int = 0
    acked: int | None = None
    written: int = 0
    epoch: int = 0
    cuts: tuple[tuple[int, int], ...] = ()
    epochs: tuple[int, ...] = field(default=(), compare=False)
    emptied: int = field(default=0, compare=False)

    @classmethod
    def new(cls, base: int, epoch: int = 0, epochs: tuple[int, ...] = (), emptied: int = 0) -> Box:
        return cls(base, base, base, None, base, epoch, epochs=epochs, emptied=emptied)

    def __len__(self) -> int:
        """The number of messages in the box."""
        return self.last - self.gone

    @property
    def owes_a_gap(self) -> bool:
        """True if messages are gone and the device has yet to be notified."""
        return self.gone > (self.written if self.acked is None else self.acked)

    def find(self, position: Position) -> int | None:
        """Return the number that a position stands for now, see :meth:`settled`; None if this mailbox never gave it."""
        is_future = not self.epochs and position.epoch > self.epoch
        is_beyond = is_future or (position.epoch == self.epoch and position.number > self.last)
        return None if position.number < 0 or is_beyond else self.settled(position)

    def settled(self, position: Position) -> int:
        """Return the number that a position stands for now, which is never beyond the end. For an epoch that the
        mailbox does not know, that is the number of ``NO_CURSOR_YET``."""
        if self.epochs and position.epoch not in self.epochs:
            return NO_CURSOR_YET.number
        number = min(position.number, self.last)
        for epoch, last in self.cuts:
            if self._is_later(epoch, position.epoch):
                number = min(number, last)
        return number

    def _is_later(self, epoch: int, other: int) -> bool:
        if not self.epochs:
            return epoch > other
        return epoch in self.epochs and self.epochs.index(epoch) > self.epochs.index(other)

    def lost(self, after: int, last: Position) -> int:
        """How many messages after number ``after``, up to ``last``, were lost when their epoch ended."""
        kept = self.settled(last)
        # A recreated box begins above all of them.
        return last.number - (max(after, kept) if kept > self.base else after)

    def may_have_lost(self, position: Position) -> bool:
        """True if the whole mailbox was lost, with the box of this position, and messages may have been in it.

        False if the position's number is the highest of all, or the device has acknowledged anything since.
        """
        return position.epoch < self.emptied and 0 <= position.number < self.base and (self.acked or 0) <= self.base

    def start(self, after: int | None) -> int:
        """Return the position at which a connection begins: messages with a higher number are sent.

        :param after: the number of the position that the device named, if any; negative: it uses cursors and has none
            yet
        """
        acked = self.base if self.acked is None else self.acked
        if after is not None and after < 0:
            # Without a cursor the device can't miss what was written once and is gone now.
            return max(acked, self.base, min(self.written, self.gone))
        if after is not None:
            return max(after, acked, self.base)
        return self.written if self.acked is None else acked

    def acknowledge(self, number: int) -> Box:
        """Mark everything up to ``number`` as received. Never moves back, or beyond the last message."""
        number = max(min(number, self.last), self.base if self.acked is None else self.acked)
        return self._with(self.last, max(self.gone, number), number, self.written)

    def write(self, number: int) -> Box:
        """Mark everything up to ``number`` as written to a socket. Never moves back, or beyond the last message."""
        return self._with(self.last, self.gone, self.acked, max(self.written, min(number, self.last)))

    def append(self) -> Box:
        """Add one message, numbered ``last`` of the result. With named epochs, the first message of every epoch but the
        mailbox's first adds a cut."""
        box = self._with(self.last + 1, self.gone, self.acked, self.written)
        is_cut = len(self.epochs) < 2 or (self.cuts and self.cuts[-1][0] == self.epoch)
        if is_cut:
            return box
        # Keep only cuts that apply to positions of an epoch that is still known.
        known = tuple(cut for cut in self.cuts if cut[0] in self.epochs[1:])
        return replace(box, cuts=(*known, (self.epoch, self.last)))

    def lose(self, up_to: int) -> Box:
        """Messages up to this number have expired or were evicted."""
        return self._with(self.last, max(self.gone, min(up_to, self.last)), self.acked, self.written)

    def _with(self, last: int, gone: int, acked: int | None, written: int) -> Box:
        return Box(self.base, last, gone, acked, written, self.epoch, self.cuts, self.epochs, self.emptied)


class Mark(NamedTuple):
    """What a device has acknowledged and its sockets have taken, perhaps not stored yet.

    :ivar acked: the device has everything up to this number; None: it has acknowledged nothing
    :ivar written: written to a socket of the device up to this number
    :ivar epoch: the epoch of both numbers
    """

    acked: int | None = None
    written: int | None = None
    epoch: int = 0

    def joined(self, other: Mark) -> Mark:
        """Combine two marks, in any order: marks never move back.

        :param other: a mark of the same epoch
        """
        return Mark(_later(self.acked, other.acked), _later(self.written, other.written), self.epoch)

    def on(self, box: Box) -> Box:
        """Return the box with this mark stored. A mark of an epoch that the mailbox does not know changes nothing."""
        if self.acked is not None and (number := box.settled(Position(self.acked, self.epoch))) >= 0:
            box = box.acknowledge(number)
        if self.written is not None and (number := box.settled(Position(self.written, self.epoch))) >= 0:
            box = box.write(number)
        return box


Marks = tuple[Mark, ...]
"""The marks of one device, one for each epoch, oldest first."""


def marked(marks: Marks, mark: Mark) -> Marks:
    """Add a mark."""
    if marks and marks[-1].epoch == mark.epoch:
        return (*marks[:-1], marks[-1].joined(mark))
    return (*marks, mark)


def with_marks(box: Box, marks: Iterable[Mark]) -> Box:
    """Return the box with all of these marks stored."""
    for mark in marks:
        box = mark.on(box)
    return box


def _later(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return max(one, other)


def surplus(sizes: list[int], limits: BoxLimits) -> int:
    """How many of the oldest messages to evict.

    :param sizes: the sizes of the messages in bytes, oldest first
    """
    excess_bytes = sum(sizes) - limits.max_bytes
    gone = max(0, len(sizes) - limits.max_messages)
    excess_bytes -= sum(sizes[:gone])
    while excess_bytes > 0 and gone < len(sizes) - 1:
        excess_bytes -= sizes[gone]
        gone += 1
    return gone
