"""Audiences: the users and groups that a device belongs to, as text for a mailbox's index of members. Pure.

A message that is addressed to a user or a group is stored with its audience. It is for a device only as long as the
device's newest token names that audience.
"""

from __future__ import annotations

import json
from typing import Final, TypeAlias

from ..routing.address import Everyone, Group, User
from .identity import DeviceIdentity

Audience: TypeAlias = str
"""``user:`` and the user id as JSON, ``group:`` and the group's name, or ``all``."""

ALL: Final[Audience] = "all"
"""Every device that has connected with a token and is not forgotten."""


def of_user(user_id: int | str) -> Audience:
    """99 and ``"99"`` are different users."""
    return f"user:{json.dumps(user_id, ensure_ascii=False)}"


def is_of_user(audience: Audience) -> bool:
    return audience.startswith("user:")


def of_group(name: str) -> Audience:
    return f"group:{name}"


def audiences_of(identity: DeviceIdentity) -> frozenset[Audience]:
    """The audiences that a device's token names, ``ALL`` included."""
    return frozenset((ALL, of_user(identity.user_id), *map(of_group, identity.groups)))


def audience_of(address: User | Group | Everyone) -> Audience:
    if isinstance(address, User):
        return of_user(address.user_id)
    return of_group(address.name) if isinstance(address, Group) else ALL


def address_of(audience: Audience, excluded: frozenset[str] = frozenset()) -> User | Group | Everyone:
    """The address that an audience was made of.

    :raises ValueError: it is no audience
    """
    kind, _, name = audience.partition(":")
    if kind == "user":
        return User(json.loads(name), excluded)
    if kind == "group":
        return Group(name, excluded)
    if audience == ALL:
        return Everyone(excluded)
    raise ValueError(f"not an audience: {audience!r}")
