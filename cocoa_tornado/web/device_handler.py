"""``GET /ws``: every handshake that Tornado parses, up to the upgrade."""

from __future__ import annotations

import asyncio
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketHandler

from ..connection.sockets import peer_has_closed
from ..counters import count
from ..errors import IdentityError, InvalidToken, MailboxError
from ..presence.grants import Grant, RefusalReason
from ..presence.port import Refused
from ..rules.box import Position
from ..rules.cursors import read_cursor
from ..rules.handshake import NOT_WEBSOCKET, Refusal
from ..rules.identity import DeviceIdentity
from ..rules.origins import Caller
from ..rules.upgrade_request import UpgradeRequest
from .handlers import GatewayErrors, WebContext
from .handshake import Handshake
from .streams import HttpStream
from .upgrading import Admission, Upgrader


class DeviceHandler(GatewayErrors, WebSocketHandler):
    """One handshake. The order of the answers: 426 (another version) and 400, 503 (draining), 401, 403, 400 (interim,
    cursor), 503 (the mailbox cannot tell whether the cursor is known), 409 and 503 (full, or presence cannot tell who
    holds the device).

    A plain GET is checked in the same order and changes nothing; if nothing else is wrong, the answer is 426. A web
    page can learn in this way why its WebSocket was refused, which browsers hide.

    ``upgrading.py`` upgrades nearly every device without this handler. It handles the handshakes that are refused, have
    to wait, come over TLS, or need a parser.

    After the upgrade the connection is a :class:`~cocoa_tornado.connection.connection.DeviceConnection`, and neither
    this handler nor its request is kept: there may be a hundred thousand of them.

    A client may disconnect while the keys are read, or while an incumbent is challenged. Then the handler stops: no
    challenge, no upgrade, and the slot is released.

    :ivar identity: the device, once its token is verified
    :ivar conn: the connection's number in the log, once it is upgraded
    :ivar outcome: why it was not upgraded, in one word; ``""`` while that is unknown
    """

    allows_any_host = True
    identity: DeviceIdentity | None = None
    conn: int | None = None
    outcome: str = ""
    _is_plain = False
    _admission: asyncio.Task[Grant] | None = None
    _refused_before: tuple[str, RefusalReason] | None = None

    def initialize(self, context: WebContext, upgrader: Upgrader) -> None:  # type: ignore[override]  # takes an argument more
        super().initialize(context)
        self.upgrader = upgrader

    def log_fields(self) -> dict[str, object]:
        who: dict[str, object] = {} if self.identity is None else {"device_id": self.identity.device_id}
        return who | ({"outcome": self.outcome} if self.outcome else {})

    async def get(self, *args: Any, **kwargs: Any) -> None:
        self._refused_before = self._take_refusal()
        asked = self.request
        request = UpgradeRequest(asked.query_arguments, asked.headers, asked.host, asked.version)
        handshake = Handshake(request, Caller(asked.remote_ip or "", asked.host), self.context)
        self._is_plain = handshake.form is not None and handshake.form.outcome == NOT_WEBSOCKET
        refusal = None if self._is_plain else handshake.form
        if refusal is None and self.context.devices.presence.draining:
            refusal = handshake.unavailable("draining")
        if refusal is not None:
            self._refuse(refusal)
            return
        try:
            found = handshake.find_token()
            identity = await self.context.live.now.keys.identify(found.token, self.context.devices.wall_clock())
        except IdentityError as error:
            headers = {"WWW-Authenticate": "Bearer"}
            self._refuse(Refusal(401, error.message, error.reason, headers))
            return
        self.identity = identity
        if self._is_over:
            return
        refusal = handshake.check_block(identity.device_id) or handshake.check_origin_and_query()
        after = refusal or await self._find_place(handshake, identity)
        if isinstance(after, Refusal):
            self._refuse(after)
            return
        if handshake.form is not None:
            self._refuse(await self._look_for_a_slot(handshake, identity) or handshake.form)
            return
        if self._is_over:
            return
        if self._is_closed_by_client():
            return
        grant = await self._claim(handshake, identity)
        if grant is not None:
            self._upgrade(Admission(handshake, found, identity, grant, after))

    def _take_refusal(self) -> tuple[str, RefusalReason] | None:
        """Return the refusal of this request, once: it does not apply to later requests of the connection."""
        stream = self.http_stream
        if stream is None:
            return None
        refusal, stream.refusal = stream.refusal, None
        return refusal

    def _is_closed_by_client(self) -> bool:
        """Whether the client can no longer use a WebSocket. No incumbent is challenged for such a client."""
        stream = self.http_stream
        if stream is None:
            return False
        if stream.closed():
            # It closed before this handler began, so Tornado does not report it.
            self.on_connection_close()
            return True
        if has_been_left(stream):
            self._refuse(Refusal(400, "Connection is closed on the client's side", "vanished"))
            return True
        return False

    def on_connection_close(self) -> None:
        """The client has disconnected. Tornado calls this at most once, possibly while a refusal is still being
        written."""
        if self._is_over or self.conn is not None:
            return
        self._end("vanished")
        # For the access log only, which would have 200 otherwise; nginx uses this status.
        self.set_status(499, "Client Closed Request")
        if self._admission is not None:
            self._admission.cancel()

    @property
    def _is_over(self) -> bool:
        """The request was refused, or the client has disconnected."""
        return self.outcome != ""

    def _set_cors_headers(self) -> None:
        """Only for a plain GET: of a failed WebSocket, a page learns nothing but the failure."""
        if "Upgrade" not in self.request.headers:
            super()._set_cors_headers()

    async def _find_place(self, handshake: Handshake, identity: DeviceIdentity) -> Position | Refusal | None:
        """Find the position of the cursor that the device named, if it is one of its own."""
        cursors = handshake.cursors
        if not cursors:
            return handshake.position_without_cursor()
        unknown = Refusal(400, "Unknown cursor", "cursor")
        mail = self.context.devices.mail
        if mail is None:
            # Without a mailbox no cursor is known; ignoring it would hide a gap from the device.
            return unknown
        if mail.mailbox.key is None:
            return handshake.unavailable("mailbox")
        cursor = cursors[0].decode("ascii", "replace") if len(cursors) == 1 else ""
        place = read_cursor(mail.mailbox.key, identity.device_id, cursor)
        if place is None:
            return unknown
        try:
            box = await mail.mailbox.look(identity.device_id)
        except MailboxError:
            return handshake.unavailable("mailbox")
        return unknown if box.find(place) is None else place

    async def _look_for_a_slot(self, handshake: Handshake, identity: DeviceIdentity) -> Refusal | None:
        """Check for a free slot now, without challenging a connection."""
        obstacle = await self.context.devices.presence.obstacle(identity.device_id)
        return None if obstacle is None else handshake.no_slot(obstacle)

    async def _claim(self, handshake: Handshake, identity: DeviceIdentity) -> Grant | None:
        """Return a grant; None if the answer was given, or the client has disconnected."""
        presence = self.context.devices.presence
        if self._refused_before is not None and self._refused_before[0] == identity.device_id:
            self._refuse(handshake.no_slot(self._refused_before[1]))
            return None
        grant = presence.try_claim(identity.device_id) or await self._wait_for_a_slot(handshake, identity)
        if grant is None:
            return None
        if self._is_over:
            # It disconnected in the same turn in which it was admitted, too late for the cancellation.
            presence.release(grant)
            return None
        refusal = self._check_again(handshake, identity, grant)
        if refusal is not None:
            presence.release(grant)
            self._refuse(refusal)
            return None
        return grant

    async def _wait_for_a_slot(self, handshake: Handshake, identity: DeviceIdentity) -> Grant | None:
        """Wait in a separate task, which ends when the client disconnects."""
        self._admission = asyncio.ensure_future(self.context.devices.presence.claim(identity.device_id))
        try:
            return await self._admission
        except asyncio.CancelledError:
            if self._is_over:
                return None
            raise
        except Refused as refused:
            self._refuse(handshake.no_slot(refused.reason))
            return None
        finally:
            self._admission = None

    def _check_again(self, handshake: Handshake, identity: DeviceIdentity, grant: Grant) -> Refusal | None:
        """Check what may have changed while an incumbent was challenged, or the mailbox was queried."""
        presence = self.context.devices.presence
        if presence.draining:
            return handshake.unavailable("draining")
        if (blocked := handshake.check_block(identity.device_id)) is not None:
            return blocked
        if not grant.lease.is_valid(presence.clock()) or not presence.has_slot(grant):
            return handshake.unavailable("presence")
        if not self.context.live.now.keys.still_trusts(identity):
            return Refusal(401, InvalidToken.message, "key_removed", {"WWW-Authenticate": "Bearer"})
        return None

    def _upgrade(self, admission: Admission) -> None:
        """Take the socket from its stream, and upgrade it. On any failure the slot is released and the socket
        closed."""
        stream = self.detach()
        assert isinstance(stream, HttpStream)
        try:
            sock, unread, unsent = stream.give_up_socket()
        except BaseException as error:
            self.context.devices.presence.release(admission.grant)
            stream.close()
            if not isinstance(error, StreamClosedError):
                raise
            self._end("vanished")
            return
        finally:
            # As Tornado does at the end of every other request: a reference cycle would wait for the collector.
            self.ui = None  # type: ignore[assignment]
        self.conn = admission.grant.generation.number
        began_at = self.context.devices.wall_clock() - self.request.request_time()
        self.upgrader.start(sock, unread, unsent, admission, began_at)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer, unless the client has disconnected."""
        if not self._is_over:
            self._end(refusal.outcome)
            if self.identity is not None and not self._is_plain:
                devices = self.context.devices
                now = devices.wall_clock()
                devices.events.note(self.identity, "refused", refusal.status, now)
                devices.reconnects.note(self.identity.device_id, now)
            self.refuse(refusal.status, refusal.message, refusal.headers)

    def _end(self, outcome: str) -> None:
        self.outcome = outcome
        # A page that asks for the reason of a refusal must not cause a second event.
        count(self.context.devices.counters.handshakes, NOT_WEBSOCKET if self._is_plain else outcome)


def has_been_left(stream: HttpStream) -> bool:
    """Whether the client has closed its side, so that it cannot use a WebSocket. From now on a client that closes its
    side, for example during a challenge, counts as disconnected."""
    if stream.has_ended or peer_has_closed(stream.socket):
        return True
    stream.needs_both_ways = True
    return False
