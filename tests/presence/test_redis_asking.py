"""Questions to Redis about devices continue even if handling an answer fails (cocoa_tornado.presence.redis_asking)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import pytest

from cocoa_tornado.presence.actions import Acquire
from cocoa_tornado.presence.port import Holder
from cocoa_tornado.presence.redis_asking import Asking, Context
from cocoa_tornado.presence.redis_backlog import Asked, Backlog
from cocoa_tornado.presence.redis_link import Answers, Outcome
from cocoa_tornado.presence.redis_scripts import Granted
from cocoa_tornado.redis_store.faults import RedisFault
from cocoa_tornado.rules.claims import Claim

pytestmark = pytest.mark.gen_test(timeout=30)

DROPPED = pytest.mark.logs("cocoa.presence", "answers of presence dropped")


class Presence:
    """Notes what it is given.

    :ivar fails: once, when it takes or repeats claims
    """

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self.fails = False
        self.taken: list[str] = []
        self.found: list[object] = []

    def may_ask(self) -> bool:
        return True

    def context(self) -> Context:
        return "1:run", "me"

    def per_device(self) -> int:
        return 1

    def _fail(self) -> None:
        if self.fails:
            self.fails = False
            raise OSError("a mistake of ours")

    def take(self, context: Context, asked: Asked, answers: Answers) -> bool:
        self._fail()
        self.taken += [acquire.device_id for acquire in asked.acquires]
        for look_up in asked.look_ups:
            look_up.end({})
        return True

    def give_back(self, context: Context, asked: Asked) -> None:
        self._backlog.give_back(asked)

    def repeat(self, context: Context, asked: Asked) -> None:
        self._fail()

    def term_over(self, stamp: str) -> None:
        raise NotImplementedError


class Link:
    """Redis, which grants everything.

    :ivar is_open: whether questions need no task
    :ivar fault: instead of the next answer
    """

    def __init__(self) -> None:
        self.is_open = True
        self.fault: RedisFault | None = None

    def ask_now(
        self, stamp: str, epoch: str, per_device: int, asked: Asked, on_answers: Callable[[Outcome], object]
    ) -> bool:
        if self.is_open:
            asyncio.get_running_loop().call_soon(lambda: on_answers(self._outcome(asked)))
        return self.is_open

    async def ask(self, stamp: str, epoch: str, per_device: int, asked: Asked) -> Answers:
        await asyncio.sleep(0)
        outcome = self._outcome(asked)
        if isinstance(outcome, RedisFault):
            raise outcome
        return outcome

    def _outcome(self, asked: Asked) -> Answers | RedisFault:
        fault, self.fault = self.fault, None
        return fault or Answers(None, [Granted(1)] * len(asked.acquires), False, [{}] * len(asked.look_ups))


class Stand:
    def __init__(self) -> None:
        self.backlog, self.link = Backlog(), Link()
        self.presence = Presence(self.backlog)
        self.asking = Asking(self.presence, self.backlog, self.link)  # type: ignore[arg-type]  # a link without Redis
        self._claims = 0

    def claim(self, device_id: str) -> None:
        self._claims += 1
        self.backlog.acquire(Acquire(device_id, Claim("me", self._claims)))
        self.asking.soon()

    def look_up(self, device_id: str) -> asyncio.Future[Mapping[str, Sequence[Holder]]]:
        found: asyncio.Future[Mapping[str, Sequence[Holder]]] = asyncio.get_running_loop().create_future()
        self.backlog.look_up([device_id], found)
        self.asking.soon()
        return found


@DROPPED
@pytest.mark.parametrize("is_open", [True, False], ids=["without a task", "in a task"])
async def test_a_failure_in_taking_answers_holds_up_no_later_question_and_no_lookup(is_open: bool) -> None:
    stand = Stand()
    stand.link.is_open, stand.presence.fails = is_open, True
    stand.claim("first")
    found = stand.look_up("doll")
    assert await found == {}
    stand.claim("second")
    assert await stand.look_up("doll") == {}
    assert stand.presence.taken == ["second"]


@DROPPED
async def test_a_failure_after_a_fault_holds_up_no_later_question() -> None:
    stand = Stand()
    stand.link.fault, stand.presence.fails = RedisFault("away"), True
    stand.claim("first")
    assert await stand.look_up("doll") == {}
    stand.claim("second")
    assert await stand.look_up("doll") == {}
    assert stand.presence.taken == ["second"]


async def test_at_the_close_what_a_task_was_about_to_ask_is_given_back() -> None:
    stand = Stand()
    stand.link.is_open = False
    found = stand.look_up("doll")
    await asyncio.sleep(0)  # the task is there, and has not run
    await stand.asking.close()
    assert [look_up.found for look_up in stand.backlog.end()] == [found]
