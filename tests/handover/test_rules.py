"""The records of a device arrive in order and none is lost, whatever moves, ends or is late (handover.rules)."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoa_tornado.handover.announcements import Announcements
from cocoa_tornado.handover.pieces import Delivery
from cocoa_tornado.handover.rules import QUIET_S, Actions, Ask, Destinations, Phase, Route, _Sibling
from cocoa_tornado.routing.address import Everyone
from cocoa_tornado.rules.records import Record

from .world import run

STEPS = 200


@given(st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_whatever_happens_records_arrive_in_order_and_once_and_every_batch_is_done(random: Random) -> None:
    run(random, STEPS)


class NoFence(Destinations):
    """Hands over before the sibling has received what the relay has for it."""

    def _ask(self, number: int) -> Actions:
        actions = super()._ask(number)
        for ask in actions:
            assert isinstance(ask, Ask)
            self.fenced(number, ask.number)
        return []


class Hasty(Destinations):
    """Routes the records of a device that leaves a sibling before the sibling has acknowledged the earlier ones."""

    def _leave(self, device_id: str, sibling: _Sibling) -> None:
        super()._leave(device_id, sibling)
        _, _, moving = sibling.leaving.pop()
        sibling.leaving.append((0, device_id, moving))


class Forgetful(Destinations):
    """Does not route what a sibling that ends has not acknowledged."""

    def down(self, number: int) -> Actions:
        sibling = self._siblings.get(number)
        if sibling is not None:
            sibling.close()
            for portion in sibling.unacknowledged:
                for piece in portion.pieces:
                    piece.done()
            sibling.unacknowledged.clear()
        return super().down(number)


class Fickle(Destinations):
    """Goes by the latest announcement at once."""

    def announced(self, number: int, upto: int, here: Sequence[str], gone: Sequence[str]) -> Actions:  # type: ignore[override]  # world.py has lists
        actions = super().announced(number, upto, here, gone)
        for device_id in here:
            if self.phase is Phase.ON and isinstance(self._where.get(device_id), int):
                self._where[device_id] = number
        return actions


class Careless(Destinations):
    """Does not stop for records that are for several devices."""

    def take(self, delivery: Delivery, now: float, *, is_allowed: bool = True) -> Actions:
        where, self._where = self._where, {**self._where, Everyone(): 0}  # type: ignore[dict-item]  # the fault
        shared = [at for at, record in enumerate(delivery.records) if record.address == Everyone()]
        self._where = where
        if self.phase is Phase.ON and shared and self._where and len(delivery.records) == 1:
            return [self._route([_piece(delivery)])]
        return super().take(delivery, now, is_allowed=is_allowed)


class Welcoming(Announcements):
    """Takes records of every device that is here now."""

    def strangers(self, device_ids: Sequence[str], seen: int) -> list[int]:
        return super().strangers(device_ids, 2**60)


@pytest.mark.parametrize("fault", [NoFence, Hasty, Forgetful, Welcoming])
def test_a_planted_fault_is_found(fault: type) -> None:
    kinds = {"make_announcements" if fault is Welcoming else "make_rules": fault}
    found = 0
    for seed in range(2_000):
        try:
            run(Random(seed), STEPS, **kinds)
        except (AssertionError, KeyError):
            found = seed + 1
            break
    print(fault.__name__, found)
    assert found
