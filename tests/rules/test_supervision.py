from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cocoa_tornado.rules.supervision import (
    BEAT_S,
    DRAIN_MARGIN_S,
    HUNG_S,
    LAST_RESTART_S,
    LEAVE_S,
    LOOK_S,
    START_S,
    STEADY_S,
    Action,
    End,
    Kill,
    Start,
    Supervisor,
    Terminate,
)

from ..profiles import examples

DRAIN_S = 25.0


def longest(low: float, high: float) -> float:
    return high


class Clock:
    """A supervisor that is looked at every ``LOOK_S``."""

    def __init__(self, count: int = 2) -> None:
        self.now = 100.0
        self.supervisor = Supervisor(count, DRAIN_S, self.now, longest)

    def look(self) -> list[Action]:
        return self.supervisor.actions(self.now)

    def passes(self, seconds: float, *, beats: tuple[int, ...] = ()) -> list[Action]:
        """Let time pass, in which these workers beat; return all actions."""
        actions, end = [], self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + LOOK_S)
            for number in beats:
                self.supervisor.on_beat(number, self.now)
            actions += self.look()
        return actions

    def starts(self, number: int) -> None:
        self.supervisor.on_started(number, self.now)
        self.supervisor.on_up(number, self.now)

    def exits(self, number: int, status: int) -> float | None:
        restart = self.supervisor.on_exit(number, status, self.now)
        return None if restart is None else restart.delay_s


@pytest.fixture
def clock() -> Clock:
    """Two workers, both up."""
    clock = Clock()
    clock.look()
    for number in (1, 2):
        clock.starts(number)
    return clock


def test_a_worker_that_was_drained_by_hand_has_not_died() -> None:
    """It has received SIGTERM, and not from its parent. One that says so and then fails has died."""
    clock = Clock()
    clock.starts(1)
    clock.starts(2)
    for number in (1, 2):
        clock.supervisor.on_leaving(number, clock.now)
    assert clock.exits(1, 0) is not None
    assert clock.exits(2, 1) is not None
    assert clock.supervisor.restarts() == {"died": 1, "drained": 1, "hung": 0, "start": 0, "exit": 0}


def test_the_first_worker_starts_alone_and_the_others_once_it_is_up() -> None:
    clock = Clock(3)
    assert clock.look() == [Start(1)]
    clock.supervisor.on_started(1, clock.now)
    assert clock.look() == []
    clock.supervisor.on_up(1, clock.now)
    assert clock.look() == [Start(2), Start(3)]


@pytest.mark.parametrize("status", [1, 2])
def test_a_worker_that_fails_cleanly_at_its_first_start_ends_the_parent_with_its_status(status: int) -> None:
    clock = Clock()
    clock.look()
    clock.supervisor.on_started(1, clock.now)
    assert clock.exits(1, status) is None
    assert clock.look() == [End(status)]


def test_a_second_worker_that_fails_at_its_first_start_drains_the_first() -> None:
    clock = Clock()
    clock.look()
    clock.starts(1)
    clock.look()
    clock.supervisor.on_started(2, clock.now)
    clock.exits(2, 2)
    assert clock.look() == [Terminate(1)]
    clock.exits(1, 0)
    assert clock.look() == [End(2)]


def test_a_worker_that_crashes_at_its_first_start_is_started_again() -> None:
    clock = Clock()
    clock.look()
    clock.supervisor.on_started(1, clock.now)
    assert clock.exits(1, -11) == 0.5
    assert Start(1) in clock.passes(0.5)


@pytest.mark.parametrize("status", [0, 1, 2, -9])
def test_a_worker_that_ends_later_on_is_started_again_whatever_its_status(clock: Clock, status: int) -> None:
    delay_s = clock.exits(2, status)
    assert delay_s is not None
    assert clock.passes(delay_s, beats=(1,)) == [Start(2)]
    assert clock.supervisor.restarts()["died"] == 1


def test_the_delay_grows_while_a_worker_keeps_dying_and_starts_over_when_one_was_steady(clock: Clock) -> None:
    delays = []
    for _ in range(8):
        delay_s = clock.exits(2, 1)
        assert delay_s is not None
        delays.append(delay_s)
        clock.passes(delay_s, beats=(1,))
        clock.starts(2)
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, LAST_RESTART_S, LAST_RESTART_S, LAST_RESTART_S]
    assert clock.passes(STEADY_S, beats=(1, 2)) == []
    assert clock.exits(2, 1) == 0.5


def test_a_worker_without_a_beat_is_killed_after_three_seconds_and_once(clock: Clock) -> None:
    assert clock.passes(HUNG_S - LOOK_S, beats=(1,)) == []
    assert clock.passes(10.0, beats=(1,)) == [Kill(2, "hung")]
    clock.exits(2, -9)
    assert clock.supervisor.restarts()["hung"] == 1
    assert clock.supervisor.restarts()["died"] == 0


def test_time_in_which_the_parent_did_not_run_is_no_reason_to_kill(clock: Clock) -> None:
    clock.now += 3600.0
    assert clock.look() == []
    assert clock.passes(HUNG_S - 2 * LOOK_S) == []
    assert clock.passes(3 * LOOK_S) == [Kill(1, "hung"), Kill(2, "hung")]


def test_a_start_may_take_a_minute_without_beats() -> None:
    clock = Clock(1)
    clock.look()
    clock.supervisor.on_started(1, clock.now)
    assert clock.passes(START_S - LOOK_S) == []
    assert clock.passes(LOOK_S) == [Kill(1, "start")]


def test_a_stop_drains_all_and_ends_when_the_last_one_has(clock: Clock) -> None:
    clock.supervisor.stop(clock.now)
    assert clock.look() == [Terminate(1), Terminate(2)]
    assert clock.passes(5.0, beats=(1, 2)) == []
    clock.exits(1, 0)
    assert clock.look() == []
    clock.exits(2, 0)
    assert clock.look() == [End(0)]


def test_a_worker_that_waits_for_its_restart_is_not_started_after_a_stop(clock: Clock) -> None:
    clock.exits(1, -9)
    clock.exits(2, -9)
    clock.supervisor.stop(clock.now)
    assert clock.passes(60.0)[0] == End(0)


def test_a_worker_that_fails_to_drain_makes_the_status_1(clock: Clock) -> None:
    clock.supervisor.stop(clock.now)
    clock.exits(1, 0)
    clock.exits(2, -9)
    assert clock.look() == [End(1)]


def test_a_worker_that_is_stopped_during_its_start_is_no_failure() -> None:
    clock = Clock(1)
    clock.look()
    clock.supervisor.on_started(1, clock.now)
    clock.supervisor.stop(clock.now)
    assert clock.look() == [Terminate(1)]
    clock.exits(1, -15)
    assert clock.look() == [End(0)]


def test_a_drain_that_takes_too_long_is_killed(clock: Clock) -> None:
    clock.supervisor.stop(clock.now)
    clock.look()
    limit_s = DRAIN_S + DRAIN_MARGIN_S + LEAVE_S
    assert clock.passes(limit_s - LOOK_S, beats=(1, 2)) == []
    assert clock.passes(LOOK_S, beats=(1, 2)) == [Kill(1, "drain"), Kill(2, "drain")]


def test_a_worker_that_hangs_while_it_drains_is_killed_after_three_seconds(clock: Clock) -> None:
    clock.supervisor.stop(clock.now)
    clock.look()
    assert clock.passes(HUNG_S, beats=(1,)) == [Kill(2, "hung")]


def test_a_drained_worker_needs_no_beats_but_must_exit(clock: Clock) -> None:
    clock.supervisor.stop(clock.now)
    clock.look()
    clock.supervisor.on_leaving(1, clock.now)
    assert clock.passes(LEAVE_S - LOOK_S, beats=(2,)) == []
    assert clock.passes(LOOK_S, beats=(2,)) == [Kill(1, "exit")]


def test_a_second_stop_kills_all_and_the_status_is_1(clock: Clock) -> None:
    clock.supervisor.stop(clock.now)
    clock.look()
    clock.supervisor.force()
    assert clock.look() == [Kill(1, "forced"), Kill(2, "forced")]
    clock.exits(1, -9)
    clock.exits(2, -9)
    assert clock.look() == [End(1)]


def test_who_serves_and_who_is_missing(clock: Clock) -> None:
    assert (clock.supervisor.up, clock.supervisor.missing) == ([1, 2], [])
    clock.exits(1, -9)
    assert (clock.supervisor.up, clock.supervisor.missing) == ([2], [1])
    assert clock.supervisor.all_were_up
    clock.supervisor.on_started(1, clock.now)
    assert clock.supervisor.missing == [1]


class Processes(RuleBasedStateMachine):
    """Three workers that start, beat, hang, die and drain at any time, under a parent that is sometimes late.

    Whatever happens: no second process of a number, no kill of a worker that beats, a kill of each that does not, no
    start after a stop, and an end only when no process is left.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.supervisor = Supervisor(3, DRAIN_S, self.now, longest)
        self.running: set[int] = set()
        self.up: set[int] = set()
        self.hung_since: dict[int, float] = {}
        self.watched_s: dict[int, float] = {}  # how long the parent has watched a worker hang
        self.killed: set[int] = set()
        self.is_stopping = self.has_ended = False
        self.look()

    def look(self) -> None:
        for action in self.supervisor.actions(self.now):
            match action:
                case Start(number):
                    assert number not in self.running
                    assert not self.is_stopping
                    self.running.add(number)
                    self.supervisor.on_started(number, self.now)
                case Kill(number, reason):
                    assert number in self.running
                    assert number not in self.killed
                    assert reason == "drain" or number in self.hung_since or number not in self.up
                    self.killed.add(number)
                case Terminate(number):
                    assert number in self.running
                    assert self.is_stopping
                case End():
                    assert not self.running
                    assert self.is_stopping
                    self.has_ended = True

    def exits(self, number: int, status: int) -> None:
        if status in (1, 2) and number not in self.ever_up():
            self.is_stopping = True
        self.running.discard(number)
        self.up.discard(number)
        self.killed.discard(number)
        self.hung_since.pop(number, None)
        self.watched_s.pop(number, None)
        self.supervisor.on_exit(number, status, self.now)

    def ever_up(self) -> set[int]:
        return {number for number, worker in self.supervisor._workers.items() if worker.was_up}

    @rule(looks=st.integers(1, 20))
    def time_passes(self, looks: int) -> None:
        for _ in range(looks):
            self.now += LOOK_S
            for number in self.up - set(self.hung_since):
                self.supervisor.on_beat(number, self.now)
            for number in self.hung_since:
                self.watched_s[number] += LOOK_S
            self.look()

    @rule(seconds=st.floats(1.0, 100.0))
    def the_parent_is_paused(self, seconds: float) -> None:
        self.now += seconds
        self.look()
        # The workers run again as well.
        for number in self.up - set(self.hung_since):
            self.supervisor.on_beat(number, self.now)

    @precondition(lambda self: self.running - self.up)
    @rule(data=st.data())
    def a_start_completes(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.running - self.up)))
        if number not in self.killed:
            self.up.add(number)
            self.supervisor.on_up(number, self.now)
            self.look()

    @precondition(lambda self: self.up)
    @rule(data=st.data())
    def one_hangs(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.up)))
        self.hung_since.setdefault(number, self.now)
        self.watched_s.setdefault(number, 0.0)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), status=st.sampled_from([0, 1, 2, -9, -15]))
    def one_exits(self, data: st.DataObject, status: int) -> None:
        self.exits(data.draw(st.sampled_from(sorted(self.running))), status)
        self.look()

    @rule()
    def the_killed_end(self) -> None:
        for number in sorted(self.killed):
            self.exits(number, -9)
        self.look()

    @rule()
    def a_stop(self) -> None:
        self.is_stopping = True
        self.supervisor.stop(self.now)
        self.look()

    @invariant()
    def one_that_hangs_is_killed(self) -> None:
        for number, watched_s in self.watched_s.items():
            assert watched_s <= HUNG_S + BEAT_S or number in self.killed

    @invariant()
    def it_ends_once_none_is_left(self) -> None:
        if self.is_stopping and not self.running:
            self.look()
            assert self.has_ended


Processes.TestCase.settings = examples(60, steps=30)
TestProcesses = Processes.TestCase
