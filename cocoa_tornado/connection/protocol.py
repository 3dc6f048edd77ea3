"""One device's WebSocket without I/O: bytes in, events out, what to send, and a deadline. No socket, no loop, no clock.

A connection's decisions are made here, and ``connection.py`` carries them out. ``now`` is monotonic time in seconds.
The shell calls :meth:`DeviceProtocol.data_to_send`, writes, and reports the result with :meth:`~DeviceProtocol.sent` or
:meth:`~DeviceProtocol.blocked`; what the socket has not begun to take stays queued. It passes what it reads to
:meth:`~DeviceProtocol.receive`, and calls :meth:`~DeviceProtocol.on_deadline` at :attr:`~DeviceProtocol.deadline`.

The phases. A connection only moves down this table.

==========  ============================================  =============================  ==============================
phase       means                                         reads                          writes
==========  ============================================  =============================  ==============================
OPEN        registered; both sides may send               everything                     control frames, then messages
CLOSING     our close frame is queued or written; the     only a close frame, and        what is queued, then the close
            client's is awaited                           judges the rest                frame, then nothing
DISCARDING  the same, of a client that broke the          nothing: counts and discards   as CLOSING
            protocol or sent too much
ANSWERED    the client's close frame has been read        nothing: counts and discards   as CLOSING
LINGERING   DISCARDING, and our close frame is written:   nothing: counts and discards   nothing: our side of the TCP
            the client is given time to read it                                          connection is shut
CLOSED      the socket is closed, or will be at once      nothing                        nothing
==========  ============================================  =============================  ==============================

==================  ==========================================================================  =======================
from                event                                                                       to
==================  ==========================================================================  =======================
OPEN                :meth:`end`: drain, no pong, token expired, replaced, slow consumer, ...    CLOSING
OPEN, CLOSING       an invalid frame (1002, 1007, 1009); more than the rate allows (1008)       DISCARDING
OPEN, CLOSING       the client's close frame; in OPEN it is echoed                              ANSWERED
DISCARDING          our close frame is written                                                  LINGERING
ANSWERED            our close frame is written                                                  CLOSED
all but OPEN        the deadline: ``write_wait_s`` after the close frame was queued, then 2 s   CLOSED
                    after LINGERING has begun (``write_wait_s``, if that is less)
all but OPEN        more than ``MAX_DISCARDED_BYTES`` arrived since OPEN ended                  CLOSED
any                 :meth:`lose`: the socket failed, or took no byte for ``write_wait_s``       CLOSED
==================  ==========================================================================  =======================

Independent of the phase:

- ``reading``: NORMAL; PAUSED while what the client has sent waits for room; TO_END once the client has closed its side
  of the TCP connection: what it has sent is then read to the end, without bounds.
- ``write``: None, or the write that the socket has not taken completely; nothing else is written meanwhile.
- ``heartbeat.state`` of the last ping: QUEUED, WRITING, SENT. Two flags belong to it: ``challenged``, presence waits
  for a sign of life, which is a pong, a byte taken, or everything acknowledged by the client's kernel while PAUSED; and
  ``delayed``, the pong may be late because of this side.
- Two limits of a connection in any phase are no deadline here, because one timer of the process checks them:
  :meth:`is_stuck`, and the time for a pong, which ``keepalive.py`` measures. :meth:`pong_may_be_late` extends it.
- In the shell, ``awaiting_pong`` and ``due_tick`` belong to the wheel of ``keepalive.py``, and ``flush_pending`` to
  ``flusher.py``.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

from ..rules import frames
from ..rules.close_codes import RATE_LIMITED, SLOW_CONSUMER, CloseReason
from ..rules.frames import Binary, Close, FrameReader, Ping, Pong, Text, Unmask, xor_mask
from ..rules.rate import RateBucket
from ..rules.terms import Terms
from .heartbeat import QUEUED, SENT, Heartbeat
from .limits import DeviceLimits
from .making_room import Squeezed
from .outbox import Given, Outbox, Taker
from .queue import Queued

LINGER_S: Final = 2.0
"""How long a client that broke the protocol may take to read our close frame and to close."""
MAX_DISCARDED_BYTES: Final = 16 * 1024 * 1024
"""Closing a socket with unread bytes resets the connection, and our close frame may be lost: up to this much is read
first."""

PROTOCOL_ERROR: Final = "protocol_error"
CLOSED_BY_DEVICE: Final = "closed_by_device"
LOST: Final = "lost"
WRITE_TIMEOUT: Final = "write_timeout"
NO_CODE: Final = 1005  # RFC 6455 section 7.1.5: logged for a close frame without a code

_EMPTY_PONG: Final = b"\x8a\x80"  # from a client; the mask follows
_EMPTY_PONG_BYTES: Final = 6


class Phase(enum.IntEnum):
    """See the table in the module's docstring."""

    OPEN = enum.auto()
    CLOSING = enum.auto()
    DISCARDING = enum.auto()
    ANSWERED = enum.auto()
    LINGERING = enum.auto()
    CLOSED = enum.auto()


class Reading(enum.Enum):
    """How the socket is read from; see the module."""

    NORMAL = enum.auto()
    PAUSED = enum.auto()
    TO_END = enum.auto()


# A global name is looked up faster than an enum's member.
OPEN: Final = Phase.OPEN
CLOSING: Final = Phase.CLOSING
DISCARDING: Final = Phase.DISCARDING
ANSWERED: Final = Phase.ANSWERED
LINGERING: Final = Phase.LINGERING
CLOSED: Final = Phase.CLOSED
NORMAL: Final = Reading.NORMAL
PAUSED: Final = Reading.PAUSED
TO_END: Final = Reading.TO_END

Event: TypeAlias = Text | Binary | Pong
"""The events that :meth:`DeviceProtocol.receive` returns."""

_ONE_PONG: Final[Sequence[Event]] = (Pong(b""),)


class Ending(NamedTuple):
    """How a connection left OPEN.

    :ivar outcome: one word for the log; :ivar code: the close code, or "lost" if there is none
    :ivar dropped: what was queued and is not sent
    """

    outcome: str
    code: str
    dropped: Sequence[Queued]


class Write(NamedTuple):
    """A write that the socket has not taken completely.

    :ivar mark: changes whenever the socket takes a byte; :ivar since: when it last did
    """

    mark: tuple[int, int]
    since: float


class Closing:
    """State of a connection that is no longer OPEN.

    :ivar frame: our close frame, until the socket has begun to take it
    :ivar deadline: when the socket is closed at the latest
    """

    __slots__ = ("deadline", "discarded_bytes", "ending", "frame")

    def __init__(self, ending: Ending, frame: bytes, deadline: float | None) -> None:
        self.ending, self.frame, self.deadline = ending, frame, deadline
        self.discarded_bytes = 0


class DeviceProtocol:
    """See the module.

    An idle connection has no reader, no rate bucket and no closing: they are created when they are first needed.

    :param unmask: as for :class:`~cocoa_tornado.rules.frames.FrameReader`
    :ivar phase: only :meth:`lose` and the transitions of the table change it
    :ivar outbox: while the phase is OPEN, the shell may push to it directly
    :ivar closing: None while the phase is OPEN
    """

    __slots__ = (
        "_paused_at",
        "_pong",
        "_rate",
        "_reader",
        "_unmask",
        "closing",
        "heartbeat",
        "outbox",
        "phase",
        "reading",
        "write",
    )

    def __init__(self, now: float, unmask: Unmask = xor_mask) -> None:
        self._unmask = unmask
        self.phase = OPEN
        self.reading = NORMAL
        self.outbox = Outbox()
        self.heartbeat = Heartbeat(now)
        self.write: Write | None = None
        self.closing: Closing | None = None
        self._reader: FrameReader | None = None
        self._rate: RateBucket | None = None
        self._pong = b""  # the answer to the client's last ping, until it is passed to the socket
        self._paused_at = 0.0

    def __repr__(self) -> str:
        return f"<DeviceProtocol {self.phase.name} {self.outbox!r}>"

    # -- sending

    @property
    def has_to_send(self) -> bool:
        """Whether :meth:`data_to_send` would return anything."""
        if self.closing is not None:
            return bool(self.closing.frame)
        return bool(self.outbox.has_queued or self._pong or self.heartbeat.state is QUEUED)

    def data_to_send(self, taker: Taker) -> bytes:
        """Return what to write now. Then call :meth:`sent` or :meth:`blocked`. Don't call it during a write.

        Control frames come first, then messages, then the close frame. Nothing is sent after that.
        """
        if self._pong or self.heartbeat.state is QUEUED or self.closing is not None:
            return self._with_control_frames(taker)
        return self.outbox.take(taker)

    def control_frames(self) -> bytes:
        """Return the control frames to write now, without messages and without a close frame. Then call
        :meth:`control_frames_sent` or :meth:`control_frames_blocked`. Don't call it during a write."""
        data, self._pong = self.heartbeat.take() + self._pong, b""
        return data

    def control_frames_sent(self) -> None:
        """The socket has taken the last :meth:`control_frames`."""
        if self.heartbeat.state is not SENT:
            self.heartbeat.written(after_a_wait=False)

    def control_frames_blocked(self, mark: tuple[int, int], now: float) -> None:
        """The socket has not taken all of the last :meth:`control_frames`. Call :meth:`sent` when it has."""
        self.write = Write(mark, now)

    def _with_control_frames(self, taker: Taker) -> bytes:
        if self.phase is CLOSED:
            return b""
        head, self._pong = self.heartbeat.take() + self._pong, b""
        data = self.outbox.take(taker)
        tail = self._close_frame_to_send
        return head + data + tail if head or tail else data

    @property
    def _close_frame_to_send(self) -> bytes:
        """The close frame, if the current write contains it: the last messages are in the same write."""
        return self.closing.frame if self.closing is not None and self.outbox.has_taken_all else b""

    def sent(self) -> Given:
        """The socket has taken all of the last :meth:`data_to_send`, or the rest of the write. Unless the phase is
        OPEN, call :meth:`advance`.

        :return: the messages that it has taken now
        """
        if self.heartbeat.state is not SENT:
            self.heartbeat.written(after_a_wait=self.write is not None)
        if self.write is not None:
            self.write = None
            return self.outbox.written()
        if self.closing is not None and self.outbox.has_taken_all:
            self.closing.frame = b""
        return self.outbox.given_all()

    def blocked(self, size: int, taken: int, committed: int, mark: tuple[int, int], now: float) -> tuple[int, Given]:
        """The socket has not taken all of the last :meth:`data_to_send`. Frames that it has not begun to take, except
        for control frames, are queued again: a ping, a close frame or a message of high priority may overtake them.

        :param size: of what :meth:`data_to_send` returned
        :param taken: how many bytes of it the socket has taken
        :param committed: how many bytes of it the socket has taken, or must be given unchanged
        :return: how many bytes of it remain in the write, and the messages that the socket has taken completely
        """
        self.write = Write(mark, now)
        tail = len(self._close_frame_to_send)
        head = size - self.outbox.taken_bytes - tail
        kept, given = self.outbox.given(taken - head, committed - head)
        kept += head
        if tail and committed > size - tail:
            assert self.closing is not None
            self.closing.frame, kept = b"", size
        return kept, given

    def progressed(self, mark: tuple[int, int], now: float) -> bool:
        """Whether the socket has taken a byte of the write since the last call. That is a sign of life."""
        if self.write is None or self.write.mark == mark:
            return False
        self.write = Write(mark, now)
        self.heartbeat.heard_at = now
        return True

    def is_stuck(self, now: float, limits: DeviceLimits) -> bool:
        """Contract section 4: a socket that takes no byte for the write wait is closed."""
        return self.write is not None and now - self.write.since >= limits.write_wait_s

    def squeeze_in(
        self,
        body: bytes,
        timestamp_ms: int,
        terms: Terms | None,
        now: float,
        limits: DeviceLimits,
        *,
        may_drop_low: bool,
    ) -> Squeezed:
        """Queue a message that the outbox had no room for, by dropping others. If that is not enough, and it may not be
        dropped itself, the client is too slow, and the connection ends."""
        squeezed = self.outbox.squeeze_in(body, timestamp_ms, limits.outbox, terms, may_drop_low=may_drop_low)
        if not (squeezed.queued or squeezed.interims or squeezed.lows):
            self.end(SLOW_CONSUMER, now, limits)
        return squeezed

    def all_acknowledged(self) -> bool:
        """The client's kernel has acknowledged all that was written. While its pong can't be read, that is a sign of
        life, if it includes the ping; True if presence has to be notified."""
        return self.reading is PAUSED and self.heartbeat.state is SENT and self.heartbeat.answer_challenge()

    # -- pings

    def ping(self, now: float) -> None:
        """Queue a ping of the keepalive."""
        if self.phase is OPEN:
            self.heartbeat.ping(now)

    def challenge(self, now: float) -> None:
        """Queue a ping on behalf of presence."""
        if self.phase is OPEN:
            self.heartbeat.challenge(now)

    def pong_may_be_late(self, *, has_unread: bool, is_acknowledged: bool, now: float) -> bool:
        """Whether a pong that is overdue may have come, or may be late because of this side; see ``keepalive.Pinged``.

        While PAUSED, the pong can't be read. Instead the client's kernel has to acknowledge what was written, and gets
        another ping to acknowledge: a client that has vanished while PAUSED is not kept until the kernel gives up.

        :param has_unread: something lies in the socket that has not been read
        :param is_acknowledged: the client's kernel has acknowledged all that was written
        """
        if self.heartbeat.take_delay():
            return True
        if self.reading is not PAUSED:
            return has_unread
        if is_acknowledged:
            self.ping(now)
        return is_acknowledged

    # -- receiving

    @property
    def may_pause(self) -> bool:
        """Whether reading may wait for room. Once the client has disconnected, everything that it has sent is read."""
        return self.phase is OPEN and self.reading is not TO_END

    @property
    def under_way_bytes(self) -> int:
        """How many bytes of an unfinished message are held."""
        reader = self._reader
        return 0 if reader is None or not reader.in_message else reader.held_bytes

    def pause(self, now: float) -> None:
        """Nothing is read until :meth:`resume`. Nothing happens unless :attr:`may_pause`."""
        if self.may_pause and self.reading is not PAUSED:
            self.reading, self._paused_at = PAUSED, now

    def resume(self, now: float, limits: DeviceLimits) -> None:
        """Read again. The client's pong may have waited in the socket, and all data that it has sent arrives at
        once."""
        if self.reading is PAUSED:
            self.reading = NORMAL
            self.heartbeat.delayed = True
            if self._rate is not None:
                self._rate.credit(limits.inbound, now - self._paused_at)

    def peer_has_gone(self, now: float, limits: DeviceLimits) -> None:
        """The client has closed its side of the TCP connection. Not everything may be read yet."""
        self.resume(now, limits)
        self.reading = TO_END

    def receive(self, data: bytes, now: float, limits: DeviceLimits) -> Sequence[Event]:
        """Return what the client sends, in order. How its bytes are split makes no difference.

        If it breaks the protocol, sends too much, or closes, only earlier messages are returned, and the phase is no
        longer OPEN.
        """
        if self.closing is not None:
            self._hear_out(self.closing, data, now, limits)
            return ()
        self.heartbeat.heard_at = now
        # An idle device sends nothing but answers to pings, for which the reader would take longer.
        is_empty_pong = len(data) == _EMPTY_PONG_BYTES and data.startswith(_EMPTY_PONG)
        if is_empty_pong and self._reader is None and self.heartbeat.pong(now):
            return _ONE_PONG
        return self._read(data, now, limits)

    def _hear_out(self, closing: Closing, data: bytes, now: float, limits: DeviceLimits) -> None:
        """Read on for the client's close frame, or only so that ours may arrive."""
        closing.discarded_bytes += len(data)
        if closing.discarded_bytes > MAX_DISCARDED_BYTES:
            self.lose(LOST)
        elif self.phase is CLOSING:
            self._read(data, now, limits)

    def _read(self, data: bytes, now: float, limits: DeviceLimits) -> Sequence[Event]:
        reader = self._reader
        if reader is None:
            reader = self._reader = FrameReader(limits.max_message_bytes, self._unmask)
        events: list[Event] = []
        found = reader.feed(data)
        # Small fragments are no events, but each counts as a message: otherwise a client could send any number.
        fragments, paid = reader.small_fragments, 0
        if fragments:
            reader.small_fragments = []
        for at, event in enumerate(found):
            due = bisect_right(fragments, at, paid) - paid if fragments else 0
            if due and not self._pays(due, now, limits):
                return events
            paid += due
            if isinstance(event, Close):
                self._peer_closes(event, now, limits)
                return events
            is_answer = isinstance(event, Pong) and self.heartbeat.pong(now)
            # The pong that answers our ping does not count against the rate.
            if not is_answer and not self._pays(1, now, limits):
                return events
            if isinstance(event, Ping):
                if self.phase is OPEN:
                    # Only the latest ping needs an answer (RFC 6455 section 5.5.3).
                    self._pong = frames.pong_frame(event.data)
            else:
                events.append(event)
        if len(fragments) > paid and not self._pays(len(fragments) - paid, now, limits):
            return events
        if reader.error is not None:
            reason = CloseReason(reader.error.close_code, reader.error.reason, PROTOCOL_ERROR)
            self._fault(reason, now, limits)
        return events

    def _pays(self, messages: int, now: float, limits: DeviceLimits) -> bool:
        if self._rate is None:
            self._rate = RateBucket()
        if self._rate.take(limits.inbound, now, messages):
            return True
        self._fault(RATE_LIMITED, now, limits)
        return False

    # -- the end

    @property
    def deadline(self) -> float | None:
        """When to call :meth:`on_deadline`; None: never. Any method may change it."""
        return None if self.closing is None else self.closing.deadline

    def end(
        self, reason: CloseReason, now: float, limits: DeviceLimits, keep_queued: bool = False, notice: bytes = b""
    ) -> None:
        """Begin the closing handshake. No effect if it has already begun.

        :param keep_queued: write the queued messages before the close frame instead of dropping them
        :param notice: the last message, which comes right before the close frame
        """
        if self.phase is OPEN:
            self._begin_to_close(CLOSING, reason, now, limits, keep_queued, notice)

    def _fault(self, reason: CloseReason, now: float, limits: DeviceLimits) -> None:
        """Discard the client's data from now on."""
        if self.phase is OPEN:
            self._begin_to_close(DISCARDING, reason, now, limits)
        else:
            self.phase = DISCARDING
            self.advance(now, limits)

    def _peer_closes(self, close: Close, now: float, limits: DeviceLimits) -> None:
        if self.phase is OPEN:
            ending = Ending(CLOSED_BY_DEVICE, str(close.code or NO_CODE), self.outbox.discard())
            self._set_closing(ANSWERED, ending, frames.close_frame(close.code), now, limits)
        else:
            self.phase = ANSWERED
            self.advance(now, limits)

    def _begin_to_close(
        self,
        phase: Phase,
        reason: CloseReason,
        now: float,
        limits: DeviceLimits,
        keep_queued: bool = False,
        notice: bytes = b"",
    ) -> None:
        dropped = () if keep_queued else self.outbox.discard()
        ending, frame = Ending(reason.outcome, str(reason.code), dropped), frames.close_frame(reason.code, reason.text)
        self._set_closing(phase, ending, frames.text_frame(notice) + frame if notice else frame, now, limits)

    def _set_closing(self, phase: Phase, ending: Ending, frame: bytes, now: float, limits: DeviceLimits) -> None:
        self.phase, self.closing = phase, Closing(ending, frame, now + limits.write_wait_s)

    def advance(self, now: float, limits: DeviceLimits) -> None:
        """Go to the next phase once our close frame has been written, if the phase waits for that."""
        closing = self.closing
        if closing is None or closing.frame or self.write is not None:
            return
        if self.phase is ANSWERED:
            # The server closes the TCP connection once both close frames have passed (RFC 6455 section 7.1.1).
            self.lose(LOST)
        elif self.phase is DISCARDING:
            # The end of our side makes the client close. Closing the socket while the client sends would reset it.
            self.phase = LINGERING
            closing.deadline = now + min(LINGER_S, limits.write_wait_s)

    def on_deadline(self) -> None:
        """The deadline has passed."""
        self.lose(LOST)

    def lose(self, outcome: str) -> None:
        """The socket is closed, or has to be closed now.

        :param outcome: of a connection that was still OPEN
        """
        if self.closing is None:
            self.closing = Closing(Ending(outcome, LOST, self.outbox.discard()), b"", None)
        self.phase, self.closing.frame, self.closing.deadline, self._pong = CLOSED, b"", None, b""
