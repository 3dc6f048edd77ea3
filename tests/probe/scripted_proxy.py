"""A small proxy of HTTP/1.1 that does to each message what a test says, in front of any gateway. One event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

Head = list[str]
"""The first line and the headers, without the empty line."""

Change = Callable[[Head], Head]


def unchanged(head: Head) -> Head:
    return head


class ScriptedProxy:
    """On a free port of loopback. What follows a head is passed on as it comes, both ways.

    :ivar request: changes the head of a request; :ivar response: that of its answer
    :ivar answer: answers in the gateway's place, if it returns anything; given the head of the request
    :ivar before: sent before each answer of the gateway
    """

    def __init__(self, gateway_port: int) -> None:
        self.request: Change = unchanged
        self.response: Change = unchanged
        self.answer: Callable[[Head], bytes] = lambda head: b""
        self.before = b""
        self.port = 0
        self._gateway_port = gateway_port
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._pass_on(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one of the two went, or the test is over
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await _read_head(reader)
        if own := self.answer(head):
            writer.write(own)
            await writer.drain()
            writer.write_eof()
            await reader.read(-1)
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._gateway_port)
        try:
            inner_writer.write(_bytes(self.request(head)))
            up = asyncio.create_task(_copy(reader, inner_writer))
            try:
                answer = await _read_head(inner_reader)
                writer.write(self.before + _bytes(self.response(answer)))
                await asyncio.wait(
                    [up, asyncio.create_task(_copy(inner_reader, writer))], return_when="FIRST_COMPLETED"
                )
                await writer.drain()
            finally:
                up.cancel()
        finally:
            # Either side has gone: so does the other.
            inner_writer.transport.abort()
            with contextlib.suppress(OSError):
                writer.close()
                await writer.wait_closed()


async def _read_head(reader: asyncio.StreamReader) -> Head:
    return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]


def _bytes(head: Head) -> bytes:
    return "\r\n".join([*head, "", ""]).encode("latin-1")


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


def without(*names: str) -> Change:
    """Take headers out."""
    return lambda head: [line for line in head if line.partition(":")[0].lower() not in names]


def page(status: str, *headers: str) -> bytes:
    """An answer as proxies have it: HTML."""
    body = f"<html><head><title>{status}</title></head></html>"
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", body]).encode()
