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
from collections.abc import Callable, Iterable
from math import inf

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ..errors import BrokerError
from .confluent_clients import ConfluentClients

SEARCH_PATIENCE_S = 5.0
LOOK_S = 0.1
DOUBT_S = 60.0  # after reading past a broken batch, how long librdkafka may still lose its position
BROKEN = frozenset(
    {KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError._UNDERFLOW, KafkaError._NOT_IMPLEMENTED}
)


class BrokenBatches:
    """The partitions of a consumer in which librdkafka could not read a batch. Pure."""

    def __init__(self) -> None:
        self._tried_at: dict[int, int] = {}  # where a batch could not be read and was requested again
        self._doubted_until: dict[int, float] = {}  # until when librdkafka may restart at the log's beginning

    def __repr__(self) -> str:
        return f"<BrokenBatches {self._tried_at}>"

    def forget(self, numbers: Iterable[int]) -> None:
        """These partitions are read from another offset on."""
        for number in numbers:
            self._tried_at.pop(number, None)
            self._doubted_until.pop(number, None)

    def found(self, number: int, position: int) -> bool:
        """A batch could not be read. Return whether to request this position again, because the batch may have been
        damaged in transit; False: that was done."""
        if self._tried_at.get(number) == position:
            return False
        self._tried_at[number] = position
        return True

    def doubt(self, number: int) -> None:
        """From now on librdkafka may lose its position."""
        self._doubted_until[number] = inf

    def passed(self, number: int, end: int) -> None:
        """Reading goes on after the batch."""
        self._tried_at[number] = end

    def may_have_restarted(self, number: int, first: int, position: int, now: float) -> bool:
        """Whether earlier records came because librdkafka has restarted, if the log still has the next one to read.

        :param first: the offset that has come; :param position: the one that should have
        """
        until = self._doubted_until.get(number)
        if until is None:
            return False
        if first >= position:
            if until == inf:
                self._doubted_until[number] = now + DOUBT_S
            return False
        return now < until


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
