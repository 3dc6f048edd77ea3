"""Reads one record of the results topic for operators, with kafka-python in any case. Blocks; any thread."""

from __future__ import annotations

import time
from typing import Final

from kafka import TopicPartition
from kafka import errors as kafka_errors

from ..errors import BrokerError
from .kafka_clients import KafkaClients
from .kafka_failures import describe
from .kafka_link import close_consumer
from .kafka_options import KafkaOptions
from .kafka_windows import read_windows
from .port import RecordAt

READ_S: Final = 5.0


def record_at(options: KafkaOptions, clients: KafkaClients, partition: int, offset: int) -> RecordAt:
    """See :meth:`~.port.Broker.record_at`."""
    where = TopicPartition(options.results_topic, partition)
    try:
        link = clients.reader()
        try:
            consumer = link.consumer
            if partition not in (consumer.partitions_for_topic(where.topic) or ()):
                return RecordAt(None, 0, 0, None)
            first, end = consumer.beginning_offsets([where])[where], consumer.end_offsets([where])[where]
            row = None
            if first <= offset < end:
                found = read_windows(link, {where: (offset, offset + 1)}, time.monotonic() + READ_S)
                row = next((row for rows in found for row in rows if row.offset == offset), None)
        finally:
            close_consumer(link.consumer)
        with clients.administering() as admin:
            committed = admin.list_group_offsets({options.group: [where]})[options.group].get(where)
    except kafka_errors.KafkaError as error:
        raise BrokerError(describe(error)) from error
    return RecordAt(row, first, end, None if committed is None or committed.offset < 0 else committed.offset)
