"""The faults of Redis, as the driver knows faults of a store."""

from __future__ import annotations

from ..redis_store.faults import fault_of
from .store import StoreFault


class RedisStoreFault(StoreFault):
    """Redis is unreachable, or rejects a command.

    :ivar is_foreign: a key has a wrong type
    """

    def __init__(self, detail: str, *, away: bool = True, reopen: bool = False, is_foreign: bool = False) -> None:
        self.is_foreign = is_foreign
        super().__init__(detail, away=away, reopen=reopen)


def store_fault_of(error: Exception) -> RedisStoreFault:
    """Translate an error of redis-py or the network."""
    fault = fault_of(error)
    return RedisStoreFault(str(fault), away=fault.away, is_foreign=fault.is_foreign)
