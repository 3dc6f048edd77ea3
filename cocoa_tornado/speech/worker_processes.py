"""The processes of a pool: starting and killing them, and logging and counting the lost ones."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ..rules.rate import LineBudget, RateLimit
from .process import Overseer, WorkerProcess, start_worker

GONE_S: Final = 10.0  # for killed processes to exit

WORKER_LINES: Final = RateLimit(per_s=1.0, burst=20)
"""Limit on the workers' lines, all workers together, that are passed on to the log."""

log = logging.getLogger("cocoa.speech")


@dataclass(slots=True)
class PoolCounters:
    """:ivar started: processes
    :ivar taken_back: times that a stream lost its worker to others
    :ivar lost: processes that exited or had to be killed, by reason: ``crashed``, ``out_of_memory`` (killed by the
        kernel), ``stuck``, ``slow`` (to load), ``nonsense``
    """

    started: int = 0
    taken_back: int = 0
    lost: dict[str, int] = field(default_factory=dict)


class Exit(NamedTuple):
    """How a process has ended.

    :ivar how: in words
    :ivar is_crash: neither the pool has killed it, nor does the pool close
    :ivar is_explained: the worker itself has reported why it can't work
    """

    how: str
    is_crash: bool = False
    is_explained: bool = False
    out_of_memory: bool = False


class WorkerProcesses:
    """IOLoop thread only. A worker keeps its number until :meth:`gone`.

    :param on_not_started: called with a worker's number, and why it could not be started
    :param count_oom_kills: how many processes of this control group the kernel has killed for lack of memory
    """

    def __init__(
        self,
        command: Sequence[str],
        overseer: Overseer,
        counters: PoolCounters,
        *,
        on_not_started: Callable[[int, str], None],
        count_oom_kills: Callable[[], int],
    ) -> None:
        self._command, self._overseer, self._counters = command, overseer, counters
        self._on_not_started, self._count_oom_kills = on_not_started, count_oom_kills
        self._oom_kills = count_oom_kills()  # already attributed, or from before this pool
        self._processes: dict[int, WorkerProcess] = {}
        self._starting: set[asyncio.Task[None]] = set()
        self._killed: set[int] = set()
        self._explanations: dict[int, str] = {}
        self._lines = LineBudget(WORKER_LINES)
        self._is_closed = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Live processes."""
        return tuple(process.pid for process in self._processes.values() if process.pid is not None)

    def start(self, worker: int) -> None:
        self._counters.started += 1
        task = asyncio.ensure_future(self._start(worker))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _start(self, worker: int) -> None:
        # Register it first: its frames may arrive before start_worker returns.
        process = self._processes[worker] = WorkerProcess(worker, self._overseer)
        try:
            await start_worker(process, self._command)
        except (OSError, RuntimeError) as error:  # no such program, or no thread to wait for the process
            del self._processes[worker]
            self._note_loss(worker, "crashed", str(error))
            self._on_not_started(worker, str(error))

    def write(self, worker: int, frame: bytes) -> None:
        self._processes[worker].write(frame)

    def kill(self, worker: int, reason: str = "", how: str = "") -> None:
        """Kill a worker, once.

        :param reason: why it counts as lost; '' if it does not
        """
        process = self._processes.get(worker)
        if process is not None and worker not in self._killed:
            self._killed.add(worker)
            if reason:
                self._note_loss(worker, reason, how)
            process.kill()

    def explained(self, worker: int, why: str) -> None:
        """A worker has reported itself why it can't work. It is about to end."""
        self._explanations[worker] = why

    def gone(self, worker: int, how: str, *, by_sigkill: bool) -> Exit:
        """A process has exited: see ``Overseer.on_gone``."""
        process = self._processes.pop(worker)
        explanation = self._explanations.pop(worker, None)
        end = Exit(how)
        if worker not in self._killed and not self._is_closed:
            out_of_memory = by_sigkill and self._is_oom_kill()
            if explanation is not None:
                how = explanation
            elif out_of_memory:
                how = "killed by the kernel, out of memory"
            end = Exit(how, True, explanation is not None, out_of_memory)
            self._note_loss(worker, "out_of_memory" if out_of_memory else "crashed", how)
        self._killed.discard(worker)
        log.debug("worker exited", extra={"worker": worker, "pid": process.pid})
        return end

    def _is_oom_kill(self) -> bool:
        """True if the kernel reports a kill that no lost process has been attributed to. Attributes one."""
        if self._count_oom_kills() <= self._oom_kills:
            return False
        self._oom_kills += 1
        return True

    def log_line(self, worker: int, line: str) -> None:
        """A worker has written a line to standard error."""
        suppressed = self._lines.take(asyncio.get_running_loop().time())
        if suppressed is not None:
            log.warning("worker output", extra={"worker": worker, "line": line, "suppressed": suppressed})

    def _note_loss(self, worker: int, reason: str, how: str) -> None:
        self._counters.lost[reason] = self._counters.lost.get(reason, 0) + 1
        suppressed = self._lines.take(asyncio.get_running_loop().time())
        if suppressed is not None:
            extra = {"worker": worker, "reason": reason, "how": how, "suppressed": suppressed}
            log.warning("worker lost", extra=extra)

    async def close(self) -> None:
        """Kill all processes, and wait for them to exit."""
        self._is_closed = True
        # A process that is just being started first becomes one of those below.
        while self._starting:
            await asyncio.wait(self._starting)
        processes = list(self._processes.values())
        for process in processes:
            self.kill(process.number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE_S):
                for process in processes:
                    await process.gone.wait()
