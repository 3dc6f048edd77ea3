"""What one can do with a page, whichever browser shows it.

The protocols of the browsers, WebDriver BiDi and Chromium's own, have the same form: commands with an ``id``, their
results, and events, as JSON over a WebSocket.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from abc import ABC, abstractmethod
from typing import Any

from websockets.asyncio.client import ClientConnection

from .browser import PATIENCE_S


class PageError(Exception):
    """A script of the test threw, or the browser refused a command."""


class AnyPage(ABC):
    """One tab of a browser.

    :ivar faults: what the page's scripts threw or logged as errors; in Chromium also blocked loads and violations of
        its policy
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.faults: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.ensure_future(self._read())

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol."""
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        async with asyncio.timeout(PATIENCE_S):
            return await answer

    async def close(self) -> None:
        self._reader.cancel()
        await self._socket.close()

    @abstractmethod
    async def evaluate(self, script: str) -> Any:
        """The value of an expression, or of what its promise resolves to."""

    @abstractmethod
    async def type_text(self, text: str) -> None:
        """Put a text where the cursor is."""

    @abstractmethod
    def on_event(self, method: str, params: dict[str, Any]) -> None:
        """The browser reports something."""

    def faults_but(self, *statuses: int) -> list[str]:
        """The faults, without the browser's lines about answers of these statuses."""
        known = [f"responded with a status of {status} " for status in statuses]
        return [fault for fault in self.faults if not any(each in fault for each in known)]

    async def until(self, script: str) -> Any:
        """Evaluate an expression until it is true, and return its value; of an element, True."""
        value, found = f"((value) => value instanceof Node || value)({script})", None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not (found := await self.evaluate(value)):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            text = await self.evaluate("document.body.innerText")
            raise PageError(f"never true: {script}\n{text}\n{self.faults}") from None
        return found

    async def until_text(self, text: str) -> None:
        """Wait until the page shows a text."""
        await self.until(f"document.body.innerText.includes({json.dumps(text)})")

    async def click(self, script: str) -> None:
        """Wait for an element, and click it.

        :param script: an expression, as :func:`by_text` makes it
        """
        await self.until(f"(() => {{ const found = {script}; found?.click(); return Boolean(found); }})()")

    async def fill(self, selector: str, text: str) -> None:
        """Put a text into a field, as if it had been typed."""
        await self.until(f"(document.querySelector({json.dumps(selector)})?.select?.(), true)")
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.type_text(text)

    async def _read(self) -> None:
        async for text in self._socket:
            message = json.loads(text)
            if "id" not in message:
                self.on_event(message["method"], message["params"])
            elif "error" in message:
                self._waiting.pop(message["id"]).set_exception(PageError(_fault_of(message)))
            else:
                self._waiting.pop(message["id"]).set_result(message["result"])


def _fault_of(message: dict[str, Any]) -> str:
    error = message["error"]
    return str(error["message"]) if isinstance(error, dict) else f"{error}: {message['message']}"


def by_text(selector: str, text: str) -> str:
    """A script that finds the first visible element of this selector whose text, or label, is ``text``."""
    return (
        f"[...document.querySelectorAll({json.dumps(selector)})].find((each) => each.checkVisibility()"
        f" && [each.textContent.trim(), each.getAttribute('aria-label')].includes({json.dumps(text)}))"
    )
