"""How many fan-outs may be under way."""

from __future__ import annotations

from cocoa_tornado.mailboxes.fan_out_bound import FAN_OUTS_UNDER_WAY, count, may_begin
from cocoa_tornado.mailboxes.port import FanOut
from cocoa_tornado.rules.audiences import ALL, of_group, of_user

from .stands import entry


def test_fan_outs_for_groups_and_everyone_count() -> None:
    audiences = (of_group("user:1"), ALL, of_user(99), of_user("99"))
    fan_outs = [FanOut(audience, frozenset(), b"", 0, "s", at) for at, audience in enumerate(audiences)]
    assert count([entry(0), *fan_outs]) == 2
    assert count([entry(0)]) == count([]) == 0


def test_what_begins_no_fan_out_never_waits_and_a_call_with_many_waits_for_all_others() -> None:
    assert may_begin(0, FAN_OUTS_UNDER_WAY + 1)
    assert may_begin(FAN_OUTS_UNDER_WAY - 3, 3)
    assert not may_begin(FAN_OUTS_UNDER_WAY - 3, 4)
    assert not may_begin(1, FAN_OUTS_UNDER_WAY)
    assert may_begin(FAN_OUTS_UNDER_WAY + 1, 0)
    assert not may_begin(FAN_OUTS_UNDER_WAY + 1, 1)
