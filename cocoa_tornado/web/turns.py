"""An event loop with bounded turns for any number of ready sockets, and with a clock that skips pauses of the process
(``rules/turns.py``). Linux only; elsewhere the loop is asyncio's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import select
import selectors
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..rules.turns import MAX_PER_TURN, TurnClock, among_the_gone, room_left


def new_event_loop() -> asyncio.AbstractEventLoop:
    """For ``asyncio.Runner``."""
    if sys.platform.startswith("linux"):
        return TurnLoop()
    return asyncio.new_event_loop()


def loop_clock() -> Callable[[], float]:
    """The clock of the running event loop, which its timers use; the machine's clock if none runs."""
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:
        return time.monotonic


class TurnLoop(asyncio.SelectorEventLoop):
    """Its deadlines skip the pauses of the process. Code that needs real time uses ``time.monotonic``."""

    def __init__(self) -> None:
        self._turn_clock = TurnClock(time.monotonic())
        super().__init__(TurnSelector(self._turn_clock))

    def time(self) -> float:
        return self._turn_clock.read(time.monotonic())


if sys.platform.startswith("linux"):
    HANGING_UP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

    class TurnSelector(selectors.BaseSelector):
        """A selector for asyncio's event loop, on epoll. One thread only.

        It does not subclass the standard library's, which registers a descriptor without RDHUP, so that each change
        would take a second system call, and which does more than an event loop needs: a third of a handshake's Python
        calls.
        """

        def __init__(self, clock: TurnClock | None = None) -> None:
            self._clock = clock or TurnClock(time.monotonic())
            self._epoll = select.epoll()
            self._keys: dict[int, selectors.SelectorKey] = {}

        def fileno(self) -> int:
            return self._epoll.fileno()

        def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
            fd = _descriptor(fileobj)
            self._epoll.register(fd, _interest(events))
            key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
            return key

        def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
            before = self.get_key(fileobj)
            if before.events != events:
                self._epoll.modify(before.fd, _interest(events))
            key = self._keys[before.fd] = before._replace(events=events, data=data)
            return key

        def unregister(self, fileobj: Any) -> selectors.SelectorKey:
            key = self._keys.pop(self.get_key(fileobj).fd)
            # Closing a descriptor has already removed it from epoll.
            with contextlib.suppress(OSError):
                self._epoll.unregister(key.fd)
            return key

        def get_key(self, fileobj: Any) -> selectors.SelectorKey:
            return self._keys[_descriptor(fileobj)]

        def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
            """By descriptor; a view."""
            return self._keys

        def close(self) -> None:
            self._epoll.close()
            self._keys.clear()

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            """As the standard library's, but bounded, and with sockets whose peer has disconnected last."""
            if timeout is not None:
                timeout = math.ceil(timeout * 1e3) * 1e-3 if timeout > 0 else 0
            self._clock.begin_wait(time.monotonic(), timeout)
            try:
                found = self._epoll.poll(timeout, MAX_PER_TURN)
                if timeout and not found:
                    # A stopped process resumes with its wait over, and Python then returns without polling again. Data
                    # that arrived meanwhile must be handled before the timers that are due now.
                    found = self._epoll.poll(0, MAX_PER_TURN)
            except InterruptedError:
                return []
            finally:
                self._clock.end_wait(time.monotonic())
            if len(found) == MAX_PER_TURN:
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
            """There may be more ready sockets: find the live ones behind those whose peer has disconnected."""
            alive: dict[int, int] = {}
            gone: dict[int, int] = {}
            room = MAX_PER_TURN
            while room:
                known = len(alive) + len(gone)
                for fd, event in found:
                    if fd not in alive:
                        (gone if event & HANGING_UP else alive)[fd] = event
                if len(found) < room or len(alive) + len(gone) < known + len(found):
                    break  # these were the last, or the kernel's queue has wrapped around
                room = room_left(len(alive), len(gone))
                if room:
                    found = self._epoll.poll(0, room)
            return [*alive.items(), *among_the_gone(len(alive), list(gone.items()), random.getrandbits(16))]

    def _descriptor(fileobj: Any) -> int:
        return fileobj if isinstance(fileobj, int) else int(fileobj.fileno())

    def _interest(events: int) -> int:
        """The events for epoll. RDHUP distinguishes the peer's end from data."""
        reads = select.EPOLLIN | select.EPOLLRDHUP if events & selectors.EVENT_READ else 0
        return reads | (select.EPOLLOUT if events & selectors.EVENT_WRITE else 0)
