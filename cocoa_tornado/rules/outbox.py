"""A device's outbox: what is to be written to its socket, in order, within a bound. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """:ivar max_messages: frames that may wait; :ivar max_bytes: their size together, headers included.

    What has been handed to the socket and is not yet taken by it counts as waiting.
    """

    max_messages: int = 256
    max_bytes: int = 1024 * 1024


class Outbox:
    """Frames in the order of :meth:`push`. An empty outbox holds two small lists and nothing else.

    A single message larger than ``max_bytes`` goes out if nothing else waits: the bound limits how far a device may
    fall behind, not how large a message may be.
    """

    __slots__ = ("_frames", "_in_flight_bytes", "_in_flight_messages", "_queued_bytes", "_stamps")

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._stamps: list[int] = []
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

    def push(self, frame: bytes, timestamp_ms: int, limits: OutboxLimits) -> bool:
        """Append a frame; False if it does not fit: nothing is changed then, and the device is too slow."""
        waiting = len(self)
        if waiting and (waiting >= limits.max_messages or self.waiting_bytes + len(frame) > limits.max_bytes):
            return False
        self._frames.append(frame)
        self._stamps.append(timestamp_ms)
        self._queued_bytes += len(frame)
        return True

    def take(self) -> tuple[bytes, list[int]]:
        """All that is queued, as one run of bytes, and the frames' timestamps. It counts as in flight from now on."""
        frames, stamps = self._frames, self._stamps
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        self._in_flight_messages += len(frames)
        self._in_flight_bytes += len(data)
        self._frames, self._stamps, self._queued_bytes = [], [], 0
        return data, stamps

    def written(self) -> None:
        """The socket has taken all that was in flight."""
        self._in_flight_messages = self._in_flight_bytes = 0

    def discard(self) -> int:
        """Drop what is queued (what is in flight can't be called back); returns how many messages."""
        dropped = len(self._frames)
        self._frames, self._stamps, self._queued_bytes = [], [], 0
        return dropped
