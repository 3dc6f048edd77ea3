"""Where a batch ends that librdkafka cannot read: it tells where such a batch begins, and no more.

Whichever offset of a batch is asked for, the brokers send the whole batch, and the complaint names its beginning. So an
offset belongs to the batch if asking for it brings that complaint, and its end is found by halving.

Behind a batch whose checksum is wrong, librdkafka skips too little (2.16.0; its rdkafka_msgset_reader.c says so), takes
what stands there for another batch, and asks for an offset that it has made up. The brokers hold no such offset. What
follows, a reset to the log's beginning, belongs to no assignment: it may come after a seek or an assignment of ours and
undo it. Whoever reads there has to know such a beginning for what it is.
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
    """The first offset behind a run that ``inside`` belongs to, and ``limit`` does not. Asks about 2 log2 n times for a
    run of n offsets, however many come before the limit."""
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
    """The offset after the batch that begins at ``begins`` and holds ``inside``, at most ``limit``.

    ``inside`` itself where that can be read, or is in another batch. Where the end is not to be had (the brokers do not
    answer, or do not say where a batch begins) it is ``inside + 1``, so that one gets on in any case. Blocks for
    :data:`SEARCH_PATIENCE_S` at most; never raises for what the brokers do.
    """
    if not 0 <= begins <= inside:
        return inside + 1
    deadline = time.monotonic() + SEARCH_PATIENCE_S
    try:
        # Its own connection: the session's would bring the records of other partitions between two answers. It names
        # partitions and so is no member of the group.
        consumer, _ = clients.consumer(lambda *_: None, tells_resets=True)
    except (KafkaException, BrokerError):  # the latter where no access token is to be had
        return inside + 1

    def belongs(offset: int) -> bool:
        return _beginning(consumer, TopicPartition(topic, number, offset), deadline) == begins

    try:
        return end_of(inside, limit, belongs) if belongs(inside) else inside
    except (KafkaException, TimeoutError):
        return inside + 1
    finally:
        with contextlib.suppress(Exception):  # it is being thrown away
            consumer.close()


def _beginning(consumer: Consumer, where: TopicPartition, deadline: float) -> int | None:
    """Where the broken batch begins that is met there; None if there is something to read, or nothing at all.

    Raises KafkaException, and TimeoutError where no answer comes before the deadline.
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
                consumer.assign([where])  # librdkafka has lost its place, and reads nothing any more
            if error.fatal():
                raise KafkaException(error)
    raise TimeoutError
