"""The publisher, with a scripted producer: no broker, and no waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka import errors as kafka_errors

from cocoa_tornado.brokers.kafka import KafkaBroker
from cocoa_tornado.brokers.kafka_options import KafkaOptions
from cocoa_tornado.brokers.kafka_publisher import Outgoing, Publisher
from cocoa_tornado.errors import BrokerError
from testing.waiting import eventually


class Answer:
    """The future of one record that was sent."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.is_given = False
        self._calls: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def add_callback(self, call: Callable[..., None], *args: Any) -> None:
        self._calls.insert(0, (call, args))

    def add_errback(self, call: Callable[..., None], *args: Any) -> None:
        self._calls.append((call, args))

    def acknowledge(self) -> None:
        self.is_given = True
        call, args = self._calls[0]
        call(*args, None)

    def refuse(self, error: Exception) -> None:
        self.is_given = True
        call, args = self._calls[1]
        call(*args, error)


class Producer:
    """Takes records, and answers on demand."""

    def __init__(self) -> None:
        self.sent: list[Answer] = []

    def send(self, topic: str, **_: Any) -> Answer:
        answer = Answer(topic)
        self.sent.append(answer)
        return answer

    def close(self, timeout: float | None = None) -> None:
        """Nothing is open."""


class Clients:
    """:ivar kind: of the producers; :ivar producers: those made so far"""

    def __init__(self) -> None:
        self.kind = Producer
        self.producers: list[Producer] = []

    def producer(self) -> Producer:
        self.producers.append(self.kind())
        return self.producers[-1]


class Bench:
    """A publisher, and the results of its records."""

    def __init__(self, *, room_again: Callable[[], None] = lambda: None, **options: Any) -> None:
        self.clients = Clients()
        self.ended: list[tuple[str, BrokerError | None]] = []
        self.publisher = Publisher(
            KafkaOptions(bootstrap=("nowhere:9092",), **options),
            self.clients,  # type: ignore[arg-type]  # as much of it as is asked for
            brokers_answer=lambda: True,
            room_again=room_again,
        )

    def submit(self, topic: str, name: str) -> Outgoing:
        record = Outgoing(topic, b"key", name.encode(), [], lambda error: self.ended.append((name, error)))
        self.publisher.submit(record)
        return record

    @property
    def sent(self) -> list[Answer]:
        return self.clients.producers[-1].sent if self.clients.producers else []


async def sends(answers: Callable[[], list[Answer]], count: int) -> Answer:
    """The record of this number that is sent, counted from 1; waits for it."""
    await eventually(lambda: len(answers()) >= count)
    return answers()[count - 1]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.publisher.close(0.0)


@pytest.mark.gen_test
async def test_a_record_that_was_refused_once_has_its_turn_though_another_topic_is_busy(bench: Bench) -> None:
    bench.submit("busy", "b0")
    bench.submit("quarantine", "q")
    await sends(lambda: bench.sent, 2)
    refused = next(answer for answer in bench.sent if answer.topic == "quarantine")
    refused.refuse(kafka_errors.PolicyViolationError("no"))
    await eventually(lambda: len(bench.clients.producers) == 2)
    # The busy topic is never without a record to send: what is under way may go first, and no more.
    for turn in range(1, 4):
        bench.submit("busy", f"b{turn}")
        answer = await sends(lambda: bench.sent, turn)
        bench.submit("busy", f"more{turn}")
        answer.acknowledge()
        if ("q", None) in bench.ended:
            return
    pytest.fail("the busy topic goes first, again and again")


class MissingTopic(Producer):
    """Knows no topic but ``busy``."""

    def send(self, topic: str, **settings: Any) -> Answer:
        if topic != "busy":
            raise kafka_errors.KafkaTimeoutError(f"Topic {topic} not found in cluster metadata")
        return super().send(topic, **settings)


@pytest.mark.gen_test
async def test_a_record_that_waits_can_be_taken_back_and_its_place_is_free_again() -> None:
    room: list[None] = []
    bench = Bench(room_again=lambda: room.append(None), queue_records=2)
    bench.clients.kind = MissingTopic
    try:
        records = [bench.submit("quarantine", name) for name in ("a", "b")]
        sent = bench.submit("busy", "c")
        assert not bench.publisher.has_room()
        await sends(lambda: bench.sent, 1)
        assert not bench.publisher.withdraw(sent)
        for record in records:
            await eventually(lambda record=record: bench.publisher.withdraw(record))  # type: ignore[misc]
        assert bench.publisher.has_room()
        assert room == [None]
        assert not bench.publisher.withdraw(records[0])
        bench.sent[0].acknowledge()
        await eventually(lambda: bench.ended == [("c", None)])
    finally:
        assert bench.publisher.close(0.0) == {}


@pytest.mark.gen_test
async def test_a_withdrawn_record_is_not_sent_again(bench: Bench) -> None:
    record = bench.submit("quarantine", "a")
    bench.submit("busy", "b")
    await sends(lambda: bench.sent, 2)
    record.is_wanted = False
    for answer in bench.sent:
        answer.refuse(kafka_errors.ClusterAuthorizationFailedError("no"))
    answer = await sends(lambda: bench.sent if len(bench.clients.producers) == 2 else [], 1)
    assert answer.topic == "busy"
    answer.acknowledge()
    await eventually(lambda: bench.ended == [("b", None)])
    assert bench.publisher.close(1.0) == {}


class CountingBroker(KafkaBroker):
    """:ivar questions: how often room was requested"""

    questions = 0

    def can_write(self) -> bool:
        self.questions += 1
        return super().can_write()


@pytest.mark.gen_test
async def test_waiters_for_room_are_woken_in_order_and_as_many_as_there_is_room_for() -> None:
    broker = CountingBroker(KafkaOptions(bootstrap=("nowhere:9092",), queue_records=4))
    clients = Clients()
    broker._publisher._clients = clients  # type: ignore[assignment]  # as much of it as is asked for
    written: list[int] = []

    async def write(number: int) -> None:
        await broker.writable()
        written.append(number)
        broker.publish("device.messages", "key", b"value")

    for number in range(4):
        await write(number)
    waiting = [asyncio.ensure_future(write(number)) for number in range(4, 40)]
    for number in range(1, 41):
        answer = await sends(lambda: clients.producers[0].sent if clients.producers else [], number)
        await asyncio.to_thread(answer.acknowledge)
    await asyncio.gather(*waiting)
    assert written == list(range(40))
    # Some for each; with all of them woken for each place it would be some for each pair.
    assert broker.questions <= 6 * 40
    await broker.close(1.0)
