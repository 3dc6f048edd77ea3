"""Settings of Redis under which two servers could hold a device at the same time. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from .membership import Timing


@dataclass(frozen=True, slots=True)
class Facts:
    """:ivar policy: ``maxmemory-policy``
    :ivar replicas: that are connected now
    :ivar least_replicas: ``min-replicas-to-write``
    :ivar lag_s: ``min-replicas-max-lag``
    :ivar has_sentinels: Redis Sentinel may promote a replica
    """

    policy: str
    replicas: int
    least_replicas: int
    lag_s: float
    has_sentinels: bool


def cautions_of(facts: Facts, timing: Timing) -> list[str]:
    """The warnings, each a line with its remedy.

    After a failover, the former master may still be reachable for some servers. It must refuse their beats, and their
    leases must have ended, before the servers at the new master settle the new term.
    """
    cautions = []
    if facts.policy.startswith("allkeys-"):
        cautions.append(f"maxmemory-policy is {facts.policy}: Redis may evict who holds a device; set it to noeviction")
    if facts.replicas or facts.has_sentinels:
        longest_s = timing.watch_s - timing.freeze_s
        if facts.least_replicas < 1:
            cautions.append("after a failover two masters may accept writes; set min-replicas-to-write to 1")
        elif facts.lag_s <= 0 or facts.lag_s >= longest_s:
            cautions.append(
                f"after a failover two masters may accept writes for {facts.lag_s:g} s; set min-replicas-max-lag to "
                f"less than {longest_s:g}"
            )
    return cautions
