"""Background requests about the results topic: which log it is, and where its partitions end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from concurrent.futures import wait
from dataclasses import dataclass
from uuid import UUID

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import OffsetSpec

from ..rules.pacing import QuestionPace
from ..rules.standstill import Ends, StandstillWatch
from .kafka_asking import Inquiry
from .kafka_clients import KafkaClients
from .kafka_connections import KafkaClient
from .kafka_options import KafkaOptions

NO_ID = str(UUID(int=0))

log = logging.getLogger("cocoa.broker")


@dataclass(frozen=True, slots=True)
class LogState:
    """A topic as the brokers describe it.

    :ivar topic_id: changes when the topic is recreated; None if the brokers have no usable id
    :ivar ends: the ends of the requested partitions, by number; empty if one of them does not exist
    """

    topic_id: str | None
    ends: dict[int, Ends]


def describe_log(admin: KafkaClient, topic: str, numbers: Collection[int], known_id: str | None) -> LogState:
    """Blocks; raises kafka-python's errors.

    :param numbers: the partitions whose ends are requested
    :param known_id: the topic's id so far
    """
    topic_id = find_topic_id(admin, topic)
    if topic_id != known_id and topic_id != find_topic_id(admin, topic):
        topic_id = None  # this broker invents one for each answer
    wanted = dict.fromkeys((TopicPartition(topic, number) for number in numbers), OffsetSpec.LATEST)
    if not wanted:
        return LogState(topic_id, {})
    try:
        # In this order, so that the stable offset is never beyond the high watermark.
        stable = admin.list_partition_offsets(wanted, "read_committed")
        high = admin.list_partition_offsets(wanted, "read_uncommitted")
    except kafka_errors.UnknownTopicOrPartitionError:  # a recreated topic may have fewer partitions
        return LogState(topic_id, {})
    return LogState(topic_id, {where.partition: Ends(stable[where].offset, high[where].offset) for where in wanted})


def find_topic_id(admin: KafkaClient, topic: str) -> str | None:
    """Return the topic's id; None if the brokers have none (before Kafka 2.8, or not Apache Kafka)."""
    [described] = admin.describe_topics([topic])
    error = kafka_errors.for_code(described["error_code"])
    if error is not kafka_errors.NoError:
        raise error(topic)
    topic_id = described.get("topic_id")
    return str(topic_id) if topic_id and str(topic_id) != NO_ID else None


class LogWatch:
    """Requests the state of the results topic, within ``probe_interval_s`` of each record and less often while none
    comes (``rules/pacing``), and logs a stalled stable offset.

    Used by the consumer's thread. A request without an answer changes nothing: availability is determined elsewhere.

    :ivar has_ends: the leader of each assigned partition has answered the last request
    """

    def __init__(self, clients: KafkaClients, options: KafkaOptions) -> None:
        self._options = options
        self._inquiry = Inquiry(clients, "cocoa-kafka-logs", self._describe)
        self._numbers: tuple[int, ...] = ()  # of the current request
        self._topic_id: str | None = None  # of the last answer
        self._holding = 0
        self._pace = QuestionPace(options.probe_interval_s)
        self._still: dict[int, StandstillWatch] = {}
        self.has_ends = False

    def is_due(self, now: float) -> bool:
        """True if it is time for a request and none is pending."""
        return self._pace.is_due(now) and not self._inquiry.is_asking()

    def hurry(self) -> None:
        """Something has happened that a recreated topic would explain: make the next request soon."""
        self._pace.hurry()

    def note_records(self, now: float) -> None:
        """Records were read, which may come from another log."""
        self._pace.note_event(now)

    def wait_for_answer(self, patience_s: float, *, new: bool = False) -> LogState:
        """Request the state, or wait for the pending answer, which may lack the ends.

        Raises the request's error, TimeoutError, or RuntimeError if no thread can be started.

        :param new: require the state from now on, not the answer to an earlier request
        """
        if new and self._inquiry.is_asking():
            wait([self._inquiry.ask()], patience_s)
            if self._inquiry.take_answer() is None:
                raise TimeoutError
        if not self._inquiry.is_asking():
            self._numbers = ()
        answer = self._inquiry.ask()
        wait([answer], patience_s)
        if self._inquiry.take_answer() is None:
            raise TimeoutError
        return self._noted(answer.result())

    def ask(self, numbers: Collection[int], holding: int, now: float) -> None:
        """
        :param numbers: the partitions that are read
        :param holding: a number that changes with every assignment
        """
        self._pace.note_asked(now)
        self._numbers, self._holding = tuple(numbers), holding
        with contextlib.suppress(RuntimeError):  # no thread: try again next time
            self._inquiry.ask()

    def take_answer(self, holding: int, now: float) -> LogState | None:
        """Return the topic's state since the request, once; None if there is nothing new."""
        answer = self._inquiry.take_answer()
        if answer is None:
            return None
        if answer.exception() is not None:
            self.has_ends = False
            return None
        if self._holding != holding:
            self._pace.hurry()
            return None
        state = self._noted(answer.result())
        self.has_ends = bool(state.ends)
        self._watch_stable_offsets(state.ends, now)
        return state

    def rest(self) -> None:
        """The consumer is closed: request nothing until the next one, which may have other partitions."""
        self._still.clear()
        self.has_ends = False
        self._pace.hurry()
        self._inquiry.rest()

    def _describe(self, admin: KafkaClient) -> LogState:
        return describe_log(admin, self._options.results_topic, self._numbers, self._topic_id)

    def _noted(self, state: LogState) -> LogState:
        self._topic_id = state.topic_id
        return state

    def _watch_stable_offsets(self, ends: dict[int, Ends], now: float) -> None:
        patience_s = self._options.standstill_s
        self._still = {number: self._still.get(number) or StandstillWatch(patience_s) for number in ends}
        if any(where.stable < where.high for where in ends.values()):
            self._pace.note_event(now)  # a transaction is open
        for number, watch in self._still.items():
            news = watch.judge(ends[number], now)
            if news is None:
                continue
            extra = {
                "topic": self._options.results_topic,
                "partition": number,
                "stable_offset": news.ends.stable,
                "high_water_mark": news.ends.high,
                "seconds": round(news.seconds, 1),
            }
            if news.over:
                log.info("stable offset resumed", extra=extra)
            else:
                log.warning("stable offset stalled", extra=extra)
