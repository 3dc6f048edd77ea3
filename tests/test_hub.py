"""The Hub: sending to exactly one device, removal by identity, and who belongs to which user or group."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cocoa_tornado.hub import Hub
from cocoa_tornado.presence.grants import ConnectionDelivery, Lease
from cocoa_tornado.presence.port import Health
from cocoa_tornado.rules.close_codes import CloseReason
from cocoa_tornado.rules.frames import text_frame
from cocoa_tornado.rules.terms import Terms

from .clients import HEALTH, FakeClient, connect
from .profiles import examples


def test_a_message_goes_to_its_device_and_to_no_other() -> None:
    hub = Hub()
    one, two = connect(hub, "one"), connect(hub, "two")
    assert hub.send_to_device("one", b"x", 0, Terms(priority="high")) == 1
    assert (one.sent, two.sent) == ([text_frame(b"x")], [])


def test_a_message_for_a_stranger_goes_nowhere() -> None:
    hub = Hub()
    one = connect(hub, "one")
    assert hub.send_to_device("two", b"x") == 0
    assert one.sent == []


def test_a_broadcast_reaches_everyone_once() -> None:
    hub = Hub()
    clients = [connect(hub, str(number)) for number in range(5)]
    assert hub.broadcast(b"x") == 5
    assert [client.sent for client in clients] == [[text_frame(b"x")]] * 5


def test_of_a_devices_two_connections_a_close_removes_its_own() -> None:
    hub = Hub()
    first, second = connect(hub), connect(hub)
    assert hub.unregister(first)
    assert (len(hub), hub.clients_of("doll"), hub.get_client_by_device("doll")) == (1, [second], second)
    assert not hub.unregister(first)
    assert hub.send_to_device("doll", b"x") == 1
    assert (first.sent, second.sent) == ([], [text_frame(b"x")])
    assert hub.unregister(second)
    assert (len(hub), hub.is_device_connected("doll"), hub.get_client_by_device("doll")) == (0, False, None)


@pytest.mark.parametrize("delivery", ["all", "one"])
def test_a_canary_gets_its_messages_and_is_no_device(delivery: ConnectionDelivery) -> None:
    hub = Hub(delivery)
    arrived, left = list[str](), list[str]()
    hub.watch(arrived.append, left.append)
    canary, doll = connect(Hub(), "canary"), connect(hub, "doll")
    hub.add_canary(canary)
    assert hub.send_to_device("canary", b"x") == 1
    assert hub.broadcast(b"to all") == 1
    assert (canary.sent, doll.sent) == ([text_frame(b"x")], [text_frame(b"to all")])
    assert (len(hub), list(hub), list(hub.devices())) == (1, [doll], ["doll"])
    assert not hub.is_device_connected("canary")
    assert hub.identity_of("canary") is None
    assert list(hub.devices_of_user(doll.identity.user_id)) == ["doll"]
    hub.resumed()
    assert (canary.resumed, doll.resumed) == (1, 1)
    hub.remove_canary(canary)
    hub.remove_canary(canary)
    assert list(hub.connected) == ["doll"]
    assert (arrived, left) == (["doll", "canary"], ["canary"])


def test_a_lost_lease_ends_canaries_too_and_an_eviction_only_its_own() -> None:
    hub = Hub()
    one, two = connect(Hub(), "one"), connect(Hub(), "two")
    hub.add_canary(one)
    hub.add_canary(two)
    hub.evict(one.grant, CloseReason(4409, "", "replaced"))
    assert (one.closed, two.closed) == (4409, 0)
    hub.lease_lost(one.grant.lease)
    assert two.closed == 1001


def test_a_late_close_of_the_old_connection_does_not_touch_the_new_one() -> None:
    hub = Hub()
    old = connect(hub)
    hub.unregister(old)
    new = connect(hub)
    assert not hub.unregister(old)
    assert hub.get_client_by_device("doll") is new


def test_with_delivery_to_one_the_first_connection_gets_the_messages_until_it_ends() -> None:
    hub = Hub("one")
    first, second, third = connect(hub), connect(hub), connect(hub)
    assert (hub.send_to_device("doll", b"x"), hub.receivers_of("doll")) == (1, [first])
    assert hub.unregister(second)
    assert hub.receivers_of("doll") == [first]
    assert hub.unregister(first)
    assert (hub.receivers_of("doll"), hub.clients_of("doll")) == ([third], [third])
    assert hub.unregister(third)
    assert (hub.receivers_of("doll"), list(hub.connected)) == ((), [])


def test_the_healthiest_connection_takes_over() -> None:
    hub = Hub("one")
    active, *others = (connect(hub) for _ in range(5))
    assert hub.relieve(others[0], 0) is None  # it is not the active one
    active.health = Health(0.0, 0.1, 200)
    healths = [Health(0.0, 0.1, 0, True), Health(0.0, 0.2, 3), Health(0.0, 0.1, 3), Health(0.0, None, 3)]
    for client, health in zip(others, healths, strict=True):
        client.health = health
    assert hub.relieve(active, 4) is others[2]
    assert hub.receivers_of("doll") == [others[2]]
    hub.unregister(others[2])
    assert hub.receivers_of("doll") == [others[1]]


def test_a_connection_that_is_the_healthiest_is_not_relieved() -> None:
    hub = Hub("one")
    active, other = connect(hub), connect(hub)
    active.health, other.health = Health(0.0, 0.1, 20), Health(0.0, 0.1, 30)
    assert hub.relieve(active, 20) is None
    assert hub.receivers_of("doll") == [active]


def test_two_slow_connections_do_not_relieve_each_other() -> None:
    hub = Hub("one")
    active, other = connect(hub), connect(hub)
    active.health, other.health = Health(0.0, 0.1, 200), Health(0.0, 0.2, 1)
    assert hub.relieve(active, keeps=1) is None  # it has the shorter round trip
    active.health = Health(0.0, 0.3, 200)
    assert hub.relieve(active, keeps=1) is other
    active.health, other.health = Health(0.0, 0.3, 1), Health(0.0, 0.2, 200)
    assert hub.relieve(other, keeps=1) is None


def test_with_delivery_to_all_no_connection_is_relieved() -> None:
    hub = Hub()
    first, second = connect(hub), connect(hub)
    first.health = Health(0.0, 0.1, 200)
    assert hub.relieve(first, 1) is None
    assert hub.receivers_of("doll") == [first, second]


def test_two_hubs_do_not_meet() -> None:
    one, two = Hub(), Hub()
    connect(one)
    assert not two.is_device_connected("doll")
    assert len(two) == 0


def test_the_repr_is_one_line() -> None:
    hub = Hub()
    connect(hub)
    assert repr(hub) == "<Hub 1 connections of 1 devices>"


# -- users and groups


def test_the_devices_of_a_user_are_found_and_user_99_is_not_user_99_in_quotes() -> None:
    hub = Hub()
    users: list[int | str] = [99, "99", 99, 7]
    for device_id, user_id in zip("abcd", users, strict=True):
        connect(hub, device_id, user_id)
    assert list(hub.devices_of_user(99)) == ["a", "c"]
    assert list(hub.devices_of_user("99")) == ["b"]
    assert list(hub.devices_of_user("7")) == []


def test_the_devices_of_a_group_are_found_and_a_device_may_be_in_several() -> None:
    hub = Hub()
    connect(hub, "a", groups=["red", "blue", "red"])
    connect(hub, "b", groups=["blue"])
    connect(hub, "c")
    assert [list(hub.devices_of_group(group)) for group in ("red", "blue", "green")] == [["a"], ["a", "b"], []]


def test_the_newest_token_of_a_device_decides_for_all_of_its_connections() -> None:
    hub = Hub()
    first = connect(hub, "a", 1, ["red", "blue"])
    second = connect(hub, "a", "2", ["blue", "green"])
    assert [list(hub.devices_of_user(user)) for user in (1, "2")] == [[], ["a"]]
    assert [list(hub.devices_of_group(group)) for group in ("red", "blue", "green")] == [[], ["a"], ["a"]]
    hub.unregister(second)
    assert list(hub.devices_of_user("2")) == ["a"], "also when its connection has ended"
    hub.unregister(first)
    assert list(hub.devices_of_user("2")) == list(hub.devices_of_group("blue")) == []


class MembersMachine(RuleBasedStateMachine):
    """Connect and disconnect in any order: the indexes hold what a search through all connections would find."""

    USERS, GROUPS, DEVICES = (99, "99", 0, ""), ("red", "blue"), ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.hub = Hub()
        self.clients: list[FakeClient] = []
        self.newest: dict[str, FakeClient] = {}

    @rule(device_id=st.sampled_from(DEVICES), user=st.sampled_from(USERS), groups=st.lists(st.sampled_from(GROUPS)))
    def connect(self, device_id: str, user: int | str, groups: list[str]) -> None:
        client = connect(self.hub, device_id, user, groups)
        self.clients.append(client)
        self.newest[device_id] = client

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients))
        self.clients.remove(client)
        assert self.hub.unregister(client)
        assert not self.hub.unregister(client)

    @invariant()
    def the_indexes_agree_with_a_search(self) -> None:
        connected = {client.grant.device_id for client in self.clients}
        identities = {device_id: self.newest[device_id].identity for device_id in connected}
        for user in self.USERS:
            of_user = {d for d, identity in identities.items() if repr(identity.user_id) == repr(user)}
            assert set(self.hub.devices_of_user(user)) == of_user
        for group in self.GROUPS:
            of_group = {d for d, identity in identities.items() if group in identity.groups}
            found = self.hub.devices_of_group(group)
            assert (set(found), len(found)) == (of_group, len(of_group))
        for device_id in self.DEVICES:
            of_device = [client for client in self.clients if client.grant.device_id == device_id]
            assert list(self.hub.clients_of(device_id)) == of_device
        assert len(self.hub) == len(self.clients)

    def teardown(self) -> None:
        for client in self.clients:
            self.hub.unregister(client)
        assert (len(self.hub), len(self.hub._users), len(self.hub._groups), self.hub._identities) == (0, 0, 0, {})


MembersMachine.TestCase.settings = examples(50, steps=30)
TestMembersMachine = MembersMachine.TestCase


# -- what presence asks for


def test_presence_reaches_a_connection_by_its_grant_and_no_other_of_the_device() -> None:
    hub = Hub()
    first, second = connect(hub), connect(hub)
    hub.challenge(first.grant)
    hub.evict(second.grant, CloseReason(4409, "replaced by another connection", "replaced"))
    assert (first.challenges, first.closed, second.challenges, second.closed) == (1, 0, 0, 4409)
    assert hub.health(first.grant) == HEALTH


def test_a_grant_without_a_connection_is_ignored() -> None:
    hub = Hub()
    gone = connect(hub)
    hub.unregister(gone)
    connect(hub)
    hub.challenge(gone.grant)
    hub.evict(gone.grant, CloseReason(4409, "replaced by another connection", "replaced"))
    assert hub.health(gone.grant) is None
    assert (len(hub), gone.closed) == (1, 0)


def test_a_lost_lease_ends_the_connections_that_were_granted_under_it() -> None:
    hub, lost = Hub(), Lease("before")
    before, after = connect(hub, "a", lease=lost), connect(hub, "b")
    hub.lease_lost(lost)
    assert (before.closed, after.closed) == (1001, 0)
    assert [client.grant.device_id for client in hub] == ["b"]
