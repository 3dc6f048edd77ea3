"""For handlers that read a body as it comes: an answer that need not wait for the end of the body."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from .handlers import GatewayErrors

NO_LIMIT_S: Final = 7 * 86400.0


class EarlyAnswers(GatewayErrors):
    """Base of a handler under ``tornado.web.stream_request_body``. A refusal before the end of the body is sent at
    once, and ends the connection (``answers.py``).

    Subclasses call :meth:`begin_body` in ``prepare`` and :meth:`end_body` when the method's own method runs; in between
    :meth:`receive` gets the body.

    :ivar is_in_body: the body has begun, or may, and is not at its end
    :ivar is_answered: nothing is left to say
    """

    is_in_body = False
    is_answered = False
    _timer: asyncio.TimerHandle | None = None

    def begin_body(self) -> None:
        """From here on the body's limits, in bytes and in time, are the handler's own affair."""
        self.is_in_body = True
        self.ask_for_body(NO_LIMIT_S)

    def end_body(self) -> bool:
        """The body has been read. False where the answer has been given, so that nothing is left to do."""
        self.is_in_body = False
        self.stop_timer()
        return not self.is_answered

    def refuse(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        """As for any other handler, and at any time; without effect where an answer has been given."""
        if self.is_answered:
            return
        self.is_answered = True
        self.stop_timer()
        super().refuse(status, message, headers)

    async def receive(self, chunk: bytes) -> None:
        """A piece of the body, before the answer. Until this returns, nothing more is read from the client."""

    async def data_received(self, chunk: bytes) -> None:
        """Tornado's hook: a piece of the body."""
        if not self.is_answered:
            await self.receive(chunk)

    def start_timer(self, at: float, callback: Callable[[], None]) -> None:
        """Call back at the time (of :meth:`now`); there is one timer."""
        self.stop_timer()
        self._timer = asyncio.get_running_loop().call_at(at, callback)

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def now(self) -> float:
        """The loop's own time, in seconds."""
        return asyncio.get_running_loop().time()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self.stop_timer()

    def on_finish(self) -> None:
        self.stop_timer()
