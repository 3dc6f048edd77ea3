"""Users and groups as audiences of a mailbox."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.routing.address import Everyone, Group, User
from cocoa_tornado.rules.audiences import ALL, address_of, audience_of, audiences_of, of_group, of_user
from cocoa_tornado.rules.identity import DeviceIdentity, is_group, is_user_id

USERS = (st.integers() | st.text(max_size=10)).filter(is_user_id)
GROUPS = st.text(min_size=1, max_size=10).filter(is_group)


def test_user_99_and_user_text_99_are_different_audiences() -> None:
    assert of_user(99) != of_user("99")


def test_a_device_is_in_the_audience_of_everyone_of_its_user_and_of_each_group() -> None:
    identity = DeviceIdentity("doll", 99, "1.0", ("a", "b"), math.inf)
    assert audiences_of(identity) == {ALL, of_user(99), of_group("a"), of_group("b")}


@given(st.frozensets(USERS, max_size=8), st.frozensets(GROUPS, max_size=8))
def test_no_two_users_or_groups_share_an_audience(users: frozenset[int | str], groups: frozenset[str]) -> None:
    audiences = {ALL, *map(of_user, users), *map(of_group, groups)}
    assert len(audiences) == 1 + len(users) + len(groups)
    for audience in audiences:
        audience.encode("utf-8")


def test_the_audience_of_an_address_is_that_of_the_devices_which_it_addresses() -> None:
    identity = DeviceIdentity("doll", "u", "1.0", ("g",), math.inf)
    addressed = {audience_of(address) for address in (User("u"), Group("g"), Everyone())}
    assert addressed == audiences_of(identity)


@given(st.builds(User, USERS) | st.builds(Group, GROUPS) | st.just(Everyone()))
def test_an_audience_says_which_address_it_was_made_of(address: User | Group | Everyone) -> None:
    assert address_of(audience_of(address)) == address
    excluded = frozenset({"doll"})
    assert address_of(audience_of(address), excluded) == replace(address, excluded=excluded)


@pytest.mark.parametrize("text", ["", "nobody", "ALL"])
def test_other_text_is_no_audience(text: str) -> None:
    with pytest.raises(ValueError, match="not an audience"):
        address_of(text)
