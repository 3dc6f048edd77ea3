"""What Kafka alone can do to a consumer and a producer: outages, rebalances, missing topics, authentication."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from cocoa_tornado.brokers import kafka_reading
from cocoa_tornado.brokers.kafka_beginning import Beginning
from cocoa_tornado.brokers.kafka_reading import Reading
from cocoa_tornado.brokers.port import BrokerState, QuarantineState
from cocoa_tornado.errors import BrokerClosed, BrokerError
from testing.kafka_admin import add_partitions, committed_offset, throw_out
from testing.kafka_installation import SCRAM_PASSWORD, SCRAM_USER
from testing.kafka_server import SASL_PASSWORD, SASL_USER, KafkaServer
from testing.waiting import eventually

from .bench import (
    AWAY,
    KAFKA_CLIENTS,
    LOST,
    MAYBE_NO_QUARANTINE,
    NO_QUARANTINE,
    PATIENCE_S,
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
from .token_endpoint import serving

pytestmark = [pytest.mark.gen_test(timeout=90), pytest.mark.kafka]


@pytest.fixture(params=KAFKA_CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    """The library by which the adapter speaks to Kafka."""
    name: str = request.param
    return name


@pytest.fixture
def stand(client: str, kafka: KafkaServer) -> KafkaStand:
    return kafka_stand(client, kafka)


def lines(caplog: pytest.LogCaptureFixture, message: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == message]


def in_order_and_complete(received: list[bytes], wanted: list[bytes]) -> bool:
    """True if ``received`` without repetitions is exactly ``wanted``, in order."""
    return list(dict.fromkeys(received)) == wanted


# -- fresh groups, new partitions


async def test_the_position_of_a_fresh_group_is_committed_before_it_is_ready(stand: KafkaStand) -> None:
    await stand.create(stand.results)
    await stand.write(numbered(0, 3))
    async with consuming(await stand.broker(), Receiver()):
        assert (
            await asyncio.to_thread(committed_offset, stand.server.bootstrap, stand.options.group, stand.results) == 3
        )


async def test_a_record_written_while_a_fresh_group_was_down_is_not_lost(stand: KafkaStand) -> None:
    async with consuming(await stand.broker(), Receiver()):
        pass
    await stand.write(numbered(0, 2))
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver):
        await receiver.has(2)
    assert receiver.payloads == payloads(0, 2)


@pytest.mark.apache
async def test_partitions_that_are_added_later_are_read_from_their_beginning(stand: KafkaStand) -> None:
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver) as broker:
        await asyncio.to_thread(add_partitions, stand.server.bootstrap, stand.results, 2)
        await stand.write(numbered(0, 3), partition=1)
        await receiver.has(3)
        await eventually(lambda: "2 partitions" in broker.status().detail)
    assert receiver.payloads == payloads(0, 3)


@pytest.mark.apache
async def test_two_members_of_a_fresh_group_agree_on_the_newest_record(stand: KafkaStand) -> None:
    await stand.create(stand.results, partitions=4)
    for partition in range(4):
        await stand.write(numbered(0, 2), partition=partition)
    first, second = Receiver(), Receiver()
    one, two = await stand.broker(), await stand.broker()
    one.start(first, decode)
    two.start(second, decode)
    await asyncio.gather(ready(one), ready(two))
    for partition in range(4):
        await stand.write([(None, b"doll|new%d" % partition)], partition=partition)
    await eventually(lambda: len(first.payloads) + len(second.payloads) >= 4)
    await asyncio.gather(one.close(1.0), two.close(1.0))
    assert sorted(first.payloads + second.payloads) == [b"doll|new%d" % partition for partition in range(4)]


@pytest.mark.parametrize("protocol", ["classic", pytest.param("consumer", marks=pytest.mark.apache)])
async def test_a_member_without_a_partition_is_ready_only_once_a_fresh_group_has_its_position(
    client: str, stand: KafkaStand, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then, the member that has the partition would begin behind a record that is produced now."""
    if protocol == "consumer" and client != "confluent":
        pytest.skip("kafka-python has no KIP-848")
    await stand.create(stand.results)
    may_begin, waits = threading.Event(), [0]
    find, resolve_none = Beginning.find, Reading._resolve_none

    def look(beginning: Beginning[Any], assigned: set[Any], since: float) -> Any:
        return find(beginning, assigned, since) if may_begin.is_set() else None

    def look_with_none(reading: Reading[Any]) -> bool:
        waits[0] += 1
        return resolve_none(reading)

    monkeypatch.setattr(Beginning, "find", look)
    monkeypatch.setattr(Reading, "_resolve_none", look_with_none)
    monkeypatch.setattr(kafka_reading, "NO_PARTITION_AFTER_S", 0.0)
    brokers = [await stand.broker(group_protocol=protocol) for _ in range(2)]
    receiver = Receiver()
    for broker in brokers:
        broker.start(receiver, decode)
    await eventually(lambda: waits[0] >= 8, PATIENCE_S)
    assert [broker.status().state for broker in brokers] == [BrokerState.CONNECTING] * 2
    may_begin.set()
    for broker in brokers:
        await ready(broker)
    await stand.write(numbered(0, 1))
    await receiver.has(1)
    await asyncio.gather(*(broker.close(1.0) for broker in brokers))
    assert receiver.payloads == payloads(0, 1)


# -- rebalances


@pytest.mark.apache
async def test_a_second_consumer_takes_its_share_and_nothing_is_lost(stand: KafkaStand) -> None:
    await stand.create(stand.results, partitions=2)
    first, second = Receiver(), Receiver()
    async with consuming(await stand.broker(), first) as one:
        for partition in range(2):
            await stand.write(numbered(0, 50, b"p%d" % partition), partition=partition)
        await first.has(100)
        async with consuming(await stand.broker(), second) as two:
            await eventually(lambda: "1 partition " in one.status().detail and "1 partition " in two.status().detail)
            for partition in range(2):
                await stand.write(numbered(50, 50, b"p%d" % partition), partition=partition)
            await eventually(lambda: len(first.payloads) + len(second.payloads) >= 200)
        for partition in range(2):
            await stand.write(numbered(100, 10, b"p%d" % partition), partition=partition)
        await eventually(lambda: len(first.payloads) + len(second.payloads) >= 220)
        assert one.counters.reconnects == 0
    everything = first.payloads + second.payloads
    assert len(second.payloads) == 50
    assert len(everything) == len(set(everything)) == 220
    for device in (b"p0|", b"p1|"):
        mine = [payload for payload in first.payloads if payload.startswith(device)]
        assert mine == sorted(mine, key=lambda payload: int(payload[3:]))


@pytest.mark.apache
async def test_what_was_held_back_when_others_came_and_went_is_read_in_the_end(stand: KafkaStand) -> None:
    await stand.create(stand.results, partitions=2)
    first, second = Receiver(prompt=False), Receiver()
    held = {"high_water": 4, "low_water": 2, "max_poll_records": 2}
    async with consuming(await stand.broker(**held), first) as one:
        for partition in range(2):
            await stand.write(numbered(0, 50, b"p%d" % partition), partition=partition)
        await eventually(lambda: one.counters.pauses == 1)
        async with consuming(await stand.broker(), second):
            await eventually(lambda: "1 partition " in one.status().detail)
        await eventually(lambda: "2 partitions" in one.status().detail)
        first.finish()
        wanted = {b"p%d|%d" % (partition, number) for partition in range(2) for number in range(50)}
        await eventually(lambda: wanted <= {*first.payloads, *second.payloads})
        await eventually(lambda: one.status().lag == 0)


@pytest.mark.apache
async def test_a_pause_survives_a_rebalance_and_a_late_done_commits_nothing(
    client: str, stand: KafkaStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "confluent_consumer" if client == "confluent" else "kafka_listener"
    monkeypatch.setattr(f"cocoa_tornado.brokers.{module}.REVOKE_PATIENCE_S", 0.2)
    await stand.create(stand.results, partitions=2)
    first, second = Receiver(prompt=False), Receiver()
    async with consuming(await stand.broker(high_water=10, low_water=5), first) as one:
        for partition in range(2):
            await stand.write(numbered(0, 20, b"p%d" % partition), partition=partition)
        await eventually(lambda: one.counters.pauses == 1)
        handed_over = len(first.payloads)
        async with consuming(await stand.broker(), second) as two:
            await eventually(lambda: "1 partition " in one.status().detail and "1 partition " in two.status().detail)
            await second.has(20)  # what the first had not done is read again by the next owner
            assert len(first.payloads) == handed_over
            late, first.open = first.open, []
            first.prompt = True
            for batch in late:
                batch.done()
            await eventually(lambda: one.status().lag == 0 and two.status().lag == 0)
    for device in (b"p0", b"p1"):
        mine = [payload for payload in first.payloads + second.payloads if payload.startswith(device)]
        assert set(mine) == set(payloads(0, 20, device))


@pytest.mark.apache
async def test_leaving_the_group_lets_the_next_consumer_join_at_once(stand: KafkaStand) -> None:
    async with consuming(await stand.broker(session_timeout_s=30.0), Receiver()):
        pass
    broker = await stand.broker(session_timeout_s=30.0)
    broker.start(Receiver(), decode)
    await ready(broker, patience_s=20.0)  # far below the session timeout, for which a lost member would be waited for
    await broker.close(1.0)


# -- outages


@pytest.mark.apache
@AWAY
async def test_a_broker_that_stops_and_comes_back_loses_nothing(
    client: str, own_kafka: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stand, receiver = kafka_stand(client, own_kafka), Receiver()
    async with consuming(await stand.broker(), receiver) as broker:
        published = [broker.publish(stand.messages, "doll", b"%d" % number) for number in range(100)]
        await stand.write(numbered(0, 100))
        await receiver.has(100)
        await asyncio.to_thread(own_kafka.stop)
        published += [broker.publish(stand.messages, "doll", b"%d" % number) for number in range(100, 200)]
        await eventually(lambda: broker.status().state is BrokerState.CONNECTING)
        assert stand.server.bootstrap in broker.status().detail
        assert broker.status().lag is None
        await asyncio.to_thread(own_kafka.start)
        await ready(broker)
        await asyncio.gather(*published)
        await stand.write(numbered(100, 100))
        await eventually(lambda: receiver.payloads[-1:] == [b"doll|199"])
        messages = await stand.read(stand.messages, 200)
    reconnects = broker.counters.reconnects
    assert in_order_and_complete(receiver.payloads, payloads(0, 200))
    assert [value for _, value, _ in messages] == [b"%d" % number for number in range(200)]
    # One line for each change, of the cause too. A broker that has just started may falter once more.
    assert reconnects <= len(lines(caplog, "broker unavailable")) <= reconnects + 1
    assert len(lines(caplog, "broker ready")) == reconnects + 1
    assert reconnects in (1, 2)
    library = "librdkafka" if client == "confluent" else "kafka"  # the other one is the test's own
    assert [record for record in caplog.records if record.name.startswith(library)] == []
    assert [record for record in caplog.records if record.levelno > logging.WARNING] == []


@pytest.mark.apache
@AWAY
async def test_a_broker_that_is_killed_under_load_loses_nothing(client: str, own_kafka: KafkaServer) -> None:
    stand, receiver = kafka_stand(client, own_kafka), Receiver()
    async with consuming(await stand.broker(), receiver) as broker:
        sent = 0
        for phase in range(4):
            for _ in range(200):
                broker.publish(stand.results, "doll", b"doll|%d" % sent)
                sent += 1
            if phase == 1:
                await asyncio.to_thread(own_kafka.kill)
            if phase == 2:
                await asyncio.to_thread(own_kafka.start)
            await asyncio.sleep(0.05)
        await eventually(lambda: broker.counters.published.get(stand.results) == sent, patience_s=30.0)
        await eventually(lambda: receiver.payloads[-1:] == [b"doll|%d" % (sent - 1)])
    assert in_order_and_complete(receiver.payloads, payloads(0, sent))


@pytest.mark.apache
@AWAY
async def test_a_broker_that_is_away_at_the_start_is_waited_for(
    client: str, own_kafka: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(own_kafka.kill)
    caplog.set_level(logging.INFO)
    stand, receiver = kafka_stand(client, own_kafka), Receiver()
    broker = await stand.broker()
    broker.start(receiver, decode)
    future = broker.publish(stand.results, "doll", b"doll|0")
    await eventually(lambda: bool(lines(caplog, "broker unavailable")))
    assert broker.status().state is BrokerState.CONNECTING
    assert not future.done()
    await asyncio.to_thread(own_kafka.start)
    await ready(broker)
    await future
    await broker.publish(stand.results, "doll", b"doll|1")
    await eventually(lambda: receiver.payloads[-1:] == [b"doll|1"])
    await broker.close(1.0)
    reconnects = broker.counters.reconnects
    # One line for each change; it may falter once more, while the broker is starting.
    assert reconnects + 1 <= len(lines(caplog, "broker unavailable")) <= reconnects + 2
    assert len(lines(caplog, "broker ready")) == reconnects + 1
    assert reconnects in (0, 1)


@LOST
async def test_closing_while_the_broker_is_away_is_bounded_and_tells_what_was_lost(
    client: str, caplog: pytest.LogCaptureFixture, absent_kafka: KafkaServer
) -> None:
    stand = kafka_stand(client, absent_kafka)
    broker = await stand.broker()
    broker.start(Receiver(), decode)
    futures = [broker.publish(stand.messages, "doll", b"%d" % number) for number in range(3)]
    await asyncio.wait_for(broker.close(0.2), 10.0)
    assert broker.status().state is BrokerState.CLOSED
    assert broker.counters.publish_errors == {stand.messages: 3}
    for future in futures:
        with pytest.raises(BrokerClosed):
            await future
    [line] = lines(caplog, "records not published")
    assert line.__dict__["records"] == 3


# -- the publish queue


async def test_a_full_queue_is_not_writable_until_it_has_drained(client: str, own_kafka: KafkaServer) -> None:
    await asyncio.to_thread(own_kafka.kill)
    stand = kafka_stand(client, own_kafka)
    broker = await stand.broker(queue_records=10)
    futures = [broker.publish(stand.messages, "doll", b"%d" % number) for number in range(20)]
    assert not broker.can_write()
    waiting = asyncio.ensure_future(broker.writable())
    with pytest.raises(BrokerError, match="queue is full"):
        await broker.publish(stand.messages, "doll", b"one too many")
    assert not waiting.done()
    await asyncio.to_thread(own_kafka.start)
    await stand.create(stand.messages)
    await asyncio.wait_for(asyncio.gather(*futures, waiting), 20.0)
    assert broker.can_write()
    await broker.close(1.0)
    assert broker.counters.publish_errors == {stand.messages: 1}


@LOST
async def test_writable_ends_with_the_close(client: str, absent_kafka: KafkaServer) -> None:
    broker = await kafka_stand(client, absent_kafka).broker(queue_bytes=6)
    broker.publish("topic", "doll", b"xx")
    waiting = asyncio.ensure_future(broker.writable())
    await asyncio.sleep(0)
    await broker.close(0.0)
    with pytest.raises(BrokerClosed):
        await asyncio.wait_for(waiting, 5.0)


@pytest.mark.apache
@TOO_LARGE
async def test_a_record_that_the_broker_refuses_fails_alone(stand: KafkaStand) -> None:
    async with consuming(await stand.broker(), Receiver()) as broker:
        before = broker.publish(stand.messages, "doll", b"before")
        huge = broker.publish(stand.messages, "doll", b"x" * (4 * 1024 * 1024))
        after = broker.publish(stand.messages, "doll", b"after")
        await asyncio.gather(before, after)
        with pytest.raises(BrokerError, match="4194308 bytes"):
            await huge
        assert broker.counters.publish_errors == {stand.messages: 1}


@pytest.mark.apache
@LOST
@NO_QUARANTINE
async def test_a_missing_topic_holds_up_no_other(stand: KafkaStand) -> None:
    await stand.create(stand.results)
    await stand.create(stand.messages)
    async with consuming(await stand.broker(create_topics=False), Receiver()) as broker:
        await eventually(lambda: broker.status().quarantine is QuarantineState.UNAVAILABLE)
        waiting = broker.publish("no.such.topic." + stand.messages, "doll", b"1")
        await asyncio.wait_for(broker.publish(stand.messages, "doll", b"2"), 10.0)
        assert not waiting.done()


# -- topics


@pytest.mark.apache
@AWAY
@MAYBE_NO_QUARANTINE
async def test_a_missing_topic_is_waited_for_with_one_line(stand: KafkaStand, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    receiver = Receiver()
    broker = await stand.broker(create_topics=False)
    broker.start(receiver, decode)
    await eventually(lambda: "create_topics is off" in broker.status().detail)
    assert broker.status().state is BrokerState.CONNECTING
    await stand.create(stand.results)
    await ready(broker)
    [line] = lines(caplog, "broker unavailable")
    assert line.__dict__["cause"] == "topic"
    assert stand.results in line.__dict__["detail"]
    await broker.close(1.0)


# -- authentication


@pytest.mark.apache
@pytest.mark.parametrize(
    "login",
    [
        {"sasl_mechanism": "PLAIN", "sasl_username": SASL_USER, "sasl_password": SASL_PASSWORD},
        {"sasl_mechanism": "SCRAM-SHA-256", "sasl_username": SCRAM_USER, "sasl_password": SCRAM_PASSWORD},
    ],
    ids=["PLAIN", "SCRAM-SHA-256"],
)
async def test_it_authenticates_by_password(stand: KafkaStand, kafka: KafkaServer, login: dict[str, Any]) -> None:
    options = replace(stand.options, bootstrap=(kafka.sasl_bootstrap,), security_protocol="SASL_PLAINTEXT", **login)
    receiver = Receiver()
    async with consuming(stand.make(options), receiver) as broker:
        await broker.publish(stand.results, "doll", b"doll|0")
        await receiver.has(1)


@pytest.mark.apache
async def test_it_authenticates_by_client_credentials(stand: KafkaStand, kafka: KafkaServer) -> None:
    claims = {"sub": "gateway", "iat": int(time.time()), "exp": int(time.time()) + 600}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "none"}, claims)]
    with serving() as endpoint:
        endpoint.answer = json.dumps({"access_token": b".".join([*parts, b""]).decode(), "expires_in": 600}).encode()
        options = replace(
            stand.options,
            bootstrap=(kafka.sasl_bootstrap,),
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="OAUTHBEARER",
            oauth_token_url=endpoint.url,
            oauth_client_id="gateway",
            oauth_client_secret="secret",
        )
        receiver = Receiver()
        async with consuming(stand.make(options), receiver) as broker:
            await broker.publish(stand.results, "doll", b"doll|0")
            await receiver.has(1)
        assert len(endpoint.requests) == 1  # for all the connections of all the clients


@pytest.mark.apache
@AWAY
async def test_a_wrong_password_is_one_line_without_the_password(
    stand: KafkaStand, kafka: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="cocoa")
    broker = stand.make(
        replace(
            stand.options,
            bootstrap=(kafka.sasl_bootstrap,),
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_username=SASL_USER,
            sasl_password="hunter2hunter2",
        )
    )
    broker.start(Receiver(), decode)
    try:
        await eventually(lambda: "refuse us" in broker.status().detail)
        await asyncio.sleep(1.5)  # time for a second attempt, which is to be silent
    finally:
        await broker.close(0.2)
    # A refusal may first look like a broken connection; a change of cause is worth one more line, and only one.
    causes = [line.__dict__["cause"] for line in lines(caplog, "broker unavailable")]
    assert causes[-1] == "auth"
    assert len(causes) <= 2
    assert "hunter2" not in repr(broker) + "".join(str(record.__dict__) for record in caplog.records)


async def test_what_was_done_in_an_earlier_membership_is_committed_though_no_record_comes(stand: KafkaStand) -> None:
    """Otherwise a gateway reads it again after its next start, however long it has been idle."""
    await stand.create(stand.results)
    receiver = Receiver()
    broker = await stand.broker(commit_interval_s=3600.0, session_timeout_s=6.0)
    async with consuming(broker, receiver):
        await stand.write(numbered(0, 20))
        await receiver.has(20)
        reading = broker._consuming
        assert reading is not None
        handed_over = reading._handoff.assignments
        await asyncio.to_thread(throw_out, stand.server.bootstrap, stand.options.group)
        await eventually(lambda: reading._handoff.assignments > handed_over and reading._assignment.is_settled)
    group, results = stand.options.group, stand.results
    assert await asyncio.to_thread(committed_offset, stand.server.bootstrap, group, results) == 20


# -- what a mailbox would know again


async def test_no_more_is_read_than_may_be_uncommitted(stand: KafkaStand) -> None:
    await stand.create(stand.results)
    receiver = Receiver()
    # It never commits: what it has read would come again after a crash.
    async with consuming(
        await stand.broker(max_uncommitted=10, max_poll_records=10, commit_interval_s=3600.0), receiver
    ):
        await stand.write(numbered(0, 200))
        await receiver.has(11)
        await asyncio.sleep(0.5)  # nothing is to come: there is no event to wait for
        assert len(receiver.payloads) <= 30
    again = Receiver()
    async with consuming(await stand.broker(max_uncommitted=10), again):
        await again.has(200 - len(receiver.payloads))
    assert in_order_and_complete(receiver.payloads + again.payloads, payloads(0, 200))
