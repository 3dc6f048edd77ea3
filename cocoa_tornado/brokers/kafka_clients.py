"""kafka-python for this adapter: one configuration, reliable closing, no noise, readable errors.

All workarounds for kafka-python 3 are here, with their reasons.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from math import inf
from typing import Any, NamedTuple, TypeAlias

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ACLOperation, ConfigResource, ConfigResourceType
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.sasl.oauth import AbstractTokenProvider
from kafka.net.selector import NetworkSelector
from kafka.structs import OffsetAndMetadata

from ..rules.rebootstrap import Reachability
from ..rules.topic_log import Committed, read_mark
from .kafka_bounds import Bounds, bound_consumer
from .kafka_oauth import ClientCredentials as Credentials
from .kafka_options import KafkaOptions

BOOTSTRAP_TIMEOUT_MS = 3_000
REQUEST_TIMEOUT_MS = 10_000  # of one request; a broker that does not answer for this long counts as dead
RECONNECT_MAX_MS = 1_000  # kafka-python's own cap of 30 s would delay the return to a restarted broker
MAX_BLOCK_MS = 1_000
FETCH_WAIT_MS = 250
QUIET_FETCH_WAIT_MS = 1_000  # while no records come; an empty fetch costs as much as some records
ANSWER_S = QUIET_FETCH_WAIT_MS / 1000 + 0.5  # a broker is probed after this long without an answer to a request
NEVER_MS = 2**31 - 1  # 24 days: the delivery timeout, because publishing is never given up while running
CLOSE_TIMEOUT_MS = 3_000
REACHABLE_LOOK_S = 1.0  # how often a client checks whether it has a connection to any broker
SETUP_LOOK_MS = 50  # how often a producer checks a connection that is being set up
MAX_MESSAGE_BYTES = "max.message.bytes"  # a topic's setting: its largest batch, a record alone included

KafkaClient: TypeAlias = Any  # kafka-python ships no types


class ClientCredentials(Credentials, AbstractTokenProvider):  # type: ignore[misc]  # kafka-python ships no types
    """Called on kafka-python's own threads."""


class _TidySocket(KafkaNetSocket):  # type: ignore[misc]  # kafka-python ships no types
    """An ordinary connection whose socket is closed when it fails; kafka-python leaves that to the garbage collector.

    kafka-python selects the class by the scheme of its setting ``proxy_url``, and this one by DIRECT.
    """

    SCHEMES = ("direct",)

    async def sock_connect(self, net: Any, sock: Any, sockaddr: Any, timeout_at: float | None = None) -> Any:
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise


DIRECT = "direct://"


class _TidyTlsSocket(ssl.SSLSocket):
    """Closed when its handshake fails; kafka-python leaves that to the garbage collector, too."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except BaseException:
            self.close()
            raise


class UnreachableBroker(kafka_errors.KafkaConnectionError):  # type: ignore[misc]  # kafka-python ships no types
    """A broker cannot be reached at its advertised address.

    :ivar address: ``host:port``
    :ivar cause: the connection's error
    """

    def __init__(self, address: str, cause: BaseException) -> None:
        super().__init__(f"{address}: {describe(cause)}")
        self.address, self.cause = address, cause


class _Manager(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python ships no types
    """Remembers why connections failed, which kafka-python itself logs before it reports a timeout. Also returns to the
    bootstrap addresses when none of the known brokers can be reached, because they may have moved.

    Runs on kafka-python's network thread, except :attr:`trouble`.
    """

    def __init__(self, net: Any, **settings: Any) -> None:
        self._troubles: dict[Any, BaseException] = {}  # by node; the latest is the last
        self._addresses: dict[Any, str] = {}  # by node, of its latest connection
        self._reachability = Reachability()
        super().__init__(net, **(settings | {"socket_connection_setup_timeout_max_ms": REQUEST_TIMEOUT_MS}))
        me = weakref.ref(self)  # like kafka-python, avoid a reference cycle between the two
        self.cluster.add_listener(lambda _: follow(me()))
        net.call_later(REACHABLE_LOOK_S, self._look)

    @property
    def trouble(self) -> BaseException | None:
        """The latest connection failure of a node to which no later attempt has succeeded. Thread-safe."""
        return next(reversed(list(self._troubles.values())), None)

    def get_connection(self, node_id: Any, *args: Any, **settings: Any) -> Any:
        connection = super().get_connection(node_id, *args, **settings)
        if not connection.init_future.is_done:
            address = self._addresses[node_id] = self._address(node_id)
            connection.init_future.add_callback(lambda _: self._troubles.pop(node_id, None))
            connection.init_future.add_errback(lambda error: self._note(node_id, address, error))
        return connection

    def follow_the_brokers(self) -> None:
        """New metadata has arrived: close connections that still try to reach a broker's previous address."""
        brokers = {f"coordinator-{broker.node_id}": broker for broker in self.cluster.brokers()}
        coordinators = self.cluster._coordinator_brokers
        for node_id in coordinators.keys() & brokers.keys():
            host, port = brokers[node_id].host, brokers[node_id].port
            coordinators[node_id] = type(brokers[node_id])(node_id, host, port, None)
        for node_id in set(self._troubles):
            if self.cluster.broker_metadata(node_id) is None:
                del self._troubles[node_id]
        for node_id, connection in list(self._conns.items()):
            if connection.initializing and self._addresses.get(node_id) != self._address(node_id):
                connection.close(kafka_errors.KafkaConnectionError("the broker has moved"))
                self.reset_backoff(node_id)

    def oldest_request_at(self, node_id: Any) -> float | None:
        """When the node's oldest unanswered request was sent; infinity if there is none, None if there is no
        connection. Thread-safe."""
        connection = self._conns.get(node_id)
        if connection is None or not connection.connected:
            return None
        try:
            sent_at: float = connection.in_flight_requests[0][2]
        except IndexError:
            return inf
        return sent_at

    def _look(self) -> None:
        if self.closed:
            return
        known = [connection for node, connection in self._conns.items() if not self.cluster.is_bootstrap(node)]
        reached, tried = any(connection.connected for connection in known), bool(known or self._troubles)
        if self._reachability.look(time.monotonic(), reached=reached, tried=tried) and self.cluster.brokers():
            self.bootstrap_async(timeout_ms=BOOTSTRAP_TIMEOUT_MS)
        self._net.call_later(REACHABLE_LOOK_S, self._look)

    def _address(self, node_id: Any) -> str:
        node = self.cluster.broker_metadata(node_id)
        return "" if node is None else f"{node.host}:{node.port}"

    def _note(self, node_id: Any, address: str, trouble: BaseException) -> None:
        if self.config["security_protocol"].startswith("SASL_") and "socket disconnected" in str(trouble):
            # A broker that refuses access says why and hangs up, and often only the hang-up is seen.
            trouble = kafka_errors.SaslAuthenticationFailedError("the connection was closed while logging in")
        elif isinstance(trouble, kafka_errors.KafkaConnectionError) and not self.cluster.is_bootstrap(node_id):
            trouble = UnreachableBroker(address, trouble)
        self._troubles.pop(node_id, None)
        self._troubles[node_id] = trouble


def follow(manager: _Manager | None) -> None:
    if manager is not None:
        manager.follow_the_brokers()


class _ProducerClient(KafkaNetClient):  # type: ignore[misc]  # kafka-python ships no types
    """Keeps a producer from spinning while a broker does not answer.

    The sender expects milliseconds, but gets seconds, and zero for a connection that is being set up. With a hanging
    broker or lost packets it used a whole core.
    """

    def connection_delay(self, node_id: Any) -> float:
        delay_s: float = super().connection_delay(node_id)
        return max(delay_s * 1000, SETUP_LOOK_MS)


class Unreadable(NamedTuple):
    """A range of offsets that poll() cannot read: the rest of a batch, from the first record that failed.

    :ivar end: the offset after the batch
    """

    partition: TopicPartition
    first: int
    end: int


class ConsumerLink(NamedTuple):
    """A consumer and its helpers.

    :ivar sleep: ``await sleep(seconds)``; only on the consumer's own IO loop, that is, in its rebalance listener
    :ivar manager: its connections
    """

    consumer: KafkaClient
    sleep: Callable[[float], Any]
    manager: _Manager

    def trouble(self) -> BaseException | None:
        """Why its last connection failed; None since one has succeeded."""
        return self.manager.trouble

    def partitions(self, topic: str) -> set[int] | None:
        """The known partition numbers, or None; never blocks."""
        numbers: set[int] | None = self.manager.cluster.partitions_for_topic(topic)
        return numbers

    def brokers_answer(self, partitions: Collection[TopicPartition], now: float) -> bool:
        """True if the leaders of these partitions and the coordinator are known to answer, without asking them: each is
        connected and has left no request unanswered for longer than a fetch may wait for records, and each leader was
        sent a fetch."""
        leaders = {self.manager.cluster.leader_for_partition(partition) for partition in partitions}
        fetches = [self.manager.oldest_request_at(leader) for leader in leaders]
        return (
            all(
                sent_at is not None and now - sent_at < ANSWER_S
                for sent_at in (*fetches, self.manager.oldest_request_at(self.consumer._coordinator.coordinator_id))
            )
            and inf not in fetches
        )

    def set_quiet(self, quiet: bool) -> None:
        """Set how long a fetch waits for records, from the next one on."""
        self.consumer._fetcher.config["fetch_max_wait_ms"] = QUIET_FETCH_WAIT_MS if quiet else FETCH_WAIT_MS

    def is_settled(self) -> bool:
        """True if the group and its coordinator need no attention from poll()."""
        coordinator = self.consumer._coordinator
        return coordinator.coordinator_id is not None and not coordinator.need_rejoin()

    def await_fetch(self, woken: threading.Event, timeout_s: float) -> dict[TopicPartition, list[Any]]:
        """Wait until ``woken`` is set, or a fetch sent by poll() is answered, and return its records.

        Cheaper than poll(), which sends tasks to the network thread; and another thread can interrupt it.
        """
        fetcher = self.consumer._fetcher
        for fetch in list(fetcher._fetch_futures):
            fetch.add_both(lambda _: woken.set())  # called at once if it is answered already
        woken.wait(timeout_s)
        woken.clear()
        records: dict[TopicPartition, list[Any]] = fetcher.fetched_records()[0]
        return records

    def insist_on_joining(self) -> None:
        """Call this when partitions are revoked, so that the following join is completed.

        After a timeout during a join, poll() resumes the join only if it is still needed. The leader detects a change
        of the topic's partitions by comparing two snapshots, which the join itself makes equal. Without this flag the
        join's answer would never be read, and the member would be stuck.
        """
        self.consumer._coordinator.request_rejoin()

    def committed(
        self, partitions: Collection[TopicPartition], timeout_ms: int
    ) -> dict[TopicPartition, Committed | None]:
        """Return the group's committed offsets in one request; the consumer's own method sends one per partition."""
        found = self.consumer._coordinator.fetch_committed_offsets(list(partitions), timeout_ms=timeout_ms)
        return {partition: _committed(found[partition]) if partition in found else None for partition in partitions}

    def read_again(self, partition: TopicPartition, offset: int) -> None:
        """Seek after poll() failed over a batch. Otherwise the rest of the batch would make the next poll() spin."""
        self.consumer._fetcher._next_partition_records = None
        self.consumer.seek(partition, offset)


def unreadable(error: BaseException) -> Unreadable | None:
    """Return the range that made poll() fail because a batch cannot be read; None if it failed for another reason.

    kafka-python decodes a batch in a generator that does not record its progress, but the traceback shows it. Before
    the next poll(), call :meth:`ConsumerLink.read_again` or close the consumer.
    """
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "_unpack_records":
            records, batch = frame.f_locals.get("self"), frame.f_locals.get("batch")
            end = getattr(batch, "next_offset", None)  # the formats before 2 have none
            if records is None or end is None:
                return None
            return Unreadable(records.topic_partition, records.next_fetch_offset, end)
        trace = trace.tb_next
    return None


class TopicLook(NamedTuple):
    """The state of a topic.

    :ivar refusal: why nothing can be written to it; None if no reason is known
    :ivar largest_batch: its limit, in bytes; None if unknown
    """

    refusal: type[Exception] | None
    largest_batch: int | None = None


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
            self._tls.sslsocket_class = _TidyTlsSocket
        self.tokens: ClientCredentials | None = None
        if options.uses_sasl and options.sasl_mechanism == "OAUTHBEARER":
            self.tokens = ClientCredentials(
                options.oauth_token_url or "",
                options.oauth_client_id or "",
                options.oauth_client_secret or "",
                options.oauth_scope,
            )

    def admin(self) -> KafkaClient:
        return self._make(KafkaAdminClient, {"request_timeout_ms": REQUEST_TIMEOUT_MS})[0]

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
            client_kind=_ProducerClient,
        )[0]

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
                return TopicLook(None, limit)
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
        client_kind: Callable[..., KafkaClient] = KafkaNetClient,
    ) -> tuple[KafkaClient, _Manager, Any]:
        """Create one client; return it, its connections and its network loop."""
        made: list[tuple[KafkaClient, _Manager, Any]] = []

        def kafka_client(**settings: object) -> KafkaClient:
            net = NetworkSelector(**settings)
            manager = _Manager(net, **settings)
            # The constructors accept allow_auto_create_topics but don't pass it on, so a request for a topic would
            # create it, if the broker allows that.
            manager.cluster.config["allow_auto_create_topics"] = False
            made.append((client_kind(net=net, manager=manager, **settings), manager, net))
            return made[0][0]

        try:
            client = kind(**self._common(), **config, kafka_client=kafka_client)
        except BaseException as error:
            # A constructor that fails to bootstrap raises, and leaves its thread and its sockets behind.
            for half_made, _, _ in made:
                with contextlib.suppress(Exception):  # it is discarded; the first error is the one to report
                    half_made.close()
            if made and isinstance(error, kafka_errors.KafkaTimeoutError) and made[0][1].trouble is not None:
                raise made[0][1].trouble from error  # the actual cause
            raise
        _, manager, net = made[0]
        return client, manager, net

    def _common(self) -> dict[str, object]:
        options = self._options
        return {
            "bootstrap_servers": list(options.bootstrap),
            "client_id": options.client_id,
            "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
            "reconnect_backoff_max_ms": RECONNECT_MAX_MS,
            "proxy_url": DIRECT,
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


def _may_write(operations: Collection[str] | None) -> bool:
    """True if the client's operations include writing; also if the brokers don't list them."""
    return not operations or ACLOperation.WRITE.name in operations


def as_kafka_python(offsets: dict[TopicPartition, int], mark: str) -> dict[TopicPartition, OffsetAndMetadata]:
    """Convert offsets to the argument of a commit.

    :param mark: the metadata for each offset
    """
    return {partition: OffsetAndMetadata(offset, mark, -1) for partition, offset in offsets.items()}


def _committed(found: OffsetAndMetadata) -> Committed:
    return Committed(found.offset, read_mark(found.metadata))


def close_consumer(consumer: KafkaClient) -> None:
    """Release the partitions (the listener commits), leave the group, end the threads. Bounded; never raises."""
    with contextlib.suppress(Exception):  # it is being discarded
        consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)


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


AUTH_ERRORS: tuple[type[Exception], ...] = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.AuthorizationError,
    kafka_errors.UnsupportedSaslMechanismError,
)

TOO_LARGE_ERRORS: tuple[type[Exception], ...] = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
)

GROUP_MOVED_ON: tuple[type[Exception], ...] = (
    kafka_errors.CommitFailedError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.UnknownMemberIdError,
)
"""A commit was too late because the group is about to rebalance. The next poll() joins in."""


def is_retriable(error: BaseException) -> bool:
    """True if the same client may succeed later: timeouts, lost connections, elections."""
    return isinstance(error, kafka_errors.RetriableError)


def unreachable(error: BaseException) -> str | None:
    """The advertised address of a broker, if connecting to it failed."""
    return error.address if isinstance(error, UnreachableBroker) else None


def describe(error: BaseException) -> str:
    """One line about an error of kafka-python: its class, and its text unless that is long or empty."""
    if isinstance(error, UnreachableBroker):
        return describe(error.cause)
    name = type(error).__name__
    text = " ".join(str(error).split())
    if not text or len(text) > 160:
        return name
    return text if name in text else f"{name}: {text}"
