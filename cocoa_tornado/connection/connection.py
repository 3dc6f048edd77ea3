"""A device's connection from the upgrade to its end, on the IOLoop: a thin shell around ``protocol.py``.

The protocol decides; what is here reads and writes the socket, passes on what the device says, and sets the timer.
Nothing here decides who may connect or where a message goes.
"""

from __future__ import annotations

import asyncio
import logging

from tornado.iostream import IOStream, StreamClosedError

from ..counters import count
from ..presence.port import Health
from ..presence.rules import Grant
from ..rules.box import Place
from ..rules.close_codes import NO_PONG, CloseReason
from ..rules.frames import Pong
from ..rules.identity import DeviceIdentity
from ..rules.labels import CLOSE_CODES
from .device_context import DeviceContext
from .feed import BoxFeed
from .inbound import Inbound
from .outbox import OutboxLimits
from .protocol import CLOSED, LINGERING, LOST, OPEN, PAUSED, WRITE_TIMEOUT, Closing, DeviceProtocol, Ending
from .sockets import (
    all_is_acknowledged,
    half_close,
    limit_kernel_buffer,
    may_have_unread,
    peer_has_closed,
    write_mark,
)

log = logging.getLogger("cocoa.device")


class DeviceConnection:
    """One device's WebSocket. Implements ``hub.Client`` and ``flusher.Flushed``; IOLoop thread only.

    :meth:`open` starts it. It is open until the first of: a close of either side, an error, a timeout. At that moment
    the Hub forgets the connection, and the device can connect again, though the closing handshake may still be under
    way.

    :ivar outcome: how it ended, in one word; "" while it is open
    """

    __slots__ = (
        "_box",
        "_context",
        "_expires_at",
        "_holding",
        "_inbound",
        "_stream",
        "_timer",
        "_wants_interim",
        "awaiting_pong",
        "due_tick",
        "flush_pending",
        "grant",
        "identity",
        "outcome",
        "protocol",
    )

    def __init__(
        self,
        stream: IOStream,
        identity: DeviceIdentity,
        grant: Grant,
        context: DeviceContext,
        wants_interim: bool = False,
        after: Place | None = None,
    ) -> None:
        self._stream, self._context = stream, context
        self.identity, self.grant = identity, grant
        self.protocol = DeviceProtocol(context.clock(), context.unmask)
        self.outcome = ""
        self.flush_pending = False
        self.awaiting_pong = False
        self.due_tick = 0
        self._expires_at = 0.0
        self._timer: asyncio.TimerHandle | None = None  # at the protocol's deadline
        self._inbound: Inbound | None = None
        self._holding: asyncio.Task[bytes] | None = None  # while it is not read from
        self._wants_interim = wants_interim
        self._box = None if context.mail is None else BoxFeed(context.mail, self, identity.device_id, after)

    def __repr__(self) -> str:
        state = "open" if self.is_open else self.outcome or "closing"
        return f"<DeviceConnection #{self.grant.generation.number} {self.identity.device_id!r} {state}>"

    @property
    def is_open(self) -> bool:
        return self.protocol.phase is OPEN

    # -- what the Hub asks for

    @property
    def health(self) -> Health:
        """See ``hub.Client``. The round trip begins when the ping is queued, and ends when the pong is read."""
        heartbeat = self.protocol.heartbeat
        silent_s = self._context.clock() - heartbeat.heard_at
        return Health(silent_s, heartbeat.round_trip_s, len(self.protocol.outbox))

    def send(self, frame: bytes, timestamp_ms: int, interim_of: str = "") -> None:
        """Queue one frame for this loop turn's write. A full outbox closes the connection with 1013."""
        protocol = self.protocol
        if protocol.phase is not OPEN:
            return
        if not protocol.outbox.push(frame, timestamp_ms, self._context.limits.outbox, interim_of):
            self._send_to_full_outbox(frame, timestamp_ms, interim_of)
        elif not self.flush_pending:
            self._context.flusher.add(self)

    def _send_to_full_outbox(self, frame: bytes, timestamp_ms: int, interim_of: str) -> None:
        protocol, context = self.protocol, self._context
        if protocol.write is None:
            # One batch may hold more for a device than may wait for it, and the socket has not been asked yet.
            self.flush()
            if protocol.outbox.push(frame, timestamp_ms, context.limits.outbox, interim_of):
                context.flusher.add(self)
                return
        squeezed = protocol.squeeze_in(frame, timestamp_ms, interim_of, context.clock(), context.limits)
        if squeezed.dropped:
            count(context.counters.dropped, "interim", squeezed.dropped)
        if not (squeezed.queued or interim_of):
            context.counters.outbox_overflows += 1
            self._count_lost("overflow", 1)
        self._carry_out()

    def stored(self, number: int, frame: bytes, timestamp_ms: int) -> None:
        """See ``hub.Client``."""
        if self._box is not None:
            self._box.stored(number, frame, timestamp_ms)

    def look_again(self) -> None:
        """See ``hub.Client``."""
        if self._box is not None:
            self._box.look_again()

    def suggest(self, payload: bytes, timestamp_ms: int, interim_of: str) -> None:
        """See ``hub.Client``."""
        if self._box is not None:
            self._box.suggest(payload, timestamp_ms, interim_of)

    def challenge(self) -> None:
        """Ping. Where the socket is still busy with what was written before, its progress is the sign of life."""
        now = self._context.clock()
        self.protocol.challenge(now)
        self._look_for_progress(now)
        self._context.flusher.add(self)
        self._wake()

    # -- what the feed from its box asks for

    def has_nothing_to_write(self) -> bool:
        return self.protocol.write is None and not self.protocol.outbox.has_queued

    def outbox_limits(self) -> OutboxLimits:
        return self._context.limits.outbox

    # -- what the wheel, the calendar and the housekeeping ask for

    def ping(self) -> None:
        """Send a ping at the end of this loop turn, ahead of the outbox."""
        self.protocol.ping(self._context.clock())
        self._context.flusher.add(self)

    def pong_may_be_late(self) -> bool:
        """See ``keepalive.Pinged``."""
        # After a pause of the process, or a long turn, its pong may lie in the socket.
        return self.protocol.take_delay() or may_have_unread(self._stream)

    def expire(self) -> None:
        """No pong came in time."""
        self.end(NO_PONG)

    def check_socket(self, now: float) -> None:
        """Look at a socket that is busy with a write, or that is not read from."""
        protocol = self.protocol
        if protocol.reading is PAUSED:
            self._look_at_the_unread(now)
        if not self._look_for_progress(now) and protocol.is_stuck(now, self._context.limits):
            protocol.lose(WRITE_TIMEOUT)
            self._carry_out()

    def _look_at_the_unread(self, now: float) -> None:
        """The device has said more than may be held, so neither its end nor its pong can be read."""
        protocol = self.protocol
        if peer_has_closed(self._stream):
            protocol.peer_has_gone(now, self._context.limits)
            self._wake()
        elif protocol.heartbeat.challenged and all_is_acknowledged(self._stream) and protocol.all_acknowledged():
            self._context.presence.answered(self.grant)

    def _look_for_progress(self, now: float) -> bool:
        if self.protocol.write is None or not self.protocol.progressed(write_mark(self._stream), now):
            return False
        self._note_sign_of_life()
        return True

    def _note_sign_of_life(self) -> None:
        if self.protocol.heartbeat.answer_challenge():
            self._context.presence.answered(self.grant)

    # -- the life of the connection

    def open(self, expires_at: float) -> None:
        """Register with presence and the Hub, and start to read. KeyError if the grant has no slot.

        :param expires_at: Unix seconds at which the token's time is over, the leeway included
        """
        context = self._context
        context.presence.register(self.grant)
        # First of all: should anything below fail, the caller closes the stream, and the reading side finds that out
        # and takes everything back.
        asyncio.get_running_loop().call_soon(self._read)
        context.hub.register(self)
        context.wheel.add(self, self.grant.generation.number)
        self._expires_at = expires_at
        context.calendar.add(self, expires_at)
        limit_kernel_buffer(self._stream)
        context.drop_room_for_writes(self._stream)
        self._stream.set_close_callback(self._on_stream_closed)
        context.sockets.add(self)
        if self._box is not None:
            self._box.open()

    def end(self, reason: CloseReason, keep_queued: bool = False) -> None:
        """Begin the closing handshake and free the slot at once. Nothing happens if it has begun already.

        :param keep_queued: write what is queued before the close frame, instead of dropping it
        """
        if self.protocol.phase is OPEN:
            self.protocol.end(reason, self._context.clock(), self._context.limits, keep_queued)
            self._carry_out()

    def cut(self) -> None:
        """The connection is over, whatever state it is in, and its socket is closed. Idempotent.

        It is in no reference cycle from then on, so that it is freed at once.
        """
        self.protocol.lose(LOST)
        self._carry_out()
        self._wake()
        if self.protocol.write is None:  # else the box has yet to hear what the socket has taken
            self._box = None
        self._context.sockets.discard(self)

    def abort(self) -> None:
        """Close the socket without further ado; :meth:`_read` finds it closed and sees to the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._context.flusher.forget(self)
        if not self._stream.closed():
            self._stream.close()

    def _carry_out(self) -> None:
        """Do what the protocol has decided since the last time."""
        closing = self.protocol.closing
        if closing is not None:
            self._carry_out_closing(closing)
        if self.protocol.has_to_send:
            self._context.flusher.add(self)

    def _carry_out_closing(self, closing: Closing) -> None:
        protocol, now = self.protocol, self._context.clock()
        if not self.outcome:
            self._leave(closing.ending)
        protocol.advance(now, self._context.limits)
        if protocol.phase is CLOSED:
            self.abort()
            return
        if protocol.phase is LINGERING:
            half_close(self._stream)
        if self._timer is not None:
            self._timer.cancel()
        if protocol.deadline is not None:
            self._timer = asyncio.get_running_loop().call_later(protocol.deadline - now, self._on_deadline)

    def _on_deadline(self) -> None:
        self.protocol.on_deadline()
        self._carry_out()

    def _leave(self, ending: Ending) -> None:
        """Everything that others keep of this connection is taken back, once."""
        context = self._context
        self.outcome = ending.outcome
        context.hub.unregister(self)
        context.presence.release(self.grant)
        context.calendar.remove(self, self._expires_at)
        context.wheel.remove(self)
        dropped, interim = ending.dropped
        self._count_lost(ending.outcome, dropped)
        if interim:
            count(context.counters.dropped, "interim", interim)
        if self._inbound is not None:
            self._inbound.close()
            self._inbound = None  # it refers to this connection: without it there is no reference cycle
        if self._box is not None:
            self._box.close()
        count(context.counters.closed, ending.code if ending.code in CLOSE_CODES else "other")
        fate = "dropped" if self._box is None else "left_in_box"
        extra = {"outcome": ending.outcome, "code": ending.code, fate: dropped}
        log.info("device disconnected", extra=self.who() | extra)

    def _count_lost(self, reason: str, messages: int) -> None:
        """Messages that the socket will not take. With a mailbox they stay in the box, and nothing is lost."""
        if self._box is not None:
            self._context.counters.left_in_box += messages
        elif messages:
            count(self._context.counters.dropped, reason, messages)

    def who(self) -> dict[str, object]:
        """What every log line about this connection says."""
        return {"device_id": self.identity.device_id, "conn": self.grant.generation.number}

    # -- writing

    def flush(self) -> None:
        """Write what is queued, all of it in one go, unless the socket is still busy with the last one."""
        self.flush_pending = False
        protocol, stream = self.protocol, self._stream
        if protocol.write is not None or stream.closed():
            return
        data, stamps = protocol.data_to_send()
        if not data:
            return
        if stamps:
            self._context.flusher.stamps += stamps
            if self._box is not None:
                self._box.taken()
        taken = self._context.write_at_once(stream, data)
        if taken == len(data):  # the way of nearly every message
            protocol.sent()
            if self._box is not None:
                self._box.written()
            if protocol.closing is not None:
                self._carry_out()
        else:
            self._write_rest(data, taken, len(stamps))

    def _write_rest(self, data: bytes, taken: int, messages: int) -> None:
        """What the socket has not taken at once is for the stream to write, as soon as it can."""
        try:
            written = self._stream.write(data[taken:] if taken else data)
        except StreamClosedError:
            return
        if written.done():
            self._written(written)
        else:
            self.protocol.blocked(messages, len(data), write_mark(self._stream), self._context.clock())
            self._context.flusher.watch(self)
            written.add_done_callback(self._written)

    def _written(self, written: asyncio.Future[None]) -> None:
        """The socket has taken everything, or has failed: then the reading side sees to the rest."""
        self.protocol.sent()
        self._unwatch()
        if not written.cancelled() and written.exception() is None:
            if self._box is not None:
                self._box.written()
            self._carry_out()
        if self._stream.closed() and not self.is_open:
            self._box = None

    def _unwatch(self) -> None:
        if self.protocol.write is None and self.protocol.reading is not PAUSED:
            self._context.flusher.unwatch(self)

    # -- reading

    def _read(self, done: asyncio.Future[bytes] | None = None) -> None:
        """Take in what has been read, and ask for more, until the socket is closed.

        There is no task that waits for it: most devices say nothing most of the time. A future calls back in the next
        loop turn at the soonest, so a device that sends without pause gives way to the others after each read.
        """
        self._holding = None
        if done is not None and (done.cancelled() or isinstance(done.exception(), OSError)):
            # Not raised: this frame would hold the future, which holds the error, which would hold this frame.
            self.cut()
            return
        try:
            if done is not None:
                self._take_in(done.result())
            coming: asyncio.Future[bytes]
            inbound = self._inbound
            if inbound is not None and inbound.full() is not None:
                coming = self._holding = asyncio.get_running_loop().create_task(self._hold_back(inbound))
            else:
                piece = self._stream.read_chunk_size = self._context.intake.piece_bytes
                coming = asyncio.ensure_future(self._stream.read_bytes(piece, partial=True))
            coming.add_done_callback(self._read)
        except OSError as error:
            # The stream is closed, or has just found out that it has to be: by what is no TLS, say.
            self.cut()
            error.__traceback__ = None  # which holds this frame, and the stream holds the error
        except Exception:
            log.exception("connection failed", extra=self.who())
            self.cut()

    def _take_in(self, data: bytes) -> None:
        protocol, context = self.protocol, self._context
        phase, has_message = protocol.phase, False
        for event in protocol.receive(data, context.clock(), context.limits):
            if isinstance(event, Pong):
                self.awaiting_pong = False
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

    async def _hold_back(self, inbound: Inbound) -> bytes:
        """Read no further until there is room again, the device has gone, or a challenge wants its pong. Nothing is
        read meanwhile, and so b"" is returned."""
        context = self._context
        self.protocol.pause(context.clock())
        context.flusher.watch(self)
        while (full := inbound.full()) is not None:
            await full.wait_for_room()
        self.protocol.resume(context.clock(), context.limits)
        self._unwatch()
        return b""

    def _on_stream_closed(self) -> None:
        """Nothing more comes. What has come before may not be taken in yet; :meth:`_read` finds the end behind it."""
        self.protocol.peer_has_gone(self._context.clock(), self._context.limits)
        self._wake()

    def _wake(self) -> None:
        """If it waits for room, it looks again at why."""
        if self._inbound is not None:
            self._inbound.wake()
