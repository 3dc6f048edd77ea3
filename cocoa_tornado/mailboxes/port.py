"""The mailbox port: where messages are kept until their devices have them.

An adapter owns whatever threads its technology needs. Whatever it does there, the gateway sees of it only what is
written here, on the IOLoop. The arithmetic of boxes is ``rules/box.py``, the same for all adapters.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ..rules.box import Box, PageLimits, Position
from ..rules.feed import Page


class Entry(NamedTuple):
    """One message to be stored: one record for one device.

    :ivar source: the partition that it comes from, such as ``transcription.results/3``; in a topic that was created
        again ``transcription.results@<id>/3``
    :ivar offset: of its record in that partition
    :ivar timestamp_ms: of its record, Unix milliseconds; tells a copy from another record of the same offset
    """

    device_id: str
    payload: bytes
    timestamp_ms: int
    source: str
    offset: int


class MailboxState(enum.Enum):
    """What an adapter can do right now."""

    OPENING = "opening"  # not there yet, or away: retrying for ever
    READY = "ready"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class MailboxStatus:
    """A snapshot, cheap to make, safe to ask for on the IOLoop at any time.

    :ivar detail: one line for people: why it is not ready, or what it is and what it promises
    :ivar messages: that are in it now; None if unknown
    :ivar size_bytes: of their payloads together; None if unknown
    """

    state: MailboxState
    detail: str
    messages: int | None = None
    size_bytes: int | None = None


@dataclass(slots=True)
class MailboxCounters:
    """Plain counters, for the metrics. Each is written by one thread only."""

    stored: int = 0
    duplicates: int = 0  # messages of records that had been stored before
    acknowledged: int = 0  # messages deleted because their device has them
    lost: dict[str, int] = field(default_factory=dict)  # never acknowledged, by reason (rules/labels.py)
    failures: int = 0  # changes of state from READY to OPENING

    def lose(self, reason: str, count: int) -> None:
        if count:
            self.lost[reason] = self.lost.get(reason, 0) + count


class Mailbox(Protocol):
    """What the gateway asks of a mailbox. All methods are called on the IOLoop thread and none of them blocks.

    Guarantees of every adapter (the contract suite holds them):

    - *Order*: a device's messages are numbered in the order of the calls to :meth:`append`, without a gap.
    - *Safety*: a future of :meth:`append` is done when the messages would survive the end of this process; each
      adapter says in its ``detail`` what else they survive. All entries of a call are stored, or none.
    - *Idempotence*: by record and device. A record, which is known by (source, offset, timestamp), is stored for each
      device that it is for, once, and as a whole: its entries are neighbors in one call, so that a crash leaves all of
      them or none. Read again it is stored for nobody, also not for a device that it was not for the first time, as
      long as no more than ``rules.seen.WINDOW`` later offsets of its source were stored.
    - *Bound*: a box holds no more than ``BoxLimits`` says; the oldest go first, and are missed.
    - *Epochs*: after an event that may have lost the latest messages (a crash, a restored backup, a copied file), a new
      :attr:`epoch` begins before anything is stored. Within an epoch a box never gives a number twice. Acknowledgements
      and written marks are places, which include the epoch.
    - *Expiry*: a message older than ``ttl_s`` is not handed out any more, and is removed in small steps soon after.
    - *Faults*: a mailbox that is slow, locked, full or gone is retried for ever. Appends wait in their order;
      reads fail with MailboxError in reasonable time; marks are kept until they can be stored. One that hangs is not
      READY after a few seconds. The log says so once per change of state, and it recovers by itself.
    """

    @property
    def key(self) -> bytes | None:
        """What cursors are sealed with: kept in the mailbox, made with it. None before it was ever READY."""

    @property
    def epoch(self) -> int:
        """Of what is stored from now on; 0 for ever where nothing that is stored is lost but with its key."""

    @property
    def counters(self) -> MailboxCounters: ...

    async def start(self) -> None:
        """Open it. Returns at once, or when the first attempt has come to its end; what is away is retried.

        :raises ServiceError: it can never be used: corrupt, of a newer version, or no mailbox at all. Nothing of it is
            changed then.
        """

    def status(self) -> MailboxStatus: ...

    def append(self, entries: Sequence[Entry]) -> asyncio.Future[list[int | None]]:
        """Store messages; the result has each one's number in its device's box, None for those stored before, and for
        those whose box cannot be had although the mailbox can.

        Calls are carried out in their order, several together where that is faster. The future never fails but with
        MailboxClosed. Raises MailboxClosed after close. Where the answer to an attempt was lost, the next one has the
        numbers all the same; None is only for what an earlier call has stored, or another process, and for a device
        that a record names twice.
        """

    def look(self, device_id: str) -> asyncio.Future[Box]:
        """What is in a device's box, all marks that were set before included. Raises nothing itself; the future fails
        with MailboxError if it can't be had now, and with MailboxClosed if it can't be had since close."""

    def read(self, device_id: str, after: int, limits: PageLimits) -> asyncio.Future[Page]:
        """The messages that come after the number ``after``, as far as ``limits`` go; fails likewise."""

    def acknowledge(self, device_id: str, position: Position) -> None:
        """The device has everything up to ``position``: it may be deleted. Stored within a second, not at once."""

    def written(self, device_id: str, position: Position) -> None:
        """Everything up to ``position`` was written to a socket of the device. Stored soon, likewise."""

    async def sweep(self) -> int:
        """One small step of removing what has expired, and boxes that are forgotten; returns how many messages.

        Called every now and then, and again at once where it says that there was something to do.
        """

    async def close(self, timeout_s: float) -> None:
        """Store what is under way, marks included, for at most ``timeout_s``. Never raises; a second call waits for the
        first one to come to its end, within the first one's time."""
