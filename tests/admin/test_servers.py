"""Asking all servers at once: who answers, who is missing, and what that costs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import msgspec
import pytest

from cocoa_tornado.admin.servers import MAX_REPLY_BYTES, UNKNOWN_SERVERS, News, Servers, Topic
from cocoa_tornado.presence.port import Peer, Presence
from cocoa_tornado.relay.memory import Exchange, MemoryRelay
from cocoa_tornado.relay.messages import Query, Reply


class Question(msgspec.Struct, frozen=True):
    text: str


class Said(msgspec.Struct, frozen=True):
    text: str


ECHO: Final = Topic("echo", Question, Said)


class FakePresence:
    """Knows the servers of an exchange by the names of their relays."""

    def __init__(self, exchange: Exchange, me: str) -> None:
        self._exchange, self._me = exchange, me
        self.overview: asyncio.Future[None] | None = None
        self.ended: list[str] = []  # and are still listed

    def peers(self) -> list[Peer]:
        return [
            Peer(server, f"named {server}") for server in [*self._exchange.servers, *self.ended] if server != self._me
        ]

    def until_overview(self) -> asyncio.Future[None] | None:
        return None if self.overview is None or self.overview.done() else self.overview


class Stand:
    """:ivar answers: how a server answers, by its name"""

    def __init__(self, *names: str) -> None:
        self.exchange = Exchange()
        self.relays = {name: MemoryRelay(self.exchange) for name in names}
        self.presences = {name: FakePresence(self.exchange, name) for name in names}
        for name, relay in self.relays.items():
            relay.join(name)
        self.servers = {
            name: Servers(cast(Presence, self.presences[name]), relay, lambda name=name: name)  # type: ignore[misc]
            for name, relay in self.relays.items()
        }
        for name, servers in self.servers.items():
            servers.answer(ECHO, self.echo(name))

    @staticmethod
    def echo(name: str) -> Callable[[Question], Awaitable[Said]]:
        async def answer(question: Question) -> Said:
            return Said(f"{name}: {question.text}")

        return answer

    async def ask(self, patience_s: float = 30.0) -> tuple[list[str], list[str]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cocoa_tornado.admin.servers.PATIENCE_S", patience_s)
            found, missing = await self.servers["a"].ask(ECHO, Question("hello"))
        return sorted(said.text for said in found), missing


def reply_with(relay: MemoryRelay, body: bytes) -> None:
    """Answer any query with these bytes."""

    def reply(sender: str, query: Query) -> None:
        relay.send(sender, Reply(query.number, body))

    relay.handle(Query, reply)


async def some_turns() -> None:
    """Deliver the queries that were sent, and their answers."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(main())


def test_every_server_answers() -> None:
    async def test() -> None:
        assert await Stand("a", "b", "c").ask() == (["a: hello", "b: hello", "c: hello"], [])

    run(test)


def test_a_server_alone_sends_nothing() -> None:
    async def test() -> None:
        stand = Stand("a")
        assert await stand.ask() == (["a: hello"], [])
        assert stand.relays["a"].counters.accepted == {}

    run(test)


def test_a_server_that_does_not_answer_in_time_is_missing_by_its_name() -> None:
    async def test() -> None:
        stand = Stand("a", "b")
        asked = asyncio.Event()

        async def hang(question: Question) -> Said:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

        stand.servers["b"].answer(ECHO, hang)
        assert await stand.ask(patience_s=0.05) == (["a: hello"], ["named b"])
        await asked.wait()
        assert repr(stand.servers["a"]) == "<Servers 0 queries wait>"
        stand.servers["b"].close()

    run(test)


def test_a_server_that_does_not_know_the_topic_is_missing() -> None:
    async def test() -> None:
        stand = Stand("a", "b")
        stand.servers["b"]._answerers.clear()
        assert await stand.ask(patience_s=0.05) == (["a: hello"], ["named b"])

    run(test)


def test_a_server_that_has_ended_is_not_missing() -> None:
    """It holds nothing any more."""

    async def test() -> None:
        stand = Stand("a", "b")
        stand.presences["a"].ended.append("gone")
        assert await stand.ask() == (["a: hello", "b: hello"], [])

    run(test)


def test_a_server_whose_messages_are_lost_is_missing() -> None:
    async def test() -> None:
        stand = Stand("a", "b")
        stand.exchange.loses = lambda sender, receiver, message: isinstance(message, Reply)
        assert await stand.ask(patience_s=0.05) == (["a: hello"], ["named b"])

    run(test)


def test_servers_that_are_not_known_yet_are_missing() -> None:
    async def test() -> None:
        stand = Stand("a", "b")
        stand.presences["a"].overview = asyncio.get_running_loop().create_future()
        assert UNKNOWN_SERVERS in (await stand.ask(patience_s=0.05))[1]

        asyncio.get_running_loop().call_later(0.01, stand.presences["a"].overview.set_result, None)
        assert await stand.ask() == (["a: hello", "b: hello"], [])

    run(test)


@pytest.mark.parametrize(
    "body", [b"", b"no json", b"[]", b'{"text":5}', b"\xff", b'{"more":1}', b"null"], ids=lambda body: repr(body)
)
def test_an_answer_that_cannot_be_read_leaves_its_server_missing(body: bytes) -> None:
    async def test() -> None:
        stand = Stand("a", "b")
        relay = stand.relays["b"]
        reply_with(relay, body)
        assert await stand.ask() == (["a: hello"], ["named b"])

    run(test)


def test_an_answer_of_a_later_release_may_say_more() -> None:
    async def test() -> None:
        stand = Stand("a", "b")
        relay = stand.relays["b"]
        reply_with(relay, b'{"text":"x","more":[1]}')
        assert await stand.ask() == (["a: hello", "x"], [])

    run(test)


def test_nobody_answers_for_another_server_and_nothing_comes_twice() -> None:
    async def test() -> None:
        stand = Stand("a", "b", "c")
        relay = stand.relays["c"]

        def answer_for_all(sender: str, query: Query) -> None:
            for number in range(query.number - 1, query.number + 2):
                relay.send(sender, Reply(number, b'{"text":"c"}'))
                relay.send(sender, Reply(number, b'{"text":"again"}'))

        relay.handle(Query, answer_for_all)
        assert await stand.ask() == (["a: hello", "b: hello", "c"], [])

    run(test)


@pytest.mark.logs("cocoa.admin", "query failed")
def test_a_server_that_fails_is_missing_and_logs_it() -> None:
    async def test() -> None:
        stand = Stand("a", "b")

        async def fail(question: Question) -> Said:
            raise RuntimeError("a fault")

        stand.servers["b"].answer(ECHO, fail)
        assert await stand.ask(patience_s=0.05) == (["a: hello"], ["named b"])
        await some_turns()

    run(test)


def test_an_answer_that_is_too_large_is_not_sent() -> None:
    async def test() -> None:
        stand = Stand("a", "b")

        async def talk(question: Question) -> Said:
            return Said("x" * MAX_REPLY_BYTES)

        stand.servers["b"].answer(ECHO, talk)
        assert await stand.ask(patience_s=0.05) == (["a: hello"], ["named b"])
        assert stand.relays["b"].counters.accepted == {}

    run(test)


def test_a_flood_of_queries_is_answered_up_to_a_bound() -> None:
    async def test() -> None:
        stand = Stand("a", "b")
        begun: list[Any] = []

        async def hang(question: Question) -> Said:
            begun.append(question)
            await asyncio.Event().wait()
            raise AssertionError

        stand.servers["b"].answer(ECHO, hang)
        for number in range(1, 101):
            stand.relays["a"].send("b", Query(-number, "echo", b'{"text":""}'))
        await some_turns()
        assert len(begun) == 32
        stand.servers["b"].close()

    run(test)


NEWS: Final = News("news", Said)


def test_what_a_server_is_told_arrives_in_order_and_gets_no_reply() -> None:
    async def test() -> None:
        stand = Stand("a", "b")
        heard: list[str] = []
        stand.servers["b"].listen(NEWS, lambda said: heard.append(said.text))
        for number in range(100):
            stand.servers["a"].tell(stand.servers["b"].address, NEWS, Said(str(number)))
        stand.relays["a"].send("b", Query(0, "news", b"no json"))
        stand.relays["a"].send("b", Query(0, "unknown", b"{}"))
        await some_turns()
        assert heard == [str(number) for number in range(100)]
        assert stand.relays["b"].counters.accepted == {}

    run(test)
