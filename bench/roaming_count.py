"""Counts when a device has had two connections at once, from what its clients have seen. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final, NamedTuple

FOREVER: Final = 1 << 62
HAND_OVER_NS: Final = 100_000_000
"""Where the newest connection wins, the old one is open until its close has arrived. This is ample for that."""


class Receipt(NamedTuple):
    """A message that a client has received. Times are nanoseconds of one monotonic clock.

    :ivar number: names the message within its device
    :ivar published: just before it was handed to the contender
    """

    number: int
    published: int
    at: int


@dataclass(slots=True)
class Visit:
    """One connection of a device, from its admission.

    :ivar ended: when its client ended it, or saw that the server had
    """

    admitted: int
    ended: int = FOREVER
    receipts: list[Receipt] = field(default_factory=list)


@dataclass(slots=True)
class Spans:
    """Intervals of time that don't overlap."""

    count: int = 0
    total_ns: int = 0
    longest_ns: int = 0

    def add(self, length: int) -> None:
        self.count += 1
        self.total_ns += length
        self.longest_ns = max(self.longest_ns, length)

    def __iadd__(self, other: Spans) -> Spans:
        self.count += other.count
        self.total_ns += other.total_ns
        self.longest_ns = max(self.longest_ns, other.longest_ns)
        return self


@dataclass(slots=True)
class Counts:
    """The counts for one or more devices.

    :ivar open: the times in which two or more connections of a device were open
    :ivar lasting: those of them that were longer than a hand-over
    :ivar served: the times in which two were served, see :func:`served`
    :ivar superseded: messages at a connection that were published while a newer one of its device was open
    :ivar twice: messages that arrived again
    """

    admitted: int = 0
    received: int = 0
    open: Spans = field(default_factory=Spans)
    lasting: Spans = field(default_factory=Spans)
    served: Spans = field(default_factory=Spans)
    superseded: int = 0
    twice: int = 0

    def __iadd__(self, other: Counts) -> Counts:
        self.admitted += other.admitted
        self.received += other.received
        self.open += other.open
        self.lasting += other.lasting
        self.served += other.served
        self.superseded += other.superseded
        self.twice += other.twice
        return self


def count(visits: Sequence[Visit]) -> Counts:
    """Of one device."""
    visits = sorted(visits, key=lambda visit: visit.admitted)
    pairs = [(old, new) for old, new in combinations(visits, 2) if new.admitted < old.ended]
    counts = Counts(len(visits), sum(len(visit.receipts) for visit in visits))
    for since, until in merged((new.admitted, min(old.ended, new.ended)) for old, new in pairs):
        counts.open.add(until - since)
        if until - since > HAND_OVER_NS:
            counts.lasting.add(until - since)
    for since, until in merged(filter(None, (served(old, new) for old, new in pairs))):
        counts.served.add(until - since)
    counts.superseded = len({(id(old), one.number) for old, new in pairs for one in late(old, new)})
    copies = Counter(one.number for visit in visits for one in visit.receipts)
    counts.twice = sum(times - 1 for times in copies.values())
    return counts


def late(old: Visit, new: Visit) -> list[Receipt]:
    """The messages that the older connection received although they were published while the newer one was open."""
    return [one for one in old.receipts if new.admitted < one.published < new.ended]


def served(old: Visit, new: Visit) -> tuple[int, int] | None:
    """From the admission of the newer connection to the last message at the older one, if both were served: each has
    received a message that was published after both were admitted, while both were open."""
    until = min(old.ended, new.ended)
    both = [[one for one in visit.receipts if one.published > new.admitted and one.at <= until] for visit in (old, new)]
    return (new.admitted, max(one.at for one in both[0])) if all(both) else None


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of the intervals."""
    found: list[tuple[int, int]] = []
    for since, until in sorted(spans):
        if found and since <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], until))
        else:
            found.append((since, until))
    return found
