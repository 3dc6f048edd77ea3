"""Reads a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from testing.raw_device import PATIENCE_S, RawDevice, Response

from ..harness import Harness
from .conftest import BASE, admin_token


class EventStream:
    """One watcher's stream.

    :ivar comments: the comments that were read, without the colon
    """

    def __init__(self, device: RawDevice) -> None:
        self._device = device
        self._unread = b""
        self.comments: list[str] = []

    @classmethod
    async def ask(
        cls, gateway: Harness, query: str = "", token: str | None = None, port: int | None = None, **options: Any
    ) -> EventStream:
        """The answer may be a refusal: see :attr:`response`."""
        stream = cls(await RawDevice.connect(port or gateway.port, **options))
        await stream._device.request(
            "GET", f"{BASE}/events{query}", {"Authorization": f"Bearer {token or admin_token()}"}
        )
        return stream

    @classmethod
    async def open(cls, gateway: Harness, query: str = "", **options: Any) -> EventStream:
        """A stream that shows everything from now on."""
        stream = await cls.ask(gateway, query, **options)
        assert stream.response.status == 200, stream.response
        while not stream.comments:
            assert await stream._read_chunk()
            stream._take_comments()
        return stream

    @property
    def response(self) -> Response:
        return self._device.response

    async def next(self) -> dict[str, Any] | None:
        """The data of the next event; None at the end of the stream."""
        while True:
            self._take_comments()
            block, found, rest = self._unread.partition(b"\n\n")
            if found:
                self._unread = rest
                event, data = block.split(b"\n")
                shown: dict[str, Any] = json.loads(data.removeprefix(b"data: "))
                assert event == f"event: {shown['event']}".encode()
                return shown
            if not await self._read_chunk():
                return None

    async def some(self, count: int) -> list[dict[str, Any]]:
        """The next events."""
        events = [await self.next() for _ in range(count)]
        assert None not in events
        return [event for event in events if event is not None]

    async def end(self) -> None:
        await self._device.end()

    def _take_comments(self) -> None:
        while self._unread.startswith(b":") and b"\n\n" in self._unread:
            comment, _, self._unread = self._unread.partition(b"\n\n")
            self.comments.append(comment[1:].decode().strip())

    async def _read_chunk(self) -> bytes:
        """A chunk of the body; b"" at its end."""
        reader = self._device.reader
        async with asyncio.timeout(PATIENCE_S):
            size = int(await reader.readuntil(b"\r\n"), 16)
            chunk = (await reader.readexactly(size + 2))[:-2]
        self._unread += chunk
        return chunk
