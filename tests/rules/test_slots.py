"""One connection per device: the rule alone, under any sequence of events."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from cocoa_tornado.rules.slots import (
    MAX_WAITING,
    NOTHING,
    Admit,
    Refuse,
    Settlement,
    SlotLimits,
    Slots,
    Ticket,
    Wait,
)

from ..profiles import examples


def connect(slots: Slots, device_id: str = "doll", now: float = 0.0) -> Ticket:
    decision = slots.request(device_id, now)
    assert isinstance(decision, Admit)
    slots.register(decision.ticket)
    return decision.ticket


def challenge(slots: Slots, now: float = 0.0) -> Wait:
    decision = slots.request("doll", now)
    assert isinstance(decision, Wait)
    return decision


def test_a_free_slot_is_given_at_once() -> None:
    assert isinstance(Slots(SlotLimits()).request("doll", 0.0), Admit)


def test_two_devices_do_not_meet() -> None:
    slots = Slots(SlotLimits())
    connect(slots, "a")
    assert isinstance(slots.request("b", 0.0), Admit)


def test_a_newcomer_challenges_the_incumbent() -> None:
    slots = Slots(SlotLimits(challenge_s=2.0))
    incumbent = connect(slots)
    decision = challenge(slots, now=10.0)
    assert decision.ping == (incumbent,)
    assert decision.deadline == 12.0


def test_an_incumbent_that_answers_keeps_its_place() -> None:
    slots = Slots(SlotLimits())
    incumbent = connect(slots)
    newcomer = challenge(slots).ticket
    assert slots.answered(incumbent) == Settlement(refuse=(newcomer,))
    assert slots.expire("doll", 99.0) == NOTHING
    assert slots.taken("doll") == 1


def test_a_silent_incumbent_is_evicted_and_the_newcomer_admitted() -> None:
    slots = Slots(SlotLimits())
    incumbent = connect(slots)
    decision = challenge(slots)
    assert slots.expire("doll", decision.deadline) == Settlement(evict=(incumbent,), admit=(decision.ticket,))
    slots.register(decision.ticket)
    assert slots.taken("doll") == 1


def test_many_newcomers_make_one_challenge_and_one_winner() -> None:
    slots = Slots(SlotLimits())
    incumbent = connect(slots)
    first, second, third = challenge(slots), challenge(slots, 0.5), challenge(slots, 1.0)
    assert second.ping == third.ping == ()
    assert second.deadline == third.deadline == first.deadline
    settlement = slots.expire("doll", first.deadline)
    assert settlement == Settlement((incumbent,), (first.ticket,), (second.ticket, third.ticket))


def test_more_newcomers_than_may_wait_are_refused_at_once() -> None:
    slots = Slots(SlotLimits())
    connect(slots)
    for _ in range(MAX_WAITING):
        challenge(slots)
    assert slots.request("doll", 0.0) == Refuse("device")


def test_the_next_in_line_wins_where_the_first_has_left() -> None:
    slots = Slots(SlotLimits())
    incumbent = connect(slots)
    first, second = challenge(slots), challenge(slots)
    slots.release(first.ticket)
    assert slots.expire("doll", first.deadline) == Settlement((incumbent,), (second.ticket,), ())


def test_an_incumbent_that_leaves_in_the_challenge_makes_room_at_once() -> None:
    slots = Slots(SlotLimits())
    incumbent = connect(slots)
    first, second = challenge(slots), challenge(slots)
    assert slots.release(incumbent) == Settlement((), (first.ticket,), (second.ticket,))


def test_a_late_close_cannot_free_the_slot_of_the_replacement() -> None:
    slots = Slots(SlotLimits())
    incumbent = connect(slots)
    decision = challenge(slots)
    slots.expire("doll", decision.deadline)
    assert slots.release(incumbent) == NOTHING
    assert slots.taken("doll") == 1


def test_an_evicted_ticket_cannot_be_registered_again() -> None:
    slots = Slots(SlotLimits())
    incumbent = connect(slots)
    slots.expire("doll", challenge(slots).deadline)
    with pytest.raises(KeyError):
        slots.register(incumbent)


def test_a_stale_timer_does_not_settle_a_later_challenge() -> None:
    slots = Slots(SlotLimits(challenge_s=2.0))
    incumbent = connect(slots)
    challenge(slots, now=0.0)
    slots.answered(incumbent)
    challenge(slots, now=1.5)
    assert slots.expire("doll", 2.0) == NOTHING
    assert slots.expire("doll", 3.5).evict == (incumbent,)


def test_a_newcomer_is_refused_while_the_slot_is_being_handed_over() -> None:
    slots = Slots(SlotLimits())
    assert isinstance(slots.request("doll", 0.0), Admit)
    assert slots.request("doll", 0.0) == Refuse("device")


def test_the_policy_reject_challenges_nobody() -> None:
    slots = Slots(SlotLimits(policy="reject"))
    connect(slots)
    assert slots.request("doll", 0.0) == Refuse("device")


def test_a_full_gateway_refuses_new_devices_but_still_replaces_a_dead_connection() -> None:
    slots = Slots(SlotLimits(total=1))
    incumbent = connect(slots)
    assert slots.request("other", 0.0) == Refuse("full")
    decision = challenge(slots)
    assert slots.expire("doll", decision.deadline).evict == (incumbent,)
    assert len(slots) == 1


def test_draining_refuses_everybody() -> None:
    slots = Slots(SlotLimits())
    slots.draining = True
    assert slots.request("doll", 0.0) == Refuse("draining")


def test_several_slots_per_device_are_challenged_together() -> None:
    slots = Slots(SlotLimits(per_device=2))
    one, two = connect(slots), connect(slots)
    decision = challenge(slots)
    assert decision.ping == (one, two)
    assert slots.answered(one) == NOTHING
    assert slots.expire("doll", decision.deadline) == Settlement(evict=(two,), admit=(decision.ticket,))


def test_who_registers_in_the_course_of_a_challenge_is_not_evicted_by_it() -> None:
    slots = Slots(SlotLimits(per_device=2))
    first = connect(slots)
    reserved = slots.request("doll", 0.0)
    assert isinstance(reserved, Admit)
    newcomer = challenge(slots)
    assert newcomer.ping == (first,)
    slots.register(reserved.ticket)
    assert slots.answered(first) == Settlement(refuse=(newcomer.ticket,))


def test_a_released_device_leaves_nothing_behind() -> None:
    slots = Slots(SlotLimits())
    ticket = connect(slots)
    slots.release(ticket)
    assert slots.release(ticket) == NOTHING
    assert repr(slots) == "<Slots 0 taken by 0 devices>"


class SlotsMachine(RuleBasedStateMachine):
    """Connect, challenge, pong, close, late close and expiry in any order: never two, never a lost slot."""

    reserved = Bundle("reserved")
    devices = st.sampled_from(["a", "b"])

    @initialize(per_device=st.integers(1, 3), total=st.sampled_from([0, 3]))
    def start(self, per_device: int, total: int) -> None:
        self.limits = SlotLimits(per_device=per_device, total=total)
        self.slots = Slots(self.limits)
        self.now = 0.0
        self.model: dict[Ticket, str] = {}  # reserved, held or waiting; absent: gone
        self.pinged_at: dict[str, float] = {}
        self.silent: dict[str, set[Ticket]] = {}  # pinged when the device's challenge began, and not heard since

    def settle(self, settlement: Settlement) -> None:
        for ticket in settlement.evict:
            assert self.model.pop(ticket) == "held"
            assert ticket in self.silent[ticket.device_id]
            assert self.now >= self.pinged_at[ticket.device_id] + self.limits.challenge_s
        for ticket in settlement.admit:
            assert self.model[ticket] == "waiting"
            self.model[ticket] = "reserved"
        for ticket in settlement.refuse:
            assert self.model.pop(ticket) == "waiting"

    def those(self, state: str, device_id: str) -> set[Ticket]:
        return {ticket for ticket, now in self.model.items() if now == state and ticket.device_id == device_id}

    def taken(self, device_id: str) -> int:
        return sum(state != "waiting" and ticket.device_id == device_id for ticket, state in self.model.items())

    @rule(target=reserved, device_id=devices)
    def request(self, device_id: str) -> object:
        decision = self.slots.request(device_id, self.now)
        if isinstance(decision, Admit):
            assert self.taken(device_id) < self.limits.per_device
            self.model[decision.ticket] = "reserved"
            return decision.ticket
        if isinstance(decision, Wait):
            return self.begin_to_wait(decision)
        return multiple()

    def begin_to_wait(self, decision: Wait) -> Ticket:
        device_id = decision.ticket.device_id
        assert self.taken(device_id) >= self.limits.per_device
        if self.those("waiting", device_id):
            assert decision.ping == ()
        else:
            self.pinged_at[device_id] = self.now
            self.silent[device_id] = self.those("held", device_id)
            assert set(decision.ping) == self.silent[device_id] != set()
        assert decision.deadline == self.pinged_at[device_id] + self.limits.challenge_s
        self.model[decision.ticket] = "waiting"
        return decision.ticket

    @rule(target=reserved, device_id=devices)
    def fill(self, device_id: str) -> object:
        """Connect until no slot is free: else those of a device would seldom all be held, and nobody be challenged."""
        tickets = []
        while isinstance(decision := self.slots.request(device_id, self.now), Admit):
            self.slots.register(decision.ticket)
            self.model[decision.ticket] = "held"
            tickets.append(decision.ticket)
        if isinstance(decision, Wait):
            tickets.append(self.begin_to_wait(decision))
        return multiple(*tickets)

    @precondition(lambda self: "reserved" in self.model.values())
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from([ticket for ticket, state in self.model.items() if state == "reserved"]))
        self.slots.register(ticket)
        self.model[ticket] = "held"

    @precondition(lambda self: any(self.silent.values()))
    @rule(data=st.data())
    def pong(self, data: st.DataObject) -> None:
        silent = sorted(set().union(*self.silent.values()), key=lambda ticket: ticket.number)
        self.hear(data.draw(st.sampled_from(silent)))

    @rule(ticket=reserved)
    def pong_that_nobody_asked_for(self, ticket: Ticket) -> None:
        self.hear(ticket)

    def hear(self, ticket: Ticket) -> None:
        self.silent.get(ticket.device_id, set()).discard(ticket)
        self.settle(self.slots.answered(ticket))

    @rule(ticket=reserved)
    def close_now_late_or_twice(self, ticket: Ticket) -> None:
        settlement = self.slots.release(ticket)
        if ticket not in settlement.evict:
            self.model.pop(ticket, None)
        self.settle(settlement)

    @rule(device_id=devices, wait=st.sampled_from([0.5, 2.0, 5.0]))
    def expire(self, device_id: str, wait: float) -> None:
        self.now += wait
        self.settle(self.slots.expire(device_id, self.now))

    @invariant()
    def never_two_never_lost(self) -> None:
        if not hasattr(self, "slots"):
            return
        for device_id in ("a", "b"):
            assert self.slots.taken(device_id) == self.taken(device_id) <= self.limits.per_device
        assert len(self.slots) == self.taken("a") + self.taken("b")
        if self.limits.total:
            assert len(self.slots) <= self.limits.total

    def teardown(self) -> None:
        if not hasattr(self, "slots"):
            return
        for ticket in list(self.model):
            settlement = self.slots.release(ticket)
            self.model.pop(ticket, None)
            self.settle(settlement)
        for ticket in list(self.model):
            self.slots.release(ticket)
        assert repr(self.slots) == "<Slots 0 taken by 0 devices>"


SlotsMachine.TestCase.settings = examples(125, steps=40)
TestSlotsMachine = SlotsMachine.TestCase


def test_an_obstacle_is_told_without_taking_or_challenging_anything() -> None:
    slots = Slots(SlotLimits(total=1))
    assert slots.obstacle("doll") is None
    assert len(slots) == 0
    slots.request("doll", 0.0)
    assert slots.obstacle("doll") == "device"
    assert slots.obstacle("other") == "full"
    slots.draining = True
    assert slots.obstacle("doll") == "draining"
    assert len(slots) == 1
