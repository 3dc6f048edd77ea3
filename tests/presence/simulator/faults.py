"""Faults to plant, each of which takes one part of the protocol away: the walks must find them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from cocoa_tornado.presence.actions import Actions
from cocoa_tornado.presence.grants import RefusalReason
from cocoa_tornado.presence.rules import Slots, _Device
from cocoa_tornado.relay.messages import Challenge

from .store import Replacements, Scripts


class _IgnoringPendingClaims(Slots):
    """A challenge of a claim whose answer is under way is answered with ``gone``."""

    def challenged(self, challenge: Challenge, now: float) -> Actions:
        device, devices = self._devices.get(challenge.device_id), self._devices
        if device is None or device.find(challenge.holder) is not None:
            return super().challenged(challenge, now)
        self._devices = {}
        todo = super().challenged(challenge, now)
        self._devices = devices
        return todo


class _TakingSilenceForLife(Slots):
    """A new connection is refused with 409 if nobody answers."""

    def _refuse_all(
        self,
        device_id: str,
        device: _Device,
        reason: RefusalReason,
        now: float,
        todo: Actions,
        arrived_until: float = math.inf,
    ) -> None:
        super()._refuse_all(device_id, device, "device", now, todo, arrived_until)


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
}
"""By name."""


@cache
def scripts_with(name: str) -> Scripts:
    """Compiled once for all walks of a process."""
    return Scripts(FAULTS[name].lua if name else None)
