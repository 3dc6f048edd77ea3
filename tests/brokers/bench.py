"""A broker adapter with both ends: an external producer of results, and a receiver of batches on the loop."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Protocol, TypeAlias

import pytest

from cocoa_tornado.brokers.kafka import KafkaBroker
from cocoa_tornado.brokers.kafka_facade import KafkaFacade
from cocoa_tornado.brokers.kafka_options import KafkaOptions
from cocoa_tornado.brokers.memory import MemoryBroker
from cocoa_tornado.brokers.port import Batch, Broker, BrokerState
from cocoa_tornado.rules.addressing import Headers
from cocoa_tornado.rules.records import Decoded, Record, Rejected
from testing.kafka_admin import create_topic, read_all, writer
from testing.kafka_server import KafkaServer, TansuServer
from testing.waiting import eventually

Records: TypeAlias = Sequence[tuple[bytes | None, bytes | None]]

PATIENCE_S = 30.0

KAFKA_CLIENTS = [pytest.param(name, marks=pytest.mark.kafka) for name in ("kafka", "confluent")]

# What the adapter warns of; each mark is for the tests that bring it about.
AWAY = pytest.mark.logs("cocoa.broker", "^broker unavailable$")
LOST = pytest.mark.logs("cocoa.broker", "^records not published$")
MAYBE_AWAY = pytest.mark.logs("cocoa.broker", "^broker unavailable$", optional=True)
IN_USE = pytest.mark.logs("cocoa.broker", "^consumer group in use$")
SHARED = pytest.mark.logs("cocoa.broker", "^consumer group shared$")
BLIND = pytest.mark.logs("cocoa.broker", "^group members unknown$")
TOO_LARGE = pytest.mark.logs("cocoa.broker", "^record too large$")
NO_QUARANTINE = pytest.mark.logs("cocoa.broker", "^quarantine unavailable$")
MAYBE_NO_QUARANTINE = pytest.mark.logs("cocoa.broker", "^quarantine unavailable$", optional=True)
LOST_TO_QUARANTINE = pytest.mark.logs("cocoa.broker", "^records lost to quarantine$")
SKIPPED = pytest.mark.logs("cocoa.broker", "^unreadable records skipped$")


def decode(key: bytes | None, value: bytes | None, timestamp_ms: int, headers: Headers | None = None) -> Decoded:
    """A small one: ``device|text``; everything else is rejected. A header ``for`` names another device."""
    if value is None:
        return Rejected("tombstone")
    device, bar, _ = value.partition(b"|")
    if not bar:
        return Rejected("not-json")
    others = [name for header, name in headers or () if header == "for" and name is not None]
    return Record((others or [device])[-1].decode(), value, timestamp_ms, key is None or key == device)


class Receiver:
    """A sink that collects batches.

    :ivar prompt: report each batch as done at once; otherwise they pile up in :attr:`open`
    """

    def __init__(self, prompt: bool = True) -> None:
        self.prompt = prompt
        self.payloads: list[bytes] = []
        self.records: list[Record] = []
        self.open: list[Batch] = []

    def __call__(self, batch: Batch) -> None:
        self.records += batch.records
        self.payloads += [record.payload for record in batch.records]
        if self.prompt:
            batch.done()
        else:
            self.open.append(batch)

    def finish(self) -> None:
        """Mark all open batches as done, and later ones at once."""
        self.prompt = True
        batches, self.open = self.open, []
        for batch in batches:
            batch.done()

    async def has(self, count: int, patience_s: float = PATIENCE_S) -> None:
        await eventually(lambda: len(self.payloads) >= count, patience_s)


class Stand(Protocol):
    """Where one kind of broker is tried: its topics, and several consumers of one group, one after another."""

    results: str
    messages: str
    quarantine: str

    async def broker(self, **options: Any) -> Broker:
        """A broker of the stand's group, not started."""

    async def write(self, records: Records, headers: dict[str, bytes]) -> None:
        """Write to the results topic, from outside."""

    async def read(self, topic: str, count: int) -> list[tuple[bytes | None, bytes | None, dict[str, bytes]]]: ...


class MemoryStand:
    results, messages, quarantine = "transcription.results", "device.messages", "transcription.results.quarantine"

    def __init__(self) -> None:
        self._only: MemoryBroker | None = None

    async def broker(self, **options: Any) -> Broker:
        # Its log lives and dies with it, so the next member of the group is the same object, started again.
        if self._only is None:
            self._only = MemoryBroker(**options)
        return self._only

    async def write(self, records: Records, headers: dict[str, bytes]) -> None:
        assert self._only is not None
        for key, value in records:
            await self._only.append(self.results, key, value, headers)

    async def read(self, topic: str, count: int) -> list[tuple[bytes | None, bytes | None, dict[str, bytes]]]:
        assert self._only is not None
        return [(record.key, record.value, record.headers) for record in self._only.records(topic)]


class KafkaStand:
    def __init__(self, server: KafkaServer | TansuServer) -> None:
        self.server = server
        suffix = uuid.uuid4().hex[:8]
        self.results, self.messages, self.quarantine = f"results.{suffix}", f"messages.{suffix}", f"bad.{suffix}"
        self.options = KafkaOptions(
            bootstrap=(server.bootstrap,),
            group=f"group.{suffix}",
            results_topic=self.results,
            messages_topic=self.messages,
            quarantine_topic=self.quarantine,
            partitions=1,
            replication=1,
            commit_interval_s=0.2,
            probe_interval_s=0.5,
            metadata_max_age_s=2.0,
            session_timeout_s=6.0,
        )

    async def broker(self, **options: Any) -> KafkaFacade:
        return self.make(replace(self.options, **options))

    def make(self, options: KafkaOptions) -> KafkaFacade:
        return KafkaBroker(options)

    async def create(self, topic: str, partitions: int = 1, **settings: str) -> None:
        """:param settings: the topic's own, with an underscore for each dot"""
        dotted = {name.replace("_", "."): value for name, value in settings.items()}
        await asyncio.to_thread(create_topic, self.server.bootstrap, topic, partitions, dotted)

    async def write(
        self,
        records: Records,
        headers: dict[str, bytes] | None = None,
        partition: int | None = None,
    ) -> None:
        def send() -> None:
            with writer(self.server.bootstrap) as producer:
                futures = []
                for key, value in records:
                    pairs = list((headers or {}).items())
                    futures.append(
                        producer.send(self.results, key=key, value=value, headers=pairs, partition=partition)
                    )
                    if not self.server.can_restart:
                        futures[-1].get(10)  # Tansu miscounts the end of a log whose last batch has several records
                for future in futures:
                    future.get(10)

        await asyncio.to_thread(send)

    async def read(self, topic: str, count: int) -> list[tuple[bytes | None, bytes | None, dict[str, bytes]]]:
        records = await asyncio.to_thread(read_all, self.server.bootstrap, topic, count)
        return [(record.key, record.value, dict(record.headers)) for record in records]


class ConfluentStand(KafkaStand):
    """The same, with librdkafka as the adapter's client."""

    def make(self, options: KafkaOptions) -> KafkaFacade:
        from cocoa_tornado.brokers.confluent import ConfluentBroker

        return ConfluentBroker(options)


def kafka_stand(client: str, server: KafkaServer | TansuServer) -> KafkaStand:
    """:param client: one of :data:`KAFKA_CLIENTS`"""
    if client == "kafka":
        return KafkaStand(server)
    if find_spec("confluent_kafka") is None:
        pytest.skip("confluent-kafka is not installed (pip install 'cocoa-tornado[librdkafka]')")
    return ConfluentStand(server)


@asynccontextmanager
async def consuming(broker: Broker, receiver: Receiver) -> AsyncIterator[Broker]:
    """The broker, started, READY, and closed at the end."""
    broker.start(receiver, decode)
    try:
        await ready(broker)
        yield broker
    finally:
        receiver.finish()
        await broker.close(2.0)


async def ready(broker: Broker, patience_s: float = PATIENCE_S) -> None:
    try:
        await eventually(lambda: broker.status().state is BrokerState.READY, patience_s)
    except AssertionError as error:
        raise AssertionError(f"not ready: {broker.status()}") from error


def numbered(start: int, count: int, device: bytes = b"doll") -> Records:
    return [(device, payload) for payload in payloads(start, count, device)]


def payloads(start: int, count: int, device: bytes = b"doll") -> list[bytes]:
    return [device + b"|%d" % number for number in range(start, start + count)]
