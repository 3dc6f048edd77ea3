"""When a parent starts, restarts and kills its workers. Pure.

::

    WAITING --start--> STARTING --up--> UP --leaving--> LEAVING
       ^                   |             |                 |
       +------ exit -------+-------------+-----------------+

A worker that dies is started again after a backoff, and one that hangs is killed. A stop is final: workers drain, those
that wait are not started any more, and the parent ends when the last one has.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from .backoff import Backoff

BEAT_S: Final = 0.5
"""The interval of a worker's beats. A pause is noticed with this precision."""

HUNG_S: Final = 3.0
"""The longest time without a beat. Other servers take over the devices of a silent one soon after: a process that was
paused longer must not continue."""

LOOK_S: Final = 0.25
"""How often the parent looks, at least."""

START_S: Final = 60.0
"""The longest start of a worker; it includes imports from a slow disk, and keys from a slow URL."""

LEAVE_S: Final = 10.0
"""The longest time between the end of a worker's drain and its exit, without beats. The log is flushed meanwhile."""

DRAIN_MARGIN_S: Final = 5.0
"""The time that a worker's drain may take beyond ``drain_grace``."""

STEADY_S: Final = 30.0
"""A worker that has been up for this long is restarted without the backoff of earlier deaths."""

FIRST_RESTART_S: Final = 0.5
LAST_RESTART_S: Final = 15.0

KillReason = Literal["hung", "start", "drain", "exit", "forced"]
RestartReason = Literal["died", "drained", KillReason]
"""Why a worker is started again: it was killed, it has drained after a SIGTERM from outside, or it died."""


class ChildPhase(enum.Enum):
    WAITING = "waiting"
    STARTING = "starting"
    UP = "up"
    LEAVING = "leaving"


class Restart(NamedTuple):
    """A worker will be started again."""

    delay_s: float
    reason: RestartReason


@dataclass(frozen=True, slots=True)
class Start:
    worker: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Send SIGKILL, which also ends a stopped process."""

    worker: int
    reason: KillReason


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask the worker to drain."""

    worker: int


@dataclass(frozen=True, slots=True)
class End:
    """No worker runs any more: the parent exits with this status."""

    status: int


Action = Start | Kill | Terminate | End


@dataclass(slots=True)
class _Worker:
    """:ivar since: the beginning of the phase; a start is due then if it is WAITING
    :ivar heard: when the last beat came; only while it is UP
    :ivar killed: why it was killed
    """

    backoff: Backoff
    phase: ChildPhase = ChildPhase.WAITING
    since: float = -math.inf
    heard: float = -math.inf
    was_up: bool = False
    terminated: bool = False
    killed: KillReason | None = None
    restarts: dict[str, int] = field(default_factory=dict)


class Supervisor:
    """The workers ``1 .. count`` of a parent.

    Report every event by its method, then carry out :meth:`actions`, at least every ``LOOK_S``.

    The first start is special. Worker 1 starts alone, so that a fault of the settings is reported once, and what the
    first server of a deployment creates (a development key, topics) is created once. A worker that fails cleanly at
    its first start (exit status 1 or 2, as of ``cocoa serve``) ends the parent with the same status.

    Time in which the parent itself did not run does not count: a paused machine, or a parent without CPU time, is no
    reason to kill workers, whose beats it could not have noticed.

    :param drain_s: the workers' ``drain_grace``
    """

    def __init__(
        self, count: int, drain_s: float, now: float, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._drain_s = drain_s
        self._looked_at = now
        self._stop_at: float | None = None
        self._status = 0
        self._is_forced = False
        self._workers = {
            number: _Worker(Backoff(base_s=FIRST_RESTART_S, cap_s=LAST_RESTART_S, uniform=uniform))
            for number in range(1, count + 1)
        }

    def __repr__(self) -> str:
        return f"<Supervisor {' '.join(f'{n}:{w.phase.value}' for n, w in self._workers.items())}>"

    @property
    def all_were_up(self) -> bool:
        """Whether each worker has completed a start; True from then on."""
        return all(worker.was_up for worker in self._workers.values())

    @property
    def up(self) -> list[int]:
        """The workers that serve now."""
        return [number for number, worker in self._workers.items() if worker.phase is ChildPhase.UP]

    @property
    def missing(self) -> list[int]:
        """The workers that do not serve now."""
        return [number for number, worker in self._workers.items() if worker.phase is not ChildPhase.UP]

    @property
    def is_stopping(self) -> bool:
        return self._stop_at is not None

    def restarts(self) -> dict[str, int]:
        """How often workers were started again, by reason."""
        total = dict.fromkeys(("died", "drained", "hung", "start", "exit"), 0)
        for worker in self._workers.values():
            for reason, count in worker.restarts.items():
                total[reason] = total.get(reason, 0) + count
        return total

    # events

    def on_started(self, number: int, now: float) -> None:
        """The process exists."""
        worker = self._workers[number]
        worker.phase, worker.since = ChildPhase.STARTING, now
        worker.terminated, worker.killed = False, None

    def on_up(self, number: int, now: float) -> None:
        """It serves, and beats from now on."""
        worker = self._workers[number]
        if worker.phase is ChildPhase.STARTING:
            worker.phase, worker.since, worker.heard, worker.was_up = ChildPhase.UP, now, now, True

    def on_beat(self, number: int, now: float) -> None:
        self._workers[number].heard = now

    def on_leaving(self, number: int, now: float) -> None:
        """It has drained, and its process exits."""
        worker = self._workers[number]
        if worker.phase in (ChildPhase.STARTING, ChildPhase.UP):
            worker.phase, worker.since = ChildPhase.LEAVING, now

    def on_exit(self, number: int, status: int, now: float) -> Restart | None:
        """The process has ended, or could not be created.

        :param status: as of ``subprocess``: negative for a signal
        :returns: None: it is not started again
        """
        worker = self._workers[number]
        phase, lived_s = worker.phase, now - worker.since
        worker.phase, worker.since = ChildPhase.WAITING, math.inf
        if self.is_stopping:
            if status != 0 and not (worker.terminated and phase is ChildPhase.STARTING):
                self._status = self._status or 1
            return None
        if status in (1, 2) and not worker.was_up:
            self._status = status
            self._stop_at = now
            return None
        has_drained = phase is ChildPhase.LEAVING and status == 0
        reason: RestartReason = worker.killed or ("drained" if has_drained else "died")
        worker.restarts[reason] = worker.restarts.get(reason, 0) + 1
        if phase is not ChildPhase.STARTING and lived_s >= STEADY_S:
            worker.backoff.reset()
        delay_s = worker.backoff.next_s()
        worker.since = now + delay_s
        return Restart(delay_s, reason)

    def stop(self, now: float) -> None:
        """Drain all workers, and end."""
        if self._stop_at is None:
            self._stop_at = now

    def force(self) -> None:
        """Kill all workers, and end with status 1."""
        self._stop_at = -math.inf
        self._is_forced, self._status = True, 1

    # decisions

    def actions(self, now: float) -> list[Action]:
        """What to do now, in this order."""
        self._forgive(now)
        if self._stop_at is None:
            starts: list[Action] = [Start(number) for number in self._due(now)]
        else:
            starts = self._terminations()
        kills = [
            Kill(number, reason)
            for number, worker in self._workers.items()
            if (reason := self._reason_to_kill(worker, now)) is not None
        ]
        for kill in kills:
            self._workers[kill.worker].killed = kill.reason
        if self._stop_at is not None and all(worker.phase is ChildPhase.WAITING for worker in self._workers.values()):
            return [End(self._status)]
        return [*starts, *kills]

    def _forgive(self, now: float) -> None:
        """Move all deadlines by the time in which this process was late."""
        late_s = now - self._looked_at - LOOK_S
        self._looked_at = now
        if late_s < LOOK_S:
            return
        for worker in self._workers.values():
            worker.heard = min(now, worker.heard + late_s)
            if worker.phase is not ChildPhase.WAITING:
                worker.since = min(now, worker.since + late_s)
        if self._stop_at is not None:
            self._stop_at = min(now, self._stop_at + late_s)

    def _due(self, now: float) -> list[int]:
        if not self._workers[1].was_up:
            return [1] if self._is_due(self._workers[1], now) else []
        return [number for number, worker in self._workers.items() if self._is_due(worker, now)]

    def _is_due(self, worker: _Worker, now: float) -> bool:
        return worker.phase is ChildPhase.WAITING and worker.since <= now

    def _terminations(self) -> list[Action]:
        chosen = [n for n, w in self._workers.items() if w.phase is not ChildPhase.WAITING and not w.terminated]
        for number in chosen:
            self._workers[number].terminated = True
        return [Terminate(number) for number in chosen]

    def _reason_to_kill(self, worker: _Worker, now: float) -> KillReason | None:
        if worker.phase is ChildPhase.WAITING or worker.killed is not None:
            return None
        if self._is_forced:
            return "forced"
        if worker.phase is ChildPhase.UP and now - worker.heard >= HUNG_S:
            return "hung"
        if self._stop_at is not None and now - self._stop_at >= self._drain_s + DRAIN_MARGIN_S + LEAVE_S:
            return "drain"
        if worker.phase is ChildPhase.STARTING and now - worker.since >= START_S:
            return "start"
        if worker.phase is ChildPhase.LEAVING and now - worker.since >= LEAVE_S:
            return "exit"
        return None
