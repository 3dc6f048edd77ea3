"""Drives a headless Chromium by its DevTools protocol: opens pages, presses keys, reads what the page says."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from .browser import CHROMIUM, PATIENCE_S
from .pages import AnyPage, PageError, by_text

__all__ = ["Chromium", "Page", "PageError", "by_text", "chromium"]

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions", "--mute-audio"),
    *("--remote-debugging-port=0", "--hide-scrollbars"),
)
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}


class Chromium:
    """One browser process. Pages share its profile; each has a socket of its own."""

    def __init__(self, port: int, path: str) -> None:
        self._address, self._path = f"ws://127.0.0.1:{port}", path
        self._open: list[Page] = []

    async def page(self, url: str, width: int = 1280, height: int = 800, *, dark: bool = False) -> Page:
        """Open a page in a new tab; returns once it has loaded."""
        async with connect(f"{self._address}{self._path}", max_size=None, proxy=None) as control:
            command = {"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}}
            await control.send(json.dumps(command))
            target = json.loads(await control.recv())["result"]["targetId"]
        page = Page(await connect(f"{self._address}/devtools/page/{target}", max_size=None, proxy=None))
        self._open.append(page)
        await page.begin(width, height, dark=dark)
        await page.go(url)
        return page

    async def opened_tab(self, url: str) -> Page:
        """The tab that a page has opened with a URL that begins so, as soon as it is there."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = [each for each in await self._targets() if each["url"].startswith(url)]
                if found:
                    page = Page(
                        await connect(
                            f"{self._address}/devtools/page/{found[0]['targetId']}", max_size=None, proxy=None
                        )
                    )
                    self._open.append(page)
                    await page.begin(1280, 800, dark=False)
                    return page
                await asyncio.sleep(0.05)

    async def _targets(self) -> list[dict[str, Any]]:
        async with connect(f"{self._address}{self._path}", max_size=None, proxy=None) as control:
            await control.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
            found: list[dict[str, Any]] = json.loads(await control.recv())["result"]["targetInfos"]
            return found

    async def close(self) -> None:
        for page in self._open:
            await page.close()


class Page(AnyPage):
    """One tab.

    :ivar dialogs: the texts of ``alert`` and its kin, each dismissed at once
    """

    def __init__(self, socket: ClientConnection) -> None:
        super().__init__(socket)
        self.dialogs: list[str] = []
        self._loaded = asyncio.Event()
        self._dismissing: asyncio.Future[dict[str, Any]] | None = None

    async def begin(self, width: int, height: int, *, dark: bool) -> None:
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.look(width, height, dark=dark)

    async def look(self, width: int, height: int, *, dark: bool = False, calm: bool = False) -> None:
        """Set the size of the window, the theme of the system, and whether the person wants no motion."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme, motion])

    async def go(self, url: str) -> None:
        """Open a URL, and wait until it has loaded."""
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        async with asyncio.timeout(PATIENCE_S):
            await self._loaded.wait()

    async def evaluate(self, script: str) -> Any:
        """The value of an expression, or of what its promise resolves to. No policy of the page forbids it."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise PageError(described(answer["exceptionDetails"]))
        return answer["result"].get("value")

    async def type_text(self, text: str) -> None:
        """Put a text where the cursor is."""
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key."""
        code = KEYS.get(key, 0)
        common = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        text = {"Enter": "\r", " ": " "}.get(key)
        await self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        answer = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def on_event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Runtime.exceptionThrown":
            self.faults.append(described(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.faults.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.faults.append(" ".join(str(each.get("value", each.get("description"))) for each in params["args"]))
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(params["message"])
            self._dismissing = asyncio.ensure_future(self.call("Page.handleJavaScriptDialog", accept=False))


def described(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])


@contextlib.asynccontextmanager
async def chromium(folder: Path, *flags: str) -> AsyncIterator[Chromium]:
    """Run a browser.

    :param folder: an empty folder for its profile
    """
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        *(CHROMIUM, *FLAGS, *flags, f"--user-data-dir={folder}", "about:blank"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    browser: Chromium | None = None
    try:
        browser = Chromium(*await _endpoint(folder / "DevToolsActivePort"))
        yield browser
    finally:
        if browser is not None:
            await browser.close()
        process.terminate()
        await process.wait()


async def _endpoint(path: Path) -> tuple[int, str]:
    """The port and the path of the protocol, once the browser has written them."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(OSError):
                lines = path.read_text(encoding="ascii").splitlines()
                if len(lines) >= 2:
                    return int(lines[0]), lines[1]
            await asyncio.sleep(0.05)
