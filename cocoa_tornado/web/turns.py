"""An event loop whose turns are bounded, however many sockets are ready (``rules/turns.py``). Linux has what it takes;
elsewhere the loop is asyncio's own.
"""

from __future__ import annotations

import asyncio
import math
import os
import select
import selectors
import sys
from typing import Any

from ..rules.turns import MOST_PER_TURN, share

MOST_SEEN = 4096
"""So many ready sockets are looked at before a turn. The kernel goes round: those left out come first the next time."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """For ``asyncio.Runner``."""
    if sys.platform.startswith("linux"):
        return asyncio.SelectorEventLoop(TurnSelector())
    return asyncio.new_event_loop()


if sys.platform.startswith("linux"):
    HANGING_UP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

    class TurnSelector(selectors.EpollSelector):
        """The standard library's selector, but for :meth:`select`. It asks the kernel itself, by a second descriptor of
        the same epoll instance, because the original always takes all that there is. One thread's.
        """

        def __init__(self) -> None:
            super().__init__()
            self._own = select.epoll.fromfd(os.dup(self.fileno()))
            self._keys: dict[int, selectors.SelectorKey] = {}
            self._turn = 0

        def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
            return self._note(super().register(fileobj, events, data))

        def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
            return self._note(super().modify(fileobj, events, data))

        def unregister(self, fileobj: Any) -> selectors.SelectorKey:
            key = super().unregister(fileobj)
            self._keys.pop(key.fd, None)
            return key

        def close(self) -> None:
            self._own.close()
            super().close()

        def _note(self, key: selectors.SelectorKey) -> selectors.SelectorKey:
            self._keys[key.fd] = key
            if key.events & selectors.EVENT_READ:
                # Who reads comes to the end anyhow; this tells it from words.
                writes = select.EPOLLOUT if key.events & selectors.EVENT_WRITE else 0
                self._own.modify(key.fd, select.EPOLLIN | select.EPOLLRDHUP | writes)
            return key

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """As the original's, but not all that are ready, and the ones that are gone last."""
            if timeout is not None:
                timeout = math.ceil(timeout * 1e3) * 1e-3 if timeout > 0 else 0
            try:
                found = self._own.poll(timeout, MOST_SEEN)
            except InterruptedError:
                return []
            if len(found) > MOST_PER_TURN:
                self._turn += 1
                alive = [ready for ready in found if not ready[1] & HANGING_UP]
                gone = [ready for ready in found if ready[1] & HANGING_UP]
                found = share(alive, gone, self._turn)
            keys, ready = self._keys, []
            for fd, event in found:
                key = keys.get(fd)
                if key is not None:
                    reads = selectors.EVENT_READ if event & ~select.EPOLLOUT else 0
                    writes = selectors.EVENT_WRITE if event & ~(select.EPOLLIN | select.EPOLLRDHUP) else 0
                    ready.append((key, (reads | writes) & key.events))
            return ready
