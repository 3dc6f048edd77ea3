"""A connection's socket: what is read from it and written to it, and whether its device is alive. On the IOLoop."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence

from ..counters import count
from ..presence.grants import Grant
from ..rules.audiences import Audience, audiences_of
from ..rules.box import LaneName
from ..rules.close_codes import NO_PONG, CloseReason
from ..rules.frames import Pong
from ..rules.identity import DeviceIdentity
from ..rules.terms import Terms
from .details import Taken
from .device_context import DeviceContext
from .device_socket import DeviceSocket
from .feed import BoxFeed
from .inbound import Inbound
from .outbox import MOST_PER_TAKE
from .protocol import OPEN, PAUSED, WRITE_TIMEOUT, DeviceProtocol
from .queue import to_write_of

log = logging.getLogger("cocoa.device")


class SocketIO(ABC):
    """The half of a connection that reads and writes its socket, as the protocol says. Implements ``flusher.Flushed``;
    IOLoop thread only.

    While the lease of its grant is not valid, it writes no messages. It answers pings, and waits.

    :ivar misses_pong: a pong is overdue
    :ivar outcome: how the connection ended, in one word; "" while it is open
    """

    __slots__ = (
        "_box",
        "_context",
        "_holding",
        "_inbound",
        "_socket",
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
        wants_interim: bool,
    ) -> None:
        self._socket, self._context = socket, context
        self.identity, self.grant = identity, grant
        self.protocol = DeviceProtocol(context.clock(), context.unmask)
        self.outcome = ""
        self.flush_pending = False
        self.awaiting_pong = self.misses_pong = False
        self.due_tick = 0
        self._inbound: Inbound | None = None
        self._holding: asyncio.Task[None] | None = None  # while the socket is not read from
        self._wants_interim = wants_interim
        self._box: BoxFeed | None = None

    # -- the other half

    @abstractmethod
    def end(self, reason: CloseReason, keep_queued: bool = False) -> None:
        """Begin the closing handshake."""

    @abstractmethod
    def cut(self) -> None:
        """Close the socket now, in any phase. Idempotent."""

    @abstractmethod
    def _carry_out(self) -> None:
        """Do what the protocol has decided since the last call."""

    @abstractmethod
    def _hand_over(self) -> None:
        """Hand the queued messages over to a healthier connection of the device, if there is one."""

    def who(self) -> dict[str, object]:
        """The fields of every log line about this connection."""
        return {"device_id": self.identity.device_id, "conn": self.grant.generation.number}

    def _audiences(self) -> frozenset[Audience]:
        """Those of the device's newest token, for the mailbox."""
        return audiences_of(self._context.hub.identity_of(self.identity.device_id) or self.identity)

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

    # -- writing

    def has_nothing_to_write(self) -> bool:
        return self.protocol.write is None and not self.protocol.outbox.has_queued

    @property
    def _is_frozen(self) -> bool:
        """Whether other servers may hold the device now, as far as this one knows."""
        lease = self.grant.lease
        return lease.is_shared and not lease.is_valid(self._context.presence.clock())

    def now_ms(self) -> float:
        """See ``outbox.Taker``."""
        return self._context.wall_clock() * 1000

    def frame_of(self, payload: bytes, lane: LaneName, number: int) -> bytes | None:
        """See ``outbox.Taker``."""
        return None if self._box is None else self._box.frame_of(payload, lane, number)

    def note_expired(self, terms: Terms, body: bytes, timestamp_ms: int) -> None:
        """See ``outbox.Taker``."""
        if self._context.memory is not None and not terms.number:
            self._context.memory.note(body, timestamp_ms, self.identity.device_id, "expired")
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
        if (protocol.phase is OPEN or protocol.outbox.has_queued) and self._is_frozen:
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
        if self._context.events.live.sinks:
            self._show(protocol.outbox.taken())
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
        """The socket has not taken all of a write. The frames that it has not begun to take are written later."""
        protocol, socket, context = self.protocol, self._socket, self._context
        taken, committed = socket.progress(size)
        written = protocol.outbox.taken() if context.events.live.sinks else ()
        kept, (stamps, numbered) = protocol.blocked(size, taken, committed, socket.write_mark, context.clock())
        socket.take_back(size - kept)
        if written:
            self._show(written[: len(stamps) + protocol.outbox.begun])
        context.flusher.stamps += stamps
        if self._box is not None:
            self._note_written(self._box, numbered)
        context.flusher.watch(self)
        self._hand_over_if_slow()

    def _note_written(self, box: BoxFeed, numbered: int) -> None:
        """The socket has taken messages, with a mailbox.

        :param numbered: how many of them have a number
        """
        if numbered:
            box.given(numbered)
        elif self.has_nothing_to_write():
            box.written()

    def _show(self, written: Sequence[Taken]) -> None:
        """Notify watching operators that the socket has taken these messages, or has begun to. An error costs only
        these events."""
        context = self._context
        identity = context.hub.identity_of(self.identity.device_id) or self.identity
        try:
            shown = [to_write_of(each.waiting) for each in written]
            messages = [message for message in shown if message is not None]
            context.events.live.written(identity, messages, context.wall_clock())
        except Exception:
            log.exception("event failed", extra=self.who())

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

    def _hand_over_if_slow(self) -> None:
        if self._context.hub.has_stand_bys and self.protocol.outbox.is_over_half(self._context.limits().outbox):
            self._hand_over()

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
        """End the connection because of an internal error. Call it while the exception is being handled."""
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
