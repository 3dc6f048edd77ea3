"""A canary's connection: like a device's, but without a socket. IOLoop thread only."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

from ..counters import CanaryCounters
from ..hub import Hub
from ..presence.grants import Grant
from ..presence.port import Health, Presence
from ..rules.addressing import Options
from ..rules.box import LaneName
from ..rules.canaries import texts_in
from ..rules.close_codes import CloseReason
from ..rules.frames import text_frame
from ..rules.identity import DeviceIdentity
from ..rules.terms import Later, Left, Terms
from .making_room import OutboxLimits
from .outbox import Outbox

LIMITS: Final = OutboxLimits()


class CanaryConnection:
    """Implements ``hub.Client`` and ``outbox.Taker``. While its lease is valid, it takes queued messages in a later
    turn of the loop, like a socket that is never full.

    :param on_text: is given each text message that it takes
    :param on_end: presence has ended it, and its slot is free
    """

    __slots__ = (
        "_counters",
        "_hub",
        "_is_scheduled",
        "_on_end",
        "_on_text",
        "_outbox",
        "_presence",
        "_wall_clock",
        "connected_at",
        "grant",
        "identity",
        "is_open",
        "remote_ip",
    )

    def __init__(
        self,
        grant: Grant,
        hub: Hub,
        presence: Presence,
        counters: CanaryCounters,
        wall_clock: Callable[[], float],
        on_text: Callable[[str, bytes], None],
        on_end: Callable[[CanaryConnection], None],
    ) -> None:
        self.grant = grant
        self.identity = DeviceIdentity(grant.device_id, grant.device_id, "", (), math.inf)
        self.connected_at, self.remote_ip = int(wall_clock()), ""
        self._hub, self._presence, self._counters, self._wall_clock = hub, presence, counters, wall_clock
        self._on_text, self._on_end = on_text, on_end
        self._outbox = Outbox()
        self._is_scheduled = self.is_open = False

    def __repr__(self) -> str:
        return f"<CanaryConnection {self.grant.device_id!r} {'open' if self.is_open else 'closed'}>"

    def open(self) -> None:
        """Register with presence and the Hub. KeyError if the grant has no slot."""
        self._presence.register(self.grant)
        self.is_open = True
        self._hub.add_canary(self)

    def close(self) -> None:
        """Free the slot. Idempotent; calls no ``on_end``."""
        if self.is_open:
            self.is_open = False
            self._hub.remove_canary(self)
            self._presence.release(self.grant)

    # -- hub.Client

    @property
    def health(self) -> Health:
        return Health(0.0, None, len(self._outbox))

    def send(self, frame: bytes, timestamp_ms: int, terms: Terms | None = None) -> None:
        """Queue one frame. A full outbox drops it."""
        self._counters.routed += 1
        if self._outbox.push(frame, timestamp_ms, LIMITS, terms):
            self.resume()

    def stored(
        self, number: int, payload: bytes, timestamp_ms: int, options: Options | None = None, expires_ms: int = 0
    ) -> None:
        """Canary messages are never stored, so this message is a leak."""
        self.send(text_frame(payload), timestamp_ms)

    def suggest(
        self,
        payload: bytes,
        timestamp_ms: int,
        terms: Terms | None,
        after: int | None = None,
        later: Later | None = None,
    ) -> None:
        """Queue the message: nothing is stored that it could overtake."""
        self.send(text_frame(payload), timestamp_ms, terms)

    def look_again(self) -> None:
        """It has no box."""

    def take_over(self, left: Left) -> None:
        """It is its device's only connection."""

    def is_queued(self, payload: bytes, timestamp_ms: int) -> bool:
        return self._outbox.is_queued(payload, timestamp_ms)

    def challenge(self) -> None:
        """It is alive as long as the loop is."""
        asyncio.get_running_loop().call_soon(self._answer)

    def _answer(self) -> None:
        if self.is_open:
            self._presence.answered(self.grant)

    def regrant(self, grant: Grant) -> None:
        self.grant = grant
        self.resume()

    def resume(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def drop(self, reason: CloseReason) -> None:
        if self.is_open:
            self.close()
            self._on_end(self)

    def end(self, reason: CloseReason, keep_queued: bool = False, notice: bytes = b"") -> None:
        self.drop(reason)

    # -- outbox.Taker

    def now_ms(self) -> float:
        return self._wall_clock() * 1000

    def frame_of(self, payload: bytes, lane: LaneName, number: int) -> bytes | None:
        return None  # all are queued as frames

    def note_expired(self, terms: Terms, body: bytes, timestamp_ms: int) -> None:
        """The canary's deadline counts it as lost."""

    def _flush(self) -> None:
        self._is_scheduled = False
        lease = self.grant.lease
        while self.is_open and self._outbox.has_queued and lease.is_valid(self._presence.clock()):
            frames = self._outbox.take(self)
            if self._outbox.has_queued:  # otherwise all have expired
                self._outbox.given_all()
            for text in texts_in(frames):
                self._on_text(self.grant.device_id, text)
