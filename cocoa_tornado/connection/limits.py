"""What one connection may do and how long it may take: contract section 4. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..rules.rate import RateLimit
from .making_room import OutboxLimits


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """The limits of every connection.

    :ivar write_wait_s: for a socket that takes no byte, and for the client's part of the closing handshake
    :ivar inbound: what a client may send, in messages and control frames
    """

    max_message_bytes: int = 512 * 1024
    write_wait_s: float = 10.0
    outbox: OutboxLimits = field(default_factory=OutboxLimits)
    inbound: RateLimit = field(default_factory=lambda: RateLimit(per_s=100, burst=200))
