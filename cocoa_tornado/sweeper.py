"""Removes expired messages from the mailbox, in small steps. IOLoop thread only."""

from __future__ import annotations

import asyncio
import logging

from .errors import MailboxError
from .mailboxes.port import Mailbox

PAUSE_S = 1.0
BUSY_PAUSE_S = 0.05
"""The pause after a step that removed something: removing many old messages must not delay new ones."""

log = logging.getLogger("cocoa.mailbox")


class Sweeper:
    """Calls :meth:`Mailbox.sweep` repeatedly, from :meth:`start` to :meth:`stop`."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while True:
            removed = 0
            try:
                removed = await self._mailbox.sweep()
            except MailboxError:
                pass  # the mailbox has logged it
            except Exception:
                log.exception("sweep failed")
            await asyncio.sleep(BUSY_PAUSE_S if removed else PAUSE_S)
