"""For handlers that read a body as it arrives: an answer that need not wait for the end of the body."""

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

    :ivar is_in_body: the body may begin, and has not ended
    :ivar is_answered: the answer was given
    """

    is_in_body = False
    is_answered = False
    _timer: asyncio.TimerHandle | None = None

    def begin_body(self) -> None:
        """From now on the handler itself enforces the body's limits in bytes and in time."""
        self.is_in_body = True
        self.ask_for_body(NO_LIMIT_S)

    def end_body(self) -> bool:
        """The body has been read. Return False if the answer was already given, so that nothing is left to do."""
        self.is_in_body = False
        self.stop_timer()
        return not self.is_answered

    def refuse(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        """As in any other handler, at any time; no effect if an answer was given."""
        if self.is_answered:
            return
        self.is_answered = True
        self.stop_timer()
        super().refuse(status, message, headers)

    async def receive(self, chunk: bytes) -> None:
        """Take a piece of the body, before the answer. Nothing more is read from the client until this returns."""

    async def data_received(self, chunk: bytes) -> None:
        """Tornado's hook: a piece of the body."""
        if not self.is_answered:
            await self.receive(chunk)

    def start_timer(self, at: float, callback: Callable[[], None]) -> None:
        """Set the only timer: call back at this time of :meth:`now`."""
        self.stop_timer()
        self._timer = asyncio.get_running_loop().call_at(at, callback)

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def now(self) -> float:
        """The loop's clock, in seconds."""
        return asyncio.get_running_loop().time()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self.stop_timer()

    def on_finish(self) -> None:
        self.stop_timer()
