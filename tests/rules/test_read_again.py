"""Which records were read more than once."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.read_again import MAX_RUNS, Again, Run, Runs, read_again

ONE = "results/1"


def runs_of(*batches: tuple[float, list[int], list[tuple[str, int]]]) -> list[Run]:
    """:param batches: the first one was read first"""
    runs = Runs()
    for batch in reversed(batches):
        runs.add(*batch)
    return sorted(runs.all())


def test_batches_without_a_gap_are_one_run() -> None:
    assert runs_of((1.0, [3, 4], [(ONE, 2)]), (2.0, [5], [(ONE, 1)])) == [Run(ONE, 3, 5, 1.0)]
    assert read_again([("a", Run(ONE, 3, 5, 1.0))]) == []


def test_a_batch_of_several_partitions_is_in_a_run_of_each() -> None:
    found = runs_of((1.0, [7, 8, 7, 9], [(ONE, 2), ("results/2", 2)]), (2.0, [9], [(ONE, 1)]))
    assert found == [Run(ONE, 7, 9, 1.0), Run("results/2", 7, 7, 1.0), Run("results/2", 9, 9, 1.0)]


def test_a_server_that_goes_back_has_read_the_same_records_again() -> None:
    runs = runs_of((1.0, [0, 1, 2], [(ONE, 3)]), (5.0, [1, 2, 3], [(ONE, 3)]), (6.0, [4], [(ONE, 1)]))
    assert read_again(("a", run) for run in runs) == [Again(ONE, 1, 2, 2, ("a",), 5.0)]


def test_what_several_servers_have_read_counts_together_and_most_often_is_first() -> None:
    known = [("a", Run(ONE, 0, 9, 1.0)), ("b", Run(ONE, 5, 20, 2.0)), ("c", Run(ONE, 5, 6, 3.0))]
    assert read_again(known) == [
        Again(ONE, 5, 6, 3, ("a", "b", "c"), 3.0),
        Again(ONE, 7, 9, 2, ("a", "b"), 2.0),
    ]
    assert read_again([("a", Run(ONE, 0, 9, 1.0)), ("b", Run("results/2", 0, 9, 1.0))]) == []


def test_records_that_workers_have_divided_were_not_read_again() -> None:
    ours = runs_of((1.0, [0, 3, 5], [(ONE, 3)]))
    theirs = runs_of((1.0, [1, 2, 4], [(ONE, 3)]))
    assert read_again([*(("a", run) for run in ours), *(("b", run) for run in theirs)]) == []


def test_of_one_server_only_the_latest_runs_are_known() -> None:
    runs = Runs()
    offset = 5 * MAX_RUNS
    while not runs.is_full:
        runs.add(1.0, [offset], [(ONE, 1)])
        offset -= 2
    assert len(runs.all()) == MAX_RUNS


def test_only_a_partition_with_a_gap_makes_a_batch_long_to_add() -> None:
    assert Runs().add(1.0, [3, 4, 5, 7, 9], [(ONE, 3), ("results/2", 2)]) == 2
    assert Runs().add(1.0, [], [(ONE, 0)]) == 0


@given(
    st.lists(
        st.builds(
            lambda server, first, length, at_s: (server, Run(ONE, first, first + length, at_s)),
            st.sampled_from("abc"),
            st.integers(0, 9),
            st.integers(0, 9),
            st.sampled_from([1.0, 2.0, 3.0]),
        ),
        max_size=12,
    )
)
def test_of_each_record_the_servers_and_the_latest_time_are_found(known: list[tuple[str, Run]]) -> None:
    found = {offset: again for again in read_again(known) for offset in range(again.first, again.last + 1)}
    for offset in range(20):
        over = [(server, run) for server, run in known if run.first <= offset <= run.last]
        again = found.get(offset)
        if len(over) < 2:
            assert again is None
            continue
        servers, latest = tuple(sorted({server for server, _ in over})), max(run.at_s for _, run in over)
        assert again is not None
        assert (again.times, again.servers, again.at_s) == (len(over), servers, latest)


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), max_size=8)),
        max_size=8,
    )
)
def test_each_record_is_found_as_often_as_it_was_read(read: list[tuple[str, list[tuple[int, int]]]]) -> None:
    times, by_server = Counter[tuple[str, int]](), {"a": Runs(), "b": Runs()}
    for server, records in read:
        offsets, sources = list[int](), list[tuple[str, int]]()
        for partition in (0, 1):
            ours = sorted({offset for each, offset in records if each == partition})
            offsets += ours
            sources.append((f"results/{partition}", len(ours)))
            times.update((f"results/{partition}", offset) for offset in ours)
        by_server[server].add(1.0, offsets, sources)
    found = read_again((server, run) for server, runs in by_server.items() for run in runs.all())
    counted = {
        (again.partition, offset): again.times for again in found for offset in range(again.first, again.last + 1)
    }
    assert counted == {record: count for record, count in times.items() if count > 1}
