"""Drives a headless Firefox by WebDriver BiDi, which it speaks itself: opens pages, types, reads what a page says."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect

from .browser import PATIENCE_S
from .pages import AnyPage, PageError

FIREFOX: Final = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)
# A microphone that gives a tone, without a question; and nothing is asked of other hosts.
PREFERENCES: Final = """
user_pref("media.autoplay.default", 0);
user_pref("media.navigator.streams.fake", true);
user_pref("media.navigator.permission.disabled", true);
user_pref("app.normandy.enabled", false);
user_pref("app.update.enabled", false);
user_pref("browser.safebrowsing.update.enabled", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("extensions.update.enabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("network.proxy.type", 0);
user_pref("services.settings.server", "http://127.0.0.1:1");
user_pref("toolkit.telemetry.enabled", false);
"""


class FirefoxPage(AnyPage):
    """One tab, and the session of its browser."""

    def __init__(self, socket: ClientConnection) -> None:
        super().__init__(socket)
        self._context = ""

    async def begin(self) -> None:
        await self.call("session.new", capabilities={})
        await self.call("session.subscribe", events=["log.entryAdded"])
        tree = await self.call("browsingContext.getTree")
        self._context = tree["contexts"][0]["context"]

    async def look(self, width: int, height: int) -> None:
        """Set the size of the window."""
        await self._here("browsingContext.setViewport", viewport={"width": width, "height": height})

    async def go(self, url: str) -> None:
        """Open a URL, and wait until it has loaded."""
        await self._here("browsingContext.navigate", url=url, wait="complete")

    async def evaluate(self, script: str) -> Any:
        whole = f"(async () => JSON.stringify([await ({script})]))()"
        target = {"context": self._context}
        answer = await self.call("script.evaluate", expression=whole, target=target, awaitPromise=True)
        if answer["type"] == "exception":
            raise PageError(answer["exceptionDetails"]["text"])
        return json.loads(answer["result"]["value"])[0]

    async def type_text(self, text: str) -> None:
        keys = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        await self._here("input.performActions", actions=[{"type": "key", "id": "keyboard", "actions": keys}])

    async def press(self, key: str) -> None:
        """Press and release a key: ``Tab``, ``Enter`` or ``Escape``."""
        await self.type_text({"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c"}[key])

    async def screenshot(self, path: Path) -> None:
        """Write a PNG of the whole page."""
        answer = await self._here("browsingContext.captureScreenshot", origin="document")
        path.write_bytes(base64.b64decode(answer["data"]))

    async def _here(self, method: str, **params: Any) -> dict[str, Any]:
        return await self.call(method, context=self._context, **params)

    def on_event(self, method: str, params: dict[str, Any]) -> None:
        if params.get("level") == "error":
            self.faults.append(str(params.get("text")))


@contextlib.asynccontextmanager
async def firefox(folder: Path) -> AsyncIterator[FirefoxPage]:
    """Run a browser; yields its one tab.

    :param folder: an empty folder for its profile
    """
    assert FIREFOX is not None
    (folder / "user.js").write_text(PREFERENCES, encoding="ascii")
    process = await asyncio.create_subprocess_exec(
        *(FIREFOX, "--headless", "--no-remote", "--profile", str(folder), "--remote-debugging-port", "0"),
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    page: FirefoxPage | None = None
    try:
        port = await _port(folder / "WebDriverBiDiServer.json")
        page = FirefoxPage(await connect(f"ws://127.0.0.1:{port}/session", max_size=None, proxy=None))
        await page.begin()
        yield page
    finally:
        if page is not None:
            await page.close()
        process.terminate()
        await process.wait()


async def _port(path: Path) -> int:
    """The port of the protocol, once the browser has written it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(OSError, ValueError):
                return int(json.loads(path.read_text(encoding="utf-8"))["ws_port"])
            await asyncio.sleep(0.05)
