"""The probe against the real thing: our own gateway, and a real topic."""

from __future__ import annotations

import asyncio
import time

import pytest

from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.probe.credentials import Device, Key, minted
from cocoa_tornado.probe.delivery import HttpPublisher, KafkaPublisher
from cocoa_tornado.probe.run import run
from cocoa_tornado.probe.session import Session
from cocoa_tornado.probe.target import parse_target
from cocoa_tornado.probe.verdicts import Report, Status
from testing.kafka_admin import create_topic, read_all
from testing.kafka_server import KafkaServer, TansuServer

from ..harness import RESULTS, SECRET, Harness


class Backend:
    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    async def publish_to_others(self, key: str, value: bytes) -> str | None:
        await self._broker.publish(RESULTS, key, value)
        return None


@pytest.mark.parametrize("mailbox", ["none://", "memory://"])
def test_our_own_gateway_passes_every_check_that_is_made(mailbox: str) -> None:
    async def scenario() -> Report:
        harness = await Harness.start(mailbox=mailbox)
        target, _ = parse_target(harness.ws_url)
        key = Key("the test", SECRET)
        first, second = minted(key, "first", time.time()), minted(key, "second", time.time())
        try:
            publisher, backend = HttpPublisher(target), Backend(harness.broker)
            session = Session(target, first, publisher, backend=backend, other=second, key=key)
            return await run(session, lambda outcome: None)
        finally:
            await harness.stop()

    report = asyncio.run(scenario())

    assert [(o.name, o.detail) for o in report.outcomes if o.status is Status.FAILED] == []
    assert {o.name for o in report.outcomes if o.status is Status.SKIPPED} == {"audio", "idle", "server-ping"}


@pytest.mark.kafka
def test_a_record_lands_in_the_topic_keyed_by_its_device(kafka: KafkaServer | TansuServer) -> None:
    create_topic(kafka.bootstrap, "probe.results")

    async def scenario() -> str | None:
        publisher = KafkaPublisher([kafka.bootstrap], "probe.results", 10.0)
        try:
            return await publisher.publish(Device("doll", 1, "a.b.c"), b"{}")
        finally:
            await publisher.close()

    assert asyncio.run(scenario()) is None
    [record] = read_all(kafka.bootstrap, "probe.results", 1)
    assert (record.key, record.value) == (b"doll", b"{}")


@pytest.mark.kafka
@pytest.mark.apache
@pytest.mark.logs("kafka.cluster", "^Topic probe.absent not found")
def test_a_topic_that_does_not_exist_is_a_problem_and_is_not_made(kafka: KafkaServer | TansuServer) -> None:
    async def scenario() -> str | None:
        publisher = KafkaPublisher([kafka.bootstrap], "probe.absent", 2.0)
        try:
            return await publisher.publish(Device("doll", 1, "a.b.c"), b"{}")
        finally:
            await publisher.close()

    assert "probe.absent" in str(asyncio.run(scenario()))
