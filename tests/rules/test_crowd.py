"""Which connections give way when there are too many: the order, the patience, and the limit per address."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.rules.crowd import (
    ALARM_S,
    LOOPBACK,
    MAX_AGE_S,
    MAX_REQUESTS,
    PATIENCE_S,
    Crowd,
    HttpPhase,
    address_of,
)


@dataclass(eq=False)
class Connection:
    name: int = 0
    has_upload: bool = False


def slow(crowd: Crowd[Connection], now: float, address: str = "", **options: bool) -> Connection:
    connection = Connection()
    crowd.enter(connection, address, now, **options)
    crowd.awaits(connection, now)
    return connection


def idle(crowd: Crowd[Connection], now: float, address: str = "") -> Connection:
    connection = slow(crowd, now, address)
    crowd.asks(connection, now)
    crowd.awaits(connection, now)
    return connection


def test_connections_between_two_requests_give_way_at_once_and_the_longest_idle_first() -> None:
    crowd = Crowd[Connection]()
    slow(crowd, 1.5)
    first, second, third = idle(crowd, 1.0), idle(crowd, 2.0), idle(crowd, 3.0)
    crowd.asks(first, 4.0)
    crowd.awaits(first, 4.0)
    assert crowd.give_way(1, 4.0) == [(second, HttpPhase.IDLE)]
    assert crowd.give_way(5, 4.0) == [(third, HttpPhase.IDLE), (first, HttpPhase.IDLE)]


def test_a_connection_that_sends_its_first_headers_has_some_seconds() -> None:
    crowd = Crowd[Connection]()
    connection = slow(crowd, 10.0)
    at = 10.0 + PATIENCE_S[HttpPhase.SLOW]
    assert crowd.next_at() == at
    assert crowd.give_way(1, at - 0.01) == []
    assert crowd.give_way(1, at) == [(connection, HttpPhase.SLOW)]


def test_once_slow_connections_had_to_give_way_who_enters_the_reserve_must_be_quick() -> None:
    crowd = Crowd[Connection]()
    stranger = slow(crowd, 0.0)
    patient = slow(crowd, 1.0, in_reserve=True)
    assert crowd.give_way(1, 5.0) == [(stranger, HttpPhase.SLOW)]
    slow(crowd, 5.0)
    hurried = slow(crowd, 5.0, in_reserve=True)
    assert crowd.give_way(2, 5.9) == []
    assert crowd.give_way(2, 6.0) == [(hurried, HttpPhase.HURRIED), (patient, HttpPhase.SLOW)]
    calm = slow(crowd, 6.0 + ALARM_S, in_reserve=True)
    assert (calm, HttpPhase.SLOW) in crowd.give_way(9, 11.0 + ALARM_S)


def test_a_request_under_way_gives_way_last_and_only_if_it_takes_long() -> None:
    crowd = Crowd[Connection]()
    request, other = slow(crowd, 0.0), slow(crowd, 1.0)
    crowd.asks(request, 1.0)
    assert crowd.give_way(2, 10.9) == [(other, HttpPhase.SLOW)]
    assert crowd.give_way(2, 11.0) == [(request, HttpPhase.REQUEST)]


def test_a_request_with_a_device_token_gives_way_to_nobody_until_it_is_answered() -> None:
    crowd = Crowd[Connection](1)
    upload = slow(crowd, 0.0, "192.0.2.1")
    crowd.asks(upload, 0.0)
    upload.has_upload = True
    assert crowd.give_way(1, 1000.0) == []
    assert crowd.admits("192.0.2.1")
    crowd.awaits(upload, 1000.0)
    assert not crowd.admits("192.0.2.1")
    assert crowd.give_way(1, 1000.0) == [(upload, HttpPhase.IDLE)]


def test_what_is_being_closed_is_named_once_and_counted_until_it_has_left() -> None:
    crowd = Crowd[Connection]()
    connection = idle(crowd, 0.0)
    assert crowd.give_way(1, 0.0) == [(connection, HttpPhase.IDLE)]
    crowd.asks(connection, 0.0)
    assert crowd.awaits(connection, 0.0)
    assert (crowd.give_way(1, 99.0), crowd.yielding) == ([], 1)
    crowd.leave(connection)
    crowd.leave(connection)
    assert (crowd.yielding, len(crowd)) == (0, 0)


def test_a_connection_that_becomes_another_object_keeps_its_turn_and_its_address() -> None:
    crowd = Crowd[Connection](1)
    newcomer, stream = slow(crowd, 0.0, "192.0.2.1"), Connection()
    slow(crowd, 1.0)
    crowd.replace(newcomer, stream)
    crowd.leave(newcomer)
    assert not crowd.admits("192.0.2.1")
    assert crowd.late(10.0, 10.0) == [stream]
    assert crowd.give_way(1, 5.0) == [(stream, HttpPhase.SLOW)]
    crowd.leave(stream)
    assert (len(crowd), crowd.yielding) == (1, 0)


def test_an_address_has_its_limit_and_no_address_has_none() -> None:
    crowd = Crowd[Connection](2)
    for address in ("192.0.2.1", "192.0.2.1", "", "", ""):
        slow(crowd, 0.0, address)
    assert not crowd.admits("192.0.2.1")
    assert crowd.admits("192.0.2.2")
    assert crowd.admits("")
    assert Crowd[Connection]().admits("192.0.2.1")


def test_at_its_limit_the_oldest_connection_of_an_address_gives_way_if_it_has_had_its_time() -> None:
    crowd = Crowd[Connection](2)
    oldest, _ = slow(crowd, 0.0, "192.0.2.1"), slow(crowd, 1.0, "192.0.2.1")
    slow(crowd, 0.0, "192.0.2.2")
    assert crowd.give_way_at("192.0.2.1", 4.9) is None
    assert crowd.give_way_at("192.0.2.1", 5.0) == (oldest, HttpPhase.SLOW)
    assert crowd.admits("192.0.2.1")
    assert crowd.give_way_at("192.0.2.3", 5.0) is None


def test_the_last_of_many_requests_is_known_before_it_comes_and_so_is_the_first_of_an_old_connection() -> None:
    crowd = Crowd[Connection]()
    busy, old = slow(crowd, 0.0), slow(crowd, 0.0)
    assert all(crowd.awaits(busy, 1.0) for _ in range(MAX_REQUESTS - 2))
    assert not crowd.awaits(busy, 1.0)
    assert crowd.awaits(old, MAX_AGE_S - 0.01)
    assert not crowd.awaits(old, MAX_AGE_S)


@pytest.mark.parametrize(
    ("peer", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:0:1:a:b:c:d", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.0.0.1", ""),
        ("127.9.9.9", ""),
        ("::1", ""),
        ("::ffff:127.0.0.1", ""),
        ("10.1.2.3", ""),
        ("", ""),
        ("/run/socket", ""),
    ],
)
def test_an_ipv6_client_counts_for_its_network_and_a_proxy_for_nobody(peer: str, counted: str) -> None:
    assert address_of(peer, (*LOOPBACK, ip_network("10.0.0.0/8"))) == counted


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "ask", "await", "token", "leave", "give", "give at", "second"]), st.integers(0, 9)
    ),
    max_size=80,
)


@given(STEPS)
def test_whatever_happens_who_gives_way_has_had_its_patience_and_limits_hold(steps: list[tuple[str, int]]) -> None:
    """A model beside it: what each connection does, since when, and whether it has been told to go."""
    crowd, now = Crowd[Connection](2), 0.0
    model: dict[Connection, tuple[HttpPhase, float, str]] = {}
    told: set[Connection] = set()
    alarm_until = -1.0
    for what, number in steps:
        item = next((each for each in model if each.name == number), None)
        if what == "enter" and item is None and crowd.admits(f"a{number % 3}"):
            item = Connection(number)
            crowd.enter(item, f"a{number % 3}", now, in_reserve=number > 5)
            crowd.awaits(item, now)
            is_hurried = number > 5 and now < alarm_until
            model[item] = (HttpPhase.HURRIED if is_hurried else HttpPhase.SLOW, now, f"a{number % 3}")
        elif what == "ask" and item is not None and model[item][0] is not HttpPhase.REQUEST:
            crowd.asks(item, now)
            model[item] = (HttpPhase.REQUEST, now, model[item][2])
        elif what == "await" and item is not None and model[item][0] is HttpPhase.REQUEST:
            crowd.awaits(item, now)
            model[item] = (HttpPhase.IDLE, now, model[item][2])
        elif what == "token" and item is not None and model[item][0] is HttpPhase.REQUEST:
            item.has_upload = True
        elif what == "leave" and item is not None:
            crowd.leave(item)
            del model[item]
            told.discard(item)
        elif what.startswith("give"):
            at = crowd.give_way_at(f"a{number % 3}", now)
            found = crowd.give_way(number, now) if what == "give" else []
            if any(phase is not HttpPhase.IDLE for _, phase in found):
                alarm_until = now + ALARM_S
            found += [at] if at is not None else []
            for each, phase in found:
                assert each not in told
                assert model[each][0] is phase
                assert now - model[each][1] >= PATIENCE_S[phase]
                assert not (phase is HttpPhase.REQUEST and each.has_upload)
                told.add(each)
        elif what == "second":
            now += number
        assert len(crowd) == len(model)
        assert crowd.yielding == len(told)
        for address in ("a0", "a1", "a2"):
            theirs = [each for each in model if model[each][2] == address and each not in told]
            strangers = [each for each in theirs if not each.has_upload]
            if len(theirs) < 2:
                assert crowd.admits(address)
            if len(strangers) >= 2:
                assert not crowd.admits(address)
    # Everyone but those with a token is found in the end.
    may_go = {each for each in model if not (each.has_upload and model[each][0] is HttpPhase.REQUEST)}
    assert {each for each, _ in crowd.give_way(100, now + 100)} == may_go - told


def test_who_owes_the_end_of_a_head_is_late_when_its_time_is_over_and_nobody_else_ever_is() -> None:
    crowd = Crowd[Connection]()
    assert crowd.next_late_at(10.0) is None
    newcomer, resting, asking = slow(crowd, 2.0), idle(crowd, 1.0), slow(crowd, 0.0)
    crowd.asks(asking, 0.0)
    assert crowd.next_late_at(10.0) == 11.0
    assert crowd.late(10.0, 10.9) == []
    assert crowd.late(10.0, 11.0) == [resting]
    assert crowd.late(10.0, 12.0) == [resting, newcomer]
    assert crowd.late(10.0, 99.0) == [resting, newcomer]
    crowd.leave(resting)
    assert crowd.next_late_at(10.0) == 12.0
    crowd.asks(newcomer, 5.0)
    assert crowd.next_late_at(10.0) is None


def test_who_had_to_be_quick_is_late_like_everybody() -> None:
    crowd = Crowd[Connection]()
    slow(crowd, 0.0)
    crowd.give_way(1, 5.0)
    hurried = slow(crowd, 5.0, in_reserve=True)
    assert (crowd.next_late_at(10.0), crowd.late(10.0, 15.0)) == (15.0, [hurried])
