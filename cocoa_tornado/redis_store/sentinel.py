"""Which server is the master, according to Redis Sentinel."""

from __future__ import annotations

import contextlib
from typing import Any, Final

from redis import asyncio as redis_asyncio
from redis import exceptions as errors
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from .redis_url import SentinelUrl

PATIENCE_S: Final = 1.0
"""Of connecting to a Sentinel, and of its answer: the next one is asked after that."""


class Sentinels:
    """The Sentinels of one master. The one that answered last is asked first.

    A Sentinel that requires a password gets that of the Redis servers.
    """

    def __init__(self, url: SentinelUrl) -> None:
        self._url = url
        self._sentinels = list(url.sentinels)

    def __repr__(self) -> str:
        return f"<Sentinels of {self._url.master}>"

    async def master(self) -> tuple[str, int]:
        """The host and port of the current master.

        :raises errors.ConnectionError: no Sentinel knows it
        """
        problems = []
        for at, sentinel in enumerate(list(self._sentinels)):
            try:
                found = await self._ask(*sentinel)
            except (errors.RedisError, OSError) as error:
                problems.append(f"{sentinel[0]}:{sentinel[1]}: {error}")
                continue
            self._sentinels.insert(0, self._sentinels.pop(at))
            return found
        raise errors.ConnectionError(f"no Sentinel knows the master {self._url.master}: {'; '.join(problems)}")

    async def _ask(self, host: str, port: int) -> tuple[str, int]:
        try:
            return await self._ask_as(host, port, None, None)
        except errors.RedisError as error:
            if not isinstance(error, errors.AuthenticationError) and "NOAUTH" not in str(error):
                raise
            return await self._ask_as(host, port, self._url.user, self._url.password)

    async def _ask_as(self, host: str, port: int, user: str | None, password: str | None) -> tuple[str, int]:
        connection: Any = redis_asyncio.Connection(
            host=host,
            port=port,
            username=user,
            password=password,
            protocol=2,
            driver_info=None,  # a Sentinel may not know CLIENT SETINFO
            socket_connect_timeout=PATIENCE_S,
            socket_timeout=PATIENCE_S,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            await connection.connect()
            await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._url.master)
            reply = await connection.read_response()
        finally:
            with contextlib.suppress(errors.RedisError, OSError):  # it is closed either way
                await connection.disconnect(nowait=True)
        if not reply:
            raise errors.ConnectionError("it does not know this master")
        address, number = reply
        return address.decode(), int(number)
