"""The partitions that librdkafka reads, and those of them that are paused."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Set
from typing import Any, NamedTuple, TypeAlias

from confluent_kafka import Consumer, KafkaError, KafkaException

from .confluent_broken import BROKEN
from .confluent_questions import named

Message: TypeAlias = Any  # its stubs allow a missing partition, offset and so on; a fetched message has them


class Fetched(NamedTuple):
    """The messages of one poll.

    :ivar runs: by partition, the records in their order
    :ivar broken: by partition, the error message of the first batch that cannot be read
    :ivar ends: by partition, the offset at its end that was reached
    :ivar events: all other errors, which come in place of records
    """

    runs: dict[int, list[Message]]
    broken: dict[int, Message]
    ends: dict[int, int]
    events: list[KafkaError]


def sort(messages: list[Message]) -> Fetched:
    """Distribute the messages of one poll."""
    runs: dict[int, list[Message]] = {}
    broken: dict[int, Message] = {}
    ends: dict[int, int] = {}
    events: list[KafkaError] = []
    for message in messages:
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                if message.partition() not in broken:
                    ends[message.partition()] = message.offset()
            elif error.code() in BROKEN:
                # The first is enough: until it is moved on, librdkafka reads the same batch repeatedly.
                broken.setdefault(message.partition(), message)
            else:
                events.append(error)
            continue
        number = message.partition()
        if number in broken:
            continue  # librdkafka may have lost its position; the range is read again from the current one
        if number in runs:
            runs[number].append(message)
        else:
            runs[number] = [message]
    return Fetched(runs, broken, ends, events)


class Fetching:
    """The partitions of a session, by their numbers. The consumer's thread, and callbacks of librdkafka within it.

    :ivar paused: those that librdkafka reads no further for now
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._reading: set[int] = set()  # assigned to librdkafka, which reads them unless they are paused
        self.paused: set[int] = set()

    def __repr__(self) -> str:
        return f"<Fetching {sorted(self._reading)}, paused {sorted(self.paused)}>"

    def apply_pressure(self, consumer: Consumer, *, held: bool) -> None:
        """Pause all, or resume all."""
        wanted = self._reading if held else set[int]()
        if wanted - self.paused:
            consumer.pause(named(self._topic, wanted - self.paused))
        if self.paused - wanted:
            consumer.resume(named(self._topic, self.paused - wanted))
        self.paused = set(wanted)

    def begin(self, consumer: Consumer, numbers: Set[int]) -> None:
        """Have librdkafka read these partitions from now on."""
        consumer.resume(named(self._topic, numbers))  # a previous assignment may have paused it
        self._reading |= numbers
        self.paused -= numbers

    def release(self, consumer: Consumer, numbers: Set[int]) -> None:
        """Resume partitions that are about to be given up: a pause belongs to the partition, and would outlast its
        assignment."""
        if self.paused & numbers:
            with contextlib.suppress(KafkaException):
                consumer.resume(named(self._topic, self.paused & numbers))

    def forget(self, numbers: Collection[int]) -> None:
        """Forget partitions that were given up."""
        self._reading.difference_update(numbers)
        self.paused.difference_update(numbers)
