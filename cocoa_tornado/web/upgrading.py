"""The upgrade: from an accepted handshake to a device's connection.

Nearly every handshake can be decided as soon as its bytes have arrived: the token is valid and the device has no other
connection. :class:`Upgrader` does so on the bare socket, without a stream, a parser, a request or a handler. If other
servers may hold the device, the socket waits for the answer of presence (``waiting.py``). All other handshakes go to
Tornado and ``DeviceHandler``. Both ways apply the rules of :class:`~.handshake.Handshake`, and end in
:meth:`Upgrader.start`.
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
from ..mailboxes.port import MailboxState
from ..presence.grants import Grant
from ..rules.box import Position
from ..rules.handshake import switching_protocols
from ..rules.identity import DeviceIdentity, FoundToken
from ..rules.origins import find_caller
from ..rules.upgrade_request import DEVICE_PATH, recognize
from .access_log import AccessLog, milliseconds
from .handlers import WebContext
from .handshake import Handshake
from .waiting import Waiting, Waits

log = logging.getLogger("cocoa.device")
http_log = logging.getLogger("cocoa.http")


class Admission(NamedTuple):
    """A handshake that is to be accepted.

    :ivar after: the position of the cursor after which the device wants its messages
    """

    handshake: Handshake
    found: FoundToken
    identity: DeviceIdentity
    grant: Grant
    after: Position | None


class Judged(NamedTuple):
    """A handshake whose device has to be claimed."""

    handshake: Handshake
    found: FoundToken
    identity: DeviceIdentity


class Upgrader:
    """Turns handshakes into connections. One per process; IOLoop thread only."""

    def __init__(self, context: WebContext, access_log: AccessLog) -> None:
        self._context, self._access_log = context, access_log
        self._waits = Waits(context.devices.presence)
        self._second = 0

    def try_at_once(self, sock: socket.socket, received: bytes, peer: str) -> bool | Waiting:
        """Upgrade a device if that can be decided now and it may connect.

        :param received: the bytes received so far, which are still in the socket
        :param peer: the address at the other end
        :returns: False: nothing was done, and nothing was read from the socket. A :class:`Waiting`: the device waits
            for the answer of presence
        """
        recognized = recognize(received)
        if recognized is None:
            return False
        began_at = self._context.devices.wall_clock()
        request, size = recognized
        try:
            caller = find_caller(peer, request.host, request.headers, self._context.trusted_proxies)
            judged = self._judge(Handshake(request, caller, self._context), sock, began_at)
            if judged is None:
                return False
            grant = self._context.devices.presence.try_claim(judged.identity.device_id)
        except Exception:
            # The handler will hit the same error, log it, and answer 500.
            return False
        head = received[:size]
        if grant is None:
            return self._context.devices.presence.lease.is_shared and self._wait(sock, head, judged, began_at)
        self._upgrade(sock, head, judged, grant, began_at)
        return True

    def _wait(self, sock: socket.socket, head: bytes, judged: Judged, began_at: float) -> bool | Waiting:
        def upgrade(grant: Grant) -> bool:
            if not self._may_upgrade(judged.identity, grant):
                self._context.devices.presence.release(grant)
                return False
            self._upgrade(sock, head, judged, grant, began_at)
            return True

        waiting = Waiting(self._waits, sock, judged.identity.device_id, upgrade, self._count_vanished)
        return waiting if waiting.begin() or waiting.refusal is not None else waiting.is_served

    def _may_upgrade(self, identity: DeviceIdentity, grant: Grant) -> bool:
        """Whether the device may still connect. If anything has changed meanwhile, the handshake is checked again."""
        presence = self._context.devices.presence
        is_valid = grant.lease.is_valid(presence.clock()) and presence.has_slot(grant) and not presence.draining
        now = self._context.devices.wall_clock()
        is_valid = is_valid and not self._context.blocked.holds(identity.device_id, now)
        return is_valid and self._context.live.now.keys.still_trusts(identity)

    def _upgrade(self, sock: socket.socket, head: bytes, judged: Judged, grant: Grant, began_at: float) -> None:
        handshake, found, identity = judged
        try:
            if sock.recv(len(head)) != head:
                raise ConnectionError("the socket holds something else")
        except OSError:
            self._context.devices.presence.release(grant)
            self._count_vanished()
            sock.close()
            return
        admission = Admission(handshake, found, identity, grant, handshake.position_without_cursor())
        try:
            self.start(sock, b"", b"", admission, began_at)
        except Exception:
            http_log.exception("handler failed", extra={"method": "GET", "path": DEVICE_PATH})

    def _count_vanished(self) -> None:
        count(self._context.devices.counters.handshakes, "vanished")

    def _judge(self, handshake: Handshake, sock: socket.socket, now: float) -> Judged | None:
        """None: it is refused, or needs more than a claim."""
        devices = self._context.devices
        if handshake.form is not None or devices.presence.draining:
            return None
        try:
            found = handshake.find_token()
            identity = self._context.live.now.keys.identify_now(found.token, now)
        except IdentityError:
            return None
        if identity is None or self._context.blocked.holds(identity.device_id, now):
            return None
        if handshake.check_origin_and_query() is not None or handshake.cursors:
            return None
        if peer_has_closed(sock):
            return None
        return Judged(handshake, found, identity)

    def start(
        self, sock: socket.socket, unread: bytes, unsent: bytes, admission: Admission, began_at: float
    ) -> DeviceConnection:
        """Answer 101 and start the connection. If that fails, the slot is released and the socket closed.

        :param unread: bytes that were read from the socket and belong to the connection
        :param unsent: bytes to write before the answer
        :param began_at: when the request arrived, Unix seconds
        """
        devices, (handshake, found, identity, grant, after) = self._context.devices, admission
        who = {"device_id": identity.device_id, "conn": grant.generation.number}
        device: DeviceSocket | None = None
        try:
            now = devices.wall_clock()
            answer = unsent + switching_protocols(handshake.key, found.subprotocol, now)
            # If other servers may read records for its user and groups, the device must be a member before it gets its
            # answer. A mailbox that is not ready does not block the device: its box follows later.
            is_held = (
                grant.lease.is_shared
                and devices.mail is not None
                and devices.mail.mailbox.status().state is MailboxState.READY
            )
            device = device_socket(sock, unread, answer, is_held=is_held)
            ms = milliseconds(now - began_at)
            extra: dict[str, object] = {"ms": ms, "remote_ip": handshake.caller.ip, **who}
            self._access_log.add("GET", DEVICE_PATH, 101, extra)
            if int(now) != self._second:
                self._second = int(now)  # one object for all devices that connect in this second
            remote_ip = handshake.caller.ip if self._context.trusted_proxies else None
            connection = DeviceConnection(
                device, identity, grant, devices, handshake.wants_interim is True, after, self._second, remote_ip
            )
            connection.open(identity.expires_at + self._context.policy.leeway_s)
        except BaseException:
            devices.presence.release(grant)
            (device or sock).close()
            raise
        devices.events.note(identity, "connected", 101, now)
        count(devices.counters.handshakes, "accepted")
        extra = {"device_version": identity.device_version, "remote_ip": handshake.caller.ip}
        log.info("device connected", extra=who | extra)
        return connection
