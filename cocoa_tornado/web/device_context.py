"""What the connections of a process share, and the limits that each of them keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..brokers.port import Broker
from ..hub import Hub
from ..metrics import Counters
from ..rules.keepalive import ExpiryCalendar, PingWheel
from ..rules.outbox import OutboxLimits
from ..rules.rate import LineBudget, RateLimit
from .uplink import UplinkBudget

if TYPE_CHECKING:
    from .audio_session import AudioIntake
    from .box_feed import Mail
    from .connection import DeviceConnection
    from .flusher import Flusher

UPLINK_LINES = RateLimit(per_s=1, burst=10)


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """Contract section 4, as far as it concerns one connection. Replaced as a whole on a reload."""

    max_message_bytes: int = 512 * 1024
    write_wait_s: float = 10.0
    outbox: OutboxLimits = field(default_factory=OutboxLimits)
    inbound: RateLimit = field(default_factory=lambda: RateLimit(per_s=100, burst=200))


@dataclass(slots=True)
class DeviceContext:
    """What every connection of a process shares. Made by the composition root; IOLoop thread only.

    :ivar clock: monotonic seconds; :ivar wall_clock: Unix seconds
    :ivar audio: None while speech is off
    :ivar mail: None without a mailbox
    """

    hub: Hub
    broker: Broker
    counters: Counters
    flusher: Flusher
    wheel: PingWheel[DeviceConnection]
    calendar: ExpiryCalendar[DeviceConnection]
    limits: DeviceLimits
    messages_topic: str
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    audio: AudioIntake | None = None
    mail: Mail | None = None
    uplink_budget: UplinkBudget = field(default_factory=UplinkBudget)
    uplink_lines: LineBudget = field(default_factory=lambda: LineBudget(UPLINK_LINES))
    tasks: set[asyncio.Task[None]] = field(default_factory=set)  # one for each socket, until it is closed
