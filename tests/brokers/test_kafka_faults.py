"""What others do to a topic: records too large, broken, rolled back or unreadable for us, and topics that go."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from tornado.ioloop import IOLoop

from cocoa_tornado.brokers.kafka_availability import Availability
from cocoa_tornado.brokers.kafka_clients import KafkaClients
from cocoa_tornado.brokers.kafka_connections import ProducerClient
from cocoa_tornado.brokers.kafka_consumer import KafkaConsuming
from cocoa_tornado.brokers.kafka_publisher import Publisher
from cocoa_tornado.brokers.kafka_reading import ReadingContext
from cocoa_tornado.brokers.port import BrokerCounters, BrokerState
from cocoa_tornado.errors import RecordTooLarge
from cocoa_tornado.rules.addressing import Headers
from cocoa_tornado.rules.handoff import OffsetLedger
from cocoa_tornado.rules.records import Decoded
from testing.kafka_admin import committed_offset, delete_topic, writer
from testing.kafka_server import KafkaServer
from testing.waiting import eventually

from .bench import (
    AWAY,
    KAFKA_CLIENTS,
    LOST,
    MAYBE_AWAY,
    MAYBE_NO_QUARANTINE,
    SKIPPED,
    TOO_LARGE,
    KafkaStand,
    Receiver,
    consuming,
    decode,
    kafka_stand,
    numbered,
    payloads,
    ready,
)

pytestmark = [pytest.mark.gen_test(timeout=90), pytest.mark.kafka]

LARGEST_TEXT = 6 * 512 * 1024  # bytes of JSON, of a device's largest message where every byte has to be escaped


@pytest.fixture
def python_stand(kafka: KafkaServer) -> KafkaStand:
    """For behavior that is specific to kafka-python."""
    return KafkaStand(kafka)


def lines(caplog: pytest.LogCaptureFixture, message: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == message]


# -- large records


@pytest.mark.apache
async def test_topics_that_it_creates_take_the_largest_message_of_a_device(stand: KafkaStand) -> None:
    async with consuming(await stand.broker(), Receiver()) as broker:
        await broker.publish(stand.messages, "doll", b"x" * LARGEST_TEXT)
    [(_, value, _)] = await stand.read(stand.messages, 1)
    assert value == b"x" * LARGEST_TEXT


@pytest.mark.apache
@TOO_LARGE
async def test_records_too_large_for_their_topic_fail_alone_and_the_others_flow_in_order(
    stand: KafkaStand, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await stand.create(stand.messages, max_message_bytes="50000")
    good, bad = [], []
    async with consuming(await stand.broker(), Receiver()) as broker:
        for number in range(200):
            good.append(broker.publish(stand.messages, "doll", b"%d" % number))
            if number % 10 == 5:
                bad.append(broker.publish(stand.messages, "doll", b"x" * (60_000 - number)))
        failures = await asyncio.gather(*bad, return_exceptions=True)
        await asyncio.gather(*good)
        assert broker.counters.publish_errors == {stand.messages: 20}
    assert [type(failure) for failure in failures] == [RecordTooLarge] * 20
    records = await stand.read(stand.messages, 200)
    assert list(dict.fromkeys(value for _, value, _ in records)) == [b"%d" % number for number in range(200)]
    # One was tried. The others are known to be too large, and cost no producer.
    assert len(lines(caplog, "producer replaced")) <= 1
    [line] = lines(caplog, "record too large")
    assert (line.__dict__["topic"], line.__dict__["limit_bytes"]) == (stand.messages, 50000)


@pytest.mark.apache
async def test_a_record_that_no_broker_would_take_is_refused_without_asking(stand: KafkaStand) -> None:
    async with consuming(await stand.broker(max_request_bytes=4 * 1024 * 1024), Receiver()) as broker:
        with pytest.raises(RecordTooLarge, match="4194308 bytes"):
            await broker.publish(stand.messages, "doll", b"x" * (4 * 1024 * 1024))


async def test_a_record_larger_than_the_queue_is_published_on_its_own(stand: KafkaStand) -> None:
    await stand.create(stand.messages)
    broker = await stand.broker(queue_bytes=1000)
    await broker.publish(stand.messages, "doll", b"x" * 5000)
    await broker.close(1.0)
    assert broker.counters.published == {stand.messages: 1}


@pytest.mark.apache
@pytest.mark.parametrize("size", [900 * 1024, 3 * 1024 * 1024])
async def test_a_result_larger_than_what_a_fetch_asks_for_is_read(stand: KafkaStand, size: int) -> None:
    await stand.create(stand.results, max_message_bytes=str(4 * 1024 * 1024))
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver):

        def send() -> None:
            with writer(stand.server.bootstrap, max_request_size=4 * 1024 * 1024) as producer:
                for number in range(3):
                    producer.send(stand.results, key=b"doll", value=b"doll|%d" % number + b"x" * size).get(10)

        await asyncio.to_thread(send)
        await receiver.has(3)
    assert [(payload[5:6], len(payload)) for payload in receiver.payloads] == [
        (b"%d" % number, size + 6) for number in range(3)
    ]


# -- the quarantine


@pytest.mark.apache
@pytest.mark.parametrize(
    ("record", "found"),
    [
        (
            {"key": b"k", "value": b"v" * 60_000},
            (b"k", b"", {"trace": b"t", "cocoa.dropped-bytes": b"60000"}),
        ),
        (
            {"key": b"k", "value": b"v", "headers": [("trace", b"t" * 60_000)]},
            (b"k", b"", {"cocoa.dropped-bytes": b"1", "cocoa.dropped-headers": b"1"}),
        ),
        (
            {"key": b"k" * 60_000, "value": None},
            (None, b"", {"cocoa.dropped-headers": b"1", "cocoa.dropped-key-bytes": b"60000"}),
        ),
    ],
    ids=["value", "headers", "key"],
)
@TOO_LARGE
@MAYBE_AWAY
async def test_poison_too_large_for_the_quarantine_stops_nothing(
    stand: KafkaStand, record: dict[str, Any], found: tuple[bytes | None, bytes, dict[str, bytes]]
) -> None:
    await stand.create(stand.quarantine, max_message_bytes="50000")
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver) as broker:

        def send() -> None:
            with writer(stand.server.bootstrap) as producer:
                producer.send(stand.results, **({"headers": [("trace", b"t")]} | record)).get(10)

        await asyncio.to_thread(send)
        await stand.write(numbered(0, 1))
        await receiver.has(1)
        await eventually(lambda: sum(broker.counters.quarantined.values()) == 1)
    [(key, value, headers)] = await stand.read(stand.quarantine, 1)
    assert headers.pop("cocoa.topic") == stand.results.encode()
    for name in ("cocoa.reason", "cocoa.partition", "cocoa.offset"):
        del headers[name]
    assert (key, value, headers) == found


# -- what goes wrong here


@AWAY
@pytest.mark.logs("cocoa.broker", "^consumer failed$")
async def test_an_error_of_our_own_ends_no_thread_and_costs_no_record(stand: KafkaStand) -> None:
    wrongs = [ValueError("a mistake")]

    def wrong_once(key: bytes | None, value: bytes | None, timestamp_ms: int, headers: Headers | None) -> Decoded:
        if value == b"doll|3" and wrongs:
            raise wrongs.pop()
        return decode(key, value, timestamp_ms, headers)

    await stand.create(stand.results)
    receiver, broker = Receiver(), await stand.broker()
    broker.start(receiver, wrong_once)
    try:
        await ready(broker)
        await stand.write(numbered(0, 5))
        await eventually(lambda: list(dict.fromkeys(receiver.payloads)) == payloads(0, 5))
    finally:
        await broker.close(2.0)


# -- what cannot be read, or is not to be


class Latin1Name(str):
    """A header's name as a producer in C may write it: Kafka does not look whether it is UTF-8."""

    def encode(self, *_: Any) -> bytes:
        return b"\xfc"


@pytest.mark.apache
@SKIPPED
async def test_a_batch_that_cannot_be_read_is_counted_and_skipped(
    python_stand: KafkaStand, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver()
    async with consuming(await python_stand.broker(), receiver) as broker:
        await python_stand.write(numbered(0, 2))

        def send() -> None:
            with writer(python_stand.server.bootstrap) as producer:
                producer.send(python_stand.results, value=b"doll|bad", headers=[(Latin1Name("x"), b"")]).get(10)

        await asyncio.to_thread(send)
        await python_stand.write(numbered(2, 3))
        await receiver.has(5)
        assert broker.counters.quarantined == {"unreadable": 1}
        assert broker.counters.reconnects == 0
        await eventually(lambda: broker.status().lag == 0)
    assert receiver.payloads == payloads(0, 5)
    [line] = lines(caplog, "unreadable records skipped")
    assert line.__dict__["origin"] == f"{python_stand.results}/0@2-2"
    group, results = python_stand.options.group, python_stand.results
    assert await asyncio.to_thread(committed_offset, python_stand.server.bootstrap, group, results) == 6


@pytest.mark.apache
@pytest.mark.parametrize("before", [0, 100])
async def test_a_record_with_a_headers_name_that_is_no_text_is_quarantined_without_its_headers(
    kafka: KafkaServer, before: int
) -> None:
    """kafka-python cannot read such a record at all; librdkafka can, but not its headers, so its recipients are
    unknown. With poison ``before``, because the interpreter changes how it makes a call that it has made often."""
    stand = kafka_stand("confluent", kafka)
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver) as broker:
        await stand.write([(None, b"poison")] * before)
        await stand.write(numbered(0, 2))

        def send() -> None:
            with writer(stand.server.bootstrap) as producer:
                producer.send(stand.results, value=b"doll|odd", headers=[(Latin1Name("x"), b"")]).get(10)

        await asyncio.to_thread(send)
        await stand.write(numbered(2, 3))
        await receiver.has(5)
        await eventually(lambda: sum(broker.counters.quarantined.values()) == before + 1)
        await eventually(lambda: broker.status().lag == 0)
        assert broker.counters.reconnects == 0
    assert receiver.payloads == payloads(0, 5)
    assert broker.counters.quarantined.pop("headers") == 1
    copies = await stand.read(stand.quarantine, before + 1)
    assert [value for _, value, _ in copies] == [b"poison"] * before + [b"doll|odd"]
    assert sorted(copies[-1][2]) == ["cocoa.offset", "cocoa.partition", "cocoa.reason", "cocoa.topic"]


@pytest.mark.apache
@SKIPPED
@pytest.mark.parametrize("client", KAFKA_CLIENTS)
@pytest.mark.parametrize("before", [0, 2])
async def test_a_batch_that_a_disk_has_broken_is_skipped_and_nothing_else(
    client: str, own_kafka: KafkaServer, caplog: pytest.LogCaptureFixture, before: int
) -> None:
    stand, receiver = kafka_stand(client, own_kafka), Receiver()
    async with consuming(await stand.broker(), receiver):
        pass  # the group's position is fixed
    await stand.write(numbered(0, before))

    def send() -> None:
        with writer(own_kafka.bootstrap, linger_ms=500) as producer:
            for number in range(300):
                producer.send(stand.results, value=b"doll|broken%d" % number)

    await asyncio.to_thread(send)
    await stand.write(numbered(before, 3))
    await asyncio.to_thread(flip_a_byte, own_kafka.folder, stand.results, b"broken2")
    async with consuming(await stand.broker(), receiver) as broker:
        await receiver.has(before + 3)
        await eventually(lambda: broker.status().lag == 0)
        assert broker.counters.quarantined == {"unreadable": 300}
    assert receiver.payloads == payloads(0, before + 3)
    [line] = lines(caplog, "unreadable records skipped")
    assert line.__dict__["origin"] == f"{stand.results}/0@{before}-{before + 299}"
    group, results = stand.options.group, stand.results
    assert await asyncio.to_thread(committed_offset, own_kafka.bootstrap, group, results) == before + 303


def flip_a_byte(folder: Path, topic: str, text: bytes) -> None:
    """Damage the segment of the topic's first partition where this text stands."""
    [segment] = folder.rglob(f"{topic}-0/*.log")
    with segment.open("r+b") as file:
        file.seek(segment.read_bytes().index(text))
        file.write(bytes([text[0] ^ 1]))


@pytest.mark.apache
@AWAY
async def test_a_codec_that_is_not_installed_is_waited_for_and_costs_no_record(
    python_stand: KafkaStand, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver, value = Receiver(), b"doll|" + b"0" * 1000  # one that is smaller when compressed
    async with consuming(await python_stand.broker(), receiver) as broker:
        with monkeypatch.context() as patch:

            def send() -> None:
                with writer(python_stand.server.bootstrap, compression_type="gzip") as producer:
                    producer.send(python_stand.results, value=value)

            patch.setattr("kafka.record.default_records.DefaultRecordBase._assert_has_codec", codec_check())
            await asyncio.to_thread(send)
            await eventually(lambda: "lz4, snappy or zstandard" in broker.status().detail)
            for _ in range(20):  # while it tries again, nothing changes
                await asyncio.sleep(0.1)
                assert broker.status().state is BrokerState.CONNECTING
        await ready(broker)
        await receiver.has(1)
    assert receiver.payloads == [value]
    assert [line.__dict__["cause"] for line in lines(caplog, "broker unavailable")] == ["codec"]


@pytest.mark.apache
@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
async def test_a_batch_that_was_compressed_is_read_whole(stand: KafkaStand, codec: str) -> None:
    receiver = Receiver()
    values = [b"doll|%d" % number + b"0" * 100_000 for number in range(30)]
    async with consuming(await stand.broker(), receiver):

        def send() -> None:
            limits = {"batch_size": 4_000_000, "max_request_size": 4_000_000, "linger_ms": 200}
            with writer(stand.server.bootstrap, compression_type=codec, **limits) as producer:
                for value in values:
                    producer.send(stand.results, value=value)

        await asyncio.to_thread(send)
        await receiver.has(30)
    assert receiver.payloads == values


def codec_check() -> Any:
    """Lets a producer's thread compress, and tells a consumer's thread that it cannot."""

    def check(self: object, compression_type: int) -> None:
        if threading.current_thread().name == "cocoa-kafka-consumer":
            raise kafka_errors.UnsupportedCodecError("Libraries for gzip compression codec not found")

    return check


# -- topics and groups that change


@pytest.mark.apache
@AWAY
@pytest.mark.logs("cocoa.broker", "^topic recreated$")
@MAYBE_NO_QUARANTINE
async def test_without_its_topic_it_is_not_ready_and_a_new_one_is_read_from_its_first_record(
    stand: KafkaStand, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver()
    await stand.create(stand.results)
    async with consuming(await stand.broker(create_topics=False), receiver) as broker:
        await stand.write(numbered(0, 5))
        await receiver.has(5)
        await asyncio.to_thread(delete_topic, stand.server.bootstrap, stand.results)
        await eventually(lambda: broker.status().state is BrokerState.CONNECTING)
        await eventually(lambda: stand.results in broker.status().detail)
        await stand.create(stand.results)
        await ready(broker)
        await stand.write(numbered(5, 3))
        await receiver.has(8)
    assert receiver.payloads == payloads(0, 8)
    assert await asyncio.to_thread(committed_offset, stand.server.bootstrap, stand.options.group, stand.results) == 3
    causes = {line.__dict__["cause"] for line in lines(caplog, "broker unavailable")}
    assert "topic" in causes
    assert causes <= {"topic", "away"}  # a broker that is busy may be slow to answer


@pytest.mark.apache
async def test_a_commit_that_comes_between_two_rebalances_is_no_outage(
    python_stand: KafkaStand, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [kafka_errors.CommitFailedError("too late"), kafka_errors.RebalanceInProgressError("too late")]
    commit = KafkaConsumer.commit

    def refuse_twice(self: Any, *args: Any, **settings: Any) -> None:
        if refusals:
            raise refusals.pop()
        commit(self, *args, **settings)

    monkeypatch.setattr(KafkaConsumer, "commit", refuse_twice)
    async with consuming(await python_stand.broker(), Receiver()):
        assert refusals == []
    assert lines(caplog, "broker unavailable") == []


def books(stand: KafkaStand, receiver: Receiver) -> KafkaConsuming:
    """A consuming half whose thread is not started, so that a test can do the thread's work."""
    options, counters = stand.options, BrokerCounters()
    clients = KafkaClients(options)
    publisher = Publisher(options, clients, brokers_answer=lambda: True, room_again=lambda: None)
    loop, availability = IOLoop.current(), Availability(counters)
    context = ReadingContext(options, publisher, counters, availability, clients, loop, receiver, decode)
    return KafkaConsuming(context, clients)


async def test_a_batch_that_was_done_when_the_partitions_were_lost_is_not_read_again(python_stand: KafkaStand) -> None:
    consuming, partition = books(python_stand, Receiver()), TopicPartition(python_stand.results, 0)
    ledger = OffsetLedger(10)
    span = ledger.read(20, pending=1)
    consuming._assignment.ledgers = {partition: ledger}
    consuming._handoff.take(10, 1000)
    consuming._handoff.when_done([span], 10, 1000)()
    consuming.forget()
    assert consuming._history.done_here == {0: 20}


async def test_a_log_that_was_cut_off_is_committed_from_where_it_goes_on(python_stand: KafkaStand) -> None:
    receiver, partition = Receiver(), TopicPartition(python_stand.results, 0)
    consuming = books(python_stand, receiver)
    consuming._assignment.ledgers = {partition: OffsetLedger(100)}
    record = SimpleNamespace(offset=90, key=None, value=b"doll|0", timestamp=None, headers=[])
    consumer = SimpleNamespace(highwater=lambda _: 91)
    consuming._route(consumer, {partition: [record]})
    await receiver.has(1)
    consuming._settle()
    assert consuming.offsets_to_commit() == {partition: 91}


@pytest.mark.apache
@AWAY
@LOST
async def test_a_token_endpoint_that_is_away_is_one_line(
    stand: KafkaStand, kafka: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    options = replace(
        stand.options,
        bootstrap=(kafka.sasl_bootstrap,),
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="OAUTHBEARER",
        oauth_token_url="http://127.0.0.1:1/token",
        oauth_client_id="gateway",
        oauth_client_secret="hunter2",
    )
    broker = stand.make(options)
    broker.start(Receiver(), decode)
    broker.publish(stand.messages, "doll", b"1")
    await eventually(lambda: "token endpoint" in broker.status().detail)
    await asyncio.sleep(1.0)  # time for a second attempt, which is to be silent
    assert [line.__dict__.get("cause") for line in caplog.records if line.name == "cocoa.broker"] == ["auth"]
    await broker.close(0.1)


# -- kafka-python's corners


def test_a_producer_waits_while_a_connection_is_being_set_up() -> None:
    client = ProducerClient(bootstrap_servers="127.0.0.1:1")
    try:
        assert client.connection_delay(1) == 50  # milliseconds
        client._manager.update_backoff(1)
        assert client.connection_delay(1) >= 50
    finally:
        client.close()
