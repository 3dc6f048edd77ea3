"""Faults to plant, each of which takes one part of the protocol away: the walks must find them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from cocoa_tornado.presence.actions import Actions
from cocoa_tornado.presence.decision import Decision
from cocoa_tornado.presence.device_slots import ClaimQueue
from cocoa_tornado.presence.grants import Lease, RefusalReason
from cocoa_tornado.presence.rules import Slots
from cocoa_tornado.relay.messages import Challenge

from .store import Replacements, Scripts


class _IgnoringPendingClaims(Slots):
    """A challenge of a claim whose answer is in transit is answered with ``gone``."""

    def challenged(self, challenge: Challenge, now: float) -> Actions:
        device, devices = self._devices.get(challenge.device_id), self._devices
        if device is None or device.find(challenge.holder) is not None:
            return super().challenged(challenge, now)
        self._devices = {}
        todo = super().challenged(challenge, now)
        self._devices = devices
        return todo


class IgnoringWaitingClaims(Slots):
    """A challenge waits only for a claim that the store is being asked for, and not for one that waits for answers."""

    def challenged(self, challenge: Challenge, now: float) -> Actions:
        device, devices = self._devices.get(challenge.device_id), self._devices
        queue = None if device is None else device.queue
        if queue is None or queue.asking == challenge.holder or challenge.holder not in queue.waiting:
            return super().challenged(challenge, now)
        self._devices = {}
        todo = super().challenged(challenge, now)
        self._devices = devices
        return todo


class _ClaimingAgainAtOnce(Slots):
    """Every connection is claimed again before the term is settled."""

    def rejoin(self, lease: Lease, lease_length_s: float, proof_s: float, now: float) -> Actions:
        return super().rejoin(lease, lease_length_s, math.inf, now)


class _TakingSilence(Decision):
    def refuse_all(self, queue: ClaimQueue, reason: RefusalReason, arrived_until: float = math.inf) -> None:
        super().refuse_all(queue, "device", arrived_until)


class _TakingSilenceForLife(Slots):
    """A new connection is refused with 409 if no server answers."""

    def _decide(self, device_id: str, now: float) -> Decision:
        decision = super()._decide(device_id, now)
        return _TakingSilence(device_id, decision.device, self.server, self.lease, self.limits(), now)


@dataclass(frozen=True)
class Fault:
    """:ivar what: for people; :ivar lua: what is different in the scripts; :ivar slots: the rules
    The simulator looks at the names of the others.
    """

    what: str
    lua: Replacements = field(default_factory=dict)
    slots: type[Slots] = Slots


_EVERY_SCRIPT: Final = ("beat", "claim", "release", "holders", "fence", "settle", "leave", "guard")

FAULTS: Final[dict[str, Fault]] = {
    "guard": Fault("no guard", {"guard": [("holds(ARGV[2], ARGV[3], ARGV[4])", "true")]}),
    "beat": Fault("FENCE without the beat", {"fence": [("~= ARGV[3]", "== false")]}),
    "identity": Fault(
        "RELEASE without identity", {"release": [("string.sub(holder, 1, #released) == released", "true")]}
    ),
    "pending": Fault("a challenge does not wait for a claim that is under way", slots=_IgnoringPendingClaims),
    "n": Fault(
        "claims of the own epoch are like those of others", {"claim": [("if server == epoch then", "if false then")]}
    ),
    "flush": Fault("the lease is not looked at before each write"),
    "settled": Fault("a new term grants at once", {"claim": [("not is_settled", "false")]}),
    "run": Fault(
        "scripts do not compare the run",
        {name: [("(found[2] or '') == stamp", "string.match(stamp, ':(.*)') == stamp")] for name in _EVERY_SCRIPT},
    ),
    "leave": Fault("LEAVE first, then the rest"),
    "unique": Fault("generations without the term"),
    "t503": Fault("silence is taken for life", slots=_TakingSilenceForLife),
    # The walks bring these about too seldom: see tests/presence/test_schedules.py.
    "lease": Fault("all connections go by the lease of the current epoch"),
    "proof": Fault("who may have been fenced claims again at once", slots=_ClaimingAgainAtOnce),
    "waiting": Fault(
        "a challenge does not wait for a claim that is itself in a challenge", slots=IgnoringWaitingClaims
    ),
}
"""By name."""


@cache
def scripts_with(name: str) -> Scripts:
    """Compiled once for all walks of a process."""
    return Scripts(FAULTS[name].lua if name else None)
