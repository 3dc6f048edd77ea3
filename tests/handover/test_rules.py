"""The records of a device arrive in order and none is lost, whatever moves, ends or is late (handover.rules)."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoa_tornado.handover.announcements import Announcements
from cocoa_tornado.handover.rules import BEGIN_PATIENCE_S, QUIET_S, Actions, Ask, Destinations, Phase, _Sibling

from .world import WORKERS, World, run

STEPS = 200


@given(st.integers(0, 2**32))
@settings(max_examples=100)
def test_whatever_happens_records_arrive_in_order_and_once_and_every_batch_is_done(seed: int) -> None:
    """A seed, because a random generator of hypothesis takes fifty times as long."""
    run(Random(seed), STEPS)


class NoFence(Destinations):
    """Hands over before the sibling has received what the relay has for it."""

    def _ask(self, number: int) -> Actions:
        for ask in super()._ask(number):
            assert isinstance(ask, Ask)
            self.fenced(number, ask.number)
        return []


class Hasty(Destinations):
    """Routes the records of a device that leaves a sibling before the sibling has acknowledged the earlier ones."""

    def _leave(self, device_id: str, sibling: _Sibling) -> None:
        super()._leave(device_id, sibling)
        _, _, moving = sibling.leaving.pop()
        sibling.leaving.append((0, device_id, moving))


class Forgetful(Destinations):
    """Does not route what a sibling that ends has not acknowledged."""

    def down(self, number: int) -> Actions:
        sibling = self._siblings.get(number)
        if sibling is not None:
            sibling.close()
            for portion in sibling.unacknowledged:
                for piece in portion.pieces:
                    piece.done()
            sibling.unacknowledged.clear()
        return super().down(number)


def test_a_fence_of_an_earlier_link_does_not_count() -> None:
    """Its seed is one that found it."""
    run(Random(564), STEPS)


@pytest.mark.parametrize(("fault", "seed"), [(NoFence, 7), (Hasty, 9), (Forgetful, 639)])
def test_a_planted_fault_is_found(fault: type[Destinations], seed: int) -> None:
    """The seeds are the first that find it, of 0, 1, 2 and so on."""
    run(Random(seed), STEPS)
    with pytest.raises((AssertionError, KeyError)):
        run(Random(seed), STEPS, make_rules=fault)


# One after the other. Worker 1 reads; nothing arrives before the test says so.


def quiet_world(make_announcements: type[Announcements] = Announcements) -> World:
    return World(Random(0), make_announcements=make_announcements)


def with_device_at(world: World, number: int, device_id: str = "a") -> None:
    world.move(device_id, number)
    world.settle()


def test_a_record_goes_to_the_sibling_that_has_its_device_and_past_the_relay() -> None:
    world = quiet_world()
    with_device_at(world, 2)
    world.read(1, ["a", "a"])
    assert not world.workers[1].routing
    assert world.workers[1].rules.gathered(2) == 2
    world.settle()
    assert world.devices["a"].got == [("p1", 0), ("p1", 1)]
    world.check()


class Welcoming(Announcements):
    """Takes the records of every device that is here now."""

    def strangers(self, device_ids: object, seen: int) -> list[int]:
        return super().strangers(device_ids, 2**60)  # type: ignore[arg-type]  # passed on


@pytest.mark.parametrize("announcements", [Announcements, Welcoming])
def test_records_that_were_handed_over_before_their_device_came_back_are_returned_together(
    announcements: type[Announcements],
) -> None:
    world = quiet_world(announcements)
    with_device_at(world, 2)
    for _ in range(2):
        world.read(1, ["a"])
        world.workers[1].send(2)
    world.move("a", 0)
    world.links[1, 2].popleft()  # news without content
    world.hand_over((1, 2))  # the device is not there
    world.move("a", 2)
    world.hand_over((1, 2))
    if announcements is Welcoming:
        with pytest.raises(AssertionError, match="late"):
            world.settle()
        return
    assert world.devices["a"].got == []
    world.settle()
    world.check()
    assert world.devices["a"].got == [("p1", 0), ("p1", 1)]


def test_a_sibling_that_hangs_delays_its_own_devices_and_no_others() -> None:
    world = quiet_world()
    with_device_at(world, 2, "a")
    with_device_at(world, 3, "b")
    world.read(1, ["a", "b", "c"])
    world.workers[1].send(2)
    world.workers[1].send(3)
    world.hand_over((1, 3))
    world.hand_over((1, 3))
    world.workers[1].route_all()
    assert (world.devices["a"].got, world.devices["b"].got) == ([], [("p1", 1)])
    world.kill(2)  # by the parent
    world.move("a", 1)
    world.settle()
    world.check()
    assert world.devices["a"].got == [("p1", 0)]


def test_a_record_for_everyone_waits_for_what_was_handed_over_and_nothing_is_for_a_while() -> None:
    world = quiet_world()
    with_device_at(world, 2)
    rules = world.workers[1].rules
    phases = []

    def note_phase() -> None:
        phases.append(rules.phase)

    world.read(1, ["a"])
    world.read(1, [], is_shared=True)
    world.read(1, ["a"])
    note_phase()
    assert len(world.workers[1].routing) == 0
    world.settle()
    note_phase()
    assert world.devices["a"].got == [("p1", 0), ("p1", 1), ("p1", 2)]
    world.now += QUIET_S / 2
    world.read(1, ["a"])
    assert rules.gathered(2) == 0
    world.settle()
    world.now += QUIET_S / 2
    world.read(1, ["a"])
    note_phase()
    world.settle()
    note_phase()
    assert phases == [Phase.ENDING, Phase.OFF, Phase.BEGINNING, Phase.ON]
    world.read(1, ["a"])
    assert rules.gathered(2) == 1
    world.settle()
    world.check()


def test_while_the_relay_is_unavailable_batches_wait_for_its_fence_for_a_second_at_most() -> None:
    world = quiet_world()
    with_device_at(world, 1, "here")
    with_device_at(world, 2)
    rules = world.workers[1].rules
    world.read(1, [], is_shared=True)
    world.settle()
    world.now += QUIET_S
    world.read(1, ["here"])
    got = len(world.devices["here"].got)
    world.workers[1].act(rules.look(world.now + BEGIN_PATIENCE_S / 2))
    assert not world.workers[1].routing
    world.workers[1].act(rules.look(world.now + BEGIN_PATIENCE_S))
    world.workers[1].route_all()
    assert len(world.devices["here"].got) == got + 1
    world.settle()
    world.check()


def test_a_device_that_comes_here_gets_what_was_handed_over_before_what_is_routed_here() -> None:
    world = quiet_world()
    with_device_at(world, 2)
    world.read(1, ["a"])
    world.workers[1].send(2)
    world.move("a", 1)
    world.read(1, ["a"])
    world.workers[1].route_all()
    assert world.devices["a"].got == []  # the first one is still on its way
    world.settle()
    world.check()
    assert world.devices["a"].got == [("p1", 0), ("p1", 1)]


def test_without_permission_everything_is_routed_here() -> None:
    """Devices that may have several connections."""
    world = quiet_world()
    with_device_at(world, 2)
    worker = world.workers[1]
    worker.is_allowed = False
    world.read(1, ["a"])
    assert (worker.rules.phase, worker.rules.gathered(2)) == (Phase.OFF, 0)
    world.settle()
    assert world.devices["a"].got == [("p1", 0)]


def test_all_workers_know_where_each_device_is() -> None:
    world = quiet_world()
    for number, device_id in zip(WORKERS, "abc", strict=True):
        with_device_at(world, number, device_id)
    for number in WORKERS:
        world.read(number, ["a", "b", "c"])
        assert sum(world.workers[number].rules.gathered(other) for other in WORKERS if other != number) == 2
    world.settle()
    world.check()
