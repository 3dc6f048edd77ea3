"""Which devices belong to which user or group. Pure."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Members(Generic[K]):
    """Devices by user or group, in the order in which they were added. Every call is O(1).

    Most users have one device, and a dict for each would take 200 bytes, so a single device is stored directly.
    """

    __slots__ = ("_devices",)

    def __init__(self) -> None:
        self._devices: dict[K, str | dict[str, None]] = {}

    def __repr__(self) -> str:
        return f"<Members of {len(self._devices)}>"

    def __len__(self) -> int:
        """The number of users or groups that have a device."""
        return len(self._devices)

    def add(self, key: K, device_id: str) -> None:
        """Has no effect if the device is already there."""
        devices = self._devices.get(key)
        if devices is None:
            self._devices[key] = device_id
        elif isinstance(devices, dict):
            devices[device_id] = None
        elif devices != device_id:
            self._devices[key] = {devices: None, device_id: None}

    def remove(self, key: K, device_id: str) -> None:
        """Has no effect if the device is not there."""
        devices = self._devices.get(key)
        if isinstance(devices, dict):
            devices.pop(device_id, None)
            if not devices:
                del self._devices[key]
        elif devices == device_id:
            del self._devices[key]

    def of(self, key: K) -> Collection[str]:
        """A view, which reflects later changes."""
        devices = self._devices.get(key, ())
        return (devices,) if isinstance(devices, str) else devices.keys() if devices else ()
