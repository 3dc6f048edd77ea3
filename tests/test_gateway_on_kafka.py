"""The whole gateway on a real broker: from a backend's record to the device, and back, through outages and restarts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import uuid
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from typing import Any

import pytest
import websockets
from kafka import TopicPartition
from tornado.ioloop import IOLoop
from websockets.asyncio.client import ClientConnection

from cocoa_tornado.brokers.kafka import KafkaBroker
from cocoa_tornado.brokers.kafka_reading import Reading
from cocoa_tornado.brokers.port import BrokerState, Decoder
from cocoa_tornado.rules import canaries
from cocoa_tornado.service.gateway import Gateway
from cocoa_tornado.service.options import kafka_options
from cocoa_tornado.settings import Settings
from testing.kafka_admin import allow_writing, committed_offset, create_topic, forbid_writing, read_all, writer
from testing.kafka_server import SASL_PASSWORD, SASL_USER, KafkaServer, TansuServer
from testing.waiting import eventually

from .brokers.bench import AWAY, IN_USE, TOO_LARGE
from .harness import SECRET, Harness

pytestmark = [pytest.mark.gen_test(timeout=120), pytest.mark.kafka]

KAFKA_PATIENCE_S = 30.0


def record(device_id: str, number: int, **fields: object) -> bytes:
    """A record's value as Python's json makes it, with blanks, numbered in its text."""
    return json.dumps({"session_id": "s", "user_id": 99, "device_id": device_id, "text": str(number)} | fields).encode()


def message(value: bytes) -> bytes:
    """The message that the device must get for a record."""
    return json.dumps({"type": "transcription"} | json.loads(value), separators=(",", ":")).encode()


class Hearing:
    """Takes in all that a device is sent, from now on.

    :ivar heard: the messages, in their order, without the notice of a server that stops
    """

    def __init__(self, connection: ClientConnection) -> None:
        self.heard: list[bytes] = []
        self._connection = connection
        self._task = asyncio.ensure_future(self._listen())

    @property
    def is_connected(self) -> bool:
        return not self._task.done()

    async def _listen(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                message = await self._connection.recv(decode=False)
                if not message.startswith(b'{"type":"reconnect"'):
                    self.heard.append(message)

    async def hears(self, count: int) -> list[bytes]:
        """The first ``count`` messages; fails if they do not come in time."""
        await eventually(lambda: len(self.heard) >= count, KAFKA_PATIENCE_S)
        return self.heard[:count]


class LateKafka(KafkaBroker):
    """Consumes on demand, so that devices can connect before the first record is read."""

    def start(self, sink: Any, decode: Decoder) -> None:
        self._late = sink, decode

    def begin(self) -> None:
        super().start(*self._late)


class Site:
    """One test's topics and group, its gateways, and a backend that produces."""

    def __init__(self, server: KafkaServer | TansuServer) -> None:
        suffix = uuid.uuid4().hex[:8]
        self.server = server
        self.results, self.messages, self.quarantine = f"results.{suffix}", f"messages.{suffix}", f"bad.{suffix}"
        self.group = f"group.{suffix}"
        self.settings: dict[str, Any] = {
            "port": 0,
            "jwt_secret": SECRET,
            "drain_grace_s": 10.0,
            "broker": f"kafka://{server.bootstrap}",
            "kafka_group": self.group,
            "kafka_results_topic": self.results,
            "kafka_messages_topic": self.messages,
            "kafka_quarantine_topic": self.quarantine,
            "kafka_partitions": 1,
            "kafka_replication": 1,
            "speech": "none://",
        }
        self._started: list[Harness] = []

    async def start(self, **settings: Any) -> Harness:
        """A gateway that listens; ready or not."""
        return await self._start(Settings(**(self.settings | settings)))

    async def start_ready(self, **settings: Any) -> Harness:
        gateway = await self.start(**settings)
        await answers(gateway, 200)
        return gateway

    async def start_late(self) -> tuple[Harness, LateKafka]:
        """A gateway that accepts devices, and reads its first record on demand."""
        settings = Settings(**self.settings)
        broker = LateKafka(kafka_options(settings))
        return await self._start(settings, broker), broker

    async def _start(self, settings: Settings, broker: KafkaBroker | None = None) -> Harness:
        gateway = Gateway(settings, broker)
        await gateway.start()
        self._started.append(Harness(gateway))
        return self._started[-1]

    async def stop(self) -> None:
        await asyncio.gather(*(gateway.stop() for gateway in self._started))

    async def create(self, partitions: int) -> None:
        await asyncio.to_thread(create_topic, self.server.bootstrap, self.results, partitions)

    async def produce(
        self,
        records: Sequence[tuple[bytes | None, bytes | None]],
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Returns once the broker has acknowledged all of them."""

        def send() -> None:
            with writer(self.server.bootstrap) as producer:
                futures = []
                for key, value in records:
                    futures.append(
                        producer.send(self.results, key=key, value=value, partition=partition, headers=list(headers))
                    )
                    if not self.server.can_restart:
                        futures[-1].get(10)  # Tansu miscounts the end of a log whose last batch has several records
                for future in futures:
                    future.get(10)

        await asyncio.to_thread(send)

    async def say(self, device_id: str, *numbers: int) -> list[bytes]:
        """Produce numbered records for a device, and return the messages that it is to get."""
        values = [record(device_id, number) for number in numbers]
        await self.produce([(device_id.encode(), value) for value in values])
        return [message(value) for value in values]

    async def read(self, topic: str, count: int) -> list[Any]:
        return await asyncio.to_thread(read_all, self.server.bootstrap, topic, count)

    async def committed(self, partition: int = 0) -> int | None:
        return await asyncio.to_thread(
            committed_offset, self.server.bootstrap, self.group, self.results, partition=partition
        )

    @contextlib.asynccontextmanager
    async def streaming(self, device_id: str, partitions: int = 1) -> AsyncIterator[list[bytes]]:
        """A backend that produces a record every few milliseconds, to each partition in turn, whatever happens.

        Yields what the broker has acknowledged so far, which is all that was sent when the context ends.
        """
        stopping, acknowledged = threading.Event(), list[bytes]()

        def stream() -> None:
            number = 0
            with writer(self.server.bootstrap) as producer:
                while not stopping.wait(0.005):
                    partition = number % partitions
                    value = record(device_id, number, partition=partition)
                    sent = producer.send(self.results, key=device_id.encode(), value=value, partition=partition)
                    sent.add_callback(lambda _, value=value: acknowledged.append(value))
                    number += 1
                producer.flush(timeout=KAFKA_PATIENCE_S)
            assert len(acknowledged) == number, "the broker did not take everything"

        thread = asyncio.ensure_future(asyncio.to_thread(stream))
        try:
            yield acknowledged
        finally:
            stopping.set()
            await thread


async def answers(gateway: Harness, status: int) -> None:
    """Return once ``/api/v1/ready`` answers so."""
    end = asyncio.get_running_loop().time() + KAFKA_PATIENCE_S
    while (response := await gateway.http("GET", "/api/v1/ready")).status != status:
        assert asyncio.get_running_loop().time() < end, response
        await asyncio.sleep(0.02)


def only(partition: int, messages: Sequence[bytes]) -> list[bytes]:
    return [found for found in messages if json.loads(found)["partition"] == partition]


@pytest.fixture
def site(kafka: KafkaServer | TansuServer, io_loop: IOLoop) -> Iterator[Site]:
    site = Site(kafka)
    yield site
    io_loop.run_sync(site.stop)


@pytest.fixture
def own_site(own_kafka: KafkaServer | TansuServer, io_loop: IOLoop) -> Iterator[Site]:
    """A site whose broker may be stopped."""
    site = Site(own_kafka)
    yield site
    io_loop.run_sync(site.stop)


# -- there and back


async def test_a_record_produced_right_after_ready_turned_200_is_delivered_to_the_byte(site: Site) -> None:
    gateway = await site.start()
    hearing = Hearing(await gateway.connect("12312"))
    assert (await gateway.http("GET", "/api/v1/ready")).status == 503
    await answers(gateway, 200)
    value = (
        b'{ "session_id": "a1b2c3d4e5f6g7h8", "user_id": 99, "device_id": "12312", "text": "Gr\\u00fc\\u00dfe",'
        b' "timestamp": "2024-01-15T10:30:00Z", "success": true, "score": 1.0 }'
    )
    await site.produce([(b"12312", value)])
    [heard] = await hearing.hears(1)
    assert (
        heard
        == (
            '{"type":"transcription","session_id":"a1b2c3d4e5f6g7h8","user_id":99,"device_id":"12312","text":"Grüße",'
            '"timestamp":"2024-01-15T10:30:00Z","success":true,"score":1.0}'
        ).encode()
    )


async def test_of_two_devices_each_gets_its_own_messages_in_order_and_no_others(site: Site) -> None:
    gateway = await site.start_ready()
    one, two = Hearing(await gateway.connect("one")), Hearing(await gateway.connect("two"))
    values = {name: [record(name, number) for number in range(100)] for name in ("one", "two")}
    await site.produce([(name.encode(), values[name][number]) for number in range(100) for name in ("one", "two")])
    assert await one.hears(100) == [message(value) for value in values["one"]]
    assert await two.hears(100) == [message(value) for value in values["two"]]
    assert (len(one.heard), len(two.heard)) == (100, 100)
    assert (await gateway.metrics())["cocoa_messages_routed_total"] == 200


async def test_what_a_device_says_is_published_under_its_id(site: Site) -> None:
    gateway = await site.start_ready()
    one, two = await gateway.connect("one"), await gateway.connect("two")
    await one.send("Grüße")
    await one.send("again")
    await two.send("I, too")
    found = [(said.key, json.loads(said.value)) for said in await site.read(site.messages, 3)]
    assert [(key, body["device_id"], body["text"]) for key, body in found if key == b"one"] == [
        (b"one", "one", "Grüße"),
        (b"one", "one", "again"),
    ]
    assert [(body["user_id"], body["text"]) for key, body in found if key == b"two"] == [(99, "I, too")]


@pytest.mark.apache
@pytest.mark.parametrize("character", ["\n", "\x01", "\u00fc"], ids=["newlines", "controls", "letters"])
async def test_the_largest_message_of_a_device_arrives_however_json_spells_it(site: Site, character: str) -> None:
    gateway = await site.start_ready()
    device = await gateway.connect("doll")
    text = character * (512 * 1024 // len(character.encode()))
    await device.send(text)
    [said] = await site.read(site.messages, 1)
    assert json.loads(said.value)["text"] == text


@pytest.mark.apache
@TOO_LARGE
@pytest.mark.logs("cocoa.device", "^message from the device not published$")
async def test_a_device_is_told_that_its_message_is_too_big_for_the_topic_and_the_others_go_on(site: Site) -> None:
    await asyncio.to_thread(create_topic, site.server.bootstrap, site.messages, 1, {"max.message.bytes": "100000"})
    gateway = await site.start_ready()
    big, small = await gateway.connect("big"), await gateway.connect("small")
    await small.send("before")
    await big.send("x" * 200_000)
    with pytest.raises(websockets.ConnectionClosedError) as closed:
        await asyncio.wait_for(big.recv(), KAFKA_PATIENCE_S)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009
    await small.send("after")
    said = await site.read(site.messages, 2)
    assert [json.loads(record.value)["text"] for record in said] == ["before", "after"]


@pytest.mark.apache
@pytest.mark.logs("cocoa.canary", "canaries off")
async def test_canaries_that_an_acl_forbids_are_off_from_then_on_with_one_line_and_everything_else_works(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(site.server, KafkaServer)
    await site.create(1)
    user = {"kafka_sasl_mechanism": "PLAIN", "kafka_sasl_username": SASL_USER, "kafka_sasl_password": SASL_PASSWORD}
    broker = {"broker": f"kafka://{site.server.sasl_bootstrap}", "kafka_security_protocol": "SASL_PLAINTEXT"}
    gateway = await site.start_ready(canary_interval_s=0.2, **user, **broker)
    counters = gateway.gateway.counters.canary
    await eventually(lambda: gateway.gateway.readiness().parts["canary"] == {"ok": True, "state": "ready"})
    device = await gateway.connect("doll")
    acl = site.server.bootstrap, site.results, SASL_USER
    await asyncio.to_thread(forbid_writing, *acl)
    refused = {"ok": False, "state": "refused"}
    await eventually(lambda: gateway.gateway.readiness().parts["canary"] == refused)
    await asyncio.to_thread(allow_writing, *acl)
    sent = counters.sent
    hearing = Hearing(device)
    said = await site.say("doll", 0)
    assert await hearing.hears(1) == said
    await device.send("still published")
    [published] = await site.read(site.messages, 1)
    assert json.loads(published.value)["text"] == "still published"
    assert (counters.sent, counters.lost, counters.late) == (sent, 0, 0)
    assert gateway.gateway.readiness().parts["canary"] == refused
    assert len([line for line in caplog.records if line.message == "canaries off"]) == 1
    assert (await gateway.http("GET", "/api/v1/ready")).status == 200


async def test_records_whose_key_and_value_disagree_go_by_the_value_and_are_counted(site: Site) -> None:
    gateway = await site.start_ready()
    one, two = Hearing(await gateway.connect("one")), Hearing(await gateway.connect("two"))
    values = [record("one", number) for number in range(4)]
    await site.produce(list(zip((b"two", b"one", None, b"s"), values, strict=True)))
    assert await one.hears(4) == [message(value) for value in values]
    assert two.heard == []
    # The device's id, no key and the session's id are keys that producers are known to send.
    assert (await gateway.metrics())["cocoa_records_key_mismatch_total"] == 1


async def test_poison_goes_to_the_quarantine_unchanged_and_the_stream_goes_on(site: Site) -> None:
    gateway = await site.start_ready()
    hearing = Hearing(await gateway.connect("doll"))
    first = await site.say("doll", 0)
    await site.produce([(b"k1", b"\xff not json"), (None, b'{"text":"for whom?"}')], headers=[("trace", b"abc")])
    second = await site.say("doll", 1)
    assert await hearing.hears(2) == first + second
    bad = await site.read(site.quarantine, 2)
    origin = {"trace": b"abc", "cocoa.topic": site.results.encode(), "cocoa.partition": b"0"}
    assert [(found.key, found.value, dict(found.headers)) for found in bad] == [
        (b"k1", b"\xff not json", origin | {"cocoa.reason": b"not_utf8", "cocoa.offset": b"1"}),
        (None, b'{"text":"for whom?"}', origin | {"cocoa.reason": b"no_device", "cocoa.offset": b"2"}),
    ]
    # Counted once the acknowledgement is in, which may be later than the record can be read.
    await eventually(lambda: gateway.gateway.broker.counters.quarantined == {"not_utf8": 1, "no_device": 1})
    metrics = await gateway.metrics()
    assert metrics['cocoa_records_quarantined_total{reason="not_utf8"}'] == 1
    assert metrics['cocoa_records_quarantined_total{reason="no_device"}'] == 1


async def test_a_slow_device_holds_up_no_other_and_costs_no_rebalance(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assignments: list[Collection[TopicPartition]] = []
    note = Reading.note_assignment

    def counted(self: Reading[Any], assigned: Collection[TopicPartition]) -> None:
        assignments.append(assigned)
        note(self, assigned)

    monkeypatch.setattr(Reading, "note_assignment", counted)
    gateway = await site.start_ready(outbox_max_bytes=256 * 1024, write_wait_s=1.0)
    slow = await gateway.raw("slow", receive_buffer=4096)
    quick = Hearing(await gateway.connect("quick"))
    expected = []
    for number in range(0, 80, 20):
        padding = [record("slow", number + step, padding="x" * 50_000) for step in range(20)]
        values = [record("quick", number + step) for step in range(20)]
        await site.produce(
            [pair for both in zip(padding, values, strict=True) for pair in ((b"", both[0]), (b"", both[1]))]
        )
        expected += [message(value) for value in values]
        assert (await gateway.http("GET", "/api/v1/ready")).status == 200
    assert await quick.hears(80) == expected
    await eventually(lambda: not gateway.gateway.hub.is_device_connected("slow"))
    assert (await gateway.metrics())["cocoa_outbox_overflows_total"] == 1
    assert len(assignments) == 1
    assert gateway.gateway.broker.counters.reconnects == 0
    await slow.end()


# -- outages


@pytest.mark.apache
@AWAY
@pytest.mark.logs("cocoa.canary", "^canary lost$")
async def test_through_an_outage_devices_stay_and_every_acknowledged_record_comes_once_and_in_order(
    own_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canaries show it, too."""
    monkeypatch.setattr(canaries, "DEADLINE_S", 2.0)
    gateway = await own_site.start_ready(canary_interval_s=0.2)

    def canary() -> str:
        return str(gateway.gateway.readiness().parts["canary"]["state"])

    await eventually(lambda: canary() == "ready", KAFKA_PATIENCE_S)
    doll = Hearing(await gateway.connect("doll"))
    async with own_site.streaming("doll") as acknowledged:
        await doll.hears(50)
        await asyncio.to_thread(own_site.server.stop)
        await answers(gateway, 503)
        assert (await gateway.http("GET", "/api/v1/health")).status == 200
        newcomer = Hearing(await gateway.connect("newcomer"))
        await eventually(lambda: canary() == "lost", KAFKA_PATIENCE_S)
        await asyncio.to_thread(own_site.server.start)
        await answers(gateway, 200)
        await eventually(lambda: canary() == "ready", KAFKA_PATIENCE_S)
        before = len(doll.heard)
        await doll.hears(before + 50)
    await doll.hears(len(acknowledged))
    assert doll.heard == [message(value) for value in acknowledged]
    assert [json.loads(heard)["text"] for heard in doll.heard] == [str(number) for number in range(len(acknowledged))]
    assert doll.is_connected
    assert await own_site.say("newcomer", 0) == await newcomer.hears(1)
    assert gateway.gateway.broker.counters.reconnects in (1, 2)  # a broker that has just started may falter once more
    assert gateway.gateway.counters.canary.leaked == 0


@pytest.mark.apache
@AWAY
async def test_a_gateway_whose_broker_is_away_serves_devices_and_comes_up_with_it(own_site: Site) -> None:
    await asyncio.to_thread(own_site.server.kill)
    gateway = await own_site.start()
    connection = await gateway.connect("doll")
    hearing = Hearing(connection)
    await connection.send("anybody there?")
    await eventually(lambda: "does not answer" in gateway.gateway.broker.status().detail, KAFKA_PATIENCE_S)
    response = await gateway.http("GET", "/api/v1/ready")
    assert response.status == 503
    assert json.loads(response.body)["message"] == "not ready: broker"
    assert (await gateway.http("GET", "/api/v1/health")).status == 200
    await asyncio.to_thread(own_site.server.start)
    await answers(gateway, 200)
    assert await own_site.say("doll", 0) == await hearing.hears(1)
    [said] = await own_site.read(own_site.messages, 1)
    assert json.loads(said.value)["text"] == "anybody there?"


# -- restarts, and several gateways


async def test_a_drain_commits_what_was_routed_and_the_next_start_goes_on_there(site: Site) -> None:
    first = await site.start_ready()
    before = Hearing(await first.connect("doll"))
    assert await site.say("doll", *range(10)) == await before.hears(10)
    await first.gateway.drain_and_stop()
    assert await site.committed() == 10
    meanwhile = await site.say("doll", *range(10, 20))
    second, broker = await site.start_late()
    after = Hearing(await second.connect("doll"))
    broker.begin()
    assert await after.hears(10) == meanwhile
    await answers(second, 200)
    later = await site.say("doll", 20)
    assert await after.hears(11) == meanwhile + later
    assert len(before.heard) == 10


@pytest.mark.apache
@IN_USE
async def test_of_two_gateways_in_one_group_the_older_delivers_everything_and_the_younger_is_not_ready(
    site: Site,
) -> None:
    await site.create(partitions=4)
    a = await site.start_ready()
    b = await site.start()
    doll = Hearing(await a.connect("doll"))
    await eventually(lambda: b.gateway.broker.status().state is BrokerState.STANDBY, KAFKA_PATIENCE_S)
    values = [record("doll", number) for number in range(1000)]
    await site.produce([(b"%d" % number, value) for number, value in enumerate(values)])
    assert sorted(await doll.hears(1000)) == sorted(message(value) for value in values)
    assert a.gateway.counters.unknown_device + b.gateway.counters.unknown_device == 0
    assert (await a.http("GET", "/api/v1/ready")).status == 200
    response = await b.http("GET", "/api/v1/ready")
    assert response.status == 503
    assert json.loads(response.body)["message"] == "not ready: broker"
    assert json.loads(response.body)["parts"]["broker"] == {"ok": False, "state": "standby"}


@pytest.mark.apache
@IN_USE
async def test_a_record_produced_while_a_gateway_is_followed_by_another_comes_once(site: Site) -> None:
    await site.create(partitions=2)
    a = await site.start_ready()
    b = await site.start()
    # Connected to both: each of them can deliver the records that it reads.
    at_a, at_b = Hearing(await a.connect("doll")), Hearing(await b.connect("doll"))
    async with site.streaming("doll", partitions=2) as acknowledged:
        await at_a.hears(50)
        await answers(b, 503)
        assert at_b.heard == []
        await a.gateway.drain_and_stop()
        await answers(b, 200)
        await at_b.hears(50)
    await eventually(lambda: len(at_a.heard) + len(at_b.heard) >= len(acknowledged), KAFKA_PATIENCE_S)
    expected = [message(value) for value in acknowledged]
    for partition in (0, 1):
        assert only(partition, at_a.heard) + only(partition, at_b.heard) == only(partition, expected)
    assert a.gateway.counters.unknown_device + b.gateway.counters.unknown_device == 0
