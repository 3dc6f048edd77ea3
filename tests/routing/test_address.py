"""Whom an address stands for."""

from __future__ import annotations

from hypothesis import given

from cocoa_tornado.routing.address import Address, Devices, Everyone, Group, User, recipients

from .anyone import Table, addresses, tables

TABLE = Table(all=["a", "b"], users={99: ["a"], "99": ["b"]}, groups={"red": ["b", "a"]})


def test_an_address_stands_for_the_devices_that_it_names() -> None:
    assert recipients("z", TABLE) == ("z",)
    assert recipients(Devices(("z", "a")), TABLE) == ("z", "a")
    assert recipients(Group("red"), TABLE) == ("b", "a")
    assert recipients(Everyone(), TABLE) == ("a", "b")


def test_user_99_and_user_99_in_quotes_are_two() -> None:
    assert recipients(User(99), TABLE) == ("a",)
    assert recipients(User("99"), TABLE) == ("b",)
    assert len({User(99), User("99")}) == 2


def test_a_user_or_group_without_devices_has_no_recipients() -> None:
    assert recipients(User(5), TABLE) == recipients(Group("none"), TABLE) == recipients(Devices(()), TABLE) == ()


def test_no_address_of_several_devices_is_a_key_of_a_table_of_devices() -> None:
    table: dict[object, int] = {"a": 1, "red": 2, "99": 3}
    for address in (Devices(("a",)), User("99"), Group("red"), Everyone()):
        assert address not in table


def test_the_devices_that_an_address_excludes_are_left_out() -> None:
    excluded = frozenset({"b", "nowhere"})
    assert recipients(Group("red", excluded), TABLE) == ("a",)
    assert recipients(Everyone(excluded), TABLE) == ("a",)
    assert recipients(User("99", excluded), TABLE) == recipients(Everyone(frozenset({"a", "b"})), TABLE) == ()


@given(addresses, tables)
def test_each_device_is_named_once_and_only_by_an_address_that_names_it(address: Address, table: Table) -> None:
    found = recipients(address, table)
    assert len(set(found)) == len(found)
    if isinstance(address, str):
        assert found == (address,)
    elif isinstance(address, Devices):
        assert set(found) == set(address.device_ids)
    elif isinstance(address, User):
        assert set(found) == set(table.users.get(address.user_id, ())) - address.excluded
    elif isinstance(address, Group):
        assert set(found) == set(table.groups.get(address.name, ())) - address.excluded
    else:
        assert set(found) == set(table.all) - address.excluded
