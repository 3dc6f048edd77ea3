"""Which records a device has taken already (cocoa_tornado.rules.taken)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.taken import LEAST_DEVICES, MAX_SOURCES, TakenOffsets


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 21)), max_size=20))
def test_a_partition_that_is_read_again_in_any_pieces_gives_each_record_once_and_in_order(
    reads: list[tuple[int, int]],
) -> None:
    """Each consumer reads on from the last commit, which is at most where an earlier one has come to. Timestamps of
    different producers are not in order."""
    taken, given_out, reached = TakenOffsets(), [], 0
    for begin, end in reads:
        for offset in range(min(begin, reached), end):
            if taken.of("results/0").take("doll", offset, 1000 + (offset * 7) % 5):
                given_out.append(offset)
        reached = max(reached, end)
    assert given_out == list(range(reached))


def test_devices_and_partitions_are_kept_apart() -> None:
    taken = TakenOffsets()
    assert taken.of("results/0").take("doll", 5, 1)
    assert taken.of("results/1").take("doll", 5, 1)
    assert taken.of("results/0").take("bear", 5, 1)
    assert not taken.of("results/0").take("doll", 5, 1)
    assert not taken.of("results/1").take("doll", 4, 1)


def test_a_partition_that_has_lost_its_end_gives_other_records_at_the_same_offsets() -> None:
    taken = TakenOffsets()
    assert taken.of("results/0").take("doll", 9, 100)
    assert taken.of("results/0").take("doll", 7, 200)
    assert not taken.of("results/0").take("doll", 7, 200)
    assert taken.of("results/0").take("doll", 8, 201)


def test_without_timestamps_offsets_alone_decide() -> None:
    taken = TakenOffsets()
    assert taken.of("results/0").take("doll", 9, 0)
    assert not taken.of("results/0").take("doll", 9, 0)
    assert taken.of("results/0").take("doll", 10, 0)


def test_a_bounded_number_of_partitions_is_remembered() -> None:
    taken = TakenOffsets()
    for partition in range(MAX_SOURCES + 1):
        assert taken.of(f"results/{partition}").take("doll", 1, 1)
    assert not taken.of(f"results/{MAX_SOURCES}").take("doll", 1, 1)
    assert taken.of("results/0").take("doll", 1, 1), "forgotten"


def test_devices_that_have_left_are_forgotten() -> None:
    taken = TakenOffsets()
    for number in range(LEAST_DEVICES + 1):
        taken.of("results/0").take(str(number), 1, 1)
    source = taken.of("results/0")
    source.forget_absent({"0", "1"}, 2)
    assert len(source) == 2
    assert not source.take("0", 1, 1)
    source.forget_absent(set(), 0)
    assert len(source) == 2, "only if there are many"
