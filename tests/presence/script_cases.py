"""The promises of presence's scripts, on any store: ``test_redis_scripts.py`` and, on a real Redis,
``tests/redis_store/test_presence_scripts.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cocoa_tornado.presence.redis_scripts import ClaimItem, EpochOver, Granted, Held, TermOver
from cocoa_tornado.rules.claims import Claim

from .script_stands import NOW_S, Stand, Store


@pytest.fixture
def stand(store: Store) -> Stand:
    """A settled term with the servers a and b."""
    made = Stand(store)
    made.join("b")
    made.settle()
    return made


# -- terms


def test_the_first_server_begins_a_term_that_is_not_settled(store: Store) -> None:
    stand = Stand(store, "")
    assert stand.join("a").is_settled is False
    assert stand.claim("a", 1) == "settling"


def test_another_server_joins_the_same_term(stand: Stand) -> None:
    assert stand.join("c").is_settled is True
    assert set(stand.beat("c", 0).beats) == {"a", "b", "c"}


def test_another_redis_process_begins_a_term_without_servers(stand: Stand) -> None:
    before = stand.stamp
    reply = stand.join("c", run="r2")
    assert (reply.term > int(before.split(":")[0]), reply.is_settled) == (True, False)
    assert set(stand.beat("c", 0).beats) == {"c"}


def test_a_server_that_knows_a_later_term_begins_a_still_later_one(stand: Stand) -> None:
    assert stand.join("c", known=10**12).term > 10**12


def test_terms_grow_although_clocks_go_back(stand: Stand) -> None:
    before = int(stand.stamp.split(":")[0])
    assert stand.join("c", run="r2", wall_s=NOW_S - 4.0).term > before


def test_a_term_is_not_before_the_wall_clock(store: Store) -> None:
    assert Stand(store, "").join("a", wall_s=NOW_S).term == 5000


def test_joining_the_same_term_leaves_holders_alone(stand: Stand) -> None:
    stand.claim("a", 1)
    stand.join("c")
    assert stand.holders() == [[Claim("a", 1)]]


ALL: list[Callable[[Stand], Any]] = [
    lambda stand: stand.beat("a", 0),
    lambda stand: stand.claim("a", 1),
    lambda stand: stand.release("a", 1),
    lambda stand: stand.holders(),
    lambda stand: stand.fence("b", 0),
    lambda stand: stand.settle(),
    lambda stand: stand.leave("a"),
]


@pytest.mark.parametrize("ask", ALL)
@pytest.mark.parametrize("stamp", ["1:r1", "5000:r2", ":", "5000:"])
def test_a_script_for_another_term_or_process_changes_nothing(
    stand: Stand, stamp: str, ask: Callable[[Stand], Any]
) -> None:
    stand.claim("a", 1)
    right, stand.stamp = stand.stamp, stamp
    with pytest.raises(TermOver):
        ask(stand)
    stand.stamp = right
    assert (stand.holders(), stand.beat("b", 0).beats) == ([[Claim("a", 1)]], {"a": 0, "b": 1})


# -- beats


def test_a_beat_grows_if_the_one_before_was_seen(stand: Stand) -> None:
    assert [stand.beat("a", seen).mine for seen in (0, 1, 2)] == [1, 2, 3]


def test_a_repeated_beat_does_not_grow(stand: Stand) -> None:
    assert [stand.beat("a", seen).mine for seen in (0, 0, 0)] == [1, 1, 1]


def test_a_beat_of_a_fenced_epoch_is_refused(stand: Stand) -> None:
    stand.fence("a", 0)
    with pytest.raises(EpochOver):
        stand.beat("a", 0)


def test_a_beat_that_has_gone_back_is_refused(stand: Stand) -> None:
    stand.beat("a", 0)
    stand.fence("a", 1)
    stand.join("a")  # a copy that came late
    with pytest.raises(EpochOver):
        stand.beat("a", 1)


def test_what_servers_say_of_themselves_stays_until_they_say_something_else(stand: Stand) -> None:
    stand.beat("a", 0, '{"room":1}')
    stand.beat("a", 1)
    assert stand.beat("b", 0).infos == {"a": '{"room":1}'}
    stand.beat("a", 2, '{"room":2}')
    assert stand.beat("b", 1).infos == {"a": '{"room":2}'}


# -- claims


def test_a_free_device_is_granted_and_generations_grow(stand: Stand) -> None:
    items = [ClaimItem("doll", 1), ClaimItem("bear", 2)]
    assert stand.claim_all("a", items) == [Granted(1), Granted(2)]


def test_a_device_of_another_server_is_held(stand: Stand) -> None:
    stand.claim("a", 7)
    reply = stand.claim("b", 1)
    assert isinstance(reply, Held)
    assert [(holding.claim, holding.number) for holding in reply.holders] == [(Claim("a", 7), 1)]


def test_the_same_claim_is_granted_again_with_the_same_generation(stand: Stand) -> None:
    assert [stand.claim("a", 1), stand.claim("b", 1), stand.claim("a", 1)][::2] == [Granted(1), Granted(1)]


def test_a_later_claim_of_the_same_server_takes_the_place_of_one_it_has_given_up(stand: Stand) -> None:
    stand.claim("a", 1)
    assert stand.claim("a", 2) == Granted(2)
    assert stand.holders() == [[Claim("a", 2)]]


def test_an_earlier_claim_of_the_same_server_comes_late(stand: Stand) -> None:
    stand.claim("a", 2)
    assert stand.claim("a", 1) == "late"
    assert stand.holders() == [[Claim("a", 2)]]


def test_a_claim_does_not_take_the_place_of_one_that_the_server_has_kept(stand: Stand) -> None:
    stand.claim("a", 1)
    reply = stand.claim("a", 2, kept=(1,))
    assert isinstance(reply, Held)
    assert stand.holders() == [[Claim("a", 1)]]


def test_a_device_with_several_connections_is_granted_so_often(stand: Stand) -> None:
    assert stand.claim("a", 1, per_device=2) == Granted(1)
    assert stand.claim("b", 1, per_device=2) == Granted(2)
    assert isinstance(stand.claim("b", 2, per_device=2, kept=(1,)), Held)
    assert stand.holders() == [[Claim("a", 1), Claim("b", 1)]]


def test_an_earlier_claim_is_granted_beside_a_later_one_that_is_kept(stand: Stand) -> None:
    stand.claim("a", 9, per_device=2)
    assert stand.claim("a", 7, per_device=2, kept=(9,)) == Granted(2)


def test_a_number_is_not_taken_for_one_that_it_begins_with(stand: Stand) -> None:
    stand.claim("a", 1, per_device=2)
    stand.claim("b", 11, per_device=2)
    stand.release("b", 1)
    assert stand.holders() == [[Claim("a", 1), Claim("b", 11)]]
    assert stand.claim("a", 2, per_device=2, kept=(11,)) == Granted(3)  # 1 is not kept


def test_devices_in_one_bucket_are_apart(stand: Stand) -> None:
    stand.claim_all("a", [ClaimItem(f"d{number}", number) for number in range(1, 200)])
    assert stand.holders("d1", "d150") == [[Claim("a", 1)], [Claim("a", 150)]]


def test_one_device_twice_in_a_batch_is_granted_to_one(stand: Stand) -> None:
    first, second = stand.claim_all("a", [ClaimItem("doll", 1, kept=(2,)), ClaimItem("doll", 2, kept=(1,))])
    assert (first, isinstance(second, Held)) == (Granted(1), True)


def test_a_batch_with_a_device_of_another_server_grants_the_rest(stand: Stand) -> None:
    stand.claim("b", 1)
    first, second = stand.claim_all("a", [ClaimItem("doll", 1), ClaimItem("bear", 2)])
    assert (isinstance(first, Held), second) == (True, Granted(2))


def test_a_fenced_server_is_granted_nothing(stand: Stand) -> None:
    stand.fence("a", 0)
    with pytest.raises(EpochOver):
        stand.claim("a", 1)
    assert stand.holders() == [[]]


def test_nothing_new_is_granted_before_the_term_is_settled_but_what_is_kept(stand: Stand) -> None:
    stand.claim("a", 1)
    stand.join("c", run="r2")
    assert (stand.claim("c", 1), stand.claim("c", 2, mode="keep")) == ("settling", Granted(2))
    stand.settle()
    assert stand.claim("c", 3) == Granted(3)


# -- the end of a claim


def test_a_release_frees_its_own_claim_and_no_other(stand: Stand) -> None:
    stand.claim("a", 5)
    for epoch, number in (("a", 4), ("a", 50), ("b", 5)):
        stand.release(epoch, number)
    assert stand.holders() == [[Claim("a", 5)]]
    assert stand.release("a", 5) is True
    assert stand.holders() == [[]]


def test_a_repeated_release_does_not_free_the_next_holder(stand: Stand) -> None:
    stand.claim("a", 1)
    stand.release("a", 1)
    stand.claim("b", 1)
    stand.release("a", 1)
    assert stand.holders() == [[Claim("b", 1)]]


def test_one_of_several_holders_is_released(stand: Stand) -> None:
    for number in (1, 2, 3):
        stand.claim("a", number, per_device=3, kept=(1, 2, 3))
    stand.release("a", 2)
    assert stand.holders() == [[Claim("a", 1), Claim("a", 3)]]


def test_all_devices_of_a_fenced_server_are_free(stand: Stand) -> None:
    stand.claim_all("a", [ClaimItem("doll", 1), ClaimItem("bear", 2)])
    assert stand.fence("a", 0) is True
    assert stand.holders("doll", "bear") == [[], []]
    assert stand.claim("b", 1) == Granted(3)


def test_a_server_that_has_beaten_since_is_not_fenced(stand: Stand) -> None:
    stand.beat("a", 0)
    assert stand.fence("a", 0) is False
    assert stand.beat("a", 1).mine == 2


def test_a_server_that_has_left_frees_its_devices(stand: Stand) -> None:
    stand.claim("a", 1)
    stand.beat("a", 0, "{}")
    assert stand.leave("a") is True
    assert stand.holders() == [[]]
    reply = stand.beat("b", 0)
    assert (set(reply.beats), reply.infos) == ({"b"}, {})
    with pytest.raises(EpochOver):
        stand.leave("a")
