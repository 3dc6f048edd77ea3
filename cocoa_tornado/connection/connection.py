"""A device's connection from the upgrade to its end, on the IOLoop: a thin shell around ``protocol.py``.

The protocol decides. This module reads and writes the socket, passes on what the device sends, and sets the timer. It
does not decide which devices may connect or where a message goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from itertools import zip_longest

from ..counters import count
from ..presence.grants import Grant
from ..presence.port import Health
from ..rules.addressing import Options
from ..rules.audiences import Audience, audiences_of
from ..rules.box import LaneName, Position
from ..rules.close_codes import GOING_AWAY, NO_PONG, REPLACED, CloseReason
from ..rules.frames import Pong
from ..rules.identity import DeviceIdentity
from ..rules.labels import CLOSE_CODES
from ..rules.terms import Left, Terms
from .device_context import DeviceContext
from .device_socket import DeviceSocket
from .feed import BoxFeed
from .inbound import Inbound
from .outbox import MOST_PER_TAKE, Discarded, OutboxLimits, Withdrawn
from .protocol import CLOSED, LINGERING, LOST, OPEN, PAUSED, WRITE_TIMEOUT, Closing, DeviceProtocol, Ending
from .queue import Waiting

log = logging.getLogger("cocoa.device")


class DeviceConnection:
    """One device's WebSocket. Implements ``hub.Client`` and ``flusher.Flushed``; IOLoop thread only.

    :meth:`open` starts it. It is open until the first of: a close of either side, an error, a timeout. Then the Hub
    forgets the connection and the device can connect again, even while the closing handshake is under way. If other
    servers may hold the device next, its slot is released when the socket is closed and the mailbox has stored what was
    written to it; a connection that is challenged before that is cut.

    While the lease of its grant is not valid, it writes no messages. It answers pings, and waits.

    :ivar outcome: how it ended, in one word; "" while it is open
    """

    __slots__ = (
        "_box",
        "_context",
        "_expires_at",
        "_holding",
        "_inbound",
        "_socket",
        "_timer",
        "_wants_interim",
        "awaiting_pong",
        "due_tick",
        "flush_pending",
        "grant",
        "identity",
        "misses_pong",
        "outcome",
        "protocol",
    )

    def __init__(
        self,
        socket: DeviceSocket,
        identity: DeviceIdentity,
        grant: Grant,
        context: DeviceContext,
        wants_interim: bool = False,
        after: Position | None = None,
    ) -> None:
        self._socket, self._context = socket, context
        self.identity, self.grant = identity, grant
        self.protocol = DeviceProtocol(context.clock(), context.unmask)
        self.outcome = ""
        self.flush_pending = False
        self.awaiting_pong = self.misses_pong = False
        self.due_tick = 0
        self._expires_at = 0.0
        self._timer: asyncio.TimerHandle | None = None  # at the protocol's deadline
        self._inbound: Inbound | None = None
        self._holding: asyncio.Task[None] | None = None  # while the socket is not read from
        self._wants_interim = wants_interim
        self._box: BoxFeed | None = None
        if context.mail is not None:
            self._box = BoxFeed(context.mail, self, identity.device_id, after, grant.fencing_token)

    def __repr__(self) -> str:
        state = "open" if self.is_open else self.outcome or "closing"
        return f"<DeviceConnection #{self.grant.generation.number} {self.identity.device_id!r} {state}>"

    @property
    def is_open(self) -> bool:
        return self.protocol.phase is OPEN

    # -- for the Hub

    @property
    def health(self) -> Health:
        """See ``hub.Client``. The round trip is measured from queuing the ping to reading the pong."""
        heartbeat = self.protocol.heartbeat
        silent_s = self._context.clock() - heartbeat.heard_at
        return Health(silent_s, heartbeat.round_trip_s, len(self.protocol.outbox), self.misses_pong)

    def send(self, frame: bytes, timestamp_ms: int, terms: Terms | None = None) -> None:
        """Queue one frame for this loop turn's write. A full outbox drops what it may; if that is not enough, the
        connection is closed with 1013."""
        protocol = self.protocol
        if protocol.phase is not OPEN:
            return
        if terms is not None and terms.collapse_key is not None:
            self._context.counters.collapsed += protocol.outbox.collapse(terms.collapse_key)
        if not protocol.outbox.push(frame, timestamp_ms, self._context.limits().outbox, terms):
            self._send_to_full_outbox(frame, timestamp_ms, terms)
        elif not self.flush_pending:
            self._context.flusher.add(self)

    def offer(self, body: bytes, timestamp_ms: int, terms: Terms | None = None) -> bool:
        """See ``feed.Outlet``."""
        protocol = self.protocol
        if protocol.phase is not OPEN:
            return False
        if terms is not None and terms.collapse_key is not None:
            self._context.counters.collapsed += protocol.outbox.collapse(terms.collapse_key)
        if not protocol.outbox.push(body, timestamp_ms, self._context.limits().outbox, terms):
            if self._push_after_flush(body, timestamp_ms, terms):
                return True
            return self._is_receiving and self._push_for_interim(body, timestamp_ms, terms)
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
        self._carry_out()
        if protocol.phase is not OPEN:
            context.counters.outbox_overflows += 1
            if not self._pass_on(frame, timestamp_ms, terms):
                self._count_lost("overflow", 1)

    def _push_for_interim(self, body: bytes, timestamp_ms: int, terms: Terms | None) -> bool:
        outbox, limits = self.protocol.outbox, self._context.limits().outbox
        outbox.expire(self)
        squeezed = outbox.squeeze_in(body, timestamp_ms, limits, terms, may_drop_low=False)
        if squeezed.interims:
            count(self._context.counters.dropped, "interim", squeezed.interims)
        return squeezed.queued

    @property
    def _is_frozen(self) -> bool:
        """Whether other servers may hold the device now, as far as this one knows."""
        lease = self.grant.lease
        return lease.is_shared and not lease.is_valid(self._context.presence.clock())

    def _push_after_flush(self, body: bytes, timestamp_ms: int, terms: Terms | None) -> bool:
        """Flush until the message fits: a batch may hold more for a device than its outbox, but not its socket.

        A flush that the socket does not take may leave what is queued to another connection of the device. Then the
        message does not belong here any more.
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

    def collapse(self, key: str) -> None:
        """See ``feed.Outlet``."""
        self._context.counters.collapsed += self.protocol.outbox.collapse(key)

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

    def suggest(self, payload: bytes, timestamp_ms: int, terms: Terms | None, after: int | None = None) -> None:
        """See ``hub.Client``."""
        if self._box is not None:
            self._box.suggest(payload, timestamp_ms, terms, after)

    def regrant(self, grant: Grant) -> None:
        """See ``hub.Client``."""
        self.grant = grant
        if self._box is not None:
            self._box.fencing_token = grant.fencing_token
            self._box.look_again()
        self.resume()

    def resume(self) -> None:
        """See ``hub.Client``."""
        if self.protocol.has_to_send:
            self._context.flusher.add(self)

    def challenge(self) -> None:
        """Ping. While the socket is busy with an earlier write, its progress is the sign of life."""
        if self.outcome:
            self.drop(GOING_AWAY)  # it has ended, but its slot is not free yet
            return
        now = self._context.clock()
        self.protocol.challenge(now)
        self._look_for_progress(now)
        self._context.flusher.add(self)
        self._wake()

    # -- for the feed from its box

    def has_nothing_to_write(self) -> bool:
        return self.protocol.write is None and not self.protocol.outbox.has_queued

    def has_no_high_to_write(self) -> bool:
        return not self.protocol.outbox.has_high

    def outbox_limits(self) -> OutboxLimits:
        return self._context.limits().outbox

    # -- for the wheel, the calendar and the housekeeping

    def ping(self) -> None:
        """Send a ping at the end of this loop turn, ahead of the outbox."""
        self.protocol.ping(self._context.clock())
        self._context.flusher.add(self)
        if self._box is not None and self._box.is_refresh_due:
            self._box.refresh(self._audiences())

    def pong_may_be_late(self) -> bool:
        """See ``keepalive.Pinged``."""
        protocol, socket = self.protocol, self._socket
        # After a pause of the process, or a long turn, the pong may be unread in the socket.
        may_be_late = protocol.pong_may_be_late(
            has_unread=socket.may_have_unread, is_acknowledged=socket.all_is_acknowledged, now=self._context.clock()
        )
        if protocol.has_to_send:
            self._context.flusher.add(self)
        self.misses_pong = True
        self._hand_over()
        return may_be_late

    def expire(self) -> None:
        """No pong came in time."""
        self.end(NO_PONG)

    def check_socket(self, now: float) -> None:
        """Check a socket that is busy with a write, or that is not read from."""
        protocol = self.protocol
        if protocol.reading is PAUSED:
            self._look_at_the_unread(now)
        if not self._look_for_progress(now) and protocol.is_stuck(now, self._context.limits()):
            protocol.lose(WRITE_TIMEOUT)
            self._carry_out()

    def _look_at_the_unread(self, now: float) -> None:
        """The device has sent more than may be held, so neither its close nor its pong can be read."""
        protocol = self.protocol
        if self._socket.peer_has_closed:
            protocol.peer_has_gone(now, self._context.limits())
            self._wake()
        elif protocol.heartbeat.challenged and self._socket.all_is_acknowledged and protocol.all_acknowledged():
            self._context.presence.answered(self.grant)

    def _look_for_progress(self, now: float) -> bool:
        if self.protocol.write is None or not self.protocol.progressed(self._socket.write_mark, now):
            return False
        self._note_sign_of_life()
        return True

    def _note_sign_of_life(self) -> None:
        if self.protocol.heartbeat.answer_challenge():
            self._context.presence.answered(self.grant)

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
        """Begin the closing handshake. Nothing happens if it has begun already.

        :param keep_queued: write what is queued before the close frame, instead of dropping it, unless another
            connection of the device goes on with it
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
        """The end. The connection is in no reference cycle afterwards, so that it is freed at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        context = self._context
        context.flusher.forget(self)
        self._socket.close()
        self._box = None
        context.sockets.discard(self)
        if self.grant.lease.is_shared:
            context.hub.forget(self)
            self._release()

    def _release(self) -> None:
        """Free the slot, once the mailbox has stored what was written: the device gets it only once."""
        presence, grant, mail = self._context.presence, self.grant, self._context.mail
        marked = None if mail is None else mail.mailbox.marked(grant.device_id)
        if marked is None:
            presence.release(grant)
        else:
            marked.add_done_callback(lambda _: presence.release(grant))

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
            self._leave_begun_to_another()
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
        dropped, interim = self._leave_to_another(ending.dropped, was_receiving)
        self._count_lost(ending.outcome, dropped)
        if interim:
            count(context.counters.dropped, "interim", interim)
        if self._inbound is not None:
            self._inbound.close()
            self._inbound = None  # it refers to this connection: a reference cycle otherwise
        if self._box is not None:
            # A device whose connection was replaced may have a newer token, which another server has accepted.
            is_last = not context.hub.is_device_connected(self.identity.device_id)
            self._box.close(audiences if is_last and ending.code != str(REPLACED.code) else None)
        count(context.counters.closed, ending.code if ending.code in CLOSE_CODES else "other")
        fate = "dropped" if self._box is None else "left_in_box"
        extra = {"outcome": ending.outcome, "code": ending.code, fate: dropped}
        log.info("device disconnected", extra=self.who() | extra)

    # -- where only one of a device's connections gets its messages

    def take_over(self, left: Left) -> None:
        """See ``hub.Client``."""
        if self._box is not None:
            self._box.go_on(left.position)
        self._receive(left)

    def _left(self, queued: Sequence[Waiting], position: Position | None) -> Left:
        """What is not written and in no box, for the connection that goes on."""
        if self._box is None:
            return Left(queued)
        messages, places = self._box.leave(queued)
        return Left(messages, position, places)

    def _receive(self, left: Left) -> None:
        device_id, hub = self.identity.device_id, self._context.hub
        for (body, timestamp_ms, terms), after in zip_longest(left.messages, left.places):
            # Each message may make a connection slow, and another one go on.
            receivers = hub.receivers_of(device_id)
            for client in receivers:
                if terms is not None and terms.number is not None:
                    client.suggest(body, timestamp_ms, terms, after)
                else:
                    client.send(body, timestamp_ms, terms)
            if not receivers:
                self._count_lost(self.outcome, 1)

    @property
    def _is_receiving(self) -> bool:
        return self._context.hub.is_receiving(self)

    @property
    def _has_another(self) -> bool:
        """Whether another connection of the device would go on with what this one has not written."""
        hub = self._context.hub
        return hub.has_stand_bys and len(hub.clients_of(self.identity.device_id)) > 1

    def _hand_over_if_slow(self) -> None:
        if self._context.hub.has_stand_bys and self.protocol.outbox.is_over_half(self._context.limits().outbox):
            self._hand_over()

    def _hand_over(self) -> None:
        """Leave what is queued to a healthier connection of the device, if there is one.

        What the socket has begun to take stays here. It counts as one message even if it is a control frame: a
        connection that has nothing to write is healthier.
        """
        outbox = self.protocol.outbox
        heir = self._context.hub.relieve(self, keeps=max(1, outbox.begun))
        if heir is not None:
            position = None if self._box is None else self._box.stand_by(outbox.begun_numbered)
            heir.take_over(self._left(outbox.discard().queued, position))

    def _pass_on(self, frame: bytes, timestamp_ms: int, terms: Terms | None) -> bool:
        """Another connection of the device, if there is one, gets this message."""
        receivers = self._context.hub.receivers_of(self.identity.device_id)
        for client in receivers:
            client.send(frame, timestamp_ms, terms)
        return bool(receivers)

    def _leave_to_another(self, dropped: Discarded, was_receiving: bool) -> tuple[int, int]:
        """The connection has ended: leave what it has not written to the one that gets the device's messages now.
        Returns how many messages and interims are dropped because there is none.

        What the socket has begun to take stays here while it may take the rest.
        """
        hub = self._context.hub
        heirs = hub.receivers_of(self.identity.device_id) if hub.has_stand_bys else ()
        if not heirs:
            return dropped.messages, dropped.interims
        is_lost = self.protocol.phase is CLOSED
        if was_receiving:
            begun = 0 if is_lost else self.protocol.outbox.begun_numbered
            position = None if self._box is None else self._box.stand_by(begun)
            heirs[0].take_over(self._left(dropped.left if is_lost else dropped.queued, position))
        elif is_lost:
            self._leave_begun_to_another()
        return 0, 0

    def _leave_begun_to_another(self) -> None:
        """The socket is lost, and another connection has gone on behind what this one had begun to write."""
        hub = self._context.hub
        heirs = hub.receivers_of(self.identity.device_id) if hub.has_stand_bys else ()
        begun = self.protocol.outbox.abandon()
        if begun and heirs and (self._box is None or self._box.stands_by):
            heirs[0].take_over(Left([_without_number(waiting) for waiting in begun]))

    def _audiences(self) -> frozenset[Audience]:
        """Those of the device's newest token, for the mailbox."""
        return audiences_of(self._context.hub.identity_of(self.identity.device_id) or self.identity)

    def _count_lost(self, reason: str, messages: int) -> None:
        """Count messages that were queued and not written. With a mailbox they stay in the box, and nothing is lost."""
        if self._box is not None:
            self._context.counters.left_in_box += messages
        elif messages:
            count(self._context.counters.dropped, reason, messages)

    def who(self) -> dict[str, object]:
        """The fields of every log line about this connection."""
        return {"device_id": self.identity.device_id, "conn": self.grant.generation.number}

    # -- writing

    def now_ms(self) -> float:
        """See ``outbox.Taker``."""
        return self._context.wall_clock() * 1000

    def frame_of(self, payload: bytes, lane: LaneName, number: int) -> bytes | None:
        """See ``outbox.Taker``."""
        return None if self._box is None else self._box.frame_of(payload, lane, number)

    def note_expired(self, terms: Terms) -> None:
        """See ``outbox.Taker``."""
        if self._box is None or terms.number is None:
            count(self._context.counters.dropped, "expired")
        elif (notice := self._box.expired(terms)) is not None:
            # It takes the place of what has expired, so there is room for it.
            self.protocol.outbox.push(b"", 0, self._context.limits().outbox, notice)

    def flush(self) -> None:
        """Write what is queued, unless the socket is busy with the last write."""
        self.flush_pending = False
        protocol, socket = self.protocol, self._socket
        if protocol.write is not None:
            self._hand_over_if_slow()
            return
        if self._is_frozen and protocol.phase is OPEN:
            self._flush_control_frames()
            return
        if self._box is not None:
            self._box.begin_write()
        data = protocol.data_to_send(self)
        if not data:
            if not protocol.has_to_send:
                return
        elif not socket.write(data, self._on_sent):  # rarely
            self._wait_for_room(len(data))
            return
        stamps, numbered = protocol.sent()
        if stamps:
            self._context.flusher.stamps += stamps
        if self._box is not None:
            self._note_written(self._box, numbered)
        if protocol.closing is not None or len(data) >= MOST_PER_TAKE:
            self._carry_out()

    def _flush_control_frames(self) -> None:
        data = self.protocol.control_frames()
        if not data:
            return
        if self._socket.write(data, self._on_sent):
            self.protocol.control_frames_sent()
        else:
            self.protocol.control_frames_blocked(self._socket.write_mark, self._context.clock())
            self._context.flusher.watch(self)

    def _wait_for_room(self, size: int) -> None:
        """The socket has not taken all of a write. What it has not begun to take, it gets later."""
        protocol, socket, context = self.protocol, self._socket, self._context
        taken, committed = socket.progress(size)
        kept, (stamps, numbered) = protocol.blocked(size, taken, committed, socket.write_mark, context.clock())
        socket.take_back(size - kept)
        context.flusher.stamps += stamps
        if self._box is not None:
            self._note_written(self._box, numbered)
        context.flusher.watch(self)
        self._hand_over_if_slow()

    def _note_written(self, box: BoxFeed, numbered: int) -> None:
        """The socket has taken something, with a mailbox.

        :param numbered: of the messages, so many have a number
        """
        if numbered:
            box.given(numbered)
        elif self.has_nothing_to_write():
            box.written()

    def _on_sent(self) -> None:
        """The socket has taken the rest of a write, or has failed."""
        protocol, context = self.protocol, self._context
        stamps, numbered = protocol.sent()
        self._unwatch()
        if self._socket.has_failed:
            # What the device has sent may be unread; the end of the socket comes after it.
            protocol.peer_has_gone(context.clock(), context.limits())
            self._wake()
            self._on_readable()
            return
        if stamps:
            context.flusher.note_written(stamps)
        if self._box is not None:
            self._note_written(self._box, numbered)
        self._carry_out()

    def _unwatch(self) -> None:
        if self.protocol.write is None and self.protocol.reading is not PAUSED:
            self._context.flusher.unwatch(self)

    # -- reading

    def _on_readable(self) -> None:
        """Read once in a turn of the loop, so that a device that sends without a pause does not delay the others."""
        try:
            data = self._socket.read(self._context.intake.piece_bytes)
        except OSError:
            data = b""
        if not data:
            if data is not None or self._socket.has_failed:
                self.cut()
            return
        try:
            self._take_in(data)
            inbound = self._inbound
            if inbound is not None and inbound.full() is not None:
                self._hold_back(inbound)
        except Exception:
            self._fail()

    def _fail(self) -> None:
        """Call it while an exception is handled."""
        log.exception("connection failed", extra=self.who())
        self.cut()

    def _take_in(self, data: bytes) -> None:
        protocol, context = self.protocol, self._context
        phase, has_message = protocol.phase, False
        for event in protocol.receive(data, context.clock(), context.limits()):
            if isinstance(event, Pong):
                self.awaiting_pong = self.misses_pong = False
                self._note_sign_of_life()
            else:
                has_message = True
                self._make_inbound().hear(event)
            if self.outcome:
                return
        if protocol.phase is not OPEN:
            if protocol.phase is not phase:
                self._carry_out()
            return
        under_way = protocol.under_way_bytes
        if self._inbound is not None or under_way:
            self._make_inbound().note_under_way(under_way, has_message)
        if protocol.has_to_send:
            context.flusher.add(self)

    def _make_inbound(self) -> Inbound:
        if self._inbound is None:
            self._inbound = Inbound(self, self.protocol, self.identity, self._context, self._box, self._wants_interim)
        return self._inbound

    def _hold_back(self, inbound: Inbound) -> None:
        """Stop reading until there is room, the device has disconnected, or a challenge needs its pong."""
        self._socket.stop_reading()
        self.protocol.pause(self._context.clock())
        self._context.flusher.watch(self)
        self._holding = asyncio.get_running_loop().create_task(self._read_on_later(inbound))

    async def _read_on_later(self, inbound: Inbound) -> None:
        context = self._context
        try:
            while (full := inbound.full()) is not None:
                await full.wait_for_room()
        except Exception:
            self._fail()
            return
        except asyncio.CancelledError:
            self.cut()
            raise
        finally:
            self._holding = None
        self.protocol.resume(context.clock(), context.limits())
        self._unwatch()
        if not self._socket.is_closed:
            self._socket.start_reading(self._on_readable)

    def _wake(self) -> None:
        """If the connection waits for room, check again."""
        if self._inbound is not None:
            self._inbound.wake()


def _without_number(waiting: Waiting) -> Waiting:
    body, timestamp_ms, terms = waiting
    return (body, timestamp_ms, terms._replace(number=0)) if terms is not None and terms.number else waiting
