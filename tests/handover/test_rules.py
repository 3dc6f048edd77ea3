"""The records of a device arrive in order and none is lost, while devices move and siblings end or are late
(handover.rules)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, repeat
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoa_tornado.handover.announcements import Announcements
from cocoa_tornado.handover.pieces import Delivery
from cocoa_tornado.handover.portions import MOST_RECORDS
from cocoa_tornado.handover.routes import BEGIN_PATIENCE_S, QUIET_S, Route
from cocoa_tornado.handover.rules import Actions, Ask, Destinations, Phase
from cocoa_tornado.handover.siblings import Sibling
from cocoa_tornado.routing.address import Address, Group
from cocoa_tornado.rules.records import Record

from .world import WORKERS, World, run

STEPS = 200


@given(st.integers(0, 2**32))
@settings(max_examples=100)
def test_whatever_happens_records_arrive_in_order_and_once_and_every_batch_is_done(seed: int) -> None:
    """A seed, because a random generator of hypothesis takes fifty times as long."""
    run(Random(seed), STEPS)


@given(st.integers(0, 2**32))
@settings(max_examples=50)
def test_the_same_holds_while_leases_end_and_become_valid_again(seed: int) -> None:
    run(Random(seed), STEPS, with_outages=True)


class NoFence(Destinations):
    """Hands over before the sibling has received what the relay has for it."""

    def _ask(self, number: int) -> Actions:
        for ask in super()._ask(number):
            assert isinstance(ask, Ask)
            self.fenced(number, ask.number)
        return []


class Hasty(Destinations):
    """Routes the records of a device that leaves a sibling before the sibling has acknowledged the earlier ones."""

    def _leave(self, device_id: str, sibling: Sibling) -> None:
        super()._leave(device_id, sibling)
        _, mover = sibling.leaving.pop()
        sibling.leaving.append((0, mover))


class Forgetful(Destinations):
    """Does not route what a sibling that ends has not acknowledged."""

    def down(self, number: int) -> Actions:
        sibling = self._siblings.get(number)
        if sibling is not None:
            for portion in sibling.portions.take_back():
                for piece in portion.pieces:
                    piece.done()
        return super().down(number)


def test_a_fence_of_an_earlier_link_does_not_count() -> None:
    """Its seed is one that found it."""
    run(Random(564), STEPS)


@pytest.mark.parametrize(("fault", "seed"), [(NoFence, 7), (Hasty, 12), (Forgetful, 639)])
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

    def to_return(self, device_ids: object, seen: int) -> list[int]:
        return super().to_return(device_ids, 2**60)  # type: ignore[arg-type]  # passed on


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


class Impatient(Announcements):
    """Takes records again at once, though the sibling has not heard of those that were returned."""

    def resume(self) -> None:
        super().resume()
        self._taken_since = 0


@pytest.mark.parametrize("announcements", [Announcements, Impatient])
def test_records_that_were_handed_over_before_the_lease_became_valid_again_are_returned_together(
    announcements: type[Announcements],
) -> None:
    world = quiet_world(announcements)
    with_device_at(world, 2)
    for _ in range(2):
        world.read(1, ["a"])
        world.workers[1].send(2)
    world.workers[2].change_lease()
    world.links[1, 2].popleft()  # news without content
    world.hand_over((1, 2))
    world.workers[2].change_lease()
    world.hand_over((1, 2))  # likewise
    world.hand_over((1, 2))
    if announcements is Impatient:
        with pytest.raises(AssertionError, match="late"):
            world.settle()
        return
    assert world.devices["a"].got == []
    world.settle()
    world.check()
    assert world.devices["a"].got == [("p1", 0), ("p1", 1)]
    world.read(1, ["a"])
    assert world.workers[1].rules.gathered(2) == 1


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


def test_nothing_waits_for_a_relay_that_is_known_to_be_unavailable() -> None:
    world = quiet_world()
    with_device_at(world, 2)
    rules = world.workers[1].rules
    world.read(1, [], is_shared=True)
    world.settle()
    assert rules.phase is Phase.OFF
    at = world.now + QUIET_S
    assert [type(action) for action in rules.take(delivery(["a"]), at, may_begin=False)] == [Route]
    assert (rules.phase, rules.take(delivery(["a"]), at)) == (Phase.OFF, [])


def test_after_a_beginning_that_has_failed_the_next_one_comes_later() -> None:
    """The relay passes nothing on, though it does not know yet."""
    here = {"here"}
    rules, now = Destinations(here), 0.0
    rules.up(2)
    rules.announced(2, 1, ["a"], [])

    def read() -> bool:
        """Whether a batch is routed at once."""
        routes = [action for action in rules.take(delivery(["here"]), now) if isinstance(action, Route)]
        for route in routes:
            rules.routed(route.number)
        return bool(routes)

    rules.take(delivery([Group("all")]), now)
    rules.routed(rules._routes.last)
    failures: list[float] = []
    while now < 200.0:
        now += 0.5
        for action in rules.look(now):
            assert isinstance(action, Route)
            rules.routed(action.number)
        if read() is False and (not failures or now - failures[-1] > BEGIN_PATIENCE_S):
            failures.append(now)
    gaps = [later - earlier for earlier, later in pairwise(failures)]
    assert gaps == [3.0, 5.0, 9.0, 17.0, 33.0, 61.0, 61.0]


def test_a_sibling_that_returns_records_and_receives_no_fence_does_not_keep_its_devices_waiting() -> None:
    """Only this worker is cut off from Redis. Its device reconnects elsewhere meanwhile."""
    here: set[str] = set()
    rules = Destinations(here)
    done: list[int] = []
    actions = [*rules.up(2), *rules.announced(2, 1, ["a"], [])]
    (ask,) = actions
    assert isinstance(ask, Ask)
    rules.fenced(2, ask.number)
    rules.take(delivery(["a"], lambda: done.append(1)), 0.0)
    (portion,) = rules.portions(2)
    (route, *_) = rules.acknowledged(2, portion.number, {portion.number: [0]})
    assert isinstance(route, Route)
    rules.routed(route.number)
    assert rules.take(delivery(["a"], lambda: done.append(2)), 1.0) == []
    here.add("a")
    assert [*rules.arrived("a"), *rules.announced(2, 2, [], ["a"]), *rules.look(1.0)] == []
    for action in rules.look(1.0 + BEGIN_PATIENCE_S):
        assert isinstance(action, Route)
        rules.routed(action.number)
    assert done == [1, 2]
    assert rules.phase is Phase.OFF
    (route,) = rules.take(delivery(["a"], lambda: done.append(3)), 2.5)
    assert isinstance(route, Route), "what comes next does not wait at all"


def test_a_sibling_that_hangs_while_a_device_joins_it_lets_no_others_wait() -> None:
    rules = Destinations(set())
    done: list[int] = []
    (ask,) = [*rules.up(2), *rules.announced(2, 1, ["a"], [])]
    assert isinstance(ask, Ask)
    rules.fenced(2, ask.number)
    rules.take(delivery(["a"], lambda: done.append(1)), 0.0)
    assert len([*rules.portions(2)]) == 1
    (ask,) = rules.announced(2, 2, ["b"], [])
    assert isinstance(ask, Ask)
    for now in (1.0, 1.5, 2.0, 2.5, 3.0):
        assert rules.look(now) == []
        (route,) = rules.take(delivery(["here"], lambda: done.append(2)), now)
        assert isinstance(route, Route), now
        rules.routed(route.number)
    for action in rules.down(2):
        assert isinstance(action, Route)
        rules.routed(action.number)
    assert done == [2, 2, 2, 2, 2, 1]


def test_a_route_at_which_the_router_fails_delays_no_device_that_joins_a_sibling() -> None:
    here: set[str] = set()
    rules = Destinations(here)
    rules.up(2)
    done: list[str] = []
    (route,) = rules.take(delivery(["a"], lambda: done.append("done")), 0.0)
    assert isinstance(route, Route)
    assert rules.announced(2, 1, ["b"], []) == []
    assert rules.failed(route.number) == [Ask(2, 1)]
    rules.fenced(2, 1)
    assert rules.take(delivery(["b"]), 0.0) == []
    assert (rules.gathered(2), done) == (1, [])


def test_a_device_leaves_a_sibling_after_all_portions_that_its_records_have_filled() -> None:
    rules = Destinations(set())
    rules.up(2)
    rules.announced(2, 1, ["a"], [])
    rules.fenced(2, 1)
    rules.take(delivery(["a"] * (2 * MOST_RECORDS + 1)), 0.0)
    rules.announced(2, 2, [], ["a"])
    assert rules.take(delivery(["a"]), 0.0) == []
    assert len(list(rules.portions(2))) == 3
    assert rules.acknowledged(2, 2, {}) == []
    assert [type(action) for action in rules.acknowledged(2, 3, {})] == [Route]


@pytest.mark.parametrize("is_fenced", [True, False])
def test_records_of_a_partition_that_has_moved_follow_those_in_the_relay(is_fenced: bool) -> None:
    """Worker 1 has read the first one, and committed it: it is in the inbox of worker 2."""
    world = quiet_world()
    with_device_at(world, 2)
    world.changes_at = {
        ("p", offset): {name: device.changes for name, device in world.devices.items()} for offset in (0, 1)
    }
    for number, offset, is_allowed in ((1, 0, False), (3, 1, not is_fenced)):
        worker = world.workers[number]
        moved = Delivery([Record("a", b"{}", 0)], [offset], [("p", 1)], lambda: None)
        worker.act(worker.rules.take(moved, world.now, is_allowed=is_allowed))
        worker.route_all()
    assert world.workers[3].rules.gathered(2) == (not is_fenced)
    if is_fenced:
        world.settle()
        assert world.devices["a"].got == [("p", 0), ("p", 1)]
        return
    world.workers[3].send(2)
    world.hand_over((3, 2))
    world.hand_over((3, 2))
    with pytest.raises(AssertionError, match="too late"):
        world.settle()


def test_a_beginning_is_given_up_if_a_partition_comes_meanwhile() -> None:
    """What its earlier owner has put into the relay may be behind the fence."""
    rules = Destinations(set())
    rules.up(2)
    rules.announced(2, 1, ["a"], [])
    for action in rules.take(delivery(["a"]), 0.0, is_allowed=False):
        assert isinstance(action, Route)
        rules.routed(action.number)
    assert rules.take(delivery(["a"]), QUIET_S) == [Ask(2, 2)]
    assert [type(action) for action in rules.take(delivery(["a"]), QUIET_S, is_allowed=False)] == [Route, Route]
    assert (rules.phase, rules.fenced(2, 2)) == (Phase.OFF, [])


def delivery(
    addresses: Sequence[Address], on_done: Callable[[], None] = lambda: None, sizes: Sequence[int] | None = None
) -> Delivery:
    """:param sizes: of the payloads"""
    records = [Record(address, b"x" * size, 0) for address, size in zip(addresses, sizes or repeat(2), strict=False)]
    return Delivery(records, range(len(records)), [("p", len(records))], on_done)


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
