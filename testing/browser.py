"""Opens a test's page in a real browser, and receives the page's reports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_S = 60.0


class PageServer:
    """Serves one page on a free loopback port, at ``/`` with any query. The page reports with a POST to ``/report``.

    The page's script can call ``report(value)``. ``http://127.0.0.1`` and ``http://localhost`` are two of its origins.
    """

    def __init__(self, script: str) -> None:
        self._page = (
            "<!doctype html><meta charset=utf-8><script>\n"
            "const report = (value) => fetch('/report', {method: 'POST', body: JSON.stringify(value)});\n"
            f"{script}\n</script>"
        ).encode()
        self.report: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.port = 0
        self._serving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[PageServer]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            async with server:
                yield self
        finally:
            # A browser opens connections in advance, and sends nothing on them.
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
            body = await reader.readexactly(length)
            if head.startswith("post /report ") and not self.report.done():
                self.report.set_result(json.loads(body))
            page = self._page if head.startswith(("get / ", "get /?")) else b""
            fields = f"Content-Type: text/html\r\nContent-Length: {len(page)}\r\nConnection: close"
            writer.write(f"HTTP/1.1 200 OK\r\n{fields}\r\n\r\n".encode() + page)
            await writer.drain()


async def open_page(script: str, folder: Path, origin: str = "127.0.0.1") -> Any:
    """Open a page with this script in a new Chromium, and return its report.

    :param folder: an empty folder for the browser's profile
    :param origin: the host name in the page's address
    """
    assert CHROMIUM is not None
    async with PageServer(script).serving() as server:
        browser = await asyncio.create_subprocess_exec(
            CHROMIUM,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder}"),
            f"http://{origin}:{server.port}/",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            return await asyncio.wait_for(server.report, PATIENCE_S)
        finally:
            browser.terminate()
            await browser.wait()
