"""Addresses, records and directories for the tests of routing, and hypothesis' strategies for them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from hypothesis import strategies as st

from cocoa_tornado.routing.address import Address, Devices, Everyone, Group, User
from cocoa_tornado.rules.addressing import Options
from cocoa_tornado.rules.records import Record

DEVICES = ("a", "b", "c", "d")
USERS: tuple[int | str, ...] = (99, "99", 7)
GROUPS = ("red", "blue")


@dataclass
class Table:
    """A configurable directory."""

    all: Collection[str] = DEVICES
    users: dict[int | str, list[str]] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)

    def devices(self) -> Collection[str]:
        return self.all

    def devices_of_user(self, user_id: int | str) -> Collection[str]:
        return self.users.get(user_id, ())

    def devices_of_group(self, name: str) -> Collection[str]:
        return self.groups.get(name, ())


def record(
    address: Address = "a", payload: bytes = b"{}", interim_of: str = "", options: Options | None = None
) -> Record:
    return Record(address, payload, 0, interim_of=interim_of, options=options)


device_ids = st.sampled_from(DEVICES)
some_devices = st.lists(device_ids, max_size=5)
few_devices = st.frozensets(device_ids, max_size=2)
addresses: st.SearchStrategy[Address] = st.one_of(
    device_ids,
    some_devices.map(lambda found: Devices(tuple(found))),
    st.builds(User, st.sampled_from(USERS), few_devices),
    st.builds(Group, st.sampled_from(GROUPS), few_devices),
    st.builds(Everyone, few_devices),
)
options = st.sampled_from(
    [None, None, Options(ttl_s=0), Options(ttl_s=0, id="x"), Options(ttl_s=60), Options(priority="high")]
)
records = st.builds(record, addresses, interim_of=st.sampled_from(["", "", "s"]), options=options)
batches = st.lists(records, max_size=12)
one_of_few = st.sampled_from([[], ["a"], ["b", "a", "d"], list(DEVICES)])
tables = st.builds(
    lambda everyone, user, other, group: Table(everyone, {99: user, "99": other}, {"red": group}),
    *(one_of_few, one_of_few, one_of_few, one_of_few),
)
