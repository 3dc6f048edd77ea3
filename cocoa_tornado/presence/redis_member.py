"""Keeps this server a member of those that share presence in Redis: carries out what ``membership.py`` decides.

It joins, beats, fences servers that have stopped, and logs each change of its phase. Its owner carries out the
consequences for the devices.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, assert_never

from ..redis_store.faults import RedisFault
from ..relay.port import Relay
from . import membership as member
from .grants import Lease
from .membership import Beat, Cut, Fence, Fenced, Join, Joined, Leave, Membership, Settle, Settled, Timing
from .port import Peer
from .redis_cautions import cautions_of
from .redis_link import RedisLink
from .redis_phases import PresencePhase, phase_of
from .redis_scripts import EpochOver, TermOver

log = logging.getLogger("cocoa.presence")


class MemberOwner(Protocol):
    """The owner of the devices under the epochs of a :class:`RedisMember`."""

    def info(self) -> str:
        """This server's description of itself for other servers."""

    def peers(self) -> Sequence[Peer]:
        """The other servers."""

    def entered(self, lease: Lease) -> None:
        """The server has a new epoch."""

    def settled(self) -> None:
        """The term is settled."""

    def fenced(self, lease: Lease) -> None:
        """Another server has declared this one dead."""

    def declared_dead(self) -> None:
        """This server has declared another one dead."""

    def cut(self) -> None:
        """Connections without a valid lease have to end."""

    def beaten(self) -> None:
        """Redis has answered a beat, of an epoch that may be over."""

    def resumed(self) -> None:
        """The lease is valid again."""

    def changed(self) -> None:
        """The state or the phase may have changed."""


class RedisMember:
    """One server. IOLoop thread only.

    :param relay: its inbox has to be read while this server beats
    :param location: of Redis, for people
    :param clock: of leases
    :ivar rules: decide; pass their results to :meth:`act`
    :ivar phase: the last logged phase
    :ivar fault: why the last attempt to join or to beat has failed; '': it has not
    """

    def __init__(
        self,
        owner: MemberOwner,
        link: RedisLink,
        relay: Relay,
        timing: Timing,
        location: str,
        clock: Callable[[], float],
    ) -> None:
        self._owner, self._link, self._relay = owner, link, relay
        self._timing, self._location, self._clock = timing, location, clock
        self.rules = Membership(timing, lambda: secrets.token_hex(8))
        self.phase, self.fault = PresencePhase.STARTING, ""
        self._info_sent = ""
        self._cautions: list[str] = []
        self._is_cut = self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<RedisMember {self.rules!r}, {self.phase.value}>"

    def detail(self) -> str:
        """The phase in one line, for operators."""
        match self.phase:
            case PresencePhase.SETTLING:
                return "new connections wait until the leases of the last term have ended"
            case PresencePhase.READY | PresencePhase.STARTING | PresencePhase.CLOSED:
                return self._location if self.phase is PresencePhase.READY else self.phase.value
            case _ if self.fault:
                return self.fault
            case _ if self.rules.is_joining:
                return "Redis was restarted or replaced"
            case _:  # this process was paused, for example
                return f"the last answer of Redis is older than {self._timing.freeze_s:g} s"

    def start(self) -> None:
        """Join. Returns at once, and retries while Redis is unavailable."""
        self.act(self.rules.start(self._clock()))

    def stop(self) -> None:
        """Stop beating. Pending requests continue until :meth:`end_requests`."""
        self._is_closed = True
        self._set_timer(math.inf)

    async def end_requests(self) -> None:
        """Cancel them, and wait until they have ended."""
        ending = [*self._tasks]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def leave(self, actions: member.Actions, timeout_s: float) -> None:
        """Report the end of this server to Redis. If Redis does not answer in time, the other servers fence this one
        later.

        :param actions: of :meth:`Membership.leave`
        """
        for action in actions:
            assert isinstance(action, Leave)
            try:
                async with asyncio.timeout(timeout_s):
                    await self._link.send(action)
            except (RedisFault, TermOver, EpochOver, TimeoutError) as error:
                log.info("leave failed", extra={"reason": str(error) or type(error).__name__})

    def act(self, actions: member.Actions) -> None:
        """Carry out the decisions of the rules, and react to changes."""
        for action in actions:
            self._do(action)
        self.note_phase()
        self._set_timer(self.rules.wake_at)

    def _do(self, action: member.Action) -> None:
        match action:
            case Join():
                self._begin(self._join(action))
            case Beat():
                self._begin(self._beat(action))
            case Fence() | Settle() | Leave():
                self._begin(self._send(action))
            case Joined(lease):
                self._is_cut, self._info_sent = False, ""
                self._owner.entered(lease)
            case Settled():
                self._owner.settled()
            case Fenced(lease):
                log.warning("lease lost", extra={"server": lease.server})
                self._owner.fenced(lease)
            case Cut():
                self._is_cut = not self.rules.lease.is_valid(self._clock())
                self._owner.cut()
            case _:
                assert_never(action)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- requests

    async def _join(self, join: Join) -> None:
        try:
            run, reply, sent_at = await self._link.join(join, time.time(), self._clock)
        except RedisFault as fault:
            self.fault = str(fault)
            self.act(self.rules.join_failed(join, self._clock()))
            return
        self.fault = ""
        self.act(self.rules.joined(join, run, reply.term, reply.is_settled, sent_at, self._clock()))
        await self._look_at_settings()

    async def _beat(self, beat: Beat) -> None:
        info = self._owner.info()
        try:
            reply = await self._link.beat(beat, "" if info == self._info_sent else info)
        except TermOver:
            self.act(self.rules.term_over(beat.stamp, self._clock()))
            return
        except EpochOver:
            self.act(self.rules.epoch_over(beat.epoch, self._clock()))
            return
        except RedisFault as fault:
            self.fault = str(fault)
            self.act(self.rules.beat_failed(beat, self._clock()))
            return
        was_frozen = not self.rules.lease.is_valid(self._clock())
        self.fault, self._is_cut, self._info_sent = "", False, info
        self.act(self.rules.beaten(beat, reply.mine, reply.is_settled, reply.beats, reply.infos, self._clock()))
        self._owner.beaten()
        if was_frozen and self.rules.lease.is_valid(self._clock()):
            self._owner.resumed()

    async def _send(self, action: Fence | Settle | Leave) -> None:
        names = {peer.server: peer.name for peer in self._owner.peers()}  # as long as it is among them
        try:
            has_changed = await self._link.send(action)
        except (RedisFault, EpochOver):
            return  # it is done again, if it is still due
        except TermOver:
            self.act(self.rules.term_over(action.stamp, self._clock()))
            return
        if isinstance(action, Fence) and has_changed:
            self._owner.declared_dead()
            log.warning(
                "server fenced", extra={"server": action.epoch, "server_name": names.get(action.epoch) or "unknown"}
            )

    async def _look_at_settings(self) -> None:
        try:
            facts = await self._link.facts()
        except RedisFault:
            return  # beats notice that as well
        cautions = [] if facts is None else cautions_of(facts, self._timing)
        for caution in cautions:
            if caution not in self._cautions:
                log.warning("two servers may hold a device", extra={"presence": self._location, "reason": caution})
        self._cautions = cautions

    # -- time

    def _set_timer(self, wake_at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now, until = self._clock(), self.rules.lease.until
        at = min(wake_at, until) if until > now else wake_at  # the end of the lease is an event for the log
        if at < math.inf and not self._is_closed:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, at - now), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.rules.inbox_read_at = self._relay.last_read_at
        self.act(self.rules.wake(self._clock()))

    # -- for operators

    def note_phase(self) -> None:
        """One line for each change."""
        before, self.phase = self.phase, self._phase_now()
        self._owner.changed()
        if self.phase is before:
            return
        extra: dict[str, object] = {"presence": self._location}
        match self.phase:
            case PresencePhase.READY:
                extra |= {"server": self.rules.epoch, "term": self.rules.term}
                log.info("presence ready", extra=extra)
            case PresencePhase.SETTLING:
                extra |= {"server": self.rules.epoch, "term": self.rules.term}
                log.info("presence settling", extra=extra | {"seconds": round(self._timing.watch_s, 1)})
            case PresencePhase.JOINING | PresencePhase.SILENT:
                if before not in (PresencePhase.JOINING, PresencePhase.SILENT):
                    log.warning("presence unavailable", extra=extra | {"reason": self.detail()})
            case PresencePhase.FROZEN:
                log.warning("presence frozen", extra=extra | {"reason": self.detail()})
            case PresencePhase.CUT:
                log.warning("presence cut", extra=extra | {"reason": self.detail()})

    def _phase_now(self) -> PresencePhase:
        if self._is_closed:
            return PresencePhase.CLOSED
        return phase_of(self.rules, self.fault, is_cut=self._is_cut, now=self._clock())
