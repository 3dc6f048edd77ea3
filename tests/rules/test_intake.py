from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cocoa_tornado.rules.intake import MAX_PIECE, MIN_PIECE, TURN_S, TURNS, Intake, piece_bytes

MIB = 1024 * 1024
LONG = MIN_PIECE + 1


@pytest.mark.parametrize(
    ("connections", "piece"), [(0, MAX_PIECE), (100, MAX_PIECE), (1000, 8388), (10_000, MIN_PIECE)]
)
def test_what_all_sockets_bring_at_once_stays_within_the_budget_while_pieces_are_worth_it(
    connections: int, piece: int
) -> None:
    assert piece_bytes(8 * MIB, connections) == piece
    assert connections * piece <= 8 * MIB or piece == MIN_PIECE


def test_a_device_that_has_nothing_here_is_always_read() -> None:
    intake = Intake[str](1000)
    intake.held = intake.under_way = 5000
    assert intake.may_read("doll", 0, 0, 0.0)


def test_no_connection_with_bytes_here_is_read_while_no_more_may_be_held() -> None:
    intake = Intake[str](1000)
    intake.held = 499
    assert intake.may_read("doll", 1, 0, 0.0)
    intake.held = 500
    assert not intake.may_read("doll", 1, 0, 0.0)
    assert not intake.may_read("doll", 0, 1, 0.0)


def test_a_few_have_a_turn_while_messages_under_way_fill_their_bound_and_the_next_follow() -> None:
    intake = Intake[int](1000)
    intake.under_way = 500
    assert [who for who in range(TURNS + 2) if intake.may_read(who, LONG, 0, 0.0)] == list(range(TURNS))
    intake.wait(TURNS, LONG)
    intake.wait(TURNS + 1, LONG)
    assert intake.next_to_wake() == []
    intake.end_turn(3)
    assert intake.next_to_wake() == [TURNS]
    assert intake.may_read(TURNS, LONG, 0, 0.0)
    assert not intake.may_read(TURNS + 1, LONG, 0, 0.0)


def test_a_short_message_needs_no_turn() -> None:
    intake = Intake[int](1000)
    intake.under_way = 500
    assert [who for who in range(2 * TURNS) if intake.may_read(who, MIN_PIECE, 0, 0.0)] == list(range(2 * TURNS))
    intake.held = 500
    assert not intake.may_read(1, MIN_PIECE, 0, 0.0)
    intake.wait(1, MIN_PIECE)
    intake.wait(2, LONG)
    intake.held = 0
    assert intake.next_to_wake() == [1, 2]


def test_a_turn_that_does_not_end_is_over_in_time() -> None:
    intake = Intake[str](1000)
    intake.under_way = 500
    assert intake.may_read("dripping", LONG, 0, 10.0)
    assert intake.late(10.0 + TURN_S - 0.1) == []
    assert intake.late(10.0 + TURN_S) == ["dripping"]
    assert intake.late(10.0 + TURN_S) == []


def test_a_turn_that_the_gateway_itself_holds_up_is_not_counted_against_the_device() -> None:
    intake = Intake[str](1000)
    intake.under_way = 500
    assert intake.may_read("doll", LONG, 0, 0.0)
    intake.held = 500
    assert not intake.may_read("doll", LONG, 0, 1.0)
    assert intake.late(TURN_S + 1) == []


def test_no_more_are_woken_than_there_is_room_for() -> None:
    intake = Intake[int](2 * 10 * MAX_PIECE)
    intake.held = 10 * MAX_PIECE
    for who in range(20):
        intake.wait(who, 0)
    assert intake.next_to_wake() == []
    intake.held = 7 * MAX_PIECE + 1
    assert intake.next_to_wake() == [0, 1, 2]
    intake.held = 0
    assert intake.next_to_wake() == list(range(3, 14))


class Devices(RuleBasedStateMachine):
    """Devices that send messages of any size in pieces, and a broker that takes them or doesn't."""

    LIMIT, LARGEST, DEVICES = 200_000, 64_000, 30

    def __init__(self) -> None:
        super().__init__()
        self.intake = Intake[int](self.LIMIT)
        self.now = 0.0
        self.under_way: dict[int, int] = {}
        self.held: list[int] = []
        self.waiting: set[int] = set()

    @rule(who=st.integers(1, DEVICES), piece=st.integers(1, MAX_PIECE), ends=st.booleans())
    def read(self, who: int, piece: int, ends: bool) -> None:
        """As the shell does: it asks, and then takes in what comes."""
        if who in self.waiting:
            return
        size = self.under_way.get(who, 0)
        if not self.intake.may_read(who, size, 0, self.now):
            self.intake.wait(who, size)
            self.waiting.add(who)
            return
        self.under_way.pop(who, None)
        self.intake.under_way -= size
        if ends or size + piece > self.LARGEST:
            self.held.append(size + piece)
            self.intake.held += size + piece
            self.intake.end_turn(who)
        else:
            self.under_way[who] = size + piece
            self.intake.under_way += size + piece
        self.wake()

    @precondition(lambda self: self.held)
    @rule()
    def publish(self) -> None:
        self.intake.held -= self.held.pop(0)
        self.wake()

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.under_way))))

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for who in self.intake.late(self.now):
            self.end(who)

    def end(self, who: int) -> None:
        self.intake.under_way -= self.under_way.pop(who, 0)
        self.waiting.discard(who)
        self.intake.forget(who)
        self.wake()

    def wake(self) -> None:
        while woken := self.intake.next_to_wake():
            self.waiting -= set(woken)

    @invariant()
    def is_bounded(self) -> None:
        assert self.intake.under_way == sum(self.under_way.values())
        short_ones = self.DEVICES * (MIN_PIECE + MAX_PIECE)
        assert self.intake.under_way <= self.LIMIT // 2 + TURNS * self.LARGEST + short_ones

    @invariant()
    def a_connection_advances_unless_the_broker_takes_nothing(self) -> None:
        if self.waiting and not self.intake.is_full:
            assert len(self.intake._turns) == TURNS
            assert self.intake.under_way >= self.LIMIT // 2


TestDevices = Devices.TestCase
