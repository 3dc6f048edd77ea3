"""One stream's audio on its way to a worker. Pure.

While the stream may lose its worker, all of its audio is kept: another worker then begins at the beginning, and comes
to the same words. What all streams keep has a common bound. A stream that finds no room there keeps nothing but what
its worker has not been sent yet, and has a worker until its end.
"""

from __future__ import annotations

from typing import Final

from .byte_budget import ByteBudget

HELD_BYTES: Final = 256 * 1024
"""What a stream may have before it that no worker was ever sent; then its device is held back."""

LEAST_TO_GO_ON: Final = 8 * 1024
"""A stream that has lost its worker wants another one when it has so much more, and half as much again as it had, or
when it ends. So workers hear at most four times its audio, however it comes."""


class KeptAudio:
    """Positions are bytes from the beginning of the stream.

    :ivar sent: how far its worker has been sent
    :ivar farthest: how far any worker has been sent
    :ivar repeated: how far its worker hears what another one has heard before
    :ivar is_whole: all of it is here, so that it can be sent again
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
        """Bytes that are here."""
        return len(self._data)

    @property
    def end(self) -> int:
        """How much has come."""
        return self._start + len(self._data)

    @property
    def unsent(self) -> int:
        """What its worker is still to be sent."""
        return self.end - self.sent

    @property
    def is_full(self) -> bool:
        return self._room <= 0

    @property
    def has_enough(self) -> bool:
        """It is worth a worker."""
        return self._fresh >= self._enough or not self.is_whole

    def add(self, data: memoryview) -> int:
        """Take as much as there is room for; returns how much that is."""
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
        """The worker is gone; the next one begins at the beginning. Only for what is whole."""
        assert self.is_whole
        self.sent, self.repeated = 0, self.farthest

    def stop_keeping(self) -> None:
        """It will not be sent again: keep no more than what is unsent."""
        self.is_whole = False
        self._drop_sent()

    def clear(self) -> None:
        """The stream is over."""
        self.stop_keeping()
        self._drop(len(self._data))

    @property
    def _fresh(self) -> int:
        return self.end - max(self.farthest, self.sent)

    @property
    def _enough(self) -> int:
        return max(LEAST_TO_GO_ON, self.farthest // 2) if self.farthest else 1

    @property
    def _room(self) -> int:
        # Without its whole audio it waits for a worker as it is: there is nothing to collect for.
        return (max(HELD_BYTES, self._enough) if self.is_whole else HELD_BYTES) - self._fresh

    def _drop_sent(self) -> None:
        if not self.is_whole:
            self._drop(self.sent - self._start)

    def _drop(self, count: int) -> None:
        del self._data[:count]
        self._start += count
        # What came after it was no longer kept was never charged, and goes last.
        given_back = min(count, self._charged)
        self._charged -= given_back
        self._budget.give_back(given_back)
