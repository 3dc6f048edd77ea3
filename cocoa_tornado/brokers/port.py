"""The broker port: the source of transcriptions, and the destination of the devices' messages.

An adapter owns the threads that its client library needs. The gateway only sees batches, handed over on the IOLoop in
order and within bounds, and a status.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..rules.addressing import Headers
from ..rules.quarantined import Quarantined, Returned, Row
from ..rules.records import Decoded, Record


class BrokerState(enum.Enum):
    """The state of an adapter."""

    CONNECTING = "connecting"  # unavailable, or no partition assigned yet: retried indefinitely
    STANDBY = "standby"  # another member of the consumer group reads: waiting outside the group until it has left
    SHARED = "shared"  # reads, but a member that joined later takes some of the records
    READY = "ready"  # a record produced from now on will be handed over
    CLOSED = "closed"


class QuarantineState(enum.Enum):
    """Whether the quarantine topic takes copies. Deliveries do not depend on it."""

    CHECKING = "checking"  # not known yet
    READY = "ready"
    UNAVAILABLE = "unavailable"  # a record rejected now will be lost to it within a minute


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """A snapshot. Cheap, and safe to request on the IOLoop at any time.

    :ivar detail: one line for people: why it is not ready, or what it is connected to
    :ivar lag: records held by the broker and not handed over yet, including those that cannot be read yet; None if
        unknown
    :ivar oldest_quarantined_ms: timestamp of the oldest record that the quarantine topic still has; None if there is
        none, or unknown
    """

    state: BrokerState
    detail: str
    lag: int | None = None
    quarantine: QuarantineState = QuarantineState.READY
    oldest_quarantined_ms: int | None = None


@dataclass(slots=True)
class Batch:
    """Records that are handed over together, in the order of their partitions.

    The receiver calls :meth:`done` (on the IOLoop) exactly once, when every record has been routed and its messages are
    as safe as the configuration promises. Only then may the adapter commit the offsets and count the batch's records as
    no longer in flight.

    :ivar offsets: one for each record
    :ivar sources: the records' partitions, each with its number of consecutive records; the partitions of a recreated
        topic have other names than the old ones
    :ivar assignment: changes whenever the adapter may have begun to read partitions that another process has read
    :ivar size: what ``rules/handoff.py`` reckons for its records; 0: it is not known
    """

    records: list[Record]
    done: Callable[[], None] = field(repr=False, default=lambda: None)
    offsets: Sequence[int] = field(repr=False, default=())
    sources: Sequence[tuple[str, int]] = ()
    assignment: int = 0
    size: int = 0

    def origins(self) -> list[tuple[str, int]]:
        """The partition and the offset of each record."""
        partitions = [partition for partition, records in self.sources for _ in range(records)]
        return list(zip(partitions, self.offsets, strict=True))


@dataclass(slots=True)
class BrokerCounters:
    """Plain counters. Each is written by one thread and may be read by any (reading an int is atomic)."""

    consumed: int = 0  # records read from the results topic
    key_mismatch: int = 0  # the record's key is neither absent nor the device_id of its value
    quarantined: dict[str, int] = field(default_factory=dict)  # by reason
    quarantine_lost: dict[str, int] = field(default_factory=dict)  # rejected and not copied, by cause
    published: dict[str, int] = field(default_factory=dict)  # acknowledged by the broker, by topic
    publish_errors: dict[str, int] = field(default_factory=dict)  # not published, by topic
    reconnects: int = 0  # changes of state from READY to CONNECTING, STANDBY or SHARED
    pauses: int = 0  # times that the high watermark paused the partitions


@dataclass(frozen=True, slots=True)
class RecordAt:
    """The result of looking at an offset of the results topic.

    :ivar row: None: no record, or none any more
    :ivar first: the partition's oldest offset; :ivar end: the one behind its newest; both 0 if there is no such
        partition
    :ivar committed: the consumer group's committed offset, where it reads next; None: unknown
    """

    row: Row | None
    first: int
    end: int
    committed: int | None


Judge = Callable[[Quarantined], Returned]
"""Returns what to publish on the results topic; pure, thread-safe. :meth:`Broker.requeue` passes its exceptions on."""

Decoder = Callable[[bytes | None, bytes | None, int, Headers | None], Decoded]
"""``decode(key, value, timestamp_ms, headers)``; pure, thread-safe, never raises. None: there are no headers."""


class Broker(Protocol):
    """A broker. All methods are called on the IOLoop thread, and none of them blocks.

    Guarantees of every adapter (tested by the contract suite):

    - *Order*: records of one partition arrive in the partition's order, across batches too.
    - *Bound*: at most ``high_water`` records (plus one poll) are handed over and not ``done``; above it the partitions
      pause, below ``low_water`` they resume. The same holds for the records' bytes. A pause never costs the group
      membership.
    - *Fresh start*: a consumer group without a committed offset begins at the newest record, which is determined before
      the status is READY. A restart continues at the committed offset.
    - *New logs*: a results topic that is deleted and created again is read from its first record.
    - *Commit*: an offset is committed after its batch is ``done`` and the quarantine topic has acknowledged every
      undecodable record before it, or lost it.
    - *Absence*: an unavailable broker, at the start or later, is retried indefinitely with backoff and jitter; the log
      has one line for each change of state.
    - *Poison*: a record that ``decode`` rejects never stops the stream. It is copied to the quarantine topic unchanged
      (key, value, headers), with the added headers ``cocoa.reason``, ``cocoa.topic``, ``cocoa.partition`` and
      ``cocoa.offset`` (UTF-8 text). Parts that are too large for that topic are dropped, which a header
      ``cocoa.dropped-...`` records. If the topic takes no copy for a minute (``rules/quarantine.py``), the record is
      counted as lost to quarantine, and logged with its topic, partition and offset. Bytes that are not records, so
      that nothing can be copied, are skipped, counted by offsets as ``unreadable`` and logged.
    - *Transactions*: records of aborted transactions are not handed over.
    """

    @property
    def counters(self) -> BrokerCounters: ...

    @property
    def held_bytes(self) -> Mapping[str, int]:
        """The bytes that each part holds now, by its name in ``rules/buffers.py``; unknown parts are missing."""

    def start(self, sink: Callable[[Batch], None], decode: Decoder) -> None:
        """Begin to consume. Returns at once, even if the broker is unavailable. ``sink`` is called on the IOLoop."""

    def status(self) -> BrokerStatus: ...

    def publish(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes] | None = None
    ) -> asyncio.Future[None]:
        """Queue one record. The future is done once the broker has acknowledged it, or fails with a BrokerError: a
        RecordTooLarge if the topic takes no record of this size.

        Records of one key are acknowledged in the order of the calls. The queue is bounded: if the data comes from
        outside, await :meth:`writable` first. Raises :class:`~cocoa_tornado.errors.BrokerClosed` after close.
        """

    def can_write(self) -> bool:
        """False while the publish queue is above its bound."""

    async def writable(self) -> None:
        """Return once :meth:`can_write` is true. Raises BrokerClosed if the broker is closed meanwhile."""

    async def quarantined(self, limit: int, max_value_bytes: int) -> list[Quarantined]:
        """The newest records of the quarantine topic, newest first, over all its partitions.

        Read apart from the consumer, which this never disturbs. Of each partition at most 3 ``limit`` offsets are read:
        where more of them are no records, the list is shorter. Raises BrokerError.

        :param max_value_bytes: longer values are cut
        """

    async def quarantined_at(self, partition: int, offset: int, max_value_bytes: int) -> Quarantined:
        """One record of the quarantine topic. ``is_requeued`` is None if so many others are behind it that it takes too
        long to find out.

        Read apart from the consumer. Raises RecordGone, BrokerError.

        :param max_value_bytes: a longer value is cut
        """

    async def requeue(self, partition: int, offset: int, judge: Judge) -> str:
        """Put a quarantined record back on the results topic, once: a record that was requeued is requeued by no server
        again. Return ``<topic>/<partition>/<offset>`` of the new record.

        After any other error than those below, it may have been requeued; repeating the call is safe.

        Raises RecordGone, AlreadyRequeued, RecordTooLarge, BrokerError, and what ``judge`` raises.
        """

    async def record_at(self, partition: int, offset: int) -> RecordAt:
        """Look at one offset of the results topic.

        Read apart from the consumer, which this never disturbs. Raises BrokerError.
        """

    async def stop_consuming(self) -> None:
        """Stop reading, wait up to 5 s for the batches in flight to be done, commit, and leave the group."""

    async def close(self, timeout_s: float) -> None:
        """:meth:`stop_consuming`, then flush the publish queue for at most ``timeout_s``.

        Idempotent. Records that could not be published in time are counted in ``publish_errors`` and logged once.
        """
