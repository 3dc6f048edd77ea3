"""The embedded broker: one log per topic in this process, without persistence. The default of ``cocoa serve``.

Each topic has one partition and one consumer. Everything runs on the IOLoop, asynchronously as with a real broker: a
record published to the results topic is decoded and handed over in a later turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tornado.ioloop import IOLoop

from ..errors import AlreadyRequeued, BrokerClosed, BrokerError, RecordGone
from ..rules.handoff import RECORD_BYTES, OffsetLedger, WaterMarks, size_of
from ..rules.quarantined import Newest, Quarantined, Row, read_copy
from ..rules.records import Record, Rejected
from .port import Batch, BrokerCounters, BrokerState, BrokerStatus, Decoder, Judge, RecordAt

MAX_BATCH_RECORDS = 500
MIB = 1024 * 1024
STOP_PATIENCE_S = 5.0

log = logging.getLogger("cocoa.broker")


class MemoryRecord(NamedTuple):
    """One record in a topic's log."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]
    timestamp_ms: int

    @property
    def size(self) -> int:
        """The bytes that count against the bound."""
        headers = sum(len(name) + len(value) for name, value in self.headers.items())
        return len(self.key or b"") + len(self.value or b"") + headers + RECORD_BYTES


class _Log:
    """A topic: the records from ``first`` on. Beyond ``retained`` and ``retained_bytes`` the oldest are dropped.

    :ivar position: the first unread record; unread records are not dropped because of ``retained``
    :ivar unread_bytes: the size of the unread records
    """

    __slots__ = ("_bytes", "_retained", "_retained_bytes", "end", "position", "records", "unread_bytes")

    def __init__(self, retained: int, retained_bytes: int) -> None:
        self.records: deque[MemoryRecord] = deque()
        self.end = 0
        self.position: int | None = None  # there is no reader
        self.unread_bytes = 0
        self._retained, self._retained_bytes, self._bytes = retained, retained_bytes, 0

    @property
    def size(self) -> int:
        return self._bytes

    @property
    def first(self) -> int:
        return self.end - len(self.records)

    def append(self, key: bytes | None, value: bytes | None, headers: Mapping[str, bytes]) -> None:
        record = MemoryRecord(self.end, key, value, dict(headers), int(time.time() * 1000))
        self.records.append(record)
        self.end += 1
        self._bytes += record.size
        if self.position is not None:
            self.unread_bytes += record.size
        self._drop_the_oldest()

    def seek(self, position: int) -> None:
        """Add a reader, from this position on."""
        self.position = position
        self.unread_bytes = sum(record.size for record in itertools.islice(self.records, position - self.first, None))

    def read(self, records: int, size: int) -> list[MemoryRecord]:
        """The next records, within both limits, but at least one."""
        assert self.position is not None  # the reader has called seek()
        start, taken, found = self.position - self.first, 0, []
        for record in itertools.islice(self.records, start, start + records):
            found.append(record)
            taken += record.size
            if taken >= size:
                break
        self.position += len(found)
        self.unread_bytes -= taken
        return found

    def _drop_the_oldest(self) -> None:
        while len(self.records) > 1 and (len(self.records) > self._retained or self._bytes > self._retained_bytes):
            if self.position is not None and self.first >= self.position:
                return
            self._bytes -= self.records.popleft().size


class MemoryBroker:
    """The :class:`~cocoa_tornado.brokers.port.Broker` that needs no service.

    READY from :meth:`start` on. ``retained`` and ``retained_bytes`` bound each topic's log. An unread record of the
    results topic is never dropped: at a bound :meth:`can_write` is False, and :meth:`publish` fails.

    In addition to the port's guarantees, it can be started again after :meth:`stop_consuming`, and continues at its
    offset.

    :param loop: the IOLoop that owns it; by default the current one at :meth:`start`
    """

    def __init__(
        self,
        loop: IOLoop | None = None,
        *,
        high_water: int = 10_000,
        low_water: int = 2_000,
        high_water_bytes: int = 24 * MIB,
        retained: int = 10_000,
        retained_bytes: int = 24 * MIB,
        results_topic: str = "transcription.results",
        quarantine_topic: str = "transcription.results.quarantine",
    ) -> None:
        self._loop = loop
        self._retained, self._retained_bytes = retained, retained_bytes
        self._poll_bytes = max(1, high_water_bytes // 8)
        self._results_topic, self._quarantine_topic = results_topic, quarantine_topic
        # Offsets begin at 0 in each process: a mailbox that outlives it must not confuse two processes' records.
        self._source = f"{results_topic}/0#{secrets.token_hex(8)}"
        self._logs: dict[str, _Log] = {}
        self._marks = WaterMarks(high=high_water, low=low_water, high_bytes=high_water_bytes)
        self._ledger: OffsetLedger | None = None
        self._sink: Callable[[Batch], None] | None = None
        self._decode: Decoder | None = None
        self._turn_scheduled = False
        self._closed = False
        self._epoch = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._requeued: set[int] = set()  # offsets in the quarantine, as far as that still has them
        self._counters = BrokerCounters()

    def __repr__(self) -> str:
        return f"<MemoryBroker {self.status().detail}>"

    @property
    def counters(self) -> BrokerCounters:
        return self._counters

    @property
    def held_bytes(self) -> Mapping[str, int]:
        return {"handoff": self._marks.in_flight_bytes, "log": sum(log.size for log in self._logs.values())}

    def records(self, topic: str) -> list[MemoryRecord]:
        """The topic's records, oldest first; for tests and development."""
        return list(self._log(topic).records)

    # -- consuming

    def start(self, sink: Callable[[Batch], None], decode: Decoder) -> None:
        """Begin to consume: at the newest record the first time, later at the committed offset."""
        if self._closed:
            raise BrokerClosed("the broker is closed")
        self._loop = self._loop or IOLoop.current()
        self._sink, self._decode = sink, decode
        results = self._log(self._results_topic)
        if self._ledger is None:
            self._ledger = OffsetLedger(results.end)
        else:
            # Like a new member of the group: records handed over and not done are read again.
            self._ledger = OffsetLedger(max(self._ledger.settle(), results.first))
        results.seek(self._ledger.position)
        self._schedule()

    def status(self) -> BrokerStatus:
        if self._closed:
            return BrokerStatus(BrokerState.CLOSED, "closed")
        if self._sink is None or self._ledger is None:
            return BrokerStatus(BrokerState.CONNECTING, "not consuming")
        lag = self._log(self._results_topic).end - self._ledger.position
        oldest = next((record.timestamp_ms for record in self._log(self._quarantine_topic).records), None)
        detail = f"in this process, topic {self._results_topic}"
        return BrokerStatus(BrokerState.READY, detail, lag, oldest_quarantined_ms=oldest)

    async def stop_consuming(self) -> None:
        deadline = time.monotonic() + STOP_PATIENCE_S
        self._sink = None
        while self._ledger is not None and not self._ledger.idle and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        # A batch that becomes done from now on was abandoned: it must not move the offset.
        self._epoch += 1
        self._marks.release(self._marks.in_flight, self._marks.in_flight_bytes)

    def _log(self, topic: str) -> _Log:
        if topic not in self._logs:
            self._logs[topic] = _Log(self._retained, self._retained_bytes)
        return self._logs[topic]

    def _schedule(self) -> None:
        if self._sink is not None and not self._turn_scheduled and self._loop is not None:
            self._turn_scheduled = True
            self._loop.add_callback(self._turn)

    def _turn(self) -> None:
        self._turn_scheduled = False
        sink, ledger = self._sink, self._ledger
        if sink is None or ledger is None or self._marks.paused:
            return
        results = self._log(self._results_topic)
        found = results.read(MAX_BATCH_RECORDS, self._poll_bytes)
        if not found:
            return
        records, offsets = self._route(found)
        span = ledger.read(found[-1].offset + 1, pending=1 if records else 0)
        if ledger.position < results.end:
            self._schedule()
        self._wake_writers()
        if not records:
            return
        count, size = len(records), size_of(records)
        if self._marks.take(count, size):
            self._counters.pauses += 1
        epoch, is_done = self._epoch, False

        def done() -> None:
            nonlocal is_done
            if is_done or epoch != self._epoch:
                return
            is_done = True
            span.done_one()
            ledger.settle()  # otherwise completed spans would accumulate until the stop
            if self._marks.release(count, size):
                self._schedule()

        sink(Batch(records, done, offsets, [(self._source, len(records))], size=size))

    def _route(self, found: list[MemoryRecord]) -> tuple[list[Record], list[int]]:
        """The decoded records to hand over, and their offsets."""
        assert self._decode is not None  # only runs between start and stop
        records, offsets = [], []
        for record in found:
            self._counters.consumed += 1
            decoded = self._decode(record.key, record.value, record.timestamp_ms, tuple(record.headers.items()))
            if isinstance(decoded, Rejected):
                self._quarantine(record, decoded.reason)
                continue
            self._counters.key_mismatch += not decoded.key_agrees
            records.append(decoded)
            offsets.append(record.offset)
        return records, offsets

    def _quarantine(self, record: MemoryRecord, reason: str) -> None:
        own = {
            "cocoa.reason": reason.encode(),
            "cocoa.topic": self._results_topic.encode(),
            "cocoa.partition": b"0",
            "cocoa.offset": str(record.offset).encode(),
        }
        # The gateway's own headers are the last ones (rules/quarantined.py).
        theirs = {name: value for name, value in record.headers.items() if name not in own}
        self._log(self._quarantine_topic).append(record.key, record.value, theirs | own)
        self._counters.quarantined[reason] = self._counters.quarantined.get(reason, 0) + 1
        log.info("record quarantined", extra={"reason": reason, "offset": record.offset})

    # -- the quarantine

    async def quarantined(self, limit: int, max_value_bytes: int) -> list[Quarantined]:
        newest = Newest(limit, max_value_bytes)
        newest.take(
            _row(record) for record in itertools.islice(reversed(self._log(self._quarantine_topic).records), limit)
        )
        return [record._replace(is_requeued=record.offset in self._requeued) for record in newest.records()]

    async def quarantined_at(self, partition: int, offset: int, max_value_bytes: int) -> Quarantined:
        found = read_copy(self._copy(partition, offset), max_value_bytes)
        return found._replace(is_requeued=offset in self._requeued)

    def _copy(self, partition: int, offset: int) -> Row:
        log = self._log(self._quarantine_topic)
        self._requeued = {each for each in self._requeued if each >= log.first}
        if partition or not log.first <= offset < log.end:
            raise RecordGone(f"{self._quarantine_topic}/{partition}/{offset}")
        return _row(log.records[offset - log.first])

    async def requeue(self, partition: int, offset: int, judge: Judge) -> str:
        if self._closed:
            raise BrokerClosed("the broker is closed")
        row = self._copy(partition, offset)
        if offset in self._requeued:
            raise AlreadyRequeued(f"{self._quarantine_topic}/{partition}/{offset}")
        back = judge(read_copy(row))
        headers = {name: value or b"" for name, value in back.headers}
        place = self._log(self._results_topic).end
        published = self.append(self._results_topic, back.key, back.value, headers)
        if not published.done():  # otherwise the log is full
            self._requeued.add(offset)
        await published
        return f"{self._results_topic}/0/{place}"

    async def record_at(self, partition: int, offset: int) -> RecordAt:
        if partition:
            return RecordAt(None, 0, 0, None)
        log = self._log(self._results_topic)
        row = _row(log.records[offset - log.first]) if log.first <= offset < log.end else None
        return RecordAt(row, log.first, log.end, log.position)

    # -- publishing

    def publish(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes] | None = None
    ) -> asyncio.Future[None]:
        return self.append(topic, key.encode(), value, headers)

    def append(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Mapping[str, bytes] | None = None
    ) -> asyncio.Future[None]:
        """Like :meth:`publish`, for any key and value: what other producers may write, including tombstones."""
        if self._closed:
            raise BrokerClosed("the broker is closed")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._is_full(topic):
            self._count(self._counters.publish_errors, topic)
            future.set_exception(BrokerError(f"the log of {topic} is full of unread records"))
            future.exception()  # already counted: don't log it at exit if the caller ignores the future
            return future
        self._log(topic).append(key, value, headers or {})
        self._count(self._counters.published, topic)
        asyncio.get_running_loop().call_soon(_acknowledge, future)
        if topic == self._results_topic:
            self._schedule()
        return future

    def can_write(self) -> bool:
        return not self._is_full(self._results_topic)

    async def writable(self) -> None:
        while not self.can_write():
            if self._closed:
                raise BrokerClosed("the broker is closed")
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    async def close(self, timeout_s: float) -> None:
        """Only waits for the batches in flight: there is nothing to flush."""
        if self._closed:
            return
        self._closed = True
        self._wake_writers()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.stop_consuming()

    def _is_full(self, topic: str) -> bool:
        """True if the log is full of unread records. Without a reader it never is: its oldest records are dropped."""
        log = self._log(topic)
        if log.position is None:
            return False
        return log.end - log.position >= self._retained or log.unread_bytes >= self._retained_bytes

    def _wake_writers(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            _acknowledge(waiter)

    @staticmethod
    def _count(counts: dict[str, int], topic: str) -> None:
        counts[topic] = counts.get(topic, 0) + 1


def _row(record: MemoryRecord) -> Row:
    return Row(0, record.offset, record.timestamp_ms, record.key, record.value, tuple(record.headers.items()))


def _acknowledge(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
