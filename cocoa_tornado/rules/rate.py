"""Token buckets, single or one for each client, and a limit on log lines. Pure: the caller passes the time."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address


@dataclass(frozen=True, slots=True)
class RateLimit:
    """:ivar per_s: sustained events per second, 0 for no limit; :ivar burst: events at once after a rest."""

    per_s: float
    burst: int


class RateBucket:
    """How much of a limit is left. Starts full. Two floats, because there is one for each connection."""

    __slots__ = ("_at", "_left")

    def __init__(self) -> None:
        self._left = -1.0
        self._at = 0.0

    def take(self, limit: RateLimit, now: float, events: int = 1) -> bool:
        """Take ``events`` at ``now`` (monotonic seconds); False if that is too many, and then none is taken."""
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
        """Allow the events of ``seconds`` to arrive late: a one-time addition to the burst."""
        if self._left >= 0:
            self._left += seconds * limit.per_s


class LineBudget:
    """Limits log lines of one kind that a client or a fault could cause in any number."""

    __slots__ = ("_bucket", "_limit", "_suppressed")

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self._bucket = RateBucket()
        self._suppressed = 0

    def take(self, now: float) -> int | None:
        """Return None to suppress this line. Return a number to log it: how many were suppressed before it."""
        if not self._bucket.take(self._limit, now):
            self._suppressed += 1
            return None
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed


class Allowances:
    """How much of a limit each of many clients has left, in bounded memory. No client pays for another.

    A full allowance takes no memory. Beyond ``max_clients`` the least used allowances are forgotten first. So a client
    that has used up its own can't get it back by making others spend, as long as fewer than ``max_clients`` have. With
    more than that, some are counted too low, but no client is ever refused because of others.

    :param max_clients: how many are remembered
    """

    __slots__ = ("_exhausted", "_max_clients", "_whole_at")

    def __init__(self, max_clients: int) -> None:
        self._max_clients = max_clients
        self._whole_at: dict[str, float] = {}
        self._exhausted: set[str] = set()  # clients that ran out since their allowance was last full

    def __len__(self) -> int:
        return len(self._whole_at)

    def wait_s(self, client: str, limit: RateLimit, now: float, events: int = 1) -> float:
        """Seconds until the client may have ``events`` (at most a burst); 0: now. Changes nothing."""
        if limit.per_s <= 0:
            return 0.0
        used = max(0.0, self._whole_at.get(client, now) - now) * limit.per_s
        lacking = used + min(events, limit.burst) - limit.burst
        # Don't wait because of a rounding error.
        return lacking / limit.per_s if lacking > 1e-6 else 0.0

    def spend(self, client: str, limit: RateLimit, now: float, events: int = 1) -> bool:
        """Count ``events`` (at most a burst), even beyond the limit. Return True if that used up the allowance for the
        first time since it was full: worth a log line."""
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
        """Drop all full allowances; if those are few, an eighth in all, so that the next call is far off."""
        surplus = len(self._whole_at) - self._max_clients * 7 // 8
        least_used = sorted(self._whole_at, key=self._whole_at.__getitem__)[:surplus]
        for client in least_used:
            del self._whole_at[client]
        self._whole_at = {client: at for client, at in self._whole_at.items() if at > now}
        self._exhausted.intersection_update(self._whole_at)


def client_of(address: str) -> str:
    """Return the client that an IP address stands for: an IPv6 client owns a /64, an IPv4 client one address.

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
