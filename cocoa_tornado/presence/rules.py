"""Which new connection gets a slot, waits, or is refused: one server's side of presence. Pure; adapters carry it out.

A *store* (the table of ``local://``, or scripts in Redis) decides who holds a device. These rules decide when to ask
it, which connections to challenge, and what to answer new connections. The life of a new connection::

    request --+-- Acquire --granted--> reserved --register--> held --release--> gone
              |      `----held----.       |                     |
              +-- (own slots taken)+--> waiting <---------------+--(silent in a challenge)--> evicted
              |                            |                             |
              `-- Refuse                   +--(every holder is alive)--> refused
                                           `--(a holder is gone)--> Acquire

The server that holds a connection judges it: challenges of its own new connections and of other servers are one
challenge. If several new connections wait for a device on one server, only the first one claims; the queue ends when no
holder's answer is outstanding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Final, Literal

from ..relay.messages import Answer, Challenge
from ..rules.claims import Claim
from .actions import Acquire, Actions, Admit, Evict, Ping, Refuse, Regrant, Release, Send, Supersede, Wake
from .device_slots import ClaimQueue, DeviceSlots, Slot
from .grants import Grant, Lease, RefusalReason, SlotLimits

MAX_WAITING: Final = 16
"""New connections that may wait for a device on one server. One more is refused at once."""
MAX_ROUNDS: Final = 2
"""Rounds of challenges for one queue: a connection that got the device meanwhile is challenged too."""
ANSWER_PATIENCE_S: Final = 1.0
"""How much longer than ``challenge_s`` the answer of another server may take."""
LATE_S: Final = 0.1
"""If a challenge is judged so much later than planned, this server has paused, and may not have read the answer yet."""


class Slots:
    """The slots of one server, and the new connections that wait. Not thread-safe; every call is O(slots of a device).

    Each method returns the actions to carry out.

    :param server: its epoch
    :param limits: returns the current limits; lower limits end no connection
    :ivar lease: of the epoch. Without a valid one, this server says of no connection that it is alive
    :ivar uncounted: devices whose slots don't count, and that may connect when this server is full
    """

    def __init__(self, server: str, limits: Callable[[], SlotLimits]) -> None:
        self.server = server
        self.lease = Lease(server)
        self.limits = limits
        self.uncounted: Collection[str] = ()
        self.draining = False
        self._devices: dict[str, DeviceSlots] = {}
        # Devices of which nothing is known here but one claim, which the store has not answered yet; with the time of
        # its arrival. Nearly every claim is granted like this. Whatever else happens gives the device a queue.
        self._alone: dict[str, tuple[Claim, float]] = {}
        self._number = 0
        self._taken = 0

    def __repr__(self) -> str:
        return f"<Slots {self._taken} taken, {len(self._devices) + len(self._alone)} devices>"

    def __len__(self) -> int:
        """Slots taken: held and reserved."""
        return self._taken - sum(map(self.taken, self.uncounted))

    def taken(self, device_id: str) -> int:
        """How many slots of this server a device holds or has reserved."""
        device = self._devices.get(device_id)
        return len(device.slots) if device else 0

    def grants(self, device_id: str) -> Sequence[Grant]:
        """The device's grants on this server."""
        device = self._devices.get(device_id)
        return [slot.grant for slot in device.slots] if device else ()

    def grant_of(self, device_id: str, claim: Claim) -> Grant | None:
        """The last grant of the slot that a claim has, or claims again."""
        device = self._devices.get(device_id)
        slot = None if device is None else device.find(claim)
        return None if slot is None else slot.grant

    def obstacle(self, device_id: str) -> RefusalReason | None:
        """Why a new connection would not be admitted at once, as far as this server knows without the store."""
        if self.draining:
            return "draining"
        if self.taken(device_id) >= self.limits().per_device:
            return "device"
        return "full" if self._is_full_for(device_id) else None

    def _is_full_for(self, device_id: str) -> bool:
        total = self.limits().total
        return 0 < total <= self._taken and total <= len(self) and device_id not in self.uncounted

    # -- a device with no other connection

    def claim_free(self, device_id: str) -> Claim | None:
        """Claim a device that has neither a slot nor a waiting connection here. None: it has, or there is an obstacle,
        and :meth:`request` decides.

        This is for stores that answer at once. Ask the store before calling anything else here. Pass its grant to
        :meth:`reserve`; if it refuses, drop the claim and call :meth:`request`.
        """
        if device_id in self._devices or device_id in self._alone or self.draining or self._is_full_for(device_id):
            return None
        self._number += 1
        return Claim(self.server, self._number)

    def claim_alone(self, device_id: str, now: float) -> Claim | None:
        """As :meth:`claim_free`, for stores that do not answer at once: the claim stands for the new connection from
        now on, as after :meth:`request`.

        Ask the store for the device. Pass its grant to :meth:`granted_alone` or :meth:`granted`, and any other answer
        to the method that is for it. Call :meth:`expire` at ``give_up_at``, if there is no answer.
        """
        claim = self.claim_free(device_id)
        if claim is not None:
            self._alone[device_id] = claim, now
        return claim

    def granted_alone(self, grant: Grant, now: float) -> bool:
        """The store has granted a claim. If nothing has happened to the device since :meth:`claim_alone`, the slot is
        reserved, as after ``Admit``. Otherwise do nothing: :meth:`granted` decides."""
        alone = self._alone.get(grant.device_id)
        if alone is None or alone[0] != grant.claim or not grant.lease.is_valid(now):
            return False
        if self._is_full_for(grant.device_id):
            return False
        del self._alone[grant.device_id]
        self.reserve(grant)
        return True

    def _find(self, device_id: str) -> DeviceSlots | None:
        """The state of a device, if there is any; that of a lone claim becomes a queue."""
        if device_id in self._alone:
            claim, arrived_at = self._alone.pop(device_id)
            device = self._devices[device_id] = DeviceSlots()
            device.queue = ClaimQueue({claim: arrived_at})
            device.queue.asking, device.queue.may_be_free = claim, False
        return self._devices.get(device_id)

    def reserve(self, grant: Grant) -> None:
        """The store has granted the claim of :meth:`claim_free`: the slot is reserved, as after ``Admit``."""
        device = self._devices[grant.device_id] = DeviceSlots()
        device.slots.append(Slot(grant, ()))
        self._taken += 1

    def free(self, device_id: str, claim: Claim) -> bool:
        """Free the claim's slot if no connection waits for it and it is not claimed again. Otherwise do nothing:
        :meth:`release` decides.

        :returns: whether the slot was freed; then release it in the store, and nothing else
        """
        device = self._devices.get(device_id)
        if device is None or device.queue is not None or len(device.slots) != 1:
            return False
        slot = device.slots[0]
        if slot.challengers or slot.renewal is not None or slot.grant.claim != claim:
            return False
        del self._devices[device_id]
        self._taken -= 1
        return True

    def is_reserved(self, device_id: str, claim: Claim) -> bool:
        """Whether the claim has a slot that is not registered yet."""
        device = self._devices.get(device_id)
        return device is not None and device.is_reserved(claim)

    # -- new connections

    def request(self, device_id: str, now: float) -> tuple[Claim, Actions]:
        """Request a slot. The claim stands for the new connection from now on.

        Cases, in order: draining, or the server is full; this server's connections hold all of the device's slots and
        none may be challenged; the queue is full; otherwise the claim joins the queue.
        """
        alone = self.claim_alone(device_id, now)
        if alone is not None:
            return alone, [Acquire(device_id, alone), Wake(device_id, self.give_up_at(now))]
        self._number += 1
        claim = Claim(self.server, self._number)
        device = self._find(device_id)
        obstacle = self.obstacle(device_id)
        if obstacle in ("draining", "full"):
            return claim, [Refuse(claim, obstacle)]
        queue = None if device is None else device.queue
        if obstacle is not None and queue is None and not self._may_challenge(device_id):
            return claim, [Refuse(claim, obstacle)]
        if queue is not None and len(queue.waiting) >= MAX_WAITING:
            # Without a connection here, it is not known yet whether there is one elsewhere.
            return claim, [Refuse(claim, "presence" if obstacle is None else obstacle)]
        if device is None:
            device = self._devices[device_id] = DeviceSlots()
        todo: Actions = []
        if queue is None:
            device.queue = ClaimQueue({claim: now})
        else:
            queue.waiting[claim] = now
        self._go_on(device_id, device, now, todo)
        if device.queue is not None and claim in device.queue.waiting:
            todo.append(Wake(device_id, self.give_up_at(now)))
        return claim, todo

    def _may_challenge(self, device_id: str) -> bool:
        """A connection whose upgrade is under way is not challenged: it is alive."""
        return self.limits().policy == "challenge" and any(slot.is_held for slot in self._devices[device_id].slots)

    def give_up_at(self, arrived_at: float) -> float:
        """The deadline of a new connection. It leaves time for all rounds of challenges, and holds even if the store
        never answers: Redis may reject every JOIN."""
        return arrived_at + MAX_ROUNDS * (self.limits().challenge_s + ANSWER_PATIENCE_S)

    def granted(self, grant: Grant, now: float) -> Actions:
        """The store has granted a claim. It is released if its connection no longer waits, if this server is full, or
        if the lease has ended."""
        if self.granted_alone(grant, now):
            return [Admit(grant)]
        device_id, claim = grant.device_id, grant.claim
        device = self._find(device_id)
        slot = None if device is None else device.find(claim)
        if slot is not None and slot.renewal is not None and slot.claim == claim:
            old, slot.grant, slot.renewal = slot.grant, grant, None
            return [Regrant(old, grant)]
        if slot is not None:
            return []  # the answer to a repeated question
        queue = None if device is None else device.queue
        if device is None or queue is None:
            return [Release(device_id, claim)]
        if claim == queue.asking:
            queue.asking, queue.may_be_free = None, True
        early = queue.early.pop(claim, ())
        todo: Actions = []
        if claim not in queue.waiting:
            todo.append(Release(device_id, claim))
            self._notify(device_id, claim, early, "gone", now, todo)
        elif (is_full := self._is_full_for(device_id)) or not grant.lease.is_valid(now):
            del queue.waiting[claim]
            todo += [Release(device_id, claim), Refuse(claim, "full" if is_full else "presence")]
            self._notify(device_id, claim, early, "gone", now, todo)
        else:
            del queue.waiting[claim]
            device.slots.append(Slot(grant, early))
            self._taken += 1
            todo.append(Admit(grant))
        self._go_on(device_id, device, now, todo)
        return todo

    def held(
        self, device_id: str, claim: Claim, holders: Sequence[Claim], now: float, silent: Collection[str] = ()
    ) -> Actions:
        """The store has refused the claim, and returned the holders of the device.

        :param silent: servers that have not beaten for so long that it is no use to challenge them
        """
        device = self._find(device_id)
        todo: Actions = []
        if self._end_renewed(device_id, device, claim, now, todo):
            return todo
        if device is None or device.queue is None or device.queue.asking != claim:
            return todo
        device.queue.asking, device.queue.holders, device.queue.silent = None, tuple(holders), silent
        challengers = device.queue.early.get(claim, ())
        if challengers:
            device.queue.early[claim] = ()
        self._notify(device_id, claim, challengers, "gone", now, todo)
        self._go_on(device_id, device, now, todo)
        return todo

    def undecided(self, device_id: str, claim: Claim, now: float) -> Actions:
        """The store did not answer in time, or rejected the claim: release what it may have granted, and ask for the
        next in the queue. A connection that is claimed again waits for :meth:`claim_again`."""
        device = self._find(device_id)
        renewed = None if device is None else device.find_renewed(claim)
        if renewed is not None:
            renewed.is_asking = False
            return []
        if device is None or device.queue is None or device.queue.asking != claim:
            return []
        queue = device.queue
        queue.asking, queue.may_be_free = None, True
        todo: Actions = [Release(device_id, claim)]
        if claim in queue.waiting:
            del queue.waiting[claim]
            todo.append(Refuse(claim, "presence"))
        self._notify(device_id, claim, queue.early.pop(claim, ()), "gone", now, todo)
        self._go_on(device_id, device, now, todo)
        return todo

    def withdraw(self, device_id: str, claim: Claim, now: float) -> Actions:
        """The new connection has left. What it was granted, or will be, is released. Idempotent."""
        device = self._find(device_id)
        if device is None:
            return []
        if device.queue is None or claim not in device.queue.waiting:
            return self.release(device_id, claim, now)
        del device.queue.waiting[claim]
        todo: Actions = []
        if claim != device.queue.asking and claim in device.queue.early:
            todo.append(Release(device_id, claim))
            self._notify(device_id, claim, device.queue.early.pop(claim, ()), "gone", now, todo)
        self._go_on(device_id, device, now, todo)
        return todo

    # -- connections

    def register(self, grant: Grant, now: float) -> Actions:
        """The upgrade is done: the reserved slot becomes a held one. KeyError if the grant has no slot."""
        device = self._devices.get(grant.device_id)
        slot = None if device is None else device.find(grant.claim)
        if device is None or slot is None:
            raise KeyError(grant)
        slot.is_held = True
        todo: Actions = []
        if device.queue is not None:
            # That it has registered just now is its sign of life.
            device.queue.answers[slot.claim] = True
        if slot.challengers:
            self._hear(grant.device_id, slot, now, todo)
        if device.queue is not None:
            self._go_on(grant.device_id, device, now, todo)
        return todo

    def answered(self, grant: Grant, now: float) -> Actions:
        """A connection has given a sign of life. Nothing happens if it was not challenged."""
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
        """A challenge may be over, because connections or other servers were silent for too long. Nothing happens if it
        was settled, or if a later challenge is under way."""
        device = self._find(device_id)
        if device is None:
            return []
        todo: Actions = []
        silent = [slot for slot in device.slots if slot.deadline is not None and slot.deadline <= now]
        late = [slot for slot in silent if now - (slot.deadline or now) > LATE_S and not slot.has_grace]
        for slot in late:
            slot.has_grace, slot.deadline = True, None
        self._ping(late, now, todo)
        silent = [slot for slot in silent if slot not in late]
        todo += [Evict(slot.grant) for slot in silent]
        self._free(device_id, device, silent, todo, now)
        if device.queue is not None:
            self._give_up(device_id, device, device.queue, now, todo)
        queue = device.queue
        if queue is not None and queue.deadline is not None and queue.deadline <= now:
            queue.deadline, queue.is_late, queue.may_be_free = None, True, True
            self._go_on(device_id, device, now, todo)
        return todo

    # -- other servers

    def challenged(self, challenge: Challenge, now: float) -> Actions:
        """Another server has a new connection for a device that this one holds, or held.

        Cases, in order: the slot is held or reserved: the challenger will be notified of the outcome; the store has
        granted the claim, and its answer is still in transit: ask again; the slot is gone.
        """
        device_id, holder = challenge.device_id, challenge.holder
        device = self._find(device_id)
        todo: Actions = []
        slot = None if device is None else device.find(holder)
        if device is not None and slot is not None:
            self._challenge([slot], challenge.challenger, now, todo)
        elif device is not None and device.queue is not None and holder in (*device.queue.waiting, device.queue.asking):
            early = device.queue.early
            early[holder] = (*early.get(holder, ()), challenge.challenger)
            if device.queue.asking is None:
                device.queue.asking = holder
                todo.append(Acquire(device_id, holder, "new", device.kept(holder)))
        else:
            todo.append(Release(device_id, holder))
            self._notify(device_id, holder, (challenge.challenger,), "gone", now, todo)
        return todo

    def heard(self, answer: Answer, now: float) -> Actions:
        """Another server has answered a challenge. An answer to an earlier queue is ignored."""
        todo: Actions = []
        self._take_answer(answer, now, todo)
        return todo

    def unreachable(self, challenge: Challenge, now: float) -> Actions:
        """The server of a holder has ended, or never existed: the store will soon know that its devices are free."""
        gone = Answer(challenge.device_id, challenge.holder, challenge.challenger, "gone")
        return self.heard(gone, now)

    def lose_all(self, server: str) -> Actions:
        """The lease is lost, and with it every slot. Waiting connections are refused.

        :param server: the new epoch
        """
        todo: Actions = [
            Refuse(claim, "presence")
            for device in self._devices.values()
            if device.queue is not None
            for claim in device.queue.waiting
        ]
        todo += [Refuse(claim, "presence") for claim, _ in self._alone.values()]
        self.server, self.lease, self._taken = server, Lease(server), 0
        self._devices, self._alone = {}, {}
        return todo

    # -- a store that others share, and that may be away

    def unanswered(self, device_id: str, claim: Claim, now: float) -> Actions:
        """The store has not answered a claim for a second or so: ask again, or give up if the new connection has waited
        for too long. A connection that is claimed again does not give up."""
        device = self._find(device_id)
        if device is None:
            return []
        renewed = device.find_renewed(claim)
        if renewed is not None:
            return [device.renew(device_id, renewed)]
        queue = device.queue
        if queue is None or queue.asking != claim:
            return []
        if claim not in queue.waiting or self.give_up_at(queue.waiting[claim]) <= now:
            return self.undecided(device_id, claim, now)
        queue.early.setdefault(claim, ())
        return [Acquire(device_id, claim, "new", device.kept(claim))]

    def late(self, device_id: str, claim: Claim, now: float) -> Actions:
        """The store has refused a claim, because it knows a later one of this server that this one does not, or because
        it cannot read what it has of the device."""
        todo: Actions = []
        device = self._find(device_id)
        if not self._end_renewed(device_id, device, claim, now, todo):
            self._refuse_asking(device_id, claim, now, todo)
        return todo

    def settling(self, device_id: str, claim: Claim, now: float) -> Actions:
        """The store grants nothing new yet: refuse the new connection. One that is claimed again waits for
        :meth:`settled`."""
        todo: Actions = []
        device = self._find(device_id)
        renewed = None if device is None else device.find_renewed(claim)
        if renewed is not None:
            renewed.is_asking = False
        else:
            self._refuse_asking(device_id, claim, now, todo)
        return todo

    def rejoin(self, lease: Lease, lease_length_s: float, proof_s: float, now: float) -> Actions:
        """The server has a new epoch. Refuse new connections that wait, give up slots whose upgrade is not done, and
        claim those of connections again, if there are any: then a new term has begun.

        A connection whose lease was extended less than ``proof_s`` ago cannot have been fenced: it is claimed at once,
        and goes on until its old lease ends. Any other one waits for :meth:`settled`, however many terms begin.

        :param lease: of the new epoch
        :param lease_length_s: ``freeze_s``, from the sending of a beat to the end of the lease
        """
        devices, todo = self._devices, self.lose_all(lease.server)
        self.lease, self._devices = lease, devices
        for device_id, device in list(devices.items()):
            device.queue, device.slots = None, [slot for slot in device.slots if slot.is_held]
            self._taken += len(device.slots)
            for slot in device.slots:
                self._number += 1
                slot.claim = Claim(lease.server, self._number)
                slot.challengers, slot.deadline, slot.is_asking = (), None, False
                slot.renewal = "keep" if now - (slot.grant.lease.until - lease_length_s) < proof_s else "new"
            todo += [device.renew(device_id, slot) for slot in device.slots if slot.renewal == "keep"]
            if not device.slots:
                del devices[device_id]
        return todo

    def settled(self, now: float) -> Actions:
        """The new term is settled: claim the connections that have waited for it."""
        return self.claim_again(is_settled=True)

    def claim_again(self, *, is_settled: bool) -> Actions:
        """Claim the connections of an earlier term that have waited: for the term to settle, or because the store has
        rejected their claims."""
        return [
            device.renew(device_id, slot)
            for device_id, device in self._devices.items()
            for slot in device.slots
            if slot.renewal is not None and not slot.is_asking and (is_settled or slot.renewal == "keep")
        ]

    def leases(self) -> Sequence[Lease]:
        """Those under which connections of this server were granted."""
        return list(dict.fromkeys(slot.grant.lease for device in self._devices.values() for slot in device.slots))

    def _end_renewed(self, device_id: str, device: DeviceSlots | None, claim: Claim, now: float, todo: Actions) -> bool:
        """End a connection that cannot be claimed again; False: this is not the claim of one."""
        renewed = None if device is None else device.find_renewed(claim)
        if device is None or renewed is None:
            return False
        todo.append(Supersede(renewed.grant))
        self._free(device_id, device, [renewed], todo, now)
        return True

    def _refuse_asking(self, device_id: str, claim: Claim, now: float, todo: Actions) -> None:
        """Refuse the new connection whose claim the store has refused, without any slot having been granted."""
        device = self._find(device_id)
        if device is None or device.queue is None or device.queue.asking != claim:
            return
        queue = device.queue
        queue.asking, queue.may_be_free = None, True
        if queue.waiting.pop(claim, None) is not None:
            todo.append(Refuse(claim, "presence"))
        self._notify(device_id, claim, queue.early.pop(claim, ()), "gone", now, todo)
        self._go_on(device_id, device, now, todo)

    def _give_up(self, device_id: str, device: DeviceSlots, queue: ClaimQueue, now: float, todo: Actions) -> None:
        """Refuse the new connections that have waited for too long."""
        overdue = [claim for claim, arrived_at in queue.waiting.items() if self.give_up_at(arrived_at) <= now]
        for claim in overdue:
            del queue.waiting[claim]
            todo.append(Refuse(claim, "presence"))
            if claim == queue.asking:
                queue.asking, queue.may_be_free = None, True
                todo.append(Release(device_id, claim))
            elif claim in queue.early:
                todo.append(Release(device_id, claim))
            self._notify(device_id, claim, queue.early.pop(claim, ()), "gone", now, todo)
        if overdue:
            self._go_on(device_id, device, now, todo)

    # -- the queue

    def _go_on(self, device_id: str, device: DeviceSlots, now: float, todo: Actions) -> None:
        """Decide what the waiting connections can do now.

        Cases, in order: the store is being asked; no connection waits; a slot may be free: ask for it; holders were not
        challenged yet: challenge them, if the policy allows it; all holders are alive: refuse; all but those of servers
        that have stopped are, or the answers are late: refuse for another reason; otherwise wait for answers.
        """
        queue = device.queue
        if queue is None or queue.asking is not None:
            return
        if not queue.waiting:
            self._close_queue(device_id, device)
            return
        is_full_here = len(device.slots) >= self.limits().per_device
        if queue.may_be_free and not is_full_here:
            queue.may_be_free, queue.asking = False, next(iter(queue.waiting))
            todo.append(Acquire(device_id, queue.asking, "new", device.kept(queue.asking)))
            return
        holders = [slot.claim for slot in device.slots] if is_full_here else queue.holders
        reachable = [claim for claim in holders if claim.server not in queue.silent]
        unasked = [claim for claim in reachable if claim not in queue.answers and not device.is_reserved(claim)]
        are_alive = all(queue.answers.get(claim, True) for claim in reachable)
        if unasked and self.limits().policy == "challenge" and queue.rounds < MAX_ROUNDS:
            self._begin_round(device_id, device, queue, unasked, now, todo)
        elif unasked:
            self._refuse_all(device_id, device, "device" if self.limits().policy == "reject" else "presence", now, todo)
        elif are_alive and len(reachable) == len(holders):
            # What another server knew when it answered proves nothing to a connection that came after the challenge.
            covers = min([at for claim, at in queue.asked_at.items() if claim in holders], default=now)
            self._refuse_all(device_id, device, "device", now, todo, covers)
        elif are_alive or queue.is_late:
            self._refuse_all(device_id, device, "presence", now, todo)

    def _begin_round(
        self,
        device_id: str,
        device: DeviceSlots,
        queue: ClaimQueue,
        holders: Sequence[Claim],
        now: float,
        todo: Actions,
    ) -> None:
        queue.rounds += 1
        queue.is_late = False
        own = [slot for slot in map(device.find, holders) if slot is not None]
        others = [claim for claim in holders if claim.server != self.server]
        queue.answers.update(dict.fromkeys(holders, False))
        queue.asked_at.update(dict.fromkeys(others, now))
        self._challenge(own, queue.name, now, todo)
        if others:
            queue.deadline = now + self.limits().challenge_s + ANSWER_PATIENCE_S
            todo += [Send(claim.server, Challenge(device_id, claim, queue.name)) for claim in others]
            todo.append(Wake(device_id, queue.deadline))

    def _refuse_all(
        self,
        device_id: str,
        device: DeviceSlots,
        reason: RefusalReason,
        now: float,
        todo: Actions,
        arrived_until: float = math.inf,
    ) -> None:
        """End the queue; those that have arrived later begin another one."""
        queue = device.queue
        assert queue is not None
        if reason == "device" and not self.lease.is_valid(now):
            reason, arrived_until = "presence", math.inf
        later = {claim: arrived_at for claim, arrived_at in queue.waiting.items() if arrived_at > arrived_until}
        for claim in queue.waiting:
            if claim in later:
                continue
            todo.append(Refuse(claim, reason))
            if claim in queue.early:
                todo.append(Release(device_id, claim))
                self._notify(device_id, claim, queue.early[claim], "gone", now, todo)
        self._close_queue(device_id, device)
        if later:
            self._devices[device_id] = device
            device.queue = ClaimQueue(later)
            device.queue.early = {claim: challengers for claim, challengers in queue.early.items() if claim in later}
            self._go_on(device_id, device, now, todo)

    def _close_queue(self, device_id: str, device: DeviceSlots) -> None:
        device.end_queue()
        if not device.slots:
            del self._devices[device_id]

    def _take_answer(self, answer: Answer, now: float, todo: Actions) -> None:
        device = self._devices.get(answer.device_id)
        queue = None if device is None else device.queue
        if device is None or queue is None or queue.name != answer.challenger or answer.holder not in queue.answers:
            return
        if answer.verdict == "alive":
            queue.answers[answer.holder] = True
        else:
            del queue.answers[answer.holder]
            queue.may_be_free = True
        self._go_on(answer.device_id, device, now, todo)

    # -- this server's own slots

    def _challenge(self, slots: Sequence[Slot], challenger: Claim, now: float, todo: Actions) -> None:
        """Ask those that were not asked yet. A reserved slot is not asked: its upgrade will succeed or fail soon."""
        for slot in slots:
            slot.challengers = (*slot.challengers, challenger)
        silent = [slot for slot in slots if slot.is_held and slot.deadline is None]
        for slot in silent:
            slot.has_grace = False
        self._ping(silent, now, todo)

    def _ping(self, slots: Sequence[Slot], now: float, todo: Actions) -> None:
        if slots:
            deadline = now + self.limits().challenge_s
            for slot in slots:
                slot.deadline = deadline
            todo += [Ping(tuple([slot.grant for slot in slots])), Wake(slots[0].grant.device_id, deadline)]

    def _hear(self, device_id: str, slot: Slot, now: float, todo: Actions) -> None:
        challengers, slot.challengers, slot.deadline = slot.challengers, (), None
        if not self.lease.is_valid(now):
            # Others may hold the device by now: their servers get no answer from this one.
            challengers = tuple([claim for claim in challengers if claim.server == self.server])
        self._notify(device_id, slot.claim, challengers, "alive", now, todo)

    def _free(self, device_id: str, device: DeviceSlots, slots: Sequence[Slot], todo: Actions, now: float) -> None:
        """Take slots away, then notify the challengers."""
        for slot in slots:
            device.slots.remove(slot)
            self._taken -= 1
            todo.append(Release(device_id, slot.claim))
        if device.queue is not None:
            device.queue.may_be_free = device.queue.may_be_free or bool(slots)
        for slot in slots:
            self._notify(device_id, slot.claim, slot.challengers, "gone", now, todo)
        if device.queue is not None:
            self._go_on(device_id, device, now, todo)
        elif not device.slots:
            self._devices.pop(device_id, None)

    def _notify(
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
