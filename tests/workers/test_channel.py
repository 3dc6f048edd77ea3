"""A worker's end of the channel, with a parent that does what the test says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from cocoa_tornado.rules.readiness_report import Readiness
from cocoa_tornado.workers.channel import Channel
from cocoa_tornado.workers.messages import (
    Answer,
    Ask,
    Beat,
    FromParent,
    FromWorker,
    Gathered,
    Leaving,
    MessageReader,
    Question,
    Reload,
    Up,
    encode,
)
from testing.waiting import eventually

pytestmark = pytest.mark.gen_test(timeout=60)

READY = Readiness(False, {"broker": {"ok": True, "state": "ready"}})


class Worker:
    """A channel, and the parent's end of it."""

    def __init__(self, ours: socket.socket) -> None:
        self.reloads = self.losses = 0
        self.channel = Channel(2, self._on_reload, self._on_lost)
        self._ours = ours
        self._reader = MessageReader[FromWorker](cast(type[FromWorker], FromWorker))
        self._received: list[FromWorker] = []

    def _on_reload(self) -> None:
        self.reloads += 1

    def _on_lost(self) -> None:
        self.losses += 1

    def send(self, message: FromParent) -> None:
        self._ours.send(encode(message))

    async def next_message(self) -> FromWorker:
        """The next one that is not a beat."""
        while not self._received:
            data = await asyncio.get_running_loop().sock_recv(self._ours, 4096)
            assert data
            self._received += [message for message in self._reader.feed(data) if not isinstance(message, Beat)]
        return self._received.pop(0)

    def end_parent(self) -> None:
        self._ours.close()


@asynccontextmanager
async def running() -> AsyncIterator[Worker]:
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    worker = Worker(ours)
    await worker.channel.open(theirs)
    worker.channel.up(lambda: "own 1\n", lambda: READY)
    assert await worker.next_message() == Up()
    try:
        yield worker
    finally:
        worker.channel.leave()
        await asyncio.sleep(0)
        worker.end_parent()


async def test_it_answers_the_parents_questions() -> None:
    async with running() as worker:
        worker.send(Question(7, "metrics"))
        assert await worker.next_message() == Answer(7, "own 1\n")
        worker.send(Question(8, "ready"))
        answer = await worker.next_message()
        assert answer == Answer(8, '{"draining":false,"parts":{"broker":{"ok":true,"state":"ready"}}}')


async def test_those_who_ask_while_a_question_is_under_way_share_the_next_answer() -> None:
    async with running() as worker:
        first = asyncio.ensure_future(worker.channel.metrics("own"))
        ask = await worker.next_message()
        assert ask == Ask(1, "metrics")
        later = [asyncio.ensure_future(worker.channel.metrics("own")) for _ in range(3)]
        await asyncio.sleep(0)
        worker.send(Gathered(1, "all 1"))
        assert await first == "all 1"
        assert await worker.next_message() == Ask(2, "metrics")
        worker.send(Gathered(2, "all 2"))
        assert await asyncio.gather(*later) == ["all 2"] * 3


async def test_one_who_no_longer_waits_takes_no_answer_from_the_others() -> None:
    async with running() as worker:
        asked = [asyncio.ensure_future(worker.channel.metrics("own")) for _ in range(2)]
        assert await worker.next_message() == Ask(1, "metrics")
        asked[0].cancel()
        worker.send(Gathered(1, "all"))
        assert await asked[1] == "all"


async def test_without_the_parent_the_answer_is_its_own_and_says_who_is_missing() -> None:
    async with running() as worker:
        worker.end_parent()
        await eventually(lambda: worker.losses == 1)
        ready = await worker.channel.ready(READY)
        assert ready.parts["workers"] == {"ok": False, "state": "missing", "missing": ["parent"]}
        metrics = await worker.channel.metrics("own 1\n")
        assert metrics.startswith("own 1\n")
        assert "\ncocoa_workers_missing 1.0\n" in metrics


async def test_a_parent_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as worker:
        monkeypatch.setattr("cocoa_tornado.workers.channel.PARENT_PATIENCE_S", 0.01)
        ready = await worker.channel.ready(READY)
        assert ready.failing == ["workers"]


async def test_a_reload_is_passed_on() -> None:
    async with running() as worker:
        worker.send(Reload())
        await eventually(lambda: worker.reloads == 1)


async def test_after_its_drain_the_parents_end_has_no_consequence() -> None:
    async with running() as worker:
        worker.channel.leave()
        assert await worker.next_message() == Leaving()
        worker.end_parent()
        await asyncio.sleep(0.01)
        assert worker.losses == 0
