"""Coincidences that random walks rarely meet, step by step: with the unchanged rules, and with one removed, to show
that the steps need it."""

from __future__ import annotations

import pytest

from cocoa_tornado.presence.grants import SlotLimits
from cocoa_tornado.presence.rules import Slots

from .simulator.faults import IgnoringWaitingClaims
from .simulator.walk import Walk
from .world import World


def scene(planted: str) -> Walk:
    """Servers A and B, and a settled term."""
    walk = Walk(1, planted, is_scripted=True)
    walk.run(0.5)
    walk.settle()
    walk.run(2.5)
    return walk


def connection_under_the_lease_of_another_epoch(planted: str) -> dict[str, str]:
    """A is cut off, fenced, and joins the next term while B, which has the device by now, has not joined it yet."""
    walk = scene(planted)
    a, b = walk.servers
    old = walk.connect(a)
    walk.run(3.0)
    walk.cut(a, 12.0)
    walk.run(13.0)
    new = walk.connect(b)
    walk.run(14.0)
    assert (old.state, new.state) == ("open", "open")
    walk.restart_redis(0.1, None)
    walk.run(30.0)
    assert planted or (old.state, new.state) == ("ended", "open")
    return walk.oracle.faults


def connection_that_was_fenced_in_what_redis_has_lost(planted: str) -> dict[str, str]:
    """A holds the device in a state that Redis falls back to, and is the first to join the next term."""
    walk = scene(planted)
    a, b = walk.servers
    old = walk.connect(a)
    walk.run(3.0)
    saved = walk.process.data.copy()
    walk.cut(a, 11.0)
    walk.run(13.0)
    new = walk.connect(b)
    walk.run(14.0)
    walk.restart_redis(0.1, saved)
    walk.cut(b, 3.5)
    walk.run(40.0)
    assert planted or [old.state, new.state].count("open") == 1
    return walk.oracle.faults


def claim_that_was_disowned_and_is_granted_again(rules: type[Slots]) -> int:
    """Two copies of a claim of B: the first one is refused, so B challenges A; the second one is granted, so that A
    challenges B for it. Returns how many hold the device at the end."""
    here = World(SlotLimits(), ("a", "b"), is_far=True)
    here.servers = {name: rules(name, lambda: here.limits) for name in here.names}
    first = here.request(server="a")
    here.serve_all()
    incumbent = here.admitted[first]
    here.register(incumbent)

    here.request(server="b")
    here.serve("b")
    here.ask_again("b")
    here.reply("b")  # held by a: challenge it
    here.release(incumbent)
    here.serve("a")
    here.serve("b")  # the second copy is granted, and its answer takes long
    here.request(server="a")
    here.serve("a")
    here.reply("a")  # held by b: challenge it
    here.sent.rotate()
    here.deliver()  # to b, which is still waiting for a's answer
    here.deliver()  # to a
    here.reply("b")
    here.deliver_all()
    while here.asked["b"]:
        here.serve("b")  # what it gives back, if it does, before anything that a asks
    here.serve_all()
    here.deliver_all()
    for grant in list(here.admitted.values()):
        if grant is not incumbent and here.servers[grant.claim.server].grant_of("doll", grant.claim) is not None:
            here.register(grant)
    here.deliver_all()
    here.serve_all()
    here.deliver_all()
    here.serve_all()
    return sum(slots.taken("doll") for slots in here.servers.values())


@pytest.mark.parametrize(("planted", "found"), [("", set()), ("lease", {"P2 acts when superseded"})])
def test_a_connection_acts_only_under_the_lease_that_it_was_granted_under(planted: str, found: set[str]) -> None:
    assert set(connection_under_the_lease_of_another_epoch(planted)) == found


@pytest.mark.parametrize(
    ("planted", "found"), [("", set()), ("proof", {"P2 acts when superseded", "P2 passes the guard when superseded"})]
)
def test_a_connection_that_may_have_been_fenced_is_not_claimed_before_the_term_is_settled(
    planted: str, found: set[str]
) -> None:
    faults = set(connection_that_was_fenced_in_what_redis_has_lost(planted))
    assert faults <= found
    assert bool(faults) == bool(found)


@pytest.mark.parametrize(("rules", "holders"), [(Slots, 1), (IgnoringWaitingClaims, 2)])
def test_a_challenge_waits_for_the_claim_that_it_names_whatever_that_claim_waits_for(
    rules: type[Slots], holders: int
) -> None:
    assert claim_that_was_disowned_and_is_granted_again(rules) == holders
