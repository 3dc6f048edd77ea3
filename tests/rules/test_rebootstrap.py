from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.rebootstrap import UNREACHABLE_S, Reachability


def test_bootstrap_addresses_are_asked_when_no_broker_was_reached_for_a_while_and_then_now_and_then() -> None:
    reachability = Reachability()
    asked = [second for second in range(20) if reachability.look(float(second), reached=False, tried=True)]
    assert asked == [5, 10, 15]


def test_a_client_that_reaches_a_broker_or_has_no_work_asks_nothing() -> None:
    reachability = Reachability()
    for second in range(20):
        assert not reachability.look(float(second), reached=second % 5 == 0, tried=True)
    for second in range(20, 40):
        assert not reachability.look(float(second), reached=False, tried=second % 5 == 0)


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans(), st.booleans())))
def test_each_question_has_a_while_before_it_in_which_every_look_found_no_broker(
    looks: list[tuple[float, bool, bool]],
) -> None:
    reachability, now, lonely_since = Reachability(), 0.0, None
    for step, reached, tried in looks:
        now += step
        if reached or not tried:
            lonely_since = None
        elif lonely_since is None:
            lonely_since = now
        is_due = lonely_since is not None and now - lonely_since >= UNREACHABLE_S
        assert reachability.look(now, reached=reached, tried=tried) == is_due
        if is_due:
            lonely_since = now
