"""Commands and replies on the transport of an open connection of redis-py.

redis-py spends 100 us and more of CPU time on each round trip, which is as much as half a handshake, and asyncio's
streams and a task spend half of that. redis-py's connection object opens the connection, with TLS, authentication and
all else; then this protocol takes its transport, which needs two private attributes of it. Read against redis-py 8.1.0.
Where they are something else, or hiredis is missing, redis-py sends and reads by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeAlias

from redis import exceptions as errors

try:
    from hiredis import ProtocolError, Reader
except ImportError:  # pragma: no cover  # the extra redis installs it; redis-py works without
    Reader = None  # type: ignore[assignment, misc]  # a class or None

_CLASSES: Final[dict[str, type[errors.ResponseError]]] = {
    "NOSCRIPT": errors.NoScriptError,
    "READONLY": errors.ReadOnlyError,
}

OnReplies: TypeAlias = Callable[[list[Any] | errors.RedisError], object]
"""Gets the replies, of which that to a rejected command is a ResponseError; or why there are none, a ConnectionError or
a TimeoutError."""


class Pipeline(asyncio.Protocol):
    """Of one open connection, with nothing under way. Replies are handled in the turn of the loop in which they arrive.

    :param connection: redis-py's
    :param reply_s: how long to wait for the replies to a request, before the connection is given up
    """

    def __init__(self, connection: Any, reply_s: float) -> None:
        self._reader, self._transport = connection._reader, connection._writer.transport
        self._loop = asyncio.get_running_loop()
        self._parser: Any = Reader(replyError=_refusal)
        self._reply_s = reply_s
        self._waiting: deque[tuple[int, OnReplies, float]] = deque()
        self._replies: list[Any] = []
        self._timer: asyncio.TimerHandle | None = None
        # The streams wait for the end of the connection when redis-py closes it.
        self._before = self._transport.get_protocol()
        self._transport.set_protocol(self)

    def is_of(self, connection: Any) -> bool:
        return connection._reader is self._reader

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def send(self, request: bytes, count: int, on_replies: OnReplies) -> None:
        """Send commands, and handle this many replies. Requests may overlap; their replies arrive in order.

        :param on_replies: is never called from here
        """
        self._waiting.append((count, on_replies, self._loop.time() + self._reply_s))
        if self._timer is None:
            self._timer = self._loop.call_later(self._reply_s, self._look)
        self._transport.write(request)

    async def ask(self, request: bytes, count: int) -> list[Any]:
        """Send commands and return their replies. After any exception, the connection cannot be used any more.

        :raises errors.ConnectionError, errors.TimeoutError:
        """
        if not self.is_open:
            raise errors.ConnectionError("the server has closed the connection")
        replies: asyncio.Future[list[Any]] = self._loop.create_future()
        self.send(request, count, partial(_settle, replies))
        return await replies

    # -- called by the transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        while (reply := self._next_reply()) is not False:
            self._replies.append(reply)
            if len(self._replies) == self._waiting[0][0]:
                _, on_replies, _ = self._waiting.popleft()
                replies, self._replies = self._replies, []
                on_replies(replies)

    def _next_reply(self) -> Any:
        """False: it has not arrived yet."""
        try:
            reply = self._parser.gets()
        except ProtocolError as error:
            self._give_up(errors.ConnectionError(str(error)))
            return False
        if reply is not False and not self._waiting:
            self._give_up(errors.ConnectionError("a reply to no command"))
            return False
        return reply

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fail(errors.ConnectionError(str(exc or "the server has closed the connection")))
        self._before.connection_lost(exc)

    # -- time

    def _look(self) -> None:
        """One timer for all requests: nearly all are answered long before."""
        self._timer = None
        if not self._waiting:
            return
        remaining_s = self._waiting[0][2] - self._loop.time()
        if remaining_s > 0:
            self._timer = self._loop.call_later(remaining_s, self._look)
            return
        self._give_up(errors.TimeoutError("no reply in time"))

    def _give_up(self, error: errors.RedisError) -> None:
        self._transport.abort()
        self._fail(error)

    def _fail(self, error: errors.RedisError) -> None:
        failed, self._waiting = self._waiting, deque()
        for _, on_replies, _ in failed:
            on_replies(error)


def pipeline_of(connection: Any, reply_s: float) -> Pipeline | None:
    """On an open connection of redis-py; None: it must be used itself."""
    reader, writer = getattr(connection, "_reader", None), getattr(connection, "_writer", None)
    if Reader is None or not isinstance(reader, asyncio.StreamReader) or not isinstance(writer, asyncio.StreamWriter):
        return None
    return Pipeline(connection, reply_s)


def _settle(replies: asyncio.Future[list[Any]], outcome: list[Any] | errors.RedisError) -> None:
    if replies.done():
        return  # cancelled
    if isinstance(outcome, list):
        replies.set_result(outcome)
    else:
        replies.set_exception(outcome)


def _refusal(text: str) -> errors.ResponseError:
    # As redis-py does, which removes the word of an error that has none of its own.
    return _CLASSES.get(text.partition(" ")[0], errors.ResponseError)(text.removeprefix("ERR "))
