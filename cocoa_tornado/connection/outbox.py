"""A device's outbox: the frames to write to its socket, in order, within a bound. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """:ivar max_messages: frames that may wait; :ivar max_bytes: their total size, including headers.

    Frames that were passed to the socket and that it has not taken yet count as waiting.
    """

    max_messages: int = 256
    max_bytes: int = 1024 * 1024


class Squeezed(NamedTuple):
    """:ivar queued: whether the new frame is in the outbox now
    :ivar dropped: interims that were removed or not queued
    """

    queued: bool
    dropped: int


class Discarded(NamedTuple):
    """Frames removed from the outbox: :ivar interims: and :ivar messages: all others."""

    messages: int
    interims: int


# Shared by all empty outboxes, which is most of them most of the time. Never changed.
_NO_FRAMES: Final[list[bytes]] = []
_NO_STAMPS: Final[list[int]] = []


class Outbox:
    """Frames in the order of :meth:`push`. An empty outbox holds no list.

    An interim replaces those of its session before it, so interims are dropped to make room for later frames, or if
    there is no room for them. No other frame is dropped or overtaken.

    A single frame larger than ``max_bytes`` is accepted if nothing else waits: the bound limits how far a device may
    fall behind, not the size of a message.
    """

    __slots__ = ("_frames", "_in_flight_bytes", "_in_flight_messages", "_queued_bytes", "_sessions", "_stamps")

    def __init__(self) -> None:
        self._frames = _NO_FRAMES
        self._stamps = _NO_STAMPS
        self._sessions: list[str] | None = None  # one for each frame, if any of them is an interim
        self._queued_bytes = 0
        self._in_flight_messages = 0
        self._in_flight_bytes = 0

    def __repr__(self) -> str:
        return f"<Outbox {len(self)} messages, {self.waiting_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._frames) + self._in_flight_messages

    @property
    def waiting_bytes(self) -> int:
        return self._queued_bytes + self._in_flight_bytes

    @property
    def has_queued(self) -> bool:
        return bool(self._frames)

    def push(self, frame: bytes, timestamp_ms: int, limits: OutboxLimits, interim_of: str = "") -> bool:
        """Append a frame. False: it does not fit, and nothing is changed.

        :param interim_of: the session of an interim; '' for everything else
        """
        frames, size = self._frames, self._queued_bytes + len(frame)
        waiting = len(frames) + self._in_flight_messages
        if waiting and (waiting >= limits.max_messages or size + self._in_flight_bytes > limits.max_bytes):
            return False
        if frames:
            frames.append(frame)
            self._stamps.append(timestamp_ms)
        else:
            self._frames, self._stamps = [frame], [timestamp_ms]
        self._queued_bytes = size
        if interim_of or self._sessions is not None:
            if self._sessions is None:
                self._sessions = [""] * (len(self._frames) - 1)
            self._sessions.append(interim_of)
        return True

    def squeeze_in(self, frame: bytes, timestamp_ms: int, limits: OutboxLimits, interim_of: str = "") -> Squeezed:
        """Append a frame that :meth:`push` did not accept, by dropping interims.

        Those of the new frame's session go first, then the oldest, and no more than needed. If that is not enough, the
        frame is not queued.
        """
        dropped = 0
        for own in (True, False):
            while not (queued := self.push(frame, timestamp_ms, limits, interim_of)):
                at = self._oldest_interim(interim_of if own else "")
                if at is None:
                    break
                self._drop(at)
                dropped += 1
            if queued:
                return Squeezed(True, dropped)
        return Squeezed(False, dropped + bool(interim_of))

    def _oldest_interim(self, session: str) -> int | None:
        for at, of in enumerate(self._sessions or ()):
            if of and (not session or of == session):
                return at
        return None

    def _drop(self, at: int) -> None:
        assert self._sessions is not None
        self._queued_bytes -= len(self._frames[at])
        del self._frames[at], self._stamps[at], self._sessions[at]

    def take(self) -> tuple[bytes, Sequence[int]]:
        """Remove everything that is queued; return it as one piece, and the frames' timestamps.

        If the socket does not take it at once, call :meth:`in_flight`.
        """
        frames, stamps = self._frames, self._stamps
        if not frames:
            return b"", ()
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        self._frames, self._stamps, self._sessions, self._queued_bytes = _NO_FRAMES, _NO_STAMPS, None, 0
        return data, stamps

    def in_flight(self, messages: int, size: int) -> None:
        """The socket has not taken so much of what was removed; it counts as waiting until :meth:`written`."""
        self._in_flight_messages, self._in_flight_bytes = messages, size

    def written(self) -> None:
        """The socket has taken all that was in flight."""
        self._in_flight_messages = self._in_flight_bytes = 0

    def discard(self) -> Discarded:
        """Drop what is queued. What is in flight can't be taken back."""
        interims = sum(map(bool, self._sessions or ()))
        dropped = Discarded(len(self._frames) - interims, interims)
        self._frames, self._stamps, self._sessions, self._queued_bytes = _NO_FRAMES, _NO_STAMPS, None, 0
        return dropped
