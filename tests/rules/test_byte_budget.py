from __future__ import annotations

from cocoa_tornado.rules.byte_budget import ByteBudget


def test_no_more_is_taken_than_there_is() -> None:
    budget = ByteBudget(10)
    assert budget.take(6)
    assert not budget.take(5)
    assert budget.taken == 6
    assert budget.take(4)
    budget.give_back(6)
    assert budget.take(6)
    assert repr(budget) == "<ByteBudget 10 of 10 taken>"
