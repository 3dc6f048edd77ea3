"""A server's membership among those that share one store: its epoch, its lease, and who has stopped. Pure.

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
    :ivar freeze_s: without an answer of the store for so long, a server neither admits nor delivers
    :ivar cut_s: nor keeps its connections open; ``freeze_s`` in strict mode
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
    """Send FENCE. Its reply is of no interest, and neither is its loss."""

    stamp: str
    epoch: str
    beat: int


@dataclass(frozen=True, slots=True)
class Settle:
    """Send SETTLE. Its reply is of no interest, and neither is its loss."""

    stamp: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Send LEAVE: the epoch's devices are free at once. Its connections have ended."""

    stamp: str
    epoch: str


@dataclass(frozen=True, slots=True)
class Joined:
    """The server has a new epoch: have its inbox begin.

    :ivar is_new_term: connections go on, but must be claimed again, with :meth:`Slots.rejoin`. If not, there are none:
        :meth:`Slots.lose_all`
    """

    lease: Lease
    is_new_term: bool


@dataclass(frozen=True, slots=True)
class Settled:
    """The term is settled: call :meth:`Slots.settled`."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """Others may hold the devices of this server: end all connections. The lease has ended, as have those before it."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Cut:
    """The store has been away for ``cut_s``: end all connections. The epoch may still be alive."""


Action = Join | Beat | Fence | Settle | Leave | Joined | Settled | Fenced | Cut
Actions = list[Action]


class _Observed:
    """Another server's beat.

    :ivar since: when it was first seen, or seen again after a gap
    """

    __slots__ = ("beat", "since")

    def __init__(self, beat: int, since: float) -> None:
        self.beat, self.since = beat, since


class Membership:
    """One server. Not thread-safe.

    :param new_epoch: draws an epoch that was never used before
    :ivar lease: of the current epoch; its ``until`` is extended as beats are answered
    :ivar stamp: ``<term>:<run>``, for the scripts
    :ivar infos: what the other members say about themselves, by epoch
    :ivar inbox_read_at: when the own inbox was last read to its end, if that is to be watched. A server that does not
        read its inbox does not beat: it would hold its devices and answer no challenge
    """

    def __init__(self, timing: Timing, new_epoch: Callable[[], str]) -> None:
        self.timing = timing
        self.lease = Lease("", -math.inf)
        self.stamp = FIRST_STAMP
        self.term = 0
        self.is_settled = False
        self.infos: Mapping[str, str] = {}
        self.inbox_read_at = math.inf
        self._new_epoch = new_epoch

    @property
    def epoch(self) -> str:
        """'' before the first reply to JOIN."""
        return self.lease.server

    @property
    def is_joining(self) -> bool:
        """The current epoch, if there is one, is not for this term, or was fenced."""
        raise NotImplementedError

    @property
    def answered_at(self) -> float:
        """When the last answered BEAT or JOIN was sent."""
        raise NotImplementedError

    @property
    def wake_at(self) -> float:
        """When :meth:`wake` is to be called next; ``math.inf``: not before another event."""
        raise NotImplementedError

    def may_admit(self, now: float) -> bool:
        """The lease is valid, and the term is settled."""
        raise NotImplementedError

    def silent_for(self, epoch: str, now: float) -> float:
        """For how long a member's beat has not changed, as far as this server has seen; 0 if it is not known."""
        raise NotImplementedError

    def others(self) -> list[str]:
        """The other epochs of the last reply to BEAT."""
        raise NotImplementedError

    def start(self, now: float) -> Actions:
        raise NotImplementedError

    def wake(self, now: float) -> Actions:
        """Beat, judge the others, join again, settle, cut: whatever is due."""
        raise NotImplementedError

    def joined(self, join: Join, run: str, term: int, is_settled: bool, sent_at: float, now: float) -> Actions:
        """JOIN was answered. Ignored if it is not the last one.

        :param run: as it was sent
        :param sent_at: before it was sent
        """
        raise NotImplementedError

    def join_failed(self, join: Join, now: float) -> Actions:
        """JOIN was not answered, or rejected; the next attempt has another epoch."""
        raise NotImplementedError

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
        raise NotImplementedError

    def beat_failed(self, beat: Beat, now: float) -> Actions:
        """BEAT was not answered, or rejected: it will be sent again, with the same ``seen``."""
        raise NotImplementedError

    def term_over(self, stamp: str, now: float) -> Actions:
        """A script was answered with ``term``, or a connection has reached a process with another run: join again.

        :param stamp: that the script carried; ignored if it is not the current one
        """
        raise NotImplementedError

    def epoch_over(self, epoch: str, now: float) -> Actions:
        """A script of this epoch was answered with ``fenced``: end all connections, and join again."""
        raise NotImplementedError

    def leave(self, now: float) -> Actions:
        """The lease ends now, and no action follows any more. New claims have stopped, upgrades were refused, and all
        connections have ended before."""
        raise NotImplementedError
