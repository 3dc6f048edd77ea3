"""Blocked devices: kept in a store through restarts, and on all servers. IOLoop thread only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final, Protocol

import msgspec

from ..errors import CocoaError
from ..hub import Hub
from ..rules.blocked import MAX_BLOCKED, Blocked
from ..rules.close_codes import DISCONNECTED
from .servers import Topic

POLL_S: Final = 2.0
"""How soon a server notices a change that it was not notified of."""
PATIENCE_S: Final = 2.0
OVER_S: Final = 60.0
"""A block is removed from the store this long after its end: the clocks of servers differ."""
FORGOTTEN_AT_ONCE: Final = 500

log = logging.getLogger("cocoa.admin")


class BlockFault(CocoaError):
    """The store is unavailable. ``str()`` is one line for operators."""


class BlockStore(Protocol):
    """The store of the blocks. When a write returns, it is as durable as the store.

    :ivar is_shared: other servers may change it
    """

    is_shared: bool

    async def changed(self) -> bool:
        """Whether the store may have changed since the last :meth:`read`. Cheap. Raises BlockFault."""

    async def read(self) -> Mapping[str, float]:
        """All blocks: the device, and when its block ends; ``math.inf``: never. Raises BlockFault."""

    async def write(self, device_id: str, until: float | None) -> None:
        """Block a device, or unblock it (None). Raises BlockFault."""

    async def forget(self, over: Mapping[str, float]) -> None:
        """Remove blocks that are over, unless they have been changed. Raises BlockFault.

        :param over: as :meth:`read` returned them
        """

    async def close(self) -> None: ...


class Refresh(msgspec.Struct, frozen=True):
    """Read the store again."""


class Refreshed(msgspec.Struct, frozen=True):
    """:ivar closed: connections of blocked devices that were closed"""

    closed: int


REFRESH: Final = Topic("blocks", Refresh, Refreshed)


class Full(Exception):
    """There are ``MAX_BLOCKED`` blocks."""


class Blocks:
    """This server's view of the store.

    :ivar blocked: the table that each handshake looks at
    """

    def __init__(self, store: BlockStore, hub: Hub, wall_clock: Callable[[], float]) -> None:
        self._store, self._hub, self._wall_clock = store, hub, wall_clock
        self.blocked = Blocked()
        self._polling: asyncio.Task[None] | None = None
        self._has_failed = False

    def __repr__(self) -> str:
        return f"<Blocks {self.blocked!r}>"

    async def start(self) -> None:
        """Read the store, within ``PATIENCE_S``; a shared one is read again whenever it changes."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._read()
        except (BlockFault, TimeoutError) as error:
            if not self._store.is_shared:
                raise
            self._note_fault(error)
        if self._store.is_shared:
            self._polling = asyncio.ensure_future(self._poll())

    async def close(self, timeout_s: float) -> None:
        """Stop reading the store. Blocked devices stay blocked."""
        if self._polling is not None:
            self._polling.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._store.close()

    async def write(self, device_id: str, until: float | None) -> None:
        """Block a device, or unblock it (None): in the store, and here.

        :raises BlockFault: the store is unavailable
        :raises Full: too many devices are blocked
        """
        others = {name: at for name, at in self.blocked.until.items() if at > self._wall_clock() and name != device_id}
        if until is not None and len(others) >= MAX_BLOCKED:
            raise Full
        async with asyncio.timeout(PATIENCE_S):
            await self._store.write(device_id, until)
            await self._read()

    async def refresh(self, question: Refresh) -> Refreshed:
        """Read again: a server has changed the store."""
        await self._read()
        return Refreshed(self._close_blocked())

    async def _read(self) -> None:
        found = await self._store.read()
        over_at = self._wall_clock() - OVER_S
        over = dict(islice(((name, until) for name, until in found.items() if until < over_at), FORGOTTEN_AT_ONCE))
        self.blocked.until = {name: until for name, until in found.items() if name not in over}
        self._has_failed = False
        if over:
            with contextlib.suppress(BlockFault):  # the next reading tries again
                await self._store.forget(over)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    if await self._store.changed():
                        await self._read()
                        self._close_blocked()
            except (BlockFault, TimeoutError) as error:
                self._note_fault(error)

    def _close_blocked(self) -> int:
        now, closed = self._wall_clock(), 0
        for device_id in self.blocked.until:
            if self.blocked.holds(device_id, now):
                for client in self._hub.clients_of(device_id):
                    client.end(DISCONNECTED, keep_queued=True)
                    closed += 1
        return closed

    def _note_fault(self, error: Exception) -> None:
        """One line for each outage, which presence or the mailbox reports as such."""
        if not self._has_failed:
            log.info("blocked devices unavailable", extra={"reason": str(error) or "no answer"})
        self._has_failed = True
