"""The Kafka broker as the gateway sees it, for either client library. IOLoop thread only.

Two threads do the work: one polls (``kafka_reading``), one publishes (``kafka_publisher``). They share only the
quarantine, through which the first uses the second. kafka-python publishes in any case, because librdkafka's idempotent
producer lets later records overtake those of a batch that a topic has refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from tornado.ioloop import IOLoop

from ..asking import ask
from ..errors import BrokerClosed, BrokerError
from ..rules.quarantined import Quarantined
from .kafka_availability import Availability
from .kafka_clients import KafkaClients
from .kafka_members import SoleReading
from .kafka_options import KafkaOptions
from .kafka_publisher import Outgoing, Publisher
from .kafka_quarantined import QuarantineTopic
from .kafka_reading import Reading, ReadingContext
from .kafka_record_at import record_at
from .port import Batch, BrokerCounters, BrokerStatus, Decoder, Judge, RecordAt

T = TypeVar("T")
STOP_PATIENCE_S = 5.0
MAX_LOOKING = 8  # requests for what topics hold; of those for the quarantine, one is served and the others wait
WOKEN_AT_ONCE = 64  # waiters for room in the publish queue that are woken in one turn of the loop
STOP_BOUND_S = 15.0  # the same, including the commit, leaving the group and closing sockets

log = logging.getLogger("cocoa.broker")


class KafkaFacade(ABC):
    """The :class:`~cocoa_tornado.brokers.port.Broker` for a Kafka cluster, or anything that speaks its protocol.

    Connects at :meth:`start` or the first :meth:`publish`. Publishing is at least once, and exactly once as long as the
    brokers keep the producer's state. Consuming is at least once: after a crash, or a rebalance that revoked batches in
    flight, records that were not committed are read again.
    """

    def __init__(self, options: KafkaOptions, clients: KafkaClients) -> None:
        self._options, self._asking_clients = options, clients
        self._counters = BrokerCounters()
        self._availability = Availability(self._counters)
        self._sole = SoleReading(clients, options, self._availability) if options.sole_reader else None
        self._publisher = Publisher(
            options, clients, brokers_answer=self._availability.brokers_answer, room_again=self._on_room
        )
        self._consuming: Reading[Any] | None = None
        self._stopped: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answers: deque[tuple[asyncio.Future[None], str, BrokerError | None]] = deque()
        self._answers_due = False
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self._quarantine_topic = QuarantineTopic(options, clients)
        self._looking: list[Future[Any]] = []

    def __repr__(self) -> str:
        status = self._availability.status()
        return f"<{type(self).__name__} {','.join(self._options.bootstrap)} {status.state.value}>"

    @property
    def counters(self) -> BrokerCounters:
        return self._counters

    @property
    def held_bytes(self) -> Mapping[str, int]:
        reading = 0 if self._consuming is None else self._consuming.held_bytes
        return {"handoff": reading, "publish": self._publisher.held_bytes}

    def status(self) -> BrokerStatus:
        return self._availability.status()

    @abstractmethod
    def _reading(self, context: ReadingContext) -> Reading[Any]:
        """Create the consuming half, not started."""

    # -- consuming

    def start(self, sink: Callable[[Batch], None], decode: Decoder) -> None:
        if self._closed:
            raise BrokerClosed("the broker is closed")
        if self._consuming is not None:
            raise BrokerError("the broker has been started already")
        self._loop = asyncio.get_running_loop()
        self._consuming = self._reading(
            ReadingContext(
                options=self._options,
                publisher=self._publisher,
                counters=self._counters,
                availability=self._availability,
                asking=self._asking_clients,
                loop=IOLoop.current(),
                sink=sink,
                decode=decode,
                sole=self._sole,
            )
        )
        self._consuming.start()

    async def stop_consuming(self) -> None:
        if self._stopped is None:
            self._availability.stopping()
            self._stopped = asyncio.ensure_future(self._stop_consuming())
        # Shielded: a cancelled waiter must not cancel the stop.
        await asyncio.shield(self._stopped)

    async def _stop_consuming(self) -> None:
        if self._consuming is None:
            return
        finished = asyncio.Event()
        self._consuming.stop(STOP_PATIENCE_S, finished.set)
        try:
            async with asyncio.timeout(STOP_BOUND_S):
                await finished.wait()
        except TimeoutError:
            log.warning("consumer thread still running", extra={"waited_s": STOP_BOUND_S})

    # -- for operators

    async def quarantined(self, limit: int, max_value_bytes: int) -> list[Quarantined]:
        return await self._look_into(lambda: self._quarantine_topic.newest(limit, max_value_bytes))

    async def quarantined_at(self, partition: int, offset: int, max_value_bytes: int) -> Quarantined:
        return await self._look_into(lambda: self._quarantine_topic.at(partition, offset, max_value_bytes))

    async def requeue(self, partition: int, offset: int, judge: Judge) -> str:
        return await self._look_into(lambda: self._quarantine_topic.requeue(partition, offset, judge))

    async def record_at(self, partition: int, offset: int) -> RecordAt:
        return await self._look_into(lambda: record_at(self._options, self._asking_clients, partition, offset))

    async def _look_into(self, question: Callable[[], T]) -> T:
        """Run a request on a thread of its own, which continues even if the caller no longer waits."""
        if self._closed:
            raise BrokerClosed("the broker is closed")
        self._looking = [each for each in self._looking if not each.done()]
        if len(self._looking) >= MAX_LOOKING:
            raise BrokerError("too many requests for what topics hold")
        try:
            asked = ask("cocoa-kafka-looking", question)
        except RuntimeError as error:
            raise BrokerError("the process can have no more threads") from error
        self._looking.append(asked)
        return await asyncio.wrap_future(asked)

    # -- publishing

    def publish(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes] | None = None
    ) -> asyncio.Future[None]:
        if self._closed:
            raise BrokerClosed("the broker is closed")
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = self._loop.create_future()
        # Failures are counted already: don't log them at exit if the caller ignores the future.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        record = Outgoing(
            topic,
            key.encode(),
            value,
            list((headers or {}).items()),
            lambda error: self._on_answer(future, topic, error),
        )
        try:
            self._publisher.submit(record)
        except BrokerClosed:
            raise
        except BrokerError as error:
            self._enter(future, topic, error)
        return future

    def can_write(self) -> bool:
        return self._publisher.has_room()

    async def writable(self) -> None:
        while not self.can_write():
            if self._closed:
                raise BrokerClosed("the broker is closed")
            self._loop = asyncio.get_running_loop()
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            if self.can_write():  # the last notification may have come before the waiter was registered
                self._wake_writers()
            await waiter

    async def close(self, timeout_s: float) -> None:
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        self._closed = True
        self._wake_all_writers()
        try:
            async with asyncio.timeout(timeout_s):
                await self.stop_consuming()
        except TimeoutError:
            if self._stopped is not None:
                self._stopped.cancel()
                await asyncio.wait({self._stopped})
        left_s = max(0.0, deadline - loop.time())
        lost = await loop.run_in_executor(None, self._publisher.close, left_s)
        self._enter_answers()
        self._availability.closed()
        if lost:
            log.warning(
                "records not published",
                extra={"records": sum(lost.values()), "topics": ",".join(sorted(lost))},
            )

    # -- called from other threads

    def _on_answer(self, future: asyncio.Future[None], topic: str, error: BrokerError | None) -> None:
        self._answers.append((future, topic, error))
        if not self._answers_due:
            self._answers_due = True
            self._call_on_loop(self._enter_answers)

    def _on_room(self) -> None:
        self._call_on_loop(self._wake_writers)

    def _call_on_loop(self, call: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits for this
                self._loop.call_soon_threadsafe(call)

    # -- the IOLoop again

    def _enter_answers(self) -> None:
        self._answers_due = False  # first, so that an answer arriving from now on schedules a turn of its own
        while self._answers:
            self._enter(*self._answers.popleft())

    def _enter(self, future: asyncio.Future[None], topic: str, error: BrokerError | None) -> None:
        counts = self._counters.published if error is None else self._counters.publish_errors
        counts[topic] = counts.get(topic, 0) + 1
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def _wake_writers(self) -> None:
        """Wake the waiters in order, as many as there is room for: each takes room, or leaves it to the next turn's.
        Waking all at once would have thousands compete for one slot repeatedly."""
        places = min(self._publisher.free_records(), WOKEN_AT_ONCE)
        while self._waiters and places:
            places -= _wake(self._waiters.popleft())
        if self._waiters and not places and self.can_write():
            asyncio.get_running_loop().call_soon(self._wake_writers)

    def _wake_all_writers(self) -> None:
        while self._waiters:
            _wake(self._waiters.popleft())


def _wake(waiter: asyncio.Future[None]) -> bool:
    """Return False if it no longer waits."""
    if waiter.done():
        return False
    waiter.set_result(None)
    return True
