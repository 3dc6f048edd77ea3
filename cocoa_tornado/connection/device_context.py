"""What the connections of a process share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from ..brokers.port import Broker
from ..counters import Counters
from ..hub import Hub
from ..presence.port import Presence
from ..rules.close_codes import CloseReason
from ..rules.device_events import DeviceEvents
from ..rules.frames import Unmask
from ..rules.identity import DeviceIdentity
from ..rules.rate import LineBudget, RateLimit
from ..rules.repeats import Repeats
from ..rules.trace_memory import TraceMemory
from .audio_session import AudioIntake
from .flusher import Flushed, Flusher
from .intake import IntakeGate
from .keepalive import ExpiryCalendar, PingWheel
from .limits import DeviceLimits
from .mail import Mail
from .masks import fastest_unmask

UPLINK_LINES = RateLimit(per_s=1, burst=10)
SHORT_S = 300.0
"""A connection that was shorter counts as one of a device that connects again and again."""
RECONNECT_QUIET_S = 600.0
"""A device that has stayed connected, or disconnected, for this long no longer counts as such."""


class OpenConnection(Protocol):
    """A connection until its socket is closed."""

    identity: DeviceIdentity

    @property
    def is_open(self) -> bool:
        """Whether it is registered with the Hub."""

    def end(self, reason: CloseReason, keep_queued: bool = False) -> None: ...

    def cut(self) -> None:
        """Close the socket, in any phase."""


class OpenSockets:
    """The devices' connections until their sockets are closed. The Hub forgets them earlier, before the closing
    handshake. IOLoop thread only.
    """

    def __init__(self) -> None:
        self._open: set[OpenConnection] = set()
        self._all_closed = asyncio.Event()
        self._all_closed.set()

    def __repr__(self) -> str:
        return f"<OpenSockets {len(self._open)}>"

    def __iter__(self) -> Iterator[OpenConnection]:
        """A snapshot."""
        return iter(list(self._open))

    def add(self, connection: OpenConnection) -> None:
        self._open.add(connection)
        self._all_closed.clear()

    def discard(self, connection: OpenConnection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._all_closed.set()

    async def cut_late(self, timeout_s: float) -> int:
        """Wait until all are closed, and cut those that take longer; return how many were cut."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._all_closed.wait()
        late = list(self._open)
        for connection in late:
            connection.cut()
        return len(late)


@dataclass(slots=True)
class DeviceContext:
    """What every connection of a process shares. Created by the composition root; IOLoop thread only.

    :ivar clock: monotonic seconds; :ivar wall_clock: Unix seconds
    :ivar limits: returns the current ones, which a reload may change
    :ivar audio: None while speech is off
    :ivar mail: None without a mailbox
    :ivar memory: for operators: notes the messages that were queued and not written; None: nothing is remembered
    :ivar unmask: for the frames of clients
    :ivar reconnects: for operators: the devices whose last connections were refused, or short
    """

    hub: Hub
    presence: Presence
    broker: Broker
    counters: Counters
    flusher: Flusher
    wheel: PingWheel[Flushed]
    calendar: ExpiryCalendar[Flushed]
    limits: Callable[[], DeviceLimits]
    messages_topic: str
    intake: IntakeGate
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    audio: AudioIntake | None = None
    mail: Mail | None = None
    unmask: Unmask = field(default_factory=fastest_unmask)
    uplink_lines: LineBudget = field(default_factory=lambda: LineBudget(UPLINK_LINES))
    sockets: OpenSockets = field(default_factory=OpenSockets)
    events: DeviceEvents = field(default_factory=DeviceEvents)
    memory: TraceMemory | None = None
    reconnects: Repeats = field(default_factory=lambda: Repeats(RECONNECT_QUIET_S))
