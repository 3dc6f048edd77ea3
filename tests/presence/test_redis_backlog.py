"""What a server asks of presence in Redis, and in which portions (cocoa_tornado.presence.redis_backlog)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.presence import redis_backlog
from cocoa_tornado.presence.port import Holder
from cocoa_tornado.presence.redis_backlog import Backlog
from cocoa_tornado.rules.claims import Generation

MOST = 5


@given(st.lists(st.integers(1, 17), max_size=6), st.sets(st.integers(0, 30)))
def test_look_ups_of_any_size_go_in_bounded_round_trips_and_are_done_in_order(
    sizes: list[int], unanswered: set[int]
) -> None:
    loop = asyncio.new_event_loop()
    backlog, done = Backlog(), list[int]()
    futures: list[asyncio.Future[Mapping[str, Sequence[Holder]]]] = [loop.create_future() for _ in sizes]
    asked = [[f"{at}/{number}" for number in range(size)] for at, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis_backlog, "MOST", MOST)
        for device_ids, future in zip(asked, futures, strict=True):
            backlog.look_up(device_ids, future)
        trips = 0
        while backlog:
            taken = backlog.take()
            assert sum(len(look_up.device_ids) for look_up in taken.look_ups) <= MOST
            if trips in unanswered:
                backlog.give_back(taken)
            else:
                for look_up in taken.look_ups:
                    look_up.end({device_id: [Holder("a", Generation(1, 1))] for device_id in look_up.device_ids})
                    done += [at for at, future in enumerate(futures) if future.done() and at not in done]
            trips += 1
    loop.close()
    assert done == list(range(len(sizes)))
    assert [list(future.result()) for future in futures] == asked
