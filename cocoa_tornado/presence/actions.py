"""The actions that the rules of presence return for an adapter to carry out. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..relay.messages import Answer, Challenge
from ..rules.claims import Claim
from .grants import Grant, RefusalReason


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask the store for the device; its answer goes to ``Slots.granted``, ``held``, ``late`` or ``settling``. If there
    is none within a second or so, call ``Slots.unanswered``: whether it has granted the device is not known.

    :ivar mode: ``keep``: in a new term, for a connection that was granted before
    :ivar kept: numbers of this server's other claims that are not given up: slots, and connections that are claimed
        again. The store frees the slots of any others
    """

    device_id: str
    claim: Claim
    mode: Literal["new", "keep"] = "new"
    kept: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Release:
    """Free the claim's slot in the store, if it has one. Repeat it until it is answered, or the claim's epoch ends.

    A ``gone`` that follows in the list is sent after the answer: its receiver claims the device at once.
    """

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
class Regrant:
    """In a new term, the connection continues under another grant and its lease. Its actions under the old one were
    valid until that lease ended."""

    old: Grant
    new: Grant


@dataclass(frozen=True, slots=True)
class Supersede:
    """Another connection has the device since this one's lease has ended: end it before doing anything that follows."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class Refuse:
    """The new connection gets no slot."""

    claim: Claim
    reason: RefusalReason


Action = Acquire | Release | Ping | Evict | Send | Wake | Admit | Regrant | Supersede | Refuse
"""One step."""
Actions = list[Action]
"""Steps, to be carried out in order."""
