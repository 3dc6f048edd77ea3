"""confluent-kafka, as this adapter wants it: configured once, closed for certain, quiet, its errors in plain words.

Everything that depends on a corner of librdkafka stands here, with the reason.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._resource import ResourceType

from .kafka_oauth import ClientCredentials
from .kafka_options import ENVELOPE_BYTES, KafkaOptions

REQUEST_TIMEOUT_MS = 10_000  # of one request; a broker that answers nothing for so long is taken for dead
RECONNECT_MAX_MS = 1_000  # librdkafka's own cap of 10 s would make a returned broker wait that long
CALL_S = 3.0  # one question of the admin or the producer
FETCH_WAIT_MS = 250
FETCH_PAUSE_MS = 20  # after the fetched records fill their queue; the default of 1 s would be felt
QUEUED_RECORDS = 10_000  # fetched and not yet polled, beyond which nothing more is fetched
QUEUED_KIB = 32 * 1024
BATCH_BYTES = 512 * 1024
CLOSE_TIMEOUT_S = 3.0
POLL_S = 0.2
LOOK_S = 1.0  # that the producer's look for a topic may take
KNOWN_FOR_S = 30.0  # that a topic which was there is believed to be there still
MAX_MESSAGE_BYTES = "max.message.bytes"  # a topic's setting: its largest batch, a record alone included
LARGEST_MESSAGE_BYTES = 1_000_000_000  # librdkafka's own limit

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
_TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})
_UNKNOWN_TOPIC = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})
_RETRIABLE = _UNKNOWN_TOPIC | {
    KafkaError._TRANSPORT,
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


class MaybeTooLarge(Exception):
    """A batch of several records was too large for its topic; which of them is the one is not known."""


class Trouble:
    """What a client's error callback has told since it was last at ease. Written and read by one thread at a time."""

    def __init__(self) -> None:
        self._latest: KafkaError | None = None

    def note(self, error: KafkaError) -> None:
        # A broker that refuses us hangs up too, and "all brokers are down" follows: the reason is what is to be told.
        if self._latest is None or self._latest.code() not in _REFUSALS:
            self._latest = error

    def ease(self) -> None:
        self._latest = None

    def instead_of(self, error: BaseException) -> BaseException:
        """The error to report: the brokers' refusal where there was one."""
        return KafkaException(self._latest) if self._latest is not None else error


class Answer:
    """What becomes of one record. Its callbacks come on the producer's poll thread, or on the one that adds the second
    of them where the answer was faster."""

    __slots__ = ("_ack", "_err", "_fate", "_lock", "_verdict", "size")

    def __init__(self, size: int, verdict: Callable[[Answer, KafkaError | None], BaseException | None]) -> None:
        self.size, self._verdict = size, verdict
        self._lock = threading.Lock()
        self._ack: Callable[[], None] | None = None
        self._err: Callable[[BaseException], None] | None = None
        self._fate: tuple[BaseException | None] | None = None

    def add_callback(self, call: Callable[..., None], *args: Any) -> None:
        self._ack = partial(call, *args, None)
        self._tell_if_known()

    def add_errback(self, call: Callable[..., None], *args: Any) -> None:
        self._err = partial(call, *args)
        self._tell_if_known()

    def on_delivery(self, error: KafkaError | None, _: Message) -> None:
        self._fate = (self._verdict(self, error),)
        self._tell_if_known()

    def _tell_if_known(self) -> None:
        with self._lock:
            if self._fate is None or self._ack is None or self._err is None:
                return
            (error,), ack, err = self._fate, self._ack, self._err
            self._fate = None  # so that it is told once
        if error is None:
            ack()
        else:
            err(error)


class ConfluentProducer:
    """A producer, and the thread that calls its answers back. :meth:`send` is for one thread."""

    def __init__(self, producer: Producer, trouble: Trouble, max_record_bytes: int) -> None:
        self._producer, self._trouble, self._max_record_bytes = producer, trouble, max_record_bytes
        self._known: dict[str, float] = {}  # topics, and until when they are believed to be there
        self._lock = threading.Lock()
        self._open = 0  # sent and not answered
        self._alone: Answer | None = None  # the latest, where nothing was under way with it
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cocoa-kafka-answers", daemon=True)
        self._thread.start()

    def send(self, topic: str, *, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> Answer:
        """Raises a retriable KafkaException where the topic is not to be had: librdkafka itself would keep the record
        and say nothing."""
        size = len(key or b"") + len(value or b"") + sum(len(name) + len(text) for name, text in headers)
        if size > self._max_record_bytes:
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
        self._look_for(topic)
        answer = Answer(size, partial(self._verdict, topic))
        with self._lock:
            self._alone = None if self._open else answer
            self._open += 1
        try:
            self._producer.produce(topic, value=value, key=key, headers=list(headers), on_delivery=answer.on_delivery)
        except BaseException as error:
            self._answered()
            if isinstance(error, BufferError):
                raise KafkaException(KafkaError(KafkaError._QUEUE_FULL)) from error
            raise
        return answer

    def _look_for(self, topic: str) -> None:
        now = time.monotonic()
        if self._known.get(topic, 0.0) > now:
            return
        try:
            found = self._producer.list_topics(topic, timeout=LOOK_S).topics[topic]
        except KafkaException as error:
            if topic in self._known:  # it was there, so the brokers are away: librdkafka keeps the record for them
                return
            raise self._trouble.instead_of(error) from error
        if found.error is not None:
            self._known.pop(topic, None)
            raise KafkaException(found.error)
        self._known[topic] = now + KNOWN_FOR_S

    def _verdict(self, topic: str, answer: Answer, error: KafkaError | None) -> BaseException | None:
        with self._lock:
            alone = self._alone is answer or answer.size > BATCH_BYTES
        self._answered()
        if error is None:
            return None
        if error.code() in _UNKNOWN_TOPIC:
            self._known.pop(topic, None)
        if error.code() in _TOO_LARGE and not alone:
            return MaybeTooLarge(error.str())
        return KafkaException(error)

    def _answered(self) -> None:
        with self._lock:
            self._open -= 1

    def close(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._open and time.monotonic() < deadline:
            time.sleep(0.005)
        if self._open:
            self._producer.purge()
        self._ended.set()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._producer.poll(POLL_S)
        self._producer.poll(0)


class ConfluentClients:
    """Makes the clients of one broker adapter, and reads their errors.

    Each call blocks, for some seconds at most, and raises KafkaException, or BrokerError where no token is to be had.
    """

    failures: tuple[type[Exception], ...] = (KafkaException,)

    def __init__(self, options: KafkaOptions) -> None:
        options.tls_context()  # which names the file that cannot be used; librdkafka's own words name none
        self._options = options
        self._tokens: ClientCredentials | None = None
        if options.uses_sasl and options.sasl_mechanism == "OAUTHBEARER":
            self._tokens = ClientCredentials(
                options.oauth_token_url or "",
                options.oauth_client_id or "",
                options.oauth_client_secret or "",
                options.oauth_scope,
            )
        self._logger = logging.getLogger(LOGGER)
        if self._logger.level == logging.NOTSET:
            # It tells every retry; this adapter tells what changes.
            self._logger.setLevel(logging.CRITICAL + 1)

    def admin(self) -> tuple[AdminClient, Trouble]:
        trouble = Trouble()
        return AdminClient(self._common(trouble)), trouble

    def consumer(
        self, on_commit: Callable[[KafkaError | None, list[TopicPartition]], None]
    ) -> tuple[Consumer, Trouble]:
        """A consumer of the group, not subscribed to anything yet."""
        options, trouble = self._options, Trouble()
        session_ms = int(options.session_timeout_s * 1000)
        config = self._common(trouble) | {
            "group.id": options.group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # Where to begin is decided after each assignment; this is for offsets that the log no longer holds.
            "auto.offset.reset": "earliest",
            # What a backend has rolled back is not for devices.
            "isolation.level": "read_committed",
            # The same as kafka-python's, so that a group may hold members of both kinds.
            "partition.assignment.strategy": "range,roundrobin",
            # A question to the same broker is answered after a fetch that waits for records.
            "fetch.wait.max.ms": FETCH_WAIT_MS,
            "fetch.error.backoff.ms": 100,
            "fetch.queue.backoff.ms": FETCH_PAUSE_MS,
            "queued.min.messages": QUEUED_RECORDS,
            "queued.max.messages.kbytes": QUEUED_KIB,
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

    def producer(self) -> ConfluentProducer:
        options, trouble = self._options, Trouble()
        config = self._common(trouble) | {
            # With retries without end, idempotence is what keeps each key's order and every record single.
            "enable.idempotence": True,
            "message.timeout.ms": 0,
            "request.timeout.ms": REQUEST_TIMEOUT_MS,
            "linger.ms": 0,
            "batch.size": BATCH_BYTES,
            "message.max.bytes": min(options.max_request_bytes + ENVELOPE_BYTES, LARGEST_MESSAGE_BYTES),
            # The bound is the publisher's.
            "queue.buffering.max.messages": 0,
            "queue.buffering.max.kbytes": 2**31 - 1,
            "topic.metadata.propagation.max.ms": 3_600_000,
        }
        return ConfluentProducer(Producer(config), trouble, options.max_request_bytes)

    def close_producer(self, producer: ConfluentProducer, timeout_s: float) -> None:
        with contextlib.suppress(Exception):  # whatever state it is in, it is being thrown away
            producer.close(timeout_s)

    def largest_batch_bytes(self, topic: str) -> int | None:
        admin, _ = self.admin()
        wanted = ConfigResource(ResourceType.TOPIC, topic)
        try:
            found = admin.describe_configs([wanted], request_timeout=CALL_S)[wanted].result(2 * CALL_S)
            return int(found[MAX_MESSAGE_BYTES].value)
        except (KeyError, TypeError, ValueError, TimeoutError):  # not every broker knows the setting
            return None

    def is_retriable(self, error: BaseException) -> bool:
        return code_of(error) in _RETRIABLE

    def is_refusal(self, error: BaseException) -> bool:
        return code_of(error) in _REFUSALS

    def is_too_large(self, error: BaseException) -> bool:
        return code_of(error) in _TOO_LARGE

    def describe(self, error: BaseException) -> str:
        """One line about an error: its name and its text, unless that is empty; a long one is cut."""
        found = _kafka_error(error)
        name, text = (found.name(), found.str()) if found is not None else (type(error).__name__, str(error))
        text = " ".join(text.split())
        return f"{name}: {text[:160]}" if text else name

    def _common(self, trouble: Trouble) -> dict[str, Any]:
        options = self._options
        common: dict[str, Any] = {
            "bootstrap.servers": ",".join(options.bootstrap),
            "client.id": options.client_id,
            "security.protocol": options.security_protocol,
            "reconnect.backoff.max.ms": RECONNECT_MAX_MS,
            "socket.timeout.ms": REQUEST_TIMEOUT_MS,
            "socket.nagle.disable": True,
            "topic.metadata.refresh.interval.ms": int(options.metadata_max_age_s * 1000),
            # Merely asking for a topic would else create it wherever the broker allows that.
            "allow.auto.create.topics": False,
            "log.connection.close": False,
            "logger": self._logger,
            "error_cb": trouble.note,
        }
        if options.uses_tls:
            common["ssl.endpoint.identification.algorithm"] = "https" if options.check_hostname else "none"
            files = {
                "ssl.ca.location": options.ssl_ca,
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
