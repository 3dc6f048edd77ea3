"""Takes the batches that this worker reads, and hands the records of the siblings' devices over to them. IOLoop thread.

The rules are in ``rules.py``. Delivering a record through a sibling costs both workers together a tenth of what the
relay costs, because it needs no lookup and records go in portions: at a high rate they are collected for
:data:`GATHER_S`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from ..brokers.port import Batch
from ..counters import Counters
from ..hub import Hub
from ..relay.messages import Fence
from ..relay.port import Relay, RelayState
from ..rules.records import Record
from .announcements import Announcements
from .link import Link
from .pieces import Delivery, merged
from .routes import Route
from .rules import Actions, Ask, Destinations, Phase
from .wire import Hello, Message, News, Records, records_of

GATHER_S: Final = 0.01
"""The least time between two messages to a sibling, at a high rate. A record that comes alone does not wait."""
MOST: Final = 128
"""This many records don't wait either."""
FENCE_AGAIN_S: Final = 1.0
LOOK_S: Final = 0.5

log = logging.getLogger("cocoa.handover")


class Routing(Protocol):
    """The router of this worker."""

    def __call__(self, batch: Batch) -> None: ...

    def deliver(self, batch: Batch) -> None:
        """Route records for devices that are connected here."""

    def note_round_trips(self, records: Sequence[Record]) -> None: ...


class HandOver:
    """The consumer of the broker's batches in a worker that has siblings.

    :param number: of this worker
    :param relay: reaches the siblings too
    :param is_allowed: whether a device has one connection at most, so that one worker has all of them
    :param until_lease: see ``presence.port.Presence``
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        number: int,
        router: Routing,
        hub: Hub,
        until_lease: Callable[[], asyncio.Future[None] | None],
        relay: Relay,
        counters: Counters,
        clock: Callable[[], float],
        is_allowed: Callable[[], bool],
    ) -> None:
        self._number, self._router, self._relay, self._counters = number, router, relay, counters
        self._until_lease = until_lease
        self._clock, self._is_allowed = clock, is_allowed
        self._rules = Destinations(hub.connected)
        self._announcements = Announcements()
        self._links: dict[int, Link] = {}
        self._servers: dict[int, str] = {}
        self._due: deque[Route | Ask] = deque()
        self._is_acting = self._is_closed = False
        self._assignment = 0
        self._is_suspended = False  # this worker has no valid lease
        self._timer: asyncio.TimerHandle | None = None
        hub.watch(self._on_arrival, self._on_departure)
        relay.handle(Fence, self._on_fence)

    def __repr__(self) -> str:
        return f"<HandOver {self._rules!r}>"

    @property
    def siblings(self) -> int:
        """The number of workers to which records can be handed over now."""
        return len(self._links)

    def link(self) -> Link:
        """For a new connection."""
        return Link(self._number, self)

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self.start()
        self._act(self._rules.look(self._clock()))
        for link in self._links.values():
            if link.server != self._relay.server:  # it has joined, or joined again
                link.has_reply = True
                link.schedule(0.0, self._flush)

    def close(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for link in list(self._links.values()):
            link.abort()

    # -- records that this worker reads

    def __call__(self, batch: Batch) -> None:
        delivery = Delivery(batch.records, batch.offsets, batch.sources, partial(self._done, batch))
        # Records of an earlier owner of the partitions may still be in the relay.
        is_allowed = self._is_allowed() and batch.assignment == self._assignment
        self._assignment = batch.assignment
        may_begin = self._rules.phase is not Phase.OFF or self._relay.status().state is RelayState.READY
        self._act(self._rules.take(delivery, self._clock(), is_allowed=is_allowed, may_begin=may_begin))

    def _done(self, batch: Batch) -> None:
        batch.done()
        self._router.note_round_trips(batch.records)

    def _act(self, actions: Actions) -> None:
        """Carry out actions in order; actions that result from them go to the end."""
        self._due += actions
        if self._is_acting:
            return
        self._is_acting = True
        try:
            while self._due:
                self._do(self._due.popleft())
        finally:
            self._is_acting = False
        for link in self._links.values():
            gathered = self._rules.gathered(link.sibling)
            if gathered:
                self._flush_soon(link, gathered)

    def _do(self, action: Route | Ask) -> None:
        if isinstance(action, Ask):
            self._ask(action)
            return
        records, offsets, sources = merged(action.pieces)
        batch = Batch(list(records), partial(self._on_routed, action.number), offsets, sources)
        try:
            self._router(batch)
        except Exception:  # this batch is never done: it is read again after a restart
            log.exception("routing failed")
            self._due += self._rules.failed(action.number)

    def _on_routed(self, number: int) -> None:
        self._act(self._rules.routed(number))

    def _ask(self, ask: Ask) -> None:
        if self._is_closed or not self._rules.awaits(ask.sibling, ask.number):
            return
        server = self._servers.get(ask.sibling, "")
        if server:
            self._relay.send(server, Fence(self._number, ask.number))
        asyncio.get_running_loop().call_later(FENCE_AGAIN_S, self._ask, ask)

    # -- this worker's devices

    def _on_arrival(self, device_id: str) -> None:
        self._announcements.arrived(device_id)
        self._act_later(self._rules.arrived(device_id))
        self._reply_soon()

    def _on_departure(self, device_id: str) -> None:
        self._announcements.left(device_id)
        self._act_later(self._rules.left(device_id))
        self._reply_soon()

    def _act_later(self, actions: Actions) -> None:
        """The connection is just being registered, or removed."""
        if actions:
            self._due += actions
            asyncio.get_running_loop().call_soon(self._act, [])

    def _reply_soon(self) -> None:
        for link in self._links.values():
            link.schedule(GATHER_S, self._flush)

    def _on_fence(self, sender: str, fence: Fence) -> None:
        link = self._links.get(fence.worker)
        # A worker that has died has another address than its successor.
        if link is not None and self._servers.get(fence.worker) == sender:
            link.fences.append(fence.number)
            link.has_reply = True
            self._flush(link)

    # -- links

    def linked(self, link: Link) -> None:
        before = self._links.get(link.sibling)
        if before is not None:
            self.unlinked(before)
            before.abort()
        self._links[link.sibling] = link
        self._announcements.up(link.sibling)
        self._act(self._rules.up(link.sibling))
        log.info("sibling linked", extra={"sibling": link.sibling})
        link.has_reply = True
        self._flush(link)

    def unlinked(self, link: Link) -> None:
        if self._links.get(link.sibling) is not link:
            return
        del self._links[link.sibling]
        self._servers.pop(link.sibling, None)
        self._announcements.down(link.sibling)
        if not self._is_closed:
            log.info("sibling unlinked", extra={"sibling": link.sibling})
            self._act(self._rules.down(link.sibling))

    def writable(self, link: Link) -> None:
        self._flush(link)

    def read(self, link: Link) -> None:
        if link.has_reply and link.is_writable:
            link.schedule(GATHER_S, self._flush)

    def received(self, link: Link, message: Message) -> None:
        if self._links.get(link.sibling) is not link:
            return  # another link to the same sibling has taken its place
        if isinstance(message, Records):
            self._on_records(link, message)
        elif isinstance(message, News):
            self._on_news(link.sibling, message)
        else:
            assert isinstance(message, Hello)

    def _on_news(self, sibling: int, news: News) -> None:
        self._servers[sibling] = news.server
        self._counters.handed_back += sum(map(len, news.returned.values()))
        self._act(self._rules.acknowledged(sibling, news.acknowledged, news.returned))
        self._act(self._rules.announced(sibling, news.upto, news.here, news.gone))
        for fence in news.fences:
            self._act(self._rules.fenced(sibling, fence))

    def _on_records(self, link: Link, portion: Records) -> None:
        """Take the records for devices that are here, and return the rest."""
        link.acknowledged, link.has_reply = portion.number, True
        self._look_at_lease()
        to_return = self._announcements.to_return(portion.device_ids, portion.seen)
        records, offsets, sources = portion.records(), portion.offsets, portion.sources
        self._counters.taken_over += len(records) - len(to_return)
        if to_return:
            link.returned[portion.number] = to_return
            back = frozenset(to_return)
            kept = [at for at in range(len(records)) if at not in back]
            if not kept:
                return
            ours = Delivery(records, offsets, sources, _nothing)
            names = ours.names()
            records, offsets = [records[at] for at in kept], [offsets[at] for at in kept]
            sources = [(names[at], 1) for at in kept]
        self._router.deliver(Batch(records, _nothing, offsets, sources))

    def _look_at_lease(self) -> None:
        """Without a valid lease, other servers may hold this worker's devices: their records are returned."""
        until_lease = self._until_lease()
        if until_lease is not None and not self._is_suspended:
            self._is_suspended = True
            self._announcements.suspend()
            until_lease.add_done_callback(self._on_lease)

    def _on_lease(self, _: object) -> None:
        self._is_suspended = False
        self._look_at_lease()
        if not self._is_suspended:
            self._announcements.resume()
            for link in self._links.values():
                link.has_reply = True
                link.schedule(0.0, self._flush)

    # -- sending

    def _flush_soon(self, link: Link, gathered: int) -> None:
        """Send the collected records: at once, unless the last message was sent just now."""
        wait_s = link.flushed_at + GATHER_S - self._clock()
        if wait_s <= 0 or gathered >= MOST:
            self._flush(link)
        else:
            link.schedule(wait_s, self._flush)

    def _flush(self, link: Link) -> None:
        link.cancel()
        sibling = link.sibling
        if not link.is_writable or self._links.get(sibling) is not link:
            return  # until it is writable
        link.flushed_at = self._clock()
        if link.has_reply or self._announcements.has_news(sibling):
            upto, here, gone = self._announcements.take(sibling)
            link.server = self._relay.server
            news = News(link.server, upto, here, gone, link.acknowledged, link.returned, link.fences)
            link.returned, link.fences, link.has_reply = {}, [], False
            link.send(news)
        for portion in self._rules.portions(sibling):
            whole = merged(portion.pieces)
            self._counters.handed_over += len(whole.records)
            link.send(records_of(portion.number, portion.seen, whole))
            if not link.is_writable:
                return  # until it is


def _nothing() -> None:
    pass
