"""Queries all servers of a deployment at once, and answers their queries. IOLoop thread only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from ..presence.port import Presence
from ..relay.messages import Query, Reply
from ..relay.port import Fate, Relay

PATIENCE_S: Final = 1.0
"""Contract section 10: a server that does not answer within this time is ``missing``."""
MAX_REPLY_BYTES: Final = 4 * 1024 * 1024
MAX_ANSWERING: Final = 32
"""Queries of other servers that are answered at the same time; more get no reply."""
NO_REPLY: Final = 0
"""The number of a notification, which has no reply."""
UNKNOWN_SERVERS: Final = "unknown"
"""In ``missing``: this server has not heard of the others yet."""

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)

log = logging.getLogger("cocoa.admin")


@dataclass(frozen=True)
class Topic(Generic[Q, A]):
    """A kind of query. Both sides may be of neighboring releases, so new fields need defaults; a server that does not
    know the topic is ``missing``.

    :ivar name: in the message
    :ivar question: its type; :ivar answer: the type of the answer
    """

    name: str
    question: type[Q]
    answer: type[A]


@dataclass(frozen=True)
class News(Generic[Q]):
    """A kind of notification from one server to another, without a reply. As with a :class:`Topic`, new fields need
    defaults.

    :ivar name: in the message
    """

    name: str
    content: type[Q]


class Answers(NamedTuple, Generic[A]):
    """:ivar found: the answers, this server's first
    :ivar missing: the names of the servers that did not answer in time
    """

    found: list[A]
    missing: list[str]


class Servers:
    """The servers of a deployment, this one included.

    :param name: returns the name of this server
    """

    def __init__(self, presence: Presence, relay: Relay, name: Callable[[], str]) -> None:
        self._presence, self._relay, self._name = presence, relay, name
        self._answerers: dict[str, tuple[Topic[Any, Any], Callable[[Any], Awaitable[Any]]]] = {}
        self._listeners: dict[str, tuple[News[Any], Callable[[Any], None]]] = {}
        self._waiting: dict[int, tuple[str, asyncio.Future[bytes | None]]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._last_number = NO_REPLY
        relay.handle(Query, self._on_query)
        relay.handle(Reply, self._on_reply)

    def __repr__(self) -> str:
        return f"<Servers {len(self._waiting)} queries wait>"

    @property
    def name(self) -> str:
        """The name of this server."""
        return self._name()

    @property
    def address(self) -> str:
        """The address of this server in the relay. It changes when the server has to join again."""
        return self._relay.server

    def answer(self, topic: Topic[Q, A], answerer: Callable[[Q], Awaitable[A]]) -> None:
        """Register the function that answers queries, this server's own and those of others."""
        self._answerers[topic.name] = (topic, answerer)

    async def ask(self, topic: Topic[Q, A], question: Q) -> Answers[A]:
        """Ask this server and all others. A server that has ended is not missing."""
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        missing = [UNKNOWN_SERVERS] if await self._is_unaware(deadline) else []
        body = msgspec.json.encode(question)
        numbers = [(peer, self._send(peer.server, topic.name, body)) for peer in self._presence.peers()]
        replies = [(peer, self._waiting[number][1]) for peer, number in numbers]
        try:
            found: list[A] = [await self._answerers[topic.name][1](question)]
            if replies:
                left_s = max(0.0, deadline - asyncio.get_running_loop().time())
                await asyncio.wait([reply for _, reply in replies], timeout=left_s)
            for peer, reply in replies:
                if reply.done() and reply.result() is None:
                    continue
                answer = _read(topic, reply.result()) if reply.done() else None
                if answer is None:
                    missing.append(peer.name or peer.server)
                else:
                    found.append(answer)
        finally:
            for _, number in numbers:
                del self._waiting[number]
        return Answers(found, sorted(missing))

    def tell(self, server: str, news: News[Q], content: Q) -> asyncio.Future[Fate]:
        """Notify one server, in the order of the calls. As with ``Relay.send``, the future never fails.

        :param server: its :attr:`address`
        """
        return self._relay.send(server, Query(NO_REPLY, news.name, msgspec.json.encode(content)))

    def listen(self, news: News[Q], listener: Callable[[Q], None]) -> None:
        """Register the function that takes the notifications of other servers."""
        self._listeners[news.name] = (news, listener)

    def close(self) -> None:
        """Stop answering queries."""
        for task in self._answering:
            task.cancel()

    # -- asking

    async def _is_unaware(self, deadline: float) -> bool:
        """Wait until this server knows the others; True if it still does not at the deadline."""
        overview = self._presence.until_overview()
        while overview is not None:
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0 or not (await asyncio.wait([overview], timeout=left_s))[0]:
                return True
            overview = self._presence.until_overview()
        return False

    def _send(self, server: str, about: str, body: bytes) -> int:
        """Return the number of the query, whose future is in ``_waiting``: the body of the reply, or None if there is
        no such server any more."""
        self._last_number += 1
        number = self._last_number
        reply: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (server, reply)
        self._relay.send(server, Query(number, about, body)).add_done_callback(partial(_note_fate, reply))
        return number

    def _on_reply(self, sender: str, reply: Reply) -> None:
        server, future = self._waiting.get(reply.number, ("", None))
        if future is not None and server == sender and not future.done():
            future.set_result(reply.body)

    # -- answering

    def _on_query(self, sender: str, query: Query) -> None:
        if query.number == NO_REPLY:
            self._on_news(query)
            return
        if query.about not in self._answerers or len(self._answering) >= MAX_ANSWERING:
            return
        task = asyncio.ensure_future(self._reply(sender, query))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def _on_news(self, query: Query) -> None:
        news, listener = self._listeners.get(query.about, (None, None))
        if news is None or listener is None:
            return
        try:
            content = msgspec.json.decode(query.body, type=news.content)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return  # of a release that is not a neighbor of this one
        listener(content)

    async def _reply(self, sender: str, query: Query) -> None:
        topic, answerer = self._answerers[query.about]
        try:
            question = msgspec.json.decode(query.body, type=topic.question)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        try:
            async with asyncio.timeout(PATIENCE_S):
                body = msgspec.json.encode(await answerer(question))
        except TimeoutError:
            return
        except Exception:
            log.exception("query failed", extra={"about": query.about, "sender": sender})
            return
        if len(body) <= MAX_REPLY_BYTES:
            self._relay.send(sender, Reply(query.number, body))


def _read(topic: Topic[Q, A], body: bytes | None) -> A | None:
    try:
        return None if body is None else msgspec.json.decode(body, type=topic.answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # of a release that is not a neighbor of this one


def _note_fate(reply: asyncio.Future[bytes | None], sent: asyncio.Future[Fate]) -> None:
    """A server that has ended holds no devices."""
    if not reply.done() and not sent.cancelled() and sent.result() is Fate.NO_SERVER:
        reply.set_result(None)
