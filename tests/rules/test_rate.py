"""The token bucket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.rate import Allowances, LineBudget, RateBucket, RateLimit, client_of

from ..profiles import examples


def test_a_burst_passes_and_one_more_does_not() -> None:
    bucket, limit = RateBucket(), RateLimit(per_s=10, burst=3)
    assert [bucket.take(limit, 0.0) for _ in range(4)] == [True, True, True, False]


def test_it_fills_up_again_at_the_rate_and_no_higher_than_the_burst() -> None:
    bucket, limit = RateBucket(), RateLimit(per_s=10, burst=2)
    assert bucket.take(limit, 0.0)
    assert bucket.take(limit, 0.0)
    assert bucket.take(limit, 0.1)
    assert not bucket.take(limit, 0.1)
    assert [bucket.take(limit, 100.0) for _ in range(3)] == [True, True, False]


def test_a_rate_of_zero_is_no_limit() -> None:
    bucket, limit = RateBucket(), RateLimit(per_s=0, burst=0)
    assert all(bucket.take(limit, 0.0) for _ in range(1000))


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    bucket, limit = RateBucket(), RateLimit(per_s=1, burst=2)
    assert bucket.take(limit, 100.0)
    assert bucket.take(limit, 50.0)
    assert not bucket.take(limit, 50.5)


def test_several_events_are_taken_together_or_not_at_all() -> None:
    bucket, limit = RateBucket(), RateLimit(per_s=1, burst=5)
    assert bucket.take(limit, 0.0, 3)
    assert not bucket.take(limit, 0.0, 3)
    assert bucket.take(limit, 0.0, 2)


def test_a_line_within_the_budget_has_the_number_of_suppressed_ones() -> None:
    budget = LineBudget(RateLimit(per_s=1, burst=2))
    assert [budget.take(0.0) for _ in range(5)] == [0, 0, None, None, None]
    assert [budget.take(1.0), budget.take(1.0)] == [3, None]


def test_what_comes_late_through_no_fault_of_the_sender_is_credited_once_and_above_the_burst() -> None:
    bucket, limit = RateBucket(), RateLimit(per_s=10, burst=3)
    assert bucket.take(limit, 0.0, 3)
    bucket.credit(limit, 2.0)
    assert bucket.take(limit, 0.0, 20)
    assert not bucket.take(limit, 0.0)
    assert [bucket.take(limit, 100.0) for _ in range(4)] == [True, True, True, False]


# -- one allowance for each of many clients

LIMIT = RateLimit(per_s=0.5, burst=3)


def use_up(allowances: Allowances, client: str, now: float = 0.0, limit: RateLimit = LIMIT) -> None:
    while not allowances.wait_s(client, limit, now):
        allowances.spend(client, limit, now)


def test_a_client_that_has_used_up_its_allowance_waits_and_no_other_does() -> None:
    allowances = Allowances(100)
    use_up(allowances, "one")
    assert allowances.wait_s("one", LIMIT, 0.0) == 2.0
    assert allowances.wait_s("one", LIMIT, 1.5) == 0.5
    assert allowances.wait_s("one", LIMIT, 2.0) == 0.0
    assert allowances.wait_s("other", LIMIT, 0.0) == 0.0


def test_what_is_not_spent_is_not_counted_however_often_it_is_asked_for() -> None:
    allowances = Allowances(100)
    assert all(allowances.wait_s("one", LIMIT, 0.0) == 0.0 for _ in range(100))
    assert len(allowances) == 0


def test_a_request_for_more_than_a_burst_costs_a_burst() -> None:
    allowances = Allowances(100)
    assert allowances.wait_s("one", LIMIT, 0.0, events=64) == 0.0
    allowances.spend("one", LIMIT, 0.0, events=64)
    assert allowances.wait_s("one", LIMIT, 0.0, events=64) == 6.0
    assert allowances.wait_s("one", LIMIT, 6.0, events=64) == 0.0


def test_no_limit_is_no_limit_and_takes_no_memory() -> None:
    allowances, limit = Allowances(100), RateLimit(per_s=0, burst=0)
    for _ in range(1000):
        assert allowances.wait_s("one", limit, 0.0) == 0.0
        assert not allowances.spend("one", limit, 0.0)
    assert len(allowances) == 0


def test_the_end_of_an_allowance_is_reported_once_until_it_is_full_again() -> None:
    allowances = Allowances(100)
    assert [allowances.spend("one", LIMIT, 0.0) for _ in range(4)] == [False, False, True, False]
    assert not allowances.spend("one", LIMIT, 2.0)  # it continues to guess
    assert [allowances.spend("one", LIMIT, 100.0) for _ in range(3)] == [False, False, True]


def test_sending_others_gives_no_client_its_allowance_back() -> None:
    allowances = Allowances(100)
    use_up(allowances, "one")
    for number in range(10_000):
        allowances.spend(f"other {number}", LIMIT, 0.0)
    assert len(allowances) <= 100
    assert allowances.wait_s("one", LIMIT, 0.0) > 0


def test_a_new_client_has_its_full_allowance_however_many_have_used_up_theirs() -> None:
    allowances = Allowances(100)
    for number in range(1000):
        use_up(allowances, f"other {number}")
        assert allowances.wait_s(f"new {number}", LIMIT, 0.0) == 0.0
    assert len(allowances) <= 100


def test_what_is_whole_again_is_forgotten_before_anything_else() -> None:
    allowances = Allowances(8)
    for number in range(8):
        use_up(allowances, f"old {number}", 0.0)
    allowances.spend("new", LIMIT, 100.0)
    assert len(allowances) == 1


@examples(200)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([0.0, 0.5, 1.0, 2.0, 10.0]), st.integers(1, 5))))
def test_each_client_is_counted_as_if_it_were_alone_where_there_is_room(steps: list[tuple[str, float, int]]) -> None:
    together, alone = Allowances(100), {client: Allowances(100) for client in "abcd"}
    now = 0.0
    for client, later, events in steps:
        now += later
        wait_s = together.wait_s(client, LIMIT, now, events)
        assert wait_s == alone[client].wait_s(client, LIMIT, now, events)
        if not wait_s:
            assert together.spend(client, LIMIT, now, events) == alone[client].spend(client, LIMIT, now, events)
        else:
            assert together.wait_s(client, LIMIT, now + wait_s, events) == 0.0


@examples(200)
@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0.0, 0.1, 3.0])), max_size=200))
def test_no_client_waits_before_spending_a_burst_and_memory_is_bounded(steps: list[tuple[int, float]]) -> None:
    allowances, now, spent = Allowances(8), 0.0, dict.fromkeys(range(31), 0)
    for client, later in steps:
        now += later
        allowances.spend(str(client), LIMIT, now)
        spent[client] += 1
        assert len(allowances) <= 8
        for other, times in spent.items():
            assert times >= LIMIT.burst or not allowances.wait_s(str(other), LIMIT, now)


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("@", "@"),
    ],
)
def test_an_ipv6_client_is_its_whole_64(address: str, client: str) -> None:
    assert client_of(address) == client
