"""How many speech workers a machine or container has the CPUs and the memory for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

GATEWAY_BYTES: Final = 256 * 1024 * 1024
"""Memory for the gateway itself, beside its workers: thousands of devices, and kept audio."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The resources of this process.

    :ivar cores: CPUs that it may run on
    :ivar quota: CPUs' worth of time; None: no quota
    :ivar memory_bytes: for it and its workers together; None: unknown
    """

    cores: int
    quota: float | None = None
    memory_bytes: int | None = None

    @property
    def processors(self) -> int:
        """CPUs that can be kept busy, at least 1."""
        if self.quota is None:
            return max(1, self.cores)
        return max(1, min(self.cores, int(self.quota + 0.5)))

    def share(self, servers: int) -> Machine:
        """The part of one of several gateways with equal parts."""
        return Machine(
            max(1, self.processors // servers),
            None if self.quota is None else self.quota / servers,
            None if self.memory_bytes is None else self.memory_bytes // servers,
        )


@dataclass(frozen=True, slots=True)
class WorkerCount:
    """:ivar workers: processes to start, at least 1
    :ivar limit: the limiting resource; ``minimum``: CPUs or memory do not even suffice for one worker and the gateway
    :ivar fitting: how many fit in memory; None: unknown
    """

    workers: int
    limit: Literal["setting", "processors", "memory", "minimum"]
    fitting: int | None

    @property
    def exceeds_memory(self) -> bool:
        return self.fitting is not None and self.workers > self.fitting


def count_workers(setting: int, machine: Machine, worker_bytes: int) -> WorkerCount:
    """How many workers to start.

    :param setting: a nonzero number is used as is; 0: one per CPU, minus one for the gateway's event loop, and no more
        than fit in memory
    :param worker_bytes: memory of one busy worker
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
