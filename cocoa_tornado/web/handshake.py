"""What a request for an upgrade asks for. Everything here is decided at once, answers nothing and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from tornado.httputil import HTTPServerRequest

from ..rules.box import NO_CURSOR_YET, Position
from ..rules.handshake import Refusal, check_upgrade
from ..rules.identity import FoundToken, find_token
from ..rules.origins import origin_allowed
from .handlers import WebContext, flag

UNAVAILABLE = {
    "draining": "Gateway is draining",
    "full": "Too many connections",
    "mailbox": "Mailbox not available",
    "presence": "Presence not available",
}


class Handshake:
    """One request for an upgrade, read step by step in the order of the answers (``device_handler.py``).

    :ivar form: why the request is not in the form of an upgrade; None: it is
    """

    __slots__ = ("_context", "_request", "form")

    def __init__(self, request: HTTPServerRequest, context: WebContext) -> None:
        self._request, self._context = request, context
        headers = request.headers
        self.form = check_upgrade(
            # RFC 9110, 7.8: in an HTTP/1.0 request the field means nothing.
            None if request.version == "HTTP/1.0" else headers.get("Upgrade"),
            headers.get("Connection"),
            headers.get("Sec-WebSocket-Version"),
            headers.get("Sec-WebSocket-Key"),
        )

    def find_token(self) -> FoundToken:
        """:raises IdentityError: there is none, or there are several"""
        headers = self._request.headers
        query = [value.decode("utf-8", "replace") for value in self._arguments("token")]
        return find_token(query, headers.get("Authorization"), headers.get("Sec-WebSocket-Protocol"))

    def check_origin_and_query(self) -> Refusal | None:
        origin = self._request.headers.get("Origin")
        if not origin_allowed(origin, self._request.host, self._context.live.now.allowed_origins):
            return Refusal(403, "Origin not allowed", "origin")
        if self.wants_interim() is None:
            return Refusal(400, "Invalid interim", "interim")
        if self.uses_cursors() is None:
            return Refusal(400, "Invalid cursors", "cursor")
        return None

    def wants_interim(self) -> bool | None:
        """Whether the device asks for growing hypotheses of what it says; None: it can't be told."""
        return flag(self._arguments("interim"))

    def uses_cursors(self) -> bool | None:
        """Whether the device says that it goes by cursors, though it may have none yet; None: it can't be told."""
        return flag(self._arguments("cursors"))

    def cursors(self) -> Sequence[bytes]:
        """What it says after which message it wants to go on; more than one is one too many."""
        return self._arguments("after")

    def place_without_cursor(self) -> Position | None:
        """Where a device begins that names no cursor. One that goes by cursors and has none yet begins where its box
        does: that something was written to a socket does not count for it."""
        return NO_CURSOR_YET if self.uses_cursors() else None

    def unavailable(self, outcome: str) -> Refusal:
        return Refusal(503, UNAVAILABLE[outcome], outcome, self._retry_after())

    def no_slot(self, obstacle: str) -> Refusal:
        if obstacle != "device":
            return self.unavailable(obstacle)
        return Refusal(409, "Device already connected", "duplicate", self._retry_after())

    def _arguments(self, name: str) -> Sequence[bytes]:
        return self._request.query_arguments.get(name, ())

    def _retry_after(self) -> dict[str, str]:
        return {"Retry-After": str(self._context.retry_after_s)}
