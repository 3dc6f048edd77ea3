"""Which new connection gets a slot, waits, or is refused: one server's side of presence. Pure; adapters carry it out.

A *store* (the table of ``local://``, or scripts in Redis) decides who holds a device. These rules decide when to ask
it, which connections to challenge, and what to answer new connections. The life of a new connection::

    request --+-- Acquire --granted--> reserved --register--> held --release--> gone
              |      `----held----.       |                     |
              +-- (own slots taken)+--> waiting <---------------+--(silent in a challenge)--> evicted
              |                            |                             |
              `-- Refuse                   +--(every holder is alive)--> refused
                                           `--(a holder is gone)--> Acquire

The server that holds a connection challenges it, once for its own new connections and those of other servers. If
several new connections wait for a device on one server, only the first one claims; the queue ends when no holder's
answer is pending.

Decisions about a single device are in ``decision.py``. This module has the server's devices, its limits, and the terms
of a shared store.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

from ..relay.messages import Answer, Challenge
from ..rules.claims import Claim
from .actions import Acquire, Actions, Admit, Refuse, Regrant, Release, Wake
from .decision import Decision, give_up_at
from .device_slots import ClaimQueue, DeviceSlots, Slot
from .grants import Grant, Lease, RefusalReason, SlotLimits

MAX_WAITING: Final = 16
"""New connections that may wait for a device on one server. One more is refused at once."""


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
        # its arrival. Nearly every claim is granted like this. Any other event gives the device a queue.
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

    def _decide(self, device_id: str, now: float) -> Decision:
        """Begin to decide about a device; :meth:`_finish` ends it. A lone claim becomes a queue."""
        device = self._devices.get(device_id)
        if device is None:
            device = DeviceSlots()
            if device_id in self._alone:
                claim, arrived_at = self._alone.pop(device_id)
                device.queue = ClaimQueue({claim: arrived_at})
                device.queue.asking, device.queue.may_be_free = claim, False
        return Decision(device_id, device, self.server, self.lease, self.limits(), now)

    def _finish(self, decision: Decision) -> Actions:
        """Keep what is known of the device now, if anything is."""
        device = decision.device
        if device.slots or device.queue is not None:
            self._devices[decision.device_id] = device
        else:
            self._devices.pop(decision.device_id, None)
        self._taken += len(device.slots) - decision.had_slots
        return decision.todo

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
        decision = self._decide(device_id, now)
        device, obstacle = decision.device, self.obstacle(device_id)
        queue = device.queue
        if obstacle in ("draining", "full") or (
            obstacle is not None and queue is None and not self._may_challenge(device)
        ):
            decision.todo.append(Refuse(claim, obstacle))
        elif queue is not None and len(queue.waiting) >= MAX_WAITING:
            # Without a connection here, it is not known yet whether there is one elsewhere.
            decision.todo.append(Refuse(claim, "presence" if obstacle is None else obstacle))
        else:
            if queue is None:
                device.queue = ClaimQueue({claim: now})
            else:
                queue.waiting[claim] = now
            decision.go_on()
            if device.queue is not None and claim in device.queue.waiting:
                decision.todo.append(Wake(device_id, self.give_up_at(now)))
        return claim, self._finish(decision)

    def _may_challenge(self, device: DeviceSlots) -> bool:
        """A connection whose upgrade is under way is not challenged: it is alive."""
        return self.limits().policy == "challenge" and any(slot.is_held for slot in device.slots)

    def give_up_at(self, arrived_at: float) -> float:
        """The deadline of a new connection that has arrived then."""
        return give_up_at(arrived_at, self.limits())

    def granted(self, grant: Grant, now: float) -> Actions:
        """The store has granted a claim. It is released if its connection no longer waits, if this server is full, or
        if the lease has ended."""
        if self.granted_alone(grant, now):
            return [Admit(grant)]
        claim = grant.claim
        decision = self._decide(grant.device_id, now)
        renewed, queue = decision.device.find_renewed(claim), decision.device.queue
        if renewed is not None:
            old, renewed.grant, renewed.renewal = renewed.grant, grant, None
            decision.todo.append(Regrant(old, grant))
        elif decision.device.find(claim) is not None:
            pass  # the answer to a repeated question
        elif queue is None:
            decision.todo.append(Release(grant.device_id, claim))
        else:
            self._admit(decision, queue, grant, now)
        return self._finish(decision)

    def _admit(self, decision: Decision, queue: ClaimQueue, grant: Grant, now: float) -> None:
        claim, device, todo = grant.claim, decision.device, decision.todo
        if claim == queue.asking:
            queue.asking, queue.may_be_free = None, True
        early = queue.early.pop(claim, ())
        is_waiting, is_full = queue.waiting.pop(claim, None) is not None, self._is_full_for(grant.device_id)
        if is_waiting and not is_full and grant.lease.is_valid(now):
            device.slots.append(Slot(grant, early))
            todo.append(Admit(grant))
        else:
            todo.append(Release(grant.device_id, claim))
            if is_waiting:
                todo.append(Refuse(claim, "full" if is_full else "presence"))
            decision.notify(claim, early, "gone")
        decision.go_on()

    def held(
        self, device_id: str, claim: Claim, holders: Sequence[Claim], now: float, silent: Collection[str] = ()
    ) -> Actions:
        """The store has refused the claim, and returned the holders of the device.

        :param silent: servers whose last beat is so old that challenging them is useless
        """
        decision = self._decide(device_id, now)
        queue = decision.device.queue
        if not decision.end_renewed(claim) and queue is not None and queue.asking == claim:
            queue.asking, queue.holders, queue.silent = None, tuple(holders), silent
            challengers = queue.early.get(claim, ())
            if challengers:
                queue.early[claim] = ()
            decision.notify(claim, challengers, "gone")
            decision.go_on()
        return self._finish(decision)

    def undecided(self, device_id: str, claim: Claim, now: float) -> Actions:
        """The store did not answer in time, or rejected the claim: release what it may have granted, and ask for the
        next in the queue. A connection that is claimed again waits for :meth:`claim_again`."""
        decision = self._decide(device_id, now)
        renewed, queue = decision.device.find_renewed(claim), decision.device.queue
        if renewed is not None:
            renewed.is_asking = False
        elif queue is not None and queue.asking == claim:
            decision.todo.append(Release(device_id, claim))
            decision.refuse_asking(queue, claim)
        return self._finish(decision)

    def withdraw(self, device_id: str, claim: Claim, now: float) -> Actions:
        """The new connection has disconnected. A slot that it was granted, or will be, is released. Idempotent."""
        decision = self._decide(device_id, now)
        queue = decision.device.queue
        if queue is not None and claim in queue.waiting:
            del queue.waiting[claim]
            if claim != queue.asking and claim in queue.early:
                decision.todo.append(Release(device_id, claim))
                decision.notify(claim, queue.early.pop(claim, ()), "gone")
            decision.go_on()
        else:
            self._end(decision, claim)
        return self._finish(decision)

    @staticmethod
    def _end(decision: Decision, claim: Claim) -> None:
        slot = decision.device.find(claim)
        if slot is not None:
            decision.free([slot])

    # -- connections

    def register(self, grant: Grant, now: float) -> Actions:
        """The upgrade is done: the reserved slot becomes a held one. KeyError if the grant has no slot."""
        if self.grant_of(grant.device_id, grant.claim) is None:
            raise KeyError(grant)
        decision = self._decide(grant.device_id, now)
        slot, queue = decision.device.find(grant.claim), decision.device.queue
        assert slot is not None
        slot.is_held = True
        if queue is not None:
            # That it has registered just now is its sign of life.
            queue.answers[slot.claim] = True
        if slot.challengers:
            decision.hear(slot)
        decision.go_on()
        return self._finish(decision)

    def answered(self, grant: Grant, now: float) -> Actions:
        """A connection has shown a sign of life. No effect if it was not challenged."""
        if grant.device_id not in self._devices:
            return []
        decision = self._decide(grant.device_id, now)
        slot = decision.device.find(grant.claim)
        if slot is not None and slot.deadline is not None:
            decision.hear(slot)
        return self._finish(decision)

    def release(self, device_id: str, claim: Claim, now: float) -> Actions:
        """The connection has ended, or its upgrade failed. Idempotent."""
        if device_id not in self._devices:
            return []
        decision = self._decide(device_id, now)
        self._end(decision, claim)
        return self._finish(decision)

    def expire(self, device_id: str, now: float) -> Actions:
        """A challenge may be over, because connections or other servers were silent for too long. No effect if it was
        settled, or if a later challenge is in progress."""
        decision = self._decide(device_id, now)
        decision.evict_silent()
        if decision.device.queue is not None:
            decision.give_up_overdue(decision.device.queue)
        if decision.device.queue is not None:
            decision.end_round(decision.device.queue)
        return self._finish(decision)

    # -- other servers

    def challenged(self, challenge: Challenge, now: float) -> Actions:
        """Another server has a new connection for a device that this one holds, or held.

        Cases, in order: the slot is held or reserved: the challenger will be notified of the outcome; the store has
        granted the claim, and its answer is still in transit: ask again; the slot is gone.
        """
        device_id, holder = challenge.device_id, challenge.holder
        decision = self._decide(device_id, now)
        slot, queue = decision.device.find(holder), decision.device.queue
        if slot is not None:
            decision.challenge([slot], challenge.challenger)
        elif queue is not None and holder in (*queue.waiting, queue.asking):
            queue.early[holder] = (*queue.early.get(holder, ()), challenge.challenger)
            if queue.asking is None:
                decision.ask_for(queue, holder)
        else:
            decision.todo.append(Release(device_id, holder))
            decision.notify(holder, (challenge.challenger,), "gone")
        return self._finish(decision)

    def heard(self, answer: Answer, now: float) -> Actions:
        """Another server has answered a challenge. An answer to an earlier queue is ignored."""
        if answer.device_id not in self._devices:
            return []
        decision = self._decide(answer.device_id, now)
        decision.take_answer(answer)
        return self._finish(decision)

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

    # -- a shared store, which may be unavailable

    def unanswered(self, device_id: str, claim: Claim, now: float) -> Actions:
        """The store has not answered a claim for a second or so: ask again, or give up if the new connection has waited
        for too long. A connection that is claimed again does not give up."""
        decision = self._decide(device_id, now)
        device, queue = decision.device, decision.device.queue
        renewed = device.find_renewed(claim)
        if renewed is not None:
            decision.todo.append(device.renew(device_id, renewed))
        elif queue is not None and queue.asking == claim:
            if claim in queue.waiting and now < self.give_up_at(queue.waiting[claim]):
                queue.early.setdefault(claim, ())
                decision.ask_for(queue, claim)
            else:
                decision.todo.append(Release(device_id, claim))
                decision.refuse_asking(queue, claim)
        return self._finish(decision)

    def late(self, device_id: str, claim: Claim, now: float) -> Actions:
        """The store has refused a claim, because it knows a later one of this server that this one does not, or because
        it cannot read what it has of the device. No slot has been granted."""
        decision = self._decide(device_id, now)
        queue = decision.device.queue
        if not decision.end_renewed(claim) and queue is not None and queue.asking == claim:
            decision.refuse_asking(queue, claim)
        return self._finish(decision)

    def settling(self, device_id: str, claim: Claim, now: float) -> Actions:
        """The store grants nothing new yet: refuse the new connection. One that is claimed again waits for
        :meth:`settled`."""
        decision = self._decide(device_id, now)
        renewed, queue = decision.device.find_renewed(claim), decision.device.queue
        if renewed is not None:
            renewed.is_asking = False
        elif queue is not None and queue.asking == claim:
            decision.refuse_asking(queue, claim)
        return self._finish(decision)

    def rejoin(self, lease: Lease, lease_length_s: float, proof_s: float, now: float) -> Actions:
        """The server has a new epoch. Refuse new connections that wait, give up slots whose upgrade is not done, and
        claim those of connections again, if there are any: then a new term has begun.

        A connection whose lease was extended less than ``proof_s`` ago cannot have been fenced: it is claimed at once,
        and continues until its old lease ends. Any other one waits for :meth:`settled`, through any number of terms.

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
        """The leases under which connections of this server were granted."""
        return list(dict.fromkeys(slot.grant.lease for device in self._devices.values() for slot in device.slots))
