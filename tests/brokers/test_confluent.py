"""What the reading half by librdkafka does on its own thread: the books, callbacks, bounds. No broker is asked but in
the last part."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, wait
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from cocoa_tornado.brokers.kafka_availability import Availability
from cocoa_tornado.brokers.kafka_clients import KafkaClients
from cocoa_tornado.brokers.kafka_options import KafkaOptions
from cocoa_tornado.brokers.kafka_positions import Plan, Start
from cocoa_tornado.brokers.kafka_publisher import Publisher
from cocoa_tornado.brokers.kafka_reading import JoinStuck, ReadingContext
from cocoa_tornado.brokers.port import BrokerCounters, BrokerState
from cocoa_tornado.rules.handoff import OffsetLedger
from cocoa_tornado.rules.topic_log import Committed, Log
from testing.kafka_server import KafkaServer
from testing.waiting import eventually

from .bench import AWAY, SKIPPED, ConfluentStand, Receiver, consuming, decode, numbered, payloads, ready

confluent_kafka = pytest.importorskip("confluent_kafka")

from confluent_kafka import KafkaError, KafkaException, TopicPartition  # noqa: E402  # where it is installed

from cocoa_tornado.brokers import (  # noqa: E402  # likewise
    confluent_broken,
    confluent_consumer,
    confluent_questions,
    confluent_session,
)
from cocoa_tornado.brokers.confluent_broken import end_of, end_of_broken_batch  # noqa: E402  # likewise
from cocoa_tornado.brokers.confluent_clients import ConfluentClients, Trouble  # noqa: E402  # likewise
from cocoa_tornado.brokers.confluent_consumer import ConfluentConsuming  # noqa: E402  # likewise
from cocoa_tornado.brokers.confluent_questions import Answer, Prober  # noqa: E402  # likewise
from cocoa_tornado.brokers.confluent_session import Session  # noqa: E402  # likewise

pytestmark = pytest.mark.gen_test(timeout=90)

RESULTS = "transcription.results"


class Message(confluent_kafka.Message):  # type: ignore[name-defined,misc]  # importorskip returns no types
    """A record, or an error that librdkafka returns instead."""

    def __init__(self, offset: int, value: bytes | None = None, error: int | None = None) -> None:
        self._offset, self._value = offset, value
        self._error = KafkaError(error) if error is not None else None

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def error(self) -> KafkaError | None:
        return self._error

    def key(self) -> None: ...

    def value(self) -> bytes | None:
        return self._value

    def timestamp(self) -> tuple[int, int]:
        return (1, 0)


def record(offset: int) -> Message:
    return Message(offset, b"doll|%d" % offset)


def end(offset: int) -> Message:
    return Message(offset, error=KafkaError._PARTITION_EOF)


def broken(offset: int) -> Message:
    return Message(offset, error=KafkaError._BAD_MSG)


class Consumer:
    """Records its calls.

    :ivar answers: set when a commit that is waited for may come back
    :ivar held: what is assigned incrementally
    """

    def __init__(self, log_end: int = 1000) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.held: set[int] = set()
        self.answers = threading.Event()
        self.log_end = log_end

    def get_watermark_offsets(self, where: TopicPartition, cached: bool) -> tuple[int, int]:
        return (0, self.log_end)

    def seek(self, where: TopicPartition) -> None:
        self.calls.append(("seek", where.offset))

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> None:
        if not asynchronous:
            self.answers.wait()
        self.calls.append(("commit", offsets[0].offset, asynchronous))

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.calls.append(("assign", len(partitions)))

    def resume(self, partitions: list[TopicPartition]) -> None:
        self.calls.append(("resume", len(partitions)))

    def unassign(self) -> None:
        self.calls.append(("unassign",))

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(RESULTS, number) for number in sorted(self.held)]

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        assert self.held.isdisjoint(where.partition for where in partitions), "librdkafka refuses this"
        self.held |= {where.partition for where in partitions}
        self.calls.append(("add", *[(where.partition, where.offset) for where in partitions]))

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        assert self.held >= {where.partition for where in partitions}, "librdkafka refuses this"
        self.held -= {where.partition for where in partitions}
        self.calls.append(("remove", *sorted(where.partition for where in partitions)))

    def close(self) -> None:
        self.calls.append(("close",))


class Asker:
    """The client that asks: of a topic that ends at 100.

    :ivar fails: with that it answers
    :ivar answers: set when it may answer
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: KafkaException | None = None
        self.answers = threading.Event()
        self.answers.set()

    def poll(self, timeout: float) -> None: ...

    def offsets_for_times(self, wanted: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self.answers.wait()
        if self.fails is not None:
            raise self.fails
        return [TopicPartition(where.topic, where.partition, 100) for where in wanted]

    def close(self) -> None:
        self.calls.append("close")


def books(receiver: Receiver, consumer: Consumer, start: int = 0, protocol: str = "classic") -> ConfluentConsuming:
    """A reading half whose thread is not started, so that a test can do the thread's work; partition 0 is its own."""
    options, counters = KafkaOptions(bootstrap=("127.0.0.1:1",), group_protocol=protocol), BrokerCounters()
    publisher = Publisher(options, KafkaClients(options), brokers_answer=lambda: True, room_again=lambda: None)
    loop, availability = IOLoop.current(), Availability(counters)
    context = ReadingContext(options, publisher, counters, availability, KafkaClients(options), loop, receiver, decode)
    consuming = ConfluentConsuming(context, ConfluentClients(options))
    consuming._current = session = Session(ConfluentClients(options), options)
    session.consumer = consumer  # type: ignore[assignment]  # it has what is called
    session.trouble = Trouble()
    consuming._assignment.ledgers = {0: OffsetLedger(start)}
    consuming._unresolved_since = time.monotonic()
    return consuming


def asking(consuming: ConfluentConsuming) -> Asker:
    """The client with which it asks from now on."""
    asker = Asker()
    consuming._now.prober._consumer = asker  # type: ignore[assignment]  # likewise
    return asker


async def test_a_closed_session_is_freed_without_the_garbage_collector() -> None:
    options = KafkaOptions(bootstrap=("127.0.0.1:1",))
    clients = ConfluentClients(options, KafkaClients(options).tokens)
    session = Session(clients, options)
    session.join(clients, lambda *answer: None)
    freed = weakref.ref(session)
    gc.disable()
    try:
        session.close()
        del session
        await eventually(lambda: freed() is None)
    finally:
        gc.enable()


# -- what the brokers are asked


@pytest.mark.parametrize("more", [b"", b"\xd0\x00", b"a"], ids=["nothing", "no text", "text"])
def test_the_mark_beside_an_offset_is_read_whatever_stands_behind_it_in_memory(more: bytes) -> None:
    class Found:
        @property
        def metadata(self) -> str:
            return (Log("abc").mark().encode() + more).decode()

    assert confluent_questions._mark(Found()) == Log("abc")  # type: ignore[arg-type]  # a stand-in


def asked(consuming: ConfluentConsuming) -> None:
    """Have it ask, and wait for the answer."""
    consuming._probe_pace.hurry()
    consuming._probe_if_due()
    assert consuming._now.prober._asked is not None
    wait([consuming._now.prober._asked], 10)


def probed(consuming: ConfluentConsuming) -> None:
    """Have it send the request, and process the answer."""
    asked(consuming)
    consuming._probe_if_due()


async def test_what_the_brokers_answer_is_entered_and_takes_back_nothing_that_was_read_meanwhile() -> None:
    consuming = books(Receiver(), Consumer())
    asking(consuming)
    consuming._assignment.ends = {}
    probed(consuming)
    assert consuming._assignment.ends == {0: 100}
    consuming._assignment.ends = {0: 500}
    probed(consuming)
    assert consuming._assignment.ends == {0: 500}


@pytest.mark.parametrize("fails", [False, True])
async def test_an_answer_of_the_time_before_other_partitions_came_is_asked_for_again(
    fails: bool,
) -> None:
    consuming = books(Receiver(), Consumer())
    asker = asking(consuming)
    if fails:
        asker.fails = KafkaException(KafkaError(KafkaError._TIMED_OUT))
    before = consuming._availability.status()
    asked(consuming)
    consuming.forget()
    asker.answers.clear()
    consuming._probe_if_due()
    assert (consuming._assignment.ends, consuming._availability.status()) == ({}, before)
    assert consuming._now.prober.is_asking()
    asker.answers.set()


@AWAY
async def test_a_consumer_that_does_not_get_into_its_group_is_replaced_while_the_brokers_answer() -> None:
    consuming = books(Receiver(), Consumer())
    consuming._assignment.ledgers, consuming._probed_at = {}, consuming._assignment.changes
    answer: Future[Answer] = Future()
    answer.set_result(Answer({}))
    consuming._enter_answer(answer)
    consuming._unresolved_since -= confluent_consumer.JOIN_PATIENCE_S
    with pytest.raises(JoinStuck, match="has not come to an assignment"):
        consuming._enter_answer(answer)


@AWAY
async def test_a_consumer_that_does_not_come_to_read_what_it_was_assigned_is_replaced_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For example, a commit that librdkafka never ends blocks all others."""
    monkeypatch.setattr(confluent_session, "COMMIT_PATIENCE_S", 0.05)
    consumer = Consumer()
    consuming = books(Receiver(), consumer)
    with pytest.raises(KafkaException):
        consuming.commit_and_wait({1: 1})
    consuming.note_assignment({1})
    with pytest.raises(KafkaException):
        consuming.commit_and_wait({1: 1})
    consuming._probed_at = consuming._assignment.changes
    consuming._unresolved_since -= confluent_consumer.JOIN_PATIENCE_S
    answer: Future[Answer] = Future()
    answer.set_result(Answer({}))
    with pytest.raises(JoinStuck):
        consuming._enter_answer(answer)
    consumer.answers.set()


@AWAY
async def test_a_broker_that_librdkafka_gives_up_amid_a_question_ends_no_session() -> None:
    """It drops those that the brokers list no more, and all of them when it asks the bootstrap addresses again. A
    session that ended then would find its own former membership in the group, and stand by until that has expired."""
    consuming = books(Receiver(), Consumer())
    consuming._assignment.is_member = True
    answer: Future[Answer] = Future()
    answer.set_exception(KafkaException(KafkaError(KafkaError._DESTROY_BROKER)))
    consuming._enter_answer(answer)
    assert consuming._availability.status().state is BrokerState.CONNECTING
    assert consuming._assignment.ledgers


@AWAY
async def test_brokers_that_never_answer_do_not_count_as_available(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    consuming = books(Receiver(), Consumer())
    asker = asking(consuming)
    consuming._assignment.is_member = True
    consuming._availability.ready("")
    monkeypatch.setattr(confluent_consumer, "SILENCE_S", 0.05)
    asker.answers.clear()
    consuming._probe_pace._due_at = time.monotonic() + 60
    time.sleep(0.1)
    consuming._probe_if_due()
    assert consuming._availability.status().state is BrokerState.CONNECTING
    assert "no answer" in consuming._availability.status().detail
    asker.answers.set()


async def test_a_client_whose_questions_fail_for_long_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """librdkafka may look for brokers that have moved where they were, for good."""
    lost, found = Asker(), Asker()
    lost.fails = KafkaException(KafkaError(KafkaError._TRANSPORT))
    clients = iter([lost, found])
    monkeypatch.setattr(ConfluentClients, "consumer", lambda self: (next(clients), None))
    options = KafkaOptions(bootstrap=("127.0.0.1:1",))
    prober = Prober(ConfluentClients(options), options)

    async def answer() -> Future[Answer]:
        prober.ask(False, [0])
        assert prober._asked is not None
        await asyncio.to_thread(wait, [prober._asked])
        answered = prober.take_answer()
        assert answered is not None
        return answered

    for _ in range(2):
        assert (await answer()).exception() is lost.fails
    monkeypatch.setattr(confluent_questions, "STALE_S", 0.0)
    assert (await answer()).exception() is lost.fails
    await eventually(lambda: lost.calls == ["close"])
    assert (await answer()).result() == Answer({0: 100})


async def test_the_client_that_asks_is_closed_behind_its_question_and_holds_up_no_other() -> None:
    consumer = Consumer()
    consuming = books(Receiver(), consumer)
    asker = asking(consuming)
    asker.answers.clear()
    consuming._probe_pace.hurry()
    consuming._probe_if_due()
    closing = asyncio.ensure_future(asyncio.to_thread(consuming._now.close))
    await eventually(lambda: consumer.calls == [("close",)])
    assert asker.calls == []
    asker.answers.set()
    await closing
    assert asker.calls == ["close"]


async def test_without_a_thread_to_be_had_reading_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    consuming = books(Receiver(), Consumer())

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    consuming._probe_pace.hurry()
    consuming._probe_if_due()
    assert not consuming._now.prober.is_asking()
    with pytest.raises(KafkaException):
        consuming.commit_and_wait({1: 1})
    consuming._now.close()
    assert consuming._consumer.calls == [("close",)]  # type: ignore[attr-defined]  # a fake


# -- the books


async def test_a_partitions_end_commits_nothing_that_came_with_it_and_is_not_done() -> None:
    receiver = Receiver(prompt=False)
    consuming = books(receiver, Consumer())
    consuming._route([end(8), record(0), record(1)])  # in any order
    await receiver.has(2)
    assert (consuming._assignment.ledgers[0].position, consuming.offsets_to_commit()) == (8, {})
    receiver.finish()
    consuming._settle()
    assert consuming.offsets_to_commit() == {0: 8}


async def test_an_end_that_comes_late_takes_nothing_back() -> None:
    receiver = Receiver()
    consuming = books(receiver, Consumer())
    consuming._route([end(1), record(1), record(2)])
    assert consuming._assignment.ledgers[0].position == 3


async def test_what_comes_behind_a_broken_batch_is_not_taken_but_asked_for_again() -> None:
    receiver, consumer = Receiver(), Consumer()
    consuming = books(receiver, consumer, start=10)
    # librdkafka may have lost its way, and begun again where the log does.
    consuming._route([record(10), broken(11), broken(3_000_000), record(0), record(1), end(1000)])
    await receiver.has(1)
    assert receiver.payloads == [b"doll|10"]
    assert consuming._assignment.ledgers[0].position == 11
    assert consumer.calls == [("seek", 11)]


@SKIPPED
async def test_a_batch_that_is_broken_twice_is_skipped_as_far_as_it_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = Consumer()
    consuming = books(Receiver(), consumer, start=11)
    asked: list[dict[str, int]] = []

    def find_end(clients: object, topic: str, number: int, **where: int) -> int:
        asked.append(where)
        return 500

    monkeypatch.setattr(confluent_consumer, "end_of_broken_batch", find_end)
    consuming._route([broken(11)])
    assert consuming._assignment.ledgers[0].position == 11
    consuming._route([broken(11)])
    assert asked == [{"begins": 11, "inside": 11, "limit": 1000}]
    assert consuming.offsets_to_commit() == {0: 500}
    assert consumer.calls == [("seek", 11), ("seek", 500)]
    assert consuming._counters.quarantined == {"unreadable": 489}


async def test_a_beginning_that_librdkafka_makes_behind_a_broken_batch_repeats_nothing_and_skips_nothing() -> None:
    receiver, consumer = Receiver(), Consumer()
    consuming = books(receiver, consumer, start=10)
    consuming._route([record(10), broken(11)])
    consuming._route([record(0), record(1), end(1000)])  # a reset has undone the seek
    consuming._route([record(11), record(12)])
    consuming._route([record(0)])  # or comes a while later
    consuming._route([record(13)])
    await receiver.has(4)
    assert receiver.payloads == payloads(10, 4)
    assert consuming._assignment.ledgers[0].position == 14
    assert consumer.calls == [("seek", 11), ("seek", 11), ("seek", 13)]


@pytest.mark.parametrize("why", ["the log is shorter now", "it was long ago"])
async def test_a_topic_that_is_made_anew_is_read_from_its_beginning_though_a_batch_was_broken(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confluent_broken, "DOUBT_S", 60.0 if why == "the log is shorter now" else 0.0)
    receiver, consumer = Receiver(), Consumer()
    consuming = books(receiver, consumer, start=10)
    consuming._route([record(10), broken(11)])
    consuming._route([record(11)])
    if why == "the log is shorter now":
        consumer.log_end = 1
    consuming._route([record(0)])
    await receiver.has(3)
    assert receiver.payloads == [b"doll|10", b"doll|11", b"doll|0"]


RECREATED = Plan(Log("b", first=False), "a", {}, frozenset(), {}, frozenset({0}), Start.BEGINNING)


async def test_brokers_that_do_not_agree_on_the_topic_say_nothing_of_what_was_handed_over() -> None:
    """Between two topics of one name some brokers give the old one's id, and others the new one's."""
    consuming = books(Receiver(), Consumer())
    consuming._history.enter(Log("a"))
    consuming._route([record(0)])
    consuming._handoff.recent.ask()
    consuming._judge_log(None)
    assert consuming._handoff.recent.records == 1
    consuming._judge_log("a")
    assert consuming._handoff.recent.records == 0


@pytest.mark.logs("cocoa.broker", "^topic recreated$")
async def test_a_repeat_is_committed_once_what_it_repeats_is_done() -> None:
    receiver = Receiver(prompt=False)
    consuming = books(receiver, Consumer())
    consuming._history.enter(Log("a"))
    consuming._route([record(0)])  # of the new topic already, and an unavailable mailbox does not have it yet
    await receiver.has(1)
    consuming._enter(RECREATED)
    consuming._assignment.ledgers = {0: OffsetLedger(0)}
    consuming._route([record(0)])
    consuming._settle()
    assert consuming.offsets_to_commit() == {}
    receiver.open[0].done()
    consuming._settle()
    assert consuming.offsets_to_commit() == {0: 1}
    assert receiver.payloads == [b"doll|0"]


async def test_a_beginning_that_librdkafka_has_made_up_is_not_gone_to() -> None:
    consumer = Consumer()
    consuming = books(Receiver(), consumer, start=11)
    consuming._route([broken(3_000_000)])
    assert consumer.calls == [("seek", 11)]


async def test_what_turns_out_to_be_readable_is_not_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = Consumer()
    consuming = books(Receiver(), consumer, start=11)
    monkeypatch.setattr(confluent_consumer, "end_of_broken_batch", lambda *_, inside, **__: inside)
    for _ in range(2):
        consuming._route([broken(3)])
    assert consumer.calls == [("seek", 11), ("seek", 11)]
    assert (consuming._assignment.ledgers[0].position, consuming._counters.quarantined) == (11, {})


async def test_nothing_is_skipped_that_the_log_does_not_hold() -> None:
    consumer = Consumer(log_end=11)
    consuming = books(Receiver(), consumer, start=11)
    for _ in range(2):
        consuming._route([broken(11)])
    assert consuming._assignment.ledgers[0].position == 11
    assert consumer.calls == [("seek", 11), ("seek", 11)]


# -- where a broken batch ends


def test_the_end_of_a_run_is_found_wherever_it_is() -> None:
    for limit in range(2, 40):
        for first in range(limit - 1):
            for last in range(first, limit - 1):
                assert end_of(first, limit, lambda offset, last=last: offset <= last) == last + 1  # type: ignore[misc]
        assert end_of(0, limit, lambda offset: True) == limit


def test_a_long_run_takes_few_questions_and_a_long_log_no_more() -> None:
    asked: list[int] = []

    def belongs(offset: int) -> bool:
        asked.append(offset)
        return offset < 500

    assert end_of(0, 10**9, belongs) == 500
    assert len(asked) <= 20


class Searcher:
    """A consumer of a log in which the batch of the offsets 3 to 6 is broken, and which loses its place now and then.

    :ivar resets: after these assignments it reports a reset, and reads nothing
    """

    def __init__(self, *resets: int) -> None:
        self.resets = resets
        self.assignments = 0
        self._next = 0

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.assignments += 1
        self._next = partitions[0].offset

    def consume(self, count: int, timeout: float) -> list[Message]:
        if self.assignments in self.resets:
            return [Message(7_000_000, error=KafkaError._AUTO_OFFSET_RESET)]
        return [broken(3) if 3 <= self._next < 7 else record(self._next)]

    def close(self) -> None: ...


@pytest.mark.parametrize("resets", [(), (1, 2), (3, 5)])
@pytest.mark.parametrize(("inside", "end"), [(3, 7), (5, 7), (6, 7), (7, 7), (2, 2)])
def test_a_reset_misleads_no_search_and_what_can_be_read_belongs_to_no_batch(
    inside: int, end: int, resets: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = ConfluentClients(KafkaOptions(bootstrap=("127.0.0.1:1",)))
    searcher = Searcher(*resets)
    monkeypatch.setattr(clients, "consumer", lambda reports_resets: (searcher, None))
    begins = min(3, inside)
    assert end_of_broken_batch(clients, RESULTS, 0, begins=begins, inside=inside, limit=100) == end


def test_where_the_brokers_do_not_say_where_a_batch_ends_one_offset_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = ConfluentClients(KafkaOptions(bootstrap=("127.0.0.1:1",)))  # a closed port
    monkeypatch.setattr(confluent_broken, "SEARCH_PATIENCE_S", 0.3)
    assert end_of_broken_batch(clients, RESULTS, 0, begins=5, inside=7, limit=100) == 8
    # It named no beginning.
    assert end_of_broken_batch(clients, RESULTS, 0, begins=-1001, inside=7, limit=100) == 8


# -- rest


async def test_a_consumer_has_work_until_what_it_has_read_is_committed() -> None:
    """While it has none, its polls are longer."""
    receiver = Receiver(prompt=False)
    consuming = books(receiver, Consumer())
    assert consuming._has_work()  # it has not joined
    consuming._assignment.is_member = True
    assert not consuming._has_work()
    consuming._route([record(0)])
    await receiver.has(1)
    assert consuming._has_work()
    receiver.finish()
    consuming._settle()
    assert consuming._has_work()
    consuming._on_commit(consuming._now, None, [TopicPartition(RESULTS, 0, 1)])
    assert not consuming._has_work()
    consuming.note_assignment({0})
    assert consuming._has_work()


# -- the group's news


async def test_batches_say_when_partitions_have_come_that_another_process_may_have_read() -> None:
    receiver = Receiver(prompt=False)
    consuming = books(receiver, Consumer())
    consuming._route([record(0)])
    consuming.note_assignment({0})  # it is read already
    consuming._route([record(1)])
    consuming.note_assignment({0, 1})
    consuming._route([record(2)])
    await receiver.has(3)
    first, second, third = [batch.assignment for batch in receiver.open]
    assert first == second != third


async def test_a_revoke_commits_first_and_waits_for_no_answer() -> None:
    receiver, consumer = Receiver(), Consumer()
    consuming = books(receiver, consumer)
    consuming._route([record(0), record(1)])
    await receiver.has(2)
    consuming._on_revoke(consumer, [TopicPartition(RESULTS, 0)])  # type: ignore[arg-type]
    assert consumer.calls == [("commit", 2, True), ("unassign",)]
    assert consuming._history.done_here == {0: 2}  # not to be read again, should the commit have been lost
    consuming._on_commit(consuming._now, None, [TopicPartition(RESULTS, 0, 2)])
    assert consuming._history.done_here == {}


async def test_what_a_consumer_hears_whose_session_is_over_changes_no_books() -> None:
    consumer = Consumer()
    consuming = books(Receiver(), consumer, start=7)
    over, consuming._current = consuming._now, None
    before = dict(consuming._assignment.ledgers)
    partitions = [TopicPartition(RESULTS, 0, 900)]
    for news in (consuming._on_assign, consuming._on_revoke, consuming._on_lost):
        news(consumer, partitions)  # type: ignore[arg-type]
    consuming._on_commit(over, None, partitions)
    assert consuming._assignment.ledgers == before
    assert consuming._assignment.ledgers[0].committed == 7
    assert consuming._assignment.unresolved is None
    assert consumer.calls == [("assign", 0), ("unassign",), ("unassign",)]


def incremental(consumer: Consumer, receiver: Receiver | None = None) -> ConfluentConsuming:
    """A member of a group with the consumer protocol."""
    consuming = books(receiver or Receiver(), consumer, protocol="consumer")
    consuming._assignment.is_member, consuming._fetching._reading, consumer.held = True, {0}, {0}
    return consuming


def named(*numbers: int) -> list[TopicPartition]:
    return [TopicPartition(RESULTS, number) for number in numbers]


async def test_with_the_consumer_protocol_only_what_is_revoked_is_given_up() -> None:
    receiver, consumer = Receiver(), Consumer()
    consuming = incremental(consumer, receiver)
    stays = consuming._assignment.ledgers[0]
    consuming._on_assign(consumer, named(1, 2))  # type: ignore[arg-type]
    consuming.begin_at({1: 5, 2: 6})
    consuming._assignment.begin({1: 5, 2: 6})
    consuming._fetching.paused = {0, 1, 2}
    consuming._route([record(0), record(1)])
    await receiver.has(2)
    consuming._on_revoke(consumer, named(1, 2))  # type: ignore[arg-type]
    assert consumer.calls == [
        ("add",),
        ("add", (1, 5), (2, 6)),
        ("resume", 2),
        ("commit", 2, True),
        ("resume", 2),
        ("remove", 1, 2),
    ]
    assert consuming._assignment.ledgers == {0: stays}
    assert (consuming._fetching._reading, consuming._fetching.paused, consuming._assignment.is_settled) == (
        {0},
        {0},
        True,
    )


async def test_with_the_consumer_protocol_what_stays_is_fetched_at_once_after_a_rebalance() -> None:
    receiver, consumer = Receiver(), Consumer()
    consuming = incremental(consumer, receiver)
    consuming._route([record(0), record(1)])
    consuming._on_assign(consumer, ())  # type: ignore[arg-type]
    assert consuming._is_to_wake
    consuming._wake()
    assert consumer.calls == [("add",), ("seek", 2)]
    assert not consuming._is_to_wake
    await receiver.has(2)


async def test_with_the_consumer_protocol_a_revoke_of_what_was_not_begun_is_acknowledged() -> None:
    consumer = Consumer()
    consuming = incremental(consumer)
    consuming._on_assign(consumer, named(1))  # type: ignore[arg-type]
    consuming._on_revoke(consumer, named(1))  # type: ignore[arg-type]
    assert consumer.calls == [("add",), ("remove",)]
    assert consuming._assignment.partitions == {0}


async def test_with_the_consumer_protocol_what_is_read_can_begin_again_elsewhere() -> None:
    """The log has been replaced."""
    consumer = Consumer()
    consuming = incremental(consumer)
    consuming.begin_at({0: 5, 1: 6})
    assert consumer.calls == [("remove", 0), ("add", (0, 5), (1, 6)), ("resume", 2)]


async def test_with_the_consumer_protocol_a_member_that_was_fenced_forgets_all() -> None:
    consumer = Consumer()
    consuming = incremental(consumer)
    consuming._on_lost(consumer, named(0))  # type: ignore[arg-type]
    assert consumer.calls == [("remove", 0)]
    assert (consuming._assignment.is_member, consuming._assignment.partitions) == (False, set())


async def test_with_the_consumer_protocol_a_member_need_not_have_a_partition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """librdkafka reports no assignment to it, so the brokers are asked for the group's members."""
    consuming = books(Receiver(), Consumer(), protocol="consumer")
    consuming._assignment.ledgers, consuming._probed_at = {}, consuming._assignment.changes
    answer: Future[Answer] = Future()
    answer.set_result(Answer({}, is_member=True))
    consuming._enter_answer(answer)
    monkeypatch.setattr(consuming, "numbers", lambda: [0])
    monkeypatch.setattr(consuming, "committed", lambda numbers: {0: Committed(0, None)})
    consuming._resolve_if_needed()
    assert consuming._assignment.is_settled


@AWAY
@pytest.mark.parametrize(
    ("cause", "why"),
    [
        ("Broker: API version not supported", "needs Kafka 4.0 or later"),
        ("Local: Required feature not supported by broker", "needs Kafka 4.0 or later"),
        ("Broker: The group id does not exist", "group.consumer.migration.policy"),
    ],
)
async def test_brokers_that_refuse_the_consumer_protocol_are_one_line(
    cause: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    consuming = books(Receiver(), Consumer(), protocol="consumer")
    for _ in range(2):
        with pytest.raises(KafkaException) as refusal:
            consuming._on_event(KafkaError(KafkaError._FATAL, f"Fatal error: {cause}: ConsumerGroupHeartbeat"))
        consuming._report_trouble(refusal.value)
    [line] = caplog.records
    assert (line.cause, why in line.detail) == ("protocol", True)  # type: ignore[attr-defined]


async def test_a_pause_does_not_outlive_its_assignment() -> None:
    consumer = Consumer()
    consuming = books(Receiver(), consumer)
    consuming._fetching._reading, consuming._fetching.paused = {0}, {0}
    consuming._on_revoke(consumer, [TopicPartition(RESULTS, 0)])  # type: ignore[arg-type]
    assert consumer.calls == [("resume", 1), ("unassign",)]
    consuming.begin_at({0: 5})
    assert consumer.calls[2:] == [("assign", 1), ("resume", 1)]


async def test_a_commit_without_an_answer_is_given_up_and_closed_only_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(confluent_session, "COMMIT_PATIENCE_S", 0.05)
    monkeypatch.setattr(confluent_session, "CLOSE_TIMEOUT_S", 0.05)
    consumer = Consumer()
    consuming = books(Receiver(), consumer)
    with pytest.raises(KafkaException) as caught:
        consuming.commit_and_wait({0: 5})
    assert consuming._failures.is_retriable(caught.value)
    consuming._now.close()
    assert consumer.calls == []
    consumer.answers.set()
    await eventually(lambda: consumer.calls == [("commit", 5, False), ("close",)])


async def test_a_refused_commit_is_logged_with_the_reason() -> None:
    consumer: Any = Consumer()
    refusal = KafkaException(KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED))

    def refuse(**_: object) -> None:
        raise refusal

    consumer.commit = refuse
    with pytest.raises(KafkaException) as caught:
        books(Receiver(), consumer).commit_and_wait({0: 5})
    assert caught.value is refusal


# -- on a broker


@pytest.fixture
def stand(kafka: KafkaServer) -> ConfluentStand:
    return ConfluentStand(kafka)


@pytest.mark.kafka
@pytest.mark.apache
@AWAY
@pytest.mark.logs("cocoa.broker", "^consumer failed$")
@pytest.mark.parametrize("where", ["_on_assign", "_on_commit"])
async def test_an_error_in_a_callback_ends_no_thread_and_no_reading(
    stand: ConfluentStand, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = getattr(ConfluentConsuming, where)
    wrongs = [ValueError("a mistake")]

    def wrong_once(*args: Any) -> None:
        if wrongs:
            raise wrongs.pop()
        right(*args)

    monkeypatch.setattr(ConfluentConsuming, where, wrong_once)
    receiver, broker = Receiver(), await stand.broker()
    broker.start(receiver, decode)
    try:
        await ready(broker)
        await stand.write(numbered(0, 5))
        await receiver.has(5)
        await eventually(lambda: "consumer failed" in caplog.messages)
        await eventually(lambda: broker.status().state is BrokerState.READY)
    finally:
        await broker.close(2.0)


@pytest.mark.kafka
@pytest.mark.apache
async def test_no_record_waits_for_what_the_brokers_are_asked_meanwhile(
    stand: ConfluentStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver, broker = Receiver(), await stand.broker(probe_interval_s=0.05)
    asked, answered = threading.Event(), threading.Event()
    answer = Prober._answer

    def slow(self: Prober, joined: bool, assigned: Sequence[int], joining: str | None) -> Answer:
        asked.set()
        answered.wait(60)
        return answer(self, joined, assigned, joining)

    async with consuming(broker, receiver):
        monkeypatch.setattr(Prober, "_answer", slow)
        try:
            assert await asyncio.to_thread(asked.wait, 10)
            await stand.write(numbered(0, 5))
            await receiver.has(5, patience_s=20)
        finally:
            answered.set()


LEAVES = """
import asyncio, sys
from cocoa_tornado.brokers.confluent import ConfluentBroker
from cocoa_tornado.brokers.kafka_options import KafkaOptions
from cocoa_tornado.brokers.port import BrokerState
from cocoa_tornado.rules.records import Record

async def main():
    bootstrap, topic = sys.argv[1:]
    options = KafkaOptions(
        bootstrap=(bootstrap,), group=topic, results_topic=topic, partitions=1, replication=1, session_timeout_s=6.0
    )
    broker, done = ConfluentBroker(options), asyncio.Event()
    def sink(batch):
        batch.done()
        done.set()
    broker.start(sink, lambda key, value, timestamp_ms, headers: Record("doll", value, timestamp_ms, True))
    while broker.status().state is not BrokerState.READY:
        await asyncio.sleep(0.01)
    await broker.publish(topic, "doll", b"{}")
    await done.wait()
    print("read", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await broker.close(1.0)
    print(broker.status().state.value, flush=True)

asyncio.run(main())
"""


@pytest.mark.kafka
@pytest.mark.apache
@pytest.mark.parametrize("brokers", ["answer", "hang"])
async def test_a_process_that_has_closed_its_broker_ends_and_librdkafka_has_logged_nothing(
    own_kafka: KafkaServer, brokers: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LEAVES, own_kafka.bootstrap, f"results.{uuid.uuid4().hex[:8]}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == "read\n"
            if brokers == "hang":
                own_kafka.freeze()
            output, errors = await asyncio.to_thread(process.communicate, "leave\n", 30.0)
        finally:
            process.kill()
    assert (output, errors, process.returncode) == ("closed\n", "", 0)
