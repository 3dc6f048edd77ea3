"""The rules with a store that others share, that may not answer, and whose terms end."""

from __future__ import annotations

import pytest

from cocoa_tornado.presence.actions import Acquire, Admit, Evict, Ping, Refuse, Regrant, Release, Send, Supersede, Wake
from cocoa_tornado.presence.decision import LATE_S
from cocoa_tornado.presence.grants import Grant, Lease, SlotLimits
from cocoa_tornado.presence.rules import MAX_WAITING, Slots
from cocoa_tornado.relay.messages import Answer, Challenge
from cocoa_tornado.rules.claims import Claim, Generation

FREEZE_S, PROOF_S = 5.0, 8.5
A1, B1, C1 = Claim("a", 1), Claim("b", 1), Claim("c", 1)


def grant(slots: Slots, claim: Claim, number: int = 1, device_id: str = "doll") -> Grant:
    return Grant(device_id, claim, Generation(1, number), slots.lease)


def server(**limits: object) -> Slots:
    """One with a lease until 105."""
    slots = Slots("", lambda: SlotLimits(**limits))  # type: ignore[arg-type]  # keywords of a test
    slots.rejoin(Lease("a", 105.0), FREEZE_S, PROOF_S, 100.0)
    return slots


def connected(slots: Slots, now: float = 100.0, number: int = 1, device_id: str = "doll") -> Grant:
    claim, _ = slots.request(device_id, now)
    made = grant(slots, claim, number, device_id)
    slots.granted(made, now)
    slots.register(made, now)
    return made


# -- a claim of which nothing else is known


def test_a_lone_claim_is_granted_as_any_other() -> None:
    """One server takes the short way, the other one the long way."""
    short, long = server(), server()
    claim = short.claim_alone("doll", 100.0)
    assert long.request("doll", 100.0) == (claim, [Acquire("doll", A1), Wake("doll", 106.0)])
    assert short.granted_alone(grant(short, A1), 100.1)
    assert long.granted(grant(long, A1), 100.1) == [Admit(grant(long, A1))]
    for slots in (short, long):
        assert (len(slots), slots.taken("doll")) == (1, 1)
        assert slots.register(grant(slots, A1), 100.2) == []
        assert slots.release("doll", A1, 100.3) == [Release("doll", A1)]


def test_a_claim_is_not_alone_beside_another_one() -> None:
    slots = server()
    assert slots.claim_alone("doll", 100.0) == A1
    assert slots.claim_alone("doll", 100.0) is None
    assert slots.claim_free("doll") is None
    slots.request("doll", 100.0)
    assert not slots.granted_alone(grant(slots, A1), 100.1)
    assert slots.granted(grant(slots, A1), 100.1)[0] == Admit(grant(slots, A1))


def test_a_lone_claim_is_decided_in_full_if_anything_is_in_its_way() -> None:
    """Another claim has taken the last slot, or the lease has ended."""
    slots = server(total=1)
    slots.claim_alone("other", 100.0)
    slots.claim_alone("doll", 100.0)
    other, doll = grant(slots, A1, device_id="other"), grant(slots, Claim("a", 2))
    assert slots.granted_alone(other, 100.1)
    assert not slots.granted_alone(doll, 100.1)
    assert slots.granted(doll, 100.1) == [Release("doll", doll.claim), Refuse(doll.claim, "full")]
    slots = server()
    slots.claim_alone("doll", 100.0)
    assert not slots.granted_alone(grant(slots, A1), 105.0)
    assert slots.granted(grant(slots, A1), 105.0) == [Release("doll", A1), Refuse(A1, "presence")]


def test_a_lone_claim_is_refused_with_the_epoch_and_given_up_in_time() -> None:
    slots = server()
    slots.claim_alone("doll", 100.0)
    assert slots.lose_all("") == [Refuse(A1, "presence")]
    slots = server()
    slots.claim_alone("doll", 100.0)
    assert slots.expire("doll", slots.give_up_at(100.0)) == [Refuse(A1, "presence"), Release("doll", A1)]


def test_a_challenger_of_a_lone_claim_waits_for_its_outcome() -> None:
    """The store has granted it, which its server does not know yet."""
    slots = server()
    slots.claim_alone("doll", 100.0)
    assert slots.challenged(Challenge("doll", A1, B1), 100.1) == []
    given = grant(slots, A1)
    assert not slots.granted_alone(given, 100.2)
    assert slots.granted(given, 100.2) == [Admit(given)]
    assert slots.register(given, 100.3) == [Send("b", Answer("doll", A1, B1, "alive"))]


# -- a store that does not answer


def test_a_claim_that_is_not_answered_is_asked_again_under_the_same_number() -> None:
    slots = server()
    slots.request("doll", 100.0)
    assert slots.unanswered("doll", A1, 101.0) == [Acquire("doll", A1)]


def test_after_six_seconds_the_claim_is_given_up() -> None:
    slots = server()
    slots.request("doll", 100.0)
    assert slots.unanswered("doll", A1, 106.0) == [Release("doll", A1), Refuse(A1, "presence")]


@pytest.mark.parametrize("arrived_at", [100.0, 4091.286759281948])
def test_after_six_seconds_it_is_given_up_though_the_store_is_not_asked_any_more(arrived_at: float) -> None:
    """The term is over, and Redis rejects JOIN: nothing but the timer ends the wait. It does so in floating point, too,
    where (second value + 6) - second value is less than 6."""
    slots = server()
    claim, actions = slots.request("doll", arrived_at)
    assert actions == [Acquire("doll", claim), Wake("doll", arrived_at + 6.0)]
    assert slots.expire("doll", arrived_at + 6.0) == [Refuse(claim, "presence"), Release("doll", claim)]


def test_who_waits_behind_it_is_given_up_in_its_own_time() -> None:
    slots = server()
    slots.request("doll", 100.0)
    _, actions = slots.request("doll", 102.0)
    assert actions == [Wake("doll", 108.0)]
    slots.unanswered("doll", A1, 105.0)
    todo = slots.expire("doll", 106.0)
    assert todo == [Refuse(A1, "presence"), Release("doll", A1), Acquire("doll", Claim("a", 2))]
    assert slots.expire("doll", 108.0) == [Refuse(Claim("a", 2), "presence"), Release("doll", Claim("a", 2))]


def test_a_claim_that_may_have_been_granted_is_released_when_it_is_refused() -> None:
    slots = server(policy="reject")
    slots.request("doll", 100.0)
    slots.unanswered("doll", A1, 101.0)
    todo = slots.held("doll", A1, [B1], 101.1)
    assert todo[-2:] == [Refuse(A1, "device"), Release("doll", A1)]


def test_a_claim_that_may_have_been_granted_is_released_when_the_client_leaves() -> None:
    slots = server()
    slots.request("doll", 100.0)
    slots.unanswered("doll", A1, 101.0)
    slots.held("doll", A1, [B1], 101.1)
    assert slots.withdraw("doll", A1, 101.2) == [Release("doll", A1)]


def test_a_second_answer_to_the_same_question_is_ignored() -> None:
    slots = server()
    slots.request("doll", 100.0)
    slots.unanswered("doll", A1, 101.0)
    given = grant(slots, A1)
    assert slots.granted(given, 101.1) == [Admit(given)]
    assert slots.granted(given, 101.2) == []
    assert slots.held("doll", A1, [B1], 101.3) == []
    assert slots.taken("doll") == 1


def test_a_late_claim_is_refused_and_the_next_one_asks() -> None:
    slots = server()
    slots.request("doll", 100.0)
    slots.request("doll", 100.0)
    assert slots.late("doll", A1, 100.1) == [Refuse(A1, "presence"), Acquire("doll", Claim("a", 2))]


def test_while_the_term_settles_new_connections_are_refused() -> None:
    slots = server()
    slots.request("doll", 100.0)
    assert slots.settling("doll", A1, 100.1) == [Refuse(A1, "presence")]


def test_a_claim_names_the_others_of_its_device_that_are_kept() -> None:
    slots = server(per_device=3)
    connected(slots)
    connected(slots, number=2)
    _, actions = slots.request("doll", 101.0)
    assert actions[0] == Acquire("doll", Claim("a", 3), "new", (1, 2))


# -- without a lease


def test_what_is_granted_after_the_lease_has_ended_is_given_back() -> None:
    slots = server()
    slots.request("doll", 104.0)
    assert slots.granted(grant(slots, A1), 105.0) == [Release("doll", A1), Refuse(A1, "presence")]


def test_without_a_lease_no_other_server_hears_that_a_connection_is_alive() -> None:
    slots = server()
    given = connected(slots)
    slots.challenged(Challenge("doll", A1, B1), 104.0)
    assert slots.answered(given, 105.0) == []


def test_with_a_lease_it_does() -> None:
    slots = server()
    given = connected(slots)
    slots.challenged(Challenge("doll", A1, B1), 104.0)
    assert slots.answered(given, 104.9) == [Send("b", Answer("doll", A1, B1, "alive"))]


def test_without_a_lease_a_duplicate_is_not_refused_as_such() -> None:
    slots = server()
    given = connected(slots)
    newcomer, _ = slots.request("doll", 104.0)
    assert slots.answered(given, 105.0) == [Refuse(newcomer, "presence")]


# -- holders elsewhere


def test_a_server_that_has_stopped_is_not_challenged() -> None:
    slots = server()
    slots.request("doll", 100.0)
    assert slots.held("doll", A1, [B1], 100.1, silent={"b"})[-1] == Refuse(A1, "presence")


def test_the_holders_beside_one_that_has_stopped_are_challenged() -> None:
    slots = server(per_device=2)
    slots.request("doll", 100.0)
    todo = slots.held("doll", A1, [B1, C1], 100.1, silent={"b"})
    assert [action for action in todo if isinstance(action, Send)] == [Send("c", Challenge("doll", C1, A1))]
    assert slots.heard(Answer("doll", C1, A1, "alive"), 100.2) == [Refuse(A1, "presence")]


def test_an_answer_is_no_proof_for_who_came_after_the_challenge() -> None:
    slots = server()
    slots.request("doll", 100.0)
    slots.held("doll", A1, [B1], 100.1)
    later, _ = slots.request("doll", 100.2)
    assert slots.heard(Answer("doll", B1, A1, "alive"), 100.3) == [Refuse(A1, "device"), Acquire("doll", later)]
    todo = slots.held("doll", later, [B1], 100.4)
    assert Send("b", Challenge("doll", B1, later)) in todo
    assert slots.heard(Answer("doll", B1, later, "alive"), 100.5) == [Refuse(later, "device")]


def test_who_finds_the_queue_full_is_no_duplicate_of_a_connection_that_may_not_exist() -> None:
    slots = server()
    for _ in range(MAX_WAITING):
        slots.request("doll", 100.0)
    claim, todo = slots.request("doll", 100.0)
    assert todo == [Refuse(claim, "presence")]


# -- own pauses


def test_a_challenge_that_is_judged_late_is_repeated_once() -> None:
    slots = server()
    given = connected(slots)
    slots.request("doll", 101.0)
    late = 103.0 + 2 * LATE_S
    assert slots.expire("doll", late) == [Ping((given,)), Wake("doll", late + 2.0)]
    assert Evict(given) in slots.expire("doll", late + 2.0 + 2 * LATE_S)


def test_a_challenge_that_is_judged_in_time_is_not_repeated() -> None:
    slots = server()
    given = connected(slots)
    slots.request("doll", 101.0)
    assert Evict(given) in slots.expire("doll", 103.0 + LATE_S / 2)


# -- a new term


def test_a_connection_that_cannot_have_been_fenced_is_claimed_again_at_once() -> None:
    slots = server()
    old = connected(slots)
    lease = Lease("a2", 110.0)
    renewal = Claim("a2", 2)
    assert slots.rejoin(lease, FREEZE_S, PROOF_S, 108.4) == [Acquire("doll", renewal, "keep")]
    new = Grant("doll", renewal, Generation(2, 1), lease)
    assert slots.granted(new, 108.5) == [Regrant(old, new)]
    assert slots.grants("doll") == [new]


def test_one_that_may_have_been_fenced_waits_until_the_term_is_settled() -> None:
    slots = server()
    connected(slots)
    assert slots.rejoin(Lease("a2", 114.0), FREEZE_S, PROOF_S, 108.6) == []
    assert slots.settled(118.0) == [Acquire("doll", Claim("a2", 2), "new")]
    assert slots.settled(118.1) == [], "it is under way"


def test_one_that_has_waited_still_waits_in_the_term_after_that() -> None:
    slots = server()
    connected(slots)
    slots.rejoin(Lease("a2", 114.0), FREEZE_S, PROOF_S, 108.6)
    assert slots.rejoin(Lease("a3", 116.0), FREEZE_S, PROOF_S, 110.0) == []
    assert slots.settled(120.0) == [Acquire("doll", Claim("a3", 3), "new")]


def test_one_whose_claim_meets_an_unsettled_term_asks_again_when_it_is_settled() -> None:
    slots = server()
    connected(slots)
    slots.rejoin(Lease("a2", 114.0), FREEZE_S, PROOF_S, 108.6)
    slots.settled(118.0)
    assert slots.settling("doll", Claim("a2", 2), 118.1) == []
    assert slots.settled(118.2) == [Acquire("doll", Claim("a2", 2), "new")]


@pytest.mark.parametrize("mode", ["held", "late"])
def test_a_connection_whose_device_another_holds_by_now_is_superseded(mode: str) -> None:
    slots = server()
    old = connected(slots)
    slots.rejoin(Lease("a2", 110.0), FREEZE_S, PROOF_S, 103.0)
    renewal = Claim("a2", 2)
    todo = slots.held("doll", renewal, [B1], 103.1) if mode == "held" else slots.late("doll", renewal, 103.1)
    assert todo[0] == Supersede(old)
    assert (len(slots), slots.grants("doll")) == (0, ())


def test_a_connection_is_claimed_again_until_the_store_answers() -> None:
    slots = server()
    connected(slots)
    slots.rejoin(Lease("a2", 110.0), FREEZE_S, PROOF_S, 103.0)
    for now in (104.0, 120.0, 900.0):
        assert slots.unanswered("doll", Claim("a2", 2), now) == [Acquire("doll", Claim("a2", 2), "keep")]


@pytest.mark.parametrize("mode", ["keep", "new"])
def test_a_connection_whose_claim_the_store_rejects_is_claimed_again_when_its_server_asks(mode: str) -> None:
    slots = server()
    old = connected(slots)
    lease, renewal = Lease("a2", 130.0), Claim("a2", 2)
    slots.rejoin(lease, FREEZE_S, PROOF_S, 103.0 if mode == "keep" else 120.0)
    slots.settled(120.0)
    assert slots.claim_again(is_settled=True) == [], "it is under way"
    assert slots.undecided("doll", renewal, 120.1) == []
    assert slots.claim_again(is_settled=False) == ([Acquire("doll", renewal, "keep")] if mode == "keep" else [])
    slots.undecided("doll", renewal, 120.2)
    assert slots.claim_again(is_settled=True) == [Acquire("doll", renewal, mode)]  # type: ignore[arg-type]
    new = Grant("doll", renewal, Generation(2, 1), lease)
    assert slots.granted(new, 120.3) == [Regrant(old, new)]
    assert slots.claim_again(is_settled=True) == []


def test_what_waits_in_the_old_term_is_refused_and_an_upgrade_under_way_fails() -> None:
    slots = server()
    waiting, _ = slots.request("doll", 100.0)
    upgrading, _ = slots.request("bear", 100.0)
    given = grant(slots, upgrading, 1, "bear")
    slots.granted(given, 100.0)
    assert slots.rejoin(Lease("a2", 106.0), FREEZE_S, PROOF_S, 101.0) == [Refuse(waiting, "presence")]
    assert len(slots) == 0
    with pytest.raises(KeyError):
        slots.register(given, 101.0)


def test_a_connection_that_ends_while_it_is_claimed_again_releases_that_claim() -> None:
    slots = server()
    old = connected(slots)
    slots.rejoin(Lease("a2", 110.0), FREEZE_S, PROOF_S, 103.0)
    assert slots.release("doll", old.claim, 103.1) == [Release("doll", Claim("a2", 2))]
    late = Grant("doll", Claim("a2", 2), Generation(2, 1), slots.lease)
    assert slots.granted(late, 103.2) == [Release("doll", Claim("a2", 2))]


def test_a_connection_that_is_claimed_again_is_not_freed_in_one_step() -> None:
    """Else its claim of the old term is released, and the one under way may hold the device for a dead connection."""
    slots = server()
    old = connected(slots)
    slots.rejoin(Lease("a2", 110.0), FREEZE_S, PROOF_S, 103.0)
    assert not slots.free("doll", old.claim)
    new = Grant("doll", Claim("a2", 2), Generation(2, 1), slots.lease)
    assert slots.granted(new, 103.1) == [Regrant(old, new)]
    assert slots.free("doll", new.claim)


def test_the_connections_of_a_device_keep_each_other_when_they_are_claimed_again() -> None:
    slots = server(per_device=2)
    connected(slots)
    connected(slots, number=2)
    assert slots.rejoin(Lease("a2", 110.0), FREEZE_S, PROOF_S, 103.0) == [
        Acquire("doll", Claim("a2", 3), "keep", (4,)),
        Acquire("doll", Claim("a2", 4), "keep", (3,)),
    ]


def test_a_challenge_of_a_connection_that_is_claimed_again_names_the_new_claim() -> None:
    slots = server()
    old = connected(slots)
    slots.rejoin(Lease("a2", 110.0), FREEZE_S, PROOF_S, 103.0)
    assert slots.challenged(Challenge("doll", Claim("a2", 2), B1), 103.1)[0] == Ping((old,))
    assert slots.answered(old, 103.2) == [Send("b", Answer("doll", Claim("a2", 2), B1, "alive"))]


def test_a_newcomer_challenges_a_connection_that_is_claimed_again() -> None:
    slots = server()
    old = connected(slots)
    slots.rejoin(Lease("a2", 110.0), FREEZE_S, PROOF_S, 103.0)
    newcomer, actions = slots.request("doll", 103.1)
    assert actions[0] == Ping((old,))
    assert slots.answered(old, 103.2) == [Refuse(newcomer, "device")]


def test_a_lost_lease_ends_what_was_to_be_claimed_again() -> None:
    slots = server()
    connected(slots)
    slots.rejoin(Lease("a2", 114.0), FREEZE_S, PROOF_S, 108.6)
    assert slots.lose_all("") == []
    assert slots.settled(118.0) == []


def test_the_leases_of_all_connections_are_known() -> None:
    slots = server()
    old = connected(slots)
    slots.rejoin(Lease("a2", 110.0), FREEZE_S, PROOF_S, 103.0)
    new = connected(slots, 103.0, 2, "bear")
    assert list(slots.leases()) == [old.lease, new.lease]
