"""The right to act for a device: grants, the leases that they depend on, and the limits. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..rules.claims import Claim, FencingToken, Generation

RefusalReason = Literal["device", "full", "draining", "presence"]
"""``device``: connections that are alive hold every slot of the device; ``full`` and ``draining``: this server is;
``presence``: it is not known now who holds the device."""
DuplicatePolicy = Literal["challenge", "reject"]
ConnectionDelivery = Literal["all", "one"]
"""Which of a device's connections get its messages."""


class Lease:
    """How long a server may act under one of its epochs. A server that joins again has another epoch and another lease;
    grants of the old lease stay under it.

    :ivar server: the epoch
    :ivar until: monotonic seconds, extended by the adapter; ``math.inf`` if the lease cannot be lost
    :ivar is_shared: the grants are in a store that other servers use too
    """

    __slots__ = ("is_shared", "server", "until")

    def __init__(self, server: str, until: float = math.inf, *, is_shared: bool = False) -> None:
        self.server, self.until, self.is_shared = server, until, is_shared

    def __repr__(self) -> str:
        return f"<Lease of {self.server or 'no server'} until {self.until:g}>"

    def is_valid(self, now: float) -> bool:
        return now < self.until

    def end(self) -> None:
        """End the lease: the server may no longer act under it."""
        self.until = -math.inf


class Grant:
    """The right to act for a device through one connection. Two are equal if their server and generation are.

    :ivar claim: the new connection's claim that it was granted to
    :ivar lease: of the epoch that it was granted to
    """

    __slots__ = ("claim", "device_id", "generation", "lease")

    def __init__(self, device_id: str, claim: Claim, generation: Generation, lease: Lease) -> None:
        self.device_id, self.claim, self.generation, self.lease = device_id, claim, generation, lease

    def __repr__(self) -> str:
        return f"<Grant #{self.generation.number} {self.device_id!r}>"

    @property
    def fencing_token(self) -> FencingToken | None:
        """How the shared store identifies this grant; None if the store is not shared."""
        if not self.lease.is_shared:
            return None
        return FencingToken(self.generation.term, f"{self.claim.server}:{self.claim.number}:{self.generation.number}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grant):
            return NotImplemented
        return self.generation == other.generation and self.claim.server == other.claim.server

    def __hash__(self) -> int:
        return hash(self.generation)


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """:ivar per_device: connections that a device may hold, over all servers
    :ivar total: connections of this server, 0 for no limit
    :ivar challenge_s: how long a challenged connection may stay silent
    """

    per_device: int = 1
    total: int = 0
    policy: DuplicatePolicy = "challenge"
    challenge_s: float = 2.0
