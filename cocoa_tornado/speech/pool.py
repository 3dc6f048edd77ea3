"""The pool of worker processes: the speech port over ``python -m cocoa_tornado.speech.worker``. IOLoop thread only.

:mod:`cocoa_tornado.rules.speech_pool` makes the decisions: who gets which worker, and which worker is killed. The
pool passes data between the streams (``pooled_stream.py``) and the processes (``worker_processes.py``).
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..errors import AudioNotDecodable, AudioTooLong, EngineFailed, SpeechBusy, SpeechError
from ..rules.audio import AudioFormat
from ..rules.backoff import Backoff
from ..rules.byte_budget import ByteBudget
from ..rules.speech_pool import Assign, Kill, PoolLimits, Roster, StreamVerdict, TakeBack, WorkerPhase
from . import wire
from .machine import count_oom_kills
from .pooled_stream import PooledStream
from .port import SpeechState, SpeechStatus, Transcript
from .wire import Kind
from .worker_processes import PoolCounters, WorkerProcesses

KEPT_BYTES: Final = 64 * 1024 * 1024
"""Audio of all streams that is kept in case another worker must process it. A stream beyond that keeps its worker."""

RETRY_BASE_S: Final = 1.0
READING_S = 0.05  # between a timer and its decision: time to read what has arrived
RETRY_CAP_S: Final = 60.0

log = logging.getLogger("cocoa.speech")


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """:ivar url: the engine, see :func:`cocoa_tornado.speech.engines.engine_of`
    :ivar language: a language tag; '' for the engine's default
    :ivar workers: processes; each holds the model
    :ivar queue: streams that may wait for one
    :ivar stall_s: a worker that has work and makes no progress for this long is replaced
    :ivar load_s: the same for one that loads its model, which may include a download
    :ivar command: starts a worker; None for this package's
    :ivar kept_bytes: audio of all streams together that is kept in case they lose their workers
    """

    url: str
    language: str = ""
    workers: int = 1
    queue: int = 16
    stall_s: float = 30.0
    load_s: float = 600.0
    command: tuple[str, ...] | None = None
    kept_bytes: int = KEPT_BYTES

    def worker_command(self) -> tuple[str, ...]:
        """The command that starts a worker."""
        if self.command is not None:
            return self.command
        # -P: don't let files in the current folder shadow the worker's libraries.
        module = ("-P", "-m", "cocoa_tornado.speech.worker")
        return (sys.executable, *module, self.url, "--language", self.language, "--workers", str(self.workers))


class WorkerPool:
    """A :class:`~cocoa_tornado.speech.port.SpeechEngine` that also oversees its processes."""

    def __init__(self, options: PoolOptions, count_oom_kills: Callable[[], int] = count_oom_kills) -> None:
        """:param count_oom_kills: how many processes of this control group the kernel has killed for lack of memory"""
        self.counters = PoolCounters()
        self.options = options
        self.kept = ByteBudget(options.kept_bytes)
        self._roster = Roster(
            PoolLimits(options.workers, options.queue, options.stall_s, options.load_s),
            Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S),
        )
        self._numbers = 0
        self._waiting: dict[int, PooledStream] = {}  # by stream: those without a worker, including parked ones
        self._at_work: dict[int, PooledStream] = {}  # by worker
        self._processes = WorkerProcesses(
            options.worker_command(),
            self,
            self.counters,
            on_not_started=self._on_not_started,
            count_oom_kills=count_oom_kills,
        )
        self._timer: asyncio.TimerHandle | None = None
        self._is_reading = False  # a timer has fired, and frames that have arrived meanwhile are being read
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._ready_detail = ""
        self._trouble = ""  # why the last worker that failed to start did so
        self._logged = SpeechState.LOADING

    def __repr__(self) -> str:
        return f"<WorkerPool {self.options.url} {self.status()}>"

    # The port

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._replan()

    def status(self) -> SpeechStatus:
        roster = self._roster
        return SpeechStatus(
            self._state(),
            self._detail(),
            roster.ready,
            roster.busy,
            roster.queued,
            roster.parked,
            self.kept.taken,
            self.counters.taken_back,
        )

    def worker_pids(self) -> tuple[int, ...]:
        """Live processes."""
        return self._processes.pids

    def open(
        self, audio_format: AudioFormat, max_audio_s: float, on_interim: Callable[[str], None] | None = None
    ) -> PooledStream:
        begin = wire.Begin(audio_format, on_interim is not None, max_audio_s)
        stream = PooledStream(self, self._number(), begin, on_interim, self._now())
        if self._closed:
            stream.settle(EngineFailed("the speech engine is closed"))
            return stream
        admission = self._roster.arrive(stream.number, self._now(), is_silent=True)
        if admission is StreamVerdict.BUSY:
            raise SpeechBusy("every worker is taken and the queue is full", self._roster.retry_after_s())
        if admission is StreamVerdict.HOPELESS:
            stream.settle(EngineFailed(self._trouble))
            return stream
        self._waiting[stream.number] = stream
        self._replan()
        return stream

    async def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for stream in [*self._waiting.values(), *self._at_work.values()]:
            stream.settle(EngineFailed("the speech engine was closed"))
        self._waiting.clear()
        self._at_work.clear()
        await self._processes.close()

    # Called by streams

    def pump(self, stream: PooledStream) -> None:
        """Send what the stream holds, as far as its worker keeps up; queue it for a worker if it has enough."""
        number = stream.worker
        if number is None:
            if stream.number in self._waiting and (stream.finishing or stream.kept.has_enough):
                self._wants_worker(stream)
            return
        if stream.over:
            return
        roster, kept = self._roster, stream.kept
        now = self._now()
        if not kept.is_whole:
            roster.pin(stream.number)
        while kept.unsent and (room := wire.WINDOW_BYTES - roster.unconsumed(number)) > 0:
            piece = kept.take(min(room, wire.MAX_AUDIO_BYTES))
            self._processes.write(number, wire.frame(Kind.AUDIO, piece))
            roster.sent(number, len(piece), now)
        if stream.finishing and not kept.unsent and not stream.end_sent:
            stream.end_sent = True
            self._processes.write(number, wire.frame(Kind.END))
            roster.sent(number, 0, now, ended=True)
        self._arm(now + self.options.stall_s)

    def _wants_worker(self, stream: PooledStream) -> None:
        was_parked = self._roster.is_parked(stream.number)
        if self._roster.has_audio(stream.number):
            if was_parked:
                stream.queued_at = self._now()
            self._replan()

    def dismiss(self, stream: PooledStream) -> None:
        """The stream was cancelled."""
        self._waiting.pop(stream.number, None)
        number, stream.worker = self._roster.leave(stream.number), None
        if number is not None:
            self._at_work.pop(number, None)
            self._processes.write(number, wire.frame(Kind.CANCEL))
            self._roster.sent(number, 0, self._now(), ended=True)
        self._replan()

    # Called by processes

    def on_frame(self, worker: int, frame: wire.Frame) -> None:
        if frame.kind is Kind.READY:
            self._ready_detail = wire.message_of(frame, wire.Ready).detail
            self._roster.became_ready(worker)
            self._replan()
        elif self._roster.phase_of(worker) is WorkerPhase.LOADING:
            self._trouble = wire.message_of(frame, wire.Failed).detail
            self._processes.explained(worker, self._trouble)
        elif frame.kind is Kind.PROGRESS:
            progress = wire.progress_of(frame)
            self._roster.progressed(
                worker,
                self._now(),
                progress.consumed,
                progress.audio_s,
                progress.waited_s,
                is_waiting=progress.is_waiting,
            )
            self._go_on(worker)
            if self._roster.queued:
                self._replan()
        elif frame.kind is Kind.INTERIM:
            self._roster.alive(worker, self._now())
            stream = self._at_work.get(worker)
            # The device has already had the interims of audio that this worker repeats.
            if stream is not None and self._roster.consumed(worker) >= stream.kept.repeated:
                stream.interim(frame.payload.decode("utf-8", "replace"))
        else:
            self._on_result(worker, frame)

    def on_invalid(self, worker: int, error: EngineFailed) -> None:
        if self._roster.phase_of(worker) is WorkerPhase.LOADING:
            self._trouble = str(error)
        self._roster.condemn(worker)
        self._lose(worker, error)
        self._processes.kill(worker, "nonsense", str(error))
        self._replan()

    def on_line(self, worker: int, line: str) -> None:
        self._processes.log_line(worker, line)

    def on_gone(self, worker: int, how: str, *, by_sigkill: bool) -> None:
        end = self._processes.gone(worker, how, by_sigkill=by_sigkill)
        if end.is_crash and not end.is_explained and self._roster.phase_of(worker) is WorkerPhase.LOADING:
            self._trouble = f"a worker ended while it loaded: {end.how}"
        self._roster.gone(worker, self._now(), out_of_memory=end.out_of_memory)
        self._lose(worker, EngineFailed(f"the speech worker crashed: {end.how}"))
        self._replan()

    def _on_not_started(self, worker: int, why: str) -> None:
        self._trouble = f"a worker can't be started: {why}"
        self._roster.gone(worker, self._now())
        self._replan()

    def _on_result(self, worker: int, frame: wire.Frame) -> None:
        if self._roster.phase_of(worker) not in (WorkerPhase.BUSY, WorkerPhase.DRAINING):
            raise EngineFailed(f"invalid frame from the worker: {frame.kind.name} of nothing")
        result: wire.Done | wire.Failed
        result = wire.message_of(frame, wire.Done) if frame.kind is Kind.DONE else wire.message_of(frame, wire.Failed)
        stream = self._at_work.pop(worker, None)
        self._roster.settled(worker, self._now())
        if stream is not None:
            stream.worker = None
            stream.settle(_outcome(result, stream))
        self._replan()

    # Carrying out the plan

    def _replan(self, *, judge: bool = False) -> None:
        """:param judge: condemn workers that are overdue; only when everything they have sent was read"""
        if self._closed or self._loop is None:
            return
        load = True
        while load:
            plan = self._roster.plan(self._now(), judge=judge)
            for kill in plan.kill:
                self._carry_out(kill)
            for number in plan.given_up:
                self._waiting.pop(number).settle(EngineFailed(self._trouble))
            for number in plan.evicted:
                busy = SpeechBusy("too many streams wait, and its audio comes too slowly", self._roster.retry_after_s())
                self._waiting.pop(number).settle(busy)
            for assign in plan.assign:
                self._assign(assign)
            for take_back in plan.take_back:
                self._take_back(take_back)
            load = plan.load
            if load:
                self._load()
        if plan.again_at is not None:
            self._arm(plan.again_at)
        self._log_change()

    def _assign(self, assign: Assign) -> None:
        stream = self._waiting.pop(assign.stream)
        stream.worker = assign.worker
        stream.queue_s += self._now() - stream.queued_at
        self._at_work[assign.worker] = stream
        self._processes.write(assign.worker, wire.json_frame(Kind.BEGIN, stream.begin))
        self._go_on(assign.worker)

    def _take_back(self, take_back: TakeBack) -> None:
        stream = self._at_work.pop(take_back.worker)
        stream.worker = None
        stream.kept.rewind()
        self._waiting[stream.number] = stream
        self.counters.taken_back += 1
        self._processes.write(take_back.worker, wire.frame(Kind.CANCEL))
        self._roster.sent(take_back.worker, 0, self._now(), ended=True)
        log.debug("worker taken back", extra={"worker": take_back.worker, "kept": len(stream.kept)})
        if stream.kept.has_enough and self._roster.has_audio(stream.number):
            stream.queued_at = self._now()

    def _go_on(self, worker: int) -> None:
        stream = self._at_work.get(worker)
        if stream is not None:
            self.pump(stream)
            stream.wake()

    def _carry_out(self, kill: Kill) -> None:
        limit = self.options.load_s if kill.reason == "slow" else self.options.stall_s
        problem = f"the speech worker is {kill.reason}: no sign of life for {limit:g} s"
        if kill.reason == "slow":
            self._trouble = problem
        self._lose(kill.worker, EngineFailed(problem))
        self._processes.kill(kill.worker, kill.reason, problem)

    def _lose(self, worker: int, error: EngineFailed) -> None:
        stream = self._at_work.pop(worker, None)
        if stream is not None:
            stream.worker = None
            stream.settle(error)

    def _load(self) -> None:
        number = self._number()
        self._roster.loading(number, self._now())
        self._processes.start(number)

    def _log_change(self) -> None:
        state = self._state()
        if state is not self._logged:
            self._logged = state
            level = logging.ERROR if state is SpeechState.FAILED else logging.INFO
            log.log(level, "speech %s", state.value, extra={"engine": self.options.url, "detail": self._detail()})

    def _state(self) -> SpeechState:
        if self._closed:
            return SpeechState.CLOSED
        if self._roster.ready:
            return SpeechState.READY
        return SpeechState.FAILED if self._roster.hopeless else SpeechState.LOADING

    def _detail(self) -> str:
        state = self._state()
        if state is SpeechState.READY:
            return self._ready_detail
        if state is SpeechState.CLOSED:
            return "closed"
        return self._trouble or f"loading {self.options.url}"

    def _arm(self, at: float) -> None:
        """Make sure that there is a plan by ``at``."""
        if self._loop is None or self._closed or self._is_reading:
            return
        if self._timer is not None and self._timer.when() <= at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        """A deadline has passed. If the loop was blocked, first read what workers have sent meanwhile."""
        assert self._loop is not None
        self._timer, self._is_reading = self._loop.call_later(READING_S, self._judge), True

    def _judge(self) -> None:
        self._timer, self._is_reading = None, False
        self._replan(judge=True)

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _now(self) -> float:
        return (self._loop or asyncio.get_running_loop()).time()


def _outcome(result: wire.Done | wire.Failed, stream: PooledStream) -> Transcript | SpeechError:
    if isinstance(result, wire.Done):
        return Transcript(result.text, result.audio_s, stream.queue_s, result.busy_s)
    if result.kind == "not_decodable":
        return AudioNotDecodable(result.detail)
    if result.kind == "too_long":
        return AudioTooLong(result.detail)
    return EngineFailed(result.detail)
