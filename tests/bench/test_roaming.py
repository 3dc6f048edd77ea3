"""The roaming test counts what its docstring says, and nothing else."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bench.roaming_count import HAND_OVER_NS, Counts, Receipt, Visit, count, merged

MS = 1_000_000


def visit(admitted: int, ended: int, *receipts: tuple[int, int, int]) -> Visit:
    """Times are in milliseconds; receipts are number, published, at."""
    found = [Receipt(number, published * MS, at * MS) for number, published, at in receipts]
    return Visit(admitted * MS, ended * MS, found)


def test_one_connection_after_another_is_as_it_should_be() -> None:
    counts = count([visit(0, 100, (1, 10, 20)), visit(100, 300, (2, 90, 110))])
    assert counts == Counts(admitted=2, received=2)


def test_two_connections_at_once_are_two_open_though_none_is_served() -> None:
    counts = count([visit(0, 500, (1, 10, 20)), visit(300, 900)])
    assert (counts.open.count, counts.open.total_ns, counts.open.longest_ns) == (1, 200 * MS, 200 * MS)
    assert counts.lasting == counts.open
    assert (counts.served.count, counts.superseded, counts.twice) == (0, 0, 0)


def test_a_hand_over_is_not_counted_as_two_open_for_long() -> None:
    counts = count([visit(0, 300 + HAND_OVER_NS // MS), visit(300, 900)])
    assert (counts.open.count, counts.lasting.count) == (1, 0)


def test_two_are_served_if_each_received_a_message_published_after_both_were_admitted() -> None:
    counts = count([visit(0, 500, (1, 310, 320), (2, 350, 360)), visit(300, 900, (1, 310, 325))])
    assert (counts.served.count, counts.served.total_ns) == (1, 60 * MS)
    assert (counts.superseded, counts.twice) == (2, 1)


def test_a_message_that_was_under_way_when_the_device_moved_is_no_fault() -> None:
    counts = count([visit(0, 500, (1, 290, 310)), visit(300, 900, (2, 400, 410))])
    assert (counts.served.count, counts.superseded, counts.twice) == (0, 0, 0)


def test_what_only_the_superseded_connection_received_is_superseded_but_not_two_served() -> None:
    counts = count([visit(0, 500, (1, 400, 410)), visit(300, 900, (2, 600, 610))])
    assert (counts.served.count, counts.superseded, counts.twice) == (0, 1, 0)


def test_a_connection_is_superseded_only_while_the_newer_one_is_open() -> None:
    counts = count([visit(0, 500, (1, 450, 460)), visit(300, 400)])
    assert (counts.served.count, counts.superseded) == (0, 0)


def test_three_at_once_are_one_time_and_their_messages_count_once() -> None:
    counts = count([visit(0, 900, (1, 500, 510)), visit(100, 900, (1, 500, 510)), visit(200, 900, (1, 500, 510))])
    assert (counts.open.count, counts.open.total_ns) == (1, 800 * MS)
    assert (counts.served.count, counts.served.total_ns) == (1, 410 * MS)
    assert (counts.superseded, counts.twice) == (2, 2)


SPANS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)).map(lambda one: (one[0], sum(one))))


@given(SPANS)
def test_merged_intervals_cover_the_same_and_do_not_touch(spans: list[tuple[int, int]]) -> None:
    found = merged(spans)
    assert _covered(found) == _covered(spans)
    assert all(before[1] < after[0] for before, after in pairwise(found))


def _covered(spans: list[tuple[int, int]]) -> set[int]:
    return {at for since, until in spans for at in range(since, until + 1)}
