"""A kafka-python consumer that waits for records: it recognizes available brokers by their other answers, and the wait
can be interrupted."""

from __future__ import annotations

import threading
from collections import deque
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.future import Future

from cocoa_tornado.brokers.kafka_connections import ConnectionManager
from cocoa_tornado.brokers.kafka_link import ANSWER_S, ConsumerLink

ONE, TWO = TopicPartition("results", 0), TopicPartition("results", 1)
LEADERS = {ONE: 1, TWO: 2}


def link(requests: dict[Any, float | None], fetches: list[Future] | None = None) -> ConsumerLink:
    """
    :param requests: by node, when the oldest was sent that it has not answered; None: it has answered all
    """
    connections = {
        node: SimpleNamespace(
            connected=True, in_flight_requests=deque([] if at is None else [(1, None, at, 0.0, None)])
        )
        for node, at in requests.items()
    }
    manager = SimpleNamespace(_conns=connections, cluster=SimpleNamespace(leader_for_partition=LEADERS.get))
    manager.oldest_request_at = lambda node: ConnectionManager.oldest_request_at(manager, node)  # type: ignore[arg-type]
    coordinator = SimpleNamespace(coordinator_id="coordinator-1")
    fetcher = SimpleNamespace(_fetch_futures=deque(fetches or []), fetched_records=lambda: ({ONE: ["a record"]}, False))
    consumer = SimpleNamespace(_coordinator=coordinator, _fetcher=fetcher)
    return ConsumerLink(consumer, None, manager)  # type: ignore[arg-type]  # stand-ins


def test_brokers_that_have_a_recent_fetch_are_known_to_be_there() -> None:
    found = link({1: 10.0, 2: 10.0, "coordinator-1": None})
    assert found.brokers_answer(LEADERS, 10.0 + ANSWER_S / 2)


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param({1: 10.0, 2: 10.0 - ANSWER_S, "coordinator-1": None}, id="a leader that does not answer"),
        pytest.param({1: 10.0, 2: 10.0, "coordinator-1": 10.0 - ANSWER_S}, id="a coordinator that does not answer"),
        pytest.param({1: 10.0, "coordinator-1": None}, id="a leader without a connection"),
        pytest.param({1: 10.0, 2: 10.0}, id="a coordinator without a connection"),
        pytest.param({1: 10.0, 2: None, "coordinator-1": None}, id="a leader that has been sent no fetch"),
    ],
)
def test_a_broker_that_may_be_away_is_not_known_to_be_there(requests: dict[Any, float | None]) -> None:
    assert not link(requests).brokers_answer(LEADERS, 10.0)


def test_a_connection_without_requests_is_never_late() -> None:
    assert link({1: None}).manager.oldest_request_at(1) == inf


def test_the_answer_to_a_fetch_ends_the_wait() -> None:
    fetch, woken = Future(), threading.Event()
    timer = threading.Timer(0.01, fetch.success, [None])
    timer.start()
    assert link({}, [fetch]).await_fetch(woken, 60.0) == {ONE: ["a record"]}
    timer.join()


def test_a_fetch_that_is_answered_already_needs_no_wait() -> None:
    fetch = Future().success(None)
    assert link({}, [fetch]).await_fetch(threading.Event(), 60.0) == {ONE: ["a record"]}


def test_another_thread_can_end_the_wait() -> None:
    woken = threading.Event()
    woken.set()
    assert link({}, [Future()]).await_fetch(woken, 60.0)
    assert not woken.is_set()  # the next wait is another one
