"""How many speech workers a machine, or a container's share of it, can feed and hold. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

GATEWAY_BYTES: Final = 256 * 1024 * 1024
"""Memory that the gateway itself may need beside its workers: thousands of devices, and audio that is kept."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process may use.

    :ivar cores: that it may run on
    :ivar quota: processors' worth of time; None: no quota
    :ivar memory_bytes: of it and its workers together; None: unknown
    """

    cores: int
    quota: float | None = None
    memory_bytes: int | None = None

    @property
    def processors(self) -> int:
        """Processors that can be kept busy, at least 1."""
        if self.quota is None:
            return max(1, self.cores)
        return max(1, min(self.cores, int(self.quota + 0.5)))


@dataclass(frozen=True, slots=True)
class WorkerCount:
    """:ivar workers: processes to start, at least 1
    :ivar limit: what bounds them; ``minimum``: neither processors nor memory suffice for one and the gateway
    :ivar fitting: as many as the memory can hold; None: unknown
    """

    workers: int
    limit: Literal["setting", "processors", "memory", "minimum"]
    fitting: int | None

    @property
    def exceeds_memory(self) -> bool:
        return self.fitting is not None and self.workers > self.fitting


def count_workers(setting: int, machine: Machine, worker_bytes: int) -> WorkerCount:
    """How many to start.

    :param setting: an explicit number wins; 0: as many as there are processors, less one for the gateway's event loop,
        and no more than the memory can hold
    :param worker_bytes: of one at work
    """
    fitting = None
    if machine.memory_bytes is not None:
        fitting = max(0, machine.memory_bytes - GATEWAY_BYTES) // worker_bytes
    if setting:
        return WorkerCount(setting, "setting", fitting)
    busy = machine.processors - 1
    workers = busy if fitting is None else min(busy, fitting)
    if workers < 1:
        return WorkerCount(1, "minimum", fitting)
    return WorkerCount(workers, "processors" if workers == busy else "memory", fitting)
