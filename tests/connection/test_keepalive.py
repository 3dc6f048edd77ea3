"""Contract section 4: a ping every 30 s, and a close within 60 s of the last sign of life."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.connection.keepalive import ExpiryCalendar, PingWheel


@dataclass(eq=False)
class Peer:
    awaiting_pong: bool = False
    due_tick: int = 0
    delayed: bool = False

    def pong_may_be_late(self) -> bool:
        return self.delayed


def run(wheel: PingWheel[Peer], until: float, answers: bool, peer: Peer) -> list[tuple[str, float]]:
    """Drive a wheel in steps of its tick; the peer answers at once, or never."""
    events, step = [], 0
    while (now := step * wheel.tick_s) <= until:
        due = wheel.tick(now)
        events += [("ping", now) for _ in due.ping] + [("expired", now) for _ in due.expired]
        if due.ping and answers:
            peer.awaiting_pong = False
        step += 1
    return events


def test_a_device_that_answers_is_pinged_every_thirty_seconds_and_never_later() -> None:
    peer, wheel = Peer(), PingWheel[Peer](30.0, 30.0, 0.0)
    wheel.add(peer, 1)
    times = [now for _, now in run(wheel, 600, True, peer)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(times) >= 19
    assert all(28.5 <= gap <= 30.0 for gap in gaps)


def test_a_silent_device_is_gone_within_sixty_seconds_and_has_thirty_to_answer() -> None:
    peer, wheel = Peer(), PingWheel[Peer](30.0, 30.0, 0.0)
    wheel.add(peer, 1)
    (_, pinged), (name, expired) = run(wheel, 120, False, peer)
    assert name == "expired"
    assert 30.0 <= expired - pinged <= 31.0
    assert expired <= 60.0


@given(st.floats(0.1, 60.0), st.floats(0.05, 1.0), st.integers(0, 1000))
def test_a_pong_that_comes_within_the_timeout_is_always_in_time(interval: float, share: float, number: int) -> None:
    timeout = interval * share
    peer, wheel = Peer(), PingWheel[Peer](interval, timeout, 0.0)
    wheel.add(peer, number)
    now, due = 0.0, wheel.tick(0.0)
    while not due.ping:
        now += wheel.tick_s
        due = wheel.tick(now)
    assert wheel.tick(now + timeout * 0.99).expired == ()
    assert wheel.tick(now + timeout + 3 * wheel.tick_s + interval).expired == (peer,)


def test_a_short_timeout_is_kept_though_the_interval_is_long() -> None:
    peer, wheel = Peer(), PingWheel[Peer](30.0, 5.0, 0.0)
    wheel.add(peer, 1)
    (_, pinged), (_, expired) = run(wheel, 120, False, peer)
    assert 5.0 <= expired - pinged <= 6.0


def test_a_connection_that_is_removed_is_let_go_at_once() -> None:
    peer, wheel = Peer(), PingWheel[Peer](30.0, 30.0, 0.0)
    wheel.add(peer, 1)
    wheel.remove(peer)
    assert repr(wheel) == "<PingWheel tick 0.5 s, 0 entries>"
    assert run(wheel, 60, False, peer) == []
    wheel.remove(peer)


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["add", "remove", "tick", "pong"])), max_size=60))
def test_whatever_happens_each_connection_is_watched_once_until_it_is_removed(steps: list[tuple[int, str]]) -> None:
    peers = [Peer() for _ in range(10)]
    wheel, watched, now = PingWheel[Peer](30.0, 30.0, 0.0), set[int](), 0.0
    for number, what in steps:
        if what == "add" and number not in watched:
            wheel.add(peers[number], number)
            watched.add(number)
        elif what == "remove":
            wheel.remove(peers[number])
            watched.discard(number)
        elif what == "pong":
            peers[number].awaiting_pong = False
        elif what == "tick":
            now += 7.0
            due = wheel.tick(now)
            assert set(due.ping) | set(due.expired) <= {peers[index] for index in watched}
            watched -= {index for index in watched if peers[index] in due.expired}
        assert repr(wheel) == f"<PingWheel tick 0.5 s, {len(watched)} entries>"


def test_a_connection_whose_pong_is_late_because_of_this_side_gets_the_whole_time_again() -> None:
    peer, wheel = Peer(delayed=True), PingWheel[Peer](30.0, 30.0, 0.0)
    wheel.add(peer, 1)
    (name, pinged), *rest = run(wheel, 200, False, peer)
    assert (name, rest) == ("ping", [])
    peer.delayed = False
    due = next(at for turn in range(100) if (at := pinged + turn * 30.5) > 200)
    assert wheel.tick(due - 0.5).expired == ()
    assert wheel.tick(due).expired == (peer,)


def test_first_pings_are_spread_over_half_an_interval() -> None:
    wheel = PingWheel[Peer](30.0, 30.0, 0.0)
    for number in range(1000):
        wheel.add(Peer(), number)
    largest = max(len(wheel.tick(step * wheel.tick_s).ping) for step in range(61))
    assert largest < 50


@given(st.lists(st.floats(0, 100), max_size=30), st.floats(0, 100))
def test_what_is_due_is_handed_out_once_and_not_early(times: list[float], now: float) -> None:
    calendar = ExpiryCalendar[int]()
    for item, at in enumerate(times):
        calendar.add(item, at)
    due = set(calendar.due(now))
    assert all(times[item] <= now for item in due)
    rest = set(calendar.due(1000.0))
    assert due | rest == set(range(len(times)))
    assert not due & rest


def test_a_connection_that_is_gone_leaves_the_calendar() -> None:
    calendar = ExpiryCalendar[str]()
    calendar.add("a", 5.0)
    calendar.remove("a", 5.0)
    calendar.remove("never there", 7.0)
    assert list(calendar.due(10.0)) == []


def test_expiry_is_at_most_a_second_late() -> None:
    calendar = ExpiryCalendar[str]()
    calendar.add("a", 5.4)
    assert list(calendar.due(5.9)) == []
    assert list(calendar.due(6.4)) == ["a"]


def test_the_tick_of_a_wheel_is_a_sixtieth_of_its_interval() -> None:
    assert PingWheel[Peer](6.0, 3.0, 0.0).tick_s == pytest.approx(0.1)
