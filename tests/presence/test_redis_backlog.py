"""The requests of a server to presence in Redis, and how they are split (cocoa_tornado.presence.redis_backlog)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoa_tornado.presence import redis_backlog
from cocoa_tornado.presence.actions import Send
from cocoa_tornado.presence.port import Holder
from cocoa_tornado.presence.redis_backlog import Backlog
from cocoa_tornado.relay.messages import Answer
from cocoa_tornado.rules.claims import Claim, Generation

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


A1, B1, C1 = Claim("a", 1), Claim("b", 1), Claim("c", 1)


def gone(challenger: Claim) -> Send:
    return Send(challenger.server, Answer("doll", A1, challenger, "gone"))


def test_a_release_that_is_repeated_while_it_is_under_way_keeps_the_messages_of_both() -> None:
    backlog = Backlog()
    backlog.release("doll", A1)
    assert backlog.send_after(gone(B1))
    first = backlog.take()
    backlog.release("doll", A1)
    assert backlog.send_after(gone(C1))
    backlog.give_back(first)
    again = backlog.take()
    assert len(again.releases) == 1
    assert backlog.released(again.releases) == [gone(B1), gone(C1)]
    assert not backlog.send_after(gone(B1)), "nothing is under way"


def test_what_was_not_answered_goes_before_what_has_come_since() -> None:
    backlog = Backlog()
    backlog.release("doll", A1)
    first = backlog.take()
    backlog.release("bear", B1)
    backlog.give_back(first)
    assert [releasing.claim for releasing in backlog.take().releases] == [A1, B1]
