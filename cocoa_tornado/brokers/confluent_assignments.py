"""How partitions are assigned to a consumer of confluent-kafka, by the group's protocol.

In both, a callback takes an assignment without reading it, since it is not decided yet where to begin; the adapter then
begins outside of the callback. All methods may be called in a callback.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from confluent_kafka import Consumer, KafkaError, TopicPartition

from .confluent_clients import code_of
from .confluent_questions import named

_NEEDS = "kafka_group_protocol consumer needs Kafka 4.0 or later, with group.version 1"
_KEPT_OUT = (
    "the group's members have kafka_group_protocol classic, and group.consumer.migration.policy lets no other in"
)
_REFUSALS = {
    KafkaError._UNSUPPORTED_FEATURE: _NEEDS,  # the brokers lack the request
    KafkaError.UNSUPPORTED_VERSION: _NEEDS,  # it is off
    KafkaError.GROUP_ID_NOT_FOUND: _KEPT_OUT,
}


class Assignments(Protocol):
    """
    :cvar is_incremental: a revoke concerns the named partitions only. Otherwise it concerns all, and each assignment
        names all; then a member without partitions is assigned none, which is not reported in the other case
    """

    is_incremental: bool

    def accept(self, consumer: Consumer) -> None:
        """Take an assignment; nothing of what is new is read yet."""

    def begin(self, consumer: Consumer, topic: str, starts: Mapping[int, int]) -> None:
        """Read these partitions from these offsets."""

    def give_up(self, consumer: Consumer, topic: str, revoked: Collection[int]) -> None:
        """Stop reading what is revoked or lost."""


class Classic:
    """The whole assignment is revoked before the next one."""

    is_incremental = False

    def accept(self, consumer: Consumer) -> None:
        consumer.assign([])

    def begin(self, consumer: Consumer, topic: str, starts: Mapping[int, int]) -> None:
        consumer.assign([TopicPartition(topic, number, offset) for number, offset in starts.items()])

    def give_up(self, consumer: Consumer, topic: str, revoked: Collection[int]) -> None:
        consumer.unassign()


class Incremental:
    """The consumer protocol (KIP-848): an assignment changes by some partitions, and the others are read on.

    librdkafka does not call back while a member has never had a partition, and it knows a partition from :meth:`begin`
    on.
    """

    is_incremental = True

    def accept(self, consumer: Consumer) -> None:
        consumer.incremental_assign([])

    def begin(self, consumer: Consumer, topic: str, starts: Mapping[int, int]) -> None:
        self._leave(consumer, topic, starts)  # of those that the log's replacement makes begin again
        consumer.incremental_assign([TopicPartition(topic, number, offset) for number, offset in starts.items()])

    def give_up(self, consumer: Consumer, topic: str, revoked: Collection[int]) -> None:
        if not self._leave(consumer, topic, revoked):
            consumer.incremental_unassign([])  # librdkafka waits for this call in any case

    def _leave(self, consumer: Consumer, topic: str, partitions: Collection[int]) -> bool:
        begun = {where.partition for where in consumer.assignment()} & set(partitions)
        if begun:
            consumer.incremental_unassign(named(topic, begun))
        return bool(begun)


def why_refused(error: BaseException) -> str | None:
    """Why the brokers let no member of the consumer protocol into the group; None for any other error."""
    if code_of(error) != KafkaError._FATAL:
        return None
    text = str(error)  # of a fatal error, librdkafka has the cause there only
    return next((why for code, why in _REFUSALS.items() if KafkaError(code).str() in text), None)
