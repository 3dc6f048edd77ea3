from __future__ import annotations

from concurrent.futures import wait
from typing import Any

import pytest
from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndTimestamp

from cocoa_tornado.brokers.kafka_clients import KafkaClients
from cocoa_tornado.brokers.kafka_logs import LogState, LogWatch, describe_log
from cocoa_tornado.brokers.kafka_options import KafkaOptions
from cocoa_tornado.rules.standstill import Ends

TOPIC = "results"


class Admin:
    """Answers about a topic with partition 0, of which 5 records may be read.

    :ivar ids: the topic's, one for each question, the last one again and again
    :ivar high: how many records are there
    """

    def __init__(self, *ids: str | None, error_code: int = 0) -> None:
        self.ids, self._error_code = list(ids), error_code
        self.high = 7
        self.closed = False

    def describe_topics(self, topics: list[str]) -> list[dict[str, Any]]:
        topic_id = self.ids.pop(0) if len(self.ids) > 1 else self.ids[0]
        return [{"name": topics[0], "error_code": self._error_code, "topic_id": topic_id}]

    def list_partition_offsets(
        self, wanted: dict[TopicPartition, object], isolation_level: str
    ) -> dict[TopicPartition, OffsetAndTimestamp]:
        if any(where.partition for where in wanted):
            raise kafka_errors.UnknownTopicOrPartitionError
        offset = 5 if isolation_level == "read_committed" else self.high
        return {where: OffsetAndTimestamp(offset, -1, None) for where in wanted}

    def close(self) -> None:
        self.closed = True


def test_a_topic_has_an_id_and_ends() -> None:
    assert describe_log(Admin("a"), TOPIC, [0], "a") == LogState("a", {0: Ends(5, 7)})


@pytest.mark.parametrize("given", [None, "", "00000000-0000-0000-0000-000000000000"])
def test_brokers_that_give_no_id_give_none(given: str | None) -> None:
    assert describe_log(Admin(given), TOPIC, [], None).topic_id is None


def test_an_id_that_is_another_one_in_each_answer_is_none() -> None:
    assert describe_log(Admin("a", "b"), TOPIC, [], None).topic_id is None


def test_a_new_id_counts_once_it_is_given_twice() -> None:
    assert describe_log(Admin("b", "b"), TOPIC, [], "a").topic_id == "b"


def test_a_topic_with_fewer_partitions_has_an_id_all_the_same() -> None:
    assert describe_log(Admin("b"), TOPIC, [0, 1], "a") == LogState("b", {})


def test_a_topic_that_is_not_there_is_no_answer() -> None:
    with pytest.raises(kafka_errors.UnknownTopicOrPartitionError):
        describe_log(Admin(None, error_code=3), TOPIC, [], "a")


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> Admin:
    admin = Admin("a")
    monkeypatch.setattr(KafkaClients, "admin", lambda self: admin)
    return admin


def watching() -> LogWatch:
    options = KafkaOptions(bootstrap=("127.0.0.1:1",), results_topic=TOPIC, probe_interval_s=2.0)
    return LogWatch(KafkaClients(options), options)


def asked(watch: LogWatch, numbers: list[int], holding: int, now: float) -> None:
    watch.ask(numbers, holding, now)
    wait([watch._inquiry.ask()], 10)


def test_each_answer_is_taken_once(admin: Admin) -> None:
    watch = watching()
    asked(watch, [0], 1, 10.0)
    assert watch.take_answer(1, 10.1) == LogState("a", {0: Ends(5, 7)})
    assert watch.take_answer(1, 10.1) is None


def test_it_asks_less_often_while_no_record_comes(admin: Admin) -> None:
    admin.high = 5
    watch = watching()
    assert watch.is_due(10.0)
    asked(watch, [0], 1, 10.0)
    watch.take_answer(1, 10.1)
    assert [watch.is_due(now) for now in (19.9, 20.0)] == [False, True]
    watch.note_records(14.0)
    assert [watch.is_due(now) for now in (15.9, 16.0)] == [False, True]
    watch.hurry()
    assert watch.is_due(14.0)


def test_it_asks_as_often_as_with_records_while_a_transaction_is_open(admin: Admin) -> None:
    watch = watching()
    asked(watch, [0], 1, 10.0)
    watch.take_answer(1, 10.0)
    assert [watch.is_due(now) for now in (11.9, 12.0)] == [False, True]


def test_an_answer_about_partitions_that_have_changed_hands_is_asked_for_again(admin: Admin) -> None:
    watch = watching()
    asked(watch, [0], 1, 10.0)
    assert watch.take_answer(2, 10.1) is None
    assert watch.is_due(10.1)


def test_a_question_that_fails_changes_nothing(admin: Admin) -> None:
    watch = watching()
    admin.ids = []
    asked(watch, [0], 1, 10.0)
    assert watch.take_answer(1, 10.1) is None
    assert admin.closed  # the next question opens new connections


def test_an_answer_to_an_earlier_question_is_not_enough_where_a_new_one_is_wanted(admin: Admin) -> None:
    watch = watching()
    asked(watch, [0], 1, 10.0)
    admin.ids = ["b"]
    assert watch.wait_for_answer(10.0).topic_id == "a"
    asked(watch, [0], 1, 10.0)
    admin.ids = ["c"]
    assert watch.wait_for_answer(10.0, new=True).topic_id == "c"


@pytest.mark.logs("cocoa.broker", "^stable offset stalled$")
def test_a_standstill_is_forgotten_with_the_session(admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    watch = watching()
    for now in (0.0, 5.0):
        asked(watch, [0], 1, now)
        watch.take_answer(1, now)
    watch.rest()
    for now in (11.0, 20.0):
        asked(watch, [0], 2, now)
        watch.take_answer(2, now)
    assert caplog.messages == []
    asked(watch, [0], 2, 21.0)
    watch.take_answer(2, 21.0)
    assert caplog.messages == ["stable offset stalled"]
