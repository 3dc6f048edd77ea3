"""A batch is done once, when the last leg of its way has ended."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.routing.receipt import Receipt

from ..profiles import examples


def test_a_batch_is_done_when_the_last_leg_has_ended() -> None:
    done: list[int] = []
    receipt = Receipt(lambda: done.append(1))
    routing, storing = receipt.leg(), receipt.leg()
    storing()
    assert (done, repr(receipt)) == ([], "<Receipt 1 legs under way>")
    routing()
    assert (done, repr(receipt)) == ([1], "<Receipt done>")


def test_a_leg_that_ends_twice_ends_no_other() -> None:
    done: list[int] = []
    receipt = Receipt(lambda: done.append(1))
    one, _ = receipt.leg(), receipt.leg()
    one()
    one()
    assert done == []


def test_a_batch_that_is_done_has_no_further_leg() -> None:
    receipt = Receipt(lambda: None)
    receipt.leg()()
    with pytest.raises(RuntimeError, match="done"):
        receipt.leg()


@examples(300)
@given(st.lists(st.one_of(st.just("begin"), st.integers(0, 5)), max_size=30))
def test_in_any_order_of_legs_done_comes_once_and_last(steps: list[str | int]) -> None:
    """A number ends that leg, which may have ended, or may not have begun."""
    done: list[int] = []
    receipt = Receipt(lambda: done.append(1))
    legs: list[Callable[[], None]] = []
    open_legs: set[int] = set()
    for step in steps:
        if isinstance(step, int):
            if step < len(legs):
                legs[step]()
                open_legs.discard(step)
        elif legs and not open_legs:
            with pytest.raises(RuntimeError):
                receipt.leg()
        else:
            open_legs.add(len(legs))
            legs.append(receipt.leg())
        assert done == ([1] if legs and not open_legs else [])
