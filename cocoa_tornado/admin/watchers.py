"""The operators that watch events on this server, with queues that all servers fill. IOLoop thread only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from ..rules.live_events import Backlog, LiveEvent, LiveEvents, Watch
from .servers import Servers
from .subscribers import EVENTS, SUBSCRIBE, EventBatch, Subscription, WatchRow, watch_of

MAX_WATCHERS: Final = 32
"""Contract section 10: of one server."""
RENEW_S: Final = 2.0
"""Between two rounds of subscriptions: a server that starts is watched within this time."""
PERIOD_S: Final = 0.1
"""Between two writes to one watcher."""
MAX_EVENTS: Final = 1_000
MAX_BYTES: Final = 512 * 1024
"""Of the events that wait for one watcher."""
CHUNK_BYTES: Final = 64 * 1024


class Watcher:
    """One stream of events.

    :ivar row: its filter
    :ivar ended: done once the stream is over, with the reason in a few words
    :ivar missing: the servers that did not answer the last subscription
    """

    def __init__(self, row: WatchRow, backlog: Backlog) -> None:
        self.row = row
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.missing: frozenset[str] = frozenset()
        self._backlog = backlog
        self._has_events = asyncio.Event()
        self._next_at = 0.0

    def __repr__(self) -> str:
        return f"<Watcher {self.row.number} {self._backlog!r}>"

    def put(self, event: LiveEvent) -> None:
        self._backlog.put(event, (self.row.number,))
        self._has_events.set()

    def end(self, reason: str) -> None:
        """Idempotent."""
        if not self.ended.done():
            self.ended.set_result(reason)
        self._has_events.set()

    async def next_events(self, patience_s: float) -> bytes:
        """Wait for events, and return the first ones as server-sent events; b"": there are none, or it has ended."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience_s):
                await self._has_events.wait()
        except TimeoutError:
            return b""
        wait_s = self._next_at - loop.time()
        if wait_s > 0:
            await asyncio.wait([self.ended], timeout=wait_s)
        if self.ended.done():
            return b""
        self._next_at = loop.time() + PERIOD_S
        events = self._backlog.take(CHUNK_BYTES)
        if not self._backlog:
            self._has_events.clear()
        return b"".join(server_sent(event, with_text=self.row.with_text) for event, _ in events)


class Watchers:
    """The streams of this server, and the subscriptions to other servers that they need. Implements
    ``live_events.Sink``.

    :param on_lost: called with the number of events that were lost because a watcher is too slow
    """

    def __init__(self, servers: Servers, live: LiveEvents, on_lost: Callable[[int], None]) -> None:
        self._servers, self._live, self._on_lost = servers, live, on_lost
        self._watchers: dict[int, Watcher] = {}
        self._last_number = 0
        self._renewing: asyncio.Task[None] | None = None
        self._is_closed = False
        self.watches: Sequence[Watch] = ()
        servers.listen(EVENTS, self._on_batch)

    def __repr__(self) -> str:
        return f"<Watchers {len(self._watchers)}>"

    def __len__(self) -> int:
        return len(self._watchers)

    def add(self, row: WatchRow) -> Watcher | None:
        """Begin to watch: this server's events from now on, those of others after :meth:`subscribe`. None: there are
        too many watchers, or the server stops.

        :param row: its number is replaced
        """
        if len(self._watchers) >= MAX_WATCHERS or self._is_closed:
            return None
        self._last_number += 1
        backlog = Backlog(MAX_EVENTS, MAX_BYTES, self._live.lost, self._on_lost)
        watcher = Watcher(msgspec.structs.replace(row, number=self._last_number), backlog)
        self._watchers[self._last_number] = watcher
        self._follow()
        return watcher

    def remove(self, watcher: Watcher) -> None:
        """The client of this stream has disconnected. Idempotent."""
        if self._watchers.pop(watcher.row.number, None) is not None:
            self._follow()

    def close(self) -> None:
        """End all streams now, because the server stops. Idempotent."""
        self._is_closed = True
        for watcher in list(self._watchers.values()):
            watcher.end("the server stops")
            self.remove(watcher)

    async def subscribe(self) -> None:
        """Subscribe to the events of all servers. Those of a server that does not answer are lost until it does."""
        rows = tuple(watcher.row for watcher in self._watchers.values())
        _, names = await self._servers.ask(SUBSCRIBE, Subscription(self._servers.address, rows))
        missing = frozenset(names)
        for watcher in self._watchers.values():
            for server in sorted(missing - watcher.missing):
                watcher.put(self._live.lost(None, server))
            watcher.missing = missing

    # -- events

    def put(self, event: LiveEvent, numbers: Iterable[int]) -> None:
        """See ``live_events.Sink``."""
        for number in numbers:
            watcher = self._watchers.get(number)
            if watcher is not None:
                watcher.put(event)

    def _on_batch(self, batch: EventBatch) -> None:
        for event, numbers in batch.events:
            self.put(event, numbers)

    # -- subscriptions

    def _follow(self) -> None:
        """The watchers have changed."""
        self.watches = tuple(watch_of(watcher.row) for watcher in self._watchers.values())
        if not self._watchers:
            self._live.discard(self)
            if self._renewing is not None:
                self._renewing.cancel()
                self._renewing = None
            return
        self._live.add(self)
        if self._renewing is None:
            self._renewing = asyncio.ensure_future(self._renew())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            await self.subscribe()


def server_sent(event: LiveEvent, *, with_text: bool) -> bytes:
    """One event of ``text/event-stream``. The data is one line: JSON has no line end."""
    return b"event: %b\ndata: %b\n\n" % (event.event.encode(), msgspec.json.encode(shown(event, with_text=with_text)))


def shown(event: LiveEvent, *, with_text: bool) -> dict[str, object]:
    """The JSON of an event, as operators see it."""
    row: dict[str, object] = {"event": event.event, "at": _timestamp(event.at), "server": event.server}
    if event.event == "lost":
        return row | {"lost": event.lost}
    row |= {"device_id": event.device_id, "user_id": msgspec.Raw((event.user or "null").encode())}
    message = event.message
    if message is None:
        return row | {"code": event.code}
    row |= {name: getattr(message, name) for name in ("id", "priority", "interim", "length", "age_ms")}
    return row | {"text": message.text} if with_text else row


def _timestamp(unix_s: float) -> str:
    """RFC 3339 in UTC, with milliseconds."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
