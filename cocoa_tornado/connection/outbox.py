"""A device's outbox: the messages to write to its socket, in order, within a bound. Pure.

A write has three steps. :meth:`Outbox.take` returns what to write next and leaves it queued. The shell passes that to
the socket, and then calls :meth:`Outbox.given_all` or :meth:`Outbox.given`, depending on how much the socket has taken.
Only frames that the socket has begun to take leave the queue, so later messages may still overtake the rest.

A message is queued in one of two forms, see ``Terms.number``: as a finished frame, or as a payload whose frame is made
when it is taken, again each time. The second form is for messages that carry a cursor: the cursor depends on what was
given to the socket before them. :data:`Given` reports which of these messages the socket has taken completely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Final, Protocol, TypeAlias

from ..rules.box import LaneName, Numbers
from ..rules.terms import Terms
from .details import NO_QUEUE, Details, Taken
from .making_room import OutboxLimits, Squeezed, Withdrawn, droppable, to_drop, to_withdraw
from .queue import CURSOR_BYTES, NO_BODIES, NO_STAMPS, Queue, Queued, cost

MOST_PER_TAKE: Final = 128 * 1024
"""Bytes after which no further frame is taken in one write. The kernel keeps as much unsent (``sockets.py``), so more
would mostly be joined in vain."""
MOST_HIGH_IN_A_ROW: Final = 8
"""Contract section 9: how many high messages may go before a waiting normal one."""


Given: TypeAlias = tuple[Sequence[int], int]
"""The messages that the socket has taken completely: the timestamps of all messages, in the order of taking, and how
many have a number. The latter include the messages that :meth:`Taker.frame_of` has skipped."""
NOTHING_GIVEN: Final[Given] = ((), 0)


class Taker(Protocol):
    """Takes messages out of an outbox: a connection."""

    def now_ms(self) -> float:
        """The wall clock, Unix milliseconds."""

    def frame_of(self, payload: bytes, lane: LaneName, number: int) -> bytes | None:
        """Make the frame of a message that is about to be given to the socket. Called in the order of giving. A message
        that the socket does not take now is passed once more later, possibly after other messages.

        :param number: in its lane; 0: it is not stored
        :return: None: skip the message
        """

    def note_expired(self, terms: Terms, body: bytes, timestamp_ms: int) -> None:
        """A message has expired while it was queued, and is removed."""


class Outbox(Queue):
    """Messages in the order of :meth:`push`, except that those of high priority go first: up to eight in a row while
    others wait. An empty outbox holds no list. It is itself the queue of all other messages.

    Messages are dropped to make room for later ones, or if there is no room for them: interims first, because a later
    one of the same session replaces them, then those of low priority, if the caller allows that. Others leave only if
    they expire, or if a newer one with the same collapse key replaces them.

    A single message larger than ``max_bytes`` is accepted if nothing else waits: the bound limits how far a device may
    fall behind, not the size of a message.
    """

    __slots__ = ("_bytes", "_details", "_made", "_numbered")

    def __init__(self) -> None:
        super().__init__()
        self._bytes = 0  # all that waits
        self._details: Details | None = None
        # The frames of a write of one lane, if any had to be made, and how many of its messages have a number.
        self._made: list[bytes] | None = None
        self._numbered = 0

    def __repr__(self) -> str:
        return f"<Outbox {len(self)} messages, {self.waiting_bytes} bytes>"

    def __len__(self) -> int:
        """Messages that are queued, or that the socket has not taken completely."""
        return len(self.bodies) + (0 if self._details is None else self._details.others)

    @property
    def waiting_bytes(self) -> int:
        return self._bytes

    @property
    def has_queued(self) -> bool:
        return bool(self.bodies) or (self._details is not None and bool(self._details.high.bodies))

    @property
    def begun_numbered(self) -> int:
        """How many messages that have a number the socket has taken in part."""
        return 0 if self._details is None else sum(each.is_numbered for each in self._details.begun)

    @property
    def begun(self) -> int:
        """How many messages the socket has taken in part."""
        return 0 if self._details is None else len(self._details.begun)

    @property
    def has_high(self) -> bool:
        """Whether a message of high priority is queued."""
        return self._details is not None and bool(self._details.high.bodies)

    def is_over_half(self, limits: OutboxLimits) -> bool:
        """Whether more than half of the limits is in use."""
        return 2 * len(self) > limits.max_messages or 2 * self._bytes > limits.max_bytes

    # -- queuing

    def push(self, body: bytes, timestamp_ms: int, limits: OutboxLimits, terms: Terms | None = None) -> bool:
        """Queue a message. False: it does not fit, and nothing is changed.

        If it has a collapse key, call :meth:`collapse` before.

        :param body: its frame or, if its terms have a number, its payload
        """
        if self._details is not None or (terms is not None and (terms.expires_ms or terms.priority == "high")):
            return self._push_with_details(body, timestamp_ms, limits, terms)
        bodies, size = self.bodies, len(body)
        if terms is not None and terms.number is not None:
            size += CURSOR_BYTES
        if bodies:
            size += self._bytes
            if size > limits.max_bytes or len(bodies) >= limits.max_messages:
                return False
            bodies.append(body)
            self.stamps.append(timestamp_ms)
        else:
            self.bodies, self.stamps = [body], [timestamp_ms]
        self._bytes = size
        if terms is not None or self.terms is not None:
            if self.terms is None:
                self.terms = [None] * (len(self.bodies) - 1)
            self.terms.append(terms)
        return True

    def _push_with_details(self, body: bytes, timestamp_ms: int, limits: OutboxLimits, terms: Terms | None) -> bool:
        size, waiting = self._bytes + cost(body, terms), len(self)
        if waiting and (waiting >= limits.max_messages or size > limits.max_bytes):
            return False
        self._bytes = size
        details = self._detailed()
        if terms is not None:
            if terms.expires_ms and not 0 < details.expires_ms < terms.expires_ms:
                details.expires_ms = terms.expires_ms
            if terms.priority == "high":
                details.others += 1
                if details.high is NO_QUEUE:
                    details.high = Queue()
                details.high.append(body, timestamp_ms, terms)
                return True
        self.append(body, timestamp_ms, terms)
        return True

    def _detailed(self) -> Details:
        if self._details is None:
            self._details = Details()
        return self._details

    def collapse(self, key: str, below: Numbers | None = None) -> Sequence[Queued]:
        """Remove the queued messages with this collapse key; return those of them that are in no box.

        :param below: in each lane, the stored ones with this number or a higher one are not older, and stay
        """

        def is_replaced(terms: Terms) -> bool:
            if terms.collapse_key != key:
                return False
            return below is None or not terms.number or terms.number < below[terms.priority == "high"]

        removed = self._remove_all(is_replaced)
        return [waiting for waiting in removed if waiting[2] is not None and not waiting[2].number]

    def is_queued(self, payload: bytes, timestamp_ms: int) -> bool:
        """Whether a message waits, or the socket has not taken all of it.

        :param payload: of its record, which its body ends with
        """
        queues: Sequence[Queue] = (self,) if self._details is None else (self, self._details.high)
        begun = () if self._details is None else self._details.begun
        return any(
            stamp == timestamp_ms and body.endswith(payload)
            for queue in queues
            for body, stamp in zip(queue.bodies, queue.stamps, strict=True)
        ) or any(each.waiting[1] == timestamp_ms and each.waiting[0].endswith(payload) for each in begun)

    def expire(self, taker: Taker) -> None:
        """Remove the queued messages that have expired."""
        details = self._details
        if details is None or not details.expires_ms:
            return
        now_ms, later = taker.now_ms(), 0
        if now_ms <= details.expires_ms:
            return

        def is_expired(terms: Terms) -> bool:
            nonlocal later
            if terms.has_expired(now_ms):
                return True
            if terms.expires_ms and not 0 < later < terms.expires_ms:
                later = terms.expires_ms
            return False

        expired = self._remove_all(is_expired)
        details.expires_ms = later
        for body, timestamp_ms, terms in expired:
            assert terms is not None
            taker.note_expired(terms, body, timestamp_ms)

    def _remove_all(self, wanted: Callable[[Terms], bool]) -> list[Queued]:
        """Return what was removed."""
        normal, high = self.find(wanted), self._details.high.find(wanted) if self._details else []
        removed = [self.waiting_at(at) for at in normal]
        if self._details is not None:
            removed += [self._details.high.waiting_at(at) for at in high]
        self._remove_from(normal, high)
        return removed

    def _remove_from(self, normal: Sequence[int], high: Sequence[int]) -> None:
        if normal:
            self._bytes -= self.remove(normal)
        if high and self._details is not None:
            self._bytes -= self._details.high.remove(high)
            self._details.others -= len(high)
        self._drop_details()

    # -- making room

    def squeeze_in(
        self, body: bytes, timestamp_ms: int, limits: OutboxLimits, terms: Terms | None = None, *, may_drop_low: bool
    ) -> Squeezed:
        """Queue a message that :meth:`push` did not accept, by dropping others until it fits; none if that would not be
        enough.

        Interims of its own session go first, then other interims, then messages of low priority, each the oldest first.
        An interim drops interims only. A message that is itself an interim, or of low priority, counts as dropped if it
        is not queued.

        :param may_drop_low: False: drop interims only
        """
        if self.push(body, timestamp_ms, limits, terms):
            return Squeezed(True)
        is_interim = terms is not None and bool(terms.interim_of)
        queues = [self] if self._details is None else [self, self._details.high]
        found = droppable(queues, "" if terms is None else terms.interim_of, may_drop_low and not is_interim)
        dropped = to_drop(found, len(self), self._bytes + cost(body, terms), limits)
        if dropped is None:
            is_low = terms is not None and terms.priority == "low" and may_drop_low
            lost = [(body, timestamp_ms, terms)] if is_interim or is_low else []
            return Squeezed(False, int(is_interim), int(is_low and not is_interim), lost)
        lost = [each.queue.waiting_at(each.at) for each in dropped]
        normal = [each.at for each in dropped if each.queue is self]
        self._remove_from(normal, [each.at for each in dropped if each.queue is not self])
        queued = self.push(body, timestamp_ms, limits, terms)
        assert queued
        interims = sum(each.is_interim for each in dropped)
        return Squeezed(True, interims, len(dropped) - interims, lost)

    def withdraw(self, body: bytes, limits: OutboxLimits, terms: Terms, least: int) -> Withdrawn:
        """Make room for a message by removing others that have a number of at least ``least``, from the newest to the
        oldest, and the transient messages behind them. Those of high priority stay. If that would not make enough room,
        nothing is removed.
        """
        leaving = to_withdraw(self, len(self), self._bytes + cost(body, terms), limits, least)
        transient = [(*self.waiting_at(at), number) for at, number in leaving.transient]
        self._remove_from([*leaving.stored, *(at for at, _ in leaving.transient)], ())
        return Withdrawn(leaving.lowest, transient)

    # -- writing

    def take(self, taker: Taker) -> bytes:
        """Return the next messages as one piece, which stay queued until :meth:`given_all` or :meth:`given`. b'': there
        is none; but call :meth:`given_all` if :attr:`has_queued`, because all of them were skipped.

        Don't call it before the socket has taken what it has begun to take.
        """
        if self._details is None and self._bytes <= MOST_PER_TAKE:
            bodies = self.bodies if self.terms is None else self._take_from(self, taker)
            return bodies[0] if len(bodies) == 1 else b"".join(bodies)
        self.expire(taker)
        if not self.has_queued:
            return b""
        details = self._detailed()
        if self.bodies and details.high.bodies:
            frames = self._take_in_order(details, taker)
        else:
            frames = self._take_from(self if self.bodies else details.high, taker)
            details.single = len(frames)
        data = b"".join(frames)
        details.taken_bytes = len(data)
        return data

    def _take_from(self, queue: Queue, taker: Taker) -> list[bytes]:
        """Return the next frames of one lane, if the other is empty."""
        name: LaneName = "normal" if queue is self else "high"
        frames, size, numbered = list[bytes](), 0, 0
        self._made = None
        for frame, terms in zip(queue.bodies, queue.terms or repeat(None), strict=False):
            if terms is not None and (number := terms.number) is not None:
                frame = taker.frame_of(frame, name, number) or b""
                numbered += number > 0
                self._made = frames
            frames.append(frame)
            size += len(frame)
            if size >= MOST_PER_TAKE:
                break
        self._numbered = numbered
        return frames

    def _take_in_order(self, details: Details, taker: Taker) -> list[bytes]:
        """Return the next frames of both lanes."""
        frames, taken, size = list[bytes](), list[Taken](), 0
        for queue, at in self._in_order(details):
            waiting = queue.waiting_at(at)
            frame, _, terms = waiting
            if terms is not None and terms.number is not None:
                frame = taker.frame_of(frame, "normal" if queue is self else "high", terms.number) or b""
            frames.append(frame)
            taken.append(Taken(queue is not self, len(frame), waiting))
            size += len(frame)
            if size >= MOST_PER_TAKE:
                break
        details.taken = taken
        return frames

    def _in_order(self, details: Details) -> Iterator[tuple[Queue, int]]:
        """Everything that is queued, in the order of giving."""
        at, high_at, in_a_row = 0, 0, details.high_in_a_row
        while at < len(self.bodies) or high_at < len(details.high.bodies):
            normal_waits = at < len(self.bodies)
            if high_at < len(details.high.bodies) and not (normal_waits and in_a_row >= MOST_HIGH_IN_A_ROW):
                yield details.high, high_at
                high_at, in_a_row = high_at + 1, in_a_row + 1
            else:
                yield self, at
                at, in_a_row = at + 1, 0

    @property
    def taken_bytes(self) -> int:
        """The size of what the last :meth:`take` returned, until it is given."""
        if self._details is not None:
            return self._details.taken_bytes
        return self._bytes if self._made is None else sum(map(len, self._made))

    def taken(self) -> list[Taken]:
        """The messages that the last :meth:`take` returned, until they are given."""
        details = self._details
        if details is None:
            taken: Iterable[Taken] = self._taken_of_one(self, len(self.bodies))
        else:
            taken = details.taken or self._taken_of_one(self if self.bodies else details.high, details.single)
        return [each for each in taken if each.size]

    @property
    def has_taken_all(self) -> bool:
        """Whether the last :meth:`take` returned all that is queued."""
        details = self._details
        return details is None or len(details.taken) + details.single == len(self.bodies) + len(details.high.bodies)

    def given_all(self) -> Given:
        """The socket has taken all that :meth:`take` returned."""
        details = self._details
        if details is None:
            given = (self.stamps, 0) if self._made is None else self._report_made(self.stamps, self._made)
            self.bodies, self.stamps, self.terms, self._bytes = NO_BODIES, NO_STAMPS, None, 0
            return given
        if details.taken:
            return self._give(details, details.taken, len(details.taken))
        queue, messages = self if self.bodies else details.high, details.single
        stamps = queue.stamps[:messages]
        given = (stamps, 0) if self._made is None else self._report_made(stamps, self._made)
        self._bytes -= queue.remove_first(messages)
        details.others -= messages if queue is not self else 0
        details.high_in_a_row = 0
        details.end_write()
        self._drop_details()
        return given

    def _report_made(self, stamps: Sequence[int], made: Sequence[bytes]) -> Given:
        """What to report of a write of one lane, once it is given."""
        numbered, self._made, self._numbered = self._numbered, None, 0
        if b"" in made:
            stamps = [stamp for stamp, frame in zip(stamps, made, strict=True) if frame]
        return stamps, numbered

    def given(self, taken: int, committed: int) -> tuple[int, Given]:
        """The socket has not taken all that :meth:`take` returned. The frames that it has begun to take count as
        waiting until :meth:`written`; all others stay queued.

        :param taken: how many bytes it has taken
        :param committed: how many bytes it has taken or must be given unchanged; at least ``taken``
        :return: how many bytes the socket must be given: up to the end of the last frame that it has begun to take
        """
        details = self._details
        if details is None:
            details = self._detailed()
            details.single = len(self.bodies)
        begun, complete, end = list[Taken](), 0, 0
        for each in details.taken or self._taken_of_one(self if self.bodies else details.high, details.single):
            if end >= committed:
                break
            begun.append(each)
            end += each.size
            complete += end <= taken
        return end, self._give(details, begun, complete)

    def _taken_of_one(self, queue: Queue, messages: int) -> Iterator[Taken]:
        frames = queue.bodies if self._made is None else self._made
        for at in range(messages):
            yield Taken(queue is not self, len(frames[at]), queue.waiting_at(at))

    def _give(self, details: Details, begun: Sequence[Taken], complete: int) -> Given:
        """The socket has taken the first ``complete`` of these messages completely, and the others in part. The
        rest of what was taken from the outbox stays queued."""
        highs = [each.is_high for each in begun]
        normals_left, in_a_row = len(self.bodies), details.high_in_a_row
        for is_high in highs:
            normals_left -= not is_high
            in_a_row = in_a_row + 1 if is_high and normals_left else 0
        complete_highs, all_highs = sum(highs[:complete]), sum(highs)
        self._bytes -= self.remove_first(complete - complete_highs)
        self._bytes -= details.high.remove_first(complete_highs)
        details.begun = begun[complete:]
        details.begun_bytes = self.remove_first(len(details.begun) - all_highs + complete_highs)
        details.begun_bytes += details.high.remove_first(all_highs - complete_highs)
        details.others += len(details.begun) - all_highs
        details.high_in_a_row, self._made, self._numbered = in_a_row, None, 0
        details.end_write()
        self._drop_details()
        return _report(begun[:complete])

    def written(self) -> Given:
        """The socket has taken the rest of what it had begun to take."""
        details = self._details
        if details is None:
            return NOTHING_GIVEN
        begun, details.begun = details.begun, ()
        details.others -= len(begun)
        self._bytes -= details.begun_bytes
        details.begun_bytes = 0
        self._drop_details()
        return _report(begun)

    def abandon(self) -> list[Queued]:
        """The socket will never take the rest of what it had begun to take. Return the messages."""
        begun = [] if self._details is None else [each.waiting for each in self._details.begun]
        self.written()
        return begun

    def _drop_details(self) -> None:
        """An empty outbox has none."""
        if not len(self):
            self._details = None

    def discard(self) -> list[Queued]:
        """Drop what is queued, and return it, messages of high priority first. What the socket has begun to take can't
        be taken back."""
        queued = _emptied(self)
        self._bytes, self._made, self._numbered = 0, None, 0
        details = self._details
        if details is not None:
            queued = _emptied(details.high) + queued
            self._bytes, details.others = details.begun_bytes, len(details.begun)
            self._drop_details()
        return queued


def _emptied(queue: Queue) -> list[Queued]:
    queued = queue.all_waiting()
    queue.clear()
    return queued


def _report(taken: Sequence[Taken]) -> Given:
    stamps = [each.waiting[1] for each in taken if each.size]
    return stamps, sum(each.is_numbered for each in taken)
