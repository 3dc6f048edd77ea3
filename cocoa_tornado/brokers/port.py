"""The broker port: where transcriptions come from and where a device's words go.

An adapter owns whatever threads its client library needs. Whatever it does there, the gateway sees of it only
what is written here: batches handed over on the IOLoop, in order, bounded; and a status.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..rules.records import Decoded, Record


class BrokerState(enum.Enum):
    """What an adapter can do right now."""

    CONNECTING = "connecting"  # away, or not yet assigned: retrying for ever
    STANDBY = "standby"  # another member of the consumer group reads: waiting outside until it has left
    SHARED = "shared"  # reads, and another member that came later takes part of the records away
    READY = "ready"  # a record produced from now on will be handed over
    CLOSED = "closed"


class QuarantineState(enum.Enum):
    """Whether the quarantine topic takes copies. Deliveries do not depend on it."""

    CHECKING = "checking"  # nothing is known yet
    READY = "ready"
    UNAVAILABLE = "unavailable"  # what is rejected now is lost to it in a minute


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """A snapshot, cheap to make, safe to ask for on the IOLoop at any time.

    :ivar detail: one line for people: why it is not ready, or what it is attached to
    :ivar lag: records that the broker holds for this process and that are not yet handed over, whether they may be
        read yet or not; None if unknown
    """

    state: BrokerState
    detail: str
    lag: int | None = None
    quarantine: QuarantineState = QuarantineState.READY


@dataclass(slots=True)
class Batch:
    """Records handed over together, in the order of their partitions.

    The receiver calls :meth:`done` (on the IOLoop) exactly once, when every record has been routed and the messages
    made of it are as safe as the configuration promises. Only then may the adapter commit the offsets and count the
    batch's records as no longer in flight.

    :ivar offsets: of the records, one for each
    :ivar sources: the partitions that they come from, each with the number of its records, which stand together;
        those of a topic that was created again have other names than the old one's
    """

    records: list[Record]
    done: Callable[[], None] = field(repr=False, default=lambda: None)
    offsets: Sequence[int] = field(repr=False, default=())
    sources: Sequence[tuple[str, int]] = ()

    def origins(self) -> list[tuple[str, int]]:
        """The partition and the offset of each record."""
        partitions = [partition for partition, records in self.sources for _ in range(records)]
        return list(zip(partitions, self.offsets, strict=True))


@dataclass(slots=True)
class BrokerCounters:
    """Plain counters; each is written by one thread only and read by anyone (ints, so a read is never torn)."""

    consumed: int = 0  # records read from the results topic
    key_mismatch: int = 0  # the record's key is neither absent nor the device_id of its value
    quarantined: dict[str, int] = field(default_factory=dict)  # by reason
    quarantine_lost: dict[str, int] = field(default_factory=dict)  # rejected, and never copied, by cause
    published: dict[str, int] = field(default_factory=dict)  # acknowledged by the broker, by topic
    publish_errors: dict[str, int] = field(default_factory=dict)  # given up, by topic
    reconnects: int = 0  # changes of state from READY to CONNECTING, STANDBY or SHARED
    pauses: int = 0  # times that the high water mark paused the partitions


Decoder = Callable[[bytes | None, bytes | None, int], Decoded]
"""``decode(key, value, timestamp_ms)``; pure, thread-safe, never raises."""


class Broker(Protocol):
    """What the gateway asks of a broker. All methods are called on the IOLoop thread and none of them blocks.

    Guarantees of every adapter (the contract suite holds them):

    - *Order*: records of one partition arrive in the partition's order, across batches too.
    - *Bound*: at most ``high_water`` records (plus one poll) are handed over and not yet ``done``; above it the
      partitions pause, below ``low_water`` they resume. Pausing never costs the group membership. The same holds for
      the bytes of those records.
    - *Fresh start*: a consumer group without a committed offset begins at the newest record, which is fixed
      before the status says READY. A restart goes on at the committed offset.
    - *New logs*: a results topic that is deleted and created again is read from its first record.
    - *Commit*: an offset is committed after the batch that holds it is ``done`` and every undecodable record
      before it is acknowledged by the quarantine topic, or lost to it.
    - *Absence*: a broker that is away, at the start or later, is retried for ever with backoff and jitter; the
      log says so once per change of state.
    - *Poison*: a record that ``decode`` rejects never stops the stream. It goes to the quarantine topic
      unchanged (key, value, headers) with the headers ``cocoa.reason``, ``cocoa.topic``, ``cocoa.partition`` and
      ``cocoa.offset`` added (UTF-8 text). What is too large for that topic is dropped from it, and a header
      ``cocoa.dropped-...`` says so. Where the topic takes no copy for a minute (``rules/quarantine.py``), the record is
      counted as lost to quarantine, and logged with its topic, partition and offset. Bytes that are no records at all,
      so that there is nothing to set aside, are skipped, counted by offsets as ``unreadable`` and logged.
    - *Transactions*: what a producer has rolled back is not handed over.
    """

    @property
    def counters(self) -> BrokerCounters: ...

    @property
    def held_bytes(self) -> Mapping[str, int]:
        """What each part of it holds now, by its name in ``rules/buffers.py``; parts that can't be told are missing."""

    def start(self, sink: Callable[[Batch], None], decode: Decoder) -> None:
        """Begin to consume. Returns at once, also where the broker is away. ``sink`` is called on the IOLoop."""

    def status(self) -> BrokerStatus: ...

    def publish(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, bytes] | None = None
    ) -> asyncio.Future[None]:
        """Queue one record; the future is done once the broker has acknowledged it (or holds a BrokerError, which is
        a RecordTooLarge where the topic takes none of this size).

        Records of one key are acknowledged in the order of the calls. The queue is bounded: callers with data
        from outside await :meth:`writable` first. Raises :class:`~cocoa_tornado.errors.BrokerClosed` after close.
        """

    def can_write(self) -> bool:
        """False while the publish queue is above its bound."""

    async def writable(self) -> None:
        """Return once :meth:`can_write`; at once if it already does. Raises BrokerClosed if closed meanwhile."""

    async def stop_consuming(self) -> None:
        """Stop reading, wait for the batches in flight to be done (bounded, 5 s), commit, leave the group."""

    async def close(self, timeout_s: float) -> None:
        """:meth:`stop_consuming`, then flush what is queued for publishing, for at most ``timeout_s``.

        Idempotent. What could not be published in time is counted in ``publish_errors`` and logged once.
        """
