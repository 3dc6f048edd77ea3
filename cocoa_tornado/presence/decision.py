"""The decisions of one call of ``rules.py`` about one device. Pure.

A :class:`Decision` reads and changes this server's state of the device (``device_slots.py``), and collects the actions.
It does not depend on other devices, or on how full the server is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

from ..relay.messages import Answer, Challenge
from ..rules.claims import Claim
from .actions import Acquire, Actions, Evict, Ping, Refuse, Release, Send, Supersede, Wake
from .device_slots import ClaimQueue, DeviceSlots, Slot
from .grants import Lease, RefusalReason, SlotLimits

MAX_ROUNDS: Final = 2
"""Rounds of challenges for one queue: a connection that got the device meanwhile is challenged too."""
ANSWER_PATIENCE_S: Final = 1.0
"""How much longer than ``challenge_s`` the answer of another server may take."""
LATE_S: Final = 0.1
"""If a challenge is evaluated this much later than planned, this server has paused, and may not have read the answer
yet."""


def give_up_at(arrived_at: float, limits: SlotLimits) -> float:
    """The deadline of a new connection. It leaves time for all rounds of challenges, and holds even if the store never
    answers: Redis may reject every JOIN."""
    return arrived_at + MAX_ROUNDS * (limits.challenge_s + ANSWER_PATIENCE_S)


class Decision:
    """See the module. ``todo`` has the actions in the order of the decisions.

    :param device: changed in place
    :param server: the epoch of this server
    :param lease: without a valid one, this server says of no connection that it is alive
    :ivar had_slots: how many slots the device had before
    """

    __slots__ = ("_lease", "_limits", "_now", "_server", "device", "device_id", "had_slots", "todo")

    def __init__(
        self, device_id: str, device: DeviceSlots, server: str, lease: Lease, limits: SlotLimits, now: float
    ) -> None:
        self.device_id, self.device = device_id, device
        self._server, self._lease, self._limits, self._now = server, lease, limits, now
        self.had_slots = len(device.slots)
        self.todo: Actions = []

    def __repr__(self) -> str:
        return f"<Decision about {self.device_id!r}: {self.todo}>"

    # -- the queue

    def go_on(self) -> None:
        """Decide what the waiting connections can do now.

        Cases, in order: the store is being asked; no connection waits; a slot may be free: ask for it; holders were not
        challenged yet: challenge them, if the policy allows it; all holders are alive: refuse; all but those of servers
        that have stopped are, or the answers are late: refuse for another reason; otherwise wait for answers.
        """
        device, queue, limits = self.device, self.device.queue, self._limits
        if queue is None or queue.asking is not None:
            return
        if not queue.waiting:
            device.end_queue()
            return
        is_full_here = len(device.slots) >= limits.per_device
        if queue.may_be_free and not is_full_here:
            queue.may_be_free = False
            self.ask_for(queue, next(iter(queue.waiting)))
            return
        holders = [slot.claim for slot in device.slots] if is_full_here else queue.holders
        reachable = [claim for claim in holders if claim.server not in queue.silent]
        unasked = [claim for claim in reachable if claim not in queue.answers and not device.is_reserved(claim)]
        are_alive = all(queue.answers.get(claim, True) for claim in reachable)
        if unasked and limits.policy == "challenge" and queue.rounds < MAX_ROUNDS:
            self._begin_round(queue, unasked)
        elif unasked:
            self.refuse_all(queue, "device" if limits.policy == "reject" else "presence")
        elif are_alive and len(reachable) == len(holders):
            # Another server's answer proves nothing to a connection that arrived after the challenge.
            covers = min([at for claim, at in queue.asked_at.items() if claim in holders], default=self._now)
            self.refuse_all(queue, "device", covers)
        elif are_alive or queue.is_late:
            self.refuse_all(queue, "presence")

    def ask_for(self, queue: ClaimQueue, claim: Claim) -> None:
        """Ask the store for the device with this claim."""
        queue.asking = claim
        self.todo.append(Acquire(self.device_id, claim, "new", self.device.kept(claim)))

    def _begin_round(self, queue: ClaimQueue, holders: Sequence[Claim]) -> None:
        queue.rounds += 1
        queue.is_late = False
        own = [slot for slot in map(self.device.find, holders) if slot is not None]
        others = [claim for claim in holders if claim.server != self._server]
        queue.answers.update(dict.fromkeys(holders, False))
        queue.asked_at.update(dict.fromkeys(others, self._now))
        self.challenge(own, queue.name)
        if others:
            queue.deadline = self._now + self._limits.challenge_s + ANSWER_PATIENCE_S
            self.todo += [Send(claim.server, Challenge(self.device_id, claim, queue.name)) for claim in others]
            self.todo.append(Wake(self.device_id, queue.deadline))

    def refuse_all(self, queue: ClaimQueue, reason: RefusalReason, arrived_until: float = math.inf) -> None:
        """End the queue; those that have arrived later begin another one."""
        if reason == "device" and not self._lease.is_valid(self._now):
            reason, arrived_until = "presence", math.inf
        later = {claim: arrived_at for claim, arrived_at in queue.waiting.items() if arrived_at > arrived_until}
        for claim in queue.waiting:
            if claim in later:
                continue
            self.todo.append(Refuse(claim, reason))
            if claim in queue.early:
                self.todo.append(Release(self.device_id, claim))
                self.notify(claim, queue.early[claim], "gone")
        self.device.end_queue()
        if later:
            self.device.queue = ClaimQueue(later)
            self.device.queue.early = {claim: queue.early[claim] for claim in queue.early if claim in later}
            self.go_on()

    def refuse_asking(self, queue: ClaimQueue, claim: Claim) -> None:
        """Refuse the new connection that the store was asked for; ask for the next one."""
        queue.asking, queue.may_be_free = None, True
        if queue.waiting.pop(claim, None) is not None:
            self.todo.append(Refuse(claim, "presence"))
        self.notify(claim, queue.early.pop(claim, ()), "gone")
        self.go_on()

    def give_up_overdue(self, queue: ClaimQueue) -> None:
        """Refuse the new connections that have waited for too long."""
        overdue = [claim for claim, at in queue.waiting.items() if give_up_at(at, self._limits) <= self._now]
        for claim in overdue:
            del queue.waiting[claim]
            self.todo.append(Refuse(claim, "presence"))
            if claim == queue.asking:
                queue.asking, queue.may_be_free = None, True
                self.todo.append(Release(self.device_id, claim))
            elif claim in queue.early:
                self.todo.append(Release(self.device_id, claim))
            self.notify(claim, queue.early.pop(claim, ()), "gone")
        if overdue:
            self.go_on()

    def end_round(self, queue: ClaimQueue) -> None:
        """Once the answers of other servers are late, ask the store once more."""
        if queue.deadline is not None and queue.deadline <= self._now:
            queue.deadline, queue.is_late, queue.may_be_free = None, True, True
            self.go_on()

    def take_answer(self, answer: Answer) -> None:
        """Take the answer about a holder. An answer to an earlier queue is ignored."""
        queue = self.device.queue
        if queue is None or queue.name != answer.challenger or answer.holder not in queue.answers:
            return
        if answer.verdict == "alive":
            queue.answers[answer.holder] = True
        else:
            del queue.answers[answer.holder]
            queue.may_be_free = True
        self.go_on()

    # -- this server's own slots

    def challenge(self, slots: Sequence[Slot], challenger: Claim) -> None:
        """Challenge the connections that were not challenged yet. A reserved slot is not challenged: its upgrade will
        succeed or fail soon."""
        for slot in slots:
            slot.challengers = (*slot.challengers, challenger)
        silent = [slot for slot in slots if slot.is_held and slot.deadline is None]
        for slot in silent:
            slot.has_grace = False
        self._ping(silent)

    def _ping(self, slots: Sequence[Slot]) -> None:
        if slots:
            deadline = self._now + self._limits.challenge_s
            for slot in slots:
                slot.deadline = deadline
            self.todo += [Ping(tuple([slot.grant for slot in slots])), Wake(self.device_id, deadline)]

    def hear(self, slot: Slot) -> None:
        """A challenged connection is alive."""
        challengers, slot.challengers, slot.deadline = slot.challengers, (), None
        if not self._lease.is_valid(self._now):
            # Others may hold the device by now: their servers get no answer from this one.
            challengers = tuple([claim for claim in challengers if claim.server == self._server])
        self.notify(slot.claim, challengers, "alive")

    def evict_silent(self) -> None:
        """Evict the connections that have given no sign of life in time."""
        now = self._now
        silent = [slot for slot in self.device.slots if slot.deadline is not None and slot.deadline <= now]
        late = [slot for slot in silent if now - (slot.deadline or now) > LATE_S and not slot.has_grace]
        for slot in late:
            slot.has_grace, slot.deadline = True, None
        self._ping(late)
        silent = [slot for slot in silent if slot not in late]
        self.todo += [Evict(slot.grant) for slot in silent]
        self.free(silent)

    def end_renewed(self, claim: Claim) -> bool:
        """End a connection that cannot be claimed again; False: this is not the claim of one."""
        renewed = self.device.find_renewed(claim)
        if renewed is None:
            return False
        self.todo.append(Supersede(renewed.grant))
        self.free([renewed])
        return True

    def free(self, slots: Sequence[Slot]) -> None:
        """Take slots away, then notify the challengers."""
        device = self.device
        for slot in slots:
            device.slots.remove(slot)
            self.todo.append(Release(self.device_id, slot.claim))
        if device.queue is not None:
            device.queue.may_be_free = device.queue.may_be_free or bool(slots)
        for slot in slots:
            self.notify(slot.claim, slot.challengers, "gone")
        self.go_on()

    def notify(self, holder: Claim, challengers: Sequence[Claim], verdict: Literal["alive", "gone"]) -> None:
        """Answer the challenges of a holder, of new connections here and of other servers."""
        for challenger in challengers:
            answer = Answer(self.device_id, holder, challenger, verdict)
            if challenger.server == self._server:
                self.take_answer(answer)
            else:
                self.todo.append(Send(challenger.server, answer))
