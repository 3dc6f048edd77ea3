"""Who gets which speech worker, who waits, who is refused, and what a silent worker means. Pure; the pool does it.

The pool tells a :class:`Roster` what happened (a stream arrived, a worker is ready, a frame came) and then asks
:meth:`Roster.plan` what is to be done. Nothing else decides anything. The life of a worker::

    loading --ready--> idle --assigned--> busy --settled--> idle
       |                |                  |
       |                |                  +--its stream left, or was parked--> draining --settled--> idle
       +-- too slow -- died -- stuck ------+---------------------------------------+
                        |
                      dying --gone--> (another is loaded in its place)

Workers are for audio that is there. A stream that is behind (``pace.py``) while others wait with theirs is *parked*: it
gives its worker back, and waits for one again when it has enough audio, or has ended. So is a stream that has not
begun, where it would keep others out of the queue. Parked streams have no place in the queue.

Streams and workers are numbers that the pool gives and never gives twice.
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
"""So many workers in a row that died before they were of use, and nobody waits for the next one."""

MEMORY_PAUSE_S: Final = 60.0
LONGEST_MEMORY_PAUSE_S: Final = 3600.0
"""After a worker was killed for want of memory the others go on without it for so long, and twice as long each time."""

MEMORY_TRIAL_S: Final = 600.0
"""Once all workers have got on together for so long, the next pause is a short one again."""

MOST_PARKED: Final = 256
"""Streams that may be parked, or wait again after that, beyond the queue. Each may hold 256 KiB that nobody has heard
(``kept_audio.py``), so this bounds the memory, and how long streams wait that come back together."""

SHORTEST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """:ivar workers: processes, at least 1
    :ivar queue: streams that may wait for one
    :ivar stall_s: a worker that has something to do and shows no progress for so long is stuck
    :ivar load_s: the same for a worker that loads its model
    :ivar parked: streams without a worker, beyond the queue, from which on newcomers are refused
    """

    workers: int
    queue: int
    stall_s: float
    load_s: float
    parked: int = MOST_PARKED


class Phase(enum.Enum):
    """Where a worker is; see the top of this module."""

    LOADING = "loading"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"  # its stream has left; it says so itself when it is free
    DYING = "dying"  # to be killed, or killed, and not gone yet


class Admission(enum.Enum):
    """What becomes of a stream that arrives."""

    WAITS = "waits"  # the next plan may assign it at once
    BUSY = "busy"  # the queue is full, or too many are parked
    HOPELESS = "hopeless"  # no worker has come up for a while


@dataclass(frozen=True, slots=True)
class Assign:
    """The stream is the worker's from now on."""

    worker: int
    stream: int


@dataclass(frozen=True, slots=True)
class TakeBack:
    """The stream is parked. The worker is to be told with CANCEL."""

    worker: int
    stream: int


@dataclass(frozen=True, slots=True)
class Kill:
    """The worker is beyond help.

    :ivar stream: what it was working for, which is lost; None if nothing
    :ivar reason: ``stuck`` or ``slow`` (to load); a metric label
    """

    worker: int
    stream: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, all of it, in this order.

    :ivar given_up: streams that waited for workers which don't come up
    :ivar load: start one more worker
    :ivar again_at: ask for the next plan by then, if nothing happens before; None: no need
    """

    kill: tuple[Kill, ...] = ()
    given_up: tuple[int, ...] = ()
    assign: tuple[Assign, ...] = ()
    take_back: tuple[TakeBack, ...] = ()
    load: bool = False
    again_at: float | None = None


@dataclass(slots=True)
class _Worker:
    number: int
    phase: Phase
    since: float | None  # since when it owes us a sign of life; None: it owes nothing
    stream: int | None = None
    assigned_at: float = 0.0
    sent: int = 0
    consumed: int = 0
    pace: Pace | None = None  # of its stream
    is_waiting: bool = True  # for audio, as it said last
    ended: bool = False  # END or CANCEL is with it
    used: bool = False  # it has brought a stream to its end

    def owes(self) -> bool:
        return self.phase is Phase.LOADING or self.ended or self.sent > self.consumed


@dataclass(slots=True)
class Roster:
    """All workers and all streams that wait for one. ``now`` is in seconds, monotonic.

    Held at any time: a worker has at most one stream, a stream at most one worker; at most ``workers`` processes exist,
    those that are being killed among them, and at most one of them is loading; streams get their workers in the order
    in which they came, or came back; no more than ``queue`` of them wait once the plan is carried out and the workers
    that it frees are free, not counting those that were parked before; a newcomer finds no more than ``queue`` and
    ``parked`` of them without a worker.

    :ivar early_deaths: workers that ended without having brought a stream to its end, since the last time that one did
    """

    limits: PoolLimits
    backoff: Backoff
    early_deaths: int = 0
    _workers: dict[int, _Worker] = field(default_factory=dict)
    _waiting: deque[int] = field(default_factory=deque)
    _silent: dict[int, float] = field(default_factory=dict)  # of those, without audio yet, and since when
    _parked: set[int] = field(default_factory=set)
    _pinned: set[int] = field(default_factory=set)  # streams at work that can't be parked
    _load_not_before: float = 0.0
    _fitting: int = 0  # workers that the memory holds, as far as one knows
    _fewer_until: float = float("-inf")  # and no more of them are tried before this time
    _memory_pause: Backoff = field(
        default_factory=lambda: Backoff(base_s=MEMORY_PAUSE_S, cap_s=LONGEST_MEMORY_PAUSE_S, uniform=max)
    )
    _mean_s: float = 5.0  # how long a worker has a stream, smoothed

    # What the pool asks

    @property
    def ready(self) -> int:
        """Workers that have their model and are not being killed."""
        return sum(worker.phase not in (Phase.LOADING, Phase.DYING) for worker in self._workers.values())

    @property
    def busy(self) -> int:
        return sum(worker.phase in (Phase.BUSY, Phase.DRAINING) for worker in self._workers.values())

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @property
    def parked(self) -> int:
        return len(self._parked)

    @property
    def hopeless(self) -> bool:
        """No worker is ready, and the last few never came to it."""
        return self.early_deaths >= HOPELESS_AFTER and self.ready == 0

    def is_parked(self, stream: int) -> bool:
        return stream in self._parked

    def phase_of(self, worker: int) -> Phase | None:
        """None: there is no such worker, or no more."""
        known = self._workers.get(worker)
        return known.phase if known else None

    def retry_after_s(self) -> float:
        """When somebody who was refused may find a place: once as many streams as wait have been worked off."""
        turns = (len(self._waiting) + 1) / self.limits.workers
        return min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, turns * self._mean_s))

    # What happened

    def arrive(self, stream: int, now: float, *, is_silent: bool = False) -> Admission:
        """A stream wants a worker.

        :param is_silent: not before :meth:`has_audio`; until then it holds a place in the queue and no more, and where
            the queue is full not even that for longer than two seconds
        """
        if self.hopeless:
            return Admission.HOPELESS
        free = sum(worker.phase in (Phase.IDLE, Phase.DRAINING) for worker in self._workers.values())
        room = self.limits.queue + free
        if len(self._waiting) >= room:
            self._park_silent(now)
        if len(self._waiting) >= room or len(self._waiting) + len(self._parked) >= room + self.limits.parked:
            return Admission.BUSY
        self._waiting.append(stream)
        if is_silent:
            self._silent[stream] = now
        return Admission.WAITS

    def has_audio(self, stream: int) -> bool:
        """A silent stream has begun, or a parked one has enough audio, or has ended. False: it waits for a worker
        already, or has one."""
        if stream in self._parked:
            self._parked.discard(stream)
            self._waiting.append(stream)
            return True
        return self._silent.pop(stream, None) is not None

    def pin(self, stream: int) -> None:
        """The stream's audio is not kept: from now on it must not lose its worker."""
        self._pinned.add(stream)

    def leave(self, stream: int) -> int | None:
        """A stream is over for its owner. The worker that has it, if one does, is to be told with CANCEL."""
        self._parked.discard(stream)
        self._pinned.discard(stream)
        for worker in self._workers.values():
            if worker.stream == stream:
                worker.stream = None
                if worker.phase is not Phase.BUSY:
                    return None
                worker.phase = Phase.DRAINING
                return worker.number
        if stream in self._waiting:
            self._waiting.remove(stream)
            self._silent.pop(stream, None)
        return None

    def loading(self, worker: int, now: float) -> None:
        """A process has been started, as the plan said."""
        self._workers[worker] = _Worker(worker, Phase.LOADING, now)

    def came_up(self, worker: int) -> None:
        """READY came."""
        known = self._workers.get(worker)
        if known is not None and known.phase is Phase.LOADING:
            known.phase, known.since = Phase.IDLE, None

    def sent(self, worker: int, audio_bytes: int, now: float, *, ended: bool = False) -> None:
        """Audio, or END or CANCEL, is on its way to the worker."""
        known = self._workers[worker]
        owed = known.owes()
        known.sent += audio_bytes
        known.ended = known.ended or ended
        if known.owes() and not owed:
            known.since = now

    def heard(self, worker: int, now: float) -> None:
        """A sign of life from a worker at work: that it goes on."""
        known = self._workers.get(worker)
        if known is not None and known.phase in (Phase.BUSY, Phase.DRAINING):
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
        """A sign of life that says how far the worker has come: bytes of audio consumed, seconds of audio decoded, and
        seconds in which it waited for audio, all since it has its stream.

        :param is_waiting: it waits for more; otherwise it works on what it has consumed
        """
        known = self._workers.get(worker)
        if known is None or known.phase not in (Phase.BUSY, Phase.DRAINING):
            return
        known.consumed = max(known.consumed, min(consumed, known.sent))
        if known.pace is not None:
            known.pace.heard(now, audio_s, waited_s)
        known.is_waiting = is_waiting
        self.heard(worker, now)

    def consumed(self, worker: int) -> int:
        """Bytes of audio of its stream that the worker has consumed."""
        return self._workers[worker].consumed

    def unconsumed(self, worker: int) -> int:
        """Bytes of audio that the worker was sent and has not consumed."""
        known = self._workers[worker]
        return known.sent - known.consumed

    def settled(self, worker: int, now: float) -> None:
        """DONE or FAILED came: the worker is free."""
        known = self._workers.get(worker)
        if known is None or known.phase not in (Phase.BUSY, Phase.DRAINING):
            return
        self._mean_s += 0.2 * (now - known.assigned_at - self._mean_s)
        if known.stream is not None:
            self._pinned.discard(known.stream)
        self._workers[worker] = _Worker(worker, Phase.IDLE, None, used=True)
        self.early_deaths = 0
        self.backoff.reset()

    def condemn(self, worker: int) -> int | None:
        """The worker broke the protocol and will be killed. Returns the stream that is lost with it, if any."""
        known = self._workers.get(worker)
        if known is None:
            return None
        lost, known.stream = known.stream, None
        if lost is not None:
            self._pinned.discard(lost)
        known.phase, known.since = Phase.DYING, None
        return lost

    def gone(self, worker: int, now: float, *, out_of_memory: bool = False) -> int | None:
        """The process has ended, or could not be started. Returns the stream that is lost with it, if any.

        :param out_of_memory: it was killed for want of memory, which may well kill any other that takes its place, or
            one that is at work
        """
        known = self._workers.pop(worker, None)
        if known is None:
            return None
        if known.stream is not None:
            self._pinned.discard(known.stream)
        # Where the next one may do no better, don't spin.
        self.early_deaths += not known.used
        if out_of_memory:
            if now - self._fewer_until > MEMORY_TRIAL_S:
                self._memory_pause.reset()
            self._fitting = max(1, sum(worker.phase is not Phase.DYING for worker in self._workers.values()))
            self._fewer_until = now + self._memory_pause.next_s()
        if out_of_memory or not known.used:
            self._load_not_before = now + self.backoff.next_s()
        return known.stream

    # What is to be done

    def plan(self, now: float, *, judge: bool = True) -> Plan:
        """Decide, and take it as done.

        :param judge: whether workers that are overdue are condemned now
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
        return Plan(kill, given_up, assign, take_back, load, min(times, default=None))

    def _load_at(self) -> float | None:
        """When one more worker may be loaded; None: not before something happens."""
        workers = self._workers.values()
        if len(workers) >= self.limits.workers or any(worker.phase is Phase.LOADING for worker in workers):
            return None
        if len(workers) < self._fitting:
            return self._load_not_before
        return max(self._load_not_before, self._fewer_until)

    def _overdue_at(self, worker: _Worker) -> float | None:
        if worker.since is None:
            return None
        return worker.since + (self.limits.load_s if worker.phase is Phase.LOADING else self.limits.stall_s)

    def _condemn_overdue(self, now: float) -> list[Kill]:
        kills = []
        for worker in self._workers.values():
            overdue_at = self._overdue_at(worker)
            if overdue_at is not None and now >= overdue_at:
                reason = "slow" if worker.phase is Phase.LOADING else "stuck"
                kills.append(Kill(worker.number, self.condemn(worker.number), reason))
        return kills

    def _assign(self, now: float) -> list[Assign]:
        assigned = []
        idle = [worker for worker in self._workers.values() if worker.phase is Phase.IDLE]
        ready = [stream for stream in self._waiting if stream not in self._silent] if idle else []
        for worker, stream in zip(idle, ready, strict=False):
            self._waiting.remove(stream)
            worker.phase, worker.stream, worker.assigned_at = Phase.BUSY, stream, now
            worker.pace, worker.is_waiting = Pace(now), True
            assigned.append(Assign(worker.number, stream))
        return assigned

    def _unserved(self) -> int:
        """Streams that wait with their audio, and for which no worker is about to be free."""
        free = sum(worker.phase in (Phase.IDLE, Phase.DRAINING) for worker in self._workers.values())
        return len(self._waiting) - len(self._silent) - free

    def _behind_at(self, worker: _Worker) -> float | None:
        """When its stream may be parked, if nothing comes before."""
        if worker.phase is not Phase.BUSY or worker.ended or worker.pace is None or worker.stream in self._pinned:
            return None
        return worker.pace.behind_at(is_waiting=worker.is_waiting and not worker.owes())

    def _take_back(self, now: float) -> list[TakeBack]:
        """As many workers as are wanted, from those streams first that have been behind for longest."""
        behind = [(at, worker) for worker in self._workers.values() if (at := self._behind_at(worker)) is not None]
        behind = sorted((pair for pair in behind if pair[0] <= now), key=lambda pair: pair[0])
        taken = []
        for _, worker in behind[: max(0, self._unserved())]:
            assert worker.stream is not None
            taken.append(TakeBack(worker.number, worker.stream))
            self._parked.add(worker.stream)
            worker.phase, worker.stream = Phase.DRAINING, None
        return taken

    def _park_silent(self, now: float) -> None:
        for stream, since in list(self._silent.items()):
            if now - since >= SILENT_S:
                del self._silent[stream]
                self._waiting.remove(stream)
                self._parked.add(stream)
