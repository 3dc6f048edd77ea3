"""What the brokers say of the results topic, asked in the background: which log it is, and where its partitions end."""

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
from .kafka_clients import KafkaClient, KafkaClients
from .kafka_options import KafkaOptions

NO_ID = str(UUID(int=0))

log = logging.getLogger("cocoa.broker")


@dataclass(frozen=True, slots=True)
class LogState:
    """A topic as the brokers describe it.

    :ivar topic_id: a topic that is created again has another one; None where the brokers give none that can be used
    :ivar ends: where the partitions end that were asked for, by number; empty where one of them is not there
    """

    topic_id: str | None
    ends: dict[int, Ends]


def describe_log(admin: KafkaClient, topic: str, numbers: Collection[int], known_id: str | None) -> LogState:
    """Blocks; raises what kafka-python raises.

    :param numbers: the partitions whose ends are wanted
    :param known_id: what the topic's id was before
    """
    topic_id = find_topic_id(admin, topic)
    if topic_id != known_id and topic_id != find_topic_id(admin, topic):
        topic_id = None  # a broker that makes one up for each answer
    wanted = dict.fromkeys((TopicPartition(topic, number) for number in numbers), OffsetSpec.LATEST)
    if not wanted:
        return LogState(topic_id, {})
    try:
        # In this order, so that the stable offset is never beyond the high water mark.
        stable = admin.list_partition_offsets(wanted, "read_committed")
        high = admin.list_partition_offsets(wanted, "read_uncommitted")
    except kafka_errors.UnknownTopicOrPartitionError:  # a new topic may have fewer partitions
        return LogState(topic_id, {})
    return LogState(topic_id, {where.partition: Ends(stable[where].offset, high[where].offset) for where in wanted})


def find_topic_id(admin: KafkaClient, topic: str) -> str | None:
    """None where the brokers give none (before Kafka 2.8, or no Apache Kafka)."""
    [described] = admin.describe_topics([topic])
    error = kafka_errors.for_code(described["error_code"])
    if error is not kafka_errors.NoError:
        raise error(topic)
    topic_id = described.get("topic_id")
    return str(topic_id) if topic_id and str(topic_id) != NO_ID else None


class LogWatch:
    """Asks for the state of the results topic, within ``probe_interval_s`` of each record and less often while none
    comes (``rules/pacing``), and logs a stable offset that stands still.

    Belongs to the consumer's thread. A question without an answer changes nothing: whether the brokers are there is
    for others to find out.

    :ivar has_ends: the leader of each partition that is read has answered the latest question
    """

    def __init__(self, clients: KafkaClients, options: KafkaOptions) -> None:
        self._options = options
        self._inquiry = Inquiry(clients, "cocoa-kafka-logs", self._describe)
        self._numbers: tuple[int, ...] = ()  # of the question under way
        self._topic_id: str | None = None  # that was answered last
        self._holding = 0
        self._pace = QuestionPace(options.probe_interval_s)
        self._still: dict[int, StandstillWatch] = {}
        self.has_ends = False

    def is_due(self, now: float) -> bool:
        """Whether it is time to ask again, and nothing is being asked."""
        return self._pace.is_due(now) and not self._inquiry.is_asking()

    def hurry(self) -> None:
        """Something has happened that another log would explain: ask soon."""
        self._pace.hurry()

    def note_records(self, now: float) -> None:
        """Records have been read, which may be another log's."""
        self._pace.note_event(now)

    def wait_for_answer(self, patience_s: float, *, new: bool = False) -> LogState:
        """Ask, or wait for the answer that is to come, which may lack the ends.

        Raises what the question raises, TimeoutError, or RuntimeError where no thread is to be had.

        :param new: the topic as it is from now on; an answer to an earlier question is not enough
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
        :param holding: another number whenever these are others
        """
        self._pace.note_asked(now)
        self._numbers, self._holding = tuple(numbers), holding
        with contextlib.suppress(RuntimeError):  # no thread is to be had: next time, perhaps
            self._inquiry.ask()

    def take_answer(self, holding: int, now: float) -> LogState | None:
        """The topic as it was since it was asked for, once; None where there is nothing new."""
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
        """The consumer is closed: ask nothing until the next one, which may hold other partitions."""
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
                log.info("stable offset moves again", extra=extra)
            else:
                log.warning("stable offset stands still", extra=extra)
