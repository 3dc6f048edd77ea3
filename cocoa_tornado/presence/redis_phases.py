"""The phases of a server's membership, as operators see them, with one log line for each change. Pure."""

from __future__ import annotations

import enum
import math

from .membership import Membership
from .port import PresenceState


class Phase(enum.Enum):
    STARTING = "starting"
    JOINING = "joining"  # Redis does not answer, or rejects
    SETTLING = "settling"  # the leases of the last term have to end first
    READY = "ready"
    SILENT = "silent"  # Redis has not answered the last beat; the lease is valid
    FROZEN = "frozen"
    CUT = "cut"
    CLOSED = "closed"

    @property
    def state(self) -> PresenceState:
        return _STATES[self]


_STATES = {
    Phase.STARTING: PresenceState.JOINING,
    Phase.JOINING: PresenceState.JOINING,
    Phase.SETTLING: PresenceState.JOINING,
    Phase.READY: PresenceState.READY,
    Phase.SILENT: PresenceState.READY,
    Phase.FROZEN: PresenceState.FROZEN,
    Phase.CUT: PresenceState.FROZEN,
    Phase.CLOSED: PresenceState.CLOSED,
}


def phase_of(membership: Membership, fault: str, *, is_cut: bool, now: float) -> Phase:
    """Cases, in order: no epoch, or the last one is over, and the store has or has not failed yet; the lease is over;
    new connections have to wait; the last beat was answered or not.

    :param fault: why the last attempt to join or to beat has failed; '': it has not
    """
    if membership.is_joining and membership.lease.until == -math.inf:
        return Phase.JOINING if fault else Phase.STARTING
    if is_cut:
        return Phase.CUT
    if not membership.lease.is_valid(now):
        return Phase.FROZEN
    if membership.is_joining:
        return Phase.JOINING
    if not membership.is_settled:
        return Phase.SETTLING
    return Phase.SILENT if fault else Phase.READY
