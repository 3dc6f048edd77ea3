"""Reads some offsets of a topic's partitions, apart from the consumer group. Blocks; any thread."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from kafka import TopicPartition

from ..errors import BrokerError
from ..rules.quarantined import Row
from .kafka_link import ConsumerLink, unreadable

POLL_MS: Final = 200


def read_windows(
    link: ConsumerLink, windows: Mapping[TopicPartition, tuple[int, int]], deadline: float
) -> Iterator[list[Row]]:
    """Read from the first offset of each window to before the second. Batches that cannot be read are skipped.

    :param deadline: monotonic seconds; after it, BrokerError is raised
    """
    consumer = link.consumer
    ends = {where: end for where, (first, end) in windows.items() if first < end}
    consumer.assign(list(ends))
    consumer.resume(*ends)  # paused by the reading before it
    for where in ends:
        consumer.seek(where, windows[where][0])
    while ends:
        if time.monotonic() > deadline:
            raise BrokerError("the topic has not been read in time")
        for where, records in _poll(link).items():
            yield [_row(record) for record in records if record.offset < windows[where][1]]
        for where in [where for where, end in ends.items() if consumer.position(where) >= end]:
            del ends[where]
            consumer.pause(where)


def _poll(link: ConsumerLink) -> dict[TopicPartition, list[Any]]:
    try:
        records: dict[TopicPartition, list[Any]] = link.consumer.poll(timeout_ms=POLL_MS)
    except Exception as error:
        hole = unreadable(error)
        if hole is None:
            raise
        link.read_again(hole.partition, hole.end)
        return {}
    return records


def _row(record: Any) -> Row:
    return Row(record.partition, record.offset, record.timestamp, record.key, record.value, record.headers)
