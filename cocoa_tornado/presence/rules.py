"""Who gets a slot, who waits, who must go: one server's side of presence. Pure; the adapters carry it out.

What a *store* decides (the table of ``local://``, or scripts in Redis) is who holds a device; what is decided here is
when to ask it, whom to challenge, and what newcomers are told. A newcomer's life::

    request --+-- Acquire --granted--> reserved --register--> held --release--> gone
              |      `----held----.       |                     |
              +-- (own slots taken)+--> in line <---------------+--(silent in a challenge)--> evicted
              |                            |                             |
              `-- Refuse                   +--(every holder is alive)--> refused
                                           `--(a holder is gone)--> Acquire

Every connection is judged by its own server: a challenge from a newcomer there and one from another server are one
challenge. Where several newcomers wait on one server, only the first asks the store; the line ends when no holder's
answer is outstanding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ..relay.messages import Answer, Challenge
from ..rules.claims import Claim, Generation

RefusalReason = Literal["device", "full", "draining", "presence"]
"""``device``: every slot of the device is taken by connections that are alive; ``full`` and ``draining``: this server;
``presence``: who holds the device cannot be known now."""
DuplicatePolicy = Literal["challenge", "reject"]

MAX_WAITING: Final = 16
"""Newcomers of one server that may wait for a device; one more is refused at once."""
MAX_ROUNDS: Final = 2
"""Challenges that a line of newcomers may send: who lost the device to another newcomer once may ask that one too."""
ANSWER_PATIENCE_S: Final = 1.0
"""How much longer than ``challenge_s`` the answer of another server may take."""


class Lease:
    """Until when a server may act under one of its epochs. It belongs to that epoch for good: a server that joins again
    has another lease, and what was granted under the old one stays under the old one.

    :ivar server: the epoch
    :ivar until: monotonic seconds, extended by the adapter; ``math.inf`` where a lease cannot be lost
    """

    __slots__ = ("server", "until")

    def __init__(self, server: str, until: float = math.inf) -> None:
        self.server, self.until = server, until

    def __repr__(self) -> str:
        return f"<Lease of {self.server or 'nobody'} until {self.until:g}>"

    def is_valid(self, now: float) -> bool:
        return now < self.until

    def end(self) -> None:
        """Nothing may be done under it any more."""
        self.until = -math.inf


class Grant:
    """The right to act for a device through one connection. Two are equal if their server and generation are.

    :ivar claim: the newcomer's attempt that it was granted to
    :ivar lease: that of the epoch it was granted to
    """

    __slots__ = ("claim", "device_id", "generation", "lease")

    def __init__(self, device_id: str, claim: Claim, generation: Generation, lease: Lease) -> None:
        self.device_id, self.claim, self.generation, self.lease = device_id, claim, generation, lease

    def __repr__(self) -> str:
        return f"<Grant #{self.generation.number} {self.device_id!r}>"

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
    :ivar challenge_s: how long an incumbent may stay silent
    """

    per_device: int = 1
    total: int = 0
    policy: DuplicatePolicy = "challenge"
    challenge_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask the store for the device; its answer goes to :meth:`Slots.granted` or :meth:`Slots.held`, its silence to
    :meth:`Slots.undecided`."""

    device_id: str
    claim: Claim


@dataclass(frozen=True, slots=True)
class Release:
    """Free the claim's slot in the store, if it has one."""

    device_id: str
    claim: Claim


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask these connections of one device for a sign of life."""

    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class Evict:
    """End the connection; before anything that stands behind it in the list."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to another server."""

    server: str
    message: Challenge | Answer


@dataclass(frozen=True, slots=True)
class Wake:
    """Call :meth:`Slots.expire` for the device at ``at``, in the units of ``now``."""

    device_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Admit:
    """The slot is the newcomer's: reserved until :meth:`Slots.register` or :meth:`Slots.release`."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Refuse:
    claim: Claim
    reason: RefusalReason


Action = Acquire | Release | Ping | Evict | Send | Wake | Admit | Refuse
"""What is to be done, in the order of the list."""
Actions = list[Action]


class _Slot:
    """A grant of this server: reserved or held, and challenged or not.

    :ivar deadline: when it will have been silent for too long; None while nobody has challenged it
    :ivar challengers: who is told what becomes of it
    """

    __slots__ = ("challengers", "deadline", "grant", "is_held")

    def __init__(self, grant: Grant, challengers: tuple[Claim, ...]) -> None:
        self.grant = grant
        self.is_held = False
        self.deadline: float | None = None
        self.challengers = challengers


class _Line:
    """This server's newcomers that wait for one device, in the order of their arrival.

    :ivar name: of its challenges: the claim that began it
    :ivar asking: the claim that the store has not answered yet
    :ivar may_be_free: something has happened since the store was asked
    :ivar holders: those of the device, as the store has said
    :ivar answers: of the holders that were challenged: whether they have given a sign of life
    :ivar rounds: of challenges so far
    :ivar deadline: for the answers of other servers
    :ivar is_late: it has passed
    :ivar early: challengers of those of ``waiting`` that other servers have been told of as holders
    """

    __slots__ = (
        "answers",
        "asking",
        "deadline",
        "early",
        "holders",
        "is_late",
        "may_be_free",
        "name",
        "rounds",
        "waiting",
    )

    def __init__(self, first: Claim) -> None:
        self.name = first
        self.waiting = [first]
        self.asking: Claim | None = None
        self.may_be_free = True
        self.holders: tuple[Claim, ...] = ()
        self.answers: dict[Claim, bool] = {}
        self.rounds = 0
        self.deadline: float | None = None
        self.is_late = False
        self.early: dict[Claim, tuple[Claim, ...]] = {}


class _Device:
    __slots__ = ("line", "slots")

    def __init__(self) -> None:
        self.slots: list[_Slot] = []
        self.line: _Line | None = None

    def find(self, claim: Claim) -> _Slot | None:
        for slot in self.slots:
            if slot.grant.claim == claim:
                return slot
        return None


class Slots:
    """The slots of one server, and the newcomers that wait. Not thread-safe; every call is O(slots of a device).

    Each method returns what is to be done.

    :param server: its epoch
    :param limits: returns those in force; a device that is in stays in
    """

    def __init__(self, server: str, limits: Callable[[], SlotLimits]) -> None:
        self.server = server
        self.limits = limits
        self.draining = False
        self._devices: dict[str, _Device] = {}
        self._number = 0
        self._taken = 0

    def __repr__(self) -> str:
        return f"<Slots {self._taken} taken, {len(self._devices)} devices>"

    def __len__(self) -> int:
        """Slots taken: held and reserved."""
        return self._taken

    def taken(self, device_id: str) -> int:
        """Slots of this server that a device holds or has reserved."""
        device = self._devices.get(device_id)
        return len(device.slots) if device else 0

    def grants(self, device_id: str) -> Sequence[Grant]:
        """Those of this server."""
        device = self._devices.get(device_id)
        return [slot.grant for slot in device.slots] if device else ()

    def obstacle(self, device_id: str) -> RefusalReason | None:
        """Why a newcomer would not be admitted at once, as far as this server knows without the store."""
        if self.draining:
            return "draining"
        if self.taken(device_id) >= self.limits().per_device:
            return "device"
        return "full" if self._is_full else None

    @property
    def _is_full(self) -> bool:
        return 0 < self.limits().total <= self._taken

    # -- a device that nobody else is after

    def claim_free(self, device_id: str) -> Claim | None:
        """Claim a device that has neither a slot nor a newcomer here; None where it has, or there is an obstacle: then
        :meth:`request` decides.

        It is for stores that answer at once. The store is to be asked before anything else happens here: what it grants
        goes to :meth:`reserve`; a claim that it refuses is forgotten, and the newcomer makes a :meth:`request`.
        """
        if device_id in self._devices or self.draining or self._is_full:
            return None
        self._number += 1
        return Claim(self.server, self._number)

    def reserve(self, grant: Grant) -> None:
        """The store has granted what :meth:`claim_free` has claimed: the slot is reserved, as after :class:`Admit`."""
        device = self._devices[grant.device_id] = _Device()
        device.slots.append(_Slot(grant, ()))
        self._taken += 1

    def free(self, device_id: str, claim: Claim) -> bool:
        """Free the claim's slot if nobody waits for it; else do nothing, and :meth:`release` decides.

        :returns: whether it was freed: then the store is to release it, and nothing else is to be done
        """
        device = self._devices.get(device_id)
        if device is None or device.line is not None or len(device.slots) != 1:
            return False
        slot = device.slots[0]
        if slot.challengers or slot.grant.claim != claim:
            return False
        del self._devices[device_id]
        self._taken -= 1
        return True

    # -- newcomers

    def request(self, device_id: str, now: float) -> tuple[Claim, Actions]:
        """Ask for a slot; the claim names the newcomer from now on.

        Cases, in order: draining, or no slot in all; the device's slots are all taken here, and nobody may or need be
        challenged; the line is too long; else it joins the line, at whose head it is at once where nobody waits.
        """
        self._number += 1
        claim = Claim(self.server, self._number)
        device = self._devices.get(device_id)
        obstacle = self.obstacle(device_id)
        if obstacle in ("draining", "full"):
            return claim, [Refuse(claim, obstacle)]
        line = None if device is None else device.line
        if obstacle is not None and line is None and not self._may_challenge(device_id):
            return claim, [Refuse(claim, obstacle)]
        if line is not None and len(line.waiting) >= MAX_WAITING:
            return claim, [Refuse(claim, "device")]
        if device is None:
            device = self._devices[device_id] = _Device()
        if line is None:
            device.line = _Line(claim)
        else:
            line.waiting.append(claim)
        todo: Actions = []
        self._go_on(device_id, device, now, todo)
        return claim, todo

    def _may_challenge(self, device_id: str) -> bool:
        """Not those who got their slot this very moment: they are alive."""
        return self.limits().policy == "challenge" and any(slot.is_held for slot in self._devices[device_id].slots)

    def granted(self, grant: Grant, now: float) -> Actions:
        """The store has given the device to a claim. Where nobody waits for it any more, or there is no slot in all, it
        is given back."""
        device_id, claim = grant.device_id, grant.claim
        device = self._devices.get(device_id)
        line = None if device is None else device.line
        if device is None or line is None:
            return [Release(device_id, claim)]
        line.asking, line.may_be_free = None, True
        early = line.early.pop(claim, ())
        todo: Actions = []
        if claim not in line.waiting:
            todo.append(Release(device_id, claim))
            self._tell(device_id, claim, early, "gone", now, todo)
        elif self._is_full:
            line.waiting.remove(claim)
            todo += [Release(device_id, claim), Refuse(claim, "full")]
            self._tell(device_id, claim, early, "gone", now, todo)
        else:
            line.waiting.remove(claim)
            device.slots.append(_Slot(grant, early))
            self._taken += 1
            todo.append(Admit(grant))
        self._go_on(device_id, device, now, todo)
        return todo

    def held(self, device_id: str, claim: Claim, holders: Sequence[Claim], now: float) -> Actions:
        """The store has refused the claim: these hold the device."""
        device = self._devices.get(device_id)
        if device is None or device.line is None:
            return []
        todo: Actions = []
        device.line.asking, device.line.holders = None, tuple(holders)
        self._tell(device_id, claim, device.line.early.pop(claim, ()), "gone", now, todo)
        self._go_on(device_id, device, now, todo)
        return todo

    def undecided(self, device_id: str, claim: Claim, now: float) -> Actions:
        """The store does not answer in time: what it may have granted is given back, and the next in line asks."""
        device = self._devices.get(device_id)
        if device is None or device.line is None or device.line.asking != claim:
            return []
        line = device.line
        line.asking, line.may_be_free = None, True
        todo: Actions = [Release(device_id, claim)]
        if claim in line.waiting:
            line.waiting.remove(claim)
            todo.append(Refuse(claim, "presence"))
        self._tell(device_id, claim, line.early.pop(claim, ()), "gone", now, todo)
        self._go_on(device_id, device, now, todo)
        return todo

    def withdraw(self, device_id: str, claim: Claim, now: float) -> Actions:
        """The newcomer has left. What it was granted, or will be, is given back. Idempotent."""
        device = self._devices.get(device_id)
        if device is None:
            return []
        if device.line is None or claim not in device.line.waiting:
            return self.release(device_id, claim, now)
        device.line.waiting.remove(claim)
        todo: Actions = []
        if claim != device.line.asking:
            self._tell(device_id, claim, device.line.early.pop(claim, ()), "gone", now, todo)
        self._go_on(device_id, device, now, todo)
        return todo

    # -- connections

    def register(self, grant: Grant, now: float) -> Actions:
        """The upgrade is done: a reserved slot becomes a held one. KeyError if the grant has no slot."""
        device = self._devices.get(grant.device_id)
        slot = None if device is None else device.find(grant.claim)
        if device is None or slot is None:
            raise KeyError(grant)
        slot.is_held = True
        todo: Actions = []
        if device.line is not None:
            # To have registered just now is its sign of life.
            device.line.answers[grant.claim] = True
        if slot.challengers:
            self._hear(grant.device_id, slot, now, todo)
        if device.line is not None:
            self._go_on(grant.device_id, device, now, todo)
        return todo

    def answered(self, grant: Grant, now: float) -> Actions:
        """A connection has given a sign of life. Nothing happens where it was not challenged."""
        device = self._devices.get(grant.device_id)
        slot = None if device is None else device.find(grant.claim)
        todo: Actions = []
        if slot is not None and slot.deadline is not None:
            self._hear(grant.device_id, slot, now, todo)
        return todo

    def release(self, device_id: str, claim: Claim, now: float) -> Actions:
        """The connection has ended, or its upgrade failed. Idempotent."""
        device = self._devices.get(device_id)
        slot = None if device is None else device.find(claim)
        if device is None or slot is None:
            return []
        todo: Actions = []
        self._free(device_id, device, [slot], todo, now)
        return todo

    def expire(self, device_id: str, now: float) -> Actions:
        """Time has passed: connections may have been silent for too long, or other servers. Nothing happens where a
        challenge has been settled, or is another with a later end."""
        device = self._devices.get(device_id)
        if device is None:
            return []
        todo: Actions = []
        silent = [slot for slot in device.slots if slot.deadline is not None and slot.deadline <= now]
        todo += [Evict(slot.grant) for slot in silent]
        self._free(device_id, device, silent, todo, now)
        line = device.line
        if line is not None and line.deadline is not None and line.deadline <= now:
            line.deadline, line.is_late, line.may_be_free = None, True, True
            self._go_on(device_id, device, now, todo)
        return todo

    # -- other servers

    def challenged(self, challenge: Challenge, now: float) -> Actions:
        """Another server has a newcomer for a device that this one holds, or held.

        Cases, in order: held, or reserved: its fate will be told; the store has granted it, and this server has not
        heard of it yet: ask for the answer; it is gone.
        """
        device_id, holder = challenge.device_id, challenge.holder
        device = self._devices.get(device_id)
        todo: Actions = []
        slot = None if device is None else device.find(holder)
        if device is not None and slot is not None:
            self._challenge([slot], challenge.challenger, now, todo)
        elif device is not None and device.line is not None and holder in (*device.line.waiting, device.line.asking):
            early = device.line.early
            early[holder] = (*early.get(holder, ()), challenge.challenger)
            if device.line.asking is None:
                device.line.asking = holder
                todo.append(Acquire(device_id, holder))
        else:
            todo.append(Release(device_id, holder))
            self._tell(device_id, holder, (challenge.challenger,), "gone", now, todo)
        return todo

    def heard(self, answer: Answer, now: float) -> Actions:
        """Another server has answered a challenge. An answer to an earlier line is ignored."""
        todo: Actions = []
        self._take_answer(answer, now, todo)
        return todo

    def unreachable(self, challenge: Challenge, now: float) -> Actions:
        """The server of a holder has ended, or never was: the store will know soon that its devices are free."""
        gone = Answer(challenge.device_id, challenge.holder, challenge.challenger, "gone")
        return self.heard(gone, now)

    def lose_all(self, server: str) -> Actions:
        """The lease is lost, and with it every slot. Those who wait are refused.

        :param server: the epoch from now on
        """
        todo: Actions = [
            Refuse(claim, "presence")
            for device in self._devices.values()
            if device.line is not None
            for claim in device.line.waiting
        ]
        self.server, self._taken = server, 0
        self._devices.clear()
        return todo

    # -- the line

    def _go_on(self, device_id: str, device: _Device, now: float, todo: Actions) -> None:
        """What those in line can do now.

        Cases, in order: the store is being asked; nobody waits; a slot may be free: ask for it; holders that were not
        challenged yet: challenge them, if that may be done; all holders are alive: refuse; their servers are late:
        refuse; else wait for answers.
        """
        line = device.line
        if line is None or line.asking is not None:
            return
        if not line.waiting:
            self._close_line(device_id, device)
            return
        is_full_here = len(device.slots) >= self.limits().per_device
        if line.may_be_free and not is_full_here:
            line.may_be_free, line.asking = False, line.waiting[0]
            todo.append(Acquire(device_id, line.asking))
            return
        holders = [slot.grant.claim for slot in device.slots] if is_full_here else line.holders
        unasked = [claim for claim in holders if claim not in line.answers and not _is_reserved(device, claim)]
        if unasked and self.limits().policy == "challenge" and line.rounds < MAX_ROUNDS:
            self._begin_round(device_id, device, line, unasked, now, todo)
        elif unasked:
            self._refuse_all(device_id, device, "device" if self.limits().policy == "reject" else "presence", now, todo)
        elif all(line.answers.get(claim, True) for claim in holders):
            self._refuse_all(device_id, device, "device", now, todo)
        elif line.is_late:
            self._refuse_all(device_id, device, "presence", now, todo)

    def _begin_round(
        self, device_id: str, device: _Device, line: _Line, holders: Sequence[Claim], now: float, todo: Actions
    ) -> None:
        line.rounds += 1
        line.is_late = False
        own = [slot for slot in map(device.find, holders) if slot is not None]
        others = [claim for claim in holders if claim.server != self.server]
        line.answers.update(dict.fromkeys(holders, False))
        self._challenge(own, line.name, now, todo)
        if others:
            line.deadline = now + self.limits().challenge_s + ANSWER_PATIENCE_S
            todo += [Send(claim.server, Challenge(device_id, claim, line.name)) for claim in others]
            todo.append(Wake(device_id, line.deadline))

    def _refuse_all(self, device_id: str, device: _Device, reason: RefusalReason, now: float, todo: Actions) -> None:
        assert device.line is not None
        for claim in device.line.waiting:
            todo.append(Refuse(claim, reason))
            if claim in device.line.early:
                # Another server has been told that this claim holds the device.
                todo.append(Release(device_id, claim))
                self._tell(device_id, claim, device.line.early[claim], "gone", now, todo)
        device.line.waiting.clear()
        self._close_line(device_id, device)

    def _close_line(self, device_id: str, device: _Device) -> None:
        """Its challenges of this server's own connections end with it, unless another server waits for them as well."""
        line, device.line = device.line, None
        assert line is not None
        for slot in device.slots:
            if line.name in slot.challengers:
                slot.challengers = tuple(claim for claim in slot.challengers if claim != line.name)
                if not slot.challengers:
                    slot.deadline = None
        if not device.slots:
            del self._devices[device_id]

    def _take_answer(self, answer: Answer, now: float, todo: Actions) -> None:
        device = self._devices.get(answer.device_id)
        line = None if device is None else device.line
        if device is None or line is None or line.name != answer.challenger or answer.holder not in line.answers:
            return
        if answer.verdict == "alive":
            line.answers[answer.holder] = True
        else:
            del line.answers[answer.holder]
            line.may_be_free = True
        self._go_on(answer.device_id, device, now, todo)

    # -- this server's own slots

    def _challenge(self, slots: Sequence[_Slot], challenger: Claim, now: float, todo: Actions) -> None:
        """Ask those that nobody has asked yet. A reserved slot is not asked: its upgrade ends one way or the other."""
        asked = []
        for slot in slots:
            slot.challengers = (*slot.challengers, challenger)
            if slot.is_held and slot.deadline is None:
                slot.deadline = now + self.limits().challenge_s
                asked.append(slot.grant)
        if asked:
            todo += [Ping(tuple(asked)), Wake(asked[0].device_id, now + self.limits().challenge_s)]

    def _hear(self, device_id: str, slot: _Slot, now: float, todo: Actions) -> None:
        challengers, slot.challengers, slot.deadline = slot.challengers, (), None
        self._tell(device_id, slot.grant.claim, challengers, "alive", now, todo)

    def _free(self, device_id: str, device: _Device, slots: Sequence[_Slot], todo: Actions, now: float) -> None:
        """Take slots away, then tell who has waited for that."""
        for slot in slots:
            device.slots.remove(slot)
            self._taken -= 1
            todo.append(Release(device_id, slot.grant.claim))
        if device.line is not None:
            device.line.may_be_free = device.line.may_be_free or bool(slots)
        for slot in slots:
            self._tell(device_id, slot.grant.claim, slot.challengers, "gone", now, todo)
        if device.line is not None:
            self._go_on(device_id, device, now, todo)
        elif not device.slots:
            self._devices.pop(device_id, None)

    def _tell(
        self,
        device_id: str,
        holder: Claim,
        challengers: Sequence[Claim],
        verdict: Literal["alive", "gone"],
        now: float,
        todo: Actions,
    ) -> None:
        for challenger in challengers:
            answer = Answer(device_id, holder, challenger, verdict)
            if challenger.server == self.server:
                self._take_answer(answer, now, todo)
            else:
                todo.append(Send(challenger.server, answer))


def _is_reserved(device: _Device, claim: Claim) -> bool:
    slot = device.find(claim)
    return slot is not None and not slot.is_held
