"""Where one gateway holds all devices: one reads in the consumer group, and the others wait outside."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from kafka import errors as kafka_errors

from cocoa_tornado.brokers import kafka_members
from cocoa_tornado.brokers.kafka_availability import Availability
from cocoa_tornado.brokers.kafka_clients import KafkaClients
from cocoa_tornado.brokers.kafka_facade import KafkaFacade
from cocoa_tornado.brokers.kafka_members import SoleReading
from cocoa_tornado.brokers.kafka_options import KafkaOptions
from cocoa_tornado.brokers.port import Broker, BrokerCounters, BrokerState
from cocoa_tornado.errors import BrokerError
from cocoa_tornado.rules import sole_reader
from testing.kafka_admin import committed_offset, reader, throw_out
from testing.kafka_server import KafkaServer
from testing.waiting import eventually

from .bench import (
    AWAY,
    BLIND,
    IN_USE,
    MAYBE_AWAY,
    PATIENCE_S,
    SHARED,
    KafkaStand,
    Receiver,
    consuming,
    decode,
    kafka_stand,
    numbered,
    payloads,
    ready,
)

pytestmark = [
    pytest.mark.gen_test(timeout=90),
    pytest.mark.kafka,
    pytest.mark.apache,
    pytest.mark.logs("kafka.coordinator", "^No partition metadata for topic", optional=True),  # another reader's
]

PARTITIONS = 4
MESSAGES = 1000


class Pair:
    """A group that two gateways want to read in, each with a library of its own."""

    def __init__(self, first: str, second: str, server: KafkaServer) -> None:
        self.stand, self._other = kafka_stand(first, server), kafka_stand(second, server)

    def first(self, **options: Any) -> KafkaFacade:
        return self._make(self.stand, options)

    def second(self, **options: Any) -> KafkaFacade:
        return self._make(self._other, options)

    def _make(self, stand: KafkaStand, options: dict[str, Any]) -> KafkaFacade:
        return stand.make(replace(self.stand.options, **({"sole_reader": True} | options)))

    async def create(self) -> None:
        await self.stand.create(self.stand.results, partitions=PARTITIONS)

    async def write(self, start: int, count: int) -> None:
        """To all partitions in turn."""
        for partition in range(PARTITIONS):
            await self.stand.write(numbered(start, count)[partition::PARTITIONS], partition=partition)

    async def committed(self) -> list[int | None]:
        bootstrap, group, topic = self.stand.server.bootstrap, self.stand.options.group, self.stand.results
        return [
            await asyncio.to_thread(committed_offset, bootstrap, group, topic, partition)
            for partition in range(PARTITIONS)
        ]


@pytest.fixture(
    params=[("kafka", "kafka"), ("confluent", "confluent"), ("confluent", "kafka"), ("kafka", "confluent")],
    ids=lambda pair: "-".join(pair),
)
def pair(request: pytest.FixtureRequest, kafka: KafkaServer) -> Pair:
    first, second = request.param
    return Pair(first, second, kafka)


@pytest.fixture(params=["kafka", "confluent"])
def alone(request: pytest.FixtureRequest, kafka: KafkaServer) -> Pair:
    """The same, where the second one is of no interest."""
    return Pair(request.param, request.param, kafka)


async def has_state(broker: Broker, state: BrokerState) -> None:
    try:
        await eventually(lambda: broker.status().state is state, PATIENCE_S)
    except AssertionError as error:
        raise AssertionError(f"not {state.value}: {broker.status()}") from error


def lines(caplog: pytest.LogCaptureFixture, message: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == message]


@contextlib.asynccontextmanager
async def started(broker: Broker, receiver: Receiver | None = None) -> AsyncIterator[Broker]:
    """The broker, ready or not, and closed at the end."""
    broker.start(receiver or Receiver(), decode)
    try:
        yield broker
    finally:
        await broker.close(2.0)


@contextlib.asynccontextmanager
async def other_reader(stand: KafkaStand, topic: str | None = None, **settings: Any) -> AsyncIterator[None]:
    """A member of the group that is no gateway."""
    topic, stopping, joined = topic or stand.results, threading.Event(), threading.Event()

    def consume() -> None:
        options = {"group_id": stand.options.group, "client_id": "other-reader", "auto_offset_reset": "latest"}
        with reader(stand.server.bootstrap, **(options | settings)) as consumer:
            consumer.subscribe([topic])
            while not stopping.is_set():
                consumer.poll(timeout_ms=500)  # a join that is answered between two polls is begun again
                if consumer.assignment():
                    joined.set()

    running = asyncio.ensure_future(asyncio.to_thread(consume))
    try:
        await eventually(joined.is_set, PATIENCE_S)
        yield
    finally:
        stopping.set()
        await running


@IN_USE
async def test_a_second_gateway_takes_nothing_from_the_first_and_takes_over_when_that_has_gone(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    await pair.create()
    first, second = Receiver(), Receiver()
    async with consuming(pair.first(), first) as one, started(pair.second(), second) as two:
        await has_state(two, BrokerState.STANDBY)
        await pair.write(0, MESSAGES)
        await first.has(MESSAGES)
        assert sorted(first.payloads) == sorted(payloads(0, MESSAGES))
        assert two.status().state is BrokerState.STANDBY
        assert one.status().state is BrokerState.READY
        assert one.counters.reconnects == 0
        await two.publish(pair.stand.messages, "doll", b"from a device of the second")
        await one.stop_consuming()
        await ready(two)
        await pair.write(MESSAGES, 100)
        await second.has(100)
    assert sorted(second.payloads) == sorted(payloads(MESSAGES, 100))
    [line] = lines(caplog, "consumer group in use")
    assert line.__dict__["group"] == pair.stand.options.group
    assert line.__dict__["reader"] == "cocoa-gateway at 127.0.0.1"


@pytest.mark.logs("cocoa.broker", "^consumer group in use$", optional=True)
async def test_of_two_gateways_that_join_at_the_same_moment_exactly_one_reads(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pair.create()
    together, await_turn, passed = threading.Barrier(2), SoleReading.await_turn, list[object]()

    def await_turn_together(self: SoleReading, stopping: threading.Event) -> None:
        await_turn(self, stopping)
        if self not in passed:  # only the first time
            passed.append(self)
            together.wait(PATIENCE_S)

    monkeypatch.setattr(SoleReading, "await_turn", await_turn_together)
    brokers, receivers = (pair.first(), pair.second()), (Receiver(), Receiver())

    def states() -> list[str]:
        return sorted(broker.status().state.value for broker in brokers)

    async with started(brokers[0], receivers[0]), started(brokers[1], receivers[1]):
        await eventually(lambda: states() == ["ready", "standby"], PATIENCE_S)
        await pair.write(0, 100)
        chosen = [broker.status().state for broker in brokers].index(BrokerState.READY)
        await receivers[chosen].has(100)
    assert sorted(receivers[chosen].payloads) == sorted(payloads(0, 100))
    assert receivers[1 - chosen].payloads == []


@IN_USE
async def test_a_reader_that_was_thrown_out_does_not_take_the_partitions_back(alone: Pair) -> None:
    await alone.create()
    first, second = Receiver(), Receiver()
    # The first learns of it from its next heartbeat, in three seconds; the second finds the group empty before that.
    async with consuming(alone.first(session_timeout_s=18.0), first) as one, started(alone.second(), second) as two:
        await has_state(two, BrokerState.STANDBY)
        await asyncio.to_thread(throw_out, alone.stand.server.bootstrap, alone.stand.options.group)
        await ready(two)
        await has_state(one, BrokerState.STANDBY)
        await alone.write(0, 100)
        await second.has(100)
        assert two.counters.reconnects == 0
    assert sorted(second.payloads) == sorted(payloads(0, 100))
    assert first.payloads == []


@IN_USE
async def test_a_group_that_another_program_reads_in_is_waited_for_and_left_as_it_is(alone: Pair) -> None:
    await alone.create()
    receiver = Receiver()
    async with contextlib.AsyncExitStack() as stack:
        async with other_reader(alone.stand):
            broker = await stack.enter_async_context(started(alone.first(), receiver))
            await has_state(broker, BrokerState.STANDBY)
            assert "other-reader at 127.0.0.1" in broker.status().detail
            assert await alone.committed() == [None] * PARTITIONS
        await ready(broker)
        await alone.write(0, 10)
        await receiver.has(10)


@SHARED
async def test_a_reader_is_not_ready_while_another_reader_takes_part_of_its_records(
    alone: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sole_reader, "SHARED_PATIENCE_S", 0.0)
    await alone.create()
    async with consuming(alone.first(), Receiver()) as broker:
        async with other_reader(alone.stand):
            await has_state(broker, BrokerState.SHARED)
            assert "other-reader at 127.0.0.1" in broker.status().detail
        await ready(broker)
    [line] = lines(caplog, "consumer group shared")
    assert line.__dict__["other_reader"] == "other-reader at 127.0.0.1"


@IN_USE
async def test_a_gateway_of_an_older_release_is_waited_for(alone: Pair) -> None:
    await alone.create()
    async with consuming(alone.first(sole_reader=False), Receiver()) as old, started(alone.second()) as new:
        await has_state(new, BrokerState.STANDBY)
        assert old.status().state is BrokerState.READY
        await old.stop_consuming()
        await ready(new)


@IN_USE
async def test_a_reader_that_died_is_followed_when_its_session_has_ended(alone: Pair) -> None:
    await alone.create()
    dies: dict[str, Any] = {
        "group_instance_id": "does-not-leave",
        "session_timeout_ms": 2000,
        "heartbeat_interval_ms": 500,
    }
    async with other_reader(alone.stand, **dies):
        pass
    async with started(alone.first()) as broker:
        await has_state(broker, BrokerState.STANDBY)
        await ready(broker)


@IN_USE
async def test_a_gateway_that_waits_for_the_reader_stops_at_once_and_leaves_no_thread(alone: Pair) -> None:
    await alone.create()
    async with other_reader(alone.stand):
        before = set(threading.enumerate())
        async with started(alone.first()) as broker:
            await has_state(broker, BrokerState.STANDBY)
            await asyncio.wait_for(broker.stop_consuming(), 2.0)  # of the 15 s that a consumer may take to stop
        await eventually(lambda: not {thread for thread in threading.enumerate() if is_kafka(thread)} - before)


def is_kafka(thread: threading.Thread) -> bool:
    return "kafka" in thread.name.lower()


async def test_members_that_read_another_topic_are_no_reason_to_wait(alone: Pair) -> None:
    await alone.create()
    await alone.stand.create("other." + alone.stand.results)
    receiver = Receiver()
    async with (
        other_reader(alone.stand, "other." + alone.stand.results),
        consuming(alone.first(), receiver),
    ):
        await alone.write(0, 10)
        await receiver.has(10)


@BLIND
@pytest.mark.parametrize(
    "failure",
    [kafka_errors.GroupAuthorizationFailedError, kafka_errors.UnsupportedVersionError, KeyError],
    ids=lambda error: error.__name__,
)
async def test_without_the_right_to_list_members_it_reads_and_logs_it_once(
    alone: Pair, failure: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(KafkaClients, "admin", refusing(KafkaClients.admin, failure))
    await alone.create()
    for _ in range(2):
        receiver = Receiver()
        async with consuming(alone.first(), receiver):
            await alone.write(0, 10)
            await receiver.has(10)
    assert len(lines(caplog, "group members unknown")) == 2  # once in the life of each


def refusing(make: Callable[[KafkaClients], Any], failure: type[Exception]) -> Callable[[KafkaClients], Any]:
    def admin(self: KafkaClients) -> Any:
        made = make(self)

        def describe_groups(groups: list[str]) -> None:
            raise failure(groups[0])

        made.describe_groups = describe_groups
        return made

    return admin


NO_ANSWERS: list[Exception] = [
    BrokerError("the token endpoint https://idp/token answered 503"),
    OSError(24, "Too many open files"),
    RuntimeError("can't start new thread"),
    kafka_errors.UnknownError(),
    kafka_errors.BrokerNotAvailableError(),
]


@AWAY
@IN_USE
async def test_an_error_that_says_nothing_of_the_group_keeps_a_gateway_outside(
    alone: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await alone.create()
    monkeypatch.setattr(kafka_members, "AWAY_AFTER_S", 0.0)
    first, second, failures = Receiver(), Receiver(), list(NO_ANSWERS)
    monkeypatch.setattr(
        KafkaClients, "admin", failing(KafkaClients.admin, lambda: failures.pop(0) if failures else None)
    )
    async with consuming(alone.first(), first), started(alone.second(client_id="second"), second) as two:
        await has_state(two, BrokerState.STANDBY)
        assert not failures
        await alone.write(0, 100)
        await first.has(100)
    assert second.payloads == []
    reported = [line.__dict__["detail"] for line in lines(caplog, "broker unavailable")]
    assert reported
    assert all("no answer about the members of group" in detail for detail in reported)


@BLIND
@IN_USE
async def test_a_gateway_that_read_without_an_answer_leaves_when_it_learns_of_another_reader(
    alone: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    await alone.create()
    monkeypatch.setattr(kafka_members, "BLIND_LOOK_S", 0.1)
    first, second, is_refused = Receiver(), Receiver(), [True]
    refusal = kafka_errors.GroupAuthorizationFailedError()
    monkeypatch.setattr(KafkaClients, "admin", failing(KafkaClients.admin, lambda: refusal if is_refused[0] else None))
    async with consuming(alone.first(), first), started(alone.second(client_id="second"), second) as two:
        await ready(two)
        is_refused[0] = False
        await has_state(two, BrokerState.STANDBY)
        await alone.write(0, 100)
        await first.has(100)
    assert second.payloads == []


def failing(
    make: Callable[[KafkaClients], Any], next_failure: Callable[[], Exception | None]
) -> Callable[[KafkaClients], Any]:
    """The second gateway's questions about the group fail."""

    def admin(self: KafkaClients) -> Any:
        asks = threading.current_thread().name == "cocoa-kafka-members" and self._options.client_id == "second"
        failure = next_failure() if asks else None
        if failure is not None:
            raise failure
        return make(self)

    return admin


@AWAY
@IN_USE
@pytest.mark.parametrize("client", ["kafka", "confluent"])
async def test_a_gateway_in_standby_stays_there_while_the_brokers_are_away(client: str, own_kafka: KafkaServer) -> None:
    pair = Pair(client, client, own_kafka)
    await pair.create()
    async with consuming(pair.first(), Receiver()) as one, started(pair.second()) as two:
        await has_state(two, BrokerState.STANDBY)
        await asyncio.to_thread(own_kafka.kill)
        await has_state(one, BrokerState.CONNECTING)
        await eventually(lambda: "no answer about the members" in two.status().detail, PATIENCE_S)
        assert two.status().state is BrokerState.STANDBY
        await asyncio.to_thread(own_kafka.start)
        # Whose session has outlived the outage reads: it may be either's.
        states = {BrokerState.READY, BrokerState.STANDBY}
        await eventually(lambda: {one.status().state, two.status().state} == states, 60.0)


class Silence:
    """In place of the coordinator: each question fails at once.

    :ivar asked: how many there were
    """

    def __init__(self) -> None:
        self.asked = 0
        self._answer: Future[Any] | None = None

    def ask(self) -> Future[Any]:
        if self._answer is None:
            self.asked += 1
            self._answer = Future()
            self._answer.set_exception(kafka_errors.NodeNotReadyError())
        return self._answer

    def take_answer(self) -> Future[Any] | None:
        answer, self._answer = self._answer, None
        return answer

    def forget(self) -> None:
        self._answer = None


class Clock:
    """In place of the module ``time``."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Passing(threading.Event):
    """Stops after a minute of the clock, without really waiting."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.now += timeout or 0.0
        if self._clock.now >= 60.0:
            self.set()
        return self.is_set()


@MAYBE_AWAY
@pytest.mark.parametrize("joined", [False, True])
async def test_an_unanswered_request_about_the_group_is_repeated_with_backoff(
    joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, silence = Clock(), Silence()
    options = KafkaOptions(bootstrap=("nowhere:9092",))
    sole = SoleReading(KafkaClients(options), options, Availability(BrokerCounters()))
    monkeypatch.setattr(sole, "_coordinator", silence)
    monkeypatch.setattr(kafka_members, "time", clock)
    if joined:
        sole.note_assignment()
        while clock.now < 60.0:
            assert not sole.may_read(lambda: "me")
            clock.now += 0.1
    else:
        sole.await_turn(Passing(clock))
    # One every 2.5 s in the end, and not one with each turn of the thread.
    assert 10 <= silence.asked <= 50
