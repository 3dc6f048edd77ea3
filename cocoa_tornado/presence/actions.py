"""What the rules of presence have an adapter do, as values. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ..relay.messages import Answer, Challenge
from ..rules.claims import Claim
from .grants import Grant, RefusalReason


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask the store for the device; its answer goes to ``Slots.granted`` or ``Slots.held``. If it does not answer, call
    ``Slots.undecided``."""

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
    """End the connection before doing anything that follows in the list."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to another server."""

    server: str
    message: Challenge | Answer


@dataclass(frozen=True, slots=True)
class Wake:
    """Call ``Slots.expire`` for the device at ``at``, in the units of ``now``."""

    device_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Admit:
    """The new connection has its slot, which is reserved until ``Slots.register`` or ``Slots.release``."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Refuse:
    """The new connection gets no slot."""

    claim: Claim
    reason: RefusalReason


Action = Acquire | Release | Ping | Evict | Send | Wake | Admit | Refuse
"""One step."""
Actions = list[Action]
"""Steps, to be carried out in order."""
