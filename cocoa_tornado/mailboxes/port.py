"""The mailbox port: messages are kept here until their devices acknowledge them.

An adapter may run threads of its own; this interface is used on the IOLoop thread only. All adapters share the
arithmetic of boxes in ``rules/box.py``.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from ..rules.addressing import Options
from ..rules.audiences import Audience
from ..rules.box import Box, LaneName, Position
from ..rules.claims import FencingToken
from ..rules.feed import LaneRead as LaneRead
from ..rules.feed import Page
from ..rules.repeats import Repeats

ID_REMEMBERED_S: Final = 600.0
IDS_REMEMBERED: Final = 1_000
"""How long, and how many of each device, ids are remembered after their messages have left the box."""

FULL_QUIET_S: Final = 86_400.0
"""A box that has dropped no message for this long no longer counts as full."""

NOT_STORED: Final = 0
"""The number of a transient message where its ``id`` is remembered. No stored message has it."""
RECORDED: Final = 0
"""The result of :meth:`Mailbox.append` for a fan-out that it has recorded."""


class Entry(NamedTuple):
    """One message to store: one record for one device.

    If its options have a ``ttl`` of 0, the message is transient: it is not stored, but its ``collapse_key`` and its
    ``id`` count.

    :ivar source: the record's partition, such as ``transcription.results/3``, or ``transcription.results@<id>/3`` in a
        topic that was recreated
    :ivar offset: the record's offset in that partition
    :ivar timestamp_ms: the record's timestamp, in Unix milliseconds. It distinguishes a redelivered record from another
        record at the same offset
    :ivar options: None: the defaults
    :ivar expires_ms: when its own ``ttl`` ends, Unix milliseconds; 0: it has none. The mailbox's ``ttl_s`` applies too
    """

    device_id: str
    payload: bytes
    timestamp_ms: int
    source: str
    offset: int
    options: Options | None = None
    expires_ms: int = 0


class FanOut(NamedTuple):
    """One record for all members of an audience, however many. The fields are those of :class:`Entry`, and a ``ttl`` of
    0 means the same.

    :ivar excluded: devices that do not get it
    """

    audience: Audience
    excluded: frozenset[str]
    payload: bytes
    timestamp_ms: int
    source: str
    offset: int
    options: Options | None = None
    expires_ms: int = 0

    @property
    def device_id(self) -> str:
        """No device's: a fan-out is its record's only entry."""
        return ""


class FanOutStep(NamedTuple):
    """Some messages of a fan-out have been stored.

    :ivar numbers: each device's number in the lane of the message's priority, as :meth:`Mailbox.append` returns it;
        None: they are unknown, because the reply was lost, and any member of the audience may have got one
    :ivar is_last: the fan-out is complete
    :ivar recipients: how many devices it has been for so far, over all steps; with those that had its ``id`` already
    """

    audience: Audience
    excluded: frozenset[str]
    payload: bytes
    timestamp_ms: int
    options: Options | None
    expires_ms: int
    numbers: Mapping[str, int] | None
    is_last: bool
    recipients: int

    @property
    def is_transient(self) -> bool:
        """True if the messages are not stored."""
        return self.options is not None and self.options.is_transient


class NamedMessage(NamedTuple):
    """Where the message with an ``id`` is in a box, or was.

    :ivar number: in its lane; :data:`NOT_STORED`: it was transient
    :ivar stored_s: Unix seconds
    """

    device_id: str
    lane: LaneName
    number: int
    stored_s: float


class NamedPage(NamedTuple):
    """:ivar cursor: where the next page begins; 0: this was the last one"""

    found: Sequence[NamedMessage]
    cursor: int


class Doorbell:
    """Has a mailbox wake the servers that hold devices, in the step in which it stores messages for them.

    :ivar device_ids: those that are not connected to this server, or may have connections to others as well
    :ivar server: this server's name in presence: it is not woken
    :ivar held: those of them that some server holds; known when the append is complete
    """

    __slots__ = ("device_ids", "held", "server")

    def __init__(self, device_ids: Iterable[str], server: str = "") -> None:
        self.device_ids, self.server = frozenset(device_ids), server
        self.held: set[str] = set()

    def __repr__(self) -> str:
        return f"<Doorbell for {len(self.device_ids)} devices>"


class MailboxState(enum.Enum):
    """The state of an adapter."""

    OPENING = "opening"  # not open yet, or unavailable; retries indefinitely
    READY = "ready"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class MailboxStatus:
    """A snapshot of the state; cheap, and safe to take on the IOLoop at any time.

    :ivar detail: one line for operators: the cause if the mailbox is not ready, else its location and durability
    :ivar messages: the number of stored messages; None if unknown
    :ivar size_bytes: the total size of their payloads; None if unknown
    :ivar fan_outs: how many fan-outs are under way; None if unknown
    """

    state: MailboxState
    detail: str
    messages: int | None = None
    size_bytes: int | None = None
    fan_outs: int | None = None


@dataclass(slots=True)
class MailboxCounters:
    """Counters for the metrics. Each is written by one thread only.

    :ivar full: for operators: the devices whose boxes this process has seen drop messages because they were full
    """

    stored: int = 0
    duplicates: int = 0  # messages dropped because their record, or their id, had been stored before
    collapsed: int = 0  # messages removed because a newer one had the same collapse key
    superseded: int = 0  # marks without effect because another server holds the device
    withdrawn: int = 0  # messages removed because their device is no longer in their audience
    acknowledged: int = 0  # messages deleted because their device acknowledged them
    lost: dict[str, int] = field(default_factory=dict)  # deleted unconfirmed, by reason (rules/labels.py)
    retired: int = 0  # deleted by age or a full box, but written to a device that never acknowledges anything
    failures: int = 0  # transitions from READY to OPENING
    fan_out_waits: int = 0  # times that calls of append had to wait, because so many fan-outs were under way
    full: Repeats = field(default_factory=lambda: Repeats(FULL_QUIET_S))

    def overflow(self, device_id: str, count: int, now: float) -> None:
        """A full box has dropped messages that its device does not have.

        :param now: Unix seconds
        """
        if count:
            self.lose("overflow", count)
            self.full.note(device_id, now, times=count)

    def lose(self, reason: str, count: int) -> None:
        if count:
            self.lost[reason] = self.lost.get(reason, 0) + count


class Mailbox(Protocol):
    """The interface of every mailbox. All methods run on the IOLoop thread, and none of them blocks.

    Guarantees of every adapter, which the contract suite checks:

    - *Order*: in each lane, a device's messages are numbered in the order of the calls to :meth:`append`. High priority
      has a lane of its own; see ``rules/box.py``.
    - *Durability*: a future of :meth:`append` completes once the messages would survive the end of this process; each
      adapter's ``detail`` says what else they survive. A call stores all of its entries or none.
    - *Idempotence*: by record and device. A record is identified by (source, offset, timestamp) and stored once for
      each of its devices. Its entries are adjacent in one call, so a crash leaves all of them or none. When the record
      is read again, it is stored for no device, not even for one that it was not addressed to the first time. This
      holds until more than ``rules.seen.WINDOW`` later offsets of its source have been stored.
    - *Members*: :meth:`join` adds a device to the audiences that its token names, and removes it from all others; its
      messages for those are withdrawn: they leave the box and do not count as missed. A device is forgotten
      ``member_ttl_s`` after its last :meth:`join` or :meth:`refresh`.
    - *Fan-out*: a :class:`FanOut` is stored durably at once, like an entry. Its recipients are the members of its
      audience at that moment, without those that leave it before their turn, even if they join it again. Their messages
      are then stored in steps, also after a crash, each exactly once; and a message that is appended later for one of
      them is stored after it. A fan-out never delays an append by more than a step. But if 32 large ones are under way
      (``fan_out_bound.py``), an append with another one waits for the oldest, and so do the appends after it.
    - *Collapse*: when a message is stored, the device's earlier message with the same ``collapse_key``, in either lane,
      leaves the box unless it is acknowledged. It does not count as missed.
    - *Ids*: a message is dropped if one with the same ``id`` is in the box of its device, or was appended for it less
      than 10 minutes ago. Of each device the last 1,000 ids are remembered.
    - *Transient messages* are not stored, and take no number. Otherwise they are appended like all others: in their
      order, once for each record and device, replacing older messages and dropped as duplicates.
    - *Bound*: a box never exceeds its ``BoxLimits``. Messages of low priority are dropped first, then normal ones, then
      high ones, each the oldest first; all of them count as missed.
    - *Epochs*: after an event that may have lost the latest messages (a crash, a restored backup, a copied file), a new
      :attr:`epoch` begins before anything is stored. Within an epoch a box never gives a number twice. Acknowledgements
      and written marks are positions, which include the epoch.
    - *Expiry*: a message older than ``ttl_s``, or whose own ``ttl`` has ended, is never returned; :meth:`sweep` deletes
      it soon after. It counts as missed. One whose ``ttl`` has ended before it is stored still takes a number.
    - *Holders*: a mailbox that several servers share checks who holds a device where a connection reads the box or has
      written to its socket. A connection that another one has superseded gets nothing and marks nothing.
    - *Faults*: a mailbox that is slow, locked, full or unreachable is retried indefinitely, and recovers by itself.
      Appends wait in order, reads fail with MailboxError within seconds, and marks are kept until they are stored. A
      mailbox that hangs leaves READY after a few seconds. Each change of state is logged once.
    """

    @property
    def key(self) -> bytes | None:
        """The MAC key of the cursors. It is created and stored with the mailbox; None until the mailbox is first
        READY."""

    @property
    def epoch(self) -> int:
        """The epoch of the messages stored from now on. Always 0 if losing messages implies losing the key."""

    @property
    def counters(self) -> MailboxCounters: ...

    async def start(self) -> None:
        """Open the mailbox. Returns immediately or after the first attempt; further attempts run in the background.

        :raises ServiceError: the mailbox can never be used: it is corrupt, has a newer version, or is no mailbox. It is
            left unchanged.
        """

    def status(self) -> MailboxStatus: ...

    def watch_fan_outs(self, on_step: Callable[[FanOutStep], None]) -> None:
        """Call a function, on the IOLoop thread, for every step that is stored: at least one for each fan-out.

        A step is reported after the future of the call that has recorded its fan-out is done, and before the callbacks
        of that future if it was stored with the call.
        """

    @property
    def rings(self) -> bool:
        """True if presence is in the mailbox, so that :meth:`append` can ring doorbells."""

    def append(
        self, entries: Sequence[Entry | FanOut], doorbell: Doorbell | None = None
    ) -> asyncio.Future[list[int | None]]:
        """Store messages. The result holds each message's number in its lane of its device's box and, for a transient
        one, the number that it comes after; for a fan-out that this call has recorded, it holds 0. It holds None for a
        message or a fan-out that an earlier call or another process has stored, for the second of two entries of one
        record and device, for one that is dropped because of its ``id``, and for a message whose box is unusable
        although the mailbox works.

        Calls are executed in order, several in one commit where that is faster. The future fails with MailboxClosed
        only. If the reply to a commit was lost, the retry still returns the numbers.

        :raises MailboxClosed: after :meth:`close`
        """

    def join(
        self, device_id: str, audiences: frozenset[Audience], fencing_token: FencingToken | None = None
    ) -> asyncio.Future[None]:
        """A device has connected with a token that names these audiences. It is known from now on. Fails with
        MailboxClosed only; else it is complete once it is stored, before any later :meth:`append`.

        :param fencing_token: of the new connection. If the device is held under another grant by then, the call is
            like :meth:`refresh`: the other connection may have a newer token
        :raises MailboxClosed: after :meth:`close`
        """

    def refresh(self, device_id: str, audiences: frozenset[Audience]) -> asyncio.Future[None]:
        """A device is connected still, or was until now. It is known from now on, in the audiences that it has: another
        server may have accepted a newer token. Otherwise like :meth:`join`.

        :param audiences: if it is not known
        """

    def members(self, audience: Audience, after: str, most: int) -> asyncio.Future[list[str]]:
        """The first ``most`` members of an audience whose device ids come after another one, by the bytes of the ids;
        those that were stored before this call. For operators: it takes time in proportion to all members. Fails like
        :meth:`look`."""

    def find_id(self, id_: str, cursor: int = 0, device_id: str | None = None) -> asyncio.Future[NamedPage]:
        """Find the messages with an ``id`` that are in boxes, or whose ``id`` is remembered, in some hundred boxes at a
        time. For operators: all of it takes time in proportion to all boxes. Fails like :meth:`look`.

        :param cursor: of the page before; 0: begin
        :param device_id: look into the box of this device only
        """

    def look(self, device_id: str) -> asyncio.Future[Box]:
        """The state of a device's box, including all marks set before this call. Never raises; the future fails with
        MailboxError if the mailbox is unavailable, and with MailboxClosed after :meth:`close`."""

    def read(
        self, device_id: str, lanes: Sequence[LaneRead], fencing_token: FencingToken | None = None
    ) -> asyncio.Future[list[Page]]:
        """A page of each of these lanes, all from one state of the box. Fails like :meth:`look`, and with Superseded.

        :param fencing_token: of the connection that reads; None: other servers cannot hold the device
        """

    def acknowledge(self, device_id: str, position: Position) -> None:
        """The device has everything up to ``position``, which may be deleted. Stored within a second, not
        immediately."""

    def written(self, device_id: str, position: Position, fencing_token: FencingToken | None = None) -> None:
        """Everything up to ``position`` was written to a socket of the device. Stored like :meth:`acknowledge`.

        :param fencing_token: of the grant under which it was written. If the device is held under another one by then,
            the mark has no effect
        """

    def marked(self, device_id: str) -> asyncio.Future[None] | None:
        """Store the marks of a device now. The future is done when they are stored, and when the mailbox closes; it
        never fails. None: there are none, or the mailbox does not check grants."""

    async def sweep(self) -> int:
        """Delete some expired messages and unused boxes; return the number of deleted messages.

        The sweeper calls it periodically, and again immediately while the result is positive.
        """

    async def close(self, timeout_s: float) -> None:
        """Store what is queued, marks included, within ``timeout_s``, then close. Never raises; a second call waits for
        the first."""


def lane_of(options: Options | None) -> LaneName:
    """The lane of a message with these options."""
    return "high" if options is not None and options.priority == "high" else "normal"
