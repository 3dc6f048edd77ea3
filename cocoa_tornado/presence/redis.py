"""Presence in Redis 6.2 or later: one device, one holder, over several servers.

This module carries out the decisions of ``rules.py`` about this server's devices; ``redis_member.py`` has the server's
epoch and lease. The scripts are in ``redis_lua.py``; ``redis_link.py`` sends them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from ..redis_store.faults import RedisFault
from ..relay.port import Relay, RelayState
from ..rules.addresses import without_user_info
from ..rules.claims import Claim, Generation
from .actions import Acquire, Actions, Send
from .base import PresenceBase
from .grants import Grant, Lease, RefusalReason, SlotLimits
from .membership import Timing
from .port import Holder, Incumbents, OnVerdict, Peer, PresenceState, PresenceStatus
from .redis_asking import Asking, Context
from .redis_backlog import Asked, Backlog, LookUp
from .redis_deadlines import ClaimDeadlines
from .redis_link import Answers, RedisLink
from .redis_member import RedisMember
from .redis_scripts import Granted, Held, bucket_key

OBSTACLE_PATIENCE_S: Final = 2.0
"""How long a plain GET waits to hear who holds a device."""
SILENT_S: Final = 3.0
"""A server without a beat for this long is not challenged, because it would not answer."""
FENCING_S: Final = 0.2
"""From the time at which FENCE or SETTLE is due until it is done."""

log = logging.getLogger("cocoa.presence")


def lease_clock() -> Callable[[], float]:
    """Monotonic seconds, on Linux including the time for which the machine was suspended."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic if boot_time is None else partial(time.clock_gettime, boot_time)


class RedisPresence(PresenceBase):
    """The :class:`~cocoa_tornado.presence.port.Presence` in Redis. IOLoop thread only.

    :param url: as for :class:`~cocoa_tornado.redis_store.connection.RedisConnection`
    :param relay: between the servers; its address is this server's epoch
    :param name: of this server, for people; called when it has joined
    :param clock: of leases, see :func:`lease_clock`
    """

    def __init__(
        self,
        url: str,
        limits: Callable[[], SlotLimits],
        relay: Relay,
        timing: Timing | None = None,
        name: Callable[[], str] = str,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(limits, relay, clock or lease_clock())
        self._location, self._name = f"Redis at {without_user_info(url)}", name
        self._timing = timing or Timing()
        self._link = RedisLink(url)
        self._member = RedisMember(self, self._link, relay, self._timing, self._location, self._clock)
        self._membership = self._member.rules
        self._backlog = Backlog()
        self._asking = Asking(self, self._backlog, self._link)
        self._deadlines = ClaimDeadlines(self._clock, self._patience_s, self._claims, self._expire)
        self._refusal = ""
        self._foreign: set[bytes] = set()  # keys that have a line in the log
        self._overview: asyncio.Future[None] | None = None
        self._former: Sequence[Lease] = ()  # of connections that are claimed again

    def __repr__(self) -> str:
        return f"<RedisPresence {self._slots!r}, {self._member.phase.value}>"

    @property
    def lease(self) -> Lease:
        return self._membership.lease

    def start(self, incumbents: Incumbents) -> None:
        self._incumbents = incumbents
        self._member.start()

    def status(self) -> PresenceStatus:
        age_s = self._clock() - self._membership.answered_at
        relay = self._relay.status()
        reaches_others = relay.state is RelayState.READY
        state = self._member.phase.state
        detail = relay.detail if state is PresenceState.READY and not reaches_others else self._member.detail()
        return PresenceStatus(state, detail, age_s if age_s < math.inf else None, reaches_others)

    async def close(self, timeout_s: float) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._member.stop()
        self._deadlines.stop()
        await self._asking.close()
        await self._member.end_requests()
        leaving = self._membership.leave(self._clock())
        self._carry_out(self._slots.lose_all(""))
        self._end_look_ups()
        self._member.note_phase()
        await self._member.leave(leaving, timeout_s)
        await self._link.close(timeout_s)

    # -- new connections

    def _may_admit(self) -> bool:
        return not self._is_closed and self._membership.may_admit(self._clock())

    def admits_in(self) -> float | None:
        seconds = self._membership.admits_in(self._clock())
        return None if seconds is None else seconds + FENCING_S

    async def obstacle(self, device_id: str) -> RefusalReason | None:
        if not self._may_admit():
            return self._without_lease()
        obstacle = self._slots.obstacle(device_id)
        if obstacle is not None:
            return obstacle
        try:
            async with asyncio.timeout(OBSTACLE_PATIENCE_S):
                holders = await self.holders([device_id])
        except TimeoutError:
            return "presence"
        return "device" if len(holders.get(device_id, ())) >= self.limits().per_device else None

    def begin_claim(self, device_id: str, on_verdict: OnVerdict) -> Claim:
        """As for any store, but with fewer steps for a device without other state here."""
        now = self._clock()
        claim = None
        if not self._is_closed and self._membership.may_admit(now):
            claim = self._slots.claim_alone(device_id, now)
        if claim is None:
            return super().begin_claim(device_id, on_verdict)
        self._claims[claim] = on_verdict
        self._deadlines.add(device_id, claim, now)
        self._backlog.acquire(Acquire(device_id, claim))
        self._asking.soon()
        return claim

    def _patience_s(self) -> float:
        """How long a new connection may wait."""
        return self._slots.give_up_at(0.0)

    def _acquire(self, acquire: Acquire) -> Actions:
        self._backlog.acquire(acquire)
        self._asking.soon()
        return []

    def _release(self, device_id: str, claim: Claim) -> None:
        if not self._is_closed:
            self._backlog.release(device_id, claim)
            self._asking.soon()

    def _send(self, send: Send) -> None:
        if not self._backlog.send_after(send):
            self._send_now(send)

    # -- holders

    def holders(self, device_ids: Sequence[str]) -> asyncio.Future[Mapping[str, Sequence[Holder]]]:
        found: asyncio.Future[Mapping[str, Sequence[Holder]]] = asyncio.get_running_loop().create_future()
        if self._is_closed or not device_ids:
            found.set_result(self._holders_here(device_ids))
        else:
            self._backlog.look_up(device_ids, found)
            self._asking.soon()
        return found

    def until_overview(self) -> asyncio.Future[None] | None:
        if self._has_overview():
            return None
        if self._overview is None:
            self._overview = asyncio.get_running_loop().create_future()
        return self._overview

    def _has_overview(self) -> bool:
        """False after :meth:`close`: records that are not routed by then are read again."""
        membership = self._membership
        is_ready = self._member.phase.state is PresenceState.READY and membership.knows_others
        return is_ready and membership.lease.is_valid(self._clock())  # the phase is not noted while the loop is stuck

    def _is_leased(self) -> bool:
        now = self._clock()
        return self._membership.lease.is_valid(now) and all([lease.is_valid(now) for lease in self._former])

    def _note_lease(self) -> None:
        if self._former:
            self._former = [lease for lease in self._slots.leases() if lease is not self._membership.lease]
        super()._note_lease()

    @property
    def stamp(self) -> str:
        return self._membership.stamp if self._has_overview() else ""

    def others(self) -> Sequence[str]:
        return self._membership.others()

    def peers(self) -> Sequence[Peer]:
        return [_peer_of(server, self._membership.infos.get(server, "")) for server in self._membership.others()]

    def _holders_here(self, device_ids: Sequence[str]) -> dict[str, list[Holder]]:
        grants = {device_id: self._slots.grants(device_id) for device_id in device_ids}
        return {device_id: [*map(self._holder, of)] for device_id, of in grants.items() if of}

    def _holder(self, grant: Grant) -> Holder:
        return Holder(grant.claim.server, grant.generation, self.health(grant))

    def _complete(self, look_up: LookUp, found: Mapping[str, Sequence[Holder]]) -> None:
        """Add details of this server's own holders, which the store does not have."""
        if look_up.found.done():
            return
        me, result = self._membership.epoch, dict[str, Sequence[Holder]]()
        for device_id in look_up.device_ids:
            elsewhere = [holder for holder in found.get(device_id, ()) if holder.server != me]
            holders = [*elsewhere, *map(self._holder, self._slots.grants(device_id))]
            if holders:
                result[device_id] = sorted(holders, key=_generation)
        look_up.end(result)

    def _end_look_ups(self) -> None:
        for look_up in self._backlog.end():
            look_up.end(self._holders_here(look_up.device_ids))

    # -- asking Redis about devices

    def may_ask(self) -> bool:
        return not self._is_closed and not self._membership.is_joining

    def context(self) -> Context:
        return self._membership.stamp, self._membership.epoch

    def per_device(self) -> int:
        return self._slots.limits().per_device

    def term_over(self, stamp: str) -> None:
        self._member.act(self._membership.term_over(stamp, self._clock()))

    def _is_current(self, context: Context) -> bool:
        return context == self.context() and not self._membership.is_joining

    def give_back(self, context: Context, asked: Asked) -> None:
        """Unanswered questions are asked again; of a term that is over, only the look-ups."""
        if self._is_current(context):
            self._backlog.give_back(asked)
        else:
            self._backlog.give_back(asked._replace(releases=()))
            self._send_all(self._backlog.released(asked.releases))

    def repeat(self, context: Context, asked: Asked) -> None:
        if self._is_current(context):
            for acquire in asked.acquires:
                self._carry_out(self._slots.unanswered(acquire.device_id, acquire.claim, self._clock()))

    def take(self, context: Context, asked: Asked, answers: Answers) -> bool:
        is_current = self._is_current(context)
        again = Asked(asked.releases if answers.released else (), (), ())
        if not answers.released:
            self._send_all(self._backlog.released(asked.releases))
        if isinstance(answers.found, RedisFault):
            again = again._replace(look_ups=asked.look_ups)
        self.give_back(context, again)
        if answers.is_fenced:
            self._member.act(self._membership.epoch_over(context[1], self._clock()))
        elif is_current:
            for acquire, answer in zip(asked.acquires, answers.claims, strict=True):
                try:
                    self._take_claim(acquire, answer)
                except Exception:
                    log.exception("admission failed")
            if answers.claims:
                self._note_refusal(answers.claims)
            if self._former:
                self._note_lease()
        self._note_foreign(answers.foreign)
        if not isinstance(answers.found, RedisFault):
            for look_up, found in zip(asked.look_ups, answers.found, strict=True):
                self._complete(look_up, found)
        return not (again.releases or again.look_ups)

    def _take_claim(self, acquire: Acquire, answer: object) -> None:
        device_id, claim, now = acquire.device_id, acquire.claim, self._clock()
        match answer:
            case Granted(number):
                lease = self._membership.lease
                grant = Grant(device_id, claim, Generation(self._membership.term, number), lease)
                if self._slots.granted_alone(grant, now):
                    self._give(claim, grant)
                else:
                    self._carry_out(self._slots.granted(grant, now))
            case Held(holders):
                claims = [holding.claim for holding in holders]
                silent = [server for server in {claim.server for claim in claims} if self._is_silent(server, now)]
                self._carry_out(self._slots.held(device_id, claim, claims, now, silent))
            case "settling":
                self._carry_out(self._slots.settling(device_id, claim, now))
            case "late" | "foreign":
                if answer == "foreign":
                    self._note_foreign(frozenset({bucket_key(device_id)}))
                self._carry_out(self._slots.late(device_id, claim, now))
            case _:  # rejected before anything was written
                self._carry_out(self._slots.undecided(device_id, claim, now))

    def _is_silent(self, server: str, now: float) -> bool:
        return self._membership.silent_for(server, now) > SILENT_S * self._timing.beat_s

    def _send_all(self, sends: Sequence[Send]) -> None:
        for send in sends:
            self._send_now(send)

    def _note_refusal(self, answers: Sequence[object]) -> None:
        """One line when Redis begins to reject claims, and one when it accepts them again."""
        refusal = next((str(answer) for answer in answers if isinstance(answer, RedisFault)), "")
        if refusal and not self._refusal:
            log.warning("claims rejected", extra={"presence": self._location, "reason": refusal})
        elif self._refusal and not refusal:
            log.info("claims accepted", extra={"presence": self._location})
        self._refusal = refusal

    def _note_foreign(self, keys: frozenset[bytes]) -> None:
        """One line for each key that is not a hash: it counts as empty."""
        for key in sorted(keys - self._foreign):
            log.warning("holders unreadable", extra={"presence": self._location, "key": key.decode()})
        self._foreign |= keys

    # -- for the member

    def info(self) -> str:
        """See ``redis_member.MemberOwner``."""
        total = self.limits().total
        room = None if not total else max(0, total - self.slots_taken)
        return json.dumps({"name": self._name(), "draining": int(self.draining), "room": room}, separators=(",", ":"))

    def entered(self, lease: Lease) -> None:
        """See ``redis_member.MemberOwner``."""
        self._send_all(self._backlog.forget())
        actions = self._slots.rejoin(lease, self._timing.freeze_s, self._timing.proof_s, self._clock())
        self._relay.join(lease.server)
        self._former = self._slots.leases()
        self._carry_out(actions)

    def settled(self) -> None:
        """See ``redis_member.MemberOwner``."""
        self._carry_out(self._slots.settled(self._clock()))

    def fenced(self, lease: Lease) -> None:
        """See ``redis_member.MemberOwner``."""
        self.counters.fenced += 1
        self._send_all(self._backlog.forget())
        self._lose(self._slots.leases(), self._slots.lose_all(""))

    def declared_dead(self) -> None:
        """See ``redis_member.MemberOwner``."""
        self.counters.declared_dead += 1

    def cut(self) -> None:
        """See ``redis_member.MemberOwner``."""
        now = self._clock()
        self._lose([lease for lease in self._slots.leases() if not lease.is_valid(now)], [])

    def _lose(self, leases: Sequence[Lease], actions: Actions) -> None:
        assert self._incumbents is not None
        for lease in leases:
            self._incumbents.lease_lost(lease)
        self._carry_out(actions)

    def beaten(self) -> None:
        """See ``redis_member.MemberOwner``."""
        if self._former and not self._membership.is_joining:
            self._carry_out(self._slots.claim_again(is_settled=self._membership.is_settled))

    def resumed(self) -> None:
        """See ``redis_member.MemberOwner``."""
        if self._incumbents is not None:
            self._incumbents.resumed()

    def changed(self) -> None:
        """See ``redis_member.MemberOwner``."""
        if self._overview is not None and self._has_overview():
            self._overview.set_result(None)
            self._overview = None
        self._note_lease()
        if self._backlog:
            self._asking.soon()


def _generation(holder: Holder) -> Generation:
    return holder.generation


def _peer_of(server: str, info: str) -> Peer:
    """A server of a neighboring release may send more or fewer fields."""
    try:
        told = json.loads(info) if info else {}
    except ValueError:
        told = {}
    told = told if isinstance(told, dict) else {}
    name, room = told.get("name"), told.get("room")
    return Peer(
        server,
        name if isinstance(name, str) else "",
        bool(told.get("draining")),
        room if isinstance(room, int) else None,
    )
