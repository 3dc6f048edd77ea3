"""This server's events for the operators that are connected to other servers. IOLoop thread only.

Another server subscribes to the events that its operators watch, and renews that every few seconds. Events go to it in
batches of a bounded size, ten a second at most, and the next one only once the relay has taken the last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec

from ..relay.port import Fate
from ..rules.live_events import Backlog, LiveEvent, LiveEvents, Watch
from .requests import user_of
from .servers import News, Servers, Topic

LEASE_S: Final = 6.0
"""A subscription that is not renewed for this long has ended."""
PERIOD_S: Final = 0.1
"""Between two batches."""
MAX_EVENTS: Final = 1_000
MAX_BYTES: Final = 512 * 1024
"""Of the events that wait for one server."""
BATCH_BYTES: Final = 64 * 1024


class WatchRow(msgspec.Struct, frozen=True, kw_only=True):
    """The filter of one operator, as in :class:`~..rules.live_events.Watch`.

    :ivar user: JSON text of the user id
    """

    number: int = 0
    device: str | None = None
    user: str | None = None
    group: str | None = None
    with_text: bool = False


class Subscription(msgspec.Struct, frozen=True):
    """The filters of the operators of one server. It replaces that server's earlier subscription.

    :ivar server: its address in the relay
    """

    server: str
    watches: tuple[WatchRow, ...]


class Subscribed(msgspec.Struct, frozen=True):
    """The answer: events are sent from now on."""


class EventBatch(msgspec.Struct, frozen=True):
    """Events in their order, each with the numbers of the watches that it is for."""

    events: tuple[tuple[LiveEvent, tuple[int, ...]], ...]


SUBSCRIBE: Final = Topic("subscribe", Subscription, Subscribed)
EVENTS: Final = News("events", EventBatch)


def watch_of(row: WatchRow) -> Watch:
    return Watch(row.number, row.device, None if row.user is None else user_of(row.user), row.group, row.with_text)


class Subscriber:
    """Another server, as a sink of this one's events.

    :param backlog: for its events
    :param on_end: is called when there is no such server any more
    """

    def __init__(self, address: str, servers: Servers, backlog: Backlog, on_end: Callable[[], None]) -> None:
        self._address, self._servers, self._backlog, self._on_end = address, servers, backlog, on_end
        self._due: asyncio.TimerHandle | None = None
        self._is_sending = self._is_closed = False
        self.watches: Sequence[Watch] = ()
        self.lease: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Subscriber {self._address} {self._backlog!r}>"

    def put(self, event: LiveEvent, numbers: Sequence[int]) -> None:
        """See ``live_events.Sink``."""
        self._backlog.put(event, numbers)
        self._send_soon()

    def close(self) -> None:
        """Stop sending."""
        for timer in (self._due, self.lease):
            if timer is not None:
                timer.cancel()
        self._is_closed = True

    def _send_soon(self) -> None:
        if self._due is None and not self._is_sending and not self._is_closed:
            self._due = asyncio.get_running_loop().call_later(PERIOD_S, self._send)

    def _send(self) -> None:
        self._due = None
        events = self._backlog.take(BATCH_BYTES)
        if events:
            self._is_sending = True
            batch = EventBatch(tuple((event, tuple(numbers)) for event, numbers in events))
            self._servers.tell(self._address, EVENTS, batch).add_done_callback(partial(self._sent, batch))

    def _sent(self, batch: EventBatch, sent: asyncio.Future[Fate]) -> None:
        self._is_sending = False
        if self._is_closed:
            return  # the server may have subscribed again meanwhile
        fate = Fate.CLOSED if sent.cancelled() else sent.result()
        if fate in (Fate.NO_SERVER, Fate.CLOSED):
            self._on_end()
            return
        if fate is not Fate.ACCEPTED:
            self._backlog.give_up(batch.events)
        if self._backlog:
            self._send_soon()


class Subscribers:
    """The other servers that have subscribed to this one's events.

    :param on_lost: is called with the number of events that are lost on the way to them
    """

    def __init__(self, servers: Servers, live: LiveEvents, on_lost: Callable[[int], None]) -> None:
        self._servers, self._live, self._on_lost = servers, live, on_lost
        self._subscribers: dict[str, Subscriber] = {}

    def __repr__(self) -> str:
        return f"<Subscribers {len(self._subscribers)}>"

    async def answer(self, subscription: Subscription) -> Subscribed:
        """Begin, change or renew a subscription."""
        address = subscription.server
        if address == self._servers.address:
            return Subscribed()  # this server's own operators get its events without one
        subscriber = self._subscribers.get(address)
        if subscriber is None:
            backlog = Backlog(MAX_EVENTS, MAX_BYTES, self._live.lost, self._on_lost)
            subscriber = Subscriber(address, self._servers, backlog, partial(self._end, address))
            self._subscribers[address] = subscriber
        subscriber.watches = tuple(map(watch_of, subscription.watches))
        self._live.add(subscriber)
        if subscriber.lease is not None:
            subscriber.lease.cancel()
        subscriber.lease = asyncio.get_running_loop().call_later(LEASE_S, self._end, address)
        return Subscribed()

    def close(self) -> None:
        """End all subscriptions."""
        for address in list(self._subscribers):
            self._end(address)

    def _end(self, address: str) -> None:
        subscriber = self._subscribers.pop(address, None)
        if subscriber is not None:
            self._live.discard(subscriber)
            subscriber.close()
