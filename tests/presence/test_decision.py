"""What one call decides about one device."""

from __future__ import annotations

from cocoa_tornado.presence.actions import Release, Send
from cocoa_tornado.presence.decision import Decision, give_up_at
from cocoa_tornado.presence.device_slots import ClaimQueue, DeviceSlots, Slot
from cocoa_tornado.presence.grants import Grant, Lease, SlotLimits
from cocoa_tornado.relay.messages import Answer
from cocoa_tornado.rules.claims import Claim, Generation

HERE, THERE = Lease("a"), "b"
HOLDER, WAITING, FOREIGN = Claim("a", 1), Claim("a", 2), Claim(THERE, 7)


def decide(device: DeviceSlots, now: float = 100.0) -> Decision:
    return Decision("doll", device, HERE.server, HERE, SlotLimits(challenge_s=2.0), now)


def held(*challengers: Claim) -> DeviceSlots:
    device = DeviceSlots()
    device.slots.append(Slot(Grant("doll", HOLDER, Generation(1, 1), HERE), challengers))
    device.slots[0].is_held = True
    return device


def test_nothing_is_decided_about_a_device_of_which_nothing_is_known() -> None:
    decision = decide(DeviceSlots())
    decision.go_on()
    decision.evict_silent()
    decision.take_answer(Answer("doll", HOLDER, WAITING, "gone"))
    assert decision.todo == []


def test_there_is_time_for_all_rounds_of_challenges() -> None:
    assert give_up_at(100.0, SlotLimits(challenge_s=2.0)) == 106.0


def test_a_slot_that_becomes_free_is_released_before_other_servers_are_notified() -> None:
    device = held(FOREIGN)
    decision = decide(device)
    decision.free(device.slots[:])
    assert decision.todo == [Release("doll", HOLDER), Send(THERE, Answer("doll", HOLDER, FOREIGN, "gone"))]
    assert (device.slots, decision.had_slots) == ([], 1)


def test_an_answer_to_an_earlier_queue_is_ignored() -> None:
    device = DeviceSlots()
    device.queue = queue = ClaimQueue({WAITING: 100.0})
    queue.may_be_free, queue.answers = False, {FOREIGN: False}
    decision = decide(device)
    decision.take_answer(Answer("doll", FOREIGN, HOLDER, "alive"))
    assert (decision.todo, queue.answers) == ([], {FOREIGN: False})
