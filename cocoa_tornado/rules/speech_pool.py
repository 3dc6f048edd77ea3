"""Scheduling of speech workers: who gets one, who waits, who is refused, and when a worker is stuck. Pure.

The pool reports events to a :class:`Roster` (a stream arrived, a worker is ready, a frame came), and then carries out
what :meth:`Roster.plan` returns. All decisions are made here. The life of a worker::

    loading --ready--> idle --assigned--> busy --settled--> idle
       |                |                  |
       |                |                  +--its stream left, or was parked--> draining --settled--> idle
       +-- too slow -- died -- stuck ------+---------------------------------------+
                        |
                      dying --gone--> (another is loaded in its place)

Workers are for audio that is available. A stream that is behind (``pace.py``) while others wait with theirs is
*parked*: it gives its worker back, and waits for one again when it has enough audio or has ended. A stream that has not
begun is parked too if it would keep others out of the queue. Parked streams take no room in the queue. If as many are
parked as may be, a new stream takes the place of the one that has been parked longest.

The pool numbers streams and workers, and never reuses a number.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from .backoff import Backoff
from .pace import Pace
from .upload import SILENT_S

HOPELESS_AFTER: Final = 3
"""After this many workers in a row have died before finishing a stream, waiting streams are given up."""

MEMORY_PAUSE_S: Final = 60.0
MAX_MEMORY_PAUSE_S: Final = 3600.0
"""The longest time without a replacement for a worker killed for lack of memory. The time doubles with each such
kill."""

MEMORY_TRIAL_S: Final = 600.0
"""Once all workers have run together for this long, the next pause is a short one again."""

MAX_PARKED: Final = 256
"""Streams that may be parked, or wait again after that, beyond the queue. Each may hold 256 KiB that no worker has seen
(``kept_audio.py``), so this bounds the memory, and how long streams wait that resume together."""

PARKED_AT_LEAST_S: Final = 10.0
"""How long a parked stream keeps its place. By then it has sent no audio, or too little for a second attempt."""

SHORTEST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """:ivar workers: processes, at least 1
    :ivar queue: streams that may wait for one
    :ivar stall_s: a worker that has work and shows no progress for this long is stuck
    :ivar load_s: the same for a worker that loads its model
    :ivar parked: streams without a worker, beyond the queue; at this number a new stream evicts one, or is refused
    """

    workers: int
    queue: int
    stall_s: float
    load_s: float
    parked: int = MAX_PARKED


class WorkerPhase(enum.Enum):
    """The state of a worker; see the top of this module."""

    LOADING = "loading"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"  # its stream has left; the worker will report that it is free
    DYING = "dying"  # to be killed, or killed and not reaped yet


class StreamVerdict(enum.Enum):
    """What happens to a stream that arrives."""

    WAITS = "waits"  # the next plan may assign it at once
    BUSY = "busy"  # the queue is full, or too many are parked that none of them can be evicted
    HOPELESS = "hopeless"  # no worker has come up for a while


@dataclass(frozen=True, slots=True)
class Assign:
    """The stream belongs to the worker from now on."""

    worker: int
    stream: int


@dataclass(frozen=True, slots=True)
class TakeBack:
    """The stream is parked. Send the worker CANCEL."""

    worker: int
    stream: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the worker.

    :ivar stream: the stream that is lost with it; None if it had none
    :ivar reason: ``stuck`` or ``slow`` (to load); a metric label
    """

    worker: int
    stream: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything to do now, in this order.

    :ivar given_up: streams that waited while no worker could be started
    :ivar evicted: streams that were parked, and whose places new ones have taken
    :ivar load: start one more worker
    :ivar again_at: ask for the next plan by then if nothing happens before; None: no need
    """

    kill: tuple[Kill, ...] = ()
    given_up: tuple[int, ...] = ()
    evicted: tuple[int, ...] = ()
    assign: tuple[Assign, ...] = ()
    take_back: tuple[TakeBack, ...] = ()
    load: bool = False
    again_at: float | None = None


@dataclass(slots=True)
class _Worker:
    number: int
    phase: WorkerPhase
    since: float | None  # since when it owes a sign of progress; None: it owes nothing
    stream: int | None = None
    assigned_at: float = 0.0
    sent: int = 0
    consumed: int = 0
    pace: Pace | None = None  # of its stream
    is_waiting: bool = True  # for audio, by its last report
    ended: bool = False  # END or CANCEL was sent
    used: bool = False  # it has finished a stream

    def owes(self) -> bool:
        return self.phase is WorkerPhase.LOADING or self.ended or self.sent > self.consumed


@dataclass(slots=True)
class Roster:
    """All workers, and all streams that wait for one. ``now`` is monotonic seconds.

    Invariants: a worker has at most one stream, and a stream at most one worker. At most ``workers`` processes exist,
    including those being killed, and at most one of them is loading. Streams get workers in the order in which they
    arrived or resumed. Once the plan is carried out and the workers that it frees are free, at most ``queue`` streams
    wait, not counting resumed ones. A new stream is accepted only if at most ``queue`` and ``parked`` streams are
    without a worker.

    :ivar early_deaths: workers that ended without finishing a stream, since one last did
    """

    limits: PoolLimits
    backoff: Backoff
    early_deaths: int = 0
    _workers: dict[int, _Worker] = field(default_factory=dict)
    _waiting: deque[int] = field(default_factory=deque)
    _silent: dict[int, float] = field(default_factory=dict)  # waiting streams without audio yet, and since when
    _parked: dict[int, float] = field(default_factory=dict)  # and since when; the longest first
    _evicted: list[int] = field(default_factory=list)  # since the last plan
    _pinned: set[int] = field(default_factory=set)  # streams with a worker that can't be parked
    _load_not_before: float = 0.0
    _fitting: int = 0  # workers that fit in memory, as far as is known
    _fewer_until: float = float("-inf")  # no more than that are started before this time
    _memory_pause: Backoff = field(
        default_factory=lambda: Backoff(base_s=MEMORY_PAUSE_S, cap_s=MAX_MEMORY_PAUSE_S, uniform=max)
    )
    _mean_s: float = 5.0  # how long a stream has its worker, smoothed

    # Queries

    @property
    def ready(self) -> int:
        """Workers that have loaded their model and are not being killed."""
        return sum(worker.phase not in (WorkerPhase.LOADING, WorkerPhase.DYING) for worker in self._workers.values())

    @property
    def busy(self) -> int:
        return sum(worker.phase in (WorkerPhase.BUSY, WorkerPhase.DRAINING) for worker in self._workers.values())

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @property
    def parked(self) -> int:
        return len(self._parked)

    @property
    def hopeless(self) -> bool:
        """True if no worker is ready, and the last few died before becoming ready."""
        return self.early_deaths >= HOPELESS_AFTER and self.ready == 0

    def is_parked(self, stream: int) -> bool:
        return stream in self._parked

    def phase_of(self, worker: int) -> WorkerPhase | None:
        """Return None if there is no such worker, or no longer."""
        known = self._workers.get(worker)
        return known.phase if known else None

    def retry_after_s(self) -> float:
        """When a refused stream may find room: after as many streams as wait now have finished."""
        turns = (len(self._waiting) + 1) / self.limits.workers
        return min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, turns * self._mean_s))

    # Events

    def arrive(self, stream: int, now: float, *, is_silent: bool = False) -> StreamVerdict:
        """A stream wants a worker.

        :param is_silent: it gets none before :meth:`has_audio`. Until then it only takes room in the queue, and if the
            queue is full, for two seconds at most
        """
        if self.hopeless:
            return StreamVerdict.HOPELESS
        free = sum(worker.phase in (WorkerPhase.IDLE, WorkerPhase.DRAINING) for worker in self._workers.values())
        room = self.limits.queue + free
        if len(self._waiting) >= room:
            self._park_silent(now)
        if len(self._waiting) >= room:
            return StreamVerdict.BUSY
        if len(self._waiting) + len(self._parked) >= room + self.limits.parked and not self._evict(now):
            return StreamVerdict.BUSY
        self._waiting.append(stream)
        if is_silent:
            self._silent[stream] = now
        return StreamVerdict.WAITS

    def has_audio(self, stream: int) -> bool:
        """A silent stream has begun, or a parked one has enough audio, or has ended. Return False if it already waits
        or has a worker."""
        if stream in self._parked:
            del self._parked[stream]
            self._waiting.append(stream)
            return True
        return self._silent.pop(stream, None) is not None

    def pin(self, stream: int) -> None:
        """The stream's audio is not kept any more, so it must not lose its worker."""
        self._pinned.add(stream)

    def leave(self, stream: int) -> int | None:
        """The stream's owner is done with it. If a worker has the stream, return the worker: send it CANCEL."""
        self._parked.pop(stream, None)
        self._pinned.discard(stream)
        for worker in self._workers.values():
            if worker.stream == stream:
                worker.stream = None
                if worker.phase is not WorkerPhase.BUSY:
                    return None
                worker.phase = WorkerPhase.DRAINING
                return worker.number
        if stream in self._waiting:
            self._waiting.remove(stream)
            self._silent.pop(stream, None)
        return None

    def loading(self, worker: int, now: float) -> None:
        """A process was started, as planned."""
        self._workers[worker] = _Worker(worker, WorkerPhase.LOADING, now)

    def became_ready(self, worker: int) -> None:
        """READY was received."""
        known = self._workers.get(worker)
        if known is not None and known.phase is WorkerPhase.LOADING:
            known.phase, known.since = WorkerPhase.IDLE, None

    def sent(self, worker: int, audio_bytes: int, now: float, *, ended: bool = False) -> None:
        """Audio, END or CANCEL was sent to the worker."""
        known = self._workers[worker]
        owed = known.owes()
        known.sent += audio_bytes
        known.ended = known.ended or ended
        if known.owes() and not owed:
            known.since = now

    def alive(self, worker: int, now: float) -> None:
        """The worker, which has a stream, showed that it is alive."""
        known = self._workers.get(worker)
        if known is not None and known.phase in (WorkerPhase.BUSY, WorkerPhase.DRAINING):
            known.since = now if known.owes() else None

    def progressed(
        self,
        worker: int,
        now: float,
        consumed: int,
        audio_s: float = 0.0,
        waited_s: float = 0.0,
        *,
        is_waiting: bool = True,
    ) -> None:
        """The worker reported its progress since it got its stream: bytes of audio consumed, seconds of audio decoded,
        and seconds that it waited for audio.

        :param is_waiting: it waits for more audio; otherwise it works on what it has consumed
        """
        known = self._workers.get(worker)
        if known is None or known.phase not in (WorkerPhase.BUSY, WorkerPhase.DRAINING):
            return
        known.consumed = max(known.consumed, min(consumed, known.sent))
        if known.pace is not None:
            known.pace.report(now, audio_s, waited_s)
        known.is_waiting = is_waiting
        self.alive(worker, now)

    def consumed(self, worker: int) -> int:
        """Bytes of its stream's audio that the worker has consumed."""
        return self._workers[worker].consumed

    def unconsumed(self, worker: int) -> int:
        """Bytes of audio sent to the worker and not consumed yet."""
        known = self._workers[worker]
        return known.sent - known.consumed

    def settled(self, worker: int, now: float) -> None:
        """DONE or FAILED was received: the worker is free."""
        known = self._workers.get(worker)
        if known is None or known.phase not in (WorkerPhase.BUSY, WorkerPhase.DRAINING):
            return
        self._mean_s += 0.2 * (now - known.assigned_at - self._mean_s)
        if known.stream is not None:
            self._pinned.discard(known.stream)
        self._workers[worker] = _Worker(worker, WorkerPhase.IDLE, None, used=True)
        self.early_deaths = 0
        self.backoff.reset()

    def condemn(self, worker: int) -> int | None:
        """The worker violated the protocol and will be killed. Return the stream that is lost with it, if any."""
        known = self._workers.get(worker)
        if known is None:
            return None
        lost, known.stream = known.stream, None
        if lost is not None:
            self._pinned.discard(lost)
        known.phase, known.since = WorkerPhase.DYING, None
        return lost

    def gone(self, worker: int, now: float, *, out_of_memory: bool = False) -> int | None:
        """The process has ended, or could not be started. Return the stream that is lost with it, if any.

        :param out_of_memory: it was killed for lack of memory, which may happen to its replacement or to another worker
            too
        """
        known = self._workers.pop(worker, None)
        if known is None:
            return None
        if known.stream is not None:
            self._pinned.discard(known.stream)
        # Don't respawn in a tight loop: the next one may fail too.
        self.early_deaths += not known.used
        if out_of_memory:
            if now - self._fewer_until > MEMORY_TRIAL_S:
                self._memory_pause.reset()
            self._fitting = max(1, sum(worker.phase is not WorkerPhase.DYING for worker in self._workers.values()))
            self._fewer_until = now + self._memory_pause.next_s()
        if out_of_memory or not known.used:
            self._load_not_before = now + self.backoff.next_s()
        return known.stream

    # The decision

    def plan(self, now: float, *, judge: bool = True) -> Plan:
        """Decide what to do, and assume that it is done.

        :param judge: condemn overdue workers now
        """
        kill = tuple(self._condemn_overdue(now)) if judge else ()
        given_up: tuple[int, ...] = ()
        if self.hopeless:
            given_up = tuple(self._waiting)
            self._waiting.clear()
            self._silent.clear()
        assign = tuple(self._assign(now))
        take_back = tuple(self._take_back(now))
        load_at = self._load_at()
        load = load_at is not None and now >= load_at
        times = [at for worker in self._workers.values() if (at := self._overdue_at(worker)) is not None]
        if load_at is not None and not load:
            times.append(load_at)
        if self._unserved() > 0:
            times += [at for worker in self._workers.values() if (at := self._behind_at(worker)) is not None]
        evicted, self._evicted = tuple(self._evicted), []
        return Plan(kill, given_up, evicted, assign, take_back, load, min(times, default=None))

    def _load_at(self) -> float | None:
        """When one more worker may be started; None: not until something happens."""
        workers = self._workers.values()
        if len(workers) >= self.limits.workers or any(worker.phase is WorkerPhase.LOADING for worker in workers):
            return None
        if len(workers) < self._fitting:
            return self._load_not_before
        return max(self._load_not_before, self._fewer_until)

    def _overdue_at(self, worker: _Worker) -> float | None:
        if worker.since is None:
            return None
        return worker.since + (self.limits.load_s if worker.phase is WorkerPhase.LOADING else self.limits.stall_s)

    def _condemn_overdue(self, now: float) -> list[Kill]:
        kills = []
        for worker in self._workers.values():
            overdue_at = self._overdue_at(worker)
            if overdue_at is not None and now >= overdue_at:
                reason = "slow" if worker.phase is WorkerPhase.LOADING else "stuck"
                kills.append(Kill(worker.number, self.condemn(worker.number), reason))
        return kills

    def _assign(self, now: float) -> list[Assign]:
        assigned = []
        idle = [worker for worker in self._workers.values() if worker.phase is WorkerPhase.IDLE]
        ready = [stream for stream in self._waiting if stream not in self._silent] if idle else []
        for worker, stream in zip(idle, ready, strict=False):
            self._waiting.remove(stream)
            worker.phase, worker.stream, worker.assigned_at = WorkerPhase.BUSY, stream, now
            worker.pace, worker.is_waiting = Pace(now), True
            assigned.append(Assign(worker.number, stream))
        return assigned

    def _unserved(self) -> int:
        """Waiting streams that have audio, and for which no worker is about to become free."""
        free = sum(worker.phase in (WorkerPhase.IDLE, WorkerPhase.DRAINING) for worker in self._workers.values())
        return len(self._waiting) - len(self._silent) - free

    def _behind_at(self, worker: _Worker) -> float | None:
        """When the worker's stream may be parked if nothing happens before."""
        if worker.phase is not WorkerPhase.BUSY or worker.ended or worker.pace is None or worker.stream in self._pinned:
            return None
        return worker.pace.behind_at(is_waiting=worker.is_waiting and not worker.owes())

    def _take_back(self, now: float) -> list[TakeBack]:
        """Take as many workers as are wanted from the streams that have been behind longest."""
        behind = [(at, worker) for worker in self._workers.values() if (at := self._behind_at(worker)) is not None]
        behind = sorted((pair for pair in behind if pair[0] <= now), key=lambda pair: pair[0])
        taken = []
        for _, worker in behind[: max(0, self._unserved())]:
            assert worker.stream is not None
            taken.append(TakeBack(worker.number, worker.stream))
            self._parked[worker.stream] = now
            worker.phase, worker.stream = WorkerPhase.DRAINING, None
        return taken

    def _park_silent(self, now: float) -> None:
        for stream, since in list(self._silent.items()):
            if now - since >= SILENT_S:
                del self._silent[stream]
                self._waiting.remove(stream)
                self._parked[stream] = now

    def _evict(self, now: float) -> bool:
        """Make room for a stream by ending the one that has been parked longest, if that is long enough."""
        longest = next(iter(self._parked.items()), None)
        if longest is None or now - longest[1] < PARKED_AT_LEAST_S:
            return False
        del self._parked[longest[0]]
        self._evicted.append(longest[0])
        return True
