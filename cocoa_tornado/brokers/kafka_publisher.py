"""The publishing half of the Kafka adapter: a bounded queue, and a thread that passes it to a producer.

kafka-python's ``send()`` may block while it requests a topic's metadata, so only this thread calls it. Each topic has
its own lane, so a missing topic does not block the others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from kafka import errors as kafka_errors

from ..errors import BrokerClosed, BrokerError, RecordTooLarge, WriteDenied
from ..rules.backoff import Backoff
from ..rules.rate import LineBudget, RateLimit
from .kafka_clients import KafkaClients, TopicLook, close_producer
from .kafka_connections import KafkaClient
from .kafka_failures import TOO_LARGE_ERRORS, describe, is_retriable
from .kafka_options import KafkaOptions

SEND_CHUNK = 200  # records taken from the queue at a time
STUCK_S = 30.0  # unacknowledged for this long although the brokers answer: the producer itself must be stuck
COMPLAIN_AFTER_S = 10.0
LIMIT_LIFE_S = 60.0  # how long a topic's limit is trusted after a record was too large
FRAMING_BYTES = 68  # at least, of a batch of one record
LINES = RateLimit(per_s=0.2, burst=5)  # of each kind; clients can cause refusals

MAX_REFUSALS = 2  # of one record; the second time it is sent alone, so the refusal is its own

log = logging.getLogger("cocoa.broker")


class Outgoing:
    """One record on its way to the broker.

    :ivar on_end: called once, on any thread, with None when acknowledged and with the error when given up; must be
        quick
    :ivar is_wanted: False once its sender has withdrawn it: it is not sent again
    """

    __slots__ = ("headers", "is_wanted", "key", "on_end", "producer_number", "refusals", "sent_at", "topic", "value")

    def __init__(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
        on_end: Callable[[BrokerError | None], None],
    ) -> None:
        self.topic, self.key, self.value, self.headers, self.on_end = topic, key, value, headers, on_end
        self.is_wanted = True
        self.refusals = 0
        self.producer_number = 0
        self.sent_at = 0.0

    @property
    def size(self) -> int:
        headers = sum(len(name) + len(value) for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


class _Lane:
    """The records of one topic that wait to be sent."""

    __slots__ = ("backoff", "complained", "limit", "limit_until", "not_before", "records", "stalled_since")

    def __init__(self) -> None:
        self.records: deque[Outgoing] = deque()
        self.backoff = Backoff(base_s=0.25, cap_s=5.0)
        self.not_before = 0.0
        self.stalled_since: float | None = None
        self.complained = False
        self.limit: int | None = None  # the topic's batch limit in bytes, trusted until limit_until
        self.limit_until = 0.0


class Publisher:
    """Publishes in the order of :meth:`submit`, per topic and key. While it runs, it gives up a record only if the
    broker refuses that very record.

    :param brokers_answer: True if the consuming half finds the brokers available
    :param room_again: called on any thread when the queue, having been full, has fallen below half of its bound
    """

    def __init__(
        self,
        options: KafkaOptions,
        clients: KafkaClients,
        *,
        brokers_answer: Callable[[], bool],
        room_again: Callable[[], None],
    ) -> None:
        self._options, self._clients = options, clients
        self._brokers_answer, self._room_again = brokers_answer, room_again
        self._changed = threading.Condition()
        # The condition's lock guards all of the following.
        self._lanes: dict[str, _Lane] = {}
        self._sent: dict[int, Outgoing] = {}  # not acknowledged yet, in the order of sending
        self._records = self._bytes = 0  # in the lanes and in _sent together
        self._was_full = False
        self._broken: BaseException | None = None
        self._too_large: tuple[str, int] | None = (
            None  # topic and size of the last one, until the topic's limit is known
        )
        self._suspect: Outgoing | None = None  # refused once, sent again: nothing else is in flight with it
        self._closing = self._stop = False
        # The thread's own.
        self._producer: KafkaClient | None = None
        self._producer_number = 0
        self._ready_since: float | None = None
        self._reconnect = Backoff(base_s=0.25, cap_s=5.0)
        self._replaced_lines, self._failed_lines, self._limit_lines = (LineBudget(LINES) for _ in range(3))
        self._thread: threading.Thread | None = None

    # -- any thread

    def has_room(self) -> bool:
        return self._records < self._options.queue_records and self._bytes < self._options.queue_bytes

    @property
    def held_bytes(self) -> int:
        return self._bytes

    def free_records(self) -> int:
        """Room for records in the queue."""
        return self._options.queue_records - self._records if self.has_room() else 0

    def _has_ample_room(self) -> bool:
        return self._records <= self._options.queue_records // 2 and self._bytes <= self._options.queue_bytes // 2

    def submit(self, record: Outgoing) -> None:
        """Queue a record. Raises BrokerClosed after close, BrokerError above twice the queue's bound.

        A record larger than the bound itself may be queued if it is alone.
        """
        options = self._options
        with self._changed:
            if self._closing:
                raise BrokerClosed("the broker is closed")
            too_many = self._records >= 2 * options.queue_records
            if too_many or (self._records and self._bytes + record.size > 2 * options.queue_bytes):
                raise BrokerError(f"the publish queue is full ({self._records} records, {self._bytes} bytes)")
            self._records += 1
            self._bytes += record.size
            self._was_full = self._was_full or not self.has_room()
            self._lane(record.topic).records.append(record)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cocoa-kafka-publisher", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def withdraw(self, record: Outgoing) -> bool:
        """Take back a record that was not sent yet; ``on_end`` is not called. Return False if it is already in
        flight."""
        with self._changed:
            lane = self._lanes.get(record.topic)
            if lane is None or record not in lane.records:
                return False
            lane.records.remove(record)
            room = self._release(record)
        if room:
            self._room_again()
        return True

    def look_at(self, topic: str) -> TopicLook:
        """Check a topic with a separate client. Blocks; raises like KafkaClients."""
        return self._clients.look_at(topic)

    def close(self, timeout_s: float) -> dict[str, int]:
        """Accept no more, flush for at most ``timeout_s``, end the thread; blocks. Return the number of lost records,
        by topic.

        For records that could not be published, ``on_end`` gets BrokerClosed.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while self._records and (left_s := deadline - time.monotonic()) > 0:
                self._changed.wait(left_s)
            self._stop = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            # Without a producer it can only be creating one, and gives that up by itself.
            left_s = max(0.1, deadline - time.monotonic())
            thread.join(min(5.0, left_s) if self._producer is not None else 0.1)
        return self._give_up_the_rest()

    def _give_up_the_rest(self) -> dict[str, int]:
        with self._changed:
            lost = [*self._sent.values(), *(record for lane in self._lanes.values() for record in lane.records)]
            self._sent.clear()
            self._lanes.clear()
            self._records = self._bytes = 0
        by_topic: dict[str, int] = {}
        for record in lost:
            by_topic[record.topic] = by_topic.get(record.topic, 0) + 1
            record.on_end(BrokerClosed("the broker was closed before the record was published"))
        return by_topic

    # -- the publisher's thread

    def _run(self) -> None:
        while not self._stop:
            try:
                self._turn()
            except (kafka_errors.KafkaError, BrokerError) as error:  # BrokerError: no access token is available
                log.debug("producer unavailable", extra={"detail": describe(error)})
                self._pause(self._reconnect.next_s())
            except Exception:
                suppressed = self._failed_lines.take(time.monotonic())
                if suppressed is not None:
                    log.exception("publisher failed", extra={"suppressed": suppressed})
                self._recycle()
                self._pause(self._reconnect.next_s())
        if self._producer is not None:
            close_producer(self._producer, 0.0 if self._records else 2.0)
            self._producer = None

    def _turn(self) -> None:
        self._await_work()
        if self._stop:
            return
        if self._too_large is not None:
            self._learn_limit(*self._too_large)
        if self._broken is not None or self._is_stuck():
            cause = self._broken
            self._recycle()
            if not isinstance(cause, TOO_LARGE_ERRORS):  # otherwise the next producer may fare no better
                self._pause(self._reconnect.next_s())
                return
        if self._producer is None:
            self._producer = self._clients.producer()
            self._producer_number += 1
        for topic in self._ready_lanes():
            self._send_from(topic)

    def _await_work(self) -> None:
        with self._changed:
            while not (self._stop or self._broken is not None or self._ready_lanes()):
                # Check lanes in backoff and stuck producers periodically; everything else notifies.
                backing_off = any(lane.records for lane in self._lanes.values())
                self._changed.wait(0.1 if backing_off else 1.0 if self._sent else None)
                if self._sent and self._is_stuck():
                    return

    def _ready_lanes(self) -> list[str]:
        now = time.monotonic()
        with self._changed:
            if self._suspect is not None:
                return []
            ready = [topic for topic, lane in self._lanes.items() if lane.records and lane.not_before <= now]
            suspects = [topic for topic in ready if self._lanes[topic].records[0].refusals]
            if suspects:
                # A refused record is sent alone. The others wait for it, or its turn would never come.
                return [] if self._sent else suspects[:1]
            return ready

    def _send_from(self, topic: str) -> None:
        """Send the next records of one topic, as long as its metadata is available."""
        for _ in range(SEND_CHUNK):
            with self._changed:
                lane = self._lane(topic)
                if not lane.records or self._stop or self._broken is not None or self._suspect is not None:
                    return
                if lane.records[0].refusals:
                    if self._sent:
                        return  # a suspect is sent alone; the acknowledgement of the others wakes this thread
                    self._suspect = lane.records[0]
                record = lane.records.popleft()
                record.producer_number = self._producer_number
                record.sent_at = time.monotonic()
                self._sent[id(record)] = record
            if (
                lane.limit is not None
                and record.sent_at < lane.limit_until
                and record.size + FRAMING_BYTES > lane.limit
            ):
                text = f"a record for {topic} ({record.size} bytes) is larger than the topic takes ({lane.limit} bytes)"
                self._settle(record, RecordTooLarge(text))
                continue
            try:
                assert self._producer is not None  # created by _turn
                future = self._producer.send(
                    record.topic, key=record.key, value=record.value, headers=list(record.headers)
                )
            except kafka_errors.RetriableError as error:
                self._stall(lane, record, error)
                return
            except Exception as error:  # ValueError, TypeError and the like: caused by this record, not by the broker
                self._settle(record, _refusal(record, error))
                continue
            self._flowing(lane, topic)
            future.add_callback(self._on_ack, record)
            future.add_errback(self._on_error, record, record.producer_number)

    def _stall(self, lane: _Lane, record: Outgoing, error: BaseException) -> None:
        """Put the record back: its topic has no metadata, so it is missing, or the brokers are unavailable."""
        now = time.monotonic()
        with self._changed:
            if self._sent.pop(id(record), None) is None:
                return  # given up by close() meanwhile
            self._suspect = None
            room = self._put_back(record)
            lane.not_before = now + lane.backoff.next_s()
            lane.stalled_since = lane.stalled_since or now
        if room:
            self._room_again()
        # The consuming half reports unavailable brokers; a missing topic is reported here.
        if not lane.complained and now - lane.stalled_since > COMPLAIN_AFTER_S and self._brokers_answer():
            lane.complained = True
            log.warning("publishing stalled", extra={"topic": record.topic, "detail": describe(error)})

    def _flowing(self, lane: _Lane, topic: str) -> None:
        if lane.stalled_since is None:
            return
        lane.stalled_since = None
        lane.backoff.reset()
        if lane.complained:
            lane.complained = False
            log.info("publishing resumed", extra={"topic": topic})

    def _is_stuck(self) -> bool:
        """True if records stay unacknowledged although the brokers answer. A producer that was refused once (for
        example because of an expired token) does not retry by itself."""
        now = time.monotonic()
        if not self._brokers_answer():
            self._ready_since = None
            return False
        self._ready_since = self._ready_since or now
        with self._changed:
            oldest = next(iter(self._sent.values()), None)
        return oldest is not None and now - max(oldest.sent_at, self._ready_since) > STUCK_S

    def _recycle(self) -> None:
        """Discard the producer; the next one sends what it had not delivered again, in order."""
        with self._changed:
            cause, self._broken = self._broken, None
            # From here on the old one's results are ignored, except acknowledgements.
            self._producer_number += 1
        if self._producer is None:
            return
        suppressed = self._replaced_lines.take(time.monotonic())
        if suppressed is not None:
            detail = describe(cause) if cause else "it was stuck"
            log.info("producer replaced", extra={"detail": detail, "suppressed": suppressed})
        producer, self._producer = self._producer, None
        close_producer(producer, 0.0)
        with self._changed:
            undelivered, self._sent, self._suspect = list(self._sent.values()), {}, None
            room = [self._put_back(record) for record in reversed(undelivered)]
        if any(room):
            self._room_again()

    def _learn_limit(self, topic: str, size: int) -> None:
        """Request the topic's limit, so that the next record that is too large does not cost a producer."""
        self._too_large = None
        limit = None
        try:
            limit = self._clients.largest_batch_bytes(topic)
        except (kafka_errors.KafkaError, BrokerError) as error:
            log.debug("topic limit unknown", extra={"topic": topic, "detail": describe(error)})
        refused = size + FRAMING_BYTES - 1
        with self._changed:
            lane = self._lane(topic)
            # The limit may have changed since the refusal, so both count.
            lane.limit = refused if limit is None or limit > refused else limit
            lane.limit_until = time.monotonic() + LIMIT_LIFE_S
        suppressed = self._limit_lines.take(time.monotonic())
        if suppressed is not None:
            extra = {"topic": topic, "bytes": size, "limit_bytes": lane.limit, "suppressed": suppressed}
            log.warning("record too large", extra=extra)

    def _pause(self, delay_s: float) -> None:
        deadline = time.monotonic() + delay_s
        with self._changed:
            while not self._stop and (left_s := deadline - time.monotonic()) > 0:
                self._changed.wait(left_s)

    # -- kafka-python's sender thread

    def _on_ack(self, record: Outgoing, _metadata: object) -> None:
        self._reconnect.reset()
        self._settle(record, None)

    def _on_error(self, record: Outgoing, producer_number: int, error: BaseException) -> None:
        # Through the idempotent producer's state, one record's error fails others too.
        too_large = False
        with self._changed:
            if producer_number != self._producer_number:
                return  # of a producer that is being discarded: the record is sent again
            if isinstance(error, TOO_LARGE_ERRORS):
                # kafka-python splits a batch until it finds the one record, which is reported first.
                too_large = self._broken is None
            elif not is_retriable(error):
                # The first time, the culprit is unknown: all that failed are sent again, by a new producer, one by one.
                record.refusals += 1
            self._broken = self._broken or error
            if too_large:
                self._too_large = record.topic, record.size
        if too_large or record.refusals >= MAX_REFUSALS:
            self._settle(record, _refusal(record, error))
        with self._changed:
            self._changed.notify_all()

    def _settle(self, record: Outgoing, error: BrokerError | None) -> None:
        with self._changed:
            if self._sent.pop(id(record), None) is None:
                return
            if record is self._suspect:
                self._suspect = None
            room = self._release(record)
        record.on_end(error)
        if room:
            self._room_again()

    def _put_back(self, record: Outgoing) -> bool:
        """Return the record to the head of its lane, or drop it if it was withdrawn. Result as :meth:`_release`."""
        if not record.is_wanted:
            return self._release(record)
        self._lane(record.topic).records.appendleft(record)
        return False

    def _release(self, record: Outgoing) -> bool:
        """The record leaves the queue. Call with the lock held. Return whether to wake waiters for room."""
        self._records -= 1
        self._bytes -= record.size
        room = self._was_full and self._has_ample_room()
        if room:
            self._was_full = False
        self._changed.notify_all()
        return room

    def _lane(self, topic: str) -> _Lane:
        if topic not in self._lanes:
            self._lanes[topic] = _Lane()
        return self._lanes[topic]


def _refusal(record: Outgoing, error: BaseException) -> BrokerError:
    kind: type[BrokerError] = BrokerError
    if isinstance(error, TOO_LARGE_ERRORS):
        kind = RecordTooLarge
    elif isinstance(error, kafka_errors.AuthorizationError):
        kind = WriteDenied
    refusal = kind(f"a record for {record.topic} ({record.size} bytes) was refused: {describe(error)}")
    refusal.__cause__ = error
    return refusal
