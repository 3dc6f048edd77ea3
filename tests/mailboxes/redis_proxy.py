"""A proxy before Redis that loses replies."""

from __future__ import annotations

import asyncio
import contextlib

from testing.redis_server import RedisServer


class Proxy:
    """Between a mailbox and its Redis. Closes a connection after Redis has executed a command, before the reply.

    :ivar losing: how many replies to lose from now on, of requests that contain ``only``
    """

    def __init__(self, server: RedisServer) -> None:
        self._port = server.port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""
        self.losing, self.lost = 0, 0
        self.only = b"EVALSHA"

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            while data := await reader.read(1 << 20):
                back.write(data)
                reply = await there.read(1 << 20)
                if self.losing and self.only in data:
                    self.losing -= 1
                    self.lost += 1
                    break
                writer.write(reply)
        except (OSError, asyncio.CancelledError):
            pass  # the test is over
        finally:
            for stream in (writer, back):
                stream.close()
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await stream.wait_closed()
            self._tasks.discard(task)
