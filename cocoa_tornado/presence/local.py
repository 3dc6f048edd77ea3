"""``local://``: presence within one process. The default.

Gateways of one process may share a :class:`LocalStore`. Then they challenge each other's connections through the relay,
as servers on several machines would. A lease is lost only by :meth:`LocalStore.fence` and
:meth:`~LocalStore.fence_unnoticed`, which are for tests.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence

from ..relay.port import Relay
from ..rules.claims import Claim
from .actions import Acquire, Actions
from .base import PresenceBase
from .grants import Grant, Lease, RefusalReason, SlotLimits
from .port import Holder, Incumbents, Peer, PresenceState, PresenceStatus
from .table import Table

log = logging.getLogger("cocoa.presence")


class LocalStore:
    """The table and its users: one gateway, or several that share a process and an IOLoop.

    :param term: as for :class:`Table`; a process takes the time of its start
    """

    def __init__(self, term: int = 0) -> None:
        self.table = Table(term)
        self.members: dict[str, LocalPresence] = {}

    def __repr__(self) -> str:
        return f"<LocalStore {self.table!r}>"

    def fence(self, server: str) -> None:
        """Declare an epoch dead, as servers do with one that has stopped: all its devices are free at once.

        Its server is notified before this returns.
        """
        member = self.fence_unnoticed(server)
        if member is not None:
            member.lose_lease()

    def fence_unnoticed(self, server: str) -> LocalPresence | None:
        """As :meth:`fence`, for a server that cannot reach the store: its lease has ended, and it was not notified.

        :returns: the lease, for :meth:`LocalPresence.lose_lease` when it can reach the store again
        """
        member = self.members.pop(server, None)
        self.table.end(server)
        if member is not None:
            member.lease.end()
        return member


class LocalPresence(PresenceBase):
    """The :class:`~cocoa_tornado.presence.port.Presence` that needs no service.

    :param clock: monotonic seconds; the IOLoop's own time
    """

    def __init__(
        self,
        limits: Callable[[], SlotLimits],
        relay: Relay,
        clock: Callable[[], float],
        store: LocalStore | None = None,
    ) -> None:
        super().__init__(limits, relay, clock)
        self._store = LocalStore() if store is None else store
        self._lease = Lease("")
        self._lease.end()

    def __repr__(self) -> str:
        return f"<LocalPresence {self._slots!r}, {self.status().state.value}>"

    @property
    def lease(self) -> Lease:
        return self._lease

    def start(self, incumbents: Incumbents) -> None:
        self._incumbents = incumbents
        self._join(self._new_epoch())

    def status(self) -> PresenceStatus:
        if self._is_closed:
            return PresenceStatus(PresenceState.CLOSED, "closed")
        if not self._may_admit():
            return PresenceStatus(PresenceState.JOINING, "not started")
        return PresenceStatus(PresenceState.READY, "in this process")

    async def close(self, timeout_s: float) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._lease.end()
            self._store.members.pop(self._lease.server, None)
            self._store.table.end(self._lease.server)
            self._carry_out(self._slots.lose_all(""))

    # -- new connections

    def try_claim(self, device_id: str) -> Grant | None:
        if not self._lease.is_valid(self._clock()):
            return None
        claim = self._slots.claim_free(device_id)
        if claim is None:
            return None
        answer = self._store.table.claim(device_id, claim, self._slots.limits().per_device)
        if not isinstance(answer, Grant):
            return None
        self._slots.reserve(answer)
        return answer

    async def obstacle(self, device_id: str) -> RefusalReason | None:
        if not self._may_admit():
            return self._without_lease()
        obstacle = self._slots.obstacle(device_id)
        if obstacle is None and len(self._store.table.grants(device_id)) >= self.limits().per_device:
            return "device"
        return obstacle

    def _may_admit(self) -> bool:
        return self._lease.is_valid(self._clock())

    def _acquire(self, acquire: Acquire) -> Actions:
        device_id, claim = acquire.device_id, acquire.claim
        answer = self._store.table.claim(device_id, claim, self.limits().per_device)
        if isinstance(answer, Grant):
            return self._slots.granted(answer, self._clock())
        return self._slots.held(device_id, claim, answer, self._clock())

    def _release(self, device_id: str, claim: Claim) -> None:
        self._store.table.release(device_id, claim)

    # -- holders

    def holders(self, device_ids: Sequence[str]) -> asyncio.Future[Mapping[str, Sequence[Holder]]]:
        found: asyncio.Future[Mapping[str, Sequence[Holder]]] = asyncio.get_running_loop().create_future()
        grants = {device_id: self._store.table.grants(device_id) for device_id in device_ids}
        found.set_result({device_id: [*map(self._holder, of)] for device_id, of in grants.items() if of})
        return found

    def others(self) -> Sequence[str]:
        members, me = self._store.members, self._lease.server
        return () if len(members) < 2 else [server for server in members if server != me]

    def peers(self) -> Sequence[Peer]:
        return [Peer(server, is_draining=self._store.members[server].draining) for server in self.others()]

    def _holder(self, grant: Grant) -> Holder:
        return Holder(grant.claim.server, grant.generation, self._store.members[grant.claim.server].health(grant))

    # -- the lease

    def lose_lease(self) -> None:
        """The store has declared this server's epoch dead: end its connections, and join again."""
        self.counters.fenced += 1
        lost, epoch = self._lease, self._new_epoch()
        lost.end()
        actions = self._slots.lose_all(epoch)
        log.warning("lease lost", extra={"server": lost.server})
        if self._incumbents is not None:
            self._incumbents.lease_lost(lost)
        self._carry_out(actions)
        self._join(epoch)

    def _new_epoch(self) -> str:
        epoch = secrets.token_hex(8)
        self._slots.server = epoch
        return epoch

    def _join(self, epoch: str) -> None:
        self._lease = Lease(epoch)
        self._store.members[epoch] = self
        self._store.table.join(self._lease)
        self._relay.join(epoch)
        self._note_lease()
