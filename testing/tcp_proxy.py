"""A TCP proxy in the test's event loop: a fixed address for a server whose address changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from .ports import ReservedPort


class TcpProxy:
    """Forwards connections while it is up.

    :ivar target: ``host:port`` of the server, for new connections
    :ivar address: its own ``host:port``
    :ivar flows: while it is not set, connections stay open and nothing passes, as if the network were cut. What was
        sent meanwhile arrives later
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._port = ReservedPort()
        self.address = f"127.0.0.1:{self._port.number}"
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()
        self.flows = asyncio.Event()
        self.flows.set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port.number)

    async def stop(self) -> None:
        """Close all connections, and refuse new ones."""
        if self._server is not None:
            self._server.close()
        for task in list(self._passing):
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    async def close(self) -> None:
        await self.stop()
        self._port.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.target.split(":")
        try:
            their_reader, their_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        for source, sink in ((reader, their_writer), (their_reader, writer)):
            task = asyncio.ensure_future(self._pass_on(source, sink))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self.flows.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass  # either end may close at any time
        finally:
            sink.close()


@contextlib.asynccontextmanager
async def proxying(target: str) -> AsyncIterator[TcpProxy]:
    """A proxy on a free port of 127.0.0.1, up."""
    proxy = TcpProxy(target)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()
