"""The clients of kafka-python for this adapter: one configuration, reliable closing, no noise.

All workarounds for kafka-python 3 are here and in ``kafka_connections``, ``kafka_link`` and ``kafka_bounds``, with
their reasons.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ACLOperation, ConfigResource, ConfigResourceType
from kafka.net.sasl.oauth import AbstractTokenProvider

from .kafka_bounds import Bounds, bound_consumer
from .kafka_connections import (
    BOOTSTRAP_TIMEOUT_MS,
    REQUEST_TIMEOUT_MS,
    KafkaClient,
    Made,
    ProducerClient,
    TidyClient,
    TidyTlsSocket,
    make_client,
)
from .kafka_failures import AUTH_ERRORS, describe, is_retriable, unreachable
from .kafka_link import CLOSE_TIMEOUT_MS, FETCH_WAIT_MS, ConsumerLink
from .kafka_oauth import ClientCredentials as Credentials
from .kafka_options import KafkaOptions

RECONNECT_MAX_MS = 1_000  # kafka-python's own cap of 30 s would delay the return to a restarted broker
MAX_BLOCK_MS = 1_000
TRANSACTION_MS = 10_000  # for a requeue; after that the brokers abort it
END_MS = 5_000  # to commit or abort
NEVER_MS = 2**31 - 1  # 24 days: the delivery timeout, because publishing is never given up while running
READER_BYTES = 4 * 1024 * 1024  # fetched at a time to look at a topic
MAX_MESSAGE_BYTES = "max.message.bytes"  # a topic's setting: its largest batch, a record alone included


class ClientCredentials(Credentials, AbstractTokenProvider):  # type: ignore[misc]  # kafka-python ships no types
    """Called on kafka-python's own threads."""


class TopicLook(NamedTuple):
    """The state of a topic.

    :ivar refusal: why nothing can be written to it; None if no reason is known
    :ivar largest_batch: its limit, in bytes; None if unknown
    :ivar oldest_ms: timestamp of the oldest record; None if there is none, or unknown
    """

    refusal: type[Exception] | None
    largest_batch: int | None = None
    oldest_ms: int | None = None


class KafkaClients:
    """Creates the clients of one broker adapter, and interprets their errors.

    Each call blocks for some seconds at most, and raises KafkaError.
    """

    failures: tuple[type[Exception], ...] = (kafka_errors.KafkaError,)

    def __init__(self, options: KafkaOptions) -> None:
        hush_kafka_python()
        self._options = options
        self._tls = options.tls_context()
        if self._tls is not None:
            self._tls.sslsocket_class = TidyTlsSocket
        self.tokens: ClientCredentials | None = None
        if options.uses_sasl and options.sasl_mechanism == "OAUTHBEARER":
            self.tokens = ClientCredentials(
                options.oauth_token_url or "",
                options.oauth_client_id or "",
                options.oauth_client_secret or "",
                options.oauth_scope,
            )

    def admin(self) -> KafkaClient:
        return self._make(KafkaAdminClient, {"request_timeout_ms": REQUEST_TIMEOUT_MS}).client

    @contextlib.contextmanager
    def administering(self) -> Iterator[KafkaClient]:
        """An admin client for a few requests. A failure for lack of a connection is raised as the connection's
        error."""
        admin = self.admin()
        try:
            yield admin
        except kafka_errors.KafkaError as error:
            raise self.reason(admin, error) from error
        finally:
            admin.close()

    def reason(self, admin: KafkaClient, error: BaseException) -> BaseException:
        """Return the latest connection's error, if that prevented an answer; otherwise ``error`` itself."""
        if not is_retriable(error):
            return error
        trouble: BaseException | None = admin._manager.trouble
        return error if trouble is None else trouble

    def consumer(self) -> ConsumerLink:
        """Create a consumer of the group, without a subscription."""
        options = self._options
        session_ms = int(options.session_timeout_s * 1000)
        consumer, manager, net = self._make(
            KafkaConsumer,
            {
                "group_id": options.group,
                "enable_auto_commit": False,
                # The adapter decides where to begin after each assignment; this is for offsets that were deleted.
                "auto_offset_reset": "earliest",
                # Devices must not receive records of aborted transactions.
                "isolation_level": "read_committed",
                "max_poll_records": options.max_poll_records,
                "fetch_max_bytes": options.fetch_bytes // 2,
                # A request to the same broker is answered only after a fetch that waits for records.
                "fetch_max_wait_ms": FETCH_WAIT_MS,
                "session_timeout_ms": session_ms,
                "heartbeat_interval_ms": max(500, session_ms // 6),
                # A JoinGroup may take this long, and so may every other member's rebalance.
                "max_poll_interval_ms": 60_000,
                "request_timeout_ms": REQUEST_TIMEOUT_MS,
                "metadata_max_age_ms": int(options.metadata_max_age_s * 1000),
                "metrics_enabled": False,
            },
        )
        bound_consumer(consumer, Bounds(options.fetch_bytes // 2, options.batch_bytes, options.poll_bytes))
        return ConsumerLink(consumer, net.sleep, manager)

    def reader(self) -> ConsumerLink:
        """Create a consumer in no group, without a topic."""
        options = self._options
        consumer, manager, net = self._make(
            KafkaConsumer,
            {
                "group_id": None,
                "enable_auto_commit": False,
                "auto_offset_reset": "earliest",
                "isolation_level": "read_committed",
                "fetch_max_bytes": READER_BYTES,
                "fetch_max_wait_ms": FETCH_WAIT_MS,
                "request_timeout_ms": REQUEST_TIMEOUT_MS,
                "metrics_enabled": False,
            },
        )
        bound_consumer(consumer, Bounds(READER_BYTES, options.batch_bytes, READER_BYTES))
        return ConsumerLink(consumer, net.sleep, manager)

    def transactional_producer(self, transactional_id: str) -> KafkaClient:
        """Create a producer for one transaction; it gives up within seconds."""
        return self._make(
            KafkaProducer,
            {
                "transactional_id": transactional_id,
                "transaction_timeout_ms": TRANSACTION_MS,
                "acks": "all",
                "delivery_timeout_ms": TRANSACTION_MS,
                "request_timeout_ms": TRANSACTION_MS // 2,
                "max_block_ms": END_MS,
                "max_request_size": self._options.largest_request_bytes,
                "metrics_enabled": False,
            },
            net_client=ProducerClient,
        ).client

    def producer(self) -> KafkaClient:
        options = self._options
        return self._make(
            KafkaProducer,
            {
                # With unlimited retries, idempotence preserves each key's order and avoids duplicates.
                "enable_idempotence": True,
                "acks": "all",
                "delivery_timeout_ms": NEVER_MS,
                "request_timeout_ms": REQUEST_TIMEOUT_MS,
                "max_block_ms": MAX_BLOCK_MS,
                "max_request_size": options.largest_request_bytes,
                "metadata_max_age_ms": int(options.metadata_max_age_s * 1000),
                "metrics_enabled": False,
            },
            net_client=ProducerClient,
        ).client

    def largest_batch_bytes(self, topic: str) -> int | None:
        """The topic's limit; None if the brokers don't say."""
        with self.administering() as admin:
            return _largest_batch_bytes(admin, topic)

    def look_at(self, topic: str) -> TopicLook:
        """Check whether this client may write to the topic, without writing to it or creating it.

        Raises a KafkaError for errors that say nothing about the topic, such as a leader election.
        """
        with self.administering() as admin:
            [found] = admin.describe_topics([topic])
            error = kafka_errors.for_code(found["error_code"])
            if error is kafka_errors.NoError and not _may_write(found.get("authorized_operations")):
                error = kafka_errors.TopicAuthorizationFailedError
            if error is kafka_errors.NoError:
                limit = None
                with contextlib.suppress(kafka_errors.KafkaError):  # it takes a right of its own
                    limit = _largest_batch_bytes(admin, topic)
                oldest_ms = None
                with contextlib.suppress(kafka_errors.KafkaError):  # so does this
                    oldest_ms = _oldest_ms(admin, topic, [each["partition_index"] for each in found["partitions"]])
                return TopicLook(None, limit, oldest_ms)
            if error is kafka_errors.UnknownTopicOrPartitionError or not issubclass(error, kafka_errors.RetriableError):
                return TopicLook(error)
            raise error(topic)

    def is_retriable(self, error: BaseException) -> bool:
        return is_retriable(error)

    def is_refusal(self, error: BaseException) -> bool:
        return isinstance(error, AUTH_ERRORS)

    def describe(self, error: BaseException) -> str:
        return describe(error)

    def unreachable(self, error: BaseException) -> str | None:
        return unreachable(error)

    def _make(
        self,
        kind: Callable[..., KafkaClient],
        config: dict[str, object],
        net_client: Callable[..., KafkaClient] = TidyClient,
    ) -> Made:
        return make_client(kind, self._common() | config, net_client, creates_topics=False)

    def _common(self) -> dict[str, object]:
        options = self._options
        return {
            "bootstrap_servers": list(options.bootstrap),
            "client_id": options.client_id,
            "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
            "reconnect_backoff_max_ms": RECONNECT_MAX_MS,
            **self.security(),
        }

    def security(self) -> dict[str, object]:
        """TLS and SASL, as keyword arguments of kafka-python's clients."""
        options = self._options
        security: dict[str, object] = {"security_protocol": options.security_protocol}
        if self._tls is not None:
            security |= {"ssl_context": self._tls, "ssl_check_hostname": options.check_hostname}
        if options.uses_sasl:
            security["sasl_mechanism"] = options.sasl_mechanism
            if self.tokens is not None:
                security["sasl_oauth_token_provider"] = self.tokens
            else:
                security["sasl_plain_username"] = options.sasl_username
                security["sasl_plain_password"] = options.sasl_password
        return security


def _largest_batch_bytes(admin: KafkaClient, topic: str) -> int | None:
    wanted = ConfigResource(ConfigResourceType.TOPIC, topic, {MAX_MESSAGE_BYTES: None})
    found = admin.describe_configs([wanted], config_filter="all")
    try:
        return int(found["topic"][topic][MAX_MESSAGE_BYTES]["value"])
    except (KeyError, TypeError, ValueError):  # some brokers don't know the setting
        return None


def _oldest_ms(admin: KafkaClient, topic: str, partitions: list[int]) -> int | None:
    """The smallest timestamp of the partitions' first records. The brokers' answer to "the first record since 1970"."""
    found = admin.list_partition_offsets({TopicPartition(topic, number): 0 for number in partitions})
    return min(
        (place.timestamp for place in found.values() if place is not None and place.timestamp >= 0), default=None
    )


def commit(producer: KafkaClient) -> None:
    """Commit its transaction. After a KafkaError, it may nevertheless have been committed.

    kafka-python's own method waits without a limit while no broker answers.
    """
    result = producer._transaction_manager.begin_commit()
    producer._sender.wakeup()
    if not result.wait(END_MS):
        raise kafka_errors.KafkaTimeoutError("the brokers have not answered whether they have committed")


def abort(producer: KafkaClient) -> None:
    """Abort its transaction; otherwise the brokers do later. Never raises."""
    with contextlib.suppress(Exception):
        result = producer._transaction_manager.begin_abort()
        producer._sender.wakeup()
        result.wait(END_MS)


def _may_write(operations: Collection[str] | None) -> bool:
    """True if the client's operations include writing; also if the brokers don't list them."""
    return not operations or ACLOperation.WRITE.name in operations


def close_producer(producer: KafkaClient, timeout_s: float) -> None:
    """Flush for at most ``timeout_s``, then end the producer's thread. Never raises."""
    try:
        producer.close(timeout=timeout_s)
    except Exception:  # if the flush fails, close() stops half-way and leaves the thread running
        with contextlib.suppress(Exception):
            producer._sender.force_close()
            producer._sender.join(CLOSE_TIMEOUT_MS / 1000)
            producer._closed = True  # otherwise its finalizer would try to flush again


def hush_kafka_python() -> None:
    """Stop kafka-python's loggers from logging every retry; this adapter logs changes of state.

    A level that was set on the logger "kafka" is left alone.
    """
    logger = logging.getLogger("kafka")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL + 1)
