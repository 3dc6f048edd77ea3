"""Which devices a record addresses. Pure. Imports nothing of the gateway, so that records can contain an address.

Nearly every record is for one device. Its address is the device id itself, a plain ``str``, which costs nothing to
create and is a key of tables of devices. The other addresses are values that are never such a key. Those that do not
list their devices can exclude some.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias, assert_never

NAMED_DEVICE_BYTES: Final = 100
"""Memory that an address takes for each device that it names, beside the id's characters: objects, rounded up."""


@dataclass(frozen=True, slots=True)
class Devices:
    """Several devices by id. One that is listed twice gets the message once."""

    device_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class User:
    """Every device of a user. 99 and ``"99"`` are different users, as in tokens."""

    user_id: int | str
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Group:
    """Every device of a group."""

    name: str
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Everyone:
    """Every device."""

    excluded: frozenset[str] = frozenset()


Address: TypeAlias = str | Devices | User | Group | Everyone
"""A ``str`` is the id of one device."""


class Directory(Protocol):
    """The devices, by the claims of their tokens. Each call returns at once, from memory.

    The result may be a live view: copy it before you await anything.
    """

    def devices(self) -> Collection[str]: ...

    def devices_of_user(self, user_id: int | str) -> Collection[str]: ...

    def devices_of_group(self, name: str) -> Collection[str]: ...


def recipients(address: Address, directory: Directory) -> tuple[str, ...]:
    """Return the devices that an address stands for now, each once. Total: valid for every address.

    Cases: one device, devices by name, a user, a group, everyone.
    """
    if isinstance(address, str):
        return (address,)
    if isinstance(address, Devices):
        return _each_once(address.device_ids)
    if isinstance(address, User):
        return _each_once(directory.devices_of_user(address.user_id), address.excluded)
    if isinstance(address, Group):
        return _each_once(directory.devices_of_group(address.name), address.excluded)
    if isinstance(address, Everyone):
        return _each_once(directory.devices(), address.excluded)
    assert_never(address)  # an unknown address must never mean everyone


def most_recipients(address: Address, directory: Directory) -> int:
    """At least as many as :func:`recipients` would return, without expanding the address."""
    if isinstance(address, str):
        return 1
    if isinstance(address, Devices):
        return len(address.device_ids)
    if isinstance(address, User):
        return len(directory.devices_of_user(address.user_id))
    return len(directory.devices_of_group(address.name) if isinstance(address, Group) else directory.devices())


def bytes_of_names(address: Address) -> int:
    """About the memory that the devices take which an address names or excludes, in bytes; 0 for a single device."""
    if isinstance(address, str):
        return 0
    named = address.device_ids if isinstance(address, Devices) else address.excluded
    return sum(map(len, named)) + NAMED_DEVICE_BYTES * len(named)


def is_for(address: User | Group | Everyone, device_id: str, directory: Directory) -> bool:
    """Whether a device is among the recipients of an address now."""
    if device_id in address.excluded:
        return False
    if isinstance(address, User):
        return device_id in directory.devices_of_user(address.user_id)
    return device_id in (
        directory.devices_of_group(address.name) if isinstance(address, Group) else directory.devices()
    )


def _each_once(device_ids: Iterable[str], excluded: frozenset[str] = frozenset()) -> tuple[str, ...]:
    found = dict.fromkeys(device_ids)
    return tuple([device_id for device_id in found if device_id not in excluded] if excluded else found)
