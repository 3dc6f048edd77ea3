"""Connections of a Hub that record their calls."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from cocoa_tornado.hub import Hub
from cocoa_tornado.presence.grants import Grant, Lease
from cocoa_tornado.presence.port import Health
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.claims import Claim, Generation
from cocoa_tornado.rules.close_codes import CloseReason
from cocoa_tornado.rules.identity import DeviceIdentity
from cocoa_tornado.rules.terms import Later, Left, Terms

LEASE = Lease("here")
HEALTH = Health(0.5, 0.01, 2)
_numbers = itertools.count(1)


@dataclass(eq=False)
class FakeClient:
    """A client of a Hub."""

    hub: Hub
    grant: Grant
    identity: DeviceIdentity
    health: Health = HEALTH
    connected_at: int = 1_700_000_000
    remote_ip: str = "192.0.2.1"
    sent: list[bytes] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    taken_over: list[Left] = field(default_factory=list)
    terms: list[Terms | None] = field(default_factory=list)  # of each of them
    places: list[int | None] = field(default_factory=list)  # the messages that transient ones come after
    later: list[int | None] = field(default_factory=list)  # and those that they come before
    looks: int = 0  # into its box
    challenges: int = 0
    resumed: int = 0
    closed: int = 0

    def send(self, frame: bytes, timestamp_ms: int, terms: Terms | None = None) -> None:
        self.sent.append(frame)
        self.terms.append(terms)

    def stored(
        self, number: int, payload: bytes, timestamp_ms: int, options: Options | None = None, expires_ms: int = 0
    ) -> None:
        self.sent.append(payload)
        self.numbers.append(number)

    def is_queued(self, payload: bytes, timestamp_ms: int) -> bool:
        return False

    def take_over(self, left: Left) -> None:
        self.taken_over.append(left)

    def look_again(self) -> None:
        self.looks += 1

    def suggest(
        self,
        payload: bytes,
        timestamp_ms: int,
        terms: Terms | None,
        after: int | None = None,
        later: Later | None = None,
    ) -> None:
        self.sent.append(payload)
        self.terms.append(terms)
        self.places.append(after)
        self.later.append(later and later("normal"))

    def challenge(self) -> None:
        self.challenges += 1

    def regrant(self, grant: Grant) -> None:
        self.grant = grant

    def resume(self) -> None:
        self.resumed += 1

    def drop(self, reason: CloseReason) -> None:
        self.end(reason)

    def end(self, reason: CloseReason, keep_queued: bool = False, notice: bytes = b"") -> None:
        self.closed = reason.code
        self.hub.unregister(self)


def connect(
    hub: Hub, device_id: str = "doll", user_id: int | str = 99, groups: Sequence[str] = (), lease: Lease = LEASE
) -> FakeClient:
    """A device that has just connected."""
    number = next(_numbers)
    grant = Grant(device_id, Claim(lease.server, number), Generation(0, number), lease)
    client = FakeClient(hub, grant, DeviceIdentity(device_id, user_id, "1", tuple(groups), 1e12))
    hub.register(client)
    return client
