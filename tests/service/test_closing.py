"""The parts of a gateway are closed in reverse, by a deadline."""

from __future__ import annotations

import asyncio

import pytest

from cocoa_tornado.service.closing import LEAST_S, OpenParts


class Closed:
    """The order in which parts were closed, with the limits that they were given; time passes as they say."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[tuple[str, float]] = []
        self.parts = OpenParts(lambda: self.now)

    def open(self, name: str, share: float = 1.0, takes_s: float = 0.0) -> None:
        async def close(limit_s: float) -> None:
            self.order.append((name, limit_s))
            self.now += takes_s

        self.parts.within(close, share)


@pytest.mark.gen_test
async def test_parts_are_closed_in_reverse_each_with_its_share_of_the_time_that_is_left() -> None:
    closed = Closed()
    closed.open("first")
    closed.open("second", share=0.25)
    closed.open("third", share=0.5, takes_s=4.0)
    closed.parts.end_within(10.0)
    await closed.parts.close()
    assert closed.order == [("third", 5.0), ("second", 1.5), ("first", 6.0)]


@pytest.mark.gen_test
async def test_a_part_that_comes_after_the_deadline_still_gets_a_little_time() -> None:
    closed = Closed()
    closed.open("late")
    closed.open("slow", takes_s=30.0)
    closed.parts.end_within(10.0)
    await closed.parts.close()
    assert closed.order == [("slow", 10.0), ("late", LEAST_S)]


@pytest.mark.gen_test
async def test_a_part_that_never_ends_is_given_up_and_the_others_are_closed() -> None:
    closed = Closed()
    closed.open("first")
    closed.parts.in_time(asyncio.Event().wait, 1.0)
    closed.parts.end_within(0.0)
    await closed.parts.close()
    assert [name for name, _ in closed.order] == ["first"]


@pytest.mark.gen_test
async def test_one_that_fails_to_close_keeps_no_other_from_closing() -> None:
    closed = Closed()
    closed.open("first")

    def fail() -> None:
        raise RuntimeError("broken")

    closed.parts.stop(fail)
    closed.open("last")
    with pytest.raises(RuntimeError, match="broken"):
        await closed.parts.close()
    assert [name for name, _ in closed.order] == ["last", "first"]
