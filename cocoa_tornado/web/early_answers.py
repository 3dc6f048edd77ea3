"""For handlers that read a body as it comes: an answer that need not wait for the end of the body."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Final

from tornado.http1connection import HTTP1Connection

from .handlers import GatewayErrors, compact

MAX_UNREAD_BYTES: Final = 16 * 1024 * 1024
"""Of a body that nobody wants, so much is read and thrown away behind the answer: a connection that is closed with
something unread is reset, and that may overtake the answer."""

LINGER_S: Final = 5.0
"""For so long at most is a client heard out that goes on sending after its answer."""

LINGER_IDLE_S: Final = 1.0
"""A client from which nothing more comes for so long has heard its answer."""

NO_LIMIT_BYTES: Final = 2**62
NO_LIMIT_S: Final = 7 * 86400.0


class EarlyAnswers(GatewayErrors):
    """Base of a handler under ``tornado.web.stream_request_body``. A refusal before the end of the body is sent at
    once, and closes the connection as soon as the client has heard it.

    Subclasses call :meth:`begin_body` in ``prepare`` and :meth:`end_body` when the method's own method runs; in between
    :meth:`receive` gets the body.

    :ivar is_in_body: the body has begun, or may, and is not at its end
    :ivar is_answered: nothing is left to say
    """

    is_in_body = False
    is_answered = False
    _has_received = False
    _timer: asyncio.TimerHandle | None = None
    _thrown_away = 0
    _linger_until = 0.0

    def begin_body(self) -> None:
        """From here on the body's limits, in bytes and in time, are the handler's own affair and not Tornado's."""
        self.is_in_body = True
        if isinstance(self.request.connection, HTTP1Connection):
            self.request.connection.set_max_body_size(NO_LIMIT_BYTES)
            self.request.connection.set_body_timeout(NO_LIMIT_S)

    def end_body(self) -> bool:
        """The body has been read. False where the answer has been given, so that nothing is left to do."""
        self.is_in_body = False
        self.stop_timer()
        if self.is_answered:
            self._close()
        return not self.is_answered

    def declared_bytes(self) -> int | None:
        """What Content-Length says, 0 if there is none; None where Tornado is going to refuse it."""
        values = {value.strip() for value in self.request.headers.get("Content-Length", "0").split(",")}
        text = values.pop()
        # Longer ones int() does not read, and Tornado uses nothing else.
        if values or not re.fullmatch("[0-9]{1,4000}", text) or int(text) > NO_LIMIT_BYTES:
            return None
        return int(text)

    def refuse(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        """As for any other handler, and at any time; without effect where an answer has been given."""
        if self.is_answered:
            return
        self.is_answered = True
        self.stop_timer()
        if not self.is_in_body:
            super().refuse(status, message, headers)
            return
        body = compact({"message": message}).encode()
        self.set_status(status)
        for name, value in (headers or {}).items():
            self.set_header(name, value)
        self.set_header("Content-Type", "application/json")
        self.set_header("Content-Length", str(len(body)))
        self.set_header("Connection", "close")
        self.write(body)
        if self._is_waiting_for_us(status):
            self.finish()
        else:
            self.flush()
            self._linger_until = self.now() + LINGER_S
            self._linger()

    async def receive(self, chunk: bytes) -> None:
        """A piece of the body, before the answer. Until this returns, nothing more is read from the client."""

    async def data_received(self, chunk: bytes) -> None:
        """Tornado's hook: a piece of the body."""
        self._has_received = True
        if not self.is_answered:
            await self.receive(chunk)
            return
        self._thrown_away += len(chunk)
        if self._linger_until:
            self._linger()

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
        if self.is_answered and not self._finished:
            # What is left of it is the line in the access log.
            self.finish()

    def on_finish(self) -> None:
        self.stop_timer()

    def _is_waiting_for_us(self, status: int) -> bool:
        """Whether the client sends nothing now, so that no byte of it can be left unread."""
        return status == 408 or ("Expect" in self.request.headers and not self._has_received)

    def _linger(self) -> None:
        if self._thrown_away > MAX_UNREAD_BYTES or self.now() >= self._linger_until:
            self._close()
        else:
            self.start_timer(min(self.now() + LINGER_IDLE_S, self._linger_until), self._close)

    def _close(self) -> None:
        """End of an early answer: whatever else the client says is not heard."""
        self.stop_timer()
        if not self._finished:
            self.finish()
        connection = self.request.connection
        if isinstance(connection, HTTP1Connection) and not connection.stream.writing():
            # Where the body has been read, Tornado would keep the connection for another request.
            connection.close()
