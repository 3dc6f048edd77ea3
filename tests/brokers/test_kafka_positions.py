from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.brokers.kafka_positions import Start, where_to_start


def test_a_group_with_offsets_for_all_of_ours_goes_on_there() -> None:
    assert where_to_start([1, 2], {0: None, 1: 5, 2: 0}) is Start.NOWHERE


def test_a_partition_that_is_new_to_the_group_begins_at_the_beginning() -> None:
    assert where_to_start([2], {0: 7, 1: None, 2: None}) is Start.BEGINNING


def test_the_owner_of_partition_0_decides_for_a_fresh_group() -> None:
    assert where_to_start([0, 1], {0: None, 1: None, 2: None}) is Start.END_FOR_ALL
    assert where_to_start([2], {0: None, 1: None, 2: None}) is Start.WAIT


@given(st.lists(st.tuples(st.none() | st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=10))
def test_whoever_decides_for_all_is_the_only_one(partitions: list[tuple[int | None, int]]) -> None:
    committed = {number: offset for number, (offset, _) in enumerate(partitions)}
    shares = [[number for number, (_, owner) in enumerate(partitions) if owner == member] for member in range(3)]
    decisions = [where_to_start(share, committed) for share in shares if share]
    assert decisions.count(Start.END_FOR_ALL) <= 1
    if Start.WAIT in decisions:
        assert decisions.count(Start.END_FOR_ALL) == 1
