"""Requests to the brokers: where to read a partition from, and periodically whether they still answer.

The latter uses its own thread and client. A consumer's connection answers only after a fetch that waits for records,
and since confluent-kafka 2.16 the calls of one consumer wait for each other: a call next to a repeated ``consume()``
may wait indefinitely.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, wait
from typing import NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from ..asking import ask
from ..rules.topic_log import Committed, Log, read_mark
from .confluent_clients import ConfluentClients, code_of
from .kafka_library import CALL_S
from .kafka_options import KafkaOptions

STALE_S = 10.0  # of failures without a success; then another client may work better

__all__ = ["OFFSET_BEGINNING", "OFFSET_END", "Answer", "Prober", "committed", "find", "named", "numbers", "whole"]


def named(topic: str, partitions: Collection[int], offset: int | None = None) -> list[TopicPartition]:
    if offset is None:
        return [TopicPartition(topic, number) for number in partitions]
    return [TopicPartition(topic, number, offset) for number in partitions]


def numbers(consumer: Consumer, topic: str) -> list[int]:
    """The topic's partition numbers, as far as they are known."""
    found = consumer.list_topics(topic, timeout=CALL_S).topics[topic]
    if found.error is not None:  # for example, of a broker that is just learning of the topic, so incomplete
        raise KafkaException(found.error)
    return list(found.partitions)


def committed(consumer: Consumer, topic: str, partitions: Collection[int]) -> dict[int, Committed | None]:
    """Return the offsets that the consumer's group has committed."""
    found = whole(consumer.committed(named(topic, partitions), timeout=CALL_S))
    return {where.partition: Committed(where.offset, _mark(where)) if where.offset >= 0 else None for where in found}


def _mark(where: TopicPartition) -> Log | None:
    """Parse the metadata of a committed offset. With librdkafka 2.16.0, confluent-kafka sometimes returns more text
    than was committed; the likely cause is a copy without the terminating zero."""
    try:
        text = where.metadata
    except UnicodeDecodeError as error:
        text = error.object[: error.start].decode()
    return read_mark(text)


def find(consumer: Consumer, topic: str, partitions: Collection[int], which: int) -> dict[int, int]:
    """Where the partitions begin or end.

    :param which: ``OFFSET_BEGINNING`` or ``OFFSET_END``
    """
    # One request for all; these two "times" are the protocol's values for the ends of a log.
    found = whole(consumer.offsets_for_times(named(topic, partitions, which), timeout=CALL_S))
    return {partition.partition: partition.offset for partition in found}


def whole(partitions: list[TopicPartition]) -> list[TopicPartition]:
    """Return the answer. Raises KafkaException if it contains an error for a partition."""
    for partition in partitions:
        if partition.error is not None:
            raise KafkaException(partition.error)
    return partitions


class Answer(NamedTuple):
    """
    :ivar ends: where the partitions end
    :ivar is_member: the group has the member that was named
    """

    ends: dict[int, int]
    is_member: bool = False


class Prober:
    """Checks that the partitions' leaders and the group's coordinator answer: a consumer cannot distinguish quiet
    brokers from absent ones. Created for one session, and used by its thread.
    """

    def __init__(self, clients: ConfluentClients, options: KafkaOptions) -> None:
        self._clients, self._topic, self._group = clients, options.results_topic, options.group
        self._consumer: Consumer | None = None  # the requesting thread's; it never joins the group
        self._admin: AdminClient | None = None  # likewise
        self._failing_since: float | None = None  # the requesting thread's, too
        self._asked: Future[Answer] | None = None

    def is_asking(self) -> bool:
        """True while an answer is pending or can be taken."""
        return self._asked is not None

    def ask(self, joined: bool, assigned: Sequence[int], joining: str | None = None) -> None:
        """Start a request; raises RuntimeError if no thread can be started.

        :param joining: the id of a member of which it is to find out whether it has joined
        """
        assert self._asked is None
        self._asked = ask("cocoa-kafka-probe", lambda: self._answer(joined, assigned, joining))

    def take_answer(self) -> Future[Answer] | None:
        """Return the answer once, or the error."""
        if self._asked is None or not self._asked.done():
            return None
        asked, self._asked = self._asked, None
        return asked

    def close(self) -> None:
        """Close the client once the current request is answered. Thread-safe."""
        if self._asked is not None:
            wait([self._asked])
        consumer, self._consumer, self._admin = self._consumer, None, None
        if consumer is not None:
            with contextlib.suppress(Exception):  # it is being discarded
                consumer.close()

    def _answer(self, joined: bool, assigned: Sequence[int], joining: str | None) -> Answer:
        """Runs on the requesting thread."""
        try:
            answer = Answer(self._question(joined, assigned), joining is not None and self._has_member(joining))
        except KafkaException:
            self._note_failure(time.monotonic())
            raise
        self._failing_since = None
        return answer

    def _note_failure(self, now: float) -> None:
        """Discard a client that keeps failing. After the brokers have moved, librdkafka (2.16.0) sometimes keeps
        dialing the old addresses although it is configured to rebootstrap, while the session's consumer may have found
        them."""
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since < STALE_S:
            return
        stale, self._consumer, self._failing_since = self._consumer, None, None
        if stale is not None:
            with contextlib.suppress(RuntimeError):  # no thread: it is closed with its last reference
                ask("cocoa-kafka-closing", stale.close)

    def _question(self, joined: bool, assigned: Sequence[int]) -> dict[int, int]:
        if self._consumer is None:
            self._consumer, _ = self._clients.consumer()
        consumer = self._consumer
        consumer.poll(0)  # serve its callbacks; the session's consumer reports the same errors
        if joined:
            # The group's coordinator. While a join waits for other members, it would not answer.
            committed(consumer, self._topic, [0])
        if not assigned:
            numbers(consumer, self._topic)
            return {}
        return find(consumer, self._topic, assigned, OFFSET_END)

    def _has_member(self, member: str) -> bool:
        if self._admin is None:
            self._admin, _ = self._clients.admin()
        try:
            [described] = self._admin.describe_consumer_groups([self._group], request_timeout=CALL_S).values()
            return any(found.member_id == member for found in described.result().members)
        except KafkaException as error:
            if code_of(error) == KafkaError.GROUP_ID_NOT_FOUND:  # it has never had a member
                return False
            raise
