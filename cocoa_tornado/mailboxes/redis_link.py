"""A connection to Redis, and what its failures mean, in one line for people.

Commands go out in one piece and their replies come back in one, so a page of boxes costs one round trip.
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

# What Redis says, by the word it begins with. Inside a script, versions before 7 put the script's name before it.
_CAUSES: Final = {
    "OOM": "Redis has no memory left (maxmemory)",
    "READONLY": "this Redis is a replica, which only reads",
    "MISCONF": "Redis cannot write to its disk",
    "WRONGTYPE": "a key of the mailbox holds something else",
    "LOADING": "Redis is loading its data",
    "NOAUTH": "Redis wants a password",
    "WRONGPASS": "Redis does not know this user and password",
    "NOPERM": "Redis does not allow this user what a mailbox needs",
    "BUSY": "Redis is busy with somebody's script",
    "MASTERDOWN": "this Redis is a replica, and its master is away",
    "NOREPLICAS": "Redis has fewer replicas than it is told to have",
    "MOVED": "this Redis is one node of a cluster, which a mailbox cannot use",
}
_CAUSE: Final = re.compile(rf"\b({'|'.join(_CAUSES)})\b")
# Older versions of redis-py do not tell the word.
_CAUSE_OF_CLASS: Final[dict[type, str]] = {
    errors.OutOfMemoryError: "OOM",
    errors.ReadOnlyError: "READONLY",
    errors.BusyLoadingError: "LOADING",
    errors.NoPermissionError: "NOPERM",
}
_FORBIDDEN_IN_SCRIPT: Final = re.compile("can't run this command|can't access at least one|ACL failure")
_AWAY: Final = frozenset({"LOADING", "NOAUTH", "WRONGPASS", "BUSY", "MASTERDOWN", "MOVED"})


class RedisFault(StoreFault):
    """Redis is away, or refuses.

    :ivar is_foreign: a key is of a wrong type
    """

    def __init__(self, detail: str, *, away: bool = True, reopen: bool = False, is_foreign: bool = False) -> None:
        self.is_foreign = is_foreign
        super().__init__(detail, away=away, reopen=reopen)


class _AnotherProcess(errors.RedisError):
    """A connection has led to another Redis than the one before it."""


class Link:
    """A connection, which tasks use in turn.

    redis-py makes it, and makes it anew where the server or a proxy has closed it. That is good only where it leads to
    the same Redis process as before: another one may have lost the latest of what this one knows, and has to be looked
    at first. Its pipelines are not used: with them a message costs the gateway half as much again (they pack each
    argument in Python, and have four layers for each exchange).

    :param url: ``redis://`` or ``rediss://``; ValueError if it is neither
    :ivar run: the process that it led to last; empty where Redis does not say; None if it is to be found out
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
        """The reply to each of the commands, a :class:`RedisFault` in the place of one that was refused.

        They may be carried out more than once, or although this fails: they must not mind.

        :raises RedisFault: no replies were had
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
        """Close it, and let it lead wherever it does next."""
        async with self._turn:
            await self.close()
            self.run = None

    async def close(self) -> None:
        """Idempotent; never raises. It opens again when it is used again."""
        with contextlib.suppress(errors.RedisError, OSError):  # it is gone, one way or the other
            await self._connection.disconnect()

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        request = b"".join(map(packed, commands))
        return await self._retry.call_with_retry(
            lambda: self._ask(request, len(commands)), lambda _: self._connection.disconnect(nowait=True)
        )

    async def _ask(self, request: bytes, count: int) -> list[Any]:
        await self._connection.send_packed_command([request])  # which connects, if need be
        replies: list[Any] = []
        for _ in range(count):
            try:
                replies.append(await self._connection.read_response())
            except errors.ResponseError as refusal:
                # An error reply is read as far as it goes, so that the others are not taken for its own.
                replies.append(refusal)
        return replies

    async def _on_connect(self, connection: redis_asyncio.Connection) -> None:
        await connection.on_connect()
        await connection.send_command("INFO", "server", check_health=False)
        info: Any = b""
        with contextlib.suppress(errors.ResponseError):  # it may be forbidden
            info = await connection.read_response()
        before, self.run = self.run, run_of(info)
        if before is not None and (before != self.run or not before):
            raise _AnotherProcess("Redis was restarted, or another one has taken its place")


def run_of(reply: Any) -> bytes:
    """Which process a Redis is, by what INFO says of it; empty where it does not say."""
    lines = reply.splitlines() if isinstance(reply, bytes) else ()
    return next((line.removeprefix(b"run_id:") for line in lines if line.startswith(b"run_id:")), b"")


def packed(command: Command) -> bytes:
    """A command as it goes over the wire."""
    parts = [b"*%d\r\n" % len(command)]
    parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in command]
    return b"".join(parts)


def fault_of(error: Exception) -> RedisFault:
    """What redis-py or the network says, in our words."""
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
    return RedisFault(f"Redis refuses: {error}", away=False)
