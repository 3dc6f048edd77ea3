"""A server's membership among those that share one store: its epoch, its lease, and which others have stopped. Pure.

    start --Join--> joining --joined--> member --(no answer for freeze_s)--> frozen --(cut_s)--> cut
                      ^                   |  ^-----------(an answer)-----------'                  |
                      `--fenced, stale----+-------------------------------------------------------'

Clocks of different servers are never compared, and no clock of the store. A server may act for ``freeze_s`` after it
*sent* the oldest BEAT that the store has answered, and it declares another one dead (FENCE) when it has *seen* the same
beat for ``watch_s``, which is longer, by its own clock, while its own beats were answered. Clocks may differ in rate by
1 %. ``now`` is monotonic and includes the time that the machine was suspended (``CLOCK_BOOTTIME``).

A *term* of the store ends when it may have lost its last writes: after a restart or a failover. All epochs end with it.
In the next one, servers claim again what they hold, and nothing else is granted until one of them has declared the term
settled (SETTLE), after ``watch_s``: by then, every lease of the last term has ended.

An adapter calls a method for each event, carries out the actions in order, and calls :meth:`Membership.wake` at
:attr:`Membership.wake_at`, which each call may change. The members' store is reached with scripts (``redis_scripts``),
which carry :attr:`Membership.stamp`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from .grants import Lease

FIRST_STAMP: Final = "0:"
"""Before the first term. No store has it."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds.

    :ivar fence_s: after a server's last sign of life, others may have its devices
    :ivar freeze_s: after this long without an answer of the store, a server neither admits nor delivers
    :ivar cut_s: after this long, it closes its connections; ``freeze_s`` in strict mode
    :ivar beat_s: between two beats
    """

    fence_s: float = 10.0
    freeze_s: float = 5.0
    cut_s: float = 120.0
    beat_s: float = 1.0

    @property
    def watch_s(self) -> float:
        """How long a beat must stay the same: the last one may have been sent ``beat_s`` before a server died, and it
        takes a moment until it is seen and until the fence is set up."""
        return self.fence_s - 1.2 * self.beat_s

    @property
    def gap_s(self) -> float:
        """Without an answer for longer than this, a server cannot know what others did meanwhile."""
        return 2.5 * self.beat_s

    @property
    def missed_s(self) -> float:
        """A beat that has not changed for longer than this may be the last one: two of them should have come since."""
        return 1.9 * self.beat_s

    @property
    def proof_s(self) -> float:
        """An epoch whose last answered beat was sent less than this ago cannot have been fenced; clocks differ."""
        return 0.97 * self.watch_s


# -- actions


@dataclass(frozen=True, slots=True)
class Join:
    """Read the run of the Redis process, then send JOIN on the same connection. Nothing else of this server is sent to
    a process with another run before the reply. Report it with :meth:`Membership.joined`, or its failure with
    :meth:`Membership.join_failed`. Never send it twice."""

    epoch: str
    known_term: int


@dataclass(frozen=True, slots=True)
class Beat:
    """Send BEAT on a connection that nothing large is sent on. Report the reply with :meth:`Membership.beaten`, or its
    failure, after ``beat_s`` at most, with :meth:`Membership.beat_failed`.

    :ivar seen: the last beat that the store has reported
    """

    stamp: str
    epoch: str
    seen: int


@dataclass(frozen=True, slots=True)
class Fence:
    """Send FENCE. Its reply is only for the log, and may be lost."""

    stamp: str
    epoch: str
    beat: int


@dataclass(frozen=True, slots=True)
class Settle:
    """Send SETTLE. Its reply is ignored, and may be lost."""

    stamp: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Send LEAVE: the epoch's devices are free at once. Its connections have ended."""

    stamp: str
    epoch: str


@dataclass(frozen=True, slots=True)
class Joined:
    """The server has a new epoch: have its inbox begin, then call :meth:`Slots.rejoin`.

    :ivar is_new_term: there may be connections, which must be claimed again. False: it is the first epoch of this
        server, or the one after :class:`Fenced`
    """

    lease: Lease
    is_new_term: bool


@dataclass(frozen=True, slots=True)
class Settled:
    """The term is settled: call :meth:`Slots.settled`."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """Other servers may hold the devices of this one: end all connections, then call :meth:`Slots.lose_all`. The lease
    and all earlier ones have ended."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Cut:
    """End every connection whose lease is over: the store has been unavailable for ``cut_s``, or the mode is strict.
    The epoch may still be alive, so their slots must be released."""


Action = Join | Beat | Fence | Settle | Leave | Joined | Settled | Fenced | Cut
Actions = list[Action]


class _Observed:
    """Another server's beat.

    :ivar since: when it was first seen, or seen again after a gap
    :ivar fence_at: when FENCE is due
    """

    __slots__ = ("beat", "fence_at", "since")

    def __init__(self, beat: int, since: float, watch_s: float) -> None:
        self.beat, self.since = beat, since
        self.fence_at = since + watch_s


class Membership:
    """One server. Not thread-safe.

    :param new_epoch: draws an epoch that was never used before
    :ivar lease: of the current epoch; its ``until`` is extended as beats are answered
    :ivar stamp: ``<term>:<run>``, for the scripts. A connection whose process has another run than this one must not
        send it: Redis may have loaded the run of its predecessor from its disk. Call :meth:`term_over` then
    :ivar infos: the other members' descriptions of themselves, by epoch
    :ivar answered_at: when the last answered BEAT or JOIN was sent
    :ivar inbox_read_at: when the own inbox was last read to its end, if that is to be watched. A server that does not
        read its inbox does not beat: it would hold its devices and answer no challenge
    """

    def __init__(self, timing: Timing, new_epoch: Callable[[], str]) -> None:
        self.timing = timing
        self.lease = Lease("", -math.inf, is_shared=True)
        self.stamp = FIRST_STAMP
        self.term = 0
        self.is_settled = False
        self.infos: Mapping[str, str] = {}
        self.answered_at = -math.inf
        self.inbox_read_at = math.inf
        self._new_epoch = new_epoch
        self._is_over = self._is_cut = False
        # Of joining. No epoch is valid while one of the first two is set, or after the epoch was fenced.
        self._join: Join | None = None
        self._join_at = math.inf
        self._is_member = False
        self._former_leases: list[Lease] = []
        # This server's beat: the last one that the store has reported, and when it was first sent with that.
        self._seen = 0
        self._first_sent_at: float | None = None
        self._beat: Beat | None = None
        self._beat_at = math.inf
        # Of the others.
        self._observed: dict[str, _Observed] = {}
        self._heard_at = -math.inf
        self._settle_at = math.inf

    def __repr__(self) -> str:
        return f"<Membership of {self.epoch or 'no epoch'}, term {self.term}>"

    @property
    def epoch(self) -> str:
        """'' before the first reply to JOIN."""
        return self.lease.server

    @property
    def is_joining(self) -> bool:
        """There is no epoch, or it is not for the current term, or it was fenced."""
        return self._join is not None or self._join_at < math.inf or not self.lease.server

    @property
    def knows_others(self) -> bool:
        """A BEAT of this epoch was answered."""
        return self._seen > 0

    @property
    def wake_at(self) -> float:
        """When :meth:`wake` is to be called next; ``math.inf``: not before another event."""
        if self._is_over:
            return math.inf
        due = [self._join_at, self._cut_at]
        if not self.is_joining:
            due += [math.inf if self._beat is not None else self._beat_at, self._settle_at]
            due += [observed.fence_at for observed in self._observed.values()]
        return min(due)

    @property
    def _cut_at(self) -> float:
        cut_at = math.inf if self._is_cut else self.answered_at + self.timing.cut_s
        if self.is_strict:
            cut_at = min([cut_at, *(lease.until for lease in self._former_leases)])
        return cut_at if self.epoch else math.inf

    @property
    def is_strict(self) -> bool:
        """No connection stays open without a lease."""
        return self.timing.cut_s <= self.timing.freeze_s

    def may_admit(self, now: float) -> bool:
        """The lease is valid, and the term is settled."""
        return self.is_settled and not self.is_joining and self.lease.is_valid(now)

    def silent_for(self, epoch: str, now: float) -> float:
        """How long a member's beat has not changed, as observed by this server; 0 if unknown."""
        observed = self._observed.get(epoch)
        return 0.0 if observed is None else now - observed.since

    def admits_in(self, now: float) -> float | None:
        """Seconds until more devices are admitted than now, if that can be foreseen: the term is settled then, or the
        servers that seem to have stopped are fenced."""
        if self.is_joining:
            return None
        due = [each.fence_at for each in self._observed.values() if now - each.since > self.timing.missed_s]
        due += [] if self.is_settled else [self._settle_at]
        latest = max((at for at in due if at < math.inf), default=None)
        return None if latest is None else max(0.0, latest - now)

    def others(self) -> list[str]:
        """The other epochs of the last reply to BEAT."""
        return list(self._observed)

    # -- events

    def start(self, now: float) -> Actions:
        return self._begin_to_join()

    def wake(self, now: float) -> Actions:
        """Return the actions that are due: send a beat, fence others, join again, settle the term, or cut the
        connections."""
        todo: Actions = []
        if self._is_over:
            return todo
        if now >= self._cut_at:
            self._is_cut = now >= self.answered_at + self.timing.cut_s
            # A timer may fire slightly early: end them, so that they are over by any reading of the clock.
            for lease in (*self._former_leases, self.lease):
                if not lease.is_valid(now):
                    lease.end()
            self._former_leases = [lease for lease in self._former_leases if lease.is_valid(now)]
            todo.append(Cut())
        if now >= self._join_at:
            todo += self._begin_to_join()
        if not self.is_joining:
            self._judge(now, todo)
            if self._beat is None and now >= self._beat_at:
                self._send_beat(now, todo)
        return todo

    def joined(self, join: Join, run: str, term: int, is_settled: bool, sent_at: float, now: float) -> Actions:
        """JOIN was answered. Ignored if it is not the last one.

        :param run: as it was sent
        :param sent_at: before it was sent
        """
        if join is not self._join or self._is_over:
            return []
        # In strict mode, wake() ends the connections of one that is over already.
        leases = (*self._former_leases, self.lease) if self._is_member else ()
        self._former_leases = [lease for lease in leases if self.is_strict or lease.is_valid(now)]
        self.lease = Lease(join.epoch, sent_at + self.timing.freeze_s, is_shared=True)
        self.stamp, self.term, self.is_settled = f"{term}:{run}", term, is_settled
        self.infos, self._observed = {}, {}
        self.answered_at, self._heard_at, self._is_cut = sent_at, now, False
        self._join, self._join_at = None, math.inf
        self._seen, self._first_sent_at, self._beat, self._beat_at = 0, None, None, now
        self._settle_at = math.inf if is_settled else now + self.timing.watch_s
        is_new_term, self._is_member = self._is_member, True
        todo: Actions = [Joined(self.lease, is_new_term)]
        if is_settled:
            todo.append(Settled())
        return todo

    def join_failed(self, join: Join, now: float) -> Actions:
        """JOIN was not answered, or rejected; the next attempt has another epoch."""
        if join is self._join and not self._is_over:
            self._join, self._join_at = None, now + self.timing.beat_s / 2
        return []

    def beaten(
        self,
        beat: Beat,
        mine: int,
        is_settled: bool,
        beats: Mapping[str, int],
        infos: Mapping[str, str],
        now: float,
    ) -> Actions:
        """BEAT was answered."""
        todo: Actions = []
        if beat is not self._beat or self._is_over:
            return todo
        assert self._first_sent_at is not None
        # Others may have seen this beat since it was first sent, so the lease must not be longer than from then on.
        self.answered_at = self._first_sent_at
        self.lease.until = max(self.lease.until, self.answered_at + self.timing.freeze_s)
        self._beat, self._seen, self._first_sent_at = None, mine, None
        if not self.lease.is_valid(now):
            self._beat_at = now  # this is the answer to an old beat
        self._is_cut = False
        had_gap, self._heard_at = now - self._heard_at > self.timing.gap_s, now
        self._observe(beats, had_gap, now)
        self.infos = infos
        if is_settled and not self.is_settled:
            self.is_settled, self._settle_at = True, math.inf
            todo.append(Settled())
        self._judge(now, todo)
        return todo

    def beat_failed(self, beat: Beat, now: float) -> Actions:
        """BEAT was not answered, or rejected: it will be sent again, with the same ``seen``."""
        if beat is self._beat:
            self._beat = None
        return []

    def term_over(self, stamp: str, now: float) -> Actions:
        """A script was answered with ``term``, or a connection has reached a process with another run: join again.

        :param stamp: that the script carried; ignored if it is not the current one
        """
        if stamp != self.stamp or self.is_joining or self._is_over:
            return []
        return self._begin_to_join()

    def epoch_over(self, epoch: str, now: float) -> Actions:
        """A script of this epoch was answered with ``fenced``: end all connections, and join again."""
        if epoch != self.epoch or not self._is_member or self._is_over:
            return []
        self._end_leases()
        self._is_member = False
        todo: Actions = [Fenced(self.lease)]
        if not self.is_joining:
            todo += self._begin_to_join()
        return todo

    def leave(self, now: float) -> Actions:
        """End the lease; no more actions follow. Before that, the caller has stopped new claims, refused upgrades, and
        ended all connections."""
        was_member = bool(self.epoch) and not self._is_over
        self._is_over = True
        self._end_leases()
        return [Leave(self.stamp, self.epoch)] if was_member else []

    # -- steps

    def _begin_to_join(self) -> Actions:
        # A new epoch for each attempt: a copy of JOIN that comes late must not bring back one that was fenced.
        self._join, self._join_at = Join(self._new_epoch(), self.term), math.inf
        self._beat = None
        return [self._join]

    def _end_leases(self) -> None:
        for lease in (*self._former_leases, self.lease):
            lease.end()
        self._former_leases = []

    def _send_beat(self, now: float, todo: Actions) -> None:
        self._beat_at = now + self.timing.beat_s
        if now - self.inbox_read_at > self.timing.freeze_s:
            return
        if self._first_sent_at is None:
            self._first_sent_at = now
        self._beat = Beat(self.stamp, self.epoch, self._seen)
        todo.append(self._beat)

    def _observe(self, beats: Mapping[str, int], had_gap: bool, now: float) -> None:
        observed = {}
        for epoch, beat in beats.items():
            before = self._observed.get(epoch)
            if before is None or before.beat != beat or had_gap:
                before = _Observed(beat, now, self.timing.watch_s)
            observed[epoch] = before
        observed.pop(self.epoch, None)
        self._observed = observed
        if had_gap and not self.is_settled:
            self._settle_at = now + self.timing.watch_s

    def _judge(self, now: float, todo: Actions) -> None:
        """Fence the servers that have stopped, and settle the term, if it is time and no beat can have been missed."""
        if now - self._heard_at > self.timing.gap_s:
            # The next reply starts the observation anew.
            self._settle_at = math.inf
            for observed in self._observed.values():
                observed.fence_at = math.inf
            return
        for epoch, observed in self._observed.items():
            if now >= observed.fence_at:
                observed.fence_at = now + self.timing.beat_s  # until a reply shows that it is gone
                todo.append(Fence(self.stamp, epoch, observed.beat))
        if now >= self._settle_at:
            self._settle_at = now + self.timing.beat_s
            todo.append(Settle(self.stamp))
