"""An event loop whose turns are bounded, however many sockets are ready, and on whose clock pauses of the process take
no time (``rules/turns.py``). Linux has what it takes; elsewhere the loop is asyncio's own.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import select
import selectors
import sys
import time
from collections.abc import Callable
from typing import Any

from ..rules.turns import MOST_PER_TURN, TurnClock, among_the_gone, room_left


def new_event_loop() -> asyncio.AbstractEventLoop:
    """For ``asyncio.Runner``."""
    if sys.platform.startswith("linux"):
        return TurnLoop()
    return asyncio.new_event_loop()


def loop_clock() -> Callable[[], float]:
    """The clock of the running event loop, which its timers go by; the machine's, where none runs."""
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:
        return time.monotonic


class TurnLoop(asyncio.SelectorEventLoop):
    """Its deadlines leave out the pauses of the process. Whatever must know real time asks ``time.monotonic``."""

    def __init__(self) -> None:
        self._turn_clock = TurnClock(time.monotonic())
        super().__init__(TurnSelector(self._turn_clock))

    def time(self) -> float:
        return self._turn_clock.read(time.monotonic())


if sys.platform.startswith("linux"):
    HANGING_UP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

    class TurnSelector(selectors.EpollSelector):
        """The standard library's selector, but for :meth:`select`. It asks the kernel itself, by a second descriptor of
        the same epoll instance, because the original always takes all that there is. One thread's.
        """

        def __init__(self, clock: TurnClock | None = None) -> None:
            super().__init__()
            self._clock = clock or TurnClock(time.monotonic())
            self._own = select.epoll.fromfd(os.dup(self.fileno()))
            self._keys: dict[int, selectors.SelectorKey] = {}

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
            self._clock.begin_wait(time.monotonic(), timeout)
            try:
                found = self._own.poll(timeout, MOST_PER_TURN)
            except InterruptedError:
                return []
            finally:
                self._clock.end_wait(time.monotonic())
            if len(found) == MOST_PER_TURN:
                found = self._choose(found)
            keys, ready = self._keys, []
            for fd, event in found:
                key = keys.get(fd)
                if key is not None:
                    reads = selectors.EVENT_READ if event & ~select.EPOLLOUT else 0
                    writes = selectors.EVENT_WRITE if event & ~(select.EPOLLIN | select.EPOLLRDHUP) else 0
                    ready.append((key, (reads | writes) & key.events))
            return ready

        def _choose(self, found: list[tuple[int, int]]) -> list[tuple[int, int]]:
            """There may be more of them: find those who are alive behind those who are gone."""
            alive: dict[int, int] = {}
            gone: dict[int, int] = {}
            room = MOST_PER_TURN
            while room:
                known = len(alive) + len(gone)
                for fd, event in found:
                    if fd not in alive:
                        (gone if event & HANGING_UP else alive)[fd] = event
                if len(found) < room or len(alive) + len(gone) < known + len(found):
                    break  # these were the last; or the kernel has gone all the way round
                room = room_left(len(alive), len(gone))
                if room:
                    found = self._own.poll(0, room)
            return [*alive.items(), *among_the_gone(len(alive), list(gone.items()), random.getrandbits(16))]
