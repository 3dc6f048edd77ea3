"""The rebalance listener.

kafka-python runs it on its own IO thread, while the consumer's thread is blocked in ``poll()`` or ``close()``. The two
never run at once, so they share the books without a lock.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Protocol

from kafka import TopicPartition
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener

from .kafka_link import ConsumerLink, as_kafka_python

REVOKE_PATIENCE_S = 5.0  # for batches in flight when their partitions are revoked
COMMIT_PATIENCE_S = 3.0


class Books(Protocol):
    """What of each partition is read, done and committed.

    :ivar mark: the metadata to commit with each offset
    """

    stop_deadline: float
    mark: str

    def settle_and_look(self, partitions: Collection[TopicPartition]) -> bool:
        """True if nothing of these partitions is in flight."""

    def offsets_to_commit(self) -> dict[TopicPartition, int]: ...

    def on_commit(self, offsets: dict[TopicPartition, int], error: object = None) -> None: ...

    def forget(self) -> None:
        """The partitions were revoked."""

    def note_assignment(self, assigned: Collection[TopicPartition]) -> None: ...


class RebalanceListener(AsyncConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python ships no types
    """Forwards rebalances to the books."""

    def __init__(self, books: Books, link: ConsumerLink) -> None:
        self._books, self._link, self._consumer = books, link, link.consumer

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Wait for what is in flight, with a timeout, and commit: the next owner continues there."""
        self._link.insist_on_joining()
        books = self._books
        deadline = min(time.monotonic() + REVOKE_PATIENCE_S, books.stop_deadline)
        while not books.settle_and_look(revoked) and time.monotonic() < deadline:
            await self._link.sleep(0.01)
        offsets = books.offsets_to_commit()
        if offsets:
            committing = self._consumer.commit_async(as_kafka_python(offsets, books.mark), lambda _, answer: None)
            deadline = time.monotonic() + COMMIT_PATIENCE_S
            while not committing.is_done and time.monotonic() < deadline:
                await self._link.sleep(0.01)
            if committing.is_done and committing.succeeded():  # a callback would come with the next poll(), too late
                books.on_commit(offsets)
        books.forget()

    async def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        """The group has gone on without this member: nothing can be committed any more."""
        self._link.insist_on_joining()
        self._books.forget()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Nothing is fetched before the thread has decided where to begin."""
        self._consumer.pause(*assigned)
        self._books.note_assignment(assigned)
