"""The messages of one lane of an outbox, in the order of queuing. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

from ..rules.cursors import GAP_HEAD
from ..rules.frames import payload_of
from ..rules.live_events import ToWrite
from ..rules.terms import Terms

CURSOR_BYTES: Final = 64
"""The bytes that a message without a frame counts as in addition to its payload: the header and the cursor."""

Queued: TypeAlias = tuple[bytes, int, Terms | None]
"""A queued message: its body, its timestamp and its terms."""

# Shared by all empty queues, which is most of them most of the time. Never changed.
NO_BODIES: Final[list[bytes]] = []
NO_STAMPS: Final[list[int]] = []


class Queue:
    """Messages in parallel lists. An empty queue holds no list of its own, and one whose messages all have the default
    terms has no list of terms.

    :ivar bodies: frames, or payloads if their terms have a number
    :ivar stamps: the timestamps of their records; 0: unknown. Those of messages that were read from a box are negative
    :ivar terms: None: all have the default terms
    """

    __slots__ = ("bodies", "stamps", "terms")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.bodies, self.stamps = NO_BODIES, NO_STAMPS
        self.terms: list[Terms | None] | None = None

    def append(self, body: bytes, timestamp_ms: int, terms: Terms | None) -> None:
        if self.bodies:
            self.bodies.append(body)
            self.stamps.append(timestamp_ms)
        else:
            self.bodies, self.stamps = [body], [timestamp_ms]
        if terms is not None or self.terms is not None:
            if self.terms is None:
                self.terms = [None] * (len(self.bodies) - 1)
            self.terms.append(terms)

    def find(self, wanted: Callable[[Terms], bool]) -> list[int]:
        """The positions of the messages with such terms."""
        return [at for at, terms in enumerate(self.terms or ()) if terms is not None and wanted(terms)]

    def terms_at(self, at: int) -> Terms | None:
        return None if self.terms is None else self.terms[at]

    def waiting_at(self, at: int) -> Queued:
        return self.bodies[at], self.stamps[at], self.terms_at(at)

    def all_waiting(self) -> list[Queued]:
        return [self.waiting_at(at) for at in range(len(self.bodies))]

    def cost_at(self, at: int) -> int:
        return cost(self.bodies[at], self.terms_at(at))

    def remove(self, positions: Sequence[int]) -> int:
        """Remove messages; return the bytes that they counted as."""
        freed = sum(map(self.cost_at, positions))
        if len(positions) == len(self.bodies):
            self.clear()
            return freed
        for at in sorted(positions, reverse=True):
            del self.bodies[at], self.stamps[at]
            if self.terms is not None:
                del self.terms[at]
        return freed

    def remove_first(self, messages: int) -> int:
        """Remove the first messages; return the bytes that they counted as."""
        first = self.bodies[:messages]
        freed = sum(map(len, first) if self.terms is None else map(cost, first, self.terms))
        if messages == len(self.bodies):
            self.clear()
        elif messages:
            del self.bodies[:messages], self.stamps[:messages]
            if self.terms is not None:
                del self.terms[:messages]
        return freed


def cost(body: bytes, terms: Terms | None) -> int:
    """The bytes that a message counts as."""
    return len(body) if terms is None or terms.number is None else len(body) + CURSOR_BYTES


def to_write_of(waiting: Queued) -> ToWrite | None:
    """A message as operators see it; None for a notice of the gateway itself."""
    body, timestamp_ms, terms = waiting
    if terms is None:
        return ToWrite(payload_of(body), timestamp_ms)
    payload = body if terms.number is not None else payload_of(body)
    if not payload or payload.startswith(GAP_HEAD):
        return None
    return ToWrite(payload, abs(timestamp_ms), terms.priority, terms.id, bool(terms.interim_of))


class Unwritten(NamedTuple):
    """The fate of messages that their connection does not write.

    :ivar in_box: they are stored, and another connection of the device gets them
    :ivar lost: they are in no box; interims are not among them
    """

    in_box: int
    lost: int
    interims: int


def unwritten_of(messages: Iterable[Queued], *, has_mailbox: bool) -> Unwritten:
    """Count messages that are not written. With a mailbox, all but stored and transient ones are notices of the gateway
    itself, which do not count."""
    in_box = lost = interims = 0
    for body, _, terms in messages:
        if terms is not None and terms.interim_of:
            interims += 1
        elif not has_mailbox or (terms is not None and terms.number == 0):
            lost += 1
        elif terms is not None and terms.number and body:  # without a body it is a place for a gap notice
            in_box += 1
    return Unwritten(in_box, lost, interims)
