"""How the workers of one machine find each other: Unix sockets in a folder that the parent has made."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .link import Link

AGAIN_S: Final = 0.5
NOT_UNDERSTOOD_S: Final = 30.0
"""Until the next attempt at a sibling that is not understood."""

log = logging.getLogger("cocoa.handover")


@dataclass(frozen=True, slots=True)
class Meeting:
    """The folder of the workers' sockets, and this worker's number.

    :ivar folder: only this user may enter it
    :ivar number: of this worker, from 1 to ``count``
    """

    folder: Path
    number: int
    count: int

    def path(self, number: int) -> str:
        return str(self.folder / f"{number}.sock")


class Sockets:
    """Each worker listens, and connects to those with lower numbers, again whenever a connection has ended.

    :param make_link: the protocol of a new connection
    """

    def __init__(self, meeting: Meeting, make_link: Callable[[], Link]) -> None:
        self._meeting, self._make_link = meeting, make_link
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Listen and connect. If that fails, no records are handed over."""
        meeting, loop = self._meeting, asyncio.get_running_loop()
        path = meeting.path(meeting.number)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # of a process that was killed
            self._server = await loop.create_unix_server(self._make_link, path)
        except OSError as error:
            log.warning("siblings unreachable", extra={"path": path, "error": str(error)})
        for number in range(1, meeting.number):
            self._tasks.append(loop.create_task(self._keep_connected(meeting.path(number))))

    async def _keep_connected(self, path: str) -> None:
        while True:
            try:
                _, link = await asyncio.get_running_loop().create_unix_connection(self._make_link, path)
            except OSError as error:  # it is starting, or restarted
                log.debug("sibling unreachable", extra={"path": path, "error": str(error)})
            else:
                await link.ended
                if not link.is_understood:
                    await asyncio.sleep(NOT_UNDERSTOOD_S)
            await asyncio.sleep(AGAIN_S)

    async def close(self) -> None:
        """Stop listening and connecting. Open connections stay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                os.unlink(self._meeting.path(self._meeting.number))
