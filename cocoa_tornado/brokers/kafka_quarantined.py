"""Reads the quarantine topic for operators, and puts its records back on the results topic, once. Blocks; any thread.

kafka-python does this for either client library, with clients of its own that are in no consumer group.

A requeue is one transaction: the record on the results topic, and a marker in the partition of the copy, behind it
(``rules/quarantined.py``). All servers use one transactional id, so the brokers let one of them at a time finish: to
begin, a server ends what another has left, waits until that is committed or aborted, and then reads whether there is a
marker. A server that is killed in between leaves a transaction that the next requeue aborts, or the brokers do after
``TRANSACTION_MS``. Until then, records behind it on the same partition wait.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from ..errors import AlreadyRequeued, BrokerError, RecordGone, RecordTooLarge
from ..rules.quarantined import Newest, Quarantined, Returned, Row, marker_of, read_copy, requeued_by
from .kafka_clients import TRANSACTION_MS, KafkaClients, abort, close_producer, commit
from .kafka_connections import KafkaClient
from .kafka_failures import TOO_LARGE_ERRORS, describe
from .kafka_link import ConsumerLink, close_consumer
from .kafka_options import KafkaOptions
from .kafka_windows import read_windows
from .port import Judge

READ_S = 8.0  # for all reading of one call
TURN_S = 5.0  # until the call before it has ended
MARKER_S = 4.0  # for the search for a marker, where an answer does without
WINDOW = 3  # offsets to read for each record that is asked for: itself, a marker, and the end of its transaction
ACKNOWLEDGED_S = TRANSACTION_MS / 1000


class QuarantineTopic:
    """One call at a time: each holds some megabytes at most."""

    def __init__(self, options: KafkaOptions, clients: KafkaClients) -> None:
        self._topic, self._results_topic, self._clients = options.quarantine_topic, options.results_topic, clients
        self._turn = threading.Lock()

    def newest(self, limit: int, max_value_bytes: int) -> list[Quarantined]:
        """See :meth:`~.port.Broker.quarantined`."""
        with self._reader() as link:
            partitions = [TopicPartition(self._topic, number) for number in self._partitions(link)]
            if not partitions:
                return []
            consumer = link.consumer
            first, end = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
            found = Newest(limit, max_value_bytes)
            windows = {each: (max(first[each], end[each] - WINDOW * limit), end[each]) for each in partitions}
            for rows in read_windows(link, windows, time.monotonic() + READ_S):
                found.take(rows)
            return found.records()

    def at(self, partition: int, offset: int, max_value_bytes: int) -> Quarantined:
        """See :meth:`~.port.Broker.quarantined_at`."""
        where = TopicPartition(self._topic, partition)
        with self._reader() as link:
            end = self._end(link, where, offset)
            found = _look(link, where, offset, (offset, offset + 1), time.monotonic() + READ_S)
            if found is None:
                raise RecordGone(f"{self._topic}/{partition}/{offset}")
            record = read_copy(found, max_value_bytes)
            return record._replace(is_requeued=_has_marker(link, where, offset, (offset + 1, end)))

    def requeue(self, partition: int, offset: int, judge: Judge) -> str:
        """See :meth:`~.port.Broker.requeue`."""
        where = TopicPartition(self._topic, partition)
        with self._reader() as link:
            deadline = time.monotonic() + READ_S
            end = self._end(link, where, offset)
            found = _look(link, where, offset, (offset, end), deadline)
            if found is None:
                raise RecordGone(f"{self._topic}/{partition}/{offset}")
            back = judge(read_copy(found))
            with self._producer() as producer:
                producer.init_transactions()
                _look(link, where, offset, (end, self._settled_end(where)), deadline)
                return self._put_back(producer, where, offset, back)

    def _put_back(self, producer: KafkaClient, where: TopicPartition, offset: int, back: Returned) -> str:
        producer.begin_transaction()
        try:
            headers = [(name, value or b"") for name, value in back.headers]
            sent = producer.send(self._results_topic, key=back.key, value=back.value, headers=headers)
            # With a key, for a topic that is compacted; its value is not null, or it would be deleted from there.
            name = f"cocoa.requeued/{offset}".encode()
            marked = producer.send(
                where.topic, key=name, value=b"", headers=marker_of(offset), partition=where.partition
            )
            place = sent.get(ACKNOWLEDGED_S)
            marked.get(ACKNOWLEDGED_S)
        except BaseException:
            abort(producer)
            raise
        commit(producer)
        return f"{place.topic}/{place.partition}/{place.offset}"

    def _end(self, link: ConsumerLink, where: TopicPartition, offset: int) -> int:
        """Where the partition of an offset ends. Raises RecordGone if the partition does not have it."""
        if where.partition not in self._partitions(link):
            raise RecordGone(f"{self._topic}/{where.partition}")
        end = int(link.consumer.end_offsets([where])[where])
        if not link.consumer.beginning_offsets([where])[where] <= offset < end:
            raise RecordGone(f"{self._topic}/{where.partition}/{offset}")
        return end

    def _partitions(self, link: ConsumerLink) -> set[int]:
        return link.consumer.partitions_for_topic(self._topic) or set()

    def _settled_end(self, where: TopicPartition) -> int:
        """Where the partition ends; all before it is committed or aborted."""
        with self._clients.administering() as admin:

            def end(level: IsolationLevel) -> int:
                found = admin.list_partition_offsets({where: OffsetSpec.LATEST}, isolation_level=level)
                return int(found[where].offset)

            last = end(IsolationLevel.READ_UNCOMMITTED)
            if end(IsolationLevel.READ_COMMITTED) < last:  # a later one: the first may have been passed meanwhile
                raise BrokerError(f"a transaction of another producer is open on {where.topic}/{where.partition}")
            return last

    @contextlib.contextmanager
    def _reader(self) -> Iterator[ConsumerLink]:
        if not self._turn.acquire(timeout=TURN_S):
            raise BrokerError("the quarantine topic is being read by another request")
        try:
            link = self._clients.reader()
            try:
                yield link
            finally:
                close_consumer(link.consumer)
        except TOO_LARGE_ERRORS as error:
            raise RecordTooLarge(describe(error)) from error
        except kafka_errors.KafkaError as error:
            raise BrokerError(describe(error)) from error
        finally:
            self._turn.release()

    @contextlib.contextmanager
    def _producer(self) -> Iterator[KafkaClient]:
        producer = self._clients.transactional_producer(f"{self._topic}.requeue")
        try:
            yield producer
        finally:
            close_producer(producer, 0.0)


def _look(
    link: ConsumerLink, where: TopicPartition, offset: int, window: tuple[int, int], deadline: float
) -> Row | None:
    """Return the record at an offset, if it is in the window. Raises AlreadyRequeued if that has a marker for it."""
    found = None
    for rows in read_windows(link, {where: window}, deadline):
        for row in rows:
            marks = requeued_by(row.headers)
            if marks == offset:
                raise AlreadyRequeued(f"{where.topic}/{where.partition}/{offset}")
            if row.offset == offset and marks is None:
                found = row
    return found


def _has_marker(link: ConsumerLink, where: TopicPartition, offset: int, window: tuple[int, int]) -> bool | None:
    """Whether the window has a marker for the record at an offset; None if it is too long to be read."""
    try:
        _look(link, where, offset, window, time.monotonic() + MARKER_S)
    except AlreadyRequeued:
        return True
    except BrokerError:
        return None
    return False
