from __future__ import annotations

import pytest

from cocoa_tornado.rules import buffers
from cocoa_tornado.rules.buffers import SHARES, split
from cocoa_tornado.rules.records import MAX_RECORD_BYTES

MIB = 1024 * 1024
LARGEST_MESSAGE = 512 * 1024


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("total", [buffers.MIN_BYTES, buffers.MIN_BYTES + 13, buffers.DEFAULT_BYTES, 2**31])
def test_the_shares_are_the_budget_and_no_more(total: int, embedded: bool) -> None:
    shares = split(total, embedded=embedded)
    assert total - len(shares) < sum(shares.values()) <= total
    assert all(shares.values())


def test_each_part_belongs_to_kafka_or_to_the_embedded_broker_or_to_both() -> None:
    kafka, memory = split(buffers.DEFAULT_BYTES, embedded=False), split(buffers.DEFAULT_BYTES, embedded=True)
    assert set(kafka) | set(memory) == set(SHARES)
    assert all(kafka[part] == memory[part] for part in set(kafka) & set(memory))


def test_the_least_budget_holds_the_largest_of_everything() -> None:
    shares = split(buffers.MIN_BYTES, embedded=False)
    assert shares["handoff"] > MAX_RECORD_BYTES
    assert shares["fetch"] // 2 > MAX_RECORD_BYTES
    # As JSON a message may be six times as long; half of the queue is for devices.
    assert shares["publish"] // 2 > 6 * LARGEST_MESSAGE
    assert shares["uplink"] > 7 * LARGEST_MESSAGE
    # Kafka takes batches of 1 MiB unless configured otherwise, and a producer of 1 MiB a record.
    assert shares["batch"] >= 6 * MIB
