from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules import topic_log
from cocoa_tornado.rules.records import Record
from cocoa_tornado.rules.topic_log import Log, Recent, read_mark

IDS = st.uuids().map(str)


def records(*texts: str, timestamp_ms: int = 7) -> list[Record]:
    return [Record("doll", text.encode(), timestamp_ms) for text in texts]


def test_the_first_log_of_a_group_has_the_plain_name_and_later_ones_their_id() -> None:
    assert Log("abc").source("results", 3) == "results/3"
    assert Log("abc", first=False).source("results", 3) == "results@abc/3"
    assert Log(None).source("results", 3) == "results/3"


@given(IDS, st.booleans())
def test_a_mark_is_read_as_it_was_written(topic_id: str, first: bool) -> None:
    assert read_mark(Log(topic_id, first).mark()) == Log(topic_id, first)


@given(IDS, st.booleans(), st.text())
def test_what_a_library_adds_to_a_mark_is_ignored(topic_id: str, first: bool, more: str) -> None:
    """confluent-kafka reads on behind its end."""
    assert read_mark(Log(topic_id, first).mark() + more) == Log(topic_id, first)


@given(st.none() | st.text())
def test_what_others_write_beside_an_offset_is_no_mark(text: str | None) -> None:
    assert read_mark(text) is None


def test_brokers_that_give_no_id_have_no_mark_written() -> None:
    assert Log(None).mark() == ""


def test_records_handed_over_since_the_last_look_are_known_again_in_the_new_log() -> None:
    recent = Recent()
    recent.note([5, 6], records("five", "six"), [("results/0", 2)])
    repeats = recent.repeats()
    found = repeats.without(records("zero", "five", "six", "seven"), [0, 5, 6, 7], [("results@b/0", 4)])
    assert found == (records("zero", "seven"), [0, 7], [("results@b/0", 2)])
    assert not repeats  # they have been passed


@pytest.mark.parametrize(
    ("text", "timestamp_ms", "source"),
    [("other", 7, "results@b/0"), ("five", 8, "results@b/0"), ("five", 7, "results@b/1")],
    ids=["content", "timestamp", "partition"],
)
def test_another_record_at_the_same_offset_is_new(text: str, timestamp_ms: int, source: str) -> None:
    recent = Recent()
    recent.note([5], records("five"), [("results/0", 1)])
    batch = records(text, timestamp_ms=timestamp_ms), [5], [(source, 1)]
    assert recent.repeats().without(*batch) == batch


def test_only_what_was_handed_over_before_the_question_is_confirmed_by_its_answer() -> None:
    recent = Recent()
    recent.note([1], records("one"), [("results/0", 1)])
    recent.ask()
    recent.note([2], records("two"), [("results/0", 1)])
    recent.confirm()
    batch = records("one", "two"), [1, 2], [("results@b/0", 2)]
    assert recent.repeats().without(*batch) == (records("one"), [1], [("results@b/0", 1)])


def test_an_answer_confirms_once() -> None:
    recent = Recent()
    recent.ask()
    recent.note([1], records("one"), [("results/0", 1)])
    recent.confirm()
    recent.confirm()
    assert recent.repeats()


def test_a_question_that_is_never_answered_costs_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_log, "REMEMBERED", 10)
    recent = Recent()
    recent.ask()
    for offset in range(0, 100, 2):
        recent.note([offset, offset + 1], records("a", "b"), [("results/0", 2)])
    assert recent.records == 10
    recent.confirm()
    assert recent.records == 10  # what the question confirms has been forgotten long since


def test_a_batch_of_several_partitions_keeps_what_is_new_of_each() -> None:
    recent = Recent()
    recent.note([3, 8], records("a", "b"), [("results/0", 1), ("results/1", 1)])
    batch = records("a", "c", "b"), [3, 4, 8], [("results@b/0", 2), ("results@b/1", 1)]
    assert recent.repeats().without(*batch) == (records("c"), [4], [("results@b/0", 1)])
