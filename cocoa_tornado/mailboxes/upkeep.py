"""A store's work besides storing messages: marks and sweeps, which it may refuse separately. IOLoop thread only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ..errors import MailboxError
from .asking import fail
from .chore import Chore

log = logging.getLogger("cocoa.mailbox")


class Upkeep:
    """The two chores, with their retries and log lines, and the callers that wait for a sweep.

    :param mailbox: its name, for the log
    :param on_retry: called when a chore that the store has refused is to be tried again
    """

    def __init__(self, mailbox: str, retry_s: tuple[float, float], on_retry: Callable[[Chore], None]) -> None:
        self.marking, self.sweeping = Chore("marks", retry_s), Chore("sweeps", retry_s)
        self._mailbox, self._on_retry = mailbox, on_retry
        self._sweeps: list[asyncio.Future[int]] = []
        self._sweep_owed = False

    @property
    def is_outage(self) -> bool:
        """True if one of them was refused, and nothing shows yet that the store still accepts messages."""
        return self.marking.is_outage or self.sweeping.is_outage

    def messages_stored(self) -> None:
        self.marking.messages_stored()
        self.sweeping.messages_stored()

    def hold(self, chore: Chore, cause: str) -> None:
        """The store has refused a chore: retry it later."""
        if chore.refused():
            log.warning("mailbox upkeep refused", extra={"mailbox": self._mailbox, "part": chore.name, "cause": cause})
        asyncio.get_running_loop().call_later(chore.hold_s, self._retry, chore)

    def _retry(self, chore: Chore) -> None:
        chore.is_held = False
        self._on_retry(chore)

    def done(self, chore: Chore) -> None:
        if chore.done():
            log.info("mailbox upkeep resumed", extra={"mailbox": self._mailbox, "part": chore.name})

    # -- sweeps

    @property
    def sweep_is_due(self) -> bool:
        return self._sweep_owed and not self.sweeping.is_held

    def ask_sweep(self) -> asyncio.Future[int]:
        """Have the store swept. Returns how many messages were removed."""
        swept: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._sweeps.append(swept)
        self._sweep_owed = True
        return swept

    def swept(self, removed: int) -> None:
        self.done(self.sweeping)
        self._sweep_owed = False
        sweeps, self._sweeps = self._sweeps, []
        for swept in sweeps:
            if not swept.done():
                swept.set_result(removed)
                removed = 0  # every caller gets a result, but only the first gets the count

    def fail_sweeps(self, error: MailboxError) -> None:
        """The callers need not wait for the sweep, which stays due."""
        for swept in self._sweeps:
            fail(swept, error)
        self._sweeps.clear()
