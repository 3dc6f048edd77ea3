"""A device's connection from the upgrade to its end, on the IOLoop: a thin shell around ``protocol.py``.

The protocol decides. This module queues messages, sets the timer, and hands unwritten messages over to another
connection; ``socket_io.py`` reads and writes the socket. Neither decides which devices may connect or where a message
goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from itertools import zip_longest
from typing import Final

from ..counters import count
from ..presence.grants import Grant
from ..presence.port import Health
from ..rules.addressing import Options
from ..rules.box import Numbers, Position
from ..rules.close_codes import GOING_AWAY, REPLACED, SLOW_CONSUMER, CloseReason
from ..rules.device_events import EventKind
from ..rules.identity import DeviceIdentity
from ..rules.labels import CLOSE_CODES
from ..rules.terms import Later, Left, Terms
from ..rules.trace_memory import Outcome
from .device_context import SHORT_S, DeviceContext
from .device_socket import DeviceSocket
from .feed import BoxFeed
from .making_room import OutboxLimits, Withdrawn
from .protocol import CLOSED, LINGERING, LOST, OPEN, Closing, Ending
from .queue import Queued, Unwritten, unwritten_of
from .socket_io import SocketIO

NO_CLOSE_FRAME: Final = 1006
"""RFC 6455, 7.1.5: no close code was exchanged."""

_TOO_SLOW: Final = frozenset({SLOW_CONSUMER.outcome, "overflow"})

log = logging.getLogger("cocoa.device")


class DeviceConnection(SocketIO):
    """One device's WebSocket. Implements ``hub.Client`` and ``flusher.Flushed``; IOLoop thread only.

    :meth:`open` starts it. It is open until the first of: a close of either side, an error, a timeout. Then the Hub
    forgets the connection and the device can connect again, even during the closing handshake. If other servers may
    hold the device next, its slot is released when the socket is closed and the mailbox has stored which messages were
    written; a connection that is challenged before that is cut.

    :ivar connected_at: Unix seconds
    """

    __slots__ = ("_expires_at", "_remote_ip", "_timer", "connected_at")

    def __init__(
        self,
        socket: DeviceSocket,
        identity: DeviceIdentity,
        grant: Grant,
        context: DeviceContext,
        wants_interim: bool = False,
        after: Position | None = None,
        connected_at: int = 0,
        remote_ip: str | None = None,
    ) -> None:
        super().__init__(socket, identity, grant, context, wants_interim)
        self.connected_at = connected_at
        self._remote_ip = remote_ip
        self._expires_at = 0.0
        self._timer: asyncio.TimerHandle | None = None  # at the protocol's deadline
        if context.mail is not None:
            self._box = BoxFeed(context.mail, self, identity.device_id, after, grant.fencing_token)

    def __repr__(self) -> str:
        state = "open" if self.is_open else self.outcome or "closing"
        return f"<DeviceConnection #{self.grant.generation.number} {self.identity.device_id!r} {state}>"

    @property
    def is_open(self) -> bool:
        return self.protocol.phase is OPEN

    @property
    def remote_ip(self) -> str:
        """The device's address, from the socket: an idle connection does not store it."""
        return self._socket.peer_ip if self._remote_ip is None else self._remote_ip

    # -- for the Hub

    @property
    def health(self) -> Health:
        """See ``hub.Client``. The round trip is measured from queuing the ping to reading the pong."""
        heartbeat = self.protocol.heartbeat
        silent_s = self._context.clock() - heartbeat.heard_at
        return Health(silent_s, heartbeat.round_trip_s, len(self.protocol.outbox), self.misses_pong)

    def send(self, frame: bytes, timestamp_ms: int, terms: Terms | None = None) -> None:
        """Queue one frame for this loop turn's write. A full outbox drops messages that may be dropped; if that is not
        enough, the connection is closed with 1013."""
        protocol = self.protocol
        if protocol.phase is not OPEN:
            return
        if terms is not None and terms.collapse_key is not None:
            # With a box, the feed decides which stored ones are older.
            self.collapse(terms.collapse_key, None if self._box is None else Numbers())
        if not protocol.outbox.push(frame, timestamp_ms, self._context.limits().outbox, terms):
            self._send_to_full_outbox(frame, timestamp_ms, terms)
        elif not self.flush_pending:
            self._context.flusher.add(self)

    def offer(self, body: bytes, timestamp_ms: int, terms: Terms | None = None) -> bool:
        """See ``feed.Outlet``."""
        protocol = self.protocol
        if protocol.phase is not OPEN:
            return False
        if self._context.hub.has_stand_bys and not self._is_receiving:  # since an earlier one of several messages
            return self._pass_on_transient(body, timestamp_ms, terms)
        if not protocol.outbox.push(body, timestamp_ms, self._context.limits().outbox, terms):
            if self._push_after_flush(body, timestamp_ms, terms):
                return True
            if self._is_receiving:
                return self._push_for_interim(body, timestamp_ms, terms)
            return self._pass_on_transient(body, timestamp_ms, terms)
        if not self.flush_pending:
            self._context.flusher.add(self)
        return True

    def _send_to_full_outbox(self, frame: bytes, timestamp_ms: int, terms: Terms | None) -> None:
        if self._push_after_flush(frame, timestamp_ms, terms):
            return
        self._hand_over()
        if not self._is_receiving and self._pass_on(frame, timestamp_ms, terms):
            return
        context, protocol = self._context, self.protocol
        now, limits = context.clock(), context.limits()
        protocol.outbox.expire(self)
        squeezed = protocol.squeeze_in(frame, timestamp_ms, terms, now, limits, may_drop_low=self._box is None)
        if squeezed.interims:
            count(context.counters.dropped, "interim", squeezed.interims)
        if squeezed.lows:
            count(context.counters.dropped, "overflow", squeezed.lows)
        self._note_unwritten("overflow", squeezed.dropped)
        self._carry_out()
        if protocol.phase is not OPEN:
            context.counters.outbox_overflows += 1
            if not self._pass_on(frame, timestamp_ms, terms):
                self._count_lost("overflow", [(frame, timestamp_ms, terms)])

    def _push_for_interim(self, body: bytes, timestamp_ms: int, terms: Terms | None) -> bool:
        outbox, limits = self.protocol.outbox, self._context.limits().outbox
        outbox.expire(self)
        squeezed = outbox.squeeze_in(body, timestamp_ms, limits, terms, may_drop_low=False)
        if squeezed.interims:
            count(self._context.counters.dropped, "interim", squeezed.interims)
        self._note_unwritten("overflow", squeezed.dropped)
        return squeezed.queued

    def _push_after_flush(self, body: bytes, timestamp_ms: int, terms: Terms | None) -> bool:
        """Flush until the message fits: a batch may hold more for a device than its outbox, but not its socket.

        A flush that the socket does not take may hand the queue over to another connection of the device. Then the
        message no longer belongs here.
        """
        protocol, context = self.protocol, self._context
        outbox, limits = protocol.outbox, context.limits().outbox
        while protocol.write is None and outbox.has_queued and not self._is_frozen:
            self.flush()
            if not self._is_receiving:
                return False
            if outbox.push(body, timestamp_ms, limits, terms):
                context.flusher.add(self)
                return True
        return False

    def make_room(self, body: bytes, terms: Terms, least: int) -> Withdrawn:
        """See ``feed.Outlet``."""
        return self.protocol.outbox.withdraw(body, self._context.limits().outbox, terms, least)

    def superseded(self) -> None:
        """See ``feed.Outlet``."""
        self.drop(REPLACED)

    def collapse(self, key: str, below: Numbers | None = None) -> None:
        """See ``feed.Outlet``."""
        collapsed = self.protocol.outbox.collapse(key, below)
        self._context.counters.collapsed += len(collapsed)
        self._note_unwritten("collapsed", collapsed)

    def stored(
        self, number: int, payload: bytes, timestamp_ms: int, options: Options | None = None, expires_ms: int = 0
    ) -> None:
        """See ``hub.Client``."""
        if self._box is not None:
            self._box.stored(number, payload, timestamp_ms, options, expires_ms)

    def look_again(self) -> None:
        """See ``hub.Client``."""
        if self._box is not None:
            self._box.look_again()

    def suggest(
        self,
        payload: bytes,
        timestamp_ms: int,
        terms: Terms | None,
        after: int | None = None,
        later: Later | None = None,
    ) -> None:
        """See ``hub.Client``."""
        if self._box is not None:
            self._box.suggest(payload, timestamp_ms, terms, after, later)

    def regrant(self, grant: Grant) -> None:
        """See ``hub.Client``."""
        self.grant = grant
        if self._box is not None:
            self._box.regranted(grant.fencing_token, self._audiences())
        self.resume()

    def resume(self) -> None:
        """See ``hub.Client``."""
        if self.protocol.has_to_send:
            self._context.flusher.add(self)

    def is_queued(self, payload: bytes, timestamp_ms: int) -> bool:
        """See ``hub.Client``."""
        if self._box is not None and self._box.is_waiting(payload, timestamp_ms):
            return True
        return self.protocol.outbox.is_queued(payload, timestamp_ms)

    def challenge(self) -> None:
        """Ping. While the socket is busy with an earlier write, its progress is the sign of life."""
        if self.outcome:
            self.drop(GOING_AWAY)  # it has ended, but its slot is not free yet
            return
        now = self._context.clock()
        self._note("challenged")
        self.protocol.challenge(now)
        self._look_for_progress(now)
        self._context.flusher.add(self)
        self._wake()

    # -- for the feed from its box

    def has_no_high_to_write(self) -> bool:
        return not self.protocol.outbox.has_high

    def joined(self) -> None:
        """See ``feed.Outlet``."""
        self._socket.let_go()

    def outbox_limits(self) -> OutboxLimits:
        return self._context.limits().outbox

    # -- the life of the connection

    def open(self, expires_at: float) -> None:
        """Register with presence and the Hub, and start to read. KeyError if the grant has no slot.

        :param expires_at: when the token expires, including the leeway, Unix seconds
        """
        context = self._context
        context.presence.register(self.grant)
        try:
            context.hub.register(self)
            context.wheel.add(self, self.grant.generation.number)
            self._expires_at = expires_at
            context.calendar.add(self, expires_at)
            context.sockets.add(self)
            self._socket.start_reading(self._on_readable)
            if self._box is not None:
                self._box.open(self._audiences(), stands_by=not context.hub.is_receiving(self))
        except BaseException:
            self.cut()
            raise

    def end(self, reason: CloseReason, keep_queued: bool = False, notice: bytes = b"") -> None:
        """Begin the closing handshake. No effect if it has already begun.

        :param keep_queued: write the queued messages before the close frame instead of dropping them, unless another
            connection of the device takes them over
        :param notice: the last message, which comes right before the close frame
        """
        if self.protocol.phase is OPEN:
            keep_queued = keep_queued and not self._has_another and not self._is_frozen
            self.protocol.end(reason, self._context.clock(), self._context.limits(), keep_queued, notice)
            self._carry_out()

    def drop(self, reason: CloseReason) -> None:
        """Close the socket now, behind the close frame if the socket takes it at once."""
        self.end(reason)
        if self.protocol.phase is not CLOSED:
            self.flush()
            self.cut()

    def cut(self) -> None:
        """Close the socket now, in any phase. Idempotent."""
        self.protocol.lose(LOST)
        self._carry_out()

    def _close_socket(self) -> None:
        """Close the socket. The connection is in no reference cycle afterwards, so it is freed at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        context = self._context
        context.flusher.forget(self)
        self._socket.close()
        self._box = None
        context.sockets.discard(self)
        if self.grant.lease.is_shared:
            # Once the mailbox has stored which messages were written, so that the device gets each only once.
            marked = None if context.mail is None else context.mail.mailbox.marked(self.grant.device_id)
            if marked is None:
                self._release()
            else:
                marked.add_done_callback(lambda _: self._release())

    def _release(self) -> None:
        """Free the slot of the grant, which may have changed until now."""
        self._context.hub.forget(self)
        self._context.presence.release(self.grant)

    def _carry_out(self) -> None:
        """Do what the protocol has decided since the last call."""
        closing = self.protocol.closing
        if closing is not None:
            self._carry_out_closing(closing)
        if self.protocol.has_to_send:
            self._context.flusher.add(self)

    def _carry_out_closing(self, closing: Closing) -> None:
        protocol, now = self.protocol, self._context.clock()
        if not self.outcome:
            self._leave(closing.ending)
        elif protocol.phase is CLOSED:
            outbox = protocol.outbox
            lost = [*self._leave_begun_to_another(outbox.abandon()), *outbox.discard()]
            self._count_lost(self.outcome, lost)
        protocol.advance(now, self._context.limits())
        if protocol.phase is CLOSED:
            self._close_socket()
            return
        if protocol.phase is LINGERING:
            self._socket.half_close()
        if self._timer is not None:
            self._timer.cancel()
        if protocol.deadline is not None:
            self._timer = asyncio.get_running_loop().call_later(protocol.deadline - now, self._on_deadline)

    def _note(self, kind: EventKind, code: int = 0) -> None:
        """For operators."""
        self._context.events.note(self.identity, kind, code, self._context.wall_clock())

    def _on_deadline(self) -> None:
        self.protocol.on_deadline()
        self._carry_out()

    def _leave(self, ending: Ending) -> None:
        """Remove the connection from everything that refers to it. Called once."""
        context = self._context
        self.outcome, audiences = ending.outcome, self._audiences()
        was_receiving = context.hub.is_receiving(self)
        context.hub.unregister(self)
        if not self.grant.lease.is_shared:
            context.presence.release(self.grant)
        context.calendar.remove(self, self._expires_at)
        context.wheel.remove(self)
        counted = self._count_lost(ending.outcome, self._leave_to_another(ending.dropped, was_receiving))
        if self._inbound is not None:
            self._inbound.close()
            self._inbound = None  # it refers to this connection: a reference cycle otherwise
        if self._box is not None:
            # A device whose connection was replaced may have a newer token, which another server has accepted.
            is_last = not context.hub.is_device_connected(self.identity.device_id)
            self._box.close(audiences if is_last and ending.code != str(REPLACED.code) else None)
        self._note("closed", int(ending.code) if ending.code.isdecimal() else NO_CLOSE_FRAME)
        now = context.wall_clock()
        if now - self.connected_at < SHORT_S:
            context.reconnects.note(self.identity.device_id, now)
        count(context.counters.closed, ending.code if ending.code in CLOSE_CODES else "other")
        unwritten = {"dropped": counted.lost} if self._box is None else {"left_in_box": counted.in_box}
        extra = {"outcome": ending.outcome, "code": ending.code, **unwritten}
        log.info("device disconnected", extra=self.who() | extra)

    # -- if only one of a device's connections gets its messages

    def take_over(self, left: Left) -> None:
        """See ``hub.Client``."""
        if self._box is not None:
            self._box.go_on(left.position)
        self._receive(left)

    def _left(self, queued: Sequence[Queued], position: Position | None) -> Left:
        """The unwritten messages that are in no box, for the connection that takes over."""
        if self._box is None:
            return Left(queued)
        messages, places = self._box.leave(queued)
        return Left(messages, position, places)

    def _receive(self, left: Left) -> None:
        device_id, hub = self.identity.device_id, self._context.hub
        for (body, timestamp_ms, terms), after in zip_longest(left.messages, left.places):
            # Each message may make a connection slow, so that another one takes over.
            receivers = hub.receivers_of(device_id)
            for client in receivers:
                if terms is not None and terms.number is not None:
                    client.suggest(body, timestamp_ms, terms, after)
                else:
                    client.send(body, timestamp_ms, terms)
            if not receivers:
                self._count_lost(self.outcome, [(body, timestamp_ms, terms)])

    @property
    def _is_receiving(self) -> bool:
        return self._context.hub.is_receiving(self)

    @property
    def _has_another(self) -> bool:
        """Whether another connection of the device would take over the messages that this one has not written."""
        hub = self._context.hub
        return hub.has_stand_bys and len(hub.clients_of(self.identity.device_id)) > 1

    def _hand_over(self) -> None:
        """Hand the queued messages over to a healthier connection of the device, if there is one.

        The frame that the socket has begun to take stays here. It counts as one message even if it is a control frame:
        a connection without pending writes is healthier.
        """
        outbox = self.protocol.outbox
        heir = self._context.hub.relieve(self, keeps=max(1, outbox.begun))
        if heir is not None:
            position = None if self._box is None else self._box.stand_by(outbox.begun_numbered)
            heir.take_over(self._left(outbox.discard(), position))

    def _pass_on(self, frame: bytes, timestamp_ms: int, terms: Terms | None) -> bool:
        """Pass this message to another connection of the device, if there is one."""
        receivers = self._context.hub.receivers_of(self.identity.device_id)
        for client in receivers:
            client.send(frame, timestamp_ms, terms)
        return bool(receivers)

    def _pass_on_transient(self, body: bytes, timestamp_ms: int, terms: Terms | None) -> bool:
        """Pass this message to the device's active connection, unless that finds it in the box. False: it does."""
        if terms is None or terms.number != 0:
            return False
        self._receive(Left([(body, timestamp_ms, terms)]))
        return True

    def _leave_to_another(self, dropped: Sequence[Queued], was_receiving: bool) -> Sequence[Queued]:
        """The connection has ended: hand its unwritten messages over to the device's active one. Return the messages
        that are lost because there is none.

        The frame that the socket has begun to take stays here while the socket may take the rest.
        """
        hub = self._context.hub
        heirs = hub.receivers_of(self.identity.device_id) if hub.has_stand_bys else ()
        outbox = self.protocol.outbox
        # If the socket is lost, the frame that it has begun to take does not stay here either.
        begun = outbox.abandon() if self.protocol.phase is CLOSED else []
        left = [*begun, *dropped]
        if not heirs:
            return left
        if was_receiving:
            position = None if self._box is None else self._box.stand_by(outbox.begun_numbered)
            heirs[0].take_over(self._left(left, position))
            return ()
        return self._leave_begun_to_another(begun)

    def _leave_begun_to_another(self, begun: Sequence[Queued]) -> Sequence[Queued]:
        """The socket is lost, and another connection has taken over after the frame that this one had begun to write.
        Return the messages that are lost because no such connection is left."""
        hub = self._context.hub
        heirs = hub.receivers_of(self.identity.device_id) if hub.has_stand_bys else ()
        if not (begun and heirs and (self._box is None or self._box.stands_by)):
            return begun
        heirs[0].take_over(Left([_without_number(waiting) for waiting in begun]))
        return ()

    def _count_lost(self, reason: str, messages: Sequence[Queued]) -> Unwritten:
        """Count messages that are not written."""
        counters, counted = self._context.counters, unwritten_of(messages, has_mailbox=self._context.mail is not None)
        counters.left_in_box += counted.in_box
        for of_reason, lost in ((reason, counted.lost), ("interim", counted.interims)):
            if lost:
                count(counters.dropped, of_reason, lost)
        self._note_unwritten("slow_consumer" if reason in _TOO_SLOW else "not_connected", messages)
        return counted

    def _note_unwritten(self, outcome: Outcome, messages: Sequence[Queued]) -> None:
        """For operators. Stored messages are still in the box."""
        memory = self._context.memory
        if memory is not None:
            for body, timestamp_ms, terms in messages:
                if body and (terms is None or not terms.number):
                    memory.note(body, timestamp_ms, self.identity.device_id, outcome)


def _without_number(waiting: Queued) -> Queued:
    body, timestamp_ms, terms = waiting
    return (body, timestamp_ms, terms._replace(number=0)) if terms is not None and terms.number else waiting
