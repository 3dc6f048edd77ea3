"""Which records the devices of this server have already taken, for gateways without a mailbox. Pure.

When a partition moves to another server, Kafka redelivers the records that the earlier owner had read and not
committed. Each partition is read in the order of its offsets, so it suffices to remember the last offset that a device
has taken of each.

An offset can stand for another record if a partition loses its end (an unclean leader election). The new record has a
later timestamp than any that the device has taken of the partition; a record that is read again has not.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

MAX_SOURCES: Final = 1024
"""Partitions that are remembered; beyond it, the one that was heard of first is forgotten."""
LEAST_DEVICES: Final = 1024
"""Devices that are not connected are forgotten when a partition has more than this, and than twice as many as are."""


class TakenOffsets:
    """What the devices of this server have taken, by partition."""

    __slots__ = ("_sources",)

    def __init__(self) -> None:
        self._sources: dict[str, TakenOfSource] = {}

    def __repr__(self) -> str:
        return f"<TakenOffsets {len(self._sources)} partitions>"

    def of(self, source: str) -> TakenOfSource:
        found = self._sources.get(source)
        if found is None:
            if len(self._sources) >= MAX_SOURCES:
                del self._sources[next(iter(self._sources))]
            found = self._sources[source] = TakenOfSource()
        return found


class TakenOfSource:
    """The last offset of a partition that each device has taken, and the latest timestamp."""

    __slots__ = ("_devices", "_limit")

    def __init__(self) -> None:
        self._devices: dict[str, tuple[int, int]] = {}
        self._limit = LEAST_DEVICES

    def __len__(self) -> int:
        return len(self._devices)

    def take(self, device_id: str, offset: int, timestamp_ms: int) -> bool:
        """Return whether a device that is connected here has not taken this record yet, and remember that it has now.

        :param timestamp_ms: Unix milliseconds; 0: unknown
        """
        last = self._devices.get(device_id)
        if last is None:
            self._devices[device_id] = (offset, timestamp_ms)
            return True
        last_offset, latest_ms = last
        if offset > last_offset:
            self._devices[device_id] = (offset, timestamp_ms if timestamp_ms > latest_ms else latest_ms)
            return True
        if timestamp_ms > latest_ms:
            self._devices[device_id] = (offset, timestamp_ms)
            return True
        return False

    def forget_absent(self, connected: Container[str], count: int) -> None:
        """Forget devices that are not connected, if there are many. Call it now and then: it is O(1) amortized.

        :param count: of the connected devices
        """
        if len(self._devices) > self._limit:
            self._devices = {name: last for name, last in self._devices.items() if name in connected}
            self._limit = max(LEAST_DEVICES, 2 * max(count, len(self._devices)))
