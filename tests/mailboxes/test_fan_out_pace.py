"""When the next step of a fan-out is stored."""

from __future__ import annotations

from cocoa_tornado.mailboxes.fan_out_pace import GROUPS_FIRST, PACED_FROM, REST_FACTOR, FanOutPace


def test_a_few_groups_that_are_due_go_before_each_step() -> None:
    pace = FanOutPace()
    for _ in range(2):
        assert [pace.may_step(group_is_due=True) for _ in range(GROUPS_FIRST + 1)] == [False] * GROUPS_FIRST + [True]


def test_a_step_goes_at_once_if_no_group_is_due() -> None:
    pace = FanOutPace()
    assert not pace.may_step(group_is_due=True)
    assert pace.may_step(group_is_due=False)
    assert [pace.may_step(group_is_due=True) for _ in range(GROUPS_FIRST)] == [False] * GROUPS_FIRST


def test_a_fan_out_to_very_many_rests_only_if_messages_were_stored_since_its_last_step() -> None:
    pace = FanOutPace()
    assert pace.stepped(0.5, PACED_FROM + 1) is None
    pace.messages_stored()
    assert pace.stepped(0.5, PACED_FROM + 1) == REST_FACTOR * 0.5
    assert pace.is_resting
    pace.end_rest()
    assert pace.stepped(0.5, PACED_FROM + 1) is None
    assert not pace.is_resting


def test_a_smaller_fan_out_never_rests() -> None:
    pace = FanOutPace()
    pace.messages_stored()
    assert pace.stepped(0.5, PACED_FROM) is None
    assert not pace.is_resting


def test_a_step_during_a_rest_does_not_end_it() -> None:
    pace = FanOutPace()
    pace.messages_stored()
    pace.stepped(0.5, PACED_FROM + 1)
    pace.stepped(0.1, 0)
    assert pace.is_resting
