"""Whether to accept connections now: bounds, faults and pauses."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.accepting import ACCEPTED_PER_TURN, RETRY_S, SERVED_PER_TURN, Decision, Gate, Obstacle


def let_one_in(gate: Gate) -> None:
    gate.admitted()
    gate.served()


def test_an_open_gate_lets_in_so_many_in_a_turn() -> None:
    assert Gate(1000).decide(0.0) == Decision(ACCEPTED_PER_TURN)
    assert Gate(6).decide(0.0) == Decision(4)


def test_those_let_in_are_served_some_in_a_turn() -> None:
    gate = Gate(1000)
    for _ in range(SERVED_PER_TURN + 1):
        gate.admitted()
    assert gate.to_serve == SERVED_PER_TURN
    for _ in range(SERVED_PER_TURN):
        gate.served()
    assert (gate.to_serve, gate.pending) == (1, SERVED_PER_TURN + 1)


def test_at_most_three_quarters_of_the_bound_wait_and_that_is_no_obstacle() -> None:
    gate = Gate(100)
    for _ in range(75):
        gate.admitted()
    assert (gate.decide(0.0), gate.obstacle, gate.is_near_full) == (Decision(0), None, False)
    gate.served()
    assert gate.decide(0.0) == Decision(1)


def test_a_full_gate_waits_for_a_connection_to_end_and_not_for_the_clock() -> None:
    gate = Gate(3)
    for _ in range(3):
        let_one_in(gate)
    assert (gate.decide(0.0), gate.decide(1e9), gate.obstacle) == (Decision(0), Decision(0), Obstacle.PENDING)
    gate.ended()
    assert (gate.decide(0.0), gate.obstacle) == (Decision(1), None)


def test_a_gate_for_one_opens_when_it_is_gone() -> None:
    gate = Gate(1)
    let_one_in(gate)
    assert gate.decide(0.0) == Decision(0)
    gate.ended()
    assert gate.decide(0.0) == Decision(1)


def test_a_large_full_gate_opens_when_a_sixteenth_has_gone() -> None:
    gate = Gate(160)
    for _ in range(160):
        let_one_in(gate)
    for _ in range(9):
        gate.ended()
        assert gate.decide(0.0).room == 0
    gate.ended()
    assert gate.decide(0.0).room == 10


@pytest.mark.parametrize(
    ("number", "obstacle"),
    [
        (errno.EMFILE, Obstacle.DESCRIPTORS),
        (errno.ENFILE, Obstacle.DESCRIPTORS),
        (errno.ENOBUFS, Obstacle.MEMORY),
        (errno.ENOMEM, Obstacle.MEMORY),
        (errno.EINVAL, Obstacle.FAULT),
        (None, Obstacle.FAULT),
    ],
)
def test_a_failure_of_ours_is_a_pause_then_another_try(number: int | None, obstacle: Obstacle) -> None:
    gate = Gate(1000)
    assert gate.failed(number, 10.0)
    assert (gate.decide(10.0), gate.obstacle) == (Decision(0, 10.0 + RETRY_S), obstacle)
    assert gate.decide(10.0 + RETRY_S).room > 0


def test_a_fault_is_over_only_when_a_turn_passes_without_one() -> None:
    gate = Gate(1000)
    gate.failed(errno.EMFILE, 0.0)
    gate.decide(5.0)
    gate.admitted()
    gate.failed(errno.EMFILE, 5.0)
    assert gate.obstacle is Obstacle.DESCRIPTORS
    gate.turn_passed()
    assert gate.obstacle is None


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EHOSTUNREACH])
def test_a_newcomer_that_is_lost_stops_nobody(number: int) -> None:
    gate = Gate(1000)
    assert not gate.failed(number, 0.0)
    assert (gate.decide(0.0).room, gate.obstacle) == (ACCEPTED_PER_TURN, None)


@given(st.integers(1, 100), st.lists(st.sampled_from(["turn", "serve", "end", "fail", "second"]), max_size=200))
def test_the_bound_holds_and_a_gate_that_waits_for_room_has_something_to_wait_for(
    bound: int, events: list[str]
) -> None:
    gate, now = Gate(bound), 0.0
    for event in events:
        if event == "turn":
            for _ in range(gate.decide(now).room):
                gate.admitted()
        elif event == "serve":
            for _ in range(gate.to_serve):
                gate.served()
        elif event == "end" and gate.pending > gate.waiting:
            gate.ended()
        elif event == "fail":
            gate.failed(errno.EMFILE, now)
        elif event == "second":
            now += 1.0
        decision = gate.decide(now)
        assert 0 <= gate.pending <= bound
        assert 0 <= gate.waiting <= max(1, bound * 3 // 4)
        assert decision.room <= bound - gate.pending
        # A caller that has to wait knows for what, and that happens.
        if not decision.room:
            assert gate.pending > 0 if decision.retry_at is None else decision.retry_at > now
