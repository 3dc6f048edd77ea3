"""Arrivals: what was published and comes back."""

from __future__ import annotations

import asyncio

import pytest

from cocoa_tornado.routing.arrivals import MAX_EXPECTED, PATIENCE_S, Arrivals
from cocoa_tornado.rules.records import Record


class Bench:
    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[str] = []
        self.arrivals = Arrivals(lambda: self.now)

    def expect(self, device_id: str, payload: bytes) -> None:
        self.arrivals.expect(device_id, payload, lambda: self.events.append(payload.decode()))

    def deliver(self, *pairs: tuple[str, bytes]) -> None:
        self.arrivals.routed([Record(device_id, payload, 0) for device_id, payload in pairs])


def test_what_is_expected_is_told_once() -> None:
    bench = Bench()
    bench.deliver(("doll", b"a"))
    bench.expect("doll", b"a")
    bench.expect("doll", b"b")
    bench.deliver(("bear", b"a"), ("doll", b"x"))
    bench.deliver(("doll", b"b"), ("doll", b"a"), ("doll", b"a"))
    assert bench.events == ["b", "a"]
    assert len(bench.arrivals) == 0


def test_what_is_forgotten_is_not_told() -> None:
    bench = Bench()
    bench.expect("doll", b"a")
    bench.arrivals.forget("doll", b"a")
    bench.arrivals.forget("doll", b"never expected")
    bench.deliver(("doll", b"a"))
    assert bench.events == []


def test_what_never_comes_is_given_up_when_there_is_no_room() -> None:
    bench = Bench()
    for number in range(MAX_EXPECTED):
        bench.expect(f"d{number}", b"a")
    bench.expect("one too many", b"a")
    assert len(bench.arrivals) == MAX_EXPECTED
    bench.now = PATIENCE_S
    bench.expect("news", b"a")
    assert len(bench.arrivals) == 1


@pytest.mark.gen_test
async def test_settled_when_everything_has_come_or_time_is_up() -> None:
    bench = Bench()
    assert await bench.arrivals.settled(0.0)
    bench.expect("doll", b"a")
    assert not await bench.arrivals.settled(0.01)
    waiting = asyncio.ensure_future(bench.arrivals.settled(10.0))
    await asyncio.sleep(0)
    bench.deliver(("doll", b"a"))
    assert await waiting
