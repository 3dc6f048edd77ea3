"""``local://``: presence within one process. The default.

Gateways of one process may share a :class:`LocalStore`. Then they challenge each other's connections through the relay,
as servers on several machines would. A lease is lost only by :meth:`LocalStore.fence`, which is for tests.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ..relay.messages import Answer, Challenge, Eviction
from ..relay.port import Fate, Relay
from ..rules.claims import Claim
from ..rules.close_codes import REPLACED, CloseReason
from .actions import Acquire, Action, Actions, Admit, Evict, Ping, Refuse, Release, Send, Wake
from .grants import Grant, Lease, RefusalReason, SlotLimits
from .port import Health, Holder, Incumbents, Peer, PresenceCounters, PresenceState, PresenceStatus, Refused
from .rules import Slots
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
        member = self.members.pop(server, None)
        self.table.end(server)
        if member is not None:
            member.lose_lease()


class LocalPresence:
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
        self._store = LocalStore() if store is None else store
        self._relay, self._clock = relay, clock
        self._counters = PresenceCounters()
        self._slots = Slots("", limits)
        self._lease = Lease("")
        self._lease.end()
        self._incumbents: Incumbents | None = None
        self._claims: dict[Claim, asyncio.Future[Grant]] = {}
        self._is_closed = False
        relay.handle(Challenge, self._on_challenge)
        relay.handle(Answer, self._on_answer)
        relay.handle(Eviction, self._on_eviction)

    def __repr__(self) -> str:
        return f"<LocalPresence {self._slots!r}, {self.status().state.value}>"

    @property
    def limits(self) -> Callable[[], SlotLimits]:
        return self._slots.limits

    @limits.setter
    def limits(self, limits: Callable[[], SlotLimits]) -> None:
        self._slots.limits = limits

    @property
    def lease(self) -> Lease:
        return self._lease

    @property
    def clock(self) -> Callable[[], float]:
        return self._clock

    @property
    def counters(self) -> PresenceCounters:
        return self._counters

    @property
    def draining(self) -> bool:
        return self._slots.draining

    @property
    def slots_taken(self) -> int:
        return len(self._slots)

    def start(self, incumbents: Incumbents) -> None:
        self._incumbents = incumbents
        self._join(self._new_epoch())

    def drain(self) -> None:
        self._slots.draining = True

    def status(self) -> PresenceStatus:
        if self._is_closed:
            return PresenceStatus(PresenceState.CLOSED, "closed")
        if not self._lease.is_valid(self._clock()):
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

    async def claim(self, device_id: str) -> Grant:
        granted = self.try_claim(device_id)
        if granted is not None:
            return granted
        if not self._lease.is_valid(self._clock()):
            raise self._refused(self._without_lease())
        claim, actions = self._slots.request(device_id, self._clock())
        verdict: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        self._claims[claim] = verdict
        self._carry_out(actions)
        try:
            return verdict.result() if verdict.done() else await verdict
        except asyncio.CancelledError:
            if verdict.done() and not verdict.cancelled():
                verdict.exception()  # a refusal in the turn of the cancellation: mark it as retrieved
            self._claims.pop(claim, None)
            self._carry_out(self._slots.withdraw(device_id, claim, self._clock()))
            raise
        finally:
            del verdict  # it refers to the error, whose traceback refers to this frame

    async def obstacle(self, device_id: str) -> RefusalReason | None:
        if not self._lease.is_valid(self._clock()):
            return self._without_lease()
        obstacle = self._slots.obstacle(device_id)
        if obstacle is None and len(self._store.table.grants(device_id)) >= self.limits().per_device:
            return "device"
        return obstacle

    def _without_lease(self) -> RefusalReason:
        """Why a new connection is refused. A server that has left after draining gives the same reason as before."""
        return "draining" if self._slots.draining else "presence"

    # -- connections

    def register(self, grant: Grant) -> None:
        self._carry_out(self._slots.register(grant, self._clock()))

    def answered(self, grant: Grant) -> None:
        self._carry_out(self._slots.answered(grant, self._clock()))

    def release(self, grant: Grant) -> None:
        if self._slots.free(grant.device_id, grant.claim):
            self._store.table.release(grant.device_id, grant.claim)
        else:
            self._carry_out(self._slots.release(grant.device_id, grant.claim, self._clock()))

    def evict(self, device_id: str, holder: Holder, reason: CloseReason) -> None:
        eviction = Eviction(device_id, holder.generation, reason)
        if holder.server == self._lease.server:
            self._evict(eviction)
        else:
            self._relay.send(holder.server, eviction)

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

    def health(self, grant: Grant) -> Health | None:
        """Of a connection of this server."""
        return None if self._incumbents is None else self._incumbents.health(grant)

    # -- the lease

    def lose_lease(self) -> None:
        """The store has declared this server's epoch dead: end its connections, and join again."""
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

    # -- the relay

    def _on_challenge(self, sender: str, challenge: Challenge) -> None:
        self._carry_out(self._slots.challenged(challenge, self._clock()))

    def _on_answer(self, sender: str, answer: Answer) -> None:
        self._carry_out(self._slots.heard(answer, self._clock()))

    def _on_eviction(self, sender: str, eviction: Eviction) -> None:
        self._evict(eviction)

    def _evict(self, eviction: Eviction) -> None:
        for grant in self._slots.grants(eviction.device_id):
            if grant.generation == eviction.generation and self._incumbents is not None:
                self._incumbents.evict(grant, eviction.reason)

    def _send(self, send: Send) -> None:
        sent = self._relay.send(send.server, send.message)
        if isinstance(send.message, Challenge):
            sent.add_done_callback(partial(self._on_sent, send.message))

    def _on_sent(self, challenge: Challenge, sent: asyncio.Future[Fate]) -> None:
        if not sent.cancelled() and sent.result() is Fate.NO_SERVER:
            self._carry_out(self._slots.unreachable(challenge, self._clock()))

    # -- carrying out

    def _carry_out(self, actions: Actions) -> None:
        """Carry out actions in order. Those that follow from an answer of the store come after the others."""
        for action in actions:  # the list grows meanwhile
            actions.extend(self._do(action))

    def _do(self, action: Action) -> Sequence[Action]:
        match action:
            case Acquire(device_id, claim):
                return self._acquire(device_id, claim)
            case Admit(grant):
                self._settle(grant.claim, grant)
            case Release(device_id, claim):
                self._store.table.release(device_id, claim)
            case Refuse(claim, reason):
                self._settle(claim, self._refused(reason))
            case Send():
                self._send(action)
            case Wake(device_id, at):
                delay_s = max(0.0, at - self._clock())
                asyncio.get_running_loop().call_later(delay_s, self._expire, device_id, at)
            case Ping(grants):
                self._challenge(grants)
            case Evict(grant):
                self._counters.evictions += 1
                assert self._incumbents is not None
                self._incumbents.evict(grant, REPLACED)
        return ()

    def _acquire(self, device_id: str, claim: Claim) -> Actions:
        answer = self._store.table.claim(device_id, claim, self.limits().per_device)
        if isinstance(answer, Grant):
            return self._slots.granted(answer, self._clock())
        return self._slots.held(device_id, claim, answer, self._clock())

    def _challenge(self, grants: Sequence[Grant]) -> None:
        assert self._incumbents is not None
        self._counters.challenges += 1
        for grant in grants:
            self._incumbents.challenge(grant)

    def _expire(self, device_id: str, at: float) -> None:
        # A timer may fire slightly early: expire() gets the time that it was set for.
        self._carry_out(self._slots.expire(device_id, max(at, self._clock())))

    def _settle(self, claim: Claim, verdict: Grant | Refused) -> None:
        waiting = self._claims.pop(claim, None)
        if waiting is None or waiting.done():
            # It was cancelled in this turn; claim() releases the slot when it runs.
            return
        if isinstance(verdict, Refused):
            waiting.set_exception(verdict)
        else:
            waiting.set_result(verdict)

    def _refused(self, reason: RefusalReason) -> Refused:
        self._counters.refused[reason] = self._counters.refused.get(reason, 0) + 1
        return Refused(reason)
