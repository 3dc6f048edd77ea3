"""confluent-kafka, as this adapter wants it: configured once, closed for certain, quiet, its errors in plain words.

Everything that depends on a corner of librdkafka stands here, with the reason.
"""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from ..rules.rebootstrap import UNREACHABLE_S
from .kafka_oauth import ClientCredentials
from .kafka_options import KafkaOptions

REQUEST_TIMEOUT_MS = 10_000  # of one request; a broker that answers nothing for so long is taken for dead
RECONNECT_MAX_MS = 1_000  # librdkafka's own cap of 10 s would make a returned broker wait that long
CALL_S = 3.0  # one question of the admin or the producer
FETCH_WAIT_MS = 250
FETCH_PAUSE_MS = 20  # after the fetched records fill their queue; the default of 1 s would be felt
QUEUED_RECORDS = 10_000  # fetched and not yet polled, beyond which nothing more is fetched
FETCH_FLOOR_BYTES = 1_000_000  # librdkafka's message.max.bytes, below which it takes no fetch.max.bytes
CLOSE_TIMEOUT_S = 3.0
MAX_MESSAGE_BYTES = "max.message.bytes"  # a topic's setting: its largest batch, a record alone included

LOGGER = "librdkafka"

_REFUSALS = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)
_UNKNOWN_TOPIC = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})
_RETRIABLE = _UNKNOWN_TOPIC | {
    KafkaError._TRANSPORT,
    KafkaError._DESTROY_BROKER,  # it was given up while a request was under way: it has left, or has moved
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._WAIT_COORD,
    KafkaError._WAIT_CACHE,
    KafkaError._IN_PROGRESS,
    KafkaError._PREV_IN_PROGRESS,
    KafkaError._QUEUE_FULL,
    KafkaError._PURGE_QUEUE,
    KafkaError._PURGE_INFLIGHT,
    KafkaError._NO_OFFSET,
    KafkaError._STATE,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    # The group is about to share its partitions out again; the next poll joins in.
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
}


class Trouble:
    """What a client's error callback has told since it was last at ease. Written and read by one thread at a time."""

    def __init__(self) -> None:
        self._latest: KafkaError | None = None

    def note(self, error: KafkaError) -> None:
        # A broker that refuses us hangs up too, and "all brokers are down" follows: the reason is what is to be told.
        if self._latest is None or _weight(error) >= _weight(self._latest):
            self._latest = error

    def ease(self) -> None:
        self._latest = None

    @property
    def latest(self) -> BaseException | None:
        return None if self._latest is None else KafkaException(self._latest)

    def instead_of(self, error: BaseException) -> BaseException:
        """The error to report: the brokers' refusal where there was one."""
        return KafkaException(self._latest) if self._latest is not None else error


def _weight(error: KafkaError) -> int:
    """How much an error says: a refusal, an advertised address that cannot be reached, anything else."""
    return 2 if error.code() in _REFUSALS else 1 if _advertised(error) is not None else 0


_BROKER = re.compile(r"(?:\w+://)?(\S+?)/\d+: ")  # as librdkafka begins what it tells of one that it has learned of


def _advertised(error: KafkaError) -> str | None:
    """The address of that broker, where a connection has failed."""
    if error.code() not in (KafkaError._TRANSPORT, KafkaError._RESOLVE):
        return None
    found = _BROKER.match(error.str())
    return found[1] if found else None


class ConfluentClients:
    """Makes the clients of one broker adapter, and reads their errors.

    Each call blocks, for some seconds at most, and raises KafkaException, or BrokerError where no token is to be had.

    :param tokens: where access tokens are to be had (OAUTHBEARER)
    """

    failures: tuple[type[Exception], ...] = (KafkaException,)

    def __init__(self, options: KafkaOptions, tokens: ClientCredentials | None = None) -> None:
        options.tls_context()  # which names the file that cannot be used; librdkafka's own words name none
        self._options = options
        self._tokens = tokens
        self._logger = logging.getLogger(LOGGER)
        if self._logger.level == logging.NOTSET:
            # It tells every retry; this adapter tells what changes.
            self._logger.setLevel(logging.CRITICAL + 1)

    def admin(self) -> tuple[AdminClient, Trouble]:
        trouble = Trouble()
        return AdminClient(self._common(trouble)), trouble

    def consumer(
        self, on_commit: Callable[[KafkaError | None, list[TopicPartition]], None], *, tells_resets: bool = False
    ) -> tuple[Consumer, Trouble]:
        """A consumer of the group, not subscribed to anything yet.

        :param tells_resets: what is asked for an offset that the log does not hold is answered by an error, instead of
            by what is at the log's beginning
        """
        options, trouble = self._options, Trouble()
        session_ms = int(options.session_timeout_s * 1000)
        config = self._common(trouble) | {
            "group.id": options.group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # Where to begin is decided after each assignment; this is for offsets that the log no longer holds.
            "auto.offset.reset": "error" if tells_resets else "earliest",
            # What a backend has rolled back is not for devices.
            "isolation.level": "read_committed",
            # The same as kafka-python's, so that a group may hold members of both kinds.
            "partition.assignment.strategy": "range,roundrobin",
            # A question to the same broker is answered after a fetch that waits for records.
            "fetch.wait.max.ms": FETCH_WAIT_MS,
            "fetch.error.backoff.ms": 100,
            "fetch.queue.backoff.ms": FETCH_PAUSE_MS,
            "queued.min.messages": QUEUED_RECORDS,
            # A fetch is asked for below the first, and may bring the second on top of it.
            "queued.max.messages.kbytes": max(1, options.fetch_bytes // 2 // 1024),
            "fetch.max.bytes": max(FETCH_FLOOR_BYTES, options.fetch_bytes // 2),
            "check.crcs": True,
            # Tells the position behind control records, which are never handed over.
            "enable.partition.eof": True,
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": max(500, session_ms // 6),
            # A JoinGroup may stay open for this long, and so does everybody else's rebalance.
            "max.poll.interval.ms": max(60_000, session_ms),
            "on_commit": on_commit,
        }
        return Consumer(config), trouble

    def is_retriable(self, error: BaseException) -> bool:
        return code_of(error) in _RETRIABLE

    def is_refusal(self, error: BaseException) -> bool:
        return code_of(error) in _REFUSALS

    def describe(self, error: BaseException) -> str:
        """One line about an error: its name and its text, unless that is empty; a long one is cut."""
        found = _kafka_error(error)
        name, text = (found.name(), found.str()) if found is not None else (type(error).__name__, str(error))
        text = " ".join(text.split())
        return f"{name}: {text[:160]}" if text else name

    def unreachable(self, error: BaseException) -> str | None:
        """The advertised address of a broker, where no connection to that was to be had."""
        found = _kafka_error(error)
        return None if found is None else _advertised(found)

    def _common(self, trouble: Trouble) -> dict[str, Any]:
        options = self._options
        common: dict[str, Any] = {
            "bootstrap.servers": ",".join(options.bootstrap),
            "client.id": options.client_id,
            "security.protocol": options.security_protocol,
            "reconnect.backoff.max.ms": RECONNECT_MAX_MS,
            "socket.timeout.ms": REQUEST_TIMEOUT_MS,
            "socket.connection.setup.timeout.ms": REQUEST_TIMEOUT_MS,
            "socket.nagle.disable": True,
            # The brokers may have moved, all of them: ask the bootstrap addresses again.
            "metadata.recovery.strategy": "rebootstrap",
            "metadata.recovery.rebootstrap.trigger.ms": int(UNREACHABLE_S * 1000),
            "topic.metadata.refresh.interval.ms": int(options.metadata_max_age_s * 1000),
            # Merely asking for a topic would else create it wherever the broker allows that.
            "allow.auto.create.topics": False,
            "log.connection.close": False,
            "logger": self._logger,
            "error_cb": trouble.note,
        }
        if options.uses_tls:
            common["ssl.endpoint.identification.algorithm"] = "https" if options.check_hostname else "none"
            system = ssl.get_default_verify_paths()  # where Python looks too; librdkafka has a list of its own
            files: dict[str, str | None] = {"ssl.ca.location": options.ssl_ca or system.cafile or system.capath}
            if options.ssl_cert is not None:
                files |= {
                    "ssl.certificate.location": options.ssl_cert,
                    # A file may hold both.
                    "ssl.key.location": options.ssl_key or options.ssl_cert,
                    "ssl.key.password": options.ssl_key_password,
                }
            common |= {name: value for name, value in files.items() if value is not None}
        if options.uses_sasl:
            common["sasl.mechanism"] = options.sasl_mechanism
            if self._tokens is not None:
                self._tokens.token()  # raises BrokerError where none is to be had; the callback's would not be heard
                common["oauth_cb"] = self._token
            else:
                common |= {"sasl.username": options.sasl_username, "sasl.password": options.sasl_password}
        return common

    def _token(self, _: str) -> tuple[str, float]:
        """For librdkafka: a token, and when it expires on the wall clock."""
        assert self._tokens is not None  # it is asked for no other mechanism
        token, life_s = self._tokens.token_and_life_s()
        return token, time.time() + life_s


def code_of(error: BaseException) -> int | None:
    found = _kafka_error(error)
    return found.code() if found is not None else None


def _kafka_error(error: BaseException) -> KafkaError | None:
    found = error.args[0] if isinstance(error, KafkaException) and error.args else None
    return found if isinstance(found, KafkaError) else None
