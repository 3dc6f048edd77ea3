"""Who gets which speech worker, under any sequence of events."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from cocoa_tornado.rules.backoff import Backoff
from cocoa_tornado.rules.pace import BEHIND_S
from cocoa_tornado.rules.speech_pool import (
    HOPELESS_AFTER,
    MAX_MEMORY_PAUSE_S,
    MEMORY_PAUSE_S,
    MEMORY_TRIAL_S,
    PARKED_AT_LEAST_S,
    PoolLimits,
    Roster,
    StreamVerdict,
    TakeBack,
    WorkerPhase,
)
from cocoa_tornado.rules.upload import SILENT_S

from ..profiles import examples

LIMITS = PoolLimits(workers=3, queue=2, stall_s=10.0, load_s=60.0, parked=4)


def roster(limits: PoolLimits = LIMITS) -> Roster:
    return Roster(limits, Backoff(base_s=1.0, cap_s=8.0))


class Pool(RuleBasedStateMachine):
    """A pool that does what the roster plans, with workers and streams that do as they like."""

    def __init__(self) -> None:
        super().__init__()
        self.roster = roster()
        self.now = 0.0
        self.numbers = 0
        self.alive: set[int] = set()
        self.has: dict[int, int] = {}  # the stream of each worker
        self.sent: dict[int, int] = {}  # bytes of audio, by worker
        self.waited_s: dict[int, float] = {}  # by worker
        self.waiting: list[int] = []
        self.silent: dict[int, float] = {}  # of those, without audio, and since when
        self.parked: dict[int, float] = {}  # and since when
        self.came_back: set[int] = set()  # after having been parked
        self.pinned: set[int] = set()

    streams = Bundle("streams")

    @rule(target=streams, is_silent=st.booleans())
    def arrive(self, is_silent: bool) -> int:
        self.numbers += 1
        admission = self.roster.arrive(self.numbers, self.now, is_silent=is_silent)
        for stream in [stream for stream in self.silent if self.roster.is_parked(stream)]:
            assert self.now - self.silent.pop(stream) >= SILENT_S
            self.waiting.remove(stream)
            self.parked[stream] = self.now
        if admission is StreamVerdict.WAITS:
            self.waiting.append(self.numbers)
            if is_silent:
                self.silent[self.numbers] = self.now
        elif admission is StreamVerdict.BUSY and len(self.waiting) + len(self.parked) < LIMITS.queue + LIMITS.parked:
            assert len(self.waiting) >= LIMITS.queue
            assert all(self.now - since < SILENT_S for since in self.silent.values()), "kept out by nothing"
        elif admission is StreamVerdict.BUSY and len(self.waiting) < LIMITS.queue:
            assert all(self.now - since < PARKED_AT_LEAST_S for since in self.parked.values()), "kept out by drips"
        self.plan()
        return self.numbers

    @rule(stream=streams)
    def has_audio(self, stream: int) -> None:
        is_news = stream in self.parked or stream in self.silent
        assert self.roster.has_audio(stream) is is_news
        self.silent.pop(stream, None)
        if stream in self.parked:
            del self.parked[stream]
            self.waiting.append(stream)
            self.came_back.add(stream)
        self.plan()

    @rule(data=st.data())
    def is_not_kept_any_more(self, data: st.DataObject) -> None:
        if self.has:
            stream = data.draw(st.sampled_from(sorted(self.has.values())))
            self.roster.pin(stream)
            self.pinned.add(stream)

    @rule(stream=consumes(streams))
    def leave(self, stream: int) -> None:
        worker = self.roster.leave(stream)
        self.silent.pop(stream, None)
        self.parked.pop(stream, None)
        if stream in self.waiting:
            self.waiting.remove(stream)
            assert worker is None
        elif stream in self.has.values():
            assert worker is not None
            assert self.has.pop(worker) == stream
            self.roster.sent(worker, 0, self.now, ended=True)
        else:
            assert worker is None
        self.plan()

    @rule()
    def comes_up(self) -> None:
        for worker in sorted(self.alive):
            if self.roster.phase_of(worker) is WorkerPhase.LOADING:
                self.roster.became_ready(worker)
                break
        self.plan()

    @rule(data=st.data())
    def settles(self, data: st.DataObject) -> None:
        busy = [w for w in sorted(self.alive) if self.roster.phase_of(w) in (WorkerPhase.BUSY, WorkerPhase.DRAINING)]
        if busy:
            worker = data.draw(st.sampled_from(busy))
            self.roster.settled(worker, self.now)
            self.has.pop(worker, None)
        self.plan()

    @rule(data=st.data(), size=st.integers(1, 1000))
    def is_sent_audio(self, data: st.DataObject, size: int) -> None:
        if self.has:
            worker = data.draw(st.sampled_from(sorted(self.has)))
            self.sent[worker] += size
            self.roster.sent(worker, size, self.now)
        self.plan()

    @rule(data=st.data(), waited_s=st.sampled_from([0.0, 1.5, 3.0]))
    def consumes_it_all(self, data: st.DataObject, waited_s: float) -> None:
        if self.has:
            worker = data.draw(st.sampled_from(sorted(self.has)))
            self.waited_s[worker] += waited_s
            self.roster.progressed(worker, self.now, self.sent[worker], 0.0, self.waited_s[worker])
        self.plan()

    @rule(data=st.data())
    def dies(self, data: st.DataObject) -> None:
        if self.alive:
            worker = data.draw(st.sampled_from(sorted(self.alive)))
            self.alive.remove(worker)
            assert self.roster.gone(worker, self.now) == self.has.pop(worker, None)
        self.plan()

    @rule(data=st.data())
    def is_killed_for_want_of_memory(self, data: st.DataObject) -> None:
        if self.alive:
            worker = data.draw(st.sampled_from(sorted(self.alive)))
            self.alive.remove(worker)
            assert self.roster.gone(worker, self.now, out_of_memory=True) == self.has.pop(worker, None)
        self.plan()

    @rule(seconds=st.sampled_from([0.5, 5.0, 11.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.plan()

    def plan(self) -> None:
        while True:
            plan = self.roster.plan(self.now)
            for kill in plan.kill:
                assert kill.worker in self.alive
                assert self.has.pop(kill.worker, None) == kill.stream
            for stream in plan.given_up:
                self.waiting.remove(stream)
                self.silent.pop(stream, None)
            for stream in plan.evicted:
                assert self.now - self.parked[stream] >= PARKED_AT_LEAST_S
                assert self.parked.pop(stream) <= min(self.parked.values(), default=self.now), "not the longest"
            for assign in plan.assign:
                assert self.ready()[0] == assign.stream, "out of turn"
                self.waiting.remove(assign.stream)
                assert assign.worker in self.alive
                assert assign.worker not in self.has
                self.has[assign.worker] = assign.stream
                self.sent[assign.worker] = 0
                self.waited_s[assign.worker] = 0.0
            assert len(plan.take_back) <= len(self.ready()), "taken back without need"
            for take_back in plan.take_back:
                assert take_back.stream not in self.pinned
                assert self.has.pop(take_back.worker) == take_back.stream
                self.parked[take_back.stream] = self.now
                self.roster.sent(take_back.worker, 0, self.now, ended=True)
            if not plan.load:
                return
            self.numbers += 1
            self.alive.add(self.numbers)
            self.roster.loading(self.numbers, self.now)

    def ready(self) -> list[int]:
        return [stream for stream in self.waiting if stream not in self.silent]

    @invariant()
    def no_stream_has_two_workers_and_no_bound_is_passed(self) -> None:
        assert len(set(self.has.values())) == len(self.has)
        assert len(self.alive) <= LIMITS.workers
        assert (len(self.waiting), len(self.parked)) == (self.roster.queued, self.roster.parked)
        assert sum(self.roster.phase_of(worker) is WorkerPhase.LOADING for worker in self.alive) <= 1
        assert len([stream for stream in self.waiting if stream not in self.came_back]) <= LIMITS.queue + LIMITS.workers
        assert len(self.waiting) + len(self.parked) <= LIMITS.queue + LIMITS.parked + LIMITS.workers

    @invariant()
    def no_stream_waits_while_a_worker_is_idle(self) -> None:
        idle = any(self.roster.phase_of(worker) is WorkerPhase.IDLE for worker in self.alive)
        assert not (idle and self.ready())

    def teardown(self) -> None:
        """After any history, once workers behave, every waiting stream is served."""
        for stream in [*self.silent, *self.parked]:
            self.has_audio(stream)
        for _ in range(50):
            self.now += MAX_MEMORY_PAUSE_S / 10
            self.plan()
            for stream in list(self.parked):
                self.has_audio(stream)
            # Until all are idle: a stream that has a worker and no audio as time advances is behind again.
            while self.workers_behave():
                self.plan()
        assert not self.waiting
        assert not self.parked
        assert self.roster.ready == LIMITS.workers
        assert not self.roster._pinned

    def workers_behave(self) -> bool:
        """False: there was nothing to do for any."""
        phases = {worker: self.roster.phase_of(worker) for worker in sorted(self.alive)}
        for worker, phase in phases.items():
            if phase is WorkerPhase.DYING:
                self.alive.remove(worker)
                self.roster.gone(worker, self.now)
            elif phase is WorkerPhase.LOADING:
                self.roster.became_ready(worker)
            elif phase in (WorkerPhase.BUSY, WorkerPhase.DRAINING):
                self.roster.settled(worker, self.now)
                self.has.pop(worker, None)
        return any(phase is not WorkerPhase.IDLE for phase in phases.values())


TestPool = Pool.TestCase
TestPool.settings = examples(200, steps=40)


def ready(limits: PoolLimits = LIMITS) -> Roster:
    one = roster(limits)
    one.plan(0.0)
    one.loading(1, 0.0)
    one.became_ready(1)
    return one


def test_a_worker_that_owes_something_and_shows_no_progress_is_stuck_and_one_that_waits_for_audio_is_not() -> None:
    one = ready(PoolLimits(1, 2, 10.0, 60.0))
    one.arrive(7, 0.0)
    assert [assign.stream for assign in one.plan(0.0).assign] == [7]
    assert one.plan(100.0).kill == ()
    one.sent(1, 100, 100.0)
    assert one.plan(109.9).kill == ()
    one.progressed(1, 109.9, 50)
    assert one.plan(119.8).kill == ()
    (kill,) = one.plan(120.0).kill
    assert (kill.worker, kill.stream, kill.reason) == (1, 7, "stuck")


def test_workers_that_die_before_they_are_of_use_are_started_with_backoff_and_waiting_streams_are_given_up() -> None:
    one, now = roster(PoolLimits(1, 2, 10.0, 60.0)), 0.0
    one.arrive(1, now)
    given_up: tuple[int, ...] = ()
    for worker in range(2, 2 + HOPELESS_AFTER):
        while not (plan := one.plan(now)).load:
            assert plan.again_at is not None
            now = plan.again_at
        one.loading(worker, now)
        one.gone(worker, now)
        given_up += one.plan(now).given_up
    assert given_up == (1,)
    assert one.hopeless
    assert one.arrive(9, now) is StreamVerdict.HOPELESS
    assert now > 0


def load(one: Roster, now: float, numbers: Iterator[int]) -> int:
    """Start as many workers as the roster asks for; how many those are."""
    before = one.ready
    while one.plan(now).load:
        worker = next(numbers)
        one.loading(worker, now)
        one.became_ready(worker)
    return one.ready - before


def test_after_a_kill_for_want_of_memory_the_others_go_on_without_it_for_longer_and_longer() -> None:
    one, numbers, now, pauses = roster(PoolLimits(3, 2, 10.0, 60.0)), itertools.count(1), 0.0, []
    assert load(one, now, numbers) == 3
    for worker in (3, 4, 5):
        one.gone(worker, now, out_of_memory=True)
        plan = one.plan(now)
        assert (plan.load, one.ready) == (False, 2)
        assert plan.again_at is not None
        pauses.append(plan.again_at - now)
        now = plan.again_at
        assert load(one, now, numbers) == 1
    assert pauses == [MEMORY_PAUSE_S, 2 * MEMORY_PAUSE_S, 4 * MEMORY_PAUSE_S]


def test_where_all_get_on_together_the_next_pause_is_a_short_one_again() -> None:
    one, numbers, now = roster(PoolLimits(2, 2, 10.0, 60.0)), itertools.count(1), 0.0
    load(one, now, numbers)
    for worker in (2, 3):
        one.gone(worker, now, out_of_memory=True)
        now = one.plan(now).again_at or 0.0
        assert load(one, now, numbers) == 1
    now += MEMORY_TRIAL_S + 1
    one.gone(4, now, out_of_memory=True)
    assert one.plan(now).again_at == now + MEMORY_PAUSE_S


def test_workers_that_fit_are_replaced_at_once_and_one_is_always_tried() -> None:
    one, numbers, now = roster(PoolLimits(3, 2, 10.0, 60.0)), itertools.count(1), 0.0
    load(one, now, numbers)
    one.gone(3, now, out_of_memory=True)
    now += one.backoff.ceiling_s()
    for worker in (1, 2):  # which had no trouble of that kind
        one.arrive(100 + worker, now)
        one.plan(now)
        one.settled(worker, now)
        one.gone(worker, now)
    assert load(one, now, numbers) == 2
    for worker in (4, 5):
        one.gone(worker, now, out_of_memory=True)
    assert load(one, now + 8.0, numbers) == 1


def at_work(one: Roster, stream: int, now: float, worker: int = 1) -> None:
    """Give it to the one worker, which consumes all that there is."""
    one.arrive(stream, now)
    assert [assign.stream for assign in one.plan(now).assign] == [stream]
    one.sent(worker, 100, now)
    one.progressed(worker, now, 100)


def test_a_stream_that_is_behind_gives_its_worker_to_one_that_waits_with_its_audio() -> None:
    one = ready(PoolLimits(1, 2, 10.0, 60.0))
    at_work(one, 7, 0.0)
    assert one.plan(100.0).take_back == (), "no stream waits"
    one.arrive(8, 100.0, is_silent=True)
    assert one.plan(100.0).take_back == (), "who waits has no audio"
    one.has_audio(8)
    assert one.plan(100.0).take_back == (TakeBack(1, 7),)
    assert (one.parked, one.queued, one.phase_of(1)) == (1, 1, WorkerPhase.DRAINING)
    one.settled(1, 100.1)
    assert [assign.stream for assign in one.plan(100.1).assign] == [8]
    one.has_audio(7)
    assert (one.parked, one.queued) == (0, 1)


def test_the_plan_knows_when_a_stream_will_be_behind() -> None:
    one = ready(PoolLimits(1, 2, 10.0, 60.0))
    at_work(one, 7, 50.0)
    one.arrive(8, 51.0)
    plan = one.plan(51.0)
    assert (plan.take_back, plan.again_at) == ((), 50.0 + BEHIND_S)
    assert one.plan(50.0 + BEHIND_S).take_back == (TakeBack(1, 7),)


def test_a_stream_that_keeps_pace_has_ended_or_is_not_kept_has_its_worker_until_its_end() -> None:
    for case in ("keeps pace", "has ended", "is not kept", "has audio before it"):
        one, now = ready(PoolLimits(1, 2, 1000.0, 60.0)), 0.0
        at_work(one, 7, now)
        one.arrive(8, now)
        if case == "has ended":
            one.sent(1, 0, now, ended=True)
        elif case == "is not kept":
            one.pin(7)
        for step in range(1, 60):
            now = float(step)
            if case == "keeps pace":
                one.sent(1, 32_000, now)
                one.progressed(1, now, 100 + 32_000 * step, audio_s=now, waited_s=0.9 * now)
            elif case == "has audio before it":
                one.sent(1, 32_000, now)
                one.progressed(1, now, 100 * step, audio_s=0.01 * step)
            assert one.plan(now).take_back == (), case


def test_streams_that_do_not_begin_keep_others_out_for_two_seconds() -> None:
    one = ready(PoolLimits(1, 2, 10.0, 60.0))
    at_work(one, 1, 0.0)
    for stream in (2, 3):
        assert one.arrive(stream, 0.0, is_silent=True) is StreamVerdict.WAITS
    assert one.arrive(4, SILENT_S - 0.1, is_silent=True) is StreamVerdict.BUSY
    assert one.arrive(4, SILENT_S, is_silent=True) is StreamVerdict.WAITS
    assert (one.queued, one.parked) == (1, 2)
    # They have not lost anything.
    assert one.has_audio(2)
    assert one.queued == 2


def test_retry_after_grows_with_the_queue() -> None:
    one = ready(PoolLimits(1, 10, 10.0, 60.0))
    short = one.retry_after_s()
    for stream in range(2, 8):
        one.arrive(stream, 0.0)
    assert one.retry_after_s() > short


def test_no_more_streams_are_without_a_worker_than_the_queue_and_the_parked_ones_have_room_for() -> None:
    one = ready(PoolLimits(1, 2, 10.0, 60.0, parked=3))
    at_work(one, 7, 0.0)
    now, admitted = 0.0, []
    for stream in range(10, 16):
        if one.arrive(stream, now, is_silent=True) is StreamVerdict.WAITS:
            admitted.append(stream)
        now += SILENT_S
    assert (len(admitted), one.queued + one.parked) == (5, 5)
    for stream in admitted:
        one.has_audio(stream)
    assert (one.queued, one.parked) == (5, 0)
    assert one.arrive(30, now) is StreamVerdict.BUSY
    one.leave(admitted[0])
    assert one.arrive(31, now) is StreamVerdict.BUSY, "the queue is still full"


def test_a_new_stream_takes_the_place_of_the_one_that_has_been_parked_longest_and_for_ten_seconds() -> None:
    """Otherwise 256 devices whose audio drips keep all others out."""
    one = ready(PoolLimits(1, 2, 10.0, 60.0, parked=3))
    at_work(one, 7, 0.0)
    now, admitted = 0.0, list[int]()
    while len(admitted) < 5:
        admitted.append(len(admitted) + 10)
        assert one.arrive(admitted[-1], now, is_silent=True) is StreamVerdict.WAITS
        now += SILENT_S
    parked_at = 2 * SILENT_S
    assert one.parked == 4
    assert one.arrive(20, parked_at + PARKED_AT_LEAST_S - 0.1) is StreamVerdict.BUSY
    assert one.plan(parked_at + PARKED_AT_LEAST_S - 0.1, judge=False).evicted == ()
    one.leave(admitted.pop())
    assert one.arrive(21, parked_at + PARKED_AT_LEAST_S) is StreamVerdict.WAITS
    assert one.arrive(22, parked_at + PARKED_AT_LEAST_S) is StreamVerdict.WAITS
    assert one.plan(parked_at + PARKED_AT_LEAST_S, judge=False).evicted == (10,)
    assert one.plan(parked_at + PARKED_AT_LEAST_S, judge=False).evicted == ()
    assert not one.is_parked(10)
    assert not one.has_audio(10)


def test_a_worker_that_works_on_what_it_has_consumed_is_not_taken_from_its_stream() -> None:
    one = ready(PoolLimits(1, 2, 10.0, 60.0))
    at_work(one, 7, 0.0)
    one.progressed(1, 0.5, 100, 0.0, 0.5, is_waiting=False)
    one.arrive(8, 0.5)
    plan = one.plan(60.0, judge=False)
    assert (plan.take_back, plan.again_at) == ((), None)
    one.progressed(1, 60.0, 100, 0.0, 0.5, is_waiting=True)
    plan = one.plan(60.0)
    assert plan.again_at == 60.0 + BEHIND_S - 0.5
    assert one.plan(plan.again_at).take_back == (TakeBack(1, 7),)
