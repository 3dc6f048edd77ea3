"""Who gets a slot, who waits, who must go: the rules alone, on one server and several, under any sequence of events."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cocoa_tornado.presence.actions import Acquire, Refuse, Release
from cocoa_tornado.presence.decision import ANSWER_PATIENCE_S
from cocoa_tornado.presence.grants import Grant, Lease, SlotLimits
from cocoa_tornado.presence.rules import MAX_WAITING, Slots
from cocoa_tornado.relay.messages import Answer, Challenge
from cocoa_tornado.rules.claims import Claim, Generation

from ..profiles import examples
from .world import World


def world(servers: str = "a", **limits: object) -> World:
    return World(SlotLimits(**limits), tuple(servers))  # type: ignore[arg-type]  # keywords of a test


# -- one server


def test_a_free_slot_is_given_at_once() -> None:
    here = world()
    claim = here.request()
    assert here.admitted[claim].claim == claim
    assert (here.pings, here.timers) == ([], [])


def test_only_a_device_that_nobody_else_is_after_is_claimed_without_a_request() -> None:
    slots = world(total=2).servers["a"]
    claim = slots.claim_free("doll")
    assert claim is not None
    assert slots.taken("doll") == 0, "the store may refuse it"
    slots.reserve(Grant("doll", claim, Generation(0, 1), Lease("a")))
    assert (slots.taken("doll"), len(slots)) == (1, 1)
    assert slots.claim_free("doll") is None, "it has a slot"
    slots.request("bear", 0.0)
    assert slots.claim_free("bear") is None, "a newcomer waits for the store"
    last = slots.claim_free("other")
    assert last is not None
    slots.reserve(Grant("other", last, Generation(0, 2), Lease("a")))
    assert slots.claim_free("one too many") is None
    slots.limits = SlotLimits
    slots.draining = True
    assert slots.claim_free("late") is None


def test_no_two_claims_have_the_same_name_whichever_way_they_were_made() -> None:
    slots = Slots("a", SlotLimits)
    claims = [slots.claim_free("x"), slots.request("x", 0.0)[0], slots.claim_free("y"), slots.request("z", 0.0)[0]]
    assert len(set(claims)) == 4


def test_a_slot_is_freed_without_a_release_only_where_nobody_waits_for_that() -> None:
    here = world(per_device=2)
    slots, incumbent = here.servers["a"], here.connect()
    assert not slots.free("doll", Claim("a", 99)), "not its own"
    second = here.connect()
    assert not slots.free("doll", incumbent.claim), "the device stays, with its other slot"
    here.release(second)
    here.limits = SlotLimits()
    newcomer = here.request()
    assert not slots.free("doll", incumbent.claim), "a newcomer waits"
    here.release(incumbent)
    admitted = here.admitted[newcomer]
    assert slots.free("doll", admitted.claim)
    assert not slots.free("doll", admitted.claim)
    assert repr(slots) == "<Slots 0 taken, 0 devices>"


def test_a_slot_is_not_freed_without_a_release_where_a_newcomer_elsewhere_waits_for_it() -> None:
    both = world("ab")
    incumbent = both.connect(server="a")
    both.request(server="b")
    both.deliver_all()
    assert not both.servers["a"].free("doll", incumbent.claim)


def test_two_devices_do_not_meet() -> None:
    here = world()
    here.connect("x")
    here.connect("y")
    assert here.refused == {}


def test_every_admission_has_a_greater_generation() -> None:
    here = world()
    first = here.connect("x")
    here.release(first)
    assert first.generation < here.connect("y").generation < here.connect("x").generation


def test_a_newcomer_challenges_the_incumbent() -> None:
    here = world(challenge_s=2.0)
    incumbent = here.connect()
    here.now = 10.0
    here.request()
    assert here.pings == [(incumbent,)]
    assert here.timers == [(12.0, "a", "doll"), (16.0, "a", "doll")], "the challenge, and the whole wait"


def test_an_incumbent_that_answers_keeps_its_slot() -> None:
    here = world()
    incumbent = here.connect()
    newcomer = here.request()
    here.answer(incumbent)
    assert here.refused == {newcomer: "device"}
    here.wait(99.0)
    assert (here.evicted, here.servers["a"].taken("doll")) == ([], 1)


def test_a_silent_incumbent_is_evicted_and_the_newcomer_admitted() -> None:
    here = world()
    incumbent = here.connect()
    newcomer = here.request()
    here.wait(1.9)
    assert here.evicted == []
    here.wait(0.1)
    assert here.evicted == [incumbent]
    here.register(here.admitted[newcomer])
    assert here.servers["a"].taken("doll") == 1


def test_many_newcomers_make_one_challenge_and_one_winner() -> None:
    here = world()
    incumbent = here.connect()
    first = here.request()
    here.wait(0.5)
    second, third = here.request(), here.request()
    assert here.pings == [(incumbent,)]
    here.wait(1.5)
    assert here.evicted == [incumbent]
    assert first in here.admitted
    assert here.refused == {second: "device", third: "device"}


def test_more_newcomers_than_may_wait_are_refused_at_once() -> None:
    here = world()
    here.connect()
    for _ in range(MAX_WAITING):
        here.request()
    assert here.refused == {}
    assert here.request() in here.refused


def test_the_next_in_line_wins_where_the_first_has_left() -> None:
    here = world()
    incumbent = here.connect()
    first, second = here.request(), here.request()
    here.withdraw(first)
    here.wait(2.0)
    assert (here.evicted, second in here.admitted, here.refused) == ([incumbent], True, {})


def test_an_incumbent_that_leaves_in_the_challenge_makes_room_at_once() -> None:
    here = world()
    incumbent = here.connect()
    first, second = here.request(), here.request()
    here.release(incumbent)
    assert first in here.admitted
    assert here.refused == {second: "device"}


def test_where_all_newcomers_have_left_a_silent_incumbent_stays() -> None:
    here = world()
    here.connect()
    here.withdraw(here.request())
    here.wait(2.0)
    assert (here.evicted, len(here.servers["a"])) == ([], 1)


def test_a_late_close_cannot_free_the_slot_of_the_replacement() -> None:
    here = world()
    incumbent = here.connect()
    newcomer = here.request()
    here.wait(2.0)
    here.release(incumbent)
    assert here.servers["a"].grants("doll") == [here.admitted[newcomer]]
    assert here.table.grants("doll") == (here.admitted[newcomer],)


def test_an_evicted_grant_cannot_be_registered_again() -> None:
    here = world()
    incumbent = here.connect()
    here.request()
    here.wait(2.0)
    with pytest.raises(KeyError):
        here.register(incumbent)


def test_a_stale_timer_does_not_settle_a_later_challenge() -> None:
    here = world(challenge_s=2.0)
    incumbent = here.connect()
    here.request()
    here.answer(incumbent)
    here.now = 1.5
    here.request()
    here.wait(0.5)
    assert here.evicted == []
    here.wait(1.5)
    assert here.evicted == [incumbent]


def test_a_newcomer_is_refused_while_the_slot_is_being_handed_over() -> None:
    here = world()
    here.request()
    newcomer = here.request()
    assert (here.refused, here.pings) == ({newcomer: "device"}, [])


def test_the_policy_reject_challenges_nobody() -> None:
    here = world(policy="reject")
    here.connect()
    newcomer = here.request()
    assert (here.refused, here.pings) == ({newcomer: "device"}, [])


def test_a_full_server_refuses_new_devices_but_still_replaces_a_dead_connection() -> None:
    here = world(total=1)
    incumbent = here.connect()
    other = here.request("other")
    assert here.refused == {other: "full"}
    here.request()
    here.wait(2.0)
    assert (here.evicted, len(here.servers["a"])) == ([incumbent], 1)


def test_draining_refuses_everybody() -> None:
    here = world()
    here.servers["a"].draining = True
    assert here.refused == {here.request(): "draining"}


def test_several_slots_of_a_device_are_challenged_together() -> None:
    here = world(per_device=2)
    one, two = here.connect(), here.connect()
    newcomer = here.request()
    assert here.pings == [(one, two)]
    here.answer(one)
    assert here.refused == {}
    here.wait(2.0)
    assert (here.evicted, newcomer in here.admitted) == ([two], True)


def test_a_newcomer_goes_on_waiting_while_a_connection_of_its_device_has_not_answered() -> None:
    here = world(per_device=2)
    one, two = here.connect(), here.connect()
    first, second = here.request(), here.request()
    here.release(one)
    assert first in here.admitted
    assert here.refused == {}
    here.wait(2.0)
    assert (here.evicted, second in here.admitted) == ([two], True)


def test_who_registers_in_the_course_of_a_challenge_is_not_evicted_by_it() -> None:
    here = world(per_device=2)
    first = here.connect()
    reserved = here.admitted[here.request()]
    newcomer = here.request()
    assert here.pings == [(first,)]
    here.register(reserved)
    here.answer(first)
    assert here.refused == {newcomer: "device"}


def test_a_released_device_leaves_nothing_behind() -> None:
    here = world()
    grant = here.connect()
    here.release(grant)
    here.release(grant)
    assert repr(here.servers["a"]) == "<Slots 0 taken, 0 devices>"
    assert repr(here.table) == "<Table 0 devices, 1 servers>"


def test_an_obstacle_is_told_without_taking_or_challenging_anything() -> None:
    here = world(total=1)
    slots = here.servers["a"]
    assert slots.obstacle("doll") is None
    assert len(slots) == 0
    here.request()
    assert slots.obstacle("doll") == "device"
    assert slots.obstacle("other") == "full"
    slots.draining = True
    assert slots.obstacle("doll") == "draining"
    assert len(slots) == 1


# -- several servers


def test_a_duplicate_at_another_server_is_refused_on_the_word_of_the_holders_server() -> None:
    both = world("ab")
    incumbent = both.connect(server="a")
    newcomer = both.request(server="b")
    assert both.pings == []
    both.deliver_all()
    assert both.pings == [(incumbent,)]
    both.answer(incumbent)
    assert both.refused == {}
    both.deliver_all()
    assert both.refused == {newcomer: "device"}


def test_a_silent_incumbent_is_evicted_by_its_own_server_before_the_newcomer_elsewhere_is_admitted() -> None:
    both = world("ab")
    incumbent = both.connect(server="a")
    newcomer = both.request(server="b")
    both.deliver_all()
    both.wait(2.0)
    assert (both.evicted, newcomer in both.admitted) == ([incumbent], False)
    both.deliver_all()
    assert both.admitted[newcomer].generation > incumbent.generation


def test_a_challenge_of_what_has_left_is_answered_at_once() -> None:
    both = world("ab")
    incumbent = both.connect(server="a")
    newcomer = both.request(server="b")
    both.release(incumbent)
    both.deliver_all()
    assert newcomer in both.admitted


def test_a_challenge_of_an_upgrade_under_way_waits_for_its_end() -> None:
    both = world("ab")
    under_way = both.admitted[both.request(server="a")]
    newcomer = both.request(server="b")
    both.deliver_all()
    assert (both.pings, both.sent) == ([], both.sent.__class__())
    both.register(under_way)
    both.deliver_all()
    assert both.refused == {newcomer: "device"}


def test_newcomers_of_two_servers_join_one_challenge_and_one_wins() -> None:
    three = world("abc")
    incumbent = three.connect(server="a")
    newcomers = [three.request(server=server) for server in "abc"]
    three.deliver_all()
    assert three.pings == [(incumbent,)]
    three.wait(2.0)
    three.deliver_all()
    assert [claim in three.admitted for claim in newcomers] == [True, False, False]
    three.register(three.admitted[newcomers[0]])
    three.deliver_all()
    assert [three.refused.get(claim) for claim in newcomers] == [None, "device", "device"]


def test_where_a_challengers_own_newcomer_leaves_the_other_servers_challenge_goes_on() -> None:
    both = world("ab")
    incumbent = both.connect(server="a")
    elsewhere = both.request(server="b")
    both.deliver_all()
    both.withdraw(both.request(server="a"))
    both.wait(2.0)
    both.deliver_all()
    assert (both.evicted, elsewhere in both.admitted) == ([incumbent], True)


def test_a_server_that_does_not_answer_makes_it_unknown_and_not_a_duplicate() -> None:
    both = world("ab")
    both.connect(server="a")
    newcomer = both.request(server="b")
    both.sent.clear()  # lost on its way
    both.wait(2.0 + ANSWER_PATIENCE_S)
    assert both.refused == {newcomer: "presence"}


def test_where_no_answer_came_but_the_device_is_free_by_now_the_newcomer_is_admitted() -> None:
    both = world("ab")
    incumbent = both.connect(server="a")
    newcomer = both.request(server="b")
    both.deliver()
    both.release(incumbent)
    both.sent.clear()
    both.wait(2.0 + ANSWER_PATIENCE_S)
    assert newcomer in both.admitted


def test_a_server_that_has_ended_is_not_waited_for() -> None:
    both = world("ab")
    both.connect(server="a")
    newcomer = both.request(server="b")
    challenge = both.sent.popleft().message
    both.table.end("a")
    assert isinstance(challenge, Challenge)
    both.carry_out("b", both.servers["b"].unreachable(challenge, both.now))
    assert newcomer in both.admitted


def test_a_server_that_has_ended_and_is_not_fenced_yet_costs_two_attempts() -> None:
    both = world("ab")
    both.connect(server="a")
    newcomer = both.request(server="b")
    for _ in range(2):
        challenge = both.sent.popleft().message
        assert isinstance(challenge, Challenge)
        both.carry_out("b", both.servers["b"].unreachable(challenge, both.now))
    assert both.refused == {newcomer: "presence"}


def test_an_answer_to_an_earlier_challenge_is_ignored() -> None:
    both = world("ab")
    incumbent = both.connect(server="a")
    first = both.request(server="b")
    both.withdraw(first)
    second = both.request(server="b")
    both.carry_out("b", both.servers["b"].heard(Answer("doll", incumbent.claim, first, "alive"), both.now))
    assert both.refused == {}
    both.carry_out("b", both.servers["b"].heard(Answer("doll", incumbent.claim, second, "alive"), both.now))
    assert both.refused == {second: "device"}


def test_a_full_server_gives_back_what_another_has_let_go_for_it() -> None:
    both = world("ab", total=1)
    incumbent = both.connect(server="a")
    newcomer = both.request(server="b")
    both.deliver_all()
    both.connect("other", server="b")
    both.release(incumbent)
    both.deliver_all()
    assert both.refused == {newcomer: "full"}
    assert both.table.grants("doll") == ()


def test_a_challenge_that_overtakes_the_stores_answer_waits_for_the_newcomer_it_names() -> None:
    """The challenger has been told of a grant that its own server has not heard of: it must not be given away."""
    slots = Slots("a", SlotLimits)
    claim, _ = slots.request("doll", 0.0)  # the store's answer is under way
    challenge = Challenge("doll", claim, Claim("b", 1))
    assert slots.challenged(challenge, 0.1) == []
    grant = Grant("doll", claim, Generation(0, 1), World().table._leases["a"])
    slots.granted(grant, 0.2)
    (told,) = slots.register(grant, 0.3)
    assert told.message == Answer("doll", claim, challenge.challenger, "alive")  # type: ignore[union-attr]


def test_a_grant_that_nobody_waits_for_any_more_is_given_back() -> None:
    slots = Slots("a", SlotLimits)
    claim, _ = slots.request("doll", 0.0)
    assert slots.withdraw("doll", claim, 0.1) == []
    grant = Grant("doll", claim, Generation(0, 1), World().table._leases["a"])
    assert [type(action).__name__ for action in slots.granted(grant, 0.2)] == ["Release"]
    assert repr(slots) == "<Slots 0 taken, 0 devices>"


def test_where_the_store_does_not_answer_the_newcomer_is_refused_and_the_next_one_asks() -> None:
    slots = Slots("a", SlotLimits)
    first, _ = slots.request("doll", 0.0)
    second, _ = slots.request("doll", 0.1)
    assert slots.undecided("doll", first, 1.0) == [
        Release("doll", first),
        Refuse(first, "presence"),
        Acquire("doll", second),
    ]
    assert slots.undecided("doll", first, 1.0) == []


def test_a_lost_lease_takes_every_slot_and_refuses_who_waits() -> None:
    here = world()
    grant = here.connect()
    newcomer = here.request()
    assert here.servers["a"].lose_all("a2") == [Refuse(newcomer, "presence")]
    assert len(here.servers["a"]) == 0
    assert here.servers["a"].release("doll", grant.claim, 0.0) == []
    claim, _ = here.servers["a"].request("doll", 0.0)
    assert claim.server == "a2"


class PresenceMachine(RuleBasedStateMachine):
    """Connect, challenge, pong, close, late close, timers and messages in any order, on one to three servers.

    Never two, never a lost slot; nobody is evicted who has answered, and no newcomer waits without end, nor while a
    slot is free.
    """

    is_far = False

    devices = st.sampled_from(["x", "y"])
    servers = st.integers(0, 2)

    @initialize(
        count=st.integers(1, 3), per_device=st.integers(1, 3), total=st.sampled_from([0, 0, 4]), is_quick=st.booleans()
    )
    def start(self, count: int, per_device: int, total: int, is_quick: bool) -> None:
        self.limits = SlotLimits(per_device=per_device, total=total)
        self.world = World(self.limits, tuple("abc"[:count]), is_far=self.is_far, is_quick=is_quick)
        self.device_of: dict[Claim, str] = {}
        self.asked_at: dict[Claim, float] = {}
        self.left: set[Claim] = set()  # new connections that have withdrawn
        self.held: set[Grant] = set()
        self.old: list[Grant] = []  # every grant so far
        self.pinged: dict[Grant, float] = {}  # and not heard since
        self.has_lost = False  # a message between servers
        self.pings_seen = self.evictions_seen = 0

    def observe(self) -> None:
        """Judge what the last event has brought about."""
        world = self.world
        for grant in world.evicted[self.evictions_seen :]:
            assert grant in self.held, "only a connection is evicted"
            assert world.now >= self.pinged[grant] + self.limits.challenge_s, "and only after its time"
            self.held.discard(grant)
        self.evictions_seen = len(world.evicted)
        for grants in world.pings[self.pings_seen :]:
            for grant in grants:
                self.pinged[grant] = world.now
        self.pings_seen = len(world.pings)
        self.old += [grant for claim, grant in world.admitted.items() if grant not in self.old]

    def reserved(self) -> list[Grant]:
        return [grant for grant in self.old if self.has_slot(grant) and grant not in self.held]

    def has_slot(self, grant: Grant) -> bool:
        return grant in self.world.servers[grant.claim.server].grants(grant.device_id)

    def waiting(self) -> list[Claim]:
        decided = self.world.admitted.keys() | self.world.refused.keys() | self.left
        return [claim for claim in self.device_of if claim not in decided]

    @rule(device_id=devices, server=servers)
    def request(self, device_id: str, server: int) -> None:
        names = self.world.names
        claim = self.world.request(device_id, names[server % len(names)])
        self.device_of[claim], self.asked_at[claim] = device_id, self.world.now
        self.observe()

    @rule(device_id=devices, server=servers)
    def connect_until_refused_or_waiting(self, device_id: str, server: int) -> None:
        """Else those of a device would seldom all be held, and nobody be challenged."""
        for _ in range(self.limits.per_device + 1):
            self.request(device_id, server)
            for grant in self.reserved():
                self.world.register(grant)
                self.held.add(grant)
            self.observe()

    @precondition(lambda self: self.reserved())
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(self.reserved()))
        self.world.register(grant)
        self.held.add(grant)
        self.observe()

    @precondition(lambda self: self.pinged)
    @rule(data=st.data())
    def pong(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(sorted(self.pinged, key=lambda grant: grant.generation)))
        del self.pinged[grant]
        self.world.answer(grant)
        self.observe()

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def close_now_late_or_twice(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(self.old))
        self.held.discard(grant)
        self.world.release(grant)
        assert not self.has_slot(grant)
        self.observe()

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def leave_the_line(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.waiting()))
        self.left.add(claim)
        self.world.withdraw(claim, self.device_of[claim])
        self.observe()

    @precondition(lambda self: self.world.sent)
    @rule(all_of_them=st.booleans())
    def a_message_arrives(self, all_of_them: bool) -> None:
        self.world.deliver()
        while all_of_them and self.world.sent:
            self.world.deliver()
        self.observe()

    @precondition(lambda self: self.world.sent)
    @rule()
    def a_message_is_lost(self) -> None:
        self.world.sent.popleft()
        self.has_lost = True

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.wait(seconds)
        self.observe()

    @rule(device_id=devices, server=servers)
    def a_timer_of_an_earlier_challenge_fires(self, device_id: str, server: int) -> None:
        name = self.world.names[server % len(self.world.names)]
        self.world.carry_out(name, self.world.servers[name].expire(device_id, self.world.now))
        self.observe()

    @invariant()
    def never_two_and_never_lost(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        for device_id in ("x", "y"):
            here = {grant for slots in world.servers.values() for grant in slots.grants(device_id)}
            stored = set(world.table.grants(device_id))
            assert here <= stored
            assert len(stored) <= self.limits.per_device
            assert here == stored or not self.is_at_rest(), "nobody keeps what no server knows of"
        for slots in world.servers.values():
            assert len(slots) == slots.taken("x") + slots.taken("y")
            assert not self.limits.total or len(slots) <= self.limits.total
        assert all(map(self.has_slot, self.held)), "a connection keeps its slot until it ends or is evicted"

    def is_at_rest(self) -> bool:
        """Nothing is under way to the store or from it."""
        return not any(self.world.asked.values()) and not any(self.world.replies.values())

    @invariant()
    def nobody_waits_for_a_slot_that_is_free(self) -> None:
        if hasattr(self, "world") and self.is_at_rest() and not self.world.sent and not self.has_lost:
            for claim in self.waiting():
                assert len(self.world.table.grants(self.device_of[claim])) >= self.limits.per_device

    @invariant()
    def every_newcomer_is_decided_in_time(self) -> None:
        if not hasattr(self, "world") or self.is_far:  # a store that says nothing leaves them waiting
            return
        patience = 2 * (self.limits.challenge_s + ANSWER_PATIENCE_S) + 5.0  # two rounds, and a step of the clock
        for claim in self.waiting():
            assert self.world.now - self.asked_at[claim] <= patience

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for _ in range(4):
            self.world.serve_all()
            self.world.deliver_all()
            self.world.wait(self.limits.challenge_s + ANSWER_PATIENCE_S)
        assert self.waiting() == [], "once everybody answers, all newcomers are decided"
        for grant in [grant for slots in self.world.servers.values() for d in "xy" for grant in slots.grants(d)]:
            self.world.release(grant)
        self.world.deliver_all()
        self.world.serve_all()
        for slots in self.world.servers.values():
            assert repr(slots) == "<Slots 0 taken, 0 devices>"
        assert repr(self.world.table).startswith("<Table 0 devices")


PresenceMachine.TestCase.settings = examples(100, steps=40)
TestPresenceMachine = PresenceMachine.TestCase


class FarStoreMachine(PresenceMachine):
    """The same with a store that hears and answers late, and whose answers may get lost: messages overtake them."""

    is_far = True

    @precondition(lambda self: any(self.world.asked.values()))
    @rule(data=st.data())
    def the_store_hears(self, data: st.DataObject) -> None:
        self.world.serve(data.draw(st.sampled_from([name for name in self.world.names if self.world.asked[name]])))
        self.observe()

    @precondition(lambda self: any(self.world.replies.values()))
    @rule(data=st.data(), arrives=st.sampled_from([True, True, True, False]))
    def an_answer_of_the_store_arrives_or_is_lost(self, data: st.DataObject, arrives: bool) -> None:
        name = data.draw(st.sampled_from([name for name in self.world.names if self.world.replies[name]]))
        if arrives:
            self.world.reply(name)
        else:
            self.world.give_up(name)
        self.observe()

    @precondition(lambda self: any(self.world.replies.values()))
    @rule(data=st.data())
    def an_answer_of_the_store_takes_long(self, data: st.DataObject) -> None:
        self.world.ask_again(
            data.draw(st.sampled_from([name for name in self.world.names if self.world.replies[name]]))
        )
        self.observe()

    @precondition(lambda self: len(self.world.names) > 1)
    @rule(device_id=PresenceMachine.devices)
    def a_second_server_is_told_of_what_the_first_has_not_heard(self, device_id: str) -> None:
        """Else the races for a device that nobody holds would be rare."""
        first, second = self.world.names[:2]
        for at, name in enumerate((first, second)):
            self.request(device_id, at)
            while self.world.asked[name]:
                self.world.serve(name)
        while self.world.replies[second]:
            self.world.reply(second)
        self.observe()

    @rule()
    def the_store_catches_up(self) -> None:
        self.world.serve_all()
        self.observe()


FarStoreMachine.TestCase.settings = examples(100, steps=50)
TestFarStoreMachine = FarStoreMachine.TestCase
