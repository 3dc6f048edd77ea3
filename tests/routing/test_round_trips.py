"""RoundTrips: published records that come back through the broker."""

from __future__ import annotations

import asyncio

import pytest

from cocoa_tornado.routing.round_trips import MAX_EXPECTED, PATIENCE_S, RoundTrips
from cocoa_tornado.rules.records import Record


class Bench:
    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[str] = []
        self.round_trips = RoundTrips(lambda: self.now)

    def expect(self, device_id: str, payload: bytes) -> None:
        self.round_trips.expect(device_id, payload, lambda: self.events.append(payload.decode()))

    def deliver(self, *pairs: tuple[str, bytes]) -> None:
        self.round_trips.routed([Record(device_id, payload, 0) for device_id, payload in pairs])


def test_an_expected_record_is_reported_once() -> None:
    bench = Bench()
    bench.deliver(("doll", b"a"))
    bench.expect("doll", b"a")
    bench.expect("doll", b"b")
    bench.deliver(("bear", b"a"), ("doll", b"x"))
    bench.deliver(("doll", b"b"), ("doll", b"a"), ("doll", b"a"))
    assert bench.events == ["b", "a"]
    assert len(bench.round_trips) == 0


def test_a_forgotten_record_is_not_reported() -> None:
    bench = Bench()
    bench.expect("doll", b"a")
    bench.round_trips.forget("doll", b"a")
    bench.round_trips.forget("doll", b"never expected")
    bench.deliver(("doll", b"a"))
    assert bench.events == []


def test_a_record_that_never_comes_is_given_up_when_there_is_no_room() -> None:
    bench = Bench()
    for number in range(MAX_EXPECTED):
        bench.expect(f"d{number}", b"a")
    bench.expect("one too many", b"a")
    assert len(bench.round_trips) == MAX_EXPECTED
    bench.now = PATIENCE_S
    bench.expect("news", b"a")
    assert len(bench.round_trips) == 1


@pytest.mark.gen_test
async def test_settled_when_everything_has_come_or_time_is_up() -> None:
    bench = Bench()
    assert await bench.round_trips.settled(0.0)
    bench.expect("doll", b"a")
    assert not await bench.round_trips.settled(0.01)
    waiting = asyncio.ensure_future(bench.round_trips.settled(10.0))
    await asyncio.sleep(0)
    bench.deliver(("doll", b"a"))
    assert await waiting
