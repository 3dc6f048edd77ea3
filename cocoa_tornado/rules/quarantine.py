"""Copies of rejected records on their way to the quarantine topic: which to send or give up, and when to pause. Pure.

A record that cannot be decoded is copied to the quarantine topic. Offsets from the record's own on are committed only
after the copy is acknowledged. A topic that takes nothing must not stop the stream, though, so a copy is given up after
:data:`PATIENCE_S`, or earlier if more is held back than :class:`Bounds` allows. While the topic takes copies, none is
given up because of a bound; reading pauses instead.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from .backoff import Backoff

PATIENCE_S = 60.0  # for a copy to be acknowledged; runs only while the brokers answer
STALL_S = 10.0  # without an acknowledgement while copies are under way: the topic takes none
POSTPONED_S = 0.5  # before resending a copy for which the publish queue had no room
TOO_LARGE_S = 10.0  # before resending one that is too large: the topic's limit may have been raised
LOST_LINES_S = 1.0  # between two reports of lost records: while copies are refused, every poll may lose some
MAX_LOST_LINES = 25  # in one report: enough for every offset of 1,000 copies, however scattered
LINE_RUNS = 40  # runs of offsets in one line
MAX_STEP_S = 1.0  # that the clock advances in one step: a suspended process was not refused anything

C = TypeVar("C", bound=Hashable)


class Cause(enum.Enum):
    """Why the quarantine topic has no copy of a record, as the label ``cause`` of ``cocoa_quarantine_lost_total``."""

    MISSING = "missing"  # there is no such topic
    REFUSED = "refused"  # the brokers refuse the copy: an ACL, a policy
    TOO_LARGE = "too_large"  # the topic does not even take a record with the copy's headers alone
    UNANSWERED = "unanswered"  # no acknowledgement came: too few replicas, for example
    FULL = "full"  # given up early, because too much was held back


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be held back.

    :ivar records: number of copies
    :ivar size_bytes: of their keys, values and headers
    :ivar offsets: of one partition, from a copy's own to the next to be read: this many are read again after a crash
    """

    records: int = 1_000
    size_bytes: int = 8 * 1024 * 1024
    offsets: int = 100_000


@dataclass(frozen=True, slots=True)
class Step(Generic[C]):
    """What to do now.

    :ivar send: pass these to the publisher; they are under way from then on
    :ivar recall: take these back from the publisher if it has not sent them, and call :meth:`Copies.recalled`
    :ivar lose: these are given up: their offsets may be committed
    :ivar must_wait: read nothing now
    """

    send: tuple[C, ...] = ()
    recall: tuple[C, ...] = ()
    lose: tuple[tuple[C, Cause], ...] = ()
    must_wait: bool = False


class _Held:
    __slots__ = ("cause", "not_before", "offset", "partition", "size", "taken_at")

    def __init__(self, partition: int, offset: int, size: int, taken_at: float) -> None:
        self.partition, self.offset, self.size, self.taken_at = partition, offset, size, taken_at
        self.not_before = float("-inf")
        self.cause: Cause | None = None


class Copies(Generic[C]):
    """Holds each copy from :meth:`take` until it is acknowledged, given up or forgotten. Not thread-safe.

    While the topic takes copies, each is sent at once. Once it takes none, one at a time is sent, with backoff, because
    each refusal costs the publisher a producer. If a check of the topic shows that sending is useless, none is sent.

    :param backoff: between two attempts while the topic takes no copies
    """

    def __init__(self, bounds: Bounds, backoff: Backoff | None = None) -> None:
        self._bounds = bounds
        self._backoff = backoff or Backoff(base_s=0.5, cap_s=10.0)
        self._held: dict[C, _Held] = {}  # oldest first
        self._under_way: dict[C, float] = {}  # when each was sent, by the clock below; oldest first
        self._bytes = 0
        self._clock = 0.0  # seconds in which the brokers answered
        self._stepped_at: float | None = None
        self._acknowledged_at = 0.0
        self._verdict: Cause | None = None  # of the last check of the topic
        self._failure: Cause | None = None  # of copies since the last acknowledgement
        self._probe_at = float("-inf")
        self._waiting = False

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, copy: C) -> bool:
        return copy in self._held

    @property
    def size_bytes(self) -> int:
        return self._bytes

    @property
    def failing(self) -> Cause | None:
        """Why the topic takes no copies; None if it does, or no reason is known."""
        return self._verdict or self._failure

    def take(self, copy: C, *, partition: int, offset: int, size: int) -> None:
        """Hold one more; the next step sends it if the topic may take it."""
        self._held[copy] = _Held(partition, offset, size, self._clock)
        self._bytes += size

    def acknowledged(self, copy: C) -> bool:
        """The topic has the copy. Return False if it is not held any more."""
        if copy not in self._held:
            return False
        self._drop(copy)
        self._acknowledged_at = self._clock
        self._verdict = self._failure = None
        self._backoff.reset()
        return True

    def refused(self, copy: C, cause: Cause, now: float) -> None:
        """The topic did not take the copy. TOO_LARGE concerns this copy alone, any other cause all of them."""
        if copy not in self._held:
            return
        self._under_way.pop(copy, None)
        held = self._held[copy]
        held.cause = cause
        if cause is Cause.TOO_LARGE:
            held.not_before = now + TOO_LARGE_S
            return
        self._failure = cause
        self._probe_at = now + self._backoff.next_s()

    def postponed(self, copy: C, now: float) -> None:
        """The publisher had no room for the copy, which says nothing about the topic."""
        if self._under_way.pop(copy, None) is not None:
            self._held[copy].not_before = now + POSTPONED_S

    def recalled(self, copy: C) -> None:
        """The publisher has not sent the copy, and does not hold it any more."""
        self._under_way.pop(copy, None)

    def judge(self, verdict: Cause | None) -> None:
        """A check of the topic has found why it takes no copies, or None."""
        self._verdict = verdict
        if verdict is not None:
            return
        self._probe_at = float("-inf")
        if not self._held:
            self._failure = None

    def forget(self, partitions: Collection[int]) -> list[C]:
        """The partitions were revoked; return what was held of them."""
        gone = [copy for copy, held in self._held.items() if held.partition in partitions]
        for copy in gone:
            self._drop(copy)
        self._waiting = self._waiting and bool(self._held)
        return gone

    def step(self, now: float, *, brokers_answer: bool, positions: Mapping[int, int]) -> Step[C]:
        """Decide what to do at ``now``; call it often.

        :param brokers_answer: False stops the copies' clock
        :param positions: the next offset to read, by partition
        """
        elapsed_s = 0.0 if self._stepped_at is None else now - self._stepped_at
        self._stepped_at = now
        if brokers_answer:
            self._clock += max(0.0, min(MAX_STEP_S, elapsed_s))
        if not self._held:
            self._waiting = False
            return Step()
        self._notice_a_stall()
        lose = self._give_up(positions)
        recalls = self._verdict is not None or (self._failure is not None and len(self._under_way) > 1)
        recall = tuple(self._under_way) if recalls else ()
        return Step(self._next_to_send(now), recall, lose, self._must_wait())

    def _notice_a_stall(self) -> None:
        oldest = next(iter(self._under_way.values()), None)
        if oldest is None or self.failing is not None:
            return
        if self._clock - max(oldest, self._acknowledged_at) > STALL_S:
            self._failure = Cause.UNANSWERED

    def _give_up(self, positions: Mapping[int, int]) -> tuple[tuple[C, Cause], ...]:
        failing, bounds = self.failing, self._bounds
        lost: list[tuple[C, Cause]] = []
        for copy, held in list(self._held.items()):
            if self._clock - held.taken_at > PATIENCE_S:
                lost.append((copy, failing or held.cause or Cause.UNANSWERED))
            elif failing is None:
                break  # the others are younger, and no bound is exceeded
            elif (
                len(self._held) > bounds.records
                or self._bytes > bounds.size_bytes
                or positions.get(held.partition, 0) - held.offset > bounds.offsets
            ):
                lost.append((copy, Cause.FULL))
            else:
                continue
            self._drop(copy)
        return tuple(lost)

    def _next_to_send(self, now: float) -> tuple[C, ...]:
        if self._verdict is not None or len(self._under_way) == len(self._held):
            return ()
        if self._failure is not None and (self._under_way or now < self._probe_at):
            return ()
        due = [copy for copy, held in self._held.items() if copy not in self._under_way and held.not_before <= now]
        if self._failure is not None:
            due = due[:1]
        for copy in due:
            self._under_way[copy] = self._clock
        return tuple(due)

    def _must_wait(self) -> bool:
        """True from reaching a bound until half of it; never while the topic takes no copies."""
        bounds = self._bounds
        share = 0.5 if self._waiting else 1.0
        is_full = len(self._held) >= share * bounds.records or self._bytes >= share * bounds.size_bytes
        self._waiting = is_full and self.failing is None
        return self._waiting

    def _drop(self, copy: C) -> None:
        self._bytes -= self._held.pop(copy).size
        self._under_way.pop(copy, None)


@dataclass(frozen=True, slots=True)
class LostLine:
    """A log line about records of one partition that were given up.

    :ivar offsets: ascending runs for people, such as ``5,7-9``
    :ivar records: that the line covers
    :ivar suppressed: further lost records whose offsets no line has
    """

    topic: str
    partition: int
    cause: Cause
    offsets: str
    records: int
    detail: str
    suppressed: int = 0


class Losses:
    """Records that were given up and not logged yet. They are logged every :data:`LOST_LINES_S` at most, so that a
    producer of invalid records fills no disk; none waits longer than that."""

    def __init__(self) -> None:
        self._offsets: dict[tuple[str, int, Cause], list[int]] = {}
        self._details: dict[tuple[str, int, Cause], str] = {}
        self._tell_at = float("-inf")

    def note(self, topic: str, partition: int, cause: Cause, offset: int, detail: str) -> None:
        key = (topic, partition, cause)
        self._offsets.setdefault(key, []).append(offset)
        self._details.setdefault(key, detail)

    def lines(self, now: float, *, at_once: bool = False) -> list[LostLine]:
        """The lines to log now.

        :param at_once: there may be no later call
        """
        if not self._offsets or (now < self._tell_at and not at_once):
            return []
        self._tell_at = now + LOST_LINES_S
        lines: list[LostLine] = []
        suppressed = 0
        for key, offsets in self._offsets.items():
            found = runs(offsets)
            for at in range(0, len(found), LINE_RUNS):
                part = found[at : at + LINE_RUNS]
                records = sum(last - first + 1 for first, last in part)
                if len(lines) < MAX_LOST_LINES:
                    lines.append(LostLine(*key, _shown(part), records, self._details[key]))
                else:
                    suppressed += records
        if suppressed:
            lines[-1] = replace(lines[-1], suppressed=suppressed)
        self._offsets, self._details = {}, {}
        return lines


def runs(offsets: Iterable[int]) -> list[tuple[int, int]]:
    """The first and last offset of each run of consecutive offsets."""
    found: list[tuple[int, int]] = []
    for offset in sorted(set(offsets)):
        if found and offset == found[-1][1] + 1:
            found[-1] = (found[-1][0], offset)
        else:
            found.append((offset, offset))
    return found


def _shown(part: Iterable[tuple[int, int]]) -> str:
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in part)
