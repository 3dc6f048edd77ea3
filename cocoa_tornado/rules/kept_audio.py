"""One stream's audio on its way to a worker. Pure.

While a stream may lose its worker, all of its audio is kept, so that another worker can start from the beginning and
arrive at the same words. All streams share one byte limit for this. A stream that finds no room there keeps only what
its worker has not been sent yet, and keeps its worker until it ends.
"""

from __future__ import annotations

from typing import Final

from .byte_budget import ByteBudget

HELD_BYTES: Final = 256 * 1024
"""Audio that a stream may hold before any worker was sent it; then its device gets backpressure."""

MIN_TO_RESUME: Final = 8 * 1024
"""A stream that has lost its worker gets another one when it has this much more and 1.5 times what it had, or when it
ends. So workers process at most four times its audio, however it arrives."""


class KeptAudio:
    """Positions are bytes from the beginning of the stream.

    :ivar sent: sent to its worker up to here
    :ivar farthest: sent to any worker up to here
    :ivar repeated: up to here, its worker repeats what another has processed before
    :ivar is_whole: all of it is here, so it can be sent again
    """

    __slots__ = ("_budget", "_charged", "_data", "_start", "farthest", "is_whole", "repeated", "sent")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget, self._charged = budget, 0
        self._data, self._start = bytearray(), 0
        self.sent = self.farthest = self.repeated = 0
        self.is_whole = True

    def __repr__(self) -> str:
        return f"<KeptAudio {self._start}..{self.end}, sent {self.sent}>"

    def __len__(self) -> int:
        """Bytes held."""
        return len(self._data)

    @property
    def end(self) -> int:
        """Bytes received."""
        return self._start + len(self._data)

    @property
    def unsent(self) -> int:
        """Bytes that its worker was not sent yet."""
        return self.end - self.sent

    @property
    def is_full(self) -> bool:
        return self._room <= 0

    @property
    def has_enough(self) -> bool:
        """True if the stream has enough audio to be assigned a worker."""
        return self._fresh >= self._enough or not self.is_whole

    def add(self, data: memoryview) -> int:
        """Take as many bytes as there is room for, and return that number."""
        piece = data[: max(0, self._room)]
        if self.is_whole:
            if self._budget.take(len(piece)):
                self._charged += len(piece)
            else:
                self.stop_keeping()
        self._data += piece
        return len(piece)

    def take(self, most: int) -> bytes:
        """The next piece for the worker."""
        at = self.sent - self._start
        piece = bytes(self._data[at : at + most])
        self.sent += len(piece)
        self.farthest = max(self.farthest, self.sent)
        self._drop_sent()
        return piece

    def rewind(self) -> None:
        """The worker is gone; the next one starts from the beginning. Only while :attr:`is_whole`."""
        assert self.is_whole
        self.sent, self.repeated = 0, self.farthest

    def stop_keeping(self) -> None:
        """It will not be sent again: keep only what is unsent."""
        self.is_whole = False
        self._drop_sent()

    def clear(self) -> None:
        """The stream has ended."""
        self.stop_keeping()
        self._drop(len(self._data))

    @property
    def _fresh(self) -> int:
        return self.end - max(self.farthest, self.sent)

    @property
    def _enough(self) -> int:
        return max(MIN_TO_RESUME, self.farthest // 2) if self.farthest else 1

    @property
    def _room(self) -> int:
        # Without its whole audio it waits for a worker with what it has: collecting more gains nothing.
        return (max(HELD_BYTES, self._enough) if self.is_whole else HELD_BYTES) - self._fresh

    def _drop_sent(self) -> None:
        if not self.is_whole:
            self._drop(self.sent - self._start)

    def _drop(self, count: int) -> None:
        del self._data[:count]
        self._start += count
        # Bytes added after keeping stopped were never charged, and leave last.
        given_back = min(count, self._charged)
        self._charged -= given_back
        self._budget.give_back(given_back)
