from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.brokers.kafka_positions import History, Plan, Start, identify, where_to_start
from cocoa_tornado.rules.topic_log import Committed, Log

OLD, NEW = Log("old"), Log("new", first=False)


def test_a_group_with_offsets_for_all_of_ours_goes_on_there() -> None:
    assert where_to_start([1, 2], {0: None, 1: 5, 2: 0}) is Start.NOWHERE


def test_a_partition_that_is_new_to_the_group_begins_at_the_beginning() -> None:
    assert where_to_start([2], {0: 7, 1: None, 2: None}) is Start.BEGINNING


def test_the_owner_of_partition_0_decides_for_a_fresh_group() -> None:
    assert where_to_start([0, 1], {0: None, 1: None, 2: None}) is Start.END_FOR_ALL
    assert where_to_start([2], {0: None, 1: None, 2: None}) is Start.WAIT


def test_a_group_that_has_read_the_topic_before_is_no_fresh_one() -> None:
    assert where_to_start([0, 1], {0: None, 1: None}, has_read=True) is Start.BEGINNING


@given(st.lists(st.tuples(st.none() | st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=10))
def test_only_one_member_decides_for_all(partitions: list[tuple[int | None, int]]) -> None:
    committed = {number: offset for number, (offset, _) in enumerate(partitions)}
    shares = [[number for number, (_, owner) in enumerate(partitions) if owner == member] for member in range(3)]
    decisions = [where_to_start(share, committed) for share in shares if share]
    assert decisions.count(Start.END_FOR_ALL) <= 1
    if Start.WAIT in decisions:
        assert decisions.count(Start.END_FOR_ALL) == 1


# -- which log it is


def test_a_topic_of_which_nothing_is_known_is_the_first_log() -> None:
    assert identify("new", [None], None) == Log("new", first=True)


def test_a_topic_that_was_read_by_a_release_without_marks_keeps_the_plain_name() -> None:
    assert identify("new", [Committed(7, None), None], None) == Log("new", first=True)


def test_a_topic_with_another_id_is_a_later_log() -> None:
    assert identify("new", [Committed(7, OLD)], None) == NEW
    assert identify("new", [None], OLD) == NEW


def test_a_log_keeps_its_name_through_restarts() -> None:
    assert identify("old", [Committed(7, OLD)], None) == OLD
    assert identify("new", [Committed(7, OLD), Committed(3, NEW)], None) == NEW


@pytest.mark.parametrize("before", [None, OLD])
def test_a_topic_without_an_id_is_taken_for_the_one_that_was_read(before: Log | None) -> None:
    assert identify(None, [Committed(7, OLD)], before) == OLD


def test_ids_that_the_brokers_begin_to_give_change_no_name() -> None:
    assert identify("old", [None], Log(None)) == OLD


# -- where to begin


def planned(
    history: History, committed: Mapping[int, Committed | None], topic_id: str | None
) -> tuple[dict[int, int], Start]:
    plan = history.plan(committed.keys(), committed, topic_id)
    return plan.starts, plan.start


def test_an_offset_of_the_same_log_is_where_to_go_on() -> None:
    assert planned(History(), {0: Committed(7, OLD)}, "old") == ({0: 7}, Start.NOWHERE)


def test_an_offset_of_another_log_is_none_of_this_one() -> None:
    assert planned(History(), {0: Committed(7, OLD)}, "new") == ({}, Start.BEGINNING)


def test_an_offset_without_a_mark_counts() -> None:
    assert planned(History(), {0: Committed(7, None)}, "new") == ({0: 7}, Start.NOWHERE)


def test_an_offset_without_a_mark_does_not_count_where_the_topic_is_known_to_have_been_another() -> None:
    assert planned(History(log=OLD), {0: Committed(7, None)}, "new") == ({}, Start.BEGINNING)


def test_a_process_that_has_read_the_topic_is_no_fresh_group() -> None:
    assert planned(History(log=OLD), {0: None}, "new") == ({}, Start.BEGINNING)
    assert planned(History(log=Log(None)), {0: None}, None) == ({}, Start.BEGINNING)


def test_partitions_added_to_a_log_begin_at_the_beginning() -> None:
    assert planned(History(log=OLD), {0: Committed(7, OLD), 1: None}, "old") == ({0: 7}, Start.BEGINNING)


def test_what_is_known_of_each_partition_counts_for_itself() -> None:
    committed = {0: Committed(7, OLD), 1: Committed(3, NEW)}
    assert planned(History(), committed, "new") == ({1: 3}, Start.BEGINNING)


def test_a_group_that_has_lost_its_offsets_goes_on_where_this_process_was() -> None:
    history = History()
    history.enter(OLD)
    history.give_up(0, 7, is_committed=True)
    plan = history.plan([0], {0: None}, "old")
    assert (plan.starts, plan.uncommitted, plan.start) == ({0: 7}, frozenset({0}), Start.NOWHERE)


def test_what_was_done_here_and_not_committed_is_not_read_again() -> None:
    history = History()
    history.enter(OLD)
    history.give_up(0, 9, is_committed=False)
    plan = history.plan([0], {0: Committed(7, OLD)}, "old")
    assert (plan.starts, plan.behind, plan.start) == ({0: 9}, {0: 7}, Start.NOWHERE)
    history.note_committed(0, 9)
    plan = history.plan([0], {0: Committed(7, OLD)}, "old")
    assert (plan.starts, plan.behind, plan.start) == ({0: 7}, {}, Start.NOWHERE)


def test_done_offsets_of_the_old_log_do_not_apply_to_the_new_one() -> None:
    history = History()
    history.enter(OLD)
    history.give_up(0, 9, is_committed=False)
    assert planned(history, {0: Committed(2, NEW)}, "new") == ({0: 2}, Start.NOWHERE)
    assert history.enter(NEW)
    assert (history.earlier, history.left_at, history.done_here) == ({"old"}, {}, {})


def test_the_log_that_was_read_before_is_named_once() -> None:
    history = History(log=OLD)
    assert history.plan([0], {0: Committed(7, OLD)}, "new").previous == "old"
    history.enter(NEW)
    assert history.plan([0], {0: Committed(7, OLD)}, "new").previous is None
    assert History().plan([0], {0: Committed(7, OLD)}, "new").previous == "old"


LOGS = st.sampled_from([None, OLD, NEW])
COMMITTED = st.none() | st.builds(Committed, st.integers(0, 9), LOGS)


@given(
    st.dictionaries(st.integers(0, 4), COMMITTED, min_size=1),
    st.sampled_from([None, "old", "new"]),
    st.sampled_from([None, Log(None), OLD]),
    st.sets(st.integers(0, 4)),
)
def test_each_partition_of_ours_has_a_start_and_no_offset_of_another_log(
    committed: dict[int, Committed | None], topic_id: str | None, before: Log | None, share: set[int]
) -> None:
    assigned = committed.keys() & share
    plan: Plan = History(log=before).plan(assigned, committed, topic_id)
    assert plan.starts.keys() | plan.rest == assigned
    assert not plan.starts.keys() & plan.rest
    assert bool(plan.rest) == (plan.start is not Start.NOWHERE)
    if topic_id is None:
        return
    assert plan.log.id == topic_id
    for partition, start in plan.starts.items():
        known = committed[partition]
        assert known is not None
        assert known.offset == start
        assert known.log is None or known.log.id == topic_id


def test_an_earlier_log_that_has_come_back_is_read_and_no_earlier_one_any_more() -> None:
    """A broker that was restored from an older copy."""
    history = History(log=NEW, earlier={"old"})
    plan = history.plan([0], {0: Committed(7, OLD)}, "old")
    assert (plan.log, plan.starts) == (OLD, {0: 7})
    assert history.enter(plan.log)
    assert history.earlier == {"new"}
