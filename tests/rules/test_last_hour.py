"""What has been counted within the last hour."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.last_hour import HOUR_S, PERIOD_S, Counted, LastHour


def test_a_young_process_shows_all_that_it_has_counted() -> None:
    hour = LastHour(100.0)
    assert hour.since(100.0, Counted({"read": 0})) == (0.0, Counted({}))
    hour.note(160.0, Counted({"read": 3}, {"expired": 1}))
    now = Counted({"read": 5, "lost": 0}, {"expired": 1}, {"1006": 2})
    assert hour.since(170.0, now) == (70.0, now._replace(counters={"read": 5}))


def test_what_is_more_than_an_hour_ago_is_not_counted() -> None:
    hour, fault = LastHour(0.0), Counted({"quarantined": 1}, {"signature": 4}, {"1013": 2})
    for minute in range(1, 62):
        hour.note(minute * PERIOD_S, fault)
    assert hour.since(61 * PERIOD_S, fault) == (HOUR_S, Counted({}))
    later = Counted({"quarantined": 3}, {"signature": 4, "expired": 1}, {"1013": 2})
    assert hour.since(61 * PERIOD_S + 1, later) == (HOUR_S + 1, Counted({"quarantined": 2}, {"expired": 1}))


def test_after_a_pause_it_looks_back_to_the_last_snapshot() -> None:
    hour = LastHour(0.0)
    hour.note(60.0, Counted({"read": 1}))
    assert hour.since(60.0 + 9 * HOUR_S, Counted({"read": 3})) == (9 * HOUR_S, Counted({"read": 2}))


@given(st.lists(st.tuples(st.floats(0.1, 2 * PERIOD_S), st.integers(0, 5)), max_size=150))
def test_it_counts_what_has_come_within_the_hour_and_at_most_two_periods_more(steps: list[tuple[float, int]]) -> None:
    hour, now, total, came = LastHour(0.0), 0.0, 0, list[tuple[float, int]]()
    for pause_s, count in steps:
        now, total = now + pause_s, total + count
        came.append((now, count))
        hour.note(now, Counted({"lost": total}))
        assert len(hour._snapshots) <= 62
    back_s, counted = hour.since(now, Counted({"lost": total}))
    # Snapshots that come too fast make the window shorter, never the memory larger.
    assert back_s <= HOUR_S + 2 * PERIOD_S
    assert counted.counters.get("lost", 0) == sum(count for at, count in came if at > now - back_s)
