"""The live stream of events."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from tornado.iostream import StreamClosedError

from ..errors import IdentityError
from ..rules.identity import find_token
from ..web.device_handler import has_been_left
from .handlers import AdminHandler, WrongKind, judge_token
from .requests import read_filter
from .subscribers import WatchRow
from .watchers import Watcher

HEARTBEAT_S: Final = 10.0
"""Without events a comment is sent so often, for proxies and for clients that look for a dead connection."""
EXPIRED: Final = "the token is no longer valid"
BEGUN: Final = b": all events from now on\n\n"
HEARTBEAT: Final = b":\n\n"


class EventsHandler(AdminHandler):
    """``GET events?device=&user=&group=``: server-sent events over all servers, from the moment of the answer until the
    token expires, or its key is removed."""

    _watcher: Watcher | None = None

    async def get(self) -> None:
        chosen = read_filter(self.request.query_arguments)
        if self.context.devices.presence.draining:
            self._refuse_for_now("The server stops")
            return
        row = WatchRow(device=chosen.device, user=chosen.user, group=chosen.group, with_text=self.may_see_text)
        watcher = self._watcher = self.admin.watchers.add(row)
        if watcher is None:
            self._refuse_for_now("Too many watchers")
            return
        try:
            stream = self.http_stream
            if stream is not None and (stream.closed() or has_been_left(stream)):
                return
            await self.admin.watchers.subscribe()
            await self._show(watcher)
        except StreamClosedError:
            pass
        finally:
            self.admin.watchers.remove(watcher)

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if self._watcher is not None:
            self._watcher.end("the client has gone")

    async def _show(self, watcher: Watcher) -> None:
        """Write until the stream ends. A slow client delays only its own events."""
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Accel-Buffering", "no")
        clock = self.context.devices.clock
        expiry = asyncio.get_running_loop().call_later(self._left_s, watcher.end, EXPIRED)
        try:
            self.write(BEGUN)
            judge_at = clock() + HEARTBEAT_S
            while await self._is_taken(watcher):
                if clock() >= judge_at:
                    judge_at = clock() + HEARTBEAT_S
                    if not await self._is_permitted():
                        watcher.end(EXPIRED)
                events = await watcher.next_events(HEARTBEAT_S)
                if watcher.ended.done():
                    break
                self.write(events or HEARTBEAT)
        finally:
            expiry.cancel()
        self.write(f": {watcher.ended.result()}\n\n")

    async def _is_taken(self, watcher: Watcher) -> bool:
        """Wait until the socket has taken everything that was written. False: end the stream."""
        taken = self.flush()
        futures: list[asyncio.Future[Any]] = [taken, watcher.ended]
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        if taken.done():
            taken.result()
        return not watcher.ended.done()

    @property
    def _left_s(self) -> float:
        """Seconds until the token expires."""
        assert self.operator is not None
        expires_at = self.operator.expires_at + self.context.policy.leeway_s
        return max(0.0, expires_at - self.context.devices.wall_clock())

    async def _is_permitted(self) -> bool:
        """Whether the token is still valid, and its key in use."""
        live = self.context.live.now
        if live.admin_keys is None:
            return False
        found = find_token((), self.request.headers.get("Authorization"), None)
        try:
            await judge_token(found.token, live.admin_keys, live.keys, self.context.devices.wall_clock())
        except (IdentityError, WrongKind):
            return False
        return True

    def _refuse_for_now(self, message: str) -> None:
        self.refuse(503, message, {"Retry-After": str(self.context.retry_after_s)})
