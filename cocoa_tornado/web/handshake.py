"""The contents of an upgrade request, and the rules for it. This module never waits, answers, or changes state."""

from __future__ import annotations

import math

from ..rules.box import NO_CURSOR_YET, Position
from ..rules.handshake import Refusal, check_upgrade
from ..rules.identity import FoundToken, find_token
from ..rules.origins import Caller, origin_allowed
from ..rules.upgrade_request import UpgradeRequest
from .handlers import WebContext, flag

UNAVAILABLE = {
    "draining": "Gateway is draining",
    "full": "Too many connections",
    "mailbox": "Mailbox not available",
    "presence": "Presence not available",
}


class Handshake:
    """One request for an upgrade, read step by step in the order of the answers (``device_handler.py``).

    :param caller: the client, behind trusted proxies too
    :ivar form: why the request is not a valid upgrade; None: it is
    :ivar cursors: the values of ``after``; more than one is an error
    :ivar wants_interim: whether it requests partial results; None: the value is not a boolean
    :ivar uses_cursors: whether it uses cursors, even if it has none yet; None: the value is not a boolean
    """

    __slots__ = ("_context", "_request", "caller", "cursors", "form", "uses_cursors", "wants_interim")

    def __init__(self, request: UpgradeRequest, caller: Caller, context: WebContext) -> None:
        self._request, self.caller, self._context = request, caller, context
        headers, arguments = request.headers, request.arguments
        self.form = check_upgrade(
            # RFC 9110, 7.8: in an HTTP/1.0 request the field is ignored.
            None if request.version == "HTTP/1.0" else headers.get("upgrade"),
            headers.get("connection"),
            headers.get("sec-websocket-version"),
            headers.get("sec-websocket-key"),
        )
        self.cursors = arguments.get("after", ())
        self.wants_interim = flag(arguments.get("interim"))
        self.uses_cursors = flag(arguments.get("cursors"))

    @property
    def key(self) -> str:
        """``Sec-WebSocket-Key``, if :attr:`form` is None."""
        return self._request.headers["sec-websocket-key"]

    def find_token(self) -> FoundToken:
        """:raises IdentityError: there is none, or there are several"""
        headers = self._request.headers
        query = [value.decode("utf-8", "replace") for value in self._request.arguments.get("token", ())]
        return find_token(query, headers.get("authorization"), headers.get("sec-websocket-protocol"))

    def check_block(self, device_id: str) -> Refusal | None:
        """Whether an operator has blocked the device."""
        context = self._context
        if context.blocked.holds(device_id, context.devices.wall_clock()):
            return Refusal(403, "Device blocked", "blocked")
        return None

    def check_origin_and_query(self) -> Refusal | None:
        origin = self._request.headers.get("origin")
        if not origin_allowed(origin, self.caller.host, self._context.live.now.allowed_origins):
            return Refusal(403, "Origin not allowed", "origin")
        if self.wants_interim is None:
            return Refusal(400, "Invalid interim", "interim")
        if self.uses_cursors is None:
            return Refusal(400, "Invalid cursors", "cursor")
        return None

    def position_without_cursor(self) -> Position | None:
        """Where a device without a cursor begins. One that uses cursors but has none yet begins at the start of its
        box: for such a device, a message written to a socket does not count as received."""
        return NO_CURSOR_YET if self.uses_cursors else None

    def unavailable(self, outcome: str) -> Refusal:
        seconds = self._context.devices.presence.admits_in() if outcome == "presence" else None
        return Refusal(503, UNAVAILABLE[outcome], outcome, self._retry_after(seconds))

    def no_slot(self, obstacle: str) -> Refusal:
        if obstacle != "device":
            return self.unavailable(obstacle)
        return Refusal(409, "Device already connected", "duplicate", self._retry_after())

    def _retry_after(self, seconds: float | None = None) -> dict[str, str]:
        """
        :param seconds: until a retry may succeed, if that is known
        """
        return {"Retry-After": str(self._context.retry_after_s if seconds is None else max(1, math.ceil(seconds)))}
