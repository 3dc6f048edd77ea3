"""Claims that Redis does not answer are given up, and only those."""

from __future__ import annotations

import pytest

from cocoa_tornado.presence.redis_deadlines import ClaimDeadlines
from cocoa_tornado.rules.claims import Claim
from testing.waiting import eventually

pytestmark = pytest.mark.gen_test

ONE, TWO, THREE = (Claim("a", number) for number in (1, 2, 3))


class Waiting:
    """Claims that are over at once, as soon as the clock says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.claims = {ONE, TWO, THREE}
        self.given_up: list[tuple[str, float]] = []
        self.deadlines = ClaimDeadlines(lambda: self.now, lambda: 0.0, self.claims, self.give_up)

    def give_up(self, device_id: str, now: float) -> None:
        self.given_up.append((device_id, now))


async def test_those_that_were_not_answered_are_given_up_in_their_order() -> None:
    waiting = Waiting()
    for device_id, claim in (("first", ONE), ("answered", TWO), ("last", THREE)):
        waiting.deadlines.add(device_id, claim, 100.0)
    waiting.claims.remove(TWO)
    await eventually(lambda: len(waiting.given_up) == 2)
    assert waiting.given_up == [("first", 100.0), ("last", 100.0)]


async def test_one_that_came_later_is_given_up_later() -> None:
    waiting = Waiting()
    waiting.deadlines.add("first", ONE, 100.0)
    waiting.deadlines.add("last", TWO, 100.01)
    await eventually(lambda: len(waiting.given_up) == 1)
    waiting.now = 101.0
    await eventually(lambda: len(waiting.given_up) == 2)
    assert waiting.given_up == [("first", 100.0), ("last", 101.0)]


async def test_nothing_is_given_up_after_the_stop() -> None:
    waiting = Waiting()
    waiting.deadlines.add("first", ONE, 100.0)
    waiting.deadlines.stop()
    waiting.deadlines.stop()
    assert (waiting.given_up, repr(waiting.deadlines)) == ([], "<ClaimDeadlines of 0>")
