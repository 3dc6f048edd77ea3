"""The inner parts of kafka-python that the adapter uses: a version that lacks one fails here, and not when a
group rebalances in production.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.cluster import ClusterMetadata
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.base import BaseCoordinator
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.net.compat import KafkaNetClient
from kafka.net.connection import KafkaConnection
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaTCPTransport
from kafka.producer.sender import Sender
from kafka.protocol.metadata import FindCoordinatorResponse
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatch

from cocoa_tornado.brokers import kafka_connections


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (ConsumerCoordinator, "request_rejoin", []),
        (ConsumerCoordinator, "need_rejoin", []),
        (ConsumerCoordinator, "fetch_committed_offsets", ["partitions", "timeout_ms"]),
        (Sender, "force_close", []),
        (KafkaNetSocket, "sock_connect", ["net", "sock", "sockaddr", "timeout_at"]),
        (KafkaNetClient, "connection_delay", ["node_id"]),
        (KafkaNetClient, "close", ["node_id"]),
        (KafkaConnectionManager, "close", ["node_id", "timeout_ms"]),
        (KafkaTCPTransport, "_close", ["error"]),
        (NetworkSelector, "stop", ["timeout_ms"]),
        (NetworkSelector, "sleep", ["delay"]),
        (NetworkSelector, "wait_read", ["fileobj", "timeout_at"]),
        (NetworkSelector, "call_at", ["when", "task"]),
        (Fetcher, "fetched_records", ["max_records", "update_offsets"]),
        (Fetcher, "_append", ["drained", "part", "max_records", "update_offsets"]),
        (Fetcher, "_fetchable_partitions", []),
        (Fetcher.PartitionRecords, "take", ["n"]),
        (Fetcher.PartitionRecords, "_unpack_records", ["tp", "records", "key_deserializer", "value_deserializer"]),
        (DefaultRecordBatch, "_maybe_uncompress", []),
        (LegacyRecordBatch, "_decompress", ["key_offset"]),
        (NetworkSelector, "call_later", ["delay", "task"]),
        (KafkaConnectionManager, "bootstrap_async", ["timeout_ms", "refresh"]),
        (KafkaConnectionManager, "reset_backoff", ["node_id"]),
        (ClusterMetadata, "add_listener", ["listener"]),
        (ClusterMetadata, "broker_metadata", ["broker_id"]),
        (ClusterMetadata, "is_bootstrap", ["node_id"]),
        (ClusterMetadata, "leader_for_partition", ["partition"]),
    ],
)
def test_a_method_that_is_called_or_replaced_takes_the_same_arguments(
    owner: type, name: str, parameters: list[str]
) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters)[1:] == parameters


@pytest.mark.parametrize(
    ("owner", "attributes"),
    [
        (KafkaConsumer, {"_client", "_coordinator", "_fetcher"}),
        (Fetcher, {"_next_partition_records", "_completed_fetches", "_paused_completed_fetches", "_fetch_futures"}),
        (BaseCoordinator, {"coordinator_id"}),
        (KafkaConnection, {"in_flight_requests", "connected"}),
        (Fetcher.PartitionRecords, {"record_iterator", "_next_inline_exception"}),
        (DefaultRecordBatch, {"_buffer", "_pos", "_decompressed"}),
        (KafkaProducer, {"_sender", "_closed"}),
        (KafkaConnectionManager, {"cluster", "config", "_conns", "closed"}),
        (ClusterMetadata, {"_coordinator_brokers"}),
        (KafkaAdminClient, {"_manager"}),
    ],
)
def test_an_attribute_that_is_used_is_set_by_its_owner(owner: Any, attributes: set[str]) -> None:
    assert attributes <= set(owner.__init__.__code__.co_names)


def test_how_long_a_fetch_waits_is_looked_up_for_each() -> None:
    assert 'max_wait_ms=self.config["fetch_max_wait_ms"]' in source(Fetcher._create_fetch_requests)


def test_the_time_of_a_request_is_the_third_of_what_is_kept_of_it() -> None:
    assert "(correlation_id, future, sent_time, timeout_at, timeout_task)" in source(KafkaConnection._send_request)


def source(function: object) -> str:
    return inspect.getsource(function).replace("'", '"')  # type: ignore[arg-type]


def test_a_batch_that_cannot_be_read_is_found_by_the_name_of_its_generator() -> None:
    records = Fetcher.PartitionRecords
    unpack = records._unpack_records.__code__
    assert {"self", "batch"} <= set(unpack.co_varnames)
    assert {"topic_partition", "next_fetch_offset"} <= set(records.__init__.__code__.co_names)
    assert isinstance(DefaultRecordBatch.next_offset, property)


def test_a_batch_asks_to_be_decompressed_where_the_bound_is_put() -> None:
    assert "_maybe_uncompress" in DefaultRecordBatch.__iter__.__code__.co_names
    assert "_decompress" in LegacyRecordBatch.__iter__.__code__.co_names
    assert "fetched_records" in Fetcher.fetch_records.__code__.co_names
    assert "_fetchable_partitions" in Fetcher._create_fetch_requests.__code__.co_names
    assert {"PartitionRecords"} <= set(Fetcher._parse_fetched_data.__code__.co_names)


def test_the_class_of_a_socket_is_chosen_by_the_scheme_of_the_proxy() -> None:
    assert type(KafkaNetSocket(kafka_connections.DIRECT)) is kafka_connections.TidySocket
    for client in (KafkaConsumer, KafkaProducer, KafkaAdminClient):
        assert {"kafka_client", "proxy_url"} <= client.DEFAULT_CONFIG.keys()


def test_the_coordinator_of_a_group_is_a_node_named_after_its_broker() -> None:
    cluster = ClusterMetadata(bootstrap_servers=["nowhere:9092"])
    found = FindCoordinatorResponse.Coordinator(node_id=7, host="one", port=9092, error_code=0)
    node_id = cluster.add_coordinator(found, "group", "a group")
    assert node_id == "coordinator-7"
    assert cluster._coordinator_brokers[node_id].host == "one"
