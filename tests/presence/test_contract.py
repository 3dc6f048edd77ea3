"""What every presence promises (cocoa_tornado.presence.port), held against each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from cocoa_tornado.presence.grants import Grant, SlotLimits
from cocoa_tornado.presence.port import Holder, PresenceState, Refused
from cocoa_tornado.presence.rules import MAX_WAITING
from cocoa_tornado.rules.close_codes import CloseReason
from testing.waiting import eventually

from .stands import CHALLENGE_S, HEALTH, PresenceStand, Server

pytestmark = pytest.mark.gen_test(timeout=60)

OPERATOR = CloseReason(4410, "disconnected by an operator", "operator")


async def reason_of(newcomer: asyncio.Task[Grant]) -> str:
    with pytest.raises(Refused) as refused:
        await newcomer
    return refused.value.reason


async def holders_of(server: Server, device_id: str = "doll") -> list[tuple[str, int]]:
    """The servers and generations' numbers."""
    found = await server.presence.holders([device_id])
    return [(holder.server, holder.generation.number) for holder in found.get(device_id, ())]


# -- claim, register, release


async def test_a_free_device_is_granted_at_once(stand: PresenceStand) -> None:
    (a,) = await stand.open()
    grant = await a.presence.claim("doll")
    assert (grant.device_id, grant.claim.server) == ("doll", a.presence.lease.server)
    assert grant.lease is a.presence.lease
    assert a.presence.slots_taken == 1
    a.presence.release(grant)
    assert (a.presence.slots_taken, await holders_of(a)) == (0, [])


async def test_the_others_are_the_servers_that_have_joined_and_not_ended(stand: PresenceStand) -> None:
    a, b = await stand.open(2)
    assert list(a.presence.others()) == [b.presence.lease.server]
    assert list(b.presence.others()) == [a.presence.lease.server]
    await a.presence.close(1.0)
    await eventually(lambda: list(b.presence.others()) == [])


async def test_what_is_granted_without_waiting_is_what_a_claim_would_be_granted(stand: PresenceStand) -> None:
    a, b = await stand.open(2, per_device=1, total=2)
    grant = a.presence.try_claim("doll")
    if grant is None:  # an adapter whose store does not answer at once
        grant = await a.presence.claim("doll")
    assert (grant.device_id, grant.lease, a.presence.slots_taken) == ("doll", a.presence.lease, 1)
    assert a.presence.try_claim("doll") is None, "it is held here"
    assert b.presence.try_claim("doll") is None, "it is held there"
    a.presence.register(grant)
    await a.connections.connect("bear")
    assert a.presence.try_claim("one too many") is None
    b.presence.drain()
    assert b.presence.try_claim("late") is None
    await a.presence.close(1.0)
    assert a.presence.try_claim("later") is None
    assert a.presence.counters.refused == {}, "to say that only a claim can decide refuses nobody"


async def test_generations_grow_with_every_admission_of_any_device_at_any_server(stand: PresenceStand) -> None:
    servers = await stand.open(2)
    grants = []
    for turn in range(6):
        grant = await servers[turn % 2].connections.connect(f"doll-{turn % 3}")
        grants.append(grant)
        servers[turn % 2].connections.end(grant)
    generations = [grant.generation for grant in grants]
    assert generations == sorted(set(generations))


async def test_a_grant_is_compared_by_its_server_and_generation(stand: PresenceStand) -> None:
    (a,) = await stand.open()
    one, two = await a.presence.claim("one"), await a.presence.claim("two")
    assert one == Grant("one", one.claim, one.generation, one.lease)
    assert len({one, two, Grant("one", one.claim, one.generation, one.lease)}) == 2
    assert one != two
    assert one != "one"


async def test_registering_what_has_no_slot_any_more_is_a_key_error(stand: PresenceStand) -> None:
    (a,) = await stand.open()
    grant = await a.presence.claim("doll")
    a.presence.release(grant)
    with pytest.raises(KeyError):
        a.presence.register(grant)


async def test_a_late_release_does_not_touch_the_next_connection(stand: PresenceStand) -> None:
    a, b = await stand.open(2)
    first = await a.connections.connect()
    a.connections.end(first)
    second = await b.connections.connect()
    a.presence.release(first)
    a.presence.release(first)
    assert await holders_of(a) == [(b.presence.lease.server, second.generation.number)]
    assert (a.presence.slots_taken, b.presence.slots_taken) == (0, 1)


async def test_of_a_devices_two_connections_a_release_frees_its_own(stand: PresenceStand) -> None:
    (a,) = await stand.open(per_device=2)
    first, second = await a.connections.connect(), await a.connections.connect()
    a.connections.end(first)
    assert await holders_of(a) == [(second.claim.server, second.generation.number)]


# -- challenges


@pytest.mark.parametrize("servers", [1, 2])
async def test_an_incumbent_that_answers_keeps_its_slot(stand: PresenceStand, servers: int) -> None:
    made = await stand.open(servers)
    incumbent = await made[0].connections.connect()
    assert await reason_of(made[-1].waiting()) == "device"
    assert made[0].connections.challenged == [incumbent]
    assert (made[0].connections.evicted, made[0].presence.slots_taken) == ([], 1)
    assert made[0].presence.counters.challenges == 1
    assert made[-1].presence.counters.refused == {"device": 1}


@pytest.mark.parametrize("servers", [1, 2])
async def test_a_silent_incumbent_is_evicted_and_the_newcomer_admitted(stand: PresenceStand, servers: int) -> None:
    made = await stand.open(servers, challenge_s=CHALLENGE_S)
    incumbent = await made[0].connections.connect()
    made[0].connections.fall_silent()
    newcomer = await made[-1].connections.connect()
    assert made[0].connections.evicted == [(incumbent, 4409)]
    assert incumbent.generation < newcomer.generation
    assert await holders_of(made[0]) == [(made[-1].presence.lease.server, newcomer.generation.number)]
    assert made[0].presence.counters.evictions == 1


@pytest.mark.parametrize("servers", [1, 2])
async def test_an_incumbent_that_leaves_meanwhile_lets_the_newcomer_in_at_once(
    stand: PresenceStand, servers: int
) -> None:
    made = await stand.open(servers)
    incumbent = await made[0].connections.connect()
    made[0].connections.fall_silent()
    newcomer = made[-1].waiting()
    await eventually(lambda: made[0].connections.challenged == [incumbent])
    made[0].connections.end(incumbent)
    assert (await newcomer).device_id == "doll"
    assert made[0].connections.evicted == []


@pytest.mark.parametrize("servers", [1, 2, 3])
async def test_of_many_newcomers_one_wins_and_there_is_one_challenge(stand: PresenceStand, servers: int) -> None:
    made = await stand.open(servers, challenge_s=CHALLENGE_S)
    incumbent = await made[0].connections.connect()
    made[0].connections.fall_silent()
    newcomers = [server.connections.connect() for server in made for _ in range(4)]
    outcomes = await asyncio.gather(*newcomers, return_exceptions=True)
    assert sum(isinstance(outcome, Grant) for outcome in outcomes) == 1
    assert {outcome.reason for outcome in outcomes if isinstance(outcome, Refused)} == {"device"}
    assert made[0].connections.challenged.count(incumbent) == 1
    assert len(await holders_of(made[0])) == 1


async def test_more_newcomers_than_may_wait_are_refused_at_once(stand: PresenceStand) -> None:
    (a,) = await stand.open()
    incumbent = await a.connections.connect()
    a.connections.fall_silent()
    newcomers = [a.waiting() for _ in range(MAX_WAITING)]
    assert await reason_of(a.waiting()) == "device"
    assert not any(newcomer.done() for newcomer in newcomers)
    a.presence.answered(incumbent)
    assert [await reason_of(newcomer) for newcomer in newcomers] == ["device"] * MAX_WAITING


async def test_a_newcomer_is_refused_while_the_slot_is_being_handed_over(stand: PresenceStand) -> None:
    (a,) = await stand.open()
    await a.presence.claim("doll")
    assert await reason_of(a.waiting()) == "device"
    assert a.connections.challenged == []


async def test_a_newcomer_elsewhere_waits_for_the_end_of_an_upgrade_under_way(stand: PresenceStand) -> None:
    a, b = await stand.open(2)
    under_way = await a.presence.claim("doll")
    fails, succeeds = b.waiting(), None
    await asyncio.sleep(0.02)
    a.presence.release(under_way)
    granted = await fails
    succeeds = a.waiting()
    await asyncio.sleep(0.02)
    b.presence.register(granted)
    assert await reason_of(succeeds) == "device"


async def test_the_policy_reject_challenges_nobody(stand: PresenceStand) -> None:
    a, b = await stand.open(2, policy="reject")
    await a.connections.connect()
    assert await reason_of(a.waiting()) == "device"
    assert await reason_of(b.waiting()) == "device"
    assert a.connections.challenged == []


async def test_a_server_that_does_not_answer_makes_it_unknown_and_not_a_duplicate(stand: PresenceStand) -> None:
    a, b = await stand.open(2, challenge_s=CHALLENGE_S)
    await a.connections.connect()
    stand.cut(a)
    assert await reason_of(b.waiting()) == "presence"
    assert b.presence.slots_taken == 0


async def test_the_several_connections_of_a_device_are_challenged_together_over_all_servers(
    stand: PresenceStand,
) -> None:
    a, b = await stand.open(2, per_device=2, challenge_s=CHALLENGE_S)
    await a.connections.connect()
    silent = await b.connections.connect()
    b.connections.fall_silent()
    newcomer = await a.connections.connect()
    assert b.connections.evicted == [(silent, 4409)]
    assert a.connections.evicted == []
    assert len(await holders_of(a)) == 2
    assert newcomer in a.connections.open


# -- cancellation


@pytest.mark.parametrize("servers", [1, 2])
async def test_a_newcomer_that_is_cancelled_leaves_no_slot_behind(stand: PresenceStand, servers: int) -> None:
    made = await stand.open(servers)
    incumbent = await made[0].connections.connect()
    made[0].connections.fall_silent()
    newcomer = made[-1].waiting()
    await eventually(lambda: made[0].connections.challenged == [incumbent])
    newcomer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await newcomer
    made[0].connections.end(incumbent)
    await eventually(lambda: all(server.presence.slots_taken == 0 for server in made))
    assert await holders_of(made[0]) == []


async def test_a_newcomer_cancelled_in_the_turn_of_its_admission_gives_the_slot_back(stand: PresenceStand) -> None:
    (a,) = await stand.open()
    incumbent = await a.connections.connect()
    a.connections.fall_silent()
    newcomer = a.waiting()
    await asyncio.sleep(0)
    a.connections.end(incumbent)  # admits the new connection, whose task has not run yet
    newcomer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await newcomer
    assert (a.presence.slots_taken, await holders_of(a)) == (0, [])


async def test_a_newcomer_cancelled_in_the_turn_of_its_refusal_leaves_nothing_behind(stand: PresenceStand) -> None:
    (a,) = await stand.open()
    incumbent = await a.connections.connect()
    a.connections.fall_silent()
    newcomer = a.waiting()
    await asyncio.sleep(0)
    a.presence.answered(incumbent)
    newcomer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await newcomer
    assert a.presence.slots_taken == 1


async def test_a_cancelled_newcomer_lets_the_next_in_line_win(stand: PresenceStand) -> None:
    (a,) = await stand.open()
    incumbent = await a.connections.connect()
    a.connections.fall_silent()
    first, second = a.waiting(), a.waiting()
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    a.connections.end(incumbent)
    assert (await second).device_id == "doll"


# -- obstacle, limits, drain


async def test_an_obstacle_is_told_and_nobody_is_challenged(stand: PresenceStand) -> None:
    a, b = await stand.open(2, total=1)
    assert await a.presence.obstacle("doll") is None
    incumbent = await a.connections.connect()
    assert await a.presence.obstacle("doll") == "device"
    assert await a.presence.obstacle("other") == "full"
    assert await b.presence.obstacle("doll") == "device"
    assert await b.presence.obstacle("other") is None
    b.presence.drain()
    assert await b.presence.obstacle("other") == "draining"
    assert a.connections.challenged == []
    a.connections.end(incumbent)


async def test_the_total_is_of_each_server_and_a_dead_connection_is_replaced_all_the_same(
    stand: PresenceStand,
) -> None:
    a, b = await stand.open(2, total=1, challenge_s=CHALLENGE_S)
    await a.connections.connect()
    assert await reason_of(a.waiting("other")) == "full"
    other = await b.connections.connect("other")
    b.connections.end(other)
    a.connections.fall_silent()
    await a.connections.connect()
    assert a.presence.slots_taken == 1


async def test_exempt_devices_take_no_slot_that_counts_and_need_no_room(stand: PresenceStand) -> None:
    a, b = await stand.open(2, total=1)
    a.presence.exempt(["canary", "finch"])
    canary = await a.connections.connect("canary")
    assert a.presence.slots_taken == 0
    await a.connections.connect("doll")
    finch = await a.connections.connect("finch")
    assert a.presence.slots_taken == 1
    assert await reason_of(a.waiting("other")) == "full"
    assert await holders_of(b, "finch") == [(a.presence.lease.server, finch.generation.number)]
    a.connections.end(canary)
    assert a.presence.slots_taken == 1
    assert await reason_of(a.waiting("other")) == "full"


async def test_limits_may_be_replaced_and_who_is_in_stays_in(stand: PresenceStand) -> None:
    (a,) = await stand.open(per_device=2)
    await a.connections.connect()
    await a.connections.connect()
    a.presence.limits = lambda: SlotLimits(per_device=1, challenge_s=600.0)
    assert await reason_of(a.waiting()) == "device"
    assert a.presence.slots_taken == 2
    a.presence.limits = lambda: SlotLimits(per_device=3)
    await a.connections.connect()
    assert a.presence.slots_taken == 3


async def test_a_server_that_has_drained_and_left_still_says_that_it_drains(stand: PresenceStand) -> None:
    """A handshake may claim its device that late, and should get the same answer as before."""
    (a,) = await stand.open()
    a.presence.drain()
    await a.presence.close(1.0)
    assert await reason_of(a.waiting("doll")) == "draining"
    assert await a.presence.obstacle("doll") == "draining"


async def test_draining_refuses_newcomers_and_keeps_who_is_there(stand: PresenceStand) -> None:
    a, b = await stand.open(2)
    grant = await a.connections.connect()
    a.presence.drain()
    assert a.presence.draining
    assert await reason_of(a.waiting("other")) == "draining"
    assert await holders_of(b) == [(a.presence.lease.server, grant.generation.number)]
    assert await b.connections.connect("other")


# -- holders, eviction


async def test_the_holders_of_many_devices_are_told_at_once_over_all_servers(stand: PresenceStand) -> None:
    a, b = await stand.open(2, per_device=2)
    one, two = await a.connections.connect("one"), await b.connections.connect("two")
    again, under_way = await b.connections.connect("one"), await a.presence.claim("three")
    found = await b.presence.holders(["one", "nobody", "two", "three", "one"])
    assert found == {
        "one": [
            Holder(one.claim.server, one.generation, stand.health_elsewhere),
            Holder(again.claim.server, again.generation, HEALTH),
        ],
        "two": [Holder(two.claim.server, two.generation, HEALTH)],
        "three": [Holder(under_way.claim.server, under_way.generation, None)],
    }
    assert await b.presence.holders([]) == {}


@pytest.mark.parametrize("servers", [1, 2])
async def test_an_eviction_ends_that_connection_on_whichever_server_it_is(stand: PresenceStand, servers: int) -> None:
    made = await stand.open(servers, per_device=2)
    kept, ended = await made[0].connections.connect(), await made[0].connections.connect()
    found = (await made[-1].presence.holders(["doll"]))["doll"]
    made[-1].presence.evict("doll", found[1], OPERATOR)
    await eventually(lambda: made[0].connections.evicted == [(ended, 4410)])
    assert made[0].connections.open == [kept]
    made[-1].presence.evict("doll", found[1], OPERATOR)  # it has ended already
    assert made[0].presence.counters.evictions == 0, "only the silent ones count"


# -- leases


@pytest.mark.logs("cocoa.presence", "lease lost")
async def test_a_lost_lease_ends_what_was_granted_under_it_and_its_devices_are_free(stand: PresenceStand) -> None:
    a, b = await stand.open(2)
    incumbent, lease = await a.connections.connect(), a.presence.lease
    assert lease.is_valid(0.0)
    stand.fence(a)
    await eventually(lambda: a.connections.lost == [lease])
    assert not incumbent.lease.is_valid(0.0)
    assert a.connections.open == []
    assert (await b.connections.connect()).generation > incumbent.generation
    a.presence.release(incumbent)
    assert len(await holders_of(b)) == 1


@pytest.mark.logs("cocoa.presence", "lease lost")
async def test_who_waits_at_a_server_that_loses_its_lease_is_refused(stand: PresenceStand) -> None:
    (a,) = await stand.open()
    await a.connections.connect()
    a.connections.fall_silent()
    newcomer = a.waiting()
    await asyncio.sleep(0)
    stand.fence(a)
    assert await reason_of(newcomer) == "presence"


@pytest.mark.logs("cocoa.presence", "lease lost")
async def test_a_server_that_has_lost_its_lease_joins_again_under_another_epoch(stand: PresenceStand) -> None:
    (a,) = await stand.open()
    before, lease = await a.connections.connect(), a.presence.lease
    stand.fence(a)
    await eventually(lambda: a.presence.lease is not lease)
    await eventually(lambda: a.presence.status().state is PresenceState.READY)
    after = await a.connections.connect()
    assert after.claim.server != before.claim.server
    assert after.generation > before.generation
    assert (after.lease, before.lease) == (a.presence.lease, lease)
    assert a.presence.slots_taken == 1


@pytest.mark.logs("cocoa.presence", "lease lost")
async def test_a_grant_of_an_ended_epoch_cannot_be_registered(stand: PresenceStand) -> None:
    (a,) = await stand.open()
    grant = await a.presence.claim("doll")
    stand.fence(a)
    await eventually(lambda: not grant.lease.is_valid(0.0))
    with pytest.raises(KeyError):
        a.presence.register(grant)


@pytest.mark.logs("cocoa.presence", "lease lost")
async def test_a_newcomer_that_a_fenced_server_does_not_answer_any_more_is_admitted_in_the_end(
    stand: PresenceStand,
) -> None:
    a, b = await stand.open(2, challenge_s=0.5)
    incumbent = await a.connections.connect()
    a.connections.fall_silent()
    newcomer = b.waiting()
    await eventually(lambda: a.connections.challenged == [incumbent])
    stand.fence(a)
    assert (await newcomer).device_id == "doll"


async def test_a_server_that_leaves_frees_its_devices_and_claims_no_more(stand: PresenceStand) -> None:
    a, b = await stand.open(2)
    grant = await a.connections.connect()
    await a.presence.close(5.0)
    await a.presence.close(5.0)
    assert a.presence.status().state is PresenceState.CLOSED
    assert not grant.lease.is_valid(0.0)
    assert await reason_of(a.waiting()) == "presence"
    assert await a.presence.obstacle("doll") == "presence"
    await b.connections.connect()
    a.presence.release(grant)
    assert len(await holders_of(b)) == 1


@pytest.mark.logs("cocoa.presence", "lease lost", optional=True)  # or it leaves before it notices
async def test_holders_are_answered_in_order_and_never_fail_whatever_becomes_of_the_server(
    stand: PresenceStand,
) -> None:
    a, b = await stand.open(2)
    await b.connections.connect("two")
    answered: list[int] = []

    def ask(number: int) -> asyncio.Future[Mapping[str, Sequence[Holder]]]:
        asked = a.presence.holders(["one", "two"])
        asked.add_done_callback(lambda _: answered.append(number))
        return asked

    asked = [ask(0)]
    stand.fence(a)
    asked.append(ask(1))
    await eventually(lambda: a.presence.status().state is PresenceState.READY)
    asked.append(ask(2))
    await a.presence.close(5.0)
    asked.append(ask(3))
    results = await asyncio.gather(*asked)
    assert answered == [0, 1, 2, 3]
    assert all(set(found) <= {"two"} for found in results)


async def test_two_stores_do_not_meet(stand: PresenceStand) -> None:
    (a,) = await stand.open()
    await a.connections.connect()
    other = type(stand)()
    (elsewhere,) = await other.open()
    assert await holders_of(elsewhere) == []
    await other.close()
