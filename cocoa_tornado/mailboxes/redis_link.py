"""One connection to Redis, opened when it is needed; and what its failures mean, in one line for people.

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

from ..errors import MailboxError
from .redis_scripts import LOAD_ALL, Command

CONNECT_PATIENCE_S = 2.0
REPLY_PATIENCE_S = 5.0
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


class RedisFault(MailboxError):
    """Redis is away, or refuses.

    :ivar away: nothing can be had from it, as far as one can tell; False: it may still be read
    :ivar is_late: Redis has not what the gateway thinks: it has to look at the mailbox anew
    :ivar is_foreign: a key is of a wrong type
    """

    def __init__(self, detail: str, *, away: bool = True, is_late: bool = False, is_foreign: bool = False) -> None:
        self.away, self.is_late, self.is_foreign = away, is_late, is_foreign
        super().__init__(detail)


class Link:
    """A connection. Tasks use it in turn, and after every failure it is closed.

    It is made anew unasked only where it leads to the same Redis process as before: another one may have lost the
    latest of what this one knows, and has to be looked at first.

    :param url: ``redis://`` or ``rediss://``; ValueError if it is neither
    :param patience_s: for an exchange, connecting included
    :ivar run: the process that it led to last; empty where Redis does not say; None if it is to be found out
    """

    def __init__(self, url: str, patience_s: float) -> None:
        self._pool = redis_asyncio.ConnectionPool.from_url(
            url,
            protocol=2,
            client_name="cocoa",
            socket_connect_timeout=CONNECT_PATIENCE_S,
            socket_timeout=REPLY_PATIENCE_S,
            socket_keepalive=True,
        )
        self._patience_s = patience_s
        self._connection: Any = None
        self._turn = asyncio.Lock()
        self.run: bytes | None = None

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The reply to each of the commands, a :class:`RedisFault` in the place of one that was refused.

        They may be carried out more than once, or although this fails: they must not mind.

        :raises RedisFault: no replies were had
        """
        async with self._turn:
            return await self._exchange(commands)

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        told = False
        try:
            async with asyncio.timeout(self._patience_s):
                replies = await self._with_one_more_try(b"".join(map(packed, commands)), len(commands))
            told = True
            return [fault_of(reply) if isinstance(reply, errors.ResponseError) else reply for reply in replies]
        except TimeoutError as error:
            raise RedisFault(NOT_ANSWERING) from error
        except (errors.RedisError, OSError) as error:
            raise fault_of(error) from error
        finally:
            if not told:
                await self.close(wait=False)

    async def begin_anew(self) -> None:
        """Close it, and let it lead wherever it does next."""
        async with self._turn:
            await self.close(wait=False)
            self.run = None

    async def close(self, *, wait: bool = True) -> None:
        """Idempotent; never raises. It opens again when it is used again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(errors.RedisError, OSError):  # it is gone, one way or the other
                await connection.disconnect(nowait=not wait)

    async def _with_one_more_try(self, request: bytes, count: int) -> list[Any]:
        if self._connection is not None:
            try:
                return await self._talk(request, count)
            except (errors.ConnectionError, OSError):
                # Servers and proxies close what has been idle for long: that is no failure yet.
                await self.close(wait=False)
        await self._connect()
        return await self._talk(request, count)

    async def _connect(self) -> None:
        self._connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        await self._connection.connect()
        (info,) = await self._ask(packed([b"INFO", b"server"]), 1)
        before, self.run = self.run, run_of(info)
        if before is not None and (before != self.run or not before):
            raise RedisFault("Redis was restarted, or another one has taken its place")

    async def _talk(self, request: bytes, count: int) -> list[Any]:
        replies = await self._ask(request, count)
        if any(isinstance(reply, errors.NoScriptError) for reply in replies):
            await self._ask(b"".join(map(packed, LOAD_ALL)), len(LOAD_ALL))
            replies = await self._ask(request, count)
        return replies

    async def _ask(self, request: bytes, count: int) -> list[Any]:
        await self._connection.send_packed_command([request])
        replies: list[Any] = []
        for _ in range(count):
            try:
                replies.append(await self._connection.read_response())
            except errors.ResponseError as refusal:
                # An error reply is read as far as it goes, so that the others are not taken for its own.
                replies.append(refusal)
        return replies


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
