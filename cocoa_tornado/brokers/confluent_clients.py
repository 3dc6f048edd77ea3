"""confluent-kafka for this adapter: one configuration, reliable closing, no noise, readable errors.

All workarounds for librdkafka are here, with their reasons.
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

REQUEST_TIMEOUT_MS = 10_000  # of one request; a broker that does not answer for this long counts as dead
# While all brokers are unreachable, librdkafka begins again with this pause at each bootstrap: with its default of 100
# ms a client connects some 20 times a second.
RECONNECT_MS = 250
RECONNECT_MAX_MS = 1_000  # librdkafka's own cap of 10 s would delay the return to a restarted broker
CALL_S = 3.0  # one request of the admin client or the producer
FETCH_WAIT_MS = 250
FETCH_PAUSE_MS = 20  # after the fetch queue was full; the default of 1 s would be noticeable
QUEUED_RECORDS = 10_000  # fetched and not polled yet, beyond which fetching pauses
FETCH_FLOOR_BYTES = 1_000_000  # librdkafka's message.max.bytes, the lower limit of fetch.max.bytes
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
    KafkaError._DESTROY_BROKER,  # the broker was dropped during a request: it has left, or has moved
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
    # The group is about to rebalance; the next poll joins in.
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
}


class Trouble:
    """The errors that a client's callback has reported since the last success. Used by one thread at a time."""

    def __init__(self) -> None:
        self._latest: KafkaError | None = None

    def note(self, error: KafkaError) -> None:
        # A broker that refuses access hangs up too, and "all brokers are down" follows: report the refusal.
        if self._latest is None or _weight(error) >= _weight(self._latest):
            self._latest = error

    def ease(self) -> None:
        self._latest = None

    @property
    def latest(self) -> BaseException | None:
        return None if self._latest is None else KafkaException(self._latest)

    def instead_of(self, error: BaseException) -> BaseException:
        """The error to report: the brokers' refusal, if there was one."""
        return KafkaException(self._latest) if self._latest is not None else error


def _weight(error: KafkaError) -> int:
    """How informative an error is: a refusal, an unreachable advertised address, anything else."""
    return 2 if error.code() in _REFUSALS else 1 if _advertised(error) is not None else 0


_BROKER = re.compile(r"(?:\w+://)?(\S+?)/\d+: ")  # the beginning of librdkafka's messages about a broker it discovered


def _advertised(error: KafkaError) -> str | None:
    """The address of that broker, if connecting to it failed."""
    if error.code() not in (KafkaError._TRANSPORT, KafkaError._RESOLVE):
        return None
    found = _BROKER.match(error.str())
    return found[1] if found else None


class ConfluentClients:
    """Creates the clients of one broker adapter, and interprets their errors.

    Each call blocks for some seconds at most, and raises KafkaException, or BrokerError if no token is available.

    :param tokens: the source of access tokens (OAUTHBEARER)
    """

    failures: tuple[type[Exception], ...] = (KafkaException,)

    def __init__(self, options: KafkaOptions, tokens: ClientCredentials | None = None) -> None:
        options.tls_context()  # its error names the file that cannot be used; librdkafka's does not
        self._options = options
        self._tokens = tokens
        self._logger = logging.getLogger(LOGGER)
        if self._logger.level == logging.NOTSET:
            # librdkafka logs every retry; this adapter logs changes of state.
            self._logger.setLevel(logging.CRITICAL + 1)

    def admin(self) -> tuple[AdminClient, Trouble]:
        trouble = Trouble()
        return AdminClient(self._common(trouble)), trouble

    def member(self, on_commit: Callable[[KafkaError | None, list[TopicPartition]], None]) -> tuple[Consumer, Trouble]:
        """Create a consumer that is about to join the group, without a subscription."""
        options, trouble = self._options, Trouble()
        session_ms = int(options.session_timeout_s * 1000)
        membership: dict[str, Any] = {
            # The same as kafka-python's, so that a group may have members of both kinds.
            "partition.assignment.strategy": "range,roundrobin",
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": max(500, session_ms // 6),
        }
        if options.group_protocol == "consumer":
            membership = {"group.protocol": "consumer"}  # the brokers determine the rest
        return Consumer(self._reading(trouble) | membership | {"on_commit": on_commit}), trouble

    def consumer(self, *, reports_resets: bool = False) -> tuple[Consumer, Trouble]:
        """Create a consumer that reads what the group has committed, and does not join it.

        :param reports_resets: raise an error for an offset that the log does not have, instead of continuing at its
            beginning
        """
        trouble = Trouble()
        return Consumer(self._reading(trouble, reports_resets=reports_resets)), trouble

    def _reading(self, trouble: Trouble, *, reports_resets: bool = False) -> dict[str, Any]:
        options = self._options
        return self._common(trouble) | {
            "group.id": options.group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # The adapter decides where to begin after each assignment; this is for offsets that have been deleted.
            "auto.offset.reset": "error" if reports_resets else "earliest",
            # Devices must not receive records of aborted transactions.
            "isolation.level": "read_committed",
            # A request to the same broker is answered only after a fetch that waits for records.
            "fetch.wait.max.ms": FETCH_WAIT_MS,
            "fetch.error.backoff.ms": 100,
            "fetch.queue.backoff.ms": FETCH_PAUSE_MS,
            "queued.min.messages": QUEUED_RECORDS,
            # A fetch starts below the first limit, and may add up to the second.
            "queued.max.messages.kbytes": max(1, options.fetch_bytes // 2 // 1024),
            "fetch.max.bytes": max(FETCH_FLOOR_BYTES, options.fetch_bytes // 2),
            "check.crcs": True,
            # Reports the position after control records, which are never handed over.
            "enable.partition.eof": True,
            # A JoinGroup may take this long, and so may every other member's rebalance.
            "max.poll.interval.ms": max(60_000, int(options.session_timeout_s * 1000)),
        }

    def is_retriable(self, error: BaseException) -> bool:
        return code_of(error) in _RETRIABLE

    def is_refusal(self, error: BaseException) -> bool:
        return code_of(error) in _REFUSALS

    def describe(self, error: BaseException) -> str:
        """One line about an error: its name and its text, if any, truncated."""
        found = _kafka_error(error)
        name, text = (found.name(), found.str()) if found is not None else (type(error).__name__, str(error))
        text = " ".join(text.split())
        return f"{name}: {text[:160]}" if text else name

    def unreachable(self, error: BaseException) -> str | None:
        """The advertised address of a broker, if connecting to it failed."""
        found = _kafka_error(error)
        return None if found is None else _advertised(found)

    def _common(self, trouble: Trouble) -> dict[str, Any]:
        options = self._options
        common: dict[str, Any] = {
            "bootstrap.servers": ",".join(options.bootstrap),
            "client.id": options.client_id,
            "security.protocol": options.security_protocol,
            "reconnect.backoff.ms": RECONNECT_MS,
            "reconnect.backoff.max.ms": RECONNECT_MAX_MS,
            "socket.timeout.ms": REQUEST_TIMEOUT_MS,
            "socket.connection.setup.timeout.ms": REQUEST_TIMEOUT_MS,
            "socket.nagle.disable": True,
            # All brokers may have moved: return to the bootstrap addresses.
            "metadata.recovery.strategy": "rebootstrap",
            "metadata.recovery.rebootstrap.trigger.ms": int(UNREACHABLE_S * 1000),
            "topic.metadata.refresh.interval.ms": int(options.metadata_max_age_s * 1000),
            # Otherwise a request for a topic would create it, if the broker allows that.
            "allow.auto.create.topics": False,
            "log.connection.close": False,
            "logger": self._logger,
            "error_cb": trouble.note,
        }
        if options.uses_tls:
            common["ssl.endpoint.identification.algorithm"] = "https" if options.check_hostname else "none"
            system = ssl.get_default_verify_paths()  # Python's; librdkafka has its own list
            files: dict[str, str | None] = {"ssl.ca.location": options.ssl_ca or system.cafile or system.capath}
            if options.ssl_cert is not None:
                files |= {
                    "ssl.certificate.location": options.ssl_cert,
                    # One file may have both.
                    "ssl.key.location": options.ssl_key or options.ssl_cert,
                    "ssl.key.password": options.ssl_key_password,
                }
            common |= {name: value for name, value in files.items() if value is not None}
        if options.uses_sasl:
            common["sasl.mechanism"] = options.sasl_mechanism
            if self._tokens is not None:
                self._tokens.token()  # raise BrokerError here if there is none; the callback can't
                common["oauth_cb"] = self._token
            else:
                common |= {"sasl.username": options.sasl_username, "sasl.password": options.sasl_password}
        return common

    def _token(self, _: str) -> tuple[str, float]:
        """The callback of librdkafka: return a token and its expiry on the wall clock."""
        assert self._tokens is not None  # only called for this mechanism
        token, life_s = self._tokens.token_and_life_s()
        return token, time.time() + life_s


def code_of(error: BaseException) -> int | None:
    found = _kafka_error(error)
    return found.code() if found is not None else None


def _kafka_error(error: BaseException) -> KafkaError | None:
    found = error.args[0] if isinstance(error, KafkaException) and error.args else None
    return found if isinstance(found, KafkaError) else None
