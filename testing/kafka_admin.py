"""Administers a test broker: topics, records, committed offsets, ACLs. Every call blocks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    MemberToRemove,
    ResourcePattern,
    ResourceType,
)
from kafka.errors import InvalidReplicationFactorError

from cocoa_tornado.brokers.kafka_connections import make_client

PATIENT_MS = 30_000  # a broker that has just started is slow on a loaded machine


def create_topic(bootstrap: str, topic: str, partitions: int = 1, settings: dict[str, str] | None = None) -> None:
    wanted = {"num_partitions": partitions, "replication_factor": 1, "configs": settings or {}}
    deadline = time.monotonic() + PATIENT_MS / 1000
    with administrator(bootstrap) as admin:
        while True:
            try:
                admin.create_topics({topic: wanted}, wait_for_metadata=True)
                return
            except InvalidReplicationFactorError:
                # Its controller takes a broker that got no processor for a second for dead (broker.session.timeout.ms).
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.1)


def forbid_writing(bootstrap: str, topic: str, user: str) -> None:
    with administrator(bootstrap) as admin:
        assert not admin.create_acls(_denials(topic, user))["failed"]


def allow_writing(bootstrap: str, topic: str, user: str) -> None:
    """Undo :func:`forbid_writing`."""
    with administrator(bootstrap) as admin:
        admin.delete_acls(_denials(topic, user))


def _denials(topic: str, user: str) -> list[ACL]:
    resource = ResourcePattern(ResourceType.TOPIC, topic)
    # The second one allows everything else, as an ACL on a topic denies all that no ACL allows.
    return [
        ACL(f"User:{user}", "*", ACLOperation.WRITE, ACLPermissionType.DENY, resource),
        ACL(f"User:{user}", "*", ACLOperation.ALL, ACLPermissionType.ALLOW, resource),
    ]


def delete_topic(bootstrap: str, topic: str) -> None:
    with administrator(bootstrap) as admin:
        admin.delete_topics([topic])


def recreate_topic(bootstrap: str, topic: str, partitions: int = 1) -> None:
    """Delete a topic and create it again, as fast as the broker can."""
    wanted = {topic: {"num_partitions": partitions, "replication_factor": 1}}
    with administrator(bootstrap) as admin:
        admin.delete_topics([topic])
        deadline = time.monotonic() + PATIENT_MS / 1000
        while admin.create_topics(wanted, raise_errors=False)["topics"][0]["error_code"]:  # until it is deleted
            assert time.monotonic() < deadline
        admin.wait_for_topics([topic], timeout_ms=PATIENT_MS)


def find_topic_id(bootstrap: str, topic: str) -> str:
    with administrator(bootstrap) as admin:
        return str(admin.describe_topics([topic])[0]["topic_id"])


def delete_records(bootstrap: str, topic: str, before: int) -> None:
    """Delete the records of the first partition before this offset."""
    with administrator(bootstrap) as admin:
        admin.delete_records({TopicPartition(topic, 0): before})


def add_partitions(bootstrap: str, topic: str, partitions: int) -> None:
    with administrator(bootstrap) as admin:
        admin.create_partitions({topic: partitions})
        admin.wait_for_topics([topic])


def throw_out(bootstrap: str, group: str) -> None:
    """Remove all members of a consumer group, as if their sessions had timed out."""
    with administrator(bootstrap) as admin:
        members = admin.describe_groups([group])[group]["members"]
        admin.remove_group_members(group, [MemberToRemove(member_id=member["member_id"]) for member in members])


def committed_offset(bootstrap: str, group: str, topic: str, partition: int = 0) -> int | None:
    with reader(bootstrap, group_id=group) as consumer:
        offset: int | None = consumer.committed(TopicPartition(topic, partition), timeout_ms=5_000)
        return offset


def read_all(bootstrap: str, topic: str, count: int, patience_s: float = 10.0) -> list[Any]:
    """The first ``count`` records of a topic, or those that arrive in time, read by a separate consumer."""
    found: list[Any] = []
    with reader(bootstrap) as consumer:
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        deadline = time.monotonic() + patience_s
        while len(found) < count and time.monotonic() < deadline:
            for run in consumer.poll(timeout_ms=200).values():
                found += run
    return found


@contextlib.contextmanager
def administrator(bootstrap: str, patience_ms: int = PATIENT_MS) -> Iterator[Any]:
    admin = _make(KafkaAdminClient, bootstrap, bootstrap_timeout_ms=patience_ms)
    try:
        yield admin
    finally:
        admin.close()


@contextlib.contextmanager
def reader(bootstrap: str, **settings: Any) -> Iterator[Any]:
    consumer = _make(KafkaConsumer, bootstrap, enable_auto_commit=False, **settings)
    try:
        yield consumer
    finally:
        consumer.close()


@contextlib.contextmanager
def writer(bootstrap: str, **settings: Any) -> Iterator[Any]:
    producer = _make(KafkaProducer, bootstrap, **settings)
    try:
        yield producer
    finally:
        producer.close(timeout=10)


def _make(kind: Callable[..., Any], bootstrap: str, **settings: Any) -> Any:
    """The gateway's client, as kafka-python's own leaves sockets to the garbage collector, which warns of them."""
    return make_client(kind, {"bootstrap_servers": bootstrap} | settings, creates_topics=True).client
