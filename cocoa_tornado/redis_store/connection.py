"""A connection to Redis.

All commands of an exchange are sent together, so a batch costs one round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

from redis import asyncio as redis_asyncio
from redis import exceptions as errors
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from .faults import AnotherProcess, fault_of
from .pipeline import Pipeline, pipeline_of
from .redis_url import sentinel_url
from .scripts import Command, Script, loading
from .sentinel import Sentinels

CONNECT_PATIENCE_S: Final = 2.0
REPLY_PATIENCE_S: Final = 4.0
_INFO: Final = (("INFO", "server"), ("INFO", "replication"))

_RETRIED: Final = (errors.NoScriptError, errors.ReadOnlyError)
"""The errors that an exchange handles: it loads the scripts, or looks for another master."""

OnOutcome: TypeAlias = Callable[[list[Any] | Exception | None], object]
"""Gets the replies, as :meth:`RedisConnection.exchange` returns them; a fault, if Redis does not answer; or None: call
:meth:`RedisConnection.exchange`, since the connection has ended, or Redis does not know a script."""


class RedisConnection:
    """A connection to Redis. Exchanges take turns, in the order of their calls.

    redis-py opens it, and reopens it once when the server or a proxy has closed it. If the new connection reaches
    another Redis process, the exchange fails: that process may have lost the latest writes. Commands and replies go
    past redis-py (``pipeline.py``), which takes a multiple of the CPU time.

    With a URL of Sentinels, each new connection goes to the master that they name, and one to a server that turns out
    to be a replica is closed.

    :param url: ``redis://``, ``rediss://`` or ``redis+sentinel://``; any other scheme raises ValueError
    :param scripts: those that its commands call; they are loaded when Redis has forgotten one
    :param fault_of: translates errors
    :param connect_s: how long to wait for a connection
    :param reply_s: how long to wait for a reply; a command that blocks needs longer
    :ivar run: the run id of the current Redis process; empty if Redis hides it; None before the first connection
    :ivar process: the run id and the replication id, ``<run id>.<replication id>``. It is another one if the process
        was restarted or replaced, or if its data were. Empty and None as for ``run``
    """

    def __init__(
        self,
        url: str,
        scripts: Sequence[Script] = (),
        fault_of: Callable[[Exception], Exception] = fault_of,
        *,
        connect_s: float = CONNECT_PATIENCE_S,
        reply_s: float = REPLY_PATIENCE_S,
    ) -> None:
        self._reply_s = reply_s
        self._pipeline: Pipeline | None = None
        self._loading, self._fault_of = loading(scripts), fault_of
        self._sentinels, self._connection = self._make(url, connect_s, reply_s)
        self._turn = asyncio.Lock()
        self._wanted: bytes | None = None
        self.run: bytes | None = None
        self.process: bytes | None = None

    def _make(self, url: str, connect_s: float, reply_s: float) -> tuple[Sentinels | None, Any]:
        options: dict[str, Any] = {
            "protocol": 2,
            "client_name": "cocoa",
            "socket_connect_timeout": connect_s,
            "socket_timeout": reply_s,
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
            "redis_connect_func": self._on_connect,
        }
        several = sentinel_url(url)
        if several is None:
            pool = redis_asyncio.ConnectionPool.from_url(url, **options)
            return None, pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py has no types here
        options |= {"db": several.database, "username": several.user, "password": several.password}
        return Sentinels(several), redis_asyncio.Connection(**options)

    @property
    def has_sentinels(self) -> bool:
        return self._sentinels is not None

    async def exchange(
        self, commands: Sequence[Command], process: bytes | None = None, *, once: bool = False
    ) -> list[Any]:
        """Send commands and return their replies; the reply to a rejected command is a fault, as of ``fault_of``.

        The commands must be idempotent: they may run more than once, and may run although this raises. A cancelled
        exchange closes the connection.

        :param process: the only process that the commands are for, see the class; None: that of the connection so far,
            or any after :meth:`begin_anew`
        :param once: do not reopen the connection; the commands need not be idempotent
        :raises RedisFault: there are no replies. ``is_another_process``: nothing was sent
        """
        async with self._turn:
            self._wanted = process
            try:
                replies = await self._send(commands, once)
                if any(isinstance(reply, errors.NoScriptError) for reply in replies):
                    await self._send(self._loading)
                    replies = await self._send(commands, once)
                if self._sentinels is not None and any(map(_is_of_replica, replies)):
                    await self.close()
            except (errors.RedisError, OSError) as error:
                raise self._fault_of(error) from error
        return self._translated(replies)

    def exchange_now(self, commands: Sequence[Command], process: bytes, on_outcome: OnOutcome) -> bool:
        """Send commands if the connection is open and idle, and have their replies handled in the turn of the loop in
        which they arrive, without a task. Otherwise do nothing, and :meth:`exchange` is to be called.

        :param process: as for :meth:`exchange`, and so are the commands
        :param on_outcome: is called once, never from here
        :returns: whether they were sent
        """
        pipeline = self._pipeline
        if pipeline is None or self._turn.locked() or process != self.process:
            return False
        if not pipeline.is_of(self._connection) or not pipeline.is_open:
            return False
        request = b"".join(map(packed, commands))
        pipeline.send(request, len(commands), partial(self._finish_now, on_outcome))
        return True

    def _finish_now(self, on_outcome: OnOutcome, outcome: list[Any] | errors.RedisError) -> None:
        if isinstance(outcome, errors.TimeoutError):
            on_outcome(self._fault_of(outcome))
        elif isinstance(outcome, errors.RedisError) or any(isinstance(reply, _RETRIED) for reply in outcome):
            on_outcome(None)
        else:
            on_outcome(self._translated(outcome))

    def _translated(self, replies: Sequence[Any]) -> list[Any]:
        return [self._fault_of(reply) if isinstance(reply, errors.ResponseError) else reply for reply in replies]

    async def begin_anew(self) -> None:
        """Close the connection; the next one may reach any Redis process."""
        async with self._turn:
            await self.close()
            self.run = self.process = None

    async def close(self) -> None:
        """Idempotent; never raises. The next exchange opens it again."""
        with contextlib.suppress(errors.RedisError, OSError):  # it is closed either way
            await self._connection.disconnect()

    async def _send(self, commands: Sequence[Command], once: bool = False) -> list[Any]:
        request = b"".join(map(packed, commands))
        try:
            return await self._ask(request, len(commands))
        except errors.ConnectionError:
            await self._connection.disconnect(nowait=True)
            if once:
                raise
        return await self._ask(request, len(commands))

    async def _ask(self, request: bytes, count: int) -> list[Any]:
        await self._open()
        pipeline = self._pipeline
        if pipeline is None or not pipeline.is_of(self._connection):
            pipeline = self._pipeline = pipeline_of(self._connection, self._reply_s)
        if pipeline is None:
            return await self._ask_through_redis_py(request, count)
        try:
            return await pipeline.ask(request, count)
        except BaseException:
            await self._connection.disconnect(nowait=True)
            raise

    async def _open(self) -> None:
        """Have a connection to the process that is wanted."""
        if self._wanted is not None and self._wanted != self.process and self._connection.is_connected:
            await self._connection.disconnect(nowait=True)
        if self._sentinels is not None and not self._connection.is_connected:
            self._connection.host, self._connection.port = await self._sentinels.master()
        if not self._connection.is_connected:
            await self._connection.connect()

    async def _ask_through_redis_py(self, request: bytes, count: int) -> list[Any]:
        await self._connection.send_packed_command([request])
        replies: list[Any] = []
        for _ in range(count):
            try:
                replies.append(await self._connection.read_response())
            except errors.ResponseError as refusal:
                # Go on reading, so that later replies match their commands.
                replies.append(refusal)
        return replies

    async def _on_connect(self, connection: redis_asyncio.Connection) -> None:
        await connection.on_connect()
        for words in _INFO:
            await connection.send_command(*words, check_health=False)
        facts: dict[bytes, bytes] = {}
        for _ in _INFO:
            with contextlib.suppress(errors.ResponseError):  # INFO may be forbidden
                facts |= facts_of(await connection.read_response())
        if self._sentinels is not None and facts.get(b"role") == b"slave":
            raise errors.ConnectionError("the server that the Sentinels name is a replica")
        before, self.run = self.run, facts.get(b"run_id", b"")
        self.process = b"%b.%b" % (self.run, facts.get(b"master_replid", b"")) if self.run else b""
        if self._wanted is not None:
            is_another = self.process != self._wanted
        else:
            is_another = before is not None and (before != self.run or not before)
        if is_another:
            raise AnotherProcess("Redis was restarted or replaced")


def _is_of_replica(reply: Any) -> bool:
    return isinstance(reply, errors.ResponseError) and fault_of(reply).is_replica


def facts_of(reply: Any) -> dict[bytes, bytes]:
    """The fields of a reply to INFO; none of anything else."""
    lines = reply.splitlines() if isinstance(reply, bytes) else ()
    return {name: value for name, _, value in (line.partition(b":") for line in lines) if value}


def packed(command: Command) -> bytes:
    """Encode a command for the wire (RESP)."""
    parts = [b"*%d\r\n" % len(command)]
    parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in command]
    return b"".join(parts)
