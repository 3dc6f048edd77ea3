"""What operators do with the quarantine topic: the newest records, and each back on the results topic once.

By kafka-python, whichever library the adapter reads with.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
from kafka import TopicPartition

from cocoa_tornado.brokers.kafka_clients import KafkaClients
from cocoa_tornado.brokers.kafka_facade import KafkaFacade
from cocoa_tornado.errors import AlreadyRequeued, BrokerError, RecordGone
from cocoa_tornado.rules.quarantined import Quarantined, Returned, returned
from testing.kafka_admin import create_topic, reader, writer
from testing.kafka_server import KafkaServer

from .bench import ConfluentStand, KafkaStand, kafka_stand

pytestmark = [pytest.mark.gen_test(timeout=180), pytest.mark.kafka, pytest.mark.apache]

OWN = [("cocoa.reason", b"not_json"), ("cocoa.topic", b"results"), ("cocoa.partition", b"7"), ("cocoa.offset", b"42")]


async def fill(stand: KafkaStand, *values: bytes, partition: int = 0, first_ms: int = 1_000) -> None:
    """Copies in the quarantine, as the gateway writes them, a second apart."""

    def send() -> None:
        with writer(stand.server.bootstrap) as producer:
            for number, value in enumerate(values):
                producer.send(
                    stand.quarantine,
                    key=b"doll",
                    value=value,
                    headers=[("mine", b"1"), ("cocoa.ttl", b"9"), *OWN],
                    partition=partition,
                    timestamp_ms=first_ms + 1_000 * number,
                ).get(10)

    await asyncio.to_thread(send)


def as_it_is(record: Quarantined) -> Returned:
    return returned(record, b"")


async def published(stand: KafkaStand) -> list[tuple[bytes, bytes]]:
    """What devices would get: the committed records of the results topic, with their keys, in order."""

    def read() -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        where = TopicPartition(stand.results, 0)
        with reader(stand.server.bootstrap, isolation_level="read_committed") as consumer:
            consumer.assign([where])
            consumer.seek_to_beginning(where)
            end = consumer.end_offsets([where])[where]
            while consumer.position(where) < end:
                for run in consumer.poll(timeout_ms=200).values():
                    found += [(record.key, record.value) for record in run]
        return found

    return await asyncio.to_thread(read)


async def outcomes(*brokers: KafkaFacade, offset: int = 0) -> list[Any]:
    return await asyncio.gather(*(each.requeue(0, offset, as_it_is) for each in brokers), return_exceptions=True)


def neighbor(stand: KafkaStand) -> KafkaFacade:
    """Another server of the same topics, which reads with the other library where that is installed."""
    if find_spec("confluent_kafka") is None:
        return stand.make(stand.options)
    return ConfluentStand(stand.server).make(stand.options)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However loaded the machine is."""
    for name in ("READ_S", "MARKER_S"):
        monkeypatch.setattr(f"cocoa_tornado.brokers.kafka_quarantined.{name}", 60.0)
    monkeypatch.setattr("cocoa_tornado.brokers.kafka_quarantined.ACKNOWLEDGED_S", 60.0)
    monkeypatch.setattr("cocoa_tornado.brokers.kafka_clients.END_MS", 60_000)
    monkeypatch.setattr("cocoa_tornado.brokers.kafka_clients.TRANSACTION_MS", 60_000)


@pytest.fixture
def quarantine(kafka: KafkaServer) -> KafkaStand:
    stand = kafka_stand("kafka", kafka)
    create_topic(kafka.bootstrap, stand.quarantine, 2, {"retention.ms": "-1"})
    create_topic(kafka.bootstrap, stand.results)
    return stand


async def test_the_newest_records_of_all_partitions_come_first(quarantine: KafkaStand) -> None:
    await fill(quarantine, b"a", b"c", b"e", first_ms=1_000)
    await fill(quarantine, b"b", b"d" * 100, partition=1, first_ms=1_500)
    broker = await quarantine.broker()
    records = await broker.quarantined(3, 10)
    assert [(each.partition, each.offset, each.value) for each in records] == [
        (0, 2, b"e"),
        (1, 1, b"d" * 10),
        (0, 1, b"c"),
    ]
    newest = records[1]
    assert (newest.value_bytes, newest.key, newest.headers) == (100, b"doll", [("mine", b"1"), ("cocoa.ttl", b"9")])
    assert newest.origin[:4] == ("not_json", "results", 7, 42)
    assert await broker.quarantined_at(1, 1, 10) == newest
    assert (await broker.quarantined_at(1, 1, 1000)).value == b"d" * 100
    looked = await asyncio.to_thread(KafkaClients(quarantine.options).look_at, quarantine.quarantine)
    assert looked.oldest_ms == 1_000
    await broker.close(1.0)


async def test_a_record_is_requeued_once_whichever_server_is_asked_and_after_restarts(quarantine: KafkaStand) -> None:
    await fill(quarantine, b"doll|1", b"doll|2")
    broker = await quarantine.broker()
    with pytest.raises(RecordGone):
        await broker.requeue(0, 2, as_it_is)
    with pytest.raises(RecordGone):
        await broker.requeue(5, 0, as_it_is)
    assert await broker.requeue(0, 1, as_it_is) == f"{quarantine.results}/0/0"
    assert await quarantine.read(quarantine.results, 1) == [(b"doll", b"doll|2", {"mine": b"1", "cocoa.ttl": b"9"})]
    await broker.close(1.0)
    other = neighbor(quarantine)
    with pytest.raises(AlreadyRequeued):
        await other.requeue(0, 1, as_it_is)
    with pytest.raises(RecordGone):  # the marker
        await other.requeue(0, 2, as_it_is)
    assert [(each.offset, each.is_requeued) for each in await other.quarantined(9, 9)] == [(1, True), (0, False)]
    assert [(await other.quarantined_at(0, offset, 9)).is_requeued for offset in (0, 1)] == [False, True]
    for place in ((0, 2), (0, 99), (5, 0)):  # the marker, and places that are none
        with pytest.raises(RecordGone):
            await other.quarantined_at(*place, 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cocoa_tornado.brokers.kafka_quarantined.MARKER_S", 0.0)
        assert (await other.quarantined_at(0, 0, 9)).is_requeued is None
    await other.close(1.0)


async def test_of_two_servers_at_the_same_time_one_requeues(quarantine: KafkaStand) -> None:
    await fill(quarantine, b"doll|1")
    brokers = [await quarantine.broker(), neighbor(quarantine)]
    found = await outcomes(*brokers)
    assert len([each for each in found if isinstance(each, str)]) <= 1
    while not any(isinstance(each, AlreadyRequeued) for each in found):  # neither, or the other was fenced
        found += await outcomes(brokers[0])
    assert len([each for each in found if isinstance(each, str)]) == 1
    assert all(isinstance(each, str | BrokerError) for each in found)
    assert await published(quarantine) == [(b"doll", b"doll|1")]
    for each in brokers:
        await each.close(1.0)


KILLED = """
import os, sys
from cocoa_tornado.brokers import kafka_clients, kafka_quarantined
from cocoa_tornado.brokers.kafka_clients import KafkaClients
from cocoa_tornado.brokers.kafka_options import KafkaOptions
from cocoa_tornado.rules.quarantined import returned
from kafka import KafkaProducer

bootstrap, results, quarantine, step = sys.argv[1:]
kafka_clients.END_MS = kafka_clients.TRANSACTION_MS = 60_000
kafka_quarantined.READ_S = 60.0

def dying_at(name, call):
    def run(*args, **options):
        if step == name:
            os._exit(9)
        result = call(*args, **options)
        if step == f"after {name}":
            os._exit(9)
        return result
    return run

def send(self, topic, **options):
    future = original(self, topic, **options)
    future.get(60)
    if step == f"sent to {'results' if topic == results else 'quarantine'}":
        os._exit(9)
    return future

original, KafkaProducer.send = KafkaProducer.send, send
for name in ("init_transactions", "begin_transaction"):
    setattr(KafkaProducer, name, dying_at(name, getattr(KafkaProducer, name)))
kafka_quarantined.commit = dying_at("commit", kafka_quarantined.commit)
options = KafkaOptions(bootstrap=(bootstrap,), results_topic=results, quarantine_topic=quarantine)
topic = kafka_quarantined.QuarantineTopic(options, KafkaClients(options))
topic.requeue(0, int(os.environ["OFFSET"]), lambda record: returned(record, b""))
"""
STEPS = (
    "init_transactions",
    "after init_transactions",
    "after begin_transaction",
    "sent to results",
    "sent to quarantine",
    "commit",
    "after commit",
)


async def test_a_server_that_is_killed_between_two_steps_has_requeued_the_record_or_not(quarantine: KafkaStand) -> None:
    """Each on a record of its own. The next server finds which, and does not wait for the brokers to abort."""
    await fill(quarantine, *(b"doll|%d" % number for number in range(len(STEPS))))
    broker = await quarantine.broker()

    async def kill_at(offset: int, step: str) -> None:
        arguments = [quarantine.server.bootstrap, quarantine.results, quarantine.quarantine, step]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", KILLED, *arguments, env={"OFFSET": str(offset)}, stderr=subprocess.PIPE
        )
        _, errors = await process.communicate()
        assert process.returncode == 9, errors.decode()

    for offset, step in enumerate(STEPS):
        await kill_at(offset, step)
        if step == "after commit":
            with pytest.raises(AlreadyRequeued):
                await broker.requeue(0, offset, as_it_is)
        else:
            await broker.requeue(0, offset, as_it_is)
    assert await published(quarantine) == [(b"doll", b"doll|%d" % number) for number in range(len(STEPS))]
    await broker.close(1.0)
