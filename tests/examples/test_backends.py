"""Each backend of examples/ that can run here, on the tests' Kafka and a gateway that reads from it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator

import pytest
from confluent_kafka import Producer
from websockets.asyncio.client import ClientConnection

from cocoa_tornado.service.gateway import Gateway
from cocoa_tornado.settings import Settings
from testing.kafka_admin import create_topic, read_all
from testing.kafka_server import KafkaServer

from ..harness import SECRET, Harness
from .producer import Record, of_each_kind
from .programs import Program, go, in_ci_or_nightly, maven, node, python, start

pytestmark = [pytest.mark.slow, pytest.mark.kafka, pytest.mark.apache, pytest.mark.gen_test(timeout=240)]

PRODUCERS = [
    Program("python", python("backends/python/produce.py")),
    Program("go", go("backends/go"), ["go"]),
    Program("node", node("backends/node", "produce.js"), ["node", "npm"]),
    Program("java", maven("backends/java", "example.Produce"), ["javac", "mvn"]),
]
TEXTS = ["one", 'two "2"', "drei \N{GREEK SMALL LETTER PI}"]
PARTITIONS = 16
PARTITION_OF_DOLL_1 = 12  # by murmur2


OF_EACH_KIND = of_each_kind(99, "kitchen", "doll-1")
TO_BOTH = {"to a user", "to a group", "to all devices", "to a group, by header"}
TO_DOLL_2 = TO_BOTH | {"to the rest of a group"}
TO_DOLL_1 = {str(fields["text"]) for _, fields, _ in OF_EACH_KIND} - {"to the rest of a group"}


def comparable(record: Record) -> str:
    """Key, fields and headers of a record, without what differs each time."""
    key, fields, headers = record
    same = {name: value for name, value in fields.items() if name not in ("session_id", "timestamp", "success")}
    if "id" in same:
        same["id"] = type(same["id"]).__name__
    return json.dumps([key, same, sorted((name, json_or_text(value)) for name, value in headers)], sort_keys=True)


def json_or_text(header: bytes) -> str:
    """JSON without the blanks that some languages write."""
    return header.decode().replace(" ", "")


class Site:
    """Topics of a test's own, and a gateway that reads them."""

    def __init__(self, kafka: KafkaServer) -> None:
        suffix = uuid.uuid4().hex[:8]
        self.bootstrap = kafka.bootstrap
        self.results, self.messages = f"results.{suffix}", f"messages.{suffix}"

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Harness]:
        create_topic(self.bootstrap, self.results, PARTITIONS)
        settings = Settings(
            port=0,
            jwt_secret=SECRET,
            broker=f"kafka://{self.bootstrap}",
            kafka_group=f"group.{self.results}",
            kafka_results_topic=self.results,
            kafka_messages_topic=self.messages,
            kafka_quarantine_topic=f"bad.{self.results}",
            kafka_partitions=1,
            kafka_replication=1,
            speech="none://",
        )
        gateway = Harness(Gateway(settings))
        await gateway.gateway.start()
        try:
            while (await gateway.http("GET", "/api/v1/ready")).status != 200:
                await asyncio.sleep(0.05)
            yield gateway
        finally:
            await gateway.stop()

    def environment(self, topic: str) -> dict[str, str]:
        return {"KAFKA_BOOTSTRAP": self.bootstrap, "TOPIC": topic}


async def texts(device: ClientConnection, count: int) -> set[str]:
    return {json.loads(await asyncio.wait_for(device.recv(), 30))["text"] for _ in range(count)}


@pytest.mark.parametrize("producer", in_ci_or_nightly(PRODUCERS), ids=str)
async def test_devices_get_what_a_backend_produces_for_them_in_order(producer: Program, kafka: KafkaServer) -> None:
    site = Site(kafka)
    command = producer.command()
    async with site.serving() as gateway:
        device, other = [
            await gateway.connect_with(gateway.token(name, groups=["kitchen"])) for name in ("doll-1", "doll-2")
        ]
        program = await start([*command, "doll-1", *TEXTS], site.environment(site.results))
        await program.succeeds()
        heard = [json.loads(await asyncio.wait_for(device.recv(), 30)) for _ in TEXTS]
        assert [message["text"] for message in heard] == TEXTS
        assert program.all_of("sent") == [f"{PARTITION_OF_DOLL_1} {offset}" for offset in range(len(TEXTS))]
        records = await asyncio.to_thread(read_all, kafka.bootstrap, site.results, len(TEXTS))
        assert {record.key for record in records} == {b"doll-1"}
        assert all(("cocoa.ttl", b"3600") in record.headers for record in records)
        program = await start([*command, "--each-kind", "99", "kitchen", "doll-1"], site.environment(site.results))
        await program.succeeds()
        # They are in several partitions, so their order is not known.
        assert await texts(device, len(TO_DOLL_1)) == TO_DOLL_1
        assert await texts(other, len(TO_DOLL_2)) == TO_DOLL_2
        records = await asyncio.to_thread(read_all, kafka.bootstrap, site.results, len(TEXTS) + len(OF_EACH_KIND))
        kinds = [(record.key.decode(), json.loads(record.value), record.headers) for record in records]
        produced = [kind for kind in kinds if kind[1]["text"] not in TEXTS]
        assert sorted(map(comparable, produced)) == sorted(map(comparable, OF_EACH_KIND))


def test_librdkafka_agrees_on_the_partition_with_murmur2_random(kafka: KafkaServer) -> None:
    topic = f"results.{uuid.uuid4().hex[:8]}"
    create_topic(kafka.bootstrap, topic, PARTITIONS)
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "partitioner": "murmur2_random"})
    producer.produce(topic, b"{}", key=b"doll-1")
    assert producer.flush(30) == 0
    assert [record.partition for record in read_all(kafka.bootstrap, topic, 1)] == [PARTITION_OF_DOLL_1]


async def test_a_consumer_prints_what_a_device_says(kafka: KafkaServer) -> None:
    site = Site(kafka)
    async with site.serving() as gateway:
        device = await gateway.connect("doll-1")
        await device.send("good night")
        program = await start(python("backends/python/consume.py")(), site.environment(site.messages))
        try:
            assert await program.prints("doll-1", 1) == ["good night"]
        finally:
            await program.stop()
