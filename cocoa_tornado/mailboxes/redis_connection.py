"""A connection to Redis, and its errors as one line for operators.

All commands of an exchange are sent together, so a batch of boxes costs one round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from typing import Any, Final

from redis import asyncio as redis_asyncio
from redis import exceptions as errors
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from .redis_scripts import LOAD_ALL, Command
from .store import StoreFault

CONNECT_PATIENCE_S = 2.0
REPLY_PATIENCE_S = 4.0
NOT_ANSWERING: Final = "Redis does not answer"

# Causes by the first word of Redis' error reply. Versions before 7 put the script's name before it.
_CAUSES: Final = {
    "OOM": "Redis has no memory left (maxmemory)",
    "READONLY": "this Redis is a read-only replica",
    "MISCONF": "Redis cannot write to its disk",
    "WRONGTYPE": "a key of the mailbox has another type",
    "LOADING": "Redis is loading its data",
    "NOAUTH": "Redis requires a password",
    "WRONGPASS": "Redis rejects this user and password",
    "NOPERM": "the Redis user lacks a permission that the mailbox needs",
    "BUSY": "Redis is busy running a script",
    "MASTERDOWN": "this Redis is a replica, and its master is down",
    "NOREPLICAS": "Redis has fewer replicas than min-replicas-to-write",
    "MOVED": "this Redis is a cluster node, which a mailbox cannot use",
}
_CAUSE: Final = re.compile(rf"\b({'|'.join(_CAUSES)})\b")
# Older versions of redis-py strip the word.
_CAUSE_OF_CLASS: Final[dict[type, str]] = {
    errors.OutOfMemoryError: "OOM",
    errors.ReadOnlyError: "READONLY",
    errors.BusyLoadingError: "LOADING",
    errors.NoPermissionError: "NOPERM",
}
_FORBIDDEN_IN_SCRIPT: Final = re.compile("can't run this command|can't access at least one|ACL failure")
_AWAY: Final = frozenset({"LOADING", "NOAUTH", "WRONGPASS", "BUSY", "MASTERDOWN", "MOVED"})


class RedisFault(StoreFault):
    """Redis is unreachable, or rejects a command.

    :ivar is_foreign: a key has a wrong type
    """

    def __init__(self, detail: str, *, away: bool = True, reopen: bool = False, is_foreign: bool = False) -> None:
        self.is_foreign = is_foreign
        super().__init__(detail, away=away, reopen=reopen)


class _AnotherProcess(errors.RedisError):
    """A reconnection has reached another Redis process."""


class RedisConnection:
    """A connection to Redis, used by one task at a time.

    redis-py opens it, and reopens it once when the server or a proxy has closed it. If the new connection reaches
    another Redis process, the exchange fails: that process may have lost the latest writes, so the store must be opened
    again. redis-py's pipelines are not used: they make a message cost half as much CPU time again, because they pack
    each argument in Python and run four layers per exchange.

    :param url: ``redis://`` or ``rediss://``; any other scheme raises ValueError
    :ivar run: the run id of the current Redis process; empty if Redis hides it; None before the first connection
    """

    def __init__(self, url: str) -> None:
        self._retry = Retry(NoBackoff(), 1, supported_errors=(errors.ConnectionError,))
        pool = redis_asyncio.ConnectionPool.from_url(
            url,
            protocol=2,
            client_name="cocoa",
            socket_connect_timeout=CONNECT_PATIENCE_S,
            socket_timeout=REPLY_PATIENCE_S,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
            redis_connect_func=self._on_connect,
        )
        self._connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py has no types here
        self._turn = asyncio.Lock()
        self.run: bytes | None = None

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands and return their replies; the reply to a rejected command is a :class:`RedisFault`.

        The commands must be idempotent: they may run more than once, and may run although this raises.

        :raises RedisFault: there are no replies
        """
        async with self._turn:
            try:
                replies = await self._send(commands)
                if any(isinstance(reply, errors.NoScriptError) for reply in replies):
                    await self._send(LOAD_ALL)
                    replies = await self._send(commands)
            except (errors.RedisError, OSError) as error:
                raise fault_of(error) from error
        return [fault_of(reply) if isinstance(reply, errors.ResponseError) else reply for reply in replies]

    async def begin_anew(self) -> None:
        """Close the connection; the next one may reach any Redis process."""
        async with self._turn:
            await self.close()
            self.run = None

    async def close(self) -> None:
        """Idempotent; never raises. The next exchange opens it again."""
        with contextlib.suppress(errors.RedisError, OSError):  # it is closed either way
            await self._connection.disconnect()

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        request = b"".join(map(packed, commands))
        return await self._retry.call_with_retry(
            lambda: self._ask(request, len(commands)), lambda _: self._connection.disconnect(nowait=True)
        )

    async def _ask(self, request: bytes, count: int) -> list[Any]:
        await self._connection.send_packed_command([request])  # connects if necessary
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
        await connection.send_command("INFO", "server", check_health=False)
        info: Any = b""
        with contextlib.suppress(errors.ResponseError):  # INFO may be forbidden
            info = await connection.read_response()
        before, self.run = self.run, run_of(info)
        if before is not None and (before != self.run or not before):
            raise _AnotherProcess("Redis was restarted or replaced")


def run_of(reply: Any) -> bytes:
    """The run id of a Redis process in its reply to INFO; empty if the reply lacks it."""
    lines = reply.splitlines() if isinstance(reply, bytes) else ()
    return next((line.removeprefix(b"run_id:") for line in lines if line.startswith(b"run_id:")), b"")


def packed(command: Command) -> bytes:
    """Encode a command for the wire (RESP)."""
    parts = [b"*%d\r\n" % len(command)]
    parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in command]
    return b"".join(parts)


def fault_of(error: Exception) -> RedisFault:
    """Translate an error of redis-py or the network."""
    if isinstance(error, _AnotherProcess):
        return RedisFault(str(error))
    code = getattr(error, "status_code", None) or _CAUSE_OF_CLASS.get(type(error), "")
    found = _CAUSE.search(code) or _CAUSE.search(str(error))
    if _FORBIDDEN_IN_SCRIPT.search(str(error)) or (found is not None and found[1] == "NOPERM"):
        return RedisFault(f"{_CAUSES['NOPERM']}: {error}", away=False)
    if found is not None:
        return RedisFault(_CAUSES[found[1]], away=found[1] in _AWAY, is_foreign=found[1] == "WRONGTYPE")
    if isinstance(error, (errors.TimeoutError, TimeoutError)):
        return RedisFault(NOT_ANSWERING)
    if isinstance(error, errors.AuthenticationError):
        return RedisFault(_CAUSES["NOAUTH" if "required" in str(error) else "WRONGPASS"])
    if isinstance(error, (errors.ConnectionError, OSError)):
        return RedisFault(f"no connection to Redis: {error}")
    return RedisFault(f"Redis rejects a command: {error}", away=False)
