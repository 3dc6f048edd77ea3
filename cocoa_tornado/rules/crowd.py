"""Which connections that are not a device's to close when there are too many, and how many one address may have. Pure:
the listener reports what happens to each connection, passes the time, and closes the connections that are returned.

A connection that is being served is in one of four phases. Each phase has a patience: how long it may last before the
connection may be closed in favor of a new one. While there is room none is closed; then only Tornado's own timeouts
(``header_timeout``, ``body_timeout``) apply.

The phases are listed in the order in which they are closed. Closing the first costs its client least: HTTP allows a
server to close a connection between two requests at any time.

An admitted audio upload is never closed, and does not count for its address: the limits on audio streams bound those.
No other request is exempt, because a token alone limits nothing.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

from .origins import Network, is_trusted
from .rate import client_of

RESERVE_SHARE: Final = 16
"""The last sixteenth of the bound is a reserve. As long as a connection is in it, others give way."""

ALARM_S: Final = 60.0
"""For this long after slow connections had to be closed, a connection that enters the reserve must be quick, so that a
probe of ``/health`` finds a free place in it while slow clients hold all others. Not before: thousands of devices that
come back at once fill the reserve too, and nearly all of them are served within the patience for slow ones."""

MAX_REQUESTS: Final = 1000
MAX_AGE_S: Final = 600.0
"""After this many requests, or this long, the next answer closes its connection. A proxy or a scraper opens another
one; no client holds a place indefinitely."""

LOOKED_AT: Final = 32
"""How many connections of an address to examine for one that may be closed."""

LOOPBACK: Final[tuple[Network, ...]] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


class HttpPhase(enum.Enum):
    """What a connection is doing; the value is a metric label."""

    IDLE = "idle"  # between two requests
    HURRIED = "hurried"  # as SLOW, in the reserve while slow clients are known to hold places
    SLOW = "slow"  # in its TLS handshake, or before the end of its first request's headers
    REQUEST = "request"  # between the headers of a request and the end of its answer


PATIENCE_S: Final = {
    HttpPhase.IDLE: 0.0,
    # Enough for TCP and TLS over most networks. The probe of an orchestrator waits about as long for its answer.
    HttpPhase.HURRIED: 1.0,
    # Enough for TLS on a small device over a slow mobile network.
    HttpPhase.SLOW: 5.0,
    # The gateway's own answers take milliseconds; only a body that drips takes so long.
    HttpPhase.REQUEST: 10.0,
}


HEADLESS: Final = (HttpPhase.IDLE, HttpPhase.HURRIED, HttpPhase.SLOW)
"""In these the end of a request's headers is awaited, for ``header_timeout`` at most."""


class Member(Protocol):
    """A connection in the crowd; compared by identity.

    :ivar has_upload: its current request is an admitted upload; the crowd clears it at the end of the request
    """

    has_upload: bool


T = TypeVar("T", bound=Member)


@dataclass(slots=True, eq=False)
class _Entry(Generic[T]):
    item: T
    address: str
    entered_at: float
    phase: HttpPhase | None = None
    requests: int = 0
    yields: bool = False


class Crowd(Generic[T]):
    """The connections that are being served and are not a device's.

    :meth:`enter` puts one in and :meth:`leave` takes it out; in between the other methods say what it does. ``now`` is
    monotonic time in seconds.

    :param max_per_address: connections of one address; 0: no limit
    """

    def __init__(self, max_per_address: int = 0) -> None:
        self._max_per_address = max_per_address
        self._entries: dict[T, _Entry[T]] = {}
        # Longest in the phase first.
        self._phases: dict[HttpPhase, dict[_Entry[T], float]] = {phase: {} for phase in HttpPhase}
        self._addresses: dict[str, dict[_Entry[T], None]] = {}
        self._yielding = 0
        self._alarm_until = -math.inf

    def __repr__(self) -> str:
        phases = ", ".join(f"{len(members)} {phase.value}" for phase, members in self._phases.items())
        return f"<Crowd of {len(self._entries)}: {phases}>"

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def yielding(self) -> int:
        """How many connections were chosen to be closed and have not left yet."""
        return self._yielding

    def admits(self, address: str) -> bool:
        """Whether one more connection of this address is within the limit. ``""`` has no limit."""
        limit = self._max_per_address
        return not limit or not address or len(self._addresses.get(address, ())) < limit

    def enter(self, item: T, address: str, now: float, *, in_reserve: bool = False) -> None:
        """A connection is served from now on.

        :param address: from :func:`address_of`; ``""``: it counts for no address
        """
        entry = self._entries[item] = _Entry(item, address, now)
        self._count(entry)
        self._move(entry, HttpPhase.HURRIED if in_reserve and now < self._alarm_until else HttpPhase.SLOW, now)

    def replace(self, item: T, other: T) -> None:
        """The connection is represented by another object from now on. Nothing else changes."""
        entry = self._entries.pop(item)
        entry.item = other
        self._entries[other] = entry

    def awaits(self, item: T, now: float) -> bool:
        """The connection waits for its next request. False if that must be the connection's last."""
        entry = self._entries.get(item)
        if entry is None or entry.yields:
            return True
        entry.requests += 1
        if entry.requests > 1:
            if item.has_upload:
                item.has_upload = False
                self._count(entry)
            self._move(entry, HttpPhase.IDLE, now)
        return entry.requests < MAX_REQUESTS and now - entry.entered_at < MAX_AGE_S

    def asks(self, item: T, now: float) -> None:
        """The headers of a request have arrived."""
        entry = self._entries.get(item)
        if entry is not None:
            self._move(entry, HttpPhase.REQUEST, now)

    def leave(self, item: T) -> None:
        """The connection is closed, or has become a device's. Idempotent."""
        entry = self._entries.pop(item, None)
        if entry is not None:
            self._withdraw(entry)
            self._yielding -= entry.yields

    def give_way(self, count: int, now: float) -> list[tuple[T, HttpPhase]]:
        """Return the connections to close now, at most ``count``, with what each was doing. None is returned twice."""
        found: list[tuple[T, HttpPhase]] = []
        for phase, members in self._phases.items():
            while len(found) < count and (entry := self._first(members)) is not None:
                if now - members[entry] < PATIENCE_S[phase]:
                    break
                self._yield(entry)
                found.append((entry.item, phase))
                if phase is not HttpPhase.IDLE:
                    self._alarm_until = now + ALARM_S
        return found

    def give_way_at(self, address: str, now: float) -> tuple[T, HttpPhase] | None:
        """Return the connection to close for another one of the same address: the first of its oldest whose time is
        over."""
        for entry in list(islice(self._addresses.get(address, ()), LOOKED_AT)):
            phase = entry.phase
            if entry.item.has_upload:
                self._withdraw(entry)
            elif phase is not None and now - self._phases[phase][entry] >= PATIENCE_S[phase]:
                self._yield(entry)
                return entry.item, phase
        return None

    def _first(self, members: Mapping[_Entry[T], object]) -> _Entry[T] | None:
        """The first connection that may have to be closed."""
        while (entry := next(iter(members), None)) is not None and entry.item.has_upload:
            self._withdraw(entry)
        return entry

    def next_at(self) -> float | None:
        """When :meth:`give_way` returns the next one, if nothing happens before; None: never."""
        heads = [(next(iter(members.values())), phase) for phase, members in self._phases.items() if members]
        return min((since + PATIENCE_S[phase] for since, phase in heads), default=None)

    def late(self, timeout_s: float, now: float) -> list[T]:
        """Return the connections whose request head has been incomplete for this long."""
        found = []
        for phase in HEADLESS:
            for entry, since in self._phases[phase].items():
                if now - since < timeout_s:
                    break
                found.append(entry.item)
        return found

    def next_late_at(self, timeout_s: float) -> float | None:
        """When :meth:`late` returns the next one, if nothing happens before; None: never."""
        heads = [next(iter(self._phases[phase].values())) for phase in HEADLESS if self._phases[phase]]
        return min(heads) + timeout_s if heads else None

    def _move(self, entry: _Entry[T], phase: HttpPhase, now: float) -> None:
        if entry.yields:
            return
        if entry.phase is not None:
            del self._phases[entry.phase][entry]
        entry.phase = phase
        self._phases[phase][entry] = now

    def _count(self, entry: _Entry[T]) -> None:
        if entry.address:
            self._addresses.setdefault(entry.address, {})[entry] = None

    def _yield(self, entry: _Entry[T]) -> None:
        self._withdraw(entry)
        entry.yields = True
        self._yielding += 1

    def _withdraw(self, entry: _Entry[T]) -> None:
        """Remove the connection from its phase and from its address."""
        if entry.phase is not None:
            del self._phases[entry.phase][entry]
            entry.phase = None
        members = self._addresses.get(entry.address)
        if members is not None:
            members.pop(entry, None)
            if not members:
                del self._addresses[entry.address]


def address_of(peer: str, exempt: Sequence[Network]) -> str:
    """Return the key under which the limit per address counts a peer: the IPv4 address, or the IPv6 network (/64) of
    one subscriber; ``""`` if the limit does not apply to it, or if it is not an IP address.

    >>> address_of("192.0.2.7", ()), address_of("2001:db8::1:2", ()), address_of("::ffff:192.0.2.7", ())
    ('192.0.2.7', '2001:db8::/64', '192.0.2.7')
    """
    try:
        address = str(ip_address(peer.partition("%")[0]))
    except ValueError:
        return ""
    return "" if is_trusted(address, exempt) else client_of(address)
