"""Transactions that stay open: records behind them are counted, though they cannot be read yet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cocoa_tornado.brokers.port import BrokerState
from testing.kafka_admin import writer
from testing.waiting import eventually

from .bench import PATIENCE_S, KafkaStand, Receiver, consuming, numbered, payloads

pytestmark = [pytest.mark.gen_test(timeout=90), pytest.mark.kafka, pytest.mark.apache]

STANDS_STILL, MOVES = "stable offset stalled", "stable offset resumed"
STANDING = pytest.mark.logs("cocoa.broker", f"^{STANDS_STILL}$")


def lines(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    return [record.__dict__ for record in caplog.records if record.getMessage() == message]


@contextlib.asynccontextmanager
async def open_transaction(stand: KafkaStand, value: bytes) -> AsyncIterator[None]:
    """One that holds a record; it is committed when the context ends."""
    with writer(stand.server.bootstrap, transactional_id=f"backend.{stand.results}") as producer:

        def begin() -> None:
            producer.init_transactions()
            producer.begin_transaction()
            producer.send(stand.results, value=value).get(10)

        await asyncio.to_thread(begin)
        yield
        await asyncio.to_thread(producer.commit_transaction)


@STANDING
async def test_what_waits_behind_an_open_transaction_is_lag_and_one_log_line(
    stand: KafkaStand, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    receiver = Receiver()
    async with consuming(await stand.broker(standstill_s=1.0), receiver) as broker:
        async with open_transaction(stand, b"doll|0"):
            await stand.write(numbered(1, 50))
            await eventually(lambda: broker.status().lag == 51, PATIENCE_S)
            await eventually(lambda: bool(lines(caplog, STANDS_STILL)), PATIENCE_S)
            assert broker.status().state is BrokerState.READY
            assert receiver.payloads == []
            assert lines(caplog, MOVES) == []
        await receiver.has(51)
        await eventually(lambda: broker.status().lag == 0, PATIENCE_S)
        await eventually(lambda: bool(lines(caplog, MOVES)), PATIENCE_S)
    assert receiver.payloads == payloads(0, 51)
    for message in (STANDS_STILL, MOVES):
        [line] = lines(caplog, message)
        assert (line["topic"], line["partition"]) == (stand.results, 0)
        assert (line["stable_offset"], line["high_water_mark"]) == (0, 51)
        assert line["seconds"] >= 1.0


async def test_records_that_may_not_be_read_yet_are_lag_while_the_partitions_are_paused(stand: KafkaStand) -> None:
    """A paused partition is not fetched, so the log's end in its last fetch is outdated."""
    receiver = Receiver(prompt=False)
    async with consuming(await stand.broker(high_water=1, low_water=1), receiver) as broker:
        await stand.write(numbered(0, 1))
        await receiver.has(1)
        async with open_transaction(stand, b"doll|1"):
            await stand.write(numbered(2, 9))
            await eventually(lambda: broker.status().lag == 10, PATIENCE_S)
        receiver.finish()
        await receiver.has(11)
        await eventually(lambda: broker.status().lag == 0, PATIENCE_S)
    assert receiver.payloads == payloads(0, 11)
