"""Which records the devices of this server have already taken, where no mailbox knows. Pure.

Kafka hands records over again when a partition moves from one server to another: those that the earlier owner had read
and not committed. Each partition is read in the order of its offsets, so it suffices to remember the last offset that a
device has taken of each.

An offset can stand for another record if a partition loses its end (an unclean leader election). The new record has a
later timestamp than any that the device has taken of the partition; a record that is read again has not.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

MAX_SOURCES: Final = 64
"""Partitions remembered for each device; beyond it, the one that the device has heard of first is forgotten."""
LEAST_DEVICES: Final = 1024
"""Devices that are not connected are forgotten when more than half of the table, and of this, are such devices."""


class TakenOffsets:
    """The last offset, and the latest timestamp, of each partition and device."""

    __slots__ = ("_devices", "_limit")

    def __init__(self) -> None:
        self._devices: dict[str, dict[str, tuple[int, int]]] = {}
        self._limit = LEAST_DEVICES

    def __repr__(self) -> str:
        return f"<TakenOffsets {len(self._devices)} devices>"

    def __len__(self) -> int:
        return len(self._devices)

    def take(self, device_id: str, source: str, offset: int, timestamp_ms: int) -> bool:
        """Return whether a device that is connected here has not taken this record yet, and remember that it has now.

        :param timestamp_ms: Unix milliseconds; 0: unknown
        """
        sources = self._devices.get(device_id)
        if sources is None:
            self._devices[device_id] = {source: (offset, timestamp_ms)}
            return True
        last = sources.get(source)
        if last is None:
            if len(sources) >= MAX_SOURCES:
                del sources[next(iter(sources))]
            sources[source] = (offset, timestamp_ms)
            return True
        latest_ms = last[1]
        if offset > last[0]:
            sources[source] = (offset, timestamp_ms if timestamp_ms > latest_ms else latest_ms)
            return True
        if timestamp_ms > latest_ms:
            sources[source] = (offset, timestamp_ms)
            return True
        return False

    def forget_absent(self, connected: Container[str], count: int) -> None:
        """Forget devices that are not connected, if there are many. Call it now and then: it is O(1) amortized.

        :param count: of the connected devices
        """
        if len(self._devices) > self._limit:
            self._devices = {name: sources for name, sources in self._devices.items() if name in connected}
            self._limit = max(LEAST_DEVICES, 2 * max(count, len(self._devices)))
