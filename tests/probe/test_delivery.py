"""How records are published."""

from __future__ import annotations

import asyncio
import json
import warnings
from typing import Any

import pytest

from cocoa_tornado.probe.credentials import Device
from cocoa_tornado.probe.delivery import KafkaPublisher, kafka_servers, new_record, spacious_json
from cocoa_tornado.probe.verdicts import ProbeError

with warnings.catch_warnings():
    # The library reads its schemas in a way that Python 3.11 has deprecated, once, when it is first imported.
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.errors import KafkaConnectionError, KafkaTimeoutError

DEVICE = Device("doll", 99, "a.b.c")


class FakeProducer:
    """The part of ``kafka.KafkaProducer`` that the publisher uses."""

    def __init__(self, error: Exception | None = None, **settings: object) -> None:
        self.error, self.settings = error, settings
        self.sent: list[tuple[str, bytes, bytes]] = []
        self.closed = False

    def send(self, topic: str, key: bytes, value: bytes) -> FakeProducer:
        self.sent.append((topic, key, value))
        return self

    def get(self, timeout: float) -> None:
        if self.error is not None:
            raise self.error

    def close(self, timeout: float) -> None:
        self.closed = True


def test_a_record_is_keyed_by_its_device_or_by_whom_it_addresses() -> None:
    producers: list[FakeProducer] = []

    def connect(**settings: Any) -> FakeProducer:
        producers.append(FakeProducer(**settings))
        return producers[-1]

    async def scenario() -> None:
        publisher = KafkaPublisher(["k1:9092"], "results", 2.0, connect=connect)
        assert await publisher.publish(DEVICE, b"1") is None
        assert await publisher.publish_to_others("kitchen", b"2") is None
        await publisher.close()

    asyncio.run(scenario())
    [producer] = producers
    assert producer.sent == [("results", b"doll", b"1"), ("results", b"kitchen", b"2")]
    assert producer.settings["bootstrap_servers"] == ["k1:9092"]
    assert producer.settings["allow_auto_create_topics"] is False
    assert producer.closed


def test_tls_and_sasl_are_passed_to_the_client() -> None:
    producers: list[FakeProducer] = []

    def connect(**settings: Any) -> FakeProducer:
        producers.append(FakeProducer(**settings))
        return producers[-1]

    async def scenario() -> None:
        security = {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN"}
        publisher = KafkaPublisher(["k1:9092"], "results", 2.0, security, connect=connect)
        assert await publisher.publish(DEVICE, b"1") is None
        await publisher.close()

    asyncio.run(scenario())
    assert producers[0].settings["security_protocol"] == "SASL_SSL"
    assert producers[0].settings["sasl_mechanism"] == "PLAIN"


def test_an_unreachable_broker_is_tried_only_once() -> None:
    calls = 0

    def connect(**settings: Any) -> FakeProducer:
        nonlocal calls
        calls += 1
        raise KafkaConnectionError("nobody there")

    async def scenario() -> list[str | None]:
        publisher = KafkaPublisher(["k1:9092"], "results", 2.0, connect=connect)
        problems = [await publisher.publish(DEVICE, b"1"), await publisher.publish(DEVICE, b"2")]
        await publisher.close()
        return problems

    first, second = asyncio.run(scenario())
    assert first is not None
    assert "results of k1:9092: KafkaConnectionError: nobody there" in first
    assert second == first
    assert calls == 1


def test_a_record_that_is_not_acknowledged_is_a_problem() -> None:
    async def scenario() -> str | None:
        publisher = KafkaPublisher(["k"], "results", 2.0, connect=lambda **_: FakeProducer(KafkaTimeoutError("late")))
        return await publisher.publish(DEVICE, b"1")

    assert "late" in str(asyncio.run(scenario()))


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("kafka://k1", ["k1:9092"]),
        ("kafka://k1:9093,k2", ["k1:9093", "k2:9092"]),
        ("kafka://[::1]", ["[::1]:9092"]),
        ("kafka://[::1]:9093/", ["[::1]:9093"]),
    ],
)
def test_a_broker_url_names_servers(url: str, servers: list[str]) -> None:
    assert kafka_servers(url) == servers


@pytest.mark.parametrize(
    "url", ["", "k1:9092", "memory://", "kafka://", "kafka://a,,b", "kafka://a/topic", "kafka://u@a"]
)
def test_what_is_no_broker_url_is_refused(url: str) -> None:
    with pytest.raises(ProbeError):
        kafka_servers(url)


def test_a_record_has_the_contracts_fields_and_the_extra_ones_in_the_middle() -> None:
    record = new_record(DEVICE, "hi", {"x": 1})

    assert list(record) == ["session_id", "user_id", "device_id", "x", "text", "timestamp", "success"]
    assert (record["user_id"], record["device_id"]) == (99, "doll")
    assert new_record(DEVICE, "hi")["session_id"] != record["session_id"]


def test_a_careless_producer_uses_blanks_and_escapes() -> None:
    data = spacious_json({"text": "caf\u00e9"})

    assert json.loads(data) == {"text": "caf\u00e9"}
    assert b"\\u00e9" in data
    assert b'": "' in data
