"""``GET /ws``: everything that is decided before the upgrade, and the upgrade itself."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPServerRequest
from tornado.iostream import StreamClosedError
from tornado.web import Application
from tornado.websocket import WebSocketHandler

from ..connection.connection import DeviceConnection
from ..connection.device_socket import DeviceSocket, device_socket
from ..connection.sockets import peer_has_closed
from ..counters import count
from ..errors import IdentityError, InvalidToken, MailboxError
from ..presence.port import Refused
from ..presence.rules import Grant
from ..rules.box import Position
from ..rules.cursors import read_cursor
from ..rules.handshake import NOT_WEBSOCKET, Refusal, switching_protocols
from ..rules.identity import DeviceIdentity
from .handlers import GatewayErrors, WebContext
from .handshake import Handshake
from .streams import HttpStream

log = logging.getLogger("cocoa.device")


class DeviceHandler(GatewayErrors, WebSocketHandler):
    """One handshake. The order of the answers: 426 (another version) and 400, 503 (draining), 401, 403, 400 (interim,
    cursor), 503 (the mailbox cannot say whether the cursor is known), 409 and 503 (full, or presence cannot say who
    holds the device).

    A plain GET is judged in the same order and changes nothing: where nothing else is wrong it is a 426. A web page
    asks that way why its WebSocket was refused, which browsers keep from it.

    Nearly every device is upgraded by :func:`upgrade_at_once` before the request is dispatched; :meth:`get` is for
    those that are refused, or that have to wait.

    After the upgrade the connection is a :class:`~cocoa_tornado.connection.connection.DeviceConnection`, and neither
    this handler nor its request is kept: there may be a hundred thousand of them.

    A client may vanish while the keys are read, or while an incumbent is challenged. Then nothing more is done for it:
    no challenge, no upgrade, and the slot is given back.

    :ivar identity: the device, once its token has been judged
    :ivar conn: the connection's number in the log, once it is upgraded
    :ivar outcome: in one word, why it was not; ``""`` before that is known
    """

    identity: DeviceIdentity | None = None
    conn: int | None = None
    outcome: str = ""
    _is_plain = False
    _admission: asyncio.Task[Grant] | None = None

    async def get(self, *args: Any, **kwargs: Any) -> None:
        handshake = Handshake(self.request, self.context)
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
        refusal = handshake.check_origin_and_query()
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
            self.upgrade(handshake, identity, grant, found.subprotocol, after)

    def _is_closed_by_client(self) -> bool:
        """Whether nobody is left who could use a WebSocket. Nobody is challenged for such a client."""
        stream = self.http_stream
        if stream is None:
            return False
        if stream.closed():
            # Before this handler began, so Tornado does not tell it.
            self.on_connection_close()
            return True
        if has_been_left(stream):
            self._refuse(Refusal(400, "Connection is closed on the client's side", "vanished"))
            return True
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

    async def _find_place(self, handshake: Handshake, identity: DeviceIdentity) -> Position | Refusal | None:
        """Of the cursor that the device has named, if it is one of its own."""
        cursors = handshake.cursors()
        if not cursors:
            return handshake.place_without_cursor()
        unknown = Refusal(400, "Unknown cursor", "cursor")
        mail = self.context.devices.mail
        if mail is None:
            # Without a mailbox no cursor is known; to ignore it would hide a gap from the device.
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
        """As things are now; nobody is challenged."""
        obstacle = await self.context.devices.presence.obstacle(identity.device_id)
        return None if obstacle is None else handshake.no_slot(obstacle)

    async def _claim(self, handshake: Handshake, identity: DeviceIdentity) -> Grant | None:
        """A grant, or None where the answer has been given or nobody is left to hear it."""
        presence = self.context.devices.presence
        grant = presence.try_claim(identity.device_id) or await self._wait_for_a_slot(handshake, identity)
        if grant is None:
            return None
        if self._is_over:
            # It vanished in the very turn in which it was admitted, too late for the cancellation.
            presence.release(grant)
            return None
        refusal = self._check_again(handshake, identity, grant)
        if refusal is not None:
            presence.release(grant)
            self._refuse(refusal)
            return None
        return grant

    async def _wait_for_a_slot(self, handshake: Handshake, identity: DeviceIdentity) -> Grant | None:
        """A task of its own, which ends when the client vanishes."""
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
        """What may have changed while an incumbent was challenged, or the mailbox asked."""
        if self.context.devices.presence.draining:
            return handshake.unavailable("draining")
        if not grant.lease.is_valid(self.context.devices.clock()):
            return handshake.unavailable("presence")
        if not self.context.live.now.keys.still_trusts(identity):
            return Refusal(401, InvalidToken.message, "key_removed", {"WWW-Authenticate": "Bearer"})
        return None

    def upgrade(
        self,
        handshake: Handshake,
        identity: DeviceIdentity,
        grant: Grant,
        subprotocol: str | None,
        after: Position | None,
    ) -> None:
        """Answer 101, take the socket, and let the connection run on its own. On any failure the slot is given back and
        the socket closed.

        :param after: the place of the cursor after which the device wants its messages
        """
        devices = self.context.devices
        socket: DeviceSocket | None = None
        try:
            socket = self._take_socket(subprotocol)
            self.identity, self.conn = identity, grant.generation.number
            self.set_status(101)
            self.application.log_request(self)
            connection = DeviceConnection(socket, identity, grant, devices, handshake.wants_interim() is True, after)
            connection.open(identity.expires_at + self.context.policy.leeway_s)
        except BaseException as error:
            devices.presence.release(grant)
            if socket is not None:
                socket.close()
            elif isinstance(error, StreamClosedError):
                self._end("vanished")
                return
            raise
        finally:
            # As Tornado does at the end of every other request: a reference cycle would wait for the collector.
            self.ui = None  # type: ignore[assignment]
        count(devices.counters.handshakes, "accepted")
        log.info(
            "device connected",
            extra={
                "device_id": identity.device_id,
                "conn": self.conn,
                "device_version": identity.device_version,
                "remote_ip": self.request.remote_ip,
            },
        )

    def _take_socket(self, subprotocol: str | None) -> DeviceSocket:
        """Take the socket from Tornado and send the 101 on it. On any failure the socket is closed.

        :raises StreamClosedError: the client has gone
        """
        stream = self.detach()
        assert isinstance(stream, HttpStream)
        try:
            key = self.request.headers["Sec-WebSocket-Key"]
            answer = switching_protocols(key, subprotocol, self.context.devices.wall_clock())
            sock, unread, unsent = stream.give_up_socket()
        except BaseException:
            stream.close()
            raise
        try:
            return device_socket(sock, unread, unsent + answer)
        except BaseException:
            sock.close()
            raise

    def _refuse(self, refusal: Refusal) -> None:
        """Answer, unless nobody is left to hear it."""
        if not self._is_over:
            self._end(refusal.outcome)
            self.refuse(refusal.status, refusal.message, refusal.headers)

    def _end(self, outcome: str) -> None:
        self.outcome = outcome
        # A page that asks for the reason of a refusal must not make it two.
        count(self.context.devices.counters.handshakes, NOT_WEBSOCKET if self._is_plain else outcome)


def upgrade_at_once(application: Application, request: HTTPServerRequest, context: WebContext) -> bool:
    """Upgrade a GET of ``/ws`` without a body, if that can be decided now and nothing stands against it. Call it as
    soon as the headers are there, as Tornado wants for whoever takes the stream.

    :returns: False: nothing has been done, and the request goes to :meth:`DeviceHandler.get`, which judges alike
    """
    devices, handshake = context.devices, Handshake(request, context)
    connection = request.connection
    assert isinstance(connection, HTTP1Connection)
    if handshake.form is not None or devices.presence.draining:
        return False
    try:
        found = handshake.find_token()
        identity = context.live.now.keys.identify_now(found.token, devices.wall_clock())
    except IdentityError:
        return False
    if identity is None or handshake.check_origin_and_query() is not None or handshake.cursors():
        return False
    stream = connection.stream
    if stream.closed() or not isinstance(stream, HttpStream) or has_been_left(stream):
        return False
    grant = devices.presence.try_claim(identity.device_id)
    if grant is None:
        return False
    handler = DeviceHandler(application, request, context=context)
    try:
        handler.look_behind_the_proxy()
        handler.upgrade(handshake, identity, grant, found.subprotocol, handshake.place_without_cursor())
    except Exception:
        handler.log_exception(*sys.exc_info())
    return True


def has_been_left(stream: HttpStream) -> bool:
    """Whether the client sends no more, so that it has no use for a WebSocket. From now on it must not close its side:
    one that does so while it waits for a challenge has vanished."""
    if stream.has_ended or peer_has_closed(stream.socket):
        return True
    stream.needs_both_ways = True
    return False
