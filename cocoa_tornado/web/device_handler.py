"""``GET /ws``: everything that is decided before the upgrade, and the upgrade itself."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from tornado.websocket import WebSocketHandler

from ..connection.connection import DeviceConnection
from ..connection.sockets import peer_has_closed
from ..counters import count
from ..errors import IdentityError, InvalidToken, MailboxError
from ..presence.port import Refused
from ..presence.rules import Grant
from ..rules.box import NO_CURSOR_YET, Place
from ..rules.cursors import read_cursor
from ..rules.handshake import NOT_WEBSOCKET, Refusal, accept_value, check_upgrade
from ..rules.identity import DeviceIdentity, FoundToken, find_token
from ..rules.origins import origin_allowed
from .handlers import GatewayErrors, flag

UNAVAILABLE = {
    "draining": "Gateway is draining",
    "full": "Too many connections",
    "mailbox": "Mailbox not available",
    "presence": "Presence not available",
}

log = logging.getLogger("cocoa.device")


class DeviceHandler(GatewayErrors, WebSocketHandler):
    """One handshake. The order of the answers: 426 (another version) and 400, 503 (draining), 401, 403, 400 (interim,
    cursor), 503 (the mailbox cannot say whether the cursor is known), 409 and 503 (full, or presence cannot say who
    holds the device).

    A plain GET is judged in the same order and changes nothing: where nothing else is wrong it is a 426. A web page
    asks that way why its WebSocket was refused, which browsers keep from it.

    After the upgrade the connection is a :class:`~cocoa_tornado.connection.connection.DeviceConnection`, and neither
    this handler nor its request is kept: there may be a hundred thousand of them.

    A client may vanish while the keys are read, or while an incumbent is challenged. Then nothing more is done for it:
    no challenge, no upgrade, and the slot is given back.

    :ivar identity: the device, once its token has been judged
    :ivar conn: the connection's number in the log, once it is upgraded
    :ivar after: the place of the cursor after which the device wants its messages
    :ivar outcome: in one word, why it was not; ``""`` before that is known
    """

    identity: DeviceIdentity | None = None
    conn: int | None = None
    outcome: str = ""
    after: Place | None = None
    _is_plain = False
    _admission: asyncio.Task[Grant] | None = None

    async def get(self, *args: Any, **kwargs: Any) -> None:
        not_upgradable = self._check_upgrade()
        self._is_plain = not_upgradable is not None and not_upgradable.outcome == NOT_WEBSOCKET
        refusal = None if self._is_plain else not_upgradable
        if refusal is None and self.context.devices.presence.draining:
            refusal = self._unavailable("draining")
        if refusal is not None:
            self._refuse(refusal)
            return
        try:
            found = self._find_token()
            identity = await self.context.keys.identify(found.token, self.context.devices.wall_clock())
        except IdentityError as error:
            headers = {"WWW-Authenticate": "Bearer"}
            self._refuse(Refusal(401, error.message, error.reason, headers))
            return
        self.identity = identity
        if self._is_over:
            return
        refusal = self._check_origin_and_query() or await self._check_after(identity)
        if refusal is not None:
            self._refuse(refusal)
            return
        if not_upgradable is not None:
            self._refuse(await self._look_for_a_slot(identity) or not_upgradable)
            return
        if self._is_over:
            return
        if self._is_closed_by_client():
            return
        grant = await self._claim(identity)
        if grant is not None:
            self._upgrade(identity, grant, found.subprotocol)

    def _is_closed_by_client(self) -> bool:
        """Whether nobody is left who could use a WebSocket. Nobody is challenged for such a client."""
        stream = self.http_stream
        if stream is None:
            return False
        if stream.closed():
            # Before this handler began, so Tornado does not tell it.
            self.on_connection_close()
            return True
        if stream.has_ended or peer_has_closed(stream):
            self._refuse(Refusal(400, "Connection is closed on the client's side", "vanished"))
            return True
        # A client that closes its side while it waits for a challenge has vanished.
        stream.needs_both_ways = True
        return False

    def on_connection_close(self) -> None:
        """The client vanished. Tornado calls this at most once, and perhaps while a refusal is still being written."""
        if self._is_over or self.conn is not None:
            return
        self._end("vanished")
        # For the access log alone, which would have 200 otherwise; nginx has made this number known.
        self.set_status(499, "Client Closed Request")
        if self._admission is not None:
            self._admission.cancel()

    @property
    def _is_over(self) -> bool:
        """It was refused, or the client has vanished."""
        return self.outcome != ""

    def _set_cors_headers(self) -> None:
        """A page reads the answer to its plain GET only: of a WebSocket it learns nothing but that it failed."""
        if "Upgrade" not in self.request.headers:
            super()._set_cors_headers()

    def _check_upgrade(self) -> Refusal | None:
        headers = self.request.headers
        return check_upgrade(
            # RFC 9110, 7.8: in an HTTP/1.0 request the field means nothing.
            None if self.request.version == "HTTP/1.0" else headers.get("Upgrade"),
            headers.get("Connection"),
            headers.get("Sec-WebSocket-Version"),
            headers.get("Sec-WebSocket-Key"),
        )

    def _find_token(self) -> FoundToken:
        headers = self.request.headers
        query = [value.decode("utf-8", "replace") for value in self.request.query_arguments.get("token", ())]
        return find_token(query, headers.get("Authorization"), headers.get("Sec-WebSocket-Protocol"))

    def _check_origin_and_query(self) -> Refusal | None:
        origin = self.request.headers.get("Origin")
        if not origin_allowed(origin, self.request.host, self.context.allowed_origins):
            return Refusal(403, "Origin not allowed", "origin")
        if self._wants_interim() is None:
            return Refusal(400, "Invalid interim", "interim")
        if self._uses_cursors() is None:
            return Refusal(400, "Invalid cursors", "cursor")
        return None

    async def _check_after(self, identity: DeviceIdentity) -> Refusal | None:
        """Whether the cursor that the device has named is one of its own; sets :attr:`after`."""
        cursors = self.request.query_arguments.get("after", ())
        if not cursors:
            # Whoever goes by cursors and has none yet begins where its box does: that something was written to a socket
            # does not count for it.
            self.after = NO_CURSOR_YET if self._uses_cursors() else None
            return None
        unknown = Refusal(400, "Unknown cursor", "cursor")
        mail = self.context.devices.mail
        if mail is None:
            # Without a mailbox no cursor is known; to ignore it would hide a gap from the device.
            return unknown
        if mail.mailbox.key is None:
            return self._unavailable("mailbox")
        cursor = cursors[0].decode("ascii", "replace") if len(cursors) == 1 else ""
        place = read_cursor(mail.mailbox.key, identity.device_id, cursor)
        if place is None:
            return unknown
        try:
            box = await mail.mailbox.look(identity.device_id)
        except MailboxError:
            return self._unavailable("mailbox")
        self.after = place
        return None if box.find(place) is not None else unknown

    def _uses_cursors(self) -> bool | None:
        """Whether the device says that it goes by cursors, though it may have none yet; None: it can't be told."""
        return flag(self.request.query_arguments.get("cursors", ()))

    def _wants_interim(self) -> bool | None:
        """Whether the device asks for growing hypotheses of what it says; None: it can't be told."""
        return flag(self.request.query_arguments.get("interim", ()))

    async def _look_for_a_slot(self, identity: DeviceIdentity) -> Refusal | None:
        """As things are now; nobody is challenged."""
        obstacle = await self.context.devices.presence.obstacle(identity.device_id)
        return None if obstacle is None else self._no_slot(obstacle)

    async def _claim(self, identity: DeviceIdentity) -> Grant | None:
        """A grant, or None where the answer has been given or nobody is left to hear it."""
        presence = self.context.devices.presence
        grant = presence.try_claim(identity.device_id) or await self._wait_for_a_slot(identity)
        if grant is None:
            return None
        if self._is_over:
            # It vanished in the very turn in which it was admitted, too late for the cancellation.
            presence.release(grant)
            return None
        refusal = self._check_again(identity, grant)
        if refusal is not None:
            presence.release(grant)
            self._refuse(refusal)
            return None
        return grant

    async def _wait_for_a_slot(self, identity: DeviceIdentity) -> Grant | None:
        """A task of its own, which ends when the client vanishes."""
        self._admission = asyncio.ensure_future(self.context.devices.presence.claim(identity.device_id))
        try:
            return await self._admission
        except asyncio.CancelledError:
            if self._is_over:
                return None
            raise
        except Refused as refused:
            self._refuse(self._no_slot(refused.reason))
            return None
        finally:
            self._admission = None

    def _check_again(self, identity: DeviceIdentity, grant: Grant) -> Refusal | None:
        """What may have changed while an incumbent was challenged, or the mailbox asked."""
        if self.context.devices.presence.draining:
            return self._unavailable("draining")
        if not grant.lease.is_valid(self.context.devices.clock()):
            return self._unavailable("presence")
        if not self.context.keys.still_trusts(identity):
            return Refusal(401, InvalidToken.message, "key_removed", {"WWW-Authenticate": "Bearer"})
        return None

    def _upgrade(self, identity: DeviceIdentity, grant: Grant, subprotocol: str | None) -> None:
        """Answer 101, take the stream, and let the connection run on its own. The slot is given back on any failure."""
        self.conn = grant.generation.number
        try:
            self.set_status(101)
            self.clear_header("Content-Type")
            self.set_header("Upgrade", "websocket")
            self.set_header("Connection", "Upgrade")
            self.set_header("Sec-WebSocket-Accept", accept_value(self.request.headers["Sec-WebSocket-Key"]))
            if subprotocol is not None:
                self.set_header("Sec-WebSocket-Protocol", subprotocol)
            self.finish()
            stream = self.detach()
            # As Tornado does at the end of every other request: a reference cycle would wait for the collector.
            self.ui = None  # type: ignore[assignment]
            stream.set_nodelay(True)
            interim = self._wants_interim() is True
            connection = DeviceConnection(stream, identity, grant, self.context.devices, interim, self.after)
            connection.open(identity.expires_at + self.context.policy.leeway_s)
        except BaseException:
            self.context.devices.presence.release(grant)
            raise
        count(self.context.devices.counters.handshakes, "accepted")
        log.info(
            "device connected",
            extra={
                "device_id": identity.device_id,
                "conn": self.conn,
                "device_version": identity.device_version,
                "remote_ip": self.request.remote_ip,
            },
        )

    def _no_slot(self, obstacle: str) -> Refusal:
        if obstacle != "device":
            return self._unavailable(obstacle)
        return Refusal(409, "Device already connected", "duplicate", self._retry_after())

    def _unavailable(self, outcome: str) -> Refusal:
        return Refusal(503, UNAVAILABLE[outcome], outcome, self._retry_after())

    def _retry_after(self) -> dict[str, str]:
        return {"Retry-After": str(self.context.retry_after_s)}

    def _refuse(self, refusal: Refusal) -> None:
        """Answer, unless nobody is left to hear it."""
        if not self._is_over:
            self._end(refusal.outcome)
            self.refuse(refusal.status, refusal.message, refusal.headers)

    def _end(self, outcome: str) -> None:
        self.outcome = outcome
        # A page that asks for the reason of a refusal must not make it two.
        count(self.context.devices.counters.handshakes, NOT_WEBSOCKET if self._is_plain else outcome)
