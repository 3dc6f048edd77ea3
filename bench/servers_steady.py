"""Whether servers keep to their memory and open files while devices come and go."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .servers_faults import Server
from .soak import MIB, is_flat
from .soak_gateway import GatewayFailed

QUARTERS = 4
TRIES = 3
SPARE_FILES = 10  # connections to Kafka and Redis come and go


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one server. :ivar files: its open files, without those of connections of devices and of HTTP clients"""

    memory_bytes: int
    files: int

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> Usage:
        connections = metrics["cocoa_connections"] + metrics["cocoa_http_connections"]
        return cls(int(metrics["process_resident_memory_bytes"]), int(metrics["process_open_fds"] - connections))


async def _metrics(server: Server) -> dict[str, float]:
    """An answer may take long on a machine that is busy with other things."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(GatewayFailed):
            return await server.gateway.metrics()
    return await server.gateway.metrics()


@dataclass(slots=True)
class Steadiness:
    """:ivar usages: of each server after each quarter of the time"""

    usages: dict[str, list[Usage]] = field(default_factory=dict)

    async def measure(self, servers: Sequence[Server], seconds: float) -> None:
        began = time.monotonic()
        for quarter in range(1, QUARTERS + 1):
            await asyncio.sleep(max(0.0, began + seconds * quarter / QUARTERS - time.monotonic()))
            for server in servers:
                self.usages.setdefault(server.name, []).append(Usage.of(await _metrics(server)))

    def violations(self) -> list[str]:
        found = []
        for name, usages in self.usages.items():
            half, end = usages[QUARTERS // 2 - 1], usages[-1]
            if not is_flat(half.memory_bytes, end.memory_bytes):
                found.append(f"memory of {name} grows")
            if end.files > half.files + SPARE_FILES:
                found.append(f"open files of {name} grow")
        return found

    def report(self) -> list[str]:
        return [
            f"  {name}, after each quarter: MiB {', '.join(f'{one.memory_bytes / MIB:.1f}' for one in usages)}; "
            f"files beside connections {', '.join(str(one.files) for one in usages)}"
            for name, usages in self.usages.items()
        ]
