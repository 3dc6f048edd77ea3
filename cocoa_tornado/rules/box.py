"""The arithmetic of one device's box: lanes, numbers, positions, which messages are missed. Pure.

A box has two lanes: one for messages of high priority, one for all others. In each lane, messages are numbered
consecutively in the order of storage. A message that leaves its box leaves its number unused. Where a device's position
passes such a number, the device has missed a message that expired or was dropped from a full box, unless the message
was *retracted*: replaced by a newer one, or no longer for this device. So for each lane two numbers, and the retracted
ones between them, say what a device has missed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from .claims import FencingToken
from .retracted import Retracted, above, count_between, with_number

FORGET_AFTER_S: Final = 30 * 86_400.0
"""An empty box of a device that is not known is removed after this long without any change."""

FORGET_MISSED_AFTER_S: Final = 365 * 86_400.0
"""The same for a box whose device has yet to receive a gap notice."""

LaneName: TypeAlias = Literal["normal", "high"]
LANES: Final[tuple[LaneName, ...]] = ("normal", "high")


@dataclass(frozen=True, slots=True)
class BoxLimits:
    """A box never exceeds them, over both lanes. The newest message stays even if it is larger, unless it is of
    low priority and not the only one.

    :ivar max_messages: messages that a box may hold
    :ivar max_bytes: their total size
    :ivar ttl_s: how long a message is kept
    :ivar member_ttl_s: how long a device is known after its last connection
    """

    max_messages: int = 1_000
    max_bytes: int = 4 * 1024 * 1024
    ttl_s: float = 86_400.0
    member_ttl_s: float = 30 * 86_400.0


@dataclass(frozen=True, slots=True)
class PageLimits:
    """How much of a lane one read returns; at least one message, even if it is larger."""

    max_messages: int = 64
    max_bytes: int = 256 * 1024


class StoredMessage(NamedTuple):
    """:ivar number: in its lane, counted from 1
    :ivar timestamp_ms: the record's timestamp, Unix milliseconds; 0 if it has none
    :ivar expires_ms: not to be sent after this time, Unix milliseconds; 0: its own ``ttl`` is unlimited
    :ivar collapse_key: a newer message of the device with this key replaces it
    :ivar is_low: its priority is low
    """

    number: int
    payload: bytes
    timestamp_ms: int
    expires_ms: int = 0
    collapse_key: str | None = None
    is_low: bool = False


class Numbers(NamedTuple):
    """One number for each lane."""

    normal: int = 0
    high: int = 0

    def joined(self, other: Numbers) -> Numbers:
        """Return the higher number of each lane."""
        normal, high = self
        other_normal, other_high = other
        if other_high == high:  # nearly always
            return self if normal >= other_normal else other
        return Numbers(max(normal, other_normal), max(high, other_high))


class Position(NamedTuple):
    """A position in a device's box, right after the messages with these numbers. A cursor encodes one.

    :ivar normal: the number in the lane of normal and low priority
    :ivar epoch: the mailbox's epoch when it gave the numbers, see :class:`Epochs`
    :ivar high: the number in the lane of high priority; 0: before all of its messages
    """

    normal: int
    epoch: int = 0
    high: int = 0

    @property
    def numbers(self) -> Numbers:
        return Numbers(self.normal, self.high)


NO_CURSOR_YET: Final = Position(-1, 0, -1)
"""The position of a device that uses cursors and has none yet: it receives everything that is kept."""

KNOWN_EPOCHS: Final = 33
"""Epochs that a mailbox with random epoch names remembers: the current one and the 32 before it."""


@dataclass(frozen=True, slots=True)
class Epochs:
    """The epochs of a mailbox.

    A mailbox that can lose its last writes (a Redis that was killed, a file restored from a backup) may give a number
    twice. It therefore has epochs, and begins a new one whenever that may have happened. In the new epoch, a position
    of an earlier one stands for no more than what the box held when the new epoch began.

    Epochs are numbered in order, or have random names. Names are for files, which can be copied: two copies may begin
    epochs at the same time without knowing of each other. Such a mailbox lists its past epochs. A position of any
    unlisted epoch stands for the beginning of the box, because its number may come from another copy.

    :ivar current: the epoch of the messages stored from now on
    :ivar names: the epochs if they have random names, oldest first, ending with the current one; empty if they are
        numbered
    :ivar emptied: the epoch that began when the mailbox lost all of its messages; 0: it never did
    """

    current: int = 0
    names: tuple[int, ...] = ()
    emptied: int = 0

    def knows(self, epoch: int) -> bool:
        return not self.names or epoch in self.names

    def is_later(self, epoch: int, other: int) -> bool:
        """True if ``epoch`` is known to have begun after ``other``."""
        if not self.names:
            return epoch > other
        return epoch in self.names and self.names.index(epoch) > self.names.index(other)


class Lane(NamedTuple):
    """The state of one lane of a box, without its messages.

    :ivar base: the first message's number is at least ``base + 1``. A box that is recreated after its removal begins
        above all numbers of the old one, so an old cursor never matches a position in the new box.
    :ivar last: the highest number given; ``base`` if none was
    :ivar gone: no message up to this number is in the box any more
    :ivar acked: acknowledged up to this number; None if this device has never acknowledged anything
    :ivar written: written to a socket of the device up to this number
    :ivar cuts: ``(epoch, last)`` for each epoch but the first in which something was stored here, with ``last`` as it
        was when that epoch began
    :ivar retracted: unused numbers that do not count as missed, above what is acknowledged
    """

    base: int = 0
    last: int = 0
    gone: int = 0
    acked: int | None = None
    written: int = 0
    cuts: tuple[tuple[int, int], ...] = ()
    retracted: Retracted = ()

    @classmethod
    def new(cls, base: int) -> Lane:
        return cls(base, base, base, None, base)

    @property
    def confirmed(self) -> int:
        """What the device has for sure: acknowledged, or written if it never acknowledges."""
        return self.written if self.acked is None else self.acked

    def missed(self, after: int, up_to: int) -> int:
        """How many messages a device has missed whose numbers are above ``after`` and at most ``up_to``, if none of
        them is in the box."""
        return max(0, up_to - after - count_between(self.retracted, after, up_to))

    def settled(self, number: int, epoch: int, epochs: Epochs) -> int:
        """Return the number that a number of an epoch stands for now, which is never beyond the end. For an epoch that
        the mailbox does not know, that is the number of ``NO_CURSOR_YET``."""
        if not epochs.knows(epoch):
            return -1
        number = min(number, self.last)
        for begun, last in self.cuts:
            if epochs.is_later(begun, epoch):
                number = min(number, last)
        return number

    def start(self, after: int | None) -> int:
        """Return the number at which a connection begins: messages with a higher number are sent.

        :param after: the number that the device's cursor stands for, if it sent one; negative: it uses cursors and has
            none yet
        """
        acked = self.base if self.acked is None else self.acked
        if after is None:
            return self.confirmed
        if after < 0:
            # Without a cursor the device can't miss what was written once and is gone now.
            return max(acked, self.base, min(self.written, self.gone))
        return max(after, acked, self.base)

    def append(self, epochs: Epochs) -> Lane:
        """Add one message, numbered ``last`` of the result. With named epochs, the first message of every epoch but the
        mailbox's first adds a cut."""
        base, last, gone, acked, written, cuts, retracted = self
        is_cut = len(epochs.names) < 2 or (cuts and cuts[-1][0] == epochs.current)
        if not is_cut:
            # Keep only cuts that apply to positions of an epoch that is still known.
            cuts = (*(cut for cut in cuts if cut[0] in epochs.names[1:]), (epochs.current, last))
        return _NEW(Lane, (base, last + 1, gone, acked, written, cuts, retracted))

    def acknowledge(self, number: int) -> Lane:
        """Mark everything up to ``number`` as received. Never moves back, or beyond the last message."""
        base, last, gone, acked, written, cuts, retracted = self
        number = max(min(number, last), base if acked is None else acked)
        if number == acked:
            return self
        retracted = above(retracted, number) if retracted else ()
        return _NEW(Lane, (base, last, max(gone, number), number, written, cuts, retracted))

    def write(self, number: int) -> Lane:
        """Mark everything up to ``number`` as written to a socket. Never moves back, or beyond the last message."""
        base, last, gone, acked, written, cuts, retracted = self
        number = min(number, last)
        return self if number <= written else _NEW(Lane, (base, last, gone, acked, number, cuts, retracted))

    def lose(self, up_to: int) -> Lane:
        """Messages up to this number have expired, or were dropped or retracted."""
        base, last, gone, acked, written, cuts, retracted = self
        up_to = min(up_to, last)
        return self if up_to <= gone else _NEW(Lane, (base, last, up_to, acked, written, cuts, retracted))

    def retract(self, number: int) -> Lane:
        """The message with this number has left the box and does not count as missed."""
        if number <= (self.base if self.acked is None else self.acked):
            return self
        return self._replace(retracted=with_number(self.retracted, number))


_NEW: Final = tuple.__new__
"""Like Lane(...), without the Python function that a NamedTuple has for it."""


class Box(NamedTuple):
    """The state of a device's box, without its messages.

    :ivar normal: the lane of messages of normal and low priority
    :ivar high: the lane of messages of high priority
    """

    normal: Lane = Lane()
    high: Lane = Lane()
    epochs: Epochs = Epochs()

    @classmethod
    def new(cls, base: int, epochs: Epochs = Epochs()) -> Box:
        return cls(Lane.new(base), Lane.new(base), epochs)

    def lane(self, name: LaneName) -> Lane:
        return self.high if name == "high" else self.normal

    def with_lane(self, name: LaneName, lane: Lane) -> Box:
        return Box(self.normal, lane, self.epochs) if name == "high" else Box(lane, self.high, self.epochs)

    @property
    def epoch(self) -> int:
        """The mailbox's current epoch."""
        return self.epochs.current

    @property
    def last(self) -> Numbers:
        """The highest numbers given."""
        return Numbers(self.normal.last, self.high.last)

    @property
    def written(self) -> Numbers:
        """Written to a socket of the device up to these numbers."""
        return Numbers(self.normal.written, self.high.written)

    @property
    def has_acked(self) -> bool:
        """True if the device has ever acknowledged anything."""
        return self.normal.acked is not None or self.high.acked is not None

    @property
    def owes_a_gap(self) -> bool:
        """True if messages are gone and the device has yet to be notified."""
        return any(lane.missed(lane.confirmed, lane.gone) for lane in (self.normal, self.high))

    def find(self, position: Position) -> Numbers | None:
        """Return the numbers that a position stands for now, see :meth:`settled`; None if this mailbox never gave
        it."""
        is_future = not self.epochs.names and position.epoch > self.epoch
        is_current = position.epoch == self.epoch
        is_beyond = is_current and (position.normal > self.normal.last or position.high > self.high.last)
        return None if min(position.numbers) < 0 or is_future or is_beyond else self.settled(position)

    def settled(self, position: Position) -> Numbers:
        """Return the numbers that a position stands for now, see :meth:`Lane.settled`."""
        return Numbers(
            self.normal.settled(position.normal, position.epoch, self.epochs),
            self.high.settled(position.high, position.epoch, self.epochs),
        )

    def lost(self, after: Numbers, last: Position) -> int:
        """How many messages after the numbers ``after``, up to ``last``, were lost when their epoch ended."""
        kept = self.settled(last)
        # A recreated box begins above all of them.
        normal = last.normal - (max(after.normal, kept.normal) if kept.normal > self.normal.base else after.normal)
        high = last.high - (max(after.high, kept.high) if kept.high > self.high.base else after.high)
        return normal + high

    def may_have_lost(self, position: Position) -> bool:
        """True if the whole mailbox was lost, with the box of this position, and messages may have been in it.

        False if one of the position's numbers is the highest of all, or the device has acknowledged anything since.
        """
        lanes = (self.normal, self.high)
        is_of_lost_box = position.epoch < self.epochs.emptied and position.normal >= 0
        is_highest = any(number >= lane.base for number, lane in zip(position.numbers, lanes, strict=True))
        has_acked_since = any((lane.acked or 0) > lane.base for lane in lanes)
        return is_of_lost_box and not is_highest and not has_acked_since

    def start(self, after: Position | None) -> Numbers:
        """Return the numbers at which a connection begins.

        :param after: the position of the cursor that the device named, if any
        """
        if after is None:
            return Numbers(self.normal.start(None), self.high.start(None))
        settled = self.settled(after)
        return Numbers(self.normal.start(settled.normal), self.high.start(settled.high))

    def acknowledge(self, numbers: Numbers) -> Box:
        """Mark everything up to these numbers as received."""
        normal, high, epochs = self
        return _NEW(Box, (normal.acknowledge(numbers.normal), high.acknowledge(numbers.high), epochs))

    def write(self, numbers: Numbers) -> Box:
        """Mark everything up to these numbers as written to a socket."""
        normal, high, epochs = self
        return _NEW(Box, (normal.write(numbers.normal), high.write(numbers.high), epochs))


class Mark(NamedTuple):
    """What a device has acknowledged and its sockets have taken, perhaps not stored yet.

    :ivar acked: the device has everything up to these numbers; None: it has acknowledged nothing
    :ivar written: written to a socket of the device up to these numbers
    :ivar epoch: the epoch of all numbers
    :ivar fencing_token: of the grant under which the messages were written. ``written`` has no effect if the device is
        held under another grant by then. None: nothing is checked
    """

    acked: Numbers | None = None
    written: Numbers | None = None
    epoch: int = 0
    fencing_token: FencingToken | None = None

    def joins(self, other: Mark) -> bool:
        """Whether the two can be combined: they have the same epoch, and do not refer to two grants."""
        if self.epoch != other.epoch:
            return False
        return self.written is None or other.written is None or self.fencing_token == other.fencing_token

    def joined(self, other: Mark) -> Mark:
        """Combine two marks, in any order: marks never move back.

        :param other: a mark that this one :meth:`joins`
        """
        fencing_token = self.fencing_token if other.written is None else other.fencing_token
        return Mark(_later(self.acked, other.acked), _later(self.written, other.written), self.epoch, fencing_token)

    def on(self, box: Box) -> Box:
        """Return the box with this mark stored. A mark of an epoch that the mailbox does not know changes nothing."""
        if self.epoch != box.epochs.current and not box.epochs.knows(self.epoch):
            return box
        if self.acked is not None:
            box = box.acknowledge(self._settled(box, self.acked))
        if self.written is not None:
            box = box.write(self._settled(box, self.written))
        return box

    def _settled(self, box: Box, numbers: Numbers) -> Numbers:
        # No cut applies to the current epoch.
        is_current = self.epoch == box.epochs.current
        return numbers if is_current else box.settled(Position(numbers.normal, self.epoch, numbers.high))


Marks = tuple[Mark, ...]
"""The marks of one device, oldest first: one for each epoch and grant."""


def marked(marks: Marks, mark: Mark) -> Marks:
    """Add a mark."""
    if marks and marks[-1].joins(mark):
        return (*marks[:-1], marks[-1].joined(mark))
    return (*marks, mark)


def with_marks(box: Box, marks: Iterable[Mark]) -> Box:
    """Return the box with all of these marks stored."""
    for mark in marks:
        box = mark.on(box)
    return box


def _later(one: Numbers | None, other: Numbers | None) -> Numbers | None:
    if one is None or other is None:
        return one if other is None else other
    return one.joined(other)


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
