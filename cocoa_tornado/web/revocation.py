"""Closes the connections whose key is no longer trusted."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from ..connection.device_context import OpenSockets
from ..live import Live
from ..rules.close_codes import KEY_REMOVED

WORK_PER_TURN: Final = 1_000
WORK_OF_A_CLOSE: Final = 20
"""To close a connection costs about as much as to judge twenty: a close frame, a log line, the Hub's tables. So at most
50 are closed in one turn of the loop, about 3 ms, and 10,000 devices lose their key without keeping the others waiting.
"""

log = logging.getLogger("cocoa.device")


class Revocation:
    """Checks every connection again on request, and closes those whose key was removed with 4401. IOLoop thread only.

    Messages that are queued for such a device are not sent; with a mailbox they stay in the box.
    """

    def __init__(self, live: Live, sockets: OpenSockets) -> None:
        self._live, self._sockets = live, sockets
        self._again = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin a round; if one is in progress, another one follows."""
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="revocation")

    def stop(self) -> None:
        """Stop checking."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        closed = 0
        while self._again:
            self._again = False
            work = 0
            for connection in self._sockets:
                work += 1
                # A key may come back meanwhile, so check each connection again now.
                if connection.is_open and not self._live.now.keys.still_trusts(connection.identity):
                    connection.end(KEY_REMOVED)
                    closed += 1
                    work += WORK_OF_A_CLOSE
                if work >= WORK_PER_TURN:
                    work = 0
                    await asyncio.sleep(0)
        if closed:
            log.info("key removed", extra={"connections_closed": closed})
