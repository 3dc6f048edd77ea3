"""What a mailbox's technology has to do behind the driver (``driver.py``): open, commit, sweep, answer, close.

A store has no queue, no state and no retry of its own. It does one thing at a time when the driver asks, and either it
is done or it raises; what comes next is the driver's decision.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ..errors import MailboxError
from ..rules.box import Box, Marks, PageLimits
from ..rules.feed import Page
from .backlog import Group
from .port import MailboxCounters


class StoreFault(MailboxError):
    """The store could not do what it was asked to. The driver tries again.

    :ivar away: nothing can be had from it, as far as one can tell; False: it may still be read, and make room
    :ivar reopen: the store is not what the driver thinks it is (another epoch, another mailbox). Opening it again is
        all it takes, so this is no outage
    :ivar results: of a commit whose calls were stored all the same, while its marks were refused: their numbers
    """

    def __init__(self, detail: str, *, away: bool = False, reopen: bool = False) -> None:
        self.away, self.reopen = away, reopen
        self.results: Sequence[Sequence[int | None]] | None = None
        super().__init__(detail)


class Look(NamedTuple):
    """:ivar marks: that were set before this was asked, and may not be stored yet"""

    device_id: str
    marks: Marks


class Read(NamedTuple):
    """:ivar marks: likewise"""

    device_id: str
    marks: Marks
    after: int
    limits: PageLimits


Question = Look | Read
Answer = Box | Page | MailboxError


@dataclass(slots=True)
class Ledger:
    """What a store counts. On the IOLoop only, as soon as the store knows it.

    :ivar messages: that are in the mailbox, and :ivar size_bytes: of their payloads; None until it was first open
    """

    counters: MailboxCounters = field(default_factory=MailboxCounters)
    messages: int | None = None
    size_bytes: int | None = None

    def set_totals(self, messages: int, size_bytes: int) -> None:
        self.messages, self.size_bytes = messages, size_bytes


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient the driver is with a store.

    :ivar retry_s: the ceiling of the first delay, and of the last
    :ivar patience_s: what has not come back after this hangs: the mailbox is not READY, and a question fails
    :ivar hang: the cause then, with ``{done}`` for what was not done
    :ivar start_waits: whether a start waits for the first attempt to open the store
    :ivar marks_after_s: how long a mark may wait for a group to go along with
    """

    retry_s: tuple[float, float]
    patience_s: float
    hang: str
    start_waits: bool
    questions: int
    marks_after_s: float = 0.5


class Store(Protocol):
    """Behind the driver. IOLoop thread only; whatever threads it needs are its own.

    :meth:`open`, :meth:`commit` and :meth:`sweep` are called one at a time; :meth:`answer` one at a time as well, but
    beside them. They raise StoreFault; the driver takes any other exception for a fault of the gateway, logs it, and
    tries again all the same.

    :ivar name: for the log, and :ivar place: for people, such as ``SQLite in /var/lib/box.db``
    :ivar promise: what messages survive; known once it is open
    :ivar key: of the cursors; None before it was ever open
    :ivar epoch: of what is stored from now on
    """

    name: str
    place: str
    promise: str
    key: bytes | None
    epoch: int

    async def open(self) -> bool:
        """Open it, for the first time or again; whether it is there now is for it to find out.

        Returns True where it is another mailbox than before: what devices have acknowledged there says nothing here.

        :raises ServiceError: it can never be used
        """

    async def commit(self, group: Group) -> Sequence[Sequence[int | None]]:
        """Store a group's marks, then its calls: all of them or none. The numbers of each call.

        The driver repeats a commit that has failed, the same calls under the same ``group.id``. One that was stored
        all the same is answered with the numbers that it got then. Marks may be stored although this raises, and where
        they are the store empties ``group.marks``. Where marks alone are refused, the fault has the ``results`` of the
        calls: a mark that can never be stored must not keep messages waiting.
        """

    async def sweep(self) -> int:
        """One small step, see ``Mailbox.sweep``."""

    def answer(self, questions: Sequence[Question]) -> asyncio.Future[list[Answer]]:
        """From one state of the store; what is wrong with one question is its answer, and fails no other."""

    async def close(self, timeout_s: float) -> None:
        """Let go of everything. Never raises; a second call does nothing. Commits may still be under way."""
