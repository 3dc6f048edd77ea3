"""One device on one server: its slots, and the new connections that wait for one. Pure; ``decision.py`` decides."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from ..rules.claims import Claim
from .actions import Acquire
from .grants import Grant


class Slot:
    """A grant of this server: reserved or held, and challenged or not.

    :ivar grant: the last one; of an earlier term while it is claimed again
    :ivar claim: the one that was granted, or that claims it again
    :ivar renewal: how it is claimed again; None: it is granted
    :ivar is_asking: the store has not answered that claim yet
    :ivar deadline: it is evicted if it shows no sign of life by then; None while it is not challenged
    :ivar has_grace: it was pinged once more, because the deadline was noticed late
    :ivar challengers: claims to notify of the outcome
    """

    __slots__ = ("challengers", "claim", "deadline", "grant", "has_grace", "is_asking", "is_held", "renewal")

    def __init__(self, grant: Grant, challengers: tuple[Claim, ...]) -> None:
        self.grant, self.claim = grant, grant.claim
        self.renewal: Literal["keep", "new"] | None = None
        self.is_held = self.is_asking = self.has_grace = False
        self.deadline: float | None = None
        self.challengers = challengers


class ClaimQueue:
    """This server's new connections that wait for one device, in the order of their arrival.

    :ivar name: the claim that began it; its challenges carry this name
    :ivar waiting: claims, with the time of their arrival
    :ivar asking: the claim that the store has not answered yet
    :ivar may_be_free: a slot may have become free since the store was asked
    :ivar holders: the device's holders, according to the store
    :ivar silent: servers that are not challenged, since they seem to have stopped
    :ivar answers: for each challenged holder, whether it has given a sign of life
    :ivar asked_at: when holders of other servers were challenged
    :ivar rounds: of challenges so far
    :ivar deadline: for the answers of other servers
    :ivar is_late: the deadline has passed
    :ivar early: claims in ``waiting`` that the store may have granted: other servers have challenged them, or a
        question was not answered. With the challengers, if there are any
    """

    __slots__ = (
        "answers",
        "asked_at",
        "asking",
        "deadline",
        "early",
        "holders",
        "is_late",
        "may_be_free",
        "name",
        "rounds",
        "silent",
        "waiting",
    )

    def __init__(self, waiting: dict[Claim, float]) -> None:
        self.name = next(iter(waiting))
        self.waiting = waiting
        self.asking: Claim | None = None
        self.may_be_free = True
        self.holders: tuple[Claim, ...] = ()
        self.silent: Collection[str] = ()
        self.answers: dict[Claim, bool] = {}
        self.asked_at: dict[Claim, float] = {}
        self.rounds = 0
        self.deadline: float | None = None
        self.is_late = False
        self.early: dict[Claim, tuple[Claim, ...]] = {}


class DeviceSlots:
    """One server's state of a device: its slots, and the new connections that wait for one."""

    __slots__ = ("queue", "slots")

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.queue: ClaimQueue | None = None

    def find(self, claim: Claim) -> Slot | None:
        for slot in self.slots:
            if slot.claim == claim or slot.grant.claim == claim:
                return slot
        return None

    def kept(self, claim: Claim) -> tuple[int, ...]:
        """For an :class:`Acquire` of this claim."""
        return tuple([slot.claim.number for slot in self.slots if slot.claim != claim])

    def find_renewed(self, claim: Claim) -> Slot | None:
        """The slot of a connection that is being claimed again, by this claim."""
        slot = self.find(claim)
        return slot if slot is not None and slot.renewal is not None and slot.claim == claim else None

    def is_reserved(self, claim: Claim) -> bool:
        """Whether the claim has a slot whose upgrade is under way."""
        slot = self.find(claim)
        return slot is not None and not slot.is_held

    def renew(self, device_id: str, slot: Slot) -> Acquire:
        """Claim the slot of a connection again."""
        assert slot.renewal is not None
        slot.is_asking = True
        return Acquire(device_id, slot.claim, slot.renewal, self.kept(slot.claim))

    def end_queue(self) -> None:
        """End the queue, and its challenges of this server's connections, unless another server waits for them as
        well."""
        queue, self.queue = self.queue, None
        assert queue is not None
        for slot in self.slots:
            if queue.name in slot.challengers:
                slot.challengers = tuple(claim for claim in slot.challengers if claim != queue.name)
                if not slot.challengers:
                    slot.deadline = None
