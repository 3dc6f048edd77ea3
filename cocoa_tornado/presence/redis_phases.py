"""The phases of a server's membership, as operators see them, with one log line for each change. Pure."""

from __future__ import annotations

import enum
import math

from .membership import Membership
from .port import PresenceState


class PresencePhase(enum.Enum):
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
    PresencePhase.STARTING: PresenceState.JOINING,
    PresencePhase.JOINING: PresenceState.JOINING,
    PresencePhase.SETTLING: PresenceState.JOINING,
    PresencePhase.READY: PresenceState.READY,
    PresencePhase.SILENT: PresenceState.READY,
    PresencePhase.FROZEN: PresenceState.FROZEN,
    PresencePhase.CUT: PresenceState.FROZEN,
    PresencePhase.CLOSED: PresenceState.CLOSED,
}


def phase_of(membership: Membership, fault: str, *, is_cut: bool, now: float) -> PresencePhase:
    """Cases, in order: no epoch, or the last one is over, and the store has or has not failed yet; the lease is over;
    new connections have to wait; the last beat was answered or not.

    :param fault: why the last attempt to join or to beat has failed; '': it has not
    """
    if membership.is_joining and membership.lease.until == -math.inf:
        return PresencePhase.JOINING if fault else PresencePhase.STARTING
    if is_cut:
        return PresencePhase.CUT
    if not membership.lease.is_valid(now):
        return PresencePhase.FROZEN
    if membership.is_joining:
        return PresencePhase.JOINING
    if not membership.is_settled:
        return PresencePhase.SETTLING
    return PresencePhase.SILENT if fault else PresencePhase.READY
