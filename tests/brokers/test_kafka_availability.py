from __future__ import annotations

import logging

import pytest

from cocoa_tornado.brokers.kafka_availability import Availability
from cocoa_tornado.brokers.port import BrokerCounters, BrokerState

from .bench import AWAY, IN_USE, SHARED


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@AWAY
def test_each_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    counters = BrokerCounters()
    availability = Availability(counters)
    availability.connecting("looking for it")
    for _ in range(3):
        availability.ready("there")
    for _ in range(3):
        availability.down("away", "gone")
    availability.ready("there")
    assert messages(caplog) == ["broker ready", "broker unavailable", "broker ready"]
    assert counters.reconnects == 1


@AWAY
def test_another_cause_is_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    availability = Availability(BrokerCounters())
    availability.down("away", "gone")
    availability.down("auth", "refused")
    assert [record.__dict__["cause"] for record in caplog.records] == ["away", "auth"]


@AWAY
def test_trying_again_hides_no_failure() -> None:
    availability = Availability(BrokerCounters())
    availability.down("away", "gone")
    availability.connecting("connecting")
    assert availability.status().detail == "gone"


def test_a_thread_that_is_stuck_is_not_believed_to_be_ready() -> None:
    clock = Clock()
    availability = Availability(BrokerCounters(), stale_s=15.0, clock=clock)
    availability.alive()
    availability.ready("there")
    availability.set_lag(3)
    assert (availability.status().state, availability.status().lag) == (BrokerState.READY, 3)
    clock.now = 16.0
    assert availability.status().state is BrokerState.CONNECTING
    assert availability.status().lag is None
    availability.alive()
    assert availability.status().state is BrokerState.READY


def test_after_a_stop_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    availability = Availability(BrokerCounters())
    availability.stopping()
    availability.down("away", "gone")
    availability.ready("there")
    assert availability.status().state is BrokerState.CONNECTING
    availability.closed()
    assert availability.status().state is BrokerState.CLOSED
    assert messages(caplog) == []


@AWAY
def test_brokers_that_answer_are_distinguished_from_absent_ones() -> None:
    clock = Clock()
    availability = Availability(BrokerCounters(), stale_s=15.0, clock=clock)
    assert not availability.brokers_answer()
    availability.ready("there")
    assert availability.brokers_answer()
    availability.down("codec", "a package is missing")
    assert availability.brokers_answer()
    clock.now = 16.0  # not alive since
    assert not availability.brokers_answer()
    availability.alive()
    availability.down("away", "gone")
    assert not availability.brokers_answer()


@IN_USE
@SHARED
def test_standby_and_shared_are_logged_once_and_can_publish(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counters = BrokerCounters()
    availability = Availability(counters)
    for _ in range(3):
        availability.standby("a group", "another at 10.0.0.2")
    assert availability.status().state is BrokerState.STANDBY
    assert "another at 10.0.0.2" in availability.status().detail
    assert availability.brokers_answer()
    availability.ready("there")
    for _ in range(3):
        availability.shared("a group", "a other-reader at 10.0.0.3")
    assert availability.status().state is BrokerState.SHARED
    assert availability.brokers_answer()
    assert messages(caplog) == ["consumer group in use", "consumer group shared"]
    assert counters.reconnects == 1


@IN_USE
@AWAY
@pytest.mark.parametrize("cause", ["away", "auth", "group", "topic", "failed"])
def test_a_gateway_in_standby_stays_there_until_the_group_is_found_free(cause: str) -> None:
    availability = Availability(BrokerCounters())
    availability.standby("a group", "another at 10.0.0.2")
    availability.down(cause, "what went wrong")
    availability.connecting("connecting to 10.0.0.1:9092")
    assert availability.status().state is BrokerState.STANDBY
    assert availability.status().detail == "what went wrong"
    availability.turn_came()
    assert availability.status().state is BrokerState.CONNECTING
    availability.down(cause, "what went wrong")
    assert availability.status().state is BrokerState.CONNECTING


@IN_USE
@AWAY
def test_a_gateway_in_standby_does_not_take_absent_brokers_for_present_ones() -> None:
    availability = Availability(BrokerCounters())
    availability.standby("a group", "another at 10.0.0.2")
    assert availability.brokers_answer()
    availability.down("away", "gone")
    assert not availability.brokers_answer()
    availability.standby("a group", "another at 10.0.0.2")
    assert availability.brokers_answer()


def test_a_turn_that_comes_changes_nothing_without_standby() -> None:
    availability = Availability(BrokerCounters())
    availability.ready("there")
    availability.turn_came()
    assert availability.status().state is BrokerState.READY
