"""The arithmetic of one device's box: numbers, positions, what is missed and what has to go. Pure.

A box's messages are numbered one by one, without a gap, in the order in which they were stored. They leave it only at
the old end: acknowledged, expired, or fallen out of a full box. So two numbers say which are there, and whatever lies
between a device's position and the oldest that is left has been missed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

FORGET_AFTER_S: Final = 30 * 86_400.0
"""An empty box that nothing has happened to for so long is removed."""

FORGET_MISSED_AFTER_S: Final = 365 * 86_400.0
"""The same, where its device has still to be told that it has missed something."""


@dataclass(frozen=True, slots=True)
class BoxLimits:
    """:ivar max_messages: that a box may hold; :ivar max_bytes: their size together; :ivar ttl_s: how long one is kept.

    The newest message stays, however large it is.
    """

    max_messages: int = 1_000
    max_bytes: int = 4 * 1024 * 1024
    ttl_s: float = 86_400.0


@dataclass(frozen=True, slots=True)
class PageLimits:
    """How much of a box is read at a time; one message at least, however large."""

    max_messages: int = 64
    max_bytes: int = 256 * 1024


class StoredMessage(NamedTuple):
    """:ivar number: in its device's box, from 1 up
    :ivar timestamp_ms: the record's own, Unix milliseconds; 0 if it has none
    """

    number: int
    payload: bytes
    timestamp_ms: int


class Place(NamedTuple):
    """A place in a device's box: behind the message with this number. It is what a cursor stands for.

    :ivar epoch: of the mailbox when it gave the number, see :class:`Box`
    """

    number: int
    epoch: int = 0


NO_CURSOR_YET: Final = Place(-1)
"""Where a device begins that goes by cursors: with what is kept."""

KNOWN_EPOCHS: Final = 33
"""Epochs that a mailbox with named epochs remembers: the current one, and the 32 before it."""


@dataclass(frozen=True, slots=True)
class Box:
    """What is known of a box without reading its messages.

    A mailbox whose last writes can be lost, such as a Redis that was killed or a file restored from a backup, gives
    numbers a second time. So it has epochs: a new one begins whenever that may have happened. In it, a place of an
    earlier epoch stands for no more than what was there when the epoch began.

    Epochs are numbered in the order of their beginnings, or they have random names: where a file can be copied, two
    copies may begin epochs at the same time, and neither knows the other's. Then the mailbox lists those that it has
    had. A place of any other epoch has a number that some copy gave to who knows what: it stands for the beginning.

    :ivar base: its first message's number is at least ``base + 1``. A box that was removed and is made anew begins
        above all numbers that the old one gave, so that an old cursor is not taken for a place in the new box.
    :ivar last: the highest number given; ``base`` if there is none yet
    :ivar gone: no message up to this number is in the box any more
    :ivar acked: acknowledged up to here; None if this device has never acknowledged anything
    :ivar written: written to a socket of the device up to here
    :ivar epoch: of the mailbox now
    :ivar cuts: epochs in which something was stored here, but for the first, and ``last`` as each of them found it
    :ivar epochs: that the mailbox has had, oldest first, ending with the current one, where they have random names;
        empty where they are numbered in their order
    :ivar emptied: the epoch that began when all messages of the mailbox were lost; 0: they never were
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
        """How many messages are in it."""
        return self.last - self.gone

    @property
    def owes_a_gap(self) -> bool:
        """Whether the device has still to be told that messages are gone."""
        return self.gone > (self.written if self.acked is None else self.acked)

    def find(self, place: Place) -> int | None:
        """The number that a place stands for now, see :meth:`settled`; None if it cannot be one of ours."""
        is_future = not self.epochs and place.epoch > self.epoch
        is_beyond = is_future or (place.epoch == self.epoch and place.number > self.last)
        return None if place.number < 0 or is_beyond else self.settled(place)

    def settled(self, place: Place) -> int:
        """The number that a place stands for now, which is never beyond the end; that of ``NO_CURSOR_YET`` if the
        mailbox does not know its epoch."""
        if self.epochs and place.epoch not in self.epochs:
            return NO_CURSOR_YET.number
        number = min(place.number, self.last)
        for epoch, last in self.cuts:
            if self._is_later(epoch, place.epoch):
                number = min(number, last)
        return number

    def _is_later(self, epoch: int, other: int) -> bool:
        if not self.epochs:
            return epoch > other
        return epoch in self.epochs and self.epochs.index(epoch) > self.epochs.index(other)

    def lost(self, position: int, last: Place) -> int:
        """How many messages from beyond ``position`` up to ``last`` have not survived the end of their epoch."""
        kept = self.settled(last)
        # A box that was made anew begins above them all.
        return last.number - (max(position, kept) if kept > self.base else position)

    def may_have_lost(self, place: Place) -> bool:
        """Whether the box that the place was in was lost with the whole mailbox, and perhaps with messages in it.

        Not if it is the highest number of all, nor if the device has acknowledged anything since.
        """
        return place.epoch < self.emptied and 0 <= place.number < self.base and (self.acked or 0) <= self.base

    def start(self, after: int | None) -> int:
        """The position that a connection begins at: what has a higher number is to be sent.

        :param after: the number of the place that the device has named, if it has; less than 0: it goes by cursors, and
            has none yet
        """
        acked = self.base if self.acked is None else self.acked
        if after is not None and after < 0:
            # What is gone and was written once is not held against a device that had no cursor then.
            return max(acked, self.base, min(self.written, self.gone))
        if after is not None:
            return max(after, acked, self.base)
        return self.written if self.acked is None else acked

    def acknowledge(self, number: int) -> Box:
        """Everything up to ``number`` has arrived. Never goes back, and never beyond what there is."""
        number = max(min(number, self.last), self.base if self.acked is None else self.acked)
        return self._with(self.last, max(self.gone, number), number, self.written)

    def write(self, number: int) -> Box:
        """Everything up to ``number`` was written to a socket. Never goes back, and never beyond what there is."""
        return self._with(self.last, self.gone, self.acked, max(self.written, min(number, self.last)))

    def append(self) -> Box:
        """Add a message; its number is ``last`` of the returned box. Where epochs have names, the first message of each
        epoch but the mailbox's first leaves a cut."""
        box = self._with(self.last + 1, self.gone, self.acked, self.written)
        is_cut = len(self.epochs) < 2 or (self.cuts and self.cuts[-1][0] == self.epoch)
        if is_cut:
            return box
        # A cut is needed for the known epochs before it.
        known = tuple(cut for cut in self.cuts if cut[0] in self.epochs[1:])
        return replace(box, cuts=(*known, (self.epoch, self.last)))

    def lose(self, up_to: int) -> Box:
        """Messages up to this number have expired or fallen out."""
        return self._with(self.last, max(self.gone, min(up_to, self.last)), self.acked, self.written)

    def _with(self, last: int, gone: int, acked: int | None, written: int) -> Box:
        return Box(self.base, last, gone, acked, written, self.epoch, self.cuts, self.epochs, self.emptied)


class Mark(NamedTuple):
    """What a device has told of its box, or its sockets have, and is perhaps not stored yet.

    :ivar acked: the device has everything up to here; None: it has told nothing
    :ivar written: written to a socket of the device up to here
    :ivar epoch: of both numbers
    """

    acked: int | None = None
    written: int | None = None
    epoch: int = 0

    def joined(self, other: Mark) -> Mark:
        """Both, in any order: marks never go back.

        :param other: of the same epoch
        """
        return Mark(_later(self.acked, other.acked), _later(self.written, other.written), self.epoch)

    def on(self, box: Box) -> Box:
        """The box once this is stored. A mark of an epoch that the mailbox does not know changes nothing."""
        if self.acked is not None and (number := box.settled(Place(self.acked, self.epoch))) >= 0:
            box = box.acknowledge(number)
        if self.written is not None and (number := box.settled(Place(self.written, self.epoch))) >= 0:
            box = box.write(number)
        return box


Marks = tuple[Mark, ...]
"""Of one device, each of another epoch, oldest first."""


def marked(marks: Marks, mark: Mark) -> Marks:
    """One mark more."""
    if marks and marks[-1].epoch == mark.epoch:
        return (*marks[:-1], marks[-1].joined(mark))
    return (*marks, mark)


def with_marks(box: Box, marks: Iterable[Mark]) -> Box:
    """The box once all of these are stored."""
    for mark in marks:
        box = mark.on(box)
    return box


def _later(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return max(one, other)


def surplus(sizes: list[int], limits: BoxLimits) -> int:
    """How many of the oldest messages have to go.

    :param sizes: of the messages in bytes, oldest first
    """
    excess_bytes = sum(sizes) - limits.max_bytes
    gone = max(0, len(sizes) - limits.max_messages)
    excess_bytes -= sum(sizes[:gone])
    while excess_bytes > 0 and gone < len(sizes) - 1:
        excess_bytes -= sizes[gone]
        gone += 1
    return gone
