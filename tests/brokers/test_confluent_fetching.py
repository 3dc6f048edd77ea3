"""What one poll of librdkafka brings, and what is known of batches that it cannot read."""

from __future__ import annotations

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import KafkaError  # where it is installed

from cocoa_tornado.brokers.confluent_broken import DOUBT_S, BrokenBatches  # likewise
from cocoa_tornado.brokers.confluent_fetching import sort


class Message:
    """A record of a partition, or an error in its place."""

    def __init__(self, number: int, offset: int, error: int | None = None) -> None:
        self._number, self._offset = number, offset
        self._error = None if error is None else KafkaError(error)

    def error(self) -> KafkaError | None:
        return self._error

    def partition(self) -> int:
        return self._number

    def offset(self) -> int:
        return self._offset


def test_records_are_sorted_by_partition_and_errors_by_kind() -> None:
    first, other, second = Message(0, 5), Message(1, 9), Message(0, 6)
    end, away = Message(1, 10, KafkaError._PARTITION_EOF), Message(2, 0, KafkaError._TRANSPORT)
    fetched = sort([first, other, second, end, away])
    assert (fetched.runs, fetched.ends, fetched.broken) == ({0: [first, second], 1: [other]}, {1: 10}, {})
    assert [error.code() for error in fetched.events] == [KafkaError._TRANSPORT]


def test_what_comes_behind_a_broken_batch_of_its_partition_is_left_out() -> None:
    before, broken, again = Message(0, 5), Message(0, 6, KafkaError._BAD_MSG), Message(0, 6, KafkaError._BAD_MSG)
    fetched = sort([before, broken, Message(0, 0), Message(0, 1, KafkaError._PARTITION_EOF), again])
    assert (fetched.runs, fetched.ends, fetched.broken) == ({0: [before]}, {}, {0: broken})


def test_a_batch_that_cannot_be_read_is_requested_once_more() -> None:
    batches = BrokenBatches()
    assert batches.found(0, 11)
    assert not batches.found(0, 11)
    batches.passed(0, 500)
    assert not batches.found(0, 500)
    batches.forget([0, 1])
    assert batches.found(0, 500)


def test_earlier_records_count_as_a_restart_until_reading_has_gone_on_for_a_minute() -> None:
    batches = BrokenBatches()
    assert not batches.may_have_restarted(0, 0, 11, 100.0)
    batches.doubt(0)
    assert batches.may_have_restarted(0, 0, 11, 1e9)
    assert not batches.may_have_restarted(0, 11, 11, 100.0)
    assert batches.may_have_restarted(0, 0, 12, 100.0 + DOUBT_S / 2)
    assert not batches.may_have_restarted(0, 0, 12, 100.0 + DOUBT_S)
