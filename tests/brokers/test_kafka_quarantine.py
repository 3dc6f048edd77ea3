"""A quarantine topic that accepts no copies: the stream continues, and an offset is held back for a minute. Then its
record is lost to quarantine, with a log line that names its offset."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from cocoa_tornado.brokers import kafka_quarantine
from cocoa_tornado.brokers.kafka_facade import KafkaFacade
from cocoa_tornado.brokers.kafka_options import KafkaOptions
from cocoa_tornado.brokers.port import BrokerState, QuarantineState
from cocoa_tornado.rules import quarantine
from cocoa_tornado.rules.quarantine import Bounds
from testing.kafka_admin import allow_writing, committed_offset, forbid_writing
from testing.kafka_server import SASL_PASSWORD, SASL_USER
from testing.waiting import eventually

from .bench import (
    LOST_TO_QUARANTINE,
    NO_QUARANTINE,
    KafkaStand,
    Receiver,
    consuming,
    numbered,
    payloads,
)

pytestmark = [pytest.mark.gen_test(timeout=90), pytest.mark.kafka, pytest.mark.apache]

TOO_LARGE = pytest.mark.logs("cocoa.broker", "^record too large$", optional=True)


def lines(caplog: pytest.LogCaptureFixture, message: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == message]


async def committed(stand: KafkaStand) -> int | None:
    return await asyncio.to_thread(committed_offset, stand.server.bootstrap, stand.options.group, stand.results)


async def is_committed(stand: KafkaStand, offset: int) -> None:
    found = None
    for _ in range(100):
        found = await committed(stand)
        if found == offset:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{found} is committed, not {offset}")


async def has_quarantine(broker: KafkaFacade, state: QuarantineState) -> None:
    await eventually(lambda: broker.status().quarantine is state)


@pytest.fixture
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_quarantine, "FAILING_LOOK_S", 0.5)


@NO_QUARANTINE
@pytest.mark.usefixtures("looks_often")
async def test_a_quarantine_that_takes_nothing_holds_back_one_offset_and_no_delivery(
    stand: KafkaStand, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await stand.create(stand.results, partitions=2)
    receiver = Receiver()
    async with consuming(await stand.broker(create_topics=False), receiver) as broker:
        assert isinstance(broker, KafkaFacade)
        await has_quarantine(broker, QuarantineState.UNAVAILABLE)
        await stand.write([(b"doll", b"doll|0"), (b"doll", b"odd"), (b"doll", b"doll|1")], partition=0)
        await stand.write(numbered(10, 5), partition=1)
        await receiver.has(7)
        for number in range(2, 12):
            await stand.write([(b"doll", b"doll|%d" % number)], partition=0)
        await receiver.has(17)
        assert broker.status().state is BrokerState.READY
        await eventually(lambda: broker.status().lag == 0)
        # The bad record is the one at offset 1, and nothing beyond it may be committed.
        assert await committed(stand) in (0, 1)
        await stand.create(stand.quarantine)
        await has_quarantine(broker, QuarantineState.READY)
        await eventually(lambda: broker.counters.quarantined == {"not-json": 1})
        await is_committed(stand, 13)
        assert broker.counters.reconnects == 0
        assert broker.counters.quarantine_lost == {}
    assert [value for _, value, _ in await stand.read(stand.quarantine, 1)] == [b"odd"]
    [line] = lines(caplog, "quarantine unavailable")
    assert (line.__dict__["topic"], line.__dict__["cause"]) == (stand.quarantine, "missing")
    assert len(lines(caplog, "quarantine available")) == 1


@NO_QUARANTINE
@LOST_TO_QUARANTINE
async def test_a_record_that_is_lost_to_quarantine_is_counted_logged_and_committed(
    stand: KafkaStand, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "PATIENCE_S", 1.0)
    await stand.create(stand.results)
    receiver = Receiver()
    async with consuming(await stand.broker(create_topics=False), receiver) as broker:
        assert isinstance(broker, KafkaFacade)
        await has_quarantine(broker, QuarantineState.UNAVAILABLE)
        await stand.write([(b"doll", b"doll|0"), (b"doll", b"odd"), (b"doll", b"worse"), (b"doll", b"doll|1")])
        await receiver.has(2)
        await eventually(lambda: broker.counters.quarantine_lost == {"missing": 2})
        await is_committed(stand, 4)
        assert broker.counters.quarantined == {}
        assert broker.status().state is BrokerState.READY
    where = [
        (line.__dict__["topic"], line.__dict__["partition"], line.__dict__["offset"], line.__dict__["records"])
        for line in lines(caplog, "records lost to quarantine")
    ]
    assert where in ([(stand.results, 0, "1-2", 2)], [(stand.results, 0, "1", 1), (stand.results, 0, "2", 1)])


def as_user(stand: KafkaStand) -> KafkaOptions:
    """The options of a gateway with a user of its own, whose rights an ACL may limit."""
    return replace(
        stand.options,
        bootstrap=(stand.server.sasl_bootstrap,),  # type: ignore[union-attr]  # Apache Kafka has it
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_username=SASL_USER,
        sasl_password=SASL_PASSWORD,
    )


@NO_QUARANTINE
@LOST_TO_QUARANTINE
@pytest.mark.usefixtures("looks_often")
async def test_a_quarantine_that_an_acl_forbids_is_found_at_the_start_and_affects_nothing_else(
    stand: KafkaStand, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(quarantine, "PATIENCE_S", 1.0)
    bootstrap, receiver = stand.server.bootstrap, Receiver()
    await stand.create(stand.results)
    await stand.create(stand.quarantine)
    await asyncio.to_thread(forbid_writing, bootstrap, stand.quarantine, SASL_USER)
    options = as_user(stand)
    async with consuming(stand.make(options), receiver) as broker:
        assert isinstance(broker, KafkaFacade)
        await has_quarantine(broker, QuarantineState.UNAVAILABLE)
        await stand.write([(b"doll", b"odd"), *numbered(0, 5)])
        await receiver.has(5)
        await broker.publish(stand.messages, "doll", b"from a device")
        await eventually(lambda: broker.counters.quarantine_lost == {"refused": 1})
        await is_committed(stand, 6)
        assert lines(caplog, "producer replaced") == []  # no copy was tried in vain
        await asyncio.to_thread(allow_writing, bootstrap, stand.quarantine, SASL_USER)
        await has_quarantine(broker, QuarantineState.READY)
        await stand.write([(b"doll", b"odd again")])
        await eventually(lambda: broker.counters.quarantined == {"not-json": 1})
        assert broker.counters.reconnects == 0
    assert [line.__dict__["cause"] for line in lines(caplog, "quarantine unavailable")] == ["refused"]


@NO_QUARANTINE
@LOST_TO_QUARANTINE
@TOO_LARGE
async def test_a_right_that_is_taken_away_later_is_found_by_the_first_copy(
    stand: KafkaStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "PATIENCE_S", 3.0)
    await stand.create(stand.results)
    await stand.create(stand.quarantine)
    options = as_user(stand)
    receiver = Receiver()
    async with consuming(stand.make(options), receiver) as broker:
        assert isinstance(broker, KafkaFacade)
        await has_quarantine(broker, QuarantineState.READY)
        await asyncio.to_thread(forbid_writing, stand.server.bootstrap, stand.quarantine, SASL_USER)
        await stand.write([(b"doll", b"odd%d" % number) for number in range(20)])
        await stand.write(numbered(0, 5))
        await receiver.has(5)
        await has_quarantine(broker, QuarantineState.UNAVAILABLE)
        published = [broker.publish(stand.messages, "doll", b"%d" % number) for number in range(20)]
        await asyncio.gather(*published)
        await eventually(lambda: broker.counters.quarantine_lost == {"refused": 20})
        await is_committed(stand, 25)
    assert [value for _, value, _ in await stand.read(stand.messages, 20)] == [b"%d" % number for number in range(20)]


@NO_QUARANTINE
@LOST_TO_QUARANTINE
@TOO_LARGE
async def test_a_quarantine_that_takes_no_record_of_any_size_is_found_at_the_start(
    stand: KafkaStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "PATIENCE_S", 1.0)
    await stand.create(stand.results)
    await stand.create(stand.quarantine, max_message_bytes="100")
    receiver = Receiver()
    async with consuming(await stand.broker(), receiver) as broker:
        assert isinstance(broker, KafkaFacade)
        await has_quarantine(broker, QuarantineState.UNAVAILABLE)
        await stand.write([(b"doll", b"odd"), *numbered(0, 5)])
        await receiver.has(5)
        await eventually(lambda: broker.counters.quarantine_lost == {"too_large": 1})
        await is_committed(stand, 6)


async def test_a_burst_of_rejected_records_waits_for_the_quarantine_and_loses_nothing(
    stand: KafkaStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_quarantine, "bounds_for", lambda options: Bounds(records=50))
    await stand.create(stand.results)
    receiver = Receiver()
    async with consuming(await stand.broker(max_poll_records=20), receiver) as broker:
        most = 0
        copies = broker._consuming._quarantine._copies  # type: ignore[attr-defined]

        def all_set_aside() -> bool:
            nonlocal most
            most = max(most, len(copies))
            return sum(broker.counters.quarantined.values()) == 2_000

        await stand.write([(b"doll", b"odd%d" % number) for number in range(2_000)])
        await eventually(all_set_aside)
        await stand.write(numbered(0, 1))
        await receiver.has(1)
        assert most <= 50 + 20
        assert broker.counters.quarantine_lost == {}
        assert broker.counters.reconnects == 0
    assert payloads(0, 1) == receiver.payloads
    copied = {value for _, value, _ in await stand.read(stand.quarantine, 2_000)}
    assert copied == {b"odd%d" % number for number in range(2_000)}


@NO_QUARANTINE
@LOST_TO_QUARANTINE
async def test_no_more_is_held_back_than_there_is_room_for(
    stand: KafkaStand, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_quarantine, "bounds_for", lambda options: Bounds(records=10, offsets=500))
    await stand.create(stand.results)
    receiver = Receiver()
    async with consuming(await stand.broker(create_topics=False), receiver) as broker:
        assert isinstance(broker, KafkaFacade)
        await has_quarantine(broker, QuarantineState.UNAVAILABLE)
        await stand.write([(b"doll", b"odd%d" % number) for number in range(100)])
        await stand.write(numbered(0, 1))
        await receiver.has(1)
        await eventually(lambda: broker.counters.quarantine_lost == {"full": 90})
        await stand.write(numbered(1, 600))
        await receiver.has(601)
        await eventually(lambda: broker.counters.quarantine_lost == {"full": 100})
        await is_committed(stand, 701)
    lost = sum(line.__dict__["records"] for line in lines(caplog, "records lost to quarantine"))
    assert lost == 100
