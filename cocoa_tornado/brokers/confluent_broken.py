"""Finds the end of a batch that librdkafka cannot read, because librdkafka only reports where such a batch begins.

Whichever offset of a batch is requested, the brokers send the whole batch, and the error names its beginning. So an
offset belongs to the batch if requesting it causes that error, and bisection finds the end.

After a batch with a wrong checksum, librdkafka skips too few bytes (2.16.0, rdkafka_msgset_reader.c), takes what is
there for another batch, and requests an offset that does not exist. The reset to the log's beginning that follows
belongs to no assignment: it may come after the gateway's seek or assignment and undo it. A reader must recognize such a
restart.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ..errors import BrokerError
from .confluent_clients import ConfluentClients

SEARCH_PATIENCE_S = 5.0
LOOK_S = 0.1
BROKEN = frozenset(
    {KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError._UNDERFLOW, KafkaError._NOT_IMPLEMENTED}
)


def end_of(inside: int, limit: int, belongs: Callable[[int], bool]) -> int:
    """The first offset after the run that ``inside`` belongs to and ``limit`` does not. Asks about 2 log2 n times for a
    run of n offsets, however far the limit is."""
    step, outside = 1, limit
    while inside + step < outside:
        if not belongs(inside + step):
            outside = inside + step
            break
        inside += step
        step *= 2
    while outside - inside > 1:
        middle = (inside + outside) // 2
        if belongs(middle):
            inside = middle
        else:
            outside = middle
    return outside


def end_of_broken_batch(
    clients: ConfluentClients, topic: str, number: int, *, begins: int, inside: int, limit: int
) -> int:
    """The offset after the batch that begins at ``begins`` and contains ``inside``, at most ``limit``.

    Returns ``inside`` if it can be read, or is in another batch. If the end can't be determined (the brokers don't
    answer, or don't say where a batch begins), returns ``inside + 1``, so that reading always advances. Blocks for at
    most :data:`SEARCH_PATIENCE_S`; never raises because of the brokers.
    """
    if not 0 <= begins <= inside:
        return inside + 1
    deadline = time.monotonic() + SEARCH_PATIENCE_S
    try:
        # Use a separate connection: the session's would return records of other partitions between two answers. It
        # assigns partitions itself, so it is not a member of the group.
        consumer, _ = clients.consumer(reports_resets=True)
    except (KafkaException, BrokerError):  # the latter if no access token is available
        return inside + 1

    def belongs(offset: int) -> bool:
        return _beginning(consumer, TopicPartition(topic, number, offset), deadline) == begins

    try:
        return end_of(inside, limit, belongs) if belongs(inside) else inside
    except (KafkaException, TimeoutError):
        return inside + 1
    finally:
        with contextlib.suppress(Exception):  # it is being discarded
            consumer.close()


def _beginning(consumer: Consumer, where: TopicPartition, deadline: float) -> int | None:
    """Where the broken batch begins that contains this offset; None if the offset can be read, or is empty.

    Raises KafkaException, and TimeoutError if no answer arrives before the deadline.
    """
    consumer.assign([where])
    while time.monotonic() < deadline:
        for message in consumer.consume(1, LOOK_S):
            error = message.error()
            if error is None or error.code() == KafkaError._PARTITION_EOF:
                return None
            if error.code() in BROKEN:
                return message.offset()
            if error.code() == KafkaError._AUTO_OFFSET_RESET:
                consumer.assign([where])  # librdkafka has lost its position, and reads nothing any more
            if error.fatal():
                raise KafkaException(error)
    raise TimeoutError
