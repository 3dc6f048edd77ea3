"""The upgrade: from a request that was judged to a connection that runs on its own.

Nearly every handshake can be decided as soon as its bytes have arrived: the token is valid and the device has no other
connection. :class:`Upgrader` does so on the bare socket, before there is a stream, a parser, a request or a handler.
All others are Tornado's, with ``DeviceHandler`` as their judge. Both ask :class:`~.handshake.Handshake` for the rules,
and end in :meth:`Upgrader.start`.
"""

from __future__ import annotations

import logging
import socket
from typing import NamedTuple

from ..connection.connection import DeviceConnection
from ..connection.device_socket import DeviceSocket, device_socket
from ..connection.sockets import peer_has_closed
from ..counters import count
from ..errors import IdentityError
from ..presence.grants import Grant
from ..rules.box import Position
from ..rules.handshake import switching_protocols
from ..rules.identity import DeviceIdentity, FoundToken
from ..rules.origins import find_caller
from ..rules.upgrade_request import DEVICE_PATH, recognize
from .access_log import AccessLog, milliseconds
from .handlers import WebContext
from .handshake import Handshake

log = logging.getLogger("cocoa.device")
http_log = logging.getLogger("cocoa.http")


class Admission(NamedTuple):
    """A handshake that nothing stands against any more.

    :ivar after: the position of the cursor after which the device wants its messages
    """

    handshake: Handshake
    found: FoundToken
    identity: DeviceIdentity
    grant: Grant
    after: Position | None


class Upgrader:
    """Makes connections of handshakes. One a process; IOLoop thread only."""

    def __init__(self, context: WebContext, access_log: AccessLog) -> None:
        self._context, self._access_log = context, access_log

    def try_at_once(self, sock: socket.socket, received: bytes, peer: str) -> bool:
        """Upgrade a device if that can be decided now and nothing stands against it.

        :param received: what the socket has received so far, and still holds
        :param peer: the address at the other end
        :returns: False: nothing has been done, and nothing was read from the socket
        """
        recognized = recognize(received)
        if recognized is None:
            return False
        began_at = self._context.devices.wall_clock()
        request, size = recognized
        try:
            caller = find_caller(peer, request.host, request.headers, self._context.trusted_proxies)
            admission = self._admit(Handshake(request, caller, self._context), sock, began_at)
        except Exception:
            # The handler will meet the same fault, log it, and answer 500.
            return False
        if admission is None:
            return False
        head, grant = received[:size], admission.grant
        try:
            if sock.recv(size) != head:
                raise ConnectionError("the socket holds something else")
        except OSError:
            self._context.devices.presence.release(grant)
            count(self._context.devices.counters.handshakes, "vanished")
            sock.close()
            return True
        try:
            self.start(sock, b"", b"", admission, began_at)
        except Exception:
            http_log.exception("handler failed", extra={"method": "GET", "path": DEVICE_PATH})
        return True

    def _admit(self, handshake: Handshake, sock: socket.socket, now: float) -> Admission | None:
        """None: it is refused, or has to wait."""
        devices = self._context.devices
        if handshake.form is not None or devices.presence.draining:
            return None
        try:
            found = handshake.find_token()
            identity = self._context.live.now.keys.identify_now(found.token, now)
        except IdentityError:
            return None
        if identity is None or handshake.check_origin_and_query() is not None or handshake.cursors:
            return None
        if peer_has_closed(sock):
            return None
        grant = devices.presence.try_claim(identity.device_id)
        if grant is None:
            return None
        return Admission(handshake, found, identity, grant, handshake.position_without_cursor())

    def start(
        self, sock: socket.socket, unread: bytes, unsent: bytes, admission: Admission, began_at: float
    ) -> DeviceConnection:
        """Answer 101, and let the connection run on its own. If that fails, the slot is given back and the socket
        closed.

        :param unread: what was read from the socket and belongs to the connection
        :param unsent: what has to be written before the answer
        :param began_at: when the request came, Unix seconds
        """
        devices, (handshake, found, identity, grant, after) = self._context.devices, admission
        who = {"device_id": identity.device_id, "conn": grant.generation.number}
        device: DeviceSocket | None = None
        try:
            now = devices.wall_clock()
            device = device_socket(sock, unread, unsent + switching_protocols(handshake.key, found.subprotocol, now))
            ms = milliseconds(now - began_at)
            extra: dict[str, object] = {"ms": ms, "remote_ip": handshake.caller.ip, **who}
            self._access_log.add("GET", DEVICE_PATH, 101, extra)
            connection = DeviceConnection(device, identity, grant, devices, handshake.wants_interim is True, after)
            connection.open(identity.expires_at + self._context.policy.leeway_s)
        except BaseException:
            devices.presence.release(grant)
            (device or sock).close()
            raise
        count(devices.counters.handshakes, "accepted")
        extra = {"device_version": identity.device_version, "remote_ip": handshake.caller.ip}
        log.info("device connected", extra=who | extra)
        return connection
