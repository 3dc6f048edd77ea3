"""The presence port: who may act for a device.

A server *claims* a device before the upgrade, *registers* what it was granted when the upgrade is done, and *releases*
it when the connection has ended. Everything names the grant and not the device, so a late release cannot free the
slot of the next connection.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..rules.claims import Generation
from ..rules.close_codes import CloseReason
from .rules import Grant, Lease, RefusalReason, SlotLimits


class Refused(Exception):
    """No slot for this connection: 409 for ``device``, 503 for every other reason."""

    def __init__(self, reason: RefusalReason) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Health:
    """How a connection is doing, as its own server sees it.

    :ivar silent_s: since the last sign of life, seconds
    :ivar round_trip_s: of its last ping and pong; None before the first
    :ivar queued: messages that its socket has not taken yet
    """

    silent_s: float
    round_trip_s: float | None
    queued: int


@dataclass(frozen=True, slots=True)
class Holder:
    """One of a device's connections, on whichever server.

    :ivar server: the epoch that it was granted to: the address of the relay
    :ivar health: None where it is not known, as while an upgrade is under way
    """

    server: str
    generation: Generation
    health: Health | None = None


class PresenceState(enum.Enum):
    """What an adapter can do right now."""

    JOINING = "joining"  # no epoch, or no lease: nothing is granted
    READY = "ready"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class PresenceStatus:
    """A snapshot, cheap to make, safe to ask for on the IOLoop at any time.

    :ivar detail: one line for people
    """

    state: PresenceState
    detail: str


@dataclass(slots=True)
class PresenceCounters:
    """Plain counters, for the metrics."""

    challenges: int = 0  # incumbents of this server asked for a sign of life, those of a device together
    evictions: int = 0  # incumbents of this server ended because they were silent
    refused: dict[str, int] = field(default_factory=dict)  # by reason


class Incumbents(Protocol):
    """The connections of this server, as presence reaches them. A grant without a connection is ignored."""

    def challenge(self, grant: Grant) -> None:
        """Ask for a sign of life, to be reported to :meth:`Presence.answered`."""

    def evict(self, grant: Grant, reason: CloseReason) -> None:
        """End the connection. When this returns it does not act for the device any more."""

    def health(self, grant: Grant) -> Health | None: ...

    def lease_lost(self, lease: Lease) -> None:
        """End every connection that was granted under this lease."""


class Presence(Protocol):
    """What a server asks of presence. IOLoop thread only.

    Guarantees of every adapter (the contract suite holds them):

    - *One holder*: no device has more than ``per_device`` grants at a time, over all servers.
    - *Identity*: a grant is released by its own name. A release that is late, or comes twice, does nothing.
    - *Generations* are ordered, never repeat, and grow with every admission.
    - *Challenge*: where a device's slots are taken, the servers that hold them ask their connections for a sign of
      life. All give one: the newcomers are refused. One is gone, or stays silent for ``challenge_s`` and is evicted:
      the first newcomer that waits is admitted. Newcomers of one server wait in line, at most ``rules.MAX_WAITING``.
      ``device`` is said on the word of the holder's server only. One that does not answer within
      ``rules.ANSWER_PATIENCE_S`` more makes it ``presence``.
    - *The owner ends it*: a slot is free once the server that held it has ended its client, or has itself ended.
    - *Leases*: what was granted is good while its lease is valid. When a lease is lost, the adapter ends it, calls
      :meth:`Incumbents.lease_lost`, refuses those who wait with ``presence``, and joins again under a new epoch.
      Nothing is granted in between.
    - *Cancellation* of :meth:`claim` gives up the place in line, or the slot that was granted in the same turn.
    """

    @property
    def limits(self) -> Callable[[], SlotLimits]:
        """Returns those in force, which a reload may change; a device that is in stays in."""

    @limits.setter
    def limits(self, limits: Callable[[], SlotLimits]) -> None: ...

    @property
    def lease(self) -> Lease:
        """Of the epoch under which this server claims now."""

    @property
    def counters(self) -> PresenceCounters: ...

    @property
    def draining(self) -> bool: ...

    @property
    def slots_taken(self) -> int:
        """Slots that this server holds, or has reserved for upgrades under way."""

    def start(self, incumbents: Incumbents) -> None:
        """Join the other servers. Returns at once; where the store is away, that is retried."""

    def try_claim(self, device_id: str) -> Grant | None:
        """:meth:`claim`, if it can be granted at once: None says that only :meth:`claim` can decide.

        Most devices are free when they come; where the store answers at once, they need no task and no future.
        """

    async def claim(self, device_id: str) -> Grant:
        """Take a slot before the upgrade; the caller must :meth:`register` or :meth:`release` it.

        Waits for the store, where there is one, and while an incumbent is challenged; with ``local://`` it suspends for
        nothing else. After it, and after every other wait, look at ``grant.lease`` before acting for the device.

        :raises Refused: there is none
        """

    async def obstacle(self, device_id: str) -> RefusalReason | None:
        """What :meth:`claim` would say without a challenge, as things are now. Nobody is challenged."""

    def register(self, grant: Grant) -> None:
        """The upgrade is done. KeyError if the grant has no slot any more."""

    def answered(self, grant: Grant) -> None:
        """A challenged connection has given a sign of life."""

    def release(self, grant: Grant) -> None:
        """The connection has ended, or the upgrade failed. Idempotent."""

    def evict(self, device_id: str, holder: Holder, reason: CloseReason) -> None:
        """End a device's connection, on whichever server it is. Not confirmed: it may have ended, or its server."""

    def holders(self, device_ids: Sequence[str]) -> asyncio.Future[Mapping[str, Sequence[Holder]]]:
        """The connections of devices over all servers, in the order of their generations, upgrades under way included.

        A device that nobody holds is not in the result. The future is done at once with ``local://``, never fails, and
        futures are done in the order of the calls. Where the store is away, the result has the holders of this server.
        """

    def drain(self) -> None:
        """Refuse every newcomer from now on, with ``draining``, also once there is no lease any more."""

    def status(self) -> PresenceStatus: ...

    async def close(self, timeout_s: float) -> None:
        """Leave: the lease ends, and all slots of this server are free. Its connections must have ended.

        Idempotent, never raises.
        """
