"""Token buckets, one or one for each of many clients, and a bound on log lines. Pure: the caller brings the time."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address


@dataclass(frozen=True, slots=True)
class RateLimit:
    """:ivar per_s: events a second in the long run, 0 for no limit; :ivar burst: events at once after a rest."""

    per_s: float
    burst: int


class RateBucket:
    """How much of a limit is left. Starts full; two floats, for there is one per connection."""

    __slots__ = ("_at", "_left")

    def __init__(self) -> None:
        self._left = -1.0
        self._at = 0.0

    def take(self, limit: RateLimit, now: float, events: int = 1) -> bool:
        """So many events at ``now`` (seconds, monotonic); False if that is too many: none of them counts then."""
        if limit.per_s <= 0:
            return True
        if self._left < 0:
            self._left = float(limit.burst)
        else:
            refilled = min(float(limit.burst), self._left + max(0.0, now - self._at) * limit.per_s)
            self._left = max(self._left, refilled)
        self._at = now
        if self._left < events:
            return False
        self._left -= events
        return True

    def credit(self, limit: RateLimit, seconds: float) -> None:
        """Let the events of so many seconds come late: on top of the burst, and once."""
        if self._left >= 0:
            self._left += seconds * limit.per_s


class LineBudget:
    """How many lines of one kind may be logged, where strangers or a fault could ask for any number of them."""

    __slots__ = ("_bucket", "_left_out", "_limit")

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self._bucket = RateBucket()
        self._left_out = 0

    def take(self, now: float) -> int | None:
        """None: leave this line out. A number: log it, and say that so many were left out before it."""
        if not self._bucket.take(self._limit, now):
            self._left_out += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return left_out


class Allowances:
    """How much of a limit is left to each of many clients, in bounded memory. No client pays for another.

    An allowance that is whole again takes no memory. Beyond ``max_clients`` the least used ones are forgotten first, so
    that nobody who has used up his own gets it back by sending others: as long as there are fewer than ``max_clients``
    of those. The price of more is that some are counted too low, never that somebody is refused for what others did.

    :param max_clients: the most that are remembered
    """

    __slots__ = ("_exhausted", "_max_clients", "_whole_at")

    def __init__(self, max_clients: int) -> None:
        self._max_clients = max_clients
        self._whole_at: dict[str, float] = {}
        self._exhausted: set[str] = set()  # those that have had nothing left since their allowance was whole

    def __len__(self) -> int:
        return len(self._whole_at)

    def wait_s(self, client: str, limit: RateLimit, now: float, events: int = 1) -> float:
        """How long until the client may have so many events, at most a burst of them; 0: now. Changes nothing."""
        if limit.per_s <= 0:
            return 0.0
        used = max(0.0, self._whole_at.get(client, now) - now) * limit.per_s
        lacking = used + min(events, limit.burst) - limit.burst
        # A rounding error is no reason to wait.
        return lacking / limit.per_s if lacking > 1e-6 else 0.0

    def spend(self, client: str, limit: RateLimit, now: float, events: int = 1) -> bool:
        """Count so many events, at most a burst of them, whatever is left. True if that has left nothing for another,
        for the first time since the allowance was whole: worth a line in the log."""
        if limit.per_s <= 0:
            return False
        whole_at = self._whole_at.get(client, now)
        if whole_at <= now:
            self._exhausted.discard(client)
        self._whole_at[client] = max(whole_at, now) + min(events, limit.burst) / limit.per_s
        if len(self._whole_at) > self._max_clients:
            self._forget(now)
        if client in self._exhausted or not self.wait_s(client, limit, now):
            return False
        self._exhausted.add(client)
        return True

    def _forget(self, now: float) -> None:
        """All that are whole again; if those are few, an eighth in all, so that the next call is a long way off."""
        surplus = len(self._whole_at) - self._max_clients * 7 // 8
        least_used = sorted(self._whole_at, key=self._whole_at.__getitem__)[:surplus]
        for client in least_used:
            del self._whole_at[client]
        self._whole_at = {client: at for client, at in self._whole_at.items() if at > now}
        self._exhausted.intersection_update(self._whole_at)


def client_of(address: str) -> str:
    """Whom an IP address stands for: an IPv6 client has a whole /64 to itself, an IPv4 client one address.

    >>> client_of("2001:db8::1:2"), client_of("::ffff:192.0.2.1"), client_of("")
    ('2001:db8::/64', '192.0.2.1', '')
    """
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(ip, IPv6Address):
        return str(ip)
    return str(ip.ipv4_mapped or IPv6Network((ip.packed[:8] + bytes(8), 64)))
