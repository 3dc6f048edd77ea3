"""Detects that standard output has lost its reader, for commands that may print nothing for hours."""

from __future__ import annotations

import asyncio
import os
import select
import stat
from collections.abc import Coroutine
from typing import Any, Final

from .streams import STDOUT, ReaderGone

CHECK_S: Final = 0.5
"""How soon an idle command notices; a failed write shows it at once."""


async def while_read(work: Coroutine[Any, Any, None]) -> None:
    """Await ``work``, which prints from time to time. If standard output is a pipe and its reader ends, cancel it.

    :raises ReaderGone: the reader has ended
    """
    working = asyncio.ensure_future(work)
    poll = select.poll()
    if _is_pipe(STDOUT):
        poll.register(STDOUT, 0)  # errors are reported in any case
    try:
        while not working.done():
            if poll.poll(0):
                raise ReaderGone("cannot write to standard output: its reader has ended")
            await asyncio.wait([working], timeout=CHECK_S)
        working.result()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


def _is_pipe(number: int) -> bool:
    try:
        mode = os.fstat(number).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
