"""The interface between the driver (``driver.py``) and a storage technology: open, commit, sweep, answer, close.

A store has no queue, no state machine and no retries of its own. The driver calls one operation at a time; it succeeds
or raises, and the driver decides what happens next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from ..errors import MailboxError
from ..rules.audiences import Audience
from ..rules.box import Box, Marks
from ..rules.claims import FencingToken
from ..rules.feed import Page
from .backlog import CommitGroup
from .port import FanOutStep, LaneRead, MailboxCounters, NamedPage

FAN_OUT_STEP: Final = 500
"""Messages of a fan-out that are stored together."""


class StoreFault(MailboxError):
    """An operation of the store failed. The driver retries.

    :ivar away: the store is unreachable; False: it may still be read, and may still delete
    :ivar reopen: the store has changed (another epoch, another mailbox). The driver opens it again; this is not an
        outage
    :ivar committed: what a commit has stored although its marks were refused; else None
    """

    def __init__(self, detail: str, *, away: bool = False, reopen: bool = False) -> None:
        self.away, self.reopen = away, reopen
        self.committed: Committed | None = None
        super().__init__(detail)


class Look(NamedTuple):
    """Ask for the state of a box.

    :ivar marks: the marks set before this query, which may not be stored yet
    """

    device_id: str
    marks: Marks


class Read(NamedTuple):
    """Ask for a page of each of these lanes. ``marks`` as in :class:`Look`; the token as in ``Mailbox.read``."""

    device_id: str
    marks: Marks
    lanes: Sequence[LaneRead]
    fencing_token: FencingToken | None = None


class ListMembers(NamedTuple):
    """Ask for the first ``most`` members of an audience behind ``after``, see ``Mailbox.members``."""

    audience: Audience
    after: str
    most: int


class FindId(NamedTuple):
    """Ask where messages with an ``id`` are, see ``Mailbox.find_id``."""

    id: str
    cursor: int
    device_id: str | None


Query = Look | Read | ListMembers | FindId
QueryResult = Box | list[Page] | list[str] | NamedPage | MailboxError


class Committed(NamedTuple):
    """The result of a commit.

    :ivar results: the numbers of each call, see ``Mailbox.append``
    :ivar steps: steps of fan-outs that it included
    """

    results: Sequence[Sequence[int | None]]
    steps: Sequence[FanOutStep] = ()


@dataclass(slots=True)
class Ledger:
    """The counters and totals of a store, updated on the IOLoop thread only.

    :ivar messages: the number of stored messages; None until the store was first opened
    :ivar size_bytes: the total size of their payloads; None if unknown
    """

    counters: MailboxCounters = field(default_factory=MailboxCounters)
    messages: int | None = None
    size_bytes: int | None = None

    def set_totals(self, messages: int, size_bytes: int) -> None:
        self.messages, self.size_bytes = messages, size_bytes


@dataclass(frozen=True, slots=True)
class StoreTiming:
    """The driver's timeouts and batch sizes for a store.

    :ivar retry_s: the upper bounds of the first and of the last retry delay
    :ivar patience_s: an operation that takes longer hangs: the mailbox leaves READY, and a query fails
    :ivar hang: the cause that is then reported; ``{done}`` and ``{patience_s}`` are filled in
    :ivar start_waits: whether :meth:`Driver.start` waits for the first attempt to open the store
    :ivar queries: the largest number of queries in a batch
    :ivar marks_after_s: how long a mark may wait for a group to be stored with
    """

    retry_s: tuple[float, float]
    patience_s: float
    hang: str
    start_waits: bool
    queries: int
    marks_after_s: float = 0.5


class Store(Protocol):
    """The storage behind a driver. Its methods run on the IOLoop thread; it may run threads of its own.

    The driver makes one call of :meth:`open`, :meth:`commit`, :meth:`fan_out` or :meth:`sweep` at a time, and one call
    of :meth:`answer` concurrently with them. They raise StoreFault. The driver treats any other exception as a bug: it
    logs the traceback and retries.

    :ivar name: the store in log lines
    :ivar location: the store in messages for people, such as ``SQLite in /var/lib/box.db``
    :ivar promise: what messages survive; known once the store is open
    :ivar key: the MAC key of the cursors; None until the store was first opened
    :ivar epoch: the epoch of the messages stored from now on
    :ivar checks_holders: several servers may share it, and presence is in it: see *Holders* in ``Mailbox``
    """

    checks_holders: bool
    name: str
    location: str
    promise: str
    key: bytes | None
    epoch: int

    @property
    def fan_outs(self) -> int:
        """How many fan-outs are not complete. Cheap, and safe at any time; 0 until the store was first opened."""

    async def open(self) -> bool:
        """Open the store, for the first time or again, and check that it works.

        Returns True if it is not the mailbox that was open before. The driver then discards all marks.

        :raises ServiceError: the store can never be used
        """

    async def commit(self, group: CommitGroup) -> Committed:
        """Store a group's marks, then its joins, then its calls, all or none.

        A fan-out is recorded with the state of its audience, and its first step may be stored with it. Before a message
        for a device is stored, those of older fan-outs that the device is still to get are stored; their numbers are
        part of the steps.

        The driver retries a failed commit with the same calls and the same ``group.id``. If the failed commit was
        stored after all, the retry returns the numbers assigned then. Marks may be stored although the commit raises;
        the store then clears ``group.marks``. If only the marks were refused, ``StoreFault.committed`` has the rest: a
        mark that can never be stored must not block messages.
        """

    async def try_storing(self) -> None:
        """Write what a group without messages would. Raises if the store would refuse a message, as far as it shows."""

    async def fan_out(self) -> Sequence[FanOutStep]:
        """Store the next messages of the oldest fan-out, at most ``FAN_OUT_STEP``. Returns nothing if there is none.

        A step that was stored although the call raises is not stored again; the next one then has no numbers.
        """

    async def sweep(self) -> int:
        """Delete some expired messages, see ``Mailbox.sweep``."""

    def answer(self, queries: Sequence[Query]) -> asyncio.Future[list[QueryResult]]:
        """Answer all queries from one snapshot. The error of one query is its answer; the others are
        unaffected."""

    async def close(self, timeout_s: float) -> None:
        """Release all resources within ``timeout_s``, even during a commit. Never raises; idempotent."""
