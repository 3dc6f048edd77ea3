"""A device's connection from the upgrade to the end: reads frames, writes the outbox, keeps the rules of contract
section 4. The rules themselves are in ``rules/``; nothing here decides who may connect or where a message goes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TypeAlias

from tornado.iostream import IOStream, StreamClosedError

from ..counters import count
from ..presence.port import Health
from ..presence.rules import Grant
from ..rules import frames
from ..rules.box import Place
from ..rules.close_codes import NO_PONG, RATE_LIMITED, SLOW_CONSUMER, CloseReason
from ..rules.identity import DeviceIdentity
from ..rules.labels import CLOSE_CODES
from ..rules.rate import RateBucket
from .audio_session import AudioSession
from .device_context import DeviceContext
from .feed import BoxFeed
from .inbound import Inbound
from .outbox import Outbox, OutboxLimits
from .sockets import (
    all_is_acknowledged,
    half_close,
    limit_kernel_buffer,
    may_have_unread,
    peer_has_closed,
    write_mark,
)
from .uplink import Uplink

LINGER_S = 2.0  # how long a faulty client is heard out after its close frame
MAX_BYTES_AFTER_THE_END = 16 * 1024 * 1024  # so much is read and thrown away, that our close frame may arrive

Full: TypeAlias = "Uplink | AudioSession | DeviceConnection"
"""What a connection waits for before it is read further; its own place in the intake of all is the last of them."""

log = logging.getLogger("cocoa.device")


class DeviceConnection:
    """One device's WebSocket. Implements ``hub.Client`` and ``keepalive.Pinged``; IOLoop thread only.

    :meth:`open` starts it. ``is_open`` is True from the registration to the first of: a close of either
    side, an error, a timeout. At that moment the Hub forgets the connection, and the device can connect again, though
    the closing handshake may still be under way.
    """

    __slots__ = (
        "_box",
        "_bytes_after_the_end",
        "_challenged",
        "_close_frame",
        "_context",
        "_deadline",
        "_excused",
        "_expires_at",
        "_heard_at",
        "_holding",
        "_in_rate",
        "_inbound",
        "_is_deaf",
        "_outbox",
        "_peer_closed",
        "_peer_gone",
        "_ping_waits",
        "_pinged_at",
        "_pong",
        "_reader",
        "_round_trip_s",
        "_stream",
        "_under_way",
        "_urgent",
        "_wants_interim",
        "_write_at",
        "_write_mark",
        "awaiting_pong",
        "due_tick",
        "flush_pending",
        "grant",
        "identity",
        "is_open",
        "is_paused",
        "is_writing",
        "outcome",
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
        self.is_open = True
        self.is_paused = False
        self.is_writing = False
        self.flush_pending = False
        self.awaiting_pong = False
        self.due_tick = 0
        self.outcome = ""
        self._expires_at = 0.0
        self._challenged = False
        self._excused = False
        self._heard_at = context.clock()
        self._pinged_at: float | None = None  # while its pong has not come
        self._round_trip_s: float | None = None
        self._ping_waits = False  # it has not left yet, or is in a write that the socket has not taken
        self._peer_closed = False  # its close frame has come
        self._peer_gone = False  # its side of the TCP connection is closed, seen before all was read
        self._is_deaf = False  # what it sends is thrown away: it can't be read as frames, or there is too much of it
        self._bytes_after_the_end = 0
        self._under_way = 0  # bytes of it that the intake counts
        self._urgent = b""
        self._pong: bytes | None = None
        self._close_frame: bytes | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._reader = frames.FrameReader(context.limits.max_message_bytes)
        self._outbox = Outbox()
        self._in_rate = RateBucket()
        self._inbound: Inbound | None = None
        self._holding: asyncio.Task[bytes] | None = None  # while it is not read from
        self._wants_interim = wants_interim
        self._box = None if context.mail is None else BoxFeed(context.mail, self, identity.device_id, after)
        self._write_mark = (0, 0)
        self._write_at = 0.0

    def __repr__(self) -> str:
        state = "open" if self.is_open else self.outcome or "closing"
        return f"<DeviceConnection #{self.grant.generation.number} {self.identity.device_id!r} {state}>"

    # -- what the Hub asks for

    @property
    def health(self) -> Health:
        """See ``hub.Client``. The round trip begins when the ping is queued, and ends when the pong is read."""
        return Health(self._context.clock() - self._heard_at, self._round_trip_s, len(self._outbox))

    def send(self, frame: bytes, timestamp_ms: int, interim_of: str = "") -> None:
        """Queue one frame for this loop turn's write. A full outbox closes the connection with 1013."""
        if not self.is_open:
            return
        limits = self._context.limits.outbox
        fits = self._outbox.push(frame, timestamp_ms, limits, interim_of)
        if not fits and not self.is_writing:
            # One batch may hold more for a device than may wait for it, and the socket has not been asked yet.
            self.flush()
            fits = self._outbox.push(frame, timestamp_ms, limits, interim_of)
        if not fits:
            fits, dropped = self._outbox.squeeze_in(frame, timestamp_ms, limits, interim_of)
            if dropped:
                count(self._context.counters.dropped, "interim", dropped)
        if fits:
            if not self.flush_pending:
                self._context.flusher.add(self)
        elif not interim_of:
            self._context.counters.outbox_overflows += 1
            self._lose("overflow", 1)
            self.end(SLOW_CONSUMER)

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
        self._challenged = True
        if self.is_writing:
            self._see_progress(self._context.clock())
        self._send_ping()
        self._wake()

    # -- what the feed from its box asks for

    def has_nothing_to_write(self) -> bool:
        return not (self.is_writing or self._outbox.has_queued)

    def outbox_limits(self) -> OutboxLimits:
        return self._context.limits.outbox

    # -- what the wheel and the calendar ask for

    def ping(self) -> None:
        """Send a ping at this loop turn, ahead of the outbox; only an excuse from now on counts for it."""
        self._excused = False
        self._send_ping()

    def _send_ping(self) -> None:
        if self.is_open:
            self._urgent = frames.PING
            self._ping_waits = True
            self._pinged_at = self._context.clock()
            self._context.flusher.add(self)

    def has_excuse(self) -> bool:
        """See ``keepalive.Pinged``."""
        excused, self._excused = self._excused, False
        # After a pause of the process, or a long turn, its pong may lie in the socket.
        return excused or self._ping_waits or self.is_paused or may_have_unread(self._stream)

    def expire(self) -> None:
        """No pong came in time."""
        self.end(NO_PONG)

    def check_socket(self, now: float) -> None:
        """Look at a socket that is busy with a write, or that is not read from."""
        if self.is_paused and not self._peer_gone:
            self._look_at_the_unread()
        if self.is_writing and not self._see_progress(now) and self._is_stuck(now):
            self._finish("write_timeout", "lost")
            self.abort()

    def _is_stuck(self, now: float) -> bool:
        """Contract section 4: a socket that has taken no byte for the write wait is closed."""
        return now - self._write_at >= self._context.limits.write_wait_s

    def _see_progress(self, now: float) -> bool:
        mark = write_mark(self._stream)
        if mark == self._write_mark:
            return False
        self._write_mark, self._write_at, self._heard_at = mark, now, now
        self._give_sign_of_life()
        return True

    def _look_at_the_unread(self) -> None:
        """The device has said more than may be held, so neither its end nor its pong can be read."""
        if peer_has_closed(self._stream):
            # It will not wait for room to be made: what it has said is read to the end, and the end with it.
            self._peer_gone = True
            self._wake()
        elif not self._ping_waits and all_is_acknowledged(self._stream):
            # The ping has arrived: its kernel says so, and that is all that can be had.
            self._give_sign_of_life()

    # -- the life of the connection

    def open(self, expires_at: float) -> None:
        """Register with presence and the Hub, and start to read. KeyError if the grant has no slot.

        :param expires_at: Unix seconds at which the token's time is over, the leeway included
        """
        context = self._context
        context.presence.register(self.grant)
        context.hub.register(self)
        context.wheel.add(self, self.grant.generation.number)
        context.calendar.add(self, expires_at)
        self._expires_at = expires_at
        limit_kernel_buffer(self._stream)
        self._stream.set_close_callback(self._on_stream_closed)
        context.sockets.add(self)
        asyncio.get_running_loop().call_soon(self._read)
        if self._box is not None:
            self._box.open()

    def end(self, reason: CloseReason, keep_queued: bool = False) -> None:
        """Begin the closing handshake and free the slot at once. Nothing happens if it has begun already.

        :param keep_queued: write what is queued before the close frame, instead of dropping it
        """
        if not self.is_open:
            return
        self._finish(reason.outcome, str(reason.code), keep_queued)
        self._send_close(frames.close_frame(reason.code, reason.text))

    def cut(self) -> None:
        """The connection is over, whatever state it is in, and its socket is closed. Idempotent.

        Nothing refers to it in a circle from then on, so that it is freed at once.
        """
        self._finish("lost", "lost")
        self._wake()
        self.abort()
        if not self.is_writing:  # else what the socket has taken is yet to be told to the box
            self._box = None
        self._context.sockets.discard(self)

    def abort(self) -> None:
        """Close the socket without further ado."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._context.flusher.forget(self)
        if not self._stream.closed():
            self._stream.close()

    def flush(self) -> None:
        """Write what is queued, all of it in one go, unless the socket is still busy with the last one."""
        self.flush_pending = False
        if self.is_writing or self._stream.closed():
            return
        if self._urgent or self._pong is not None or self._close_frame:
            data, stamps = self._gather()
        elif self._outbox.has_queued:
            data, stamps = self._take()
        else:
            self._close_if_done()
            return
        if stamps:
            self._context.flusher.stamps += stamps
        taken = self._context.write_at_once(self._stream, data)
        if taken == len(data):
            # The way of nearly every message: nothing can have been queued meanwhile.
            self._ping_waits = False
            self._outbox.written()
            if self._box is not None:
                self._box.written()
            if self._close_frame is not None:
                self._close_if_done()
        else:
            self._write_rest(data[taken:] if taken else data)

    def _write_rest(self, data: bytes) -> None:
        """What the socket has not taken at once is for the stream to write, as soon as it can."""
        try:
            written = self._stream.write(data)
        except StreamClosedError:
            return
        if written.done():
            self._ping_waits = False
            self._written(written)
        else:
            self.is_writing = True
            self._write_mark, self._write_at = write_mark(self._stream), self._context.clock()
            self._context.flusher.watch(self)
            written.add_done_callback(self._written)

    def _gather(self) -> tuple[bytes, list[int]]:
        """Control frames first, then the outbox, then the close frame: after it nothing is sent any more."""
        head, self._urgent = self._urgent, b""
        if self._pong is not None:
            head, self._pong = head + frames.pong_frame(self._pong), None
        data, stamps = self._take() if self._outbox.has_queued else (b"", [])
        tail = self._close_frame or b""
        if self._close_frame:
            self._close_frame = b""
        return head + data + tail if head or tail else data, stamps

    def _take(self) -> tuple[bytes, list[int]]:
        if self._box is not None:
            self._box.taken()
        return self._outbox.take()

    def _written(self, written: asyncio.Future[None]) -> None:
        if self.is_writing:
            self.is_writing = False
            if self._ping_waits and not self._urgent:
                self._ping_waits, self._excused = False, True
            self._unwatch()
        if written.cancelled() or written.exception() is not None:
            self._outbox.written()
        else:
            self._all_written()
        if self._stream.closed() and not self.is_open:
            self._box = None

    def _all_written(self) -> None:
        """The socket has taken everything. Where the stream is closed, the reading side sees to the rest."""
        self._outbox.written()
        if self._box is not None:
            self._box.written()
        if self._urgent or self._pong is not None or self._outbox.has_queued or self._close_frame:
            self._context.flusher.add(self)
        else:
            self._close_if_done()

    def _unwatch(self) -> None:
        if not self.is_writing and not self.is_paused:
            self._context.flusher.unwatch(self)

    def _close_if_done(self) -> None:
        if self._close_frame != b"":
            return
        # The server closes the TCP connection once both close frames have passed (RFC 6455 section 7.1.1).
        if self._peer_closed:
            self.abort()
        elif self._is_deaf:
            # What a faulty client still sends is not read as frames, its close frame neither. The end of our side
            # makes it close; to close the socket while it is sending would reset it, and our close frame be lost.
            half_close(self._stream)
            self._abort_after(min(LINGER_S, self._context.limits.write_wait_s))

    # -- what the device sends

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
            if self._full() is not None:
                coming = self._holding = asyncio.get_running_loop().create_task(self._hold_back())
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
        if self._peer_closed or not self.is_open:
            self._after_the_end(data)
        else:
            self._receive(data)

    def _full(self) -> Full | None:
        """What takes no more from the device for now. Of one that has gone, all that it has said is read."""
        if self._peer_gone or not self.is_open:
            return None
        held = 0
        if self._inbound is not None:
            full = self._inbound.full(self._challenged)
            if full is not None:
                return full
            held = self._inbound.held_bytes
        if not self._under_way and not held:  # the way of nearly every message
            return None
        return None if self._context.intake.may_read(self, self._under_way, held) else self

    async def wait_for_room(self) -> None:
        """In the intake of all. Return when something has changed, as for :class:`Uplink`."""
        await self._context.intake.wait_for_room(self, self._under_way)

    async def _hold_back(self) -> bytes:
        """Read no further until there is room again, the device has gone, or a challenge wants its pong. Nothing is
        read meanwhile, and so b"" is returned."""
        self.is_paused = True
        since = self._context.clock()
        self._context.flusher.watch(self)
        while (full := self._full()) is not None:
            await full.wait_for_room()
        self.is_paused = False
        self._excused = True
        # What it may have said meanwhile comes all at once now.
        self._in_rate.credit(self._context.limits.inbound, self._context.clock() - since)
        self._unwatch()
        return b""

    def _receive(self, data: bytes) -> None:
        now = self._heard_at = self._context.clock()
        events = self._reader.feed(data)
        for event in events:
            self._on_event(event, now)
            if not self.is_open:
                return
        if self._under_way or self._reader.in_message:
            self._count_under_way(bool(events))
        error = self._reader.error
        if error is not None:
            self._is_deaf = True
            self.end(CloseReason(error.close_code, error.reason, "protocol_error"))
        elif self._reader.small_fragments and not self._pays_for_fragments(now):
            self._is_deaf = True
            self.end(RATE_LIMITED)

    def _count_under_way(self, has_ended: bool) -> None:
        """Tell the intake what has arrived of a message that has not ended.

        :param has_ended: another one has, just now
        """
        intake, size = self._context.intake, self._reader.held_bytes
        change, self._under_way = size - self._under_way, size
        intake.under_way(change)
        if has_ended:
            intake.end_turn(self)

    def _pays_for_fragments(self, now: float) -> bool:
        """Small fragments make no event; each counts as a message, or a device could send any number of them."""
        fragments, self._reader.small_fragments = self._reader.small_fragments, 0
        return self._in_rate.take(self._context.limits.inbound, now, fragments)

    def _on_event(self, event: frames.Event, now: float) -> None:
        if isinstance(event, frames.Close):
            self._on_close_frame(event)
            return
        if not self._in_rate.take(self._context.limits.inbound, now):
            self._is_deaf = True
            self.end(RATE_LIMITED)
        elif isinstance(event, frames.Pong):
            self._on_pong(now)
        elif isinstance(event, frames.Ping):
            # Only the latest ping needs an answer (RFC 6455 section 5.5.3).
            self._pong = event.data
            self._context.flusher.add(self)
        elif isinstance(event, frames.Text):
            self._inbound = self._inbound or self._make_inbound()
            self._inbound.text(event.text, self._peer_gone)
        else:
            self._inbound = self._inbound or self._make_inbound()
            self._inbound.binary(event.data)

    def _make_inbound(self) -> Inbound:
        return Inbound(self, self.identity, self._context, self._box, self._wants_interim)

    def _on_pong(self, now: float) -> None:
        self.awaiting_pong = self._excused = False
        if self._pinged_at is not None:
            self._round_trip_s, self._pinged_at = now - self._pinged_at, None
        self._give_sign_of_life()

    def _give_sign_of_life(self) -> None:
        if self._challenged:
            self._challenged = False
            self._context.presence.answered(self.grant)

    def _on_close_frame(self, event: frames.Close) -> None:
        self._peer_closed = True
        self._finish("closed_by_device", str(event.code or 1005))
        self._send_close(frames.close_frame(event.code, ""))

    def _after_the_end(self, data: bytes) -> None:
        """We have closed: of what still comes in only a close frame matters. A faulty client's is drained unread, so
        that our close frame is not lost to a TCP reset."""
        self._bytes_after_the_end += len(data)
        if self._bytes_after_the_end > MAX_BYTES_AFTER_THE_END:
            self.abort()
        if self._is_deaf or self._peer_closed:
            return
        events = self._reader.feed(data)
        cost = len(events) + self._reader.small_fragments
        self._reader.small_fragments = 0
        self._peer_closed = any(isinstance(event, frames.Close) for event in events)
        pays = self._in_rate.take(self._context.limits.inbound, self._context.clock(), cost)
        self._is_deaf = self._reader.error is not None or not pays
        if (self._peer_closed or self._is_deaf) and not self.is_writing:
            self._close_if_done()

    def _send_close(self, frame: bytes) -> None:
        self._close_frame = frame
        self._context.flusher.add(self)
        self._abort_after(self._context.limits.write_wait_s)

    def _abort_after(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(seconds, self.abort)

    def _on_stream_closed(self) -> None:
        """Nothing more comes. What has come before may not be taken in yet; :meth:`_read` finds the end behind it."""
        self._peer_gone = True
        self._wake()

    def _wake(self) -> None:
        """Whoever waits for room looks again at why."""
        if self._inbound is not None:
            self._inbound.wake()
        self._context.intake.wake(self)

    def _finish(self, outcome: str, code: str, keep_queued: bool = False) -> None:
        """The one way out of ``is_open``: everything that others keep of this connection is taken back, once."""
        if not self.is_open:
            return
        self.is_open = False
        self.outcome = outcome
        context = self._context
        context.hub.unregister(self)
        context.presence.release(self.grant)
        context.calendar.remove(self, self._expires_at)
        context.wheel.remove(self)
        dropped, hypotheses = (0, 0) if keep_queued else self._outbox.discard()
        self._lose(outcome, dropped)
        if hypotheses:
            count(context.counters.dropped, "interim", hypotheses)
        if self._under_way:
            context.intake.under_way(-self._under_way)
            self._under_way = 0
        context.intake.wake(self)
        context.intake.forget(self)
        if self._inbound is not None:
            self._inbound.close()
            self._inbound = None  # it knows this connection: no circle is left for the collector
        if self._box is not None:
            self._box.close()
        count(context.counters.closed, code if code in CLOSE_CODES else "other")
        fate = "dropped" if self._box is None else "left_in_box"
        log.info("device disconnected", extra=self.who() | {"outcome": outcome, "code": code, fate: dropped})

    def _lose(self, reason: str, messages: int) -> None:
        """Messages that the socket will not take. With a mailbox they stay in the box, and nothing is lost."""
        if self._box is not None:
            self._context.counters.left_in_box += messages
        elif messages:
            count(self._context.counters.dropped, reason, messages)

    def who(self) -> dict[str, object]:
        """What every log line about this connection says."""
        return {"device_id": self.identity.device_id, "conn": self.grant.generation.number}
