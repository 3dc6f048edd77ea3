"""The presence port: who may act for a device.

A server *claims* a device before the upgrade, *registers* the grant when the upgrade is done, and *releases* it when
the connection has ended. Every call names the grant and not the device, so a late release cannot free the slot of the
next connection.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..rules.claims import Claim, Generation
from ..rules.close_codes import CloseReason
from .grants import Grant, Lease, RefusalReason, SlotLimits


class Refused(Exception):
    """No slot for this connection: 409 for ``device``, 503 for every other reason."""

    def __init__(self, reason: RefusalReason) -> None:
        self.reason = reason
        super().__init__(reason)


OnVerdict = Callable[["Grant | Refused"], None]
"""Is given the verdict on a new connection, once."""


@dataclass(frozen=True, slots=True)
class Health:
    """The state of a connection, as its own server sees it.

    :ivar silent_s: seconds since the last sign of life
    :ivar round_trip_s: of its last ping and pong; None before the first
    :ivar queued: messages that its socket has not taken yet
    :ivar misses_pong: a pong is overdue
    """

    silent_s: float
    round_trip_s: float | None
    queued: int
    misses_pong: bool = False


@dataclass(frozen=True, slots=True)
class Holder:
    """One of a device's connections, on any server.

    :ivar server: the epoch that it was granted to, which is its address in the relay
    :ivar health: None if it is not known, for example during an upgrade
    """

    server: str
    generation: Generation
    health: Health | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server, as it describes itself.

    :ivar server: its epoch, which is its address in the relay
    :ivar name: for people; may be that of several servers
    :ivar room: how many more connections it takes; None: any number
    """

    server: str
    name: str = ""
    is_draining: bool = False
    room: int | None = None


class PresenceState(enum.Enum):
    """The state of an adapter."""

    JOINING = "joining"  # no epoch yet, or leases of other servers must end first: no grants
    READY = "ready"
    FROZEN = "frozen"  # the lease has ended, but the epoch is not fenced: no grants, no deliveries
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class PresenceStatus:
    """A snapshot; cheap, and safe to take on the IOLoop at any time.

    :ivar detail: one line for people
    :ivar lease_age_s: seconds since the store last confirmed this server's epoch; None: it has not yet, or need not
    :ivar reaches_others: False: messages to or from other servers wait
    """

    state: PresenceState
    detail: str
    lease_age_s: float | None = None
    reaches_others: bool = True


@dataclass(slots=True)
class PresenceCounters:
    """Plain counters, for the metrics and for operators."""

    challenges: int = 0  # times that a device's connections on this server were challenged
    evictions: int = 0  # connections of this server that were silent and ended
    refused: dict[str, int] = field(default_factory=dict)  # by reason
    fenced: int = 0  # times that the store declared this server dead
    declared_dead: int = 0  # other servers that this one declared dead


class Incumbents(Protocol):
    """This server's connections, as presence sees them. A grant without a connection is ignored."""

    def challenge(self, grant: Grant) -> None:
        """Ask for a sign of life; it is reported with :meth:`Presence.answered`."""

    def evict(self, grant: Grant, reason: CloseReason) -> None:
        """End the connection. When this returns, it no longer acts for the device."""

    def health(self, grant: Grant) -> Health | None: ...

    def lease_lost(self, lease: Lease) -> None:
        """End every connection that was granted under this lease. When this returns, none of them acts any more."""

    def regranted(self, old: Grant, new: Grant) -> None:
        """A connection continues under another grant: a new term has begun, and its server has claimed the device
        again. No effect if the connection has ended."""

    def resumed(self) -> None:
        """The lease is valid again. Connections write the messages that have waited meanwhile."""


class Presence(Protocol):
    """The interface of presence. IOLoop thread only.

    Guarantees of every adapter (the contract suite checks them):

    - *One holder*: a device never has more than ``per_device`` grants, over all servers.
    - *Identity*: a release names its grant. A late or repeated release does nothing.
    - *Generations* are ordered, never repeat, and grow with every admission.
    - *Challenge*: if a device's slots are taken, the servers that hold them ask their connections for a sign of life.
      If all give one, the new connections are refused. If one is gone, or is silent for ``challenge_s`` and evicted,
      the first new connection that waits is admitted. New connections wait in a queue per server, of at most
      ``rules.MAX_WAITING``. They are refused with ``device`` only if the holder's server says that it is alive, and
      with ``presence`` if that server does not answer within another ``decision.ANSWER_PATIENCE_S``.
    - *The owner ends it*: a slot is free once the server that held it has ended its connection, or has itself ended.
    - *Leases*: a grant is valid while its lease is. When a lease is lost, the adapter ends it, calls
      :meth:`Incumbents.lease_lost`, refuses waiting connections with ``presence``, and joins again under a new epoch.
      Nothing is granted in between.
    - *Cancellation* of :meth:`claim` gives up the place in the queue, or the slot that was granted in the same turn.
    """

    @property
    def limits(self) -> Callable[[], SlotLimits]:
        """Returns the current limits, which a reload may change. Lower limits end no connection."""

    @limits.setter
    def limits(self, limits: Callable[[], SlotLimits]) -> None: ...

    @property
    def lease(self) -> Lease:
        """Of this server's current epoch."""

    @property
    def clock(self) -> Callable[[], float]:
        """Returns the clock of the leases. It includes pauses of the process and, if possible, of the machine."""

    @property
    def counters(self) -> PresenceCounters: ...

    @property
    def draining(self) -> bool: ...

    @property
    def slots_taken(self) -> int:
        """How many slots this server holds, or has reserved for upgrades, without those of :meth:`exempt`."""

    def exempt(self, device_ids: Collection[str]) -> None:
        """Don't count the slots of these devices, which may also connect when this server is full."""

    def start(self, incumbents: Incumbents) -> None:
        """Join the other servers. Returns at once, and retries while the store is unavailable."""

    def try_claim(self, device_id: str) -> Grant | None:
        """:meth:`claim`, if it can be granted at once; None: only :meth:`claim` can decide.

        Most devices are free when they connect; if the store answers at once, they need no task and no future.
        """

    async def claim(self, device_id: str) -> Grant:
        """Take a slot before the upgrade; the caller must :meth:`register` or :meth:`release` it.

        Waits for the store, if there is one, and for challenges; with ``local://`` it suspends for nothing else. After
        this and every other wait, check ``grant.lease`` before acting for the device.

        :raises Refused: no slot is free
        """

    def begin_claim(self, device_id: str, on_verdict: OnVerdict) -> Claim:
        """:meth:`claim` without a task: the verdict may come before this returns, or in a later turn of the loop.

        A slot that it grants is the caller's, as after :meth:`claim`. The claim is for :meth:`withdraw`.
        """

    def withdraw(self, device_id: str, claim: Claim) -> None:
        """The new connection has disconnected: it gets no answer, and its place or its slot is free. Idempotent, and
        harmless after the answer if the slot was not registered."""

    async def obstacle(self, device_id: str) -> RefusalReason | None:
        """Why :meth:`claim` would be refused now, without a challenge; None: it would not be."""

    def admits_in(self) -> float | None:
        """Seconds until a device that is refused for ``presence`` may retry; None: unknown."""

    def has_slot(self, grant: Grant) -> bool:
        """Whether the grant's slot is still reserved or held. A new term ends those that are not registered yet."""

    def register(self, grant: Grant) -> None:
        """The upgrade is done. KeyError if the grant no longer has a slot."""

    def answered(self, grant: Grant) -> None:
        """A challenged connection has given a sign of life."""

    def release(self, grant: Grant) -> None:
        """The connection has ended, or the upgrade failed. Idempotent."""

    def evict(self, device_id: str, holder: Holder, reason: CloseReason) -> None:
        """End a device's connection, on any server. Not confirmed: the connection or its server may have ended."""

    def holders(self, device_ids: Sequence[str]) -> asyncio.Future[Mapping[str, Sequence[Holder]]]:
        """The devices' connections on all servers, in the order of their generations, including upgrades under way.

        A device without a holder is not in the result. Futures are done in the order of the calls, at once with
        ``local://``, and never fail. While the store is unavailable, they stay pending. After :meth:`close`, the result
        has this server's holders.
        """

    def until_overview(self) -> asyncio.Future[None] | None:
        """None: :meth:`holders` and :meth:`others` cover all servers now, as always with ``local://``.

        Otherwise, this server has not heard of the others since it joined, its lease has ended, or others may have to
        claim their devices again because a new term has begun. The future is done once that may be over: then ask
        again.
        """

    def until_lease(self) -> asyncio.Future[None] | None:
        """None: this server's connections act for their devices now.

        Otherwise, its lease has ended, or that of connections which it has not yet been able to claim again in a new
        term. Other servers may hold their devices, and this one would not know. The future is done once that may be
        over: then ask again. It stays pending after :meth:`close`.
        """

    @property
    def stamp(self) -> str:
        """For ``Relay.send_to_holders``: the current term, if all of its servers are known. '': there is no term, or
        they are not known (:meth:`until_overview`)."""

    def others(self) -> Sequence[str]:
        """The other servers that may hold devices, by their addresses in the relay. Returns at once, from memory."""

    def peers(self) -> Sequence[Peer]:
        """The servers of :meth:`others`, with their descriptions of themselves."""

    def drain(self) -> None:
        """Refuse every new connection from now on with ``draining``, even after the lease has ended."""

    def status(self) -> PresenceStatus: ...

    async def close(self, timeout_s: float) -> None:
        """Leave: end the lease and free all slots of this server. Its connections must have ended.

        Idempotent, never raises.
        """
