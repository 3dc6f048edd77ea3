"""The token bucket."""

from __future__ import annotations

from cocoa_tornado.rules.rate import LineBudget, RateBucket, RateLimit


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


def test_a_line_within_the_budget_says_how_many_were_left_out_before_it() -> None:
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
