"""The common part of the presence adapters: new connections that wait for an answer, messages of the relay, and
carrying out the actions of the rules."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import assert_never

from ..relay.messages import Answer, Challenge, Eviction
from ..relay.port import Fate, Relay
from ..rules.claims import Claim
from ..rules.close_codes import REPLACED, CloseReason
from .actions import Acquire, Action, Actions, Admit, Evict, Ping, Refuse, Regrant, Release, Send, Supersede, Wake
from .grants import Grant, Lease, RefusalReason, SlotLimits
from .port import Health, Holder, Incumbents, OnVerdict, PresenceCounters, Refused
from .rules import Slots

NO_CLAIM = Claim("", 0)

log = logging.getLogger("cocoa.presence")


class PresenceBase:
    """The part of :class:`~cocoa_tornado.presence.port.Presence` that does not depend on the store.

    :param clock: of leases
    """

    def __init__(self, limits: Callable[[], SlotLimits], relay: Relay, clock: Callable[[], float]) -> None:
        self._relay, self._clock = relay, clock
        self._counters = PresenceCounters()
        self._slots = Slots("", limits)
        self._incumbents: Incumbents | None = None
        self._claims: dict[Claim, OnVerdict] = {}
        self._is_closed = False
        self._leased: asyncio.Future[None] | None = None
        relay.handle(Challenge, self._on_challenge)
        relay.handle(Answer, self._on_answer)
        relay.handle(Eviction, self._on_eviction)

    # -- implemented by each adapter

    def _may_admit(self) -> bool:
        """Whether new connections may be granted anything now."""
        raise NotImplementedError  # each adapter has its own

    def _acquire(self, acquire: Acquire) -> Sequence[Action]:
        raise NotImplementedError  # each adapter has its own

    def _release(self, device_id: str, claim: Claim) -> None:
        """Free a slot in the store."""
        raise NotImplementedError  # each adapter has its own

    def _send(self, send: Send) -> None:
        """Send a message, behind the releases of the same device that come before it."""
        self._send_now(send)

    # -- state

    @property
    def limits(self) -> Callable[[], SlotLimits]:
        return self._slots.limits

    @limits.setter
    def limits(self, limits: Callable[[], SlotLimits]) -> None:
        self._slots.limits = limits

    @property
    def lease(self) -> Lease:
        raise NotImplementedError  # each adapter has its own

    @property
    def clock(self) -> Callable[[], float]:
        return self._clock

    @property
    def counters(self) -> PresenceCounters:
        return self._counters

    @property
    def draining(self) -> bool:
        return self._slots.draining

    def until_overview(self) -> asyncio.Future[None] | None:
        return None

    def until_lease(self) -> asyncio.Future[None] | None:
        if self._is_leased():
            return None
        if self._leased is None:
            self._leased = asyncio.get_running_loop().create_future()
        return self._leased

    def _is_leased(self) -> bool:
        """Whether all connections of this server have a valid lease."""
        return self.lease.is_valid(self._clock())

    def _note_lease(self) -> None:
        """A lease has become valid, or connections without one have ended."""
        if self._leased is not None and self._is_leased():
            self._leased.set_result(None)
            self._leased = None

    @property
    def stamp(self) -> str:
        return ""

    @property
    def slots_taken(self) -> int:
        return len(self._slots)

    def exempt(self, device_ids: Collection[str]) -> None:
        self._slots.uncounted = device_ids

    def drain(self) -> None:
        self._slots.draining = True

    # -- new connections

    def try_claim(self, device_id: str) -> Grant | None:
        return None

    def begin_claim(self, device_id: str, on_verdict: OnVerdict) -> Claim:
        if not self._may_admit():
            on_verdict(self._refused(self._without_lease()))
            return NO_CLAIM
        claim, actions = self._slots.request(device_id, self._clock())
        self._claims[claim] = on_verdict
        self._carry_out(actions)
        return claim

    def withdraw(self, device_id: str, claim: Claim) -> None:
        self._claims.pop(claim, None)
        self._carry_out(self._slots.withdraw(device_id, claim, self._clock()))

    async def claim(self, device_id: str) -> Grant:
        granted = self.try_claim(device_id)
        if granted is not None:
            return granted
        verdict: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        claim = self.begin_claim(device_id, partial(_settle, verdict))
        try:
            return verdict.result() if verdict.done() else await verdict
        except asyncio.CancelledError:
            if verdict.done() and not verdict.cancelled():
                verdict.exception()  # a refusal in the turn of the cancellation: mark it as retrieved
            self.withdraw(device_id, claim)
            raise
        finally:
            del verdict  # it refers to the error, whose traceback refers to this frame

    def _without_lease(self) -> RefusalReason:
        """Why a new connection is refused without a lease. A server that has left after draining gives the same reason
        as before."""
        return "draining" if self._slots.draining else "presence"

    def admits_in(self) -> float | None:
        return None

    # -- connections

    def has_slot(self, grant: Grant) -> bool:
        return self._slots.grant_of(grant.device_id, grant.claim) is not None

    def register(self, grant: Grant) -> None:
        self._carry_out(self._slots.register(grant, self._clock()))

    def answered(self, grant: Grant) -> None:
        self._carry_out(self._slots.answered(grant, self._clock()))

    def release(self, grant: Grant) -> None:
        if self._slots.free(grant.device_id, grant.claim):
            self._release(grant.device_id, grant.claim)
        else:
            self._carry_out(self._slots.release(grant.device_id, grant.claim, self._clock()))

    def evict(self, device_id: str, holder: Holder, reason: CloseReason) -> None:
        eviction = Eviction(device_id, holder.generation, reason)
        if holder.server == self.lease.server:
            self._evict(eviction)
        else:
            self._relay.send(holder.server, eviction)

    def health(self, grant: Grant) -> Health | None:
        """Of a connection of this server."""
        return None if self._incumbents is None else self._incumbents.health(grant)

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

    def _send_now(self, send: Send) -> None:
        sent = self._relay.send(send.server, send.message)
        if isinstance(send.message, Challenge):
            sent.add_done_callback(partial(self._on_sent, send.message))

    def _on_sent(self, challenge: Challenge, sent: asyncio.Future[Fate]) -> None:
        if not sent.cancelled() and sent.result() is Fate.NO_SERVER:
            self._carry_out(self._slots.unreachable(challenge, self._clock()))

    # -- carrying out

    def _carry_out(self, actions: Actions) -> None:
        """Carry out actions in order; actions that result from an answer of the store go to the end."""
        for action in actions:  # the list grows meanwhile
            actions.extend(self._do(action))

    def _do(self, action: Action) -> Sequence[Action]:
        match action:
            case Acquire():
                return self._acquire(action)
            case Admit(grant):
                self._give(grant.claim, grant)
            case Release(device_id, claim):
                self._release(device_id, claim)
            case Refuse(claim, reason):
                self._give(claim, self._refused(reason))
            case Send():
                self._send(action)
            case Wake(device_id, at):
                delay_s = max(0.0, at - self._clock())
                asyncio.get_running_loop().call_later(delay_s, self._expire, device_id, at)
            case Ping(grants):
                self._challenge(grants)
            case Evict(grant):
                self._counters.evictions += 1
                self._end(grant)
            case Supersede(grant):
                self._end(grant)
            case Regrant(old, new):
                assert self._incumbents is not None
                self._incumbents.regranted(old, new)
            case _:
                assert_never(action)
        return ()

    def _end(self, grant: Grant) -> None:
        assert self._incumbents is not None
        self._incumbents.evict(grant, REPLACED)

    def _challenge(self, grants: Sequence[Grant]) -> None:
        assert self._incumbents is not None
        self._counters.challenges += 1
        for grant in grants:
            self._incumbents.challenge(grant)

    def _expire(self, device_id: str, at: float) -> None:
        # A timer may fire slightly early: expire() gets the time that it was set for.
        self._carry_out(self._slots.expire(device_id, max(at, self._clock())))

    def _give(self, claim: Claim, verdict: Grant | Refused) -> None:
        """Answer the new connection. One that was withdrawn gets no answer: :meth:`withdraw` releases its slot.

        If taking the answer fails, only this connection is affected.
        """
        on_verdict = self._claims.pop(claim, None)
        if on_verdict is None:
            return
        try:
            on_verdict(verdict)
        except Exception:
            log.exception("admission failed")
            if isinstance(verdict, Grant) and self._slots.is_reserved(verdict.device_id, claim):
                self.release(verdict)

    def _refused(self, reason: RefusalReason) -> Refused:
        self._counters.refused[reason] = self._counters.refused.get(reason, 0) + 1
        return Refused(reason)


def _settle(future: asyncio.Future[Grant], verdict: Grant | Refused) -> None:
    if future.done():
        # It was cancelled in this turn; claim() releases the slot when it runs.
        return
    if isinstance(verdict, Refused):
        future.set_exception(verdict)
    else:
        future.set_result(verdict)
